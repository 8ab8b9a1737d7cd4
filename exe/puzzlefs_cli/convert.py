"""``puzzlefs convert``: write an image in another version of the format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from puzzlefs.oci import ImageReference
from puzzlefs_cli.arguments import HelpFormatter, take_image, too_many
from puzzlefs_cli.build_report import print_made
from puzzlefs_cli.options import add_digest_option
from puzzlefs_cli.progress import add_progress_options, begin_work, progress_of

_EPILOG = """\
Metadata layers are kept as they are, and so are chunks: none is cut or compressed again. An OCI directory holds either
images of versions 1 and 2 or images of version 3, so between these NEWIMAGE lies in another directory; on the same file
system chunks are linked there, not copied.

example:
  puzzlefs convert --format-version 1 images:debian old-images:debian
"""


_WORDS = "IMAGE NEWIMAGE"


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
    add_digest_option(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object instead of the digest")
    add_progress_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    source, target = two_images(args.words)

    from puzzlefs.convert import convert  # noqa: PLC0415  imported when it is needed: starting must be quick

    begin_work()
    with progress_of(args) as progress:
        report = convert(source, target, format_version=args.format_version, digest=args.digest, progress=progress)
    print_made(report, as_json=args.json)
    return 0


def two_images(given: Sequence[str]) -> tuple[ImageReference, ImageReference]:
    """What ``IMAGE NEWIMAGE`` says, where each is one word or two.

    Raises:
        InvalidArgumentError: if there are too few or too many, or they name no images.
    """
    source, others = take_image(given, _WORDS)
    target, others = take_image(others, _WORDS)
    if others:
        raise too_many(_WORDS)
    return source, target
