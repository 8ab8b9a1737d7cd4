"""``puzzlefs canonicalize``: fold an image's metadata layers into the one image that a fresh build makes."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.oci import ImageReference, make_reference, parse_reference
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, size
from puzzlefs_cli.build_report import print_digest
from puzzlefs_cli.progress import add_progress_options, progress_of

_EPILOG = """\
The result is the image that `puzzlefs build` makes of the extracted tree, with the same digest, but nothing is
extracted: chunks that fit are taken over, and only what lies between them is stored anew. Without NEWTAG, the image's
tag moves. What only the old image used stays in the OCI directory until it is collected.

Format version, timestamps, compression and its level are those of the image. How it was cut into chunks cannot be seen:
say so if it was not built with the defaults.

example:
  puzzlefs canonicalize images:debian debian-flat
"""

_MANY = 64
"""Chunks from which on it is no accident that most of them are new."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "canonicalize",
        help="fold an image's layers into the image that a fresh build makes",
        description="Make of an image with any number of metadata layers the image that a fresh build of what it shows "
        "would make, and print its digest.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs canonicalize [OPTION...] IMAGE [NEWTAG]",
    )
    parser.add_argument(
        "words", nargs="+", metavar="IMAGE [NEWTAG]", help=f"{IMAGE_HELP}; then the result's tag, if it is another one"
    )
    parser.add_argument("-d", "--digest", metavar="HEX", help="refuse any image but the one with this digest")
    parser.add_argument(
        "-c",
        "--compression",
        action=argparse.BooleanOptionalAction,
        help="whether chunks are compressed (default: as in the image)",
    )
    storing = parser.add_argument_group(
        "how a compressed image is stored",
        "The same options as for build, to be given if the image was built with them.",
    )
    storing.add_argument(
        "--compression-level", type=int, metavar="N", help="zstd level (default: that of the image's chunks)"
    )
    storing.add_argument("--chunk-size", type=size, metavar="SIZE", help="average bytes of a chunk")
    storing.add_argument("--cut-at-files", type=size, metavar="SIZE", help="which files have chunks of their own")
    storing.add_argument(
        "--compress-metadata", action="store_true", help="compress the metadata, too (default: as in the image)"
    )
    parser.add_argument(
        "--chunker",
        choices=("fastcdc2020", "ronomon"),
        default="fastcdc2020",
        help="how files are cut into chunks (default: fastcdc2020)",
    )
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object instead of the digest")
    add_progress_options(parser, remarks=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    reference, tag = image_and_tag(args.words)

    from puzzlefs.builder import StorageOptions  # noqa: PLC0415  imported when it is needed: starting must be quick
    from puzzlefs.canonicalize import canonicalize  # noqa: PLC0415

    gc.disable()  # as for build: the objects that are made die with the process
    signal.signal(signal.SIGTERM, _interrupt)
    with progress_of(args) as progress:
        report = canonicalize(
            reference,
            tag,
            compression=args.compression,
            storage=StorageOptions(
                level=args.compression_level,
                chunk_size=args.chunk_size,
                cut_at_files=args.cut_at_files,
                compress_metadata=args.compress_metadata,
            ),
            chunker=args.chunker,
            digest=args.digest,
            progress=progress,
        )
    if not args.quiet and report.chunks >= _MANY and report.new_chunks * 2 > report.chunks:
        print(
            "puzzlefs: most chunks did not fit and were stored anew; if the image was built with --chunk-size, "
            "--cut-at-files or --chunker, say the same here",
            file=sys.stderr,
        )
    if args.json:
        seconds = round(report.seconds, 3)
        print(json.dumps({**dataclasses.asdict(report), "digest": str(report.digest), "seconds": seconds}))
    else:
        print_digest(report.digest)
    return 0


def image_and_tag(given: Sequence[str]) -> tuple[ImageReference, str | None]:
    """What ``IMAGE [NEWTAG]`` says, where ``IMAGE`` is one word or two.

    Two words are an image and a tag, unless the first names a directory.

    Raises:
        InvalidArgumentError: if there are too many words, or they name no image.
    """
    match given:
        case [image]:
            return parse_reference(image), None
        case [image, tag] if ":" in image and not Path(image).is_dir():
            return parse_reference(image), tag
        case [layout, tag]:
            return make_reference(layout, tag), None
        case [layout, tag, new_tag]:
            return make_reference(layout, tag), new_tag
        case _:
            raise InvalidArgumentError(
                "too many arguments: IMAGE [NEWTAG] expected",
                hint="IMAGE is OCI_DIR:TAG, or the two words OCI_DIR TAG",
            )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
