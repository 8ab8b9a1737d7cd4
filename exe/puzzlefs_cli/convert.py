"""``puzzlefs convert``: write an image in another version of the format."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.oci import ImageReference, make_reference, parse_reference
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.build_report import print_digest
from puzzlefs_cli.progress import add_progress_options, progress_of

_EPILOG = """\
Metadata layers are kept as they are, and so are chunks: none is cut or compressed again. An OCI directory holds either
images of versions 1 and 2 or images of version 3, so between these NEWIMAGE lies in another directory; on the same file
system chunks are linked there, not copied.

example:
  puzzlefs convert --format-version 1 images:debian old-images:debian
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "convert",
        help="write an image in another version of the format",
        description="Write an image in another version of the format, and print the new image's digest.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs convert --format-version N [OPTION...] IMAGE NEWIMAGE",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="IMAGE NEWIMAGE",
        help="the image, and what to call the new one: each OCI_DIR:TAG, or the two words OCI_DIR TAG",
    )
    parser.add_argument(
        "--format-version", type=int, choices=(1, 2, 3), required=True, help="the version of the new image"
    )
    parser.add_argument("-d", "--digest", metavar="HEX", help="refuse any image but the one with this digest")
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object instead of the digest")
    add_progress_options(parser, remarks=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    source, target = two_images(args.words)

    from puzzlefs.convert import convert  # noqa: PLC0415  imported when it is needed: starting must be quick

    gc.disable()  # as for build: the objects that are made die with the process
    signal.signal(signal.SIGTERM, _interrupt)
    with progress_of(args) as progress:
        report = convert(source, target, format_version=args.format_version, digest=args.digest, progress=progress)
    if args.json:
        seconds = round(report.seconds, 3)
        print(json.dumps({**dataclasses.asdict(report), "digest": str(report.digest), "seconds": seconds}))
    else:
        print_digest(report.digest)
    return 0


def two_images(given: Sequence[str]) -> tuple[ImageReference, ImageReference]:
    """What ``IMAGE NEWIMAGE`` says, where each is one word or two.

    Of three words the first is an image, unless it names a directory.

    Raises:
        InvalidArgumentError: if there are too few or too many, or they name no images.
    """
    match given:
        case [source, target]:
            return parse_reference(source), parse_reference(target)
        case [source, layout, tag] if ":" in source and not Path(source).is_dir():
            return parse_reference(source), make_reference(layout, tag)
        case [layout, tag, target]:
            return make_reference(layout, tag), parse_reference(target)
        case [layout, tag, new_layout, new_tag]:
            return make_reference(layout, tag), make_reference(new_layout, new_tag)
        case _:
            problem = "too few" if len(given) < 2 else "too many"
            raise InvalidArgumentError(
                f"{problem} arguments: IMAGE NEWIMAGE expected",
                hint="each is OCI_DIR:TAG, or the two words OCI_DIR TAG",
            )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
