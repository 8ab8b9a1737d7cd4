"""``puzzlefs canonicalize``: fold an image's metadata layers into the one image that a fresh build makes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from puzzlefs.oci import ImageReference
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, take_image, too_many
from puzzlefs_cli.build_report import print_made
from puzzlefs_cli.options import add_chunker_option, add_digest_option, add_storage_options, storage_options
from puzzlefs_cli.progress import add_progress_options, begin_work, progress_of

_EPILOG = """\
The result is the image that `puzzlefs build` makes of the extracted tree, with the same digest, but nothing is
extracted: chunks that fit are taken over, and only what lies between them is stored anew. Without NEWTAG, the image's
tag moves. What only the old image used stays in the OCI directory until it is collected.

Format version, timestamps, compression and its level are those of the image. How it was cut into chunks cannot be seen:
say so if it was not built with the defaults.

example:
  puzzlefs canonicalize images:debian debian-flat
"""

_WORDS = "IMAGE [NEWTAG]"

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
    add_digest_option(parser)
    parser.add_argument(
        "-c",
        "--compression",
        action=argparse.BooleanOptionalAction,
        help="whether chunks are compressed (default: as in the image)",
    )
    add_storage_options(
        parser,
        "The same options as for build, to be given if the image was built with them.",
        level="that of the image's chunks",
        compress_metadata="as in the image",
    )
    add_chunker_option(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object instead of the digest")
    add_progress_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    reference, tag = image_and_tag(args.words)

    from puzzlefs.canonicalize import canonicalize  # noqa: PLC0415  imported when it is needed: starting must be quick

    begin_work()
    with progress_of(args) as progress:
        report = canonicalize(
            reference,
            tag,
            compression=args.compression,
            storage=storage_options(args),
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
    print_made(report, as_json=args.json)
    return 0


def image_and_tag(given: Sequence[str]) -> tuple[ImageReference, str | None]:
    """What ``IMAGE [NEWTAG]`` says, where ``IMAGE`` is one word or two.

    Raises:
        InvalidArgumentError: if there are too many words, or they name no image.
    """
    reference, others = take_image(given, _WORDS)
    if len(others) > 1:
        raise too_many(_WORDS)
    return reference, others[0] if others else None
