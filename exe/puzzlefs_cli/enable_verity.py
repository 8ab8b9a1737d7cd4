"""``puzzlefs enable-fs-verity``: have the kernel protect the files of an image."""

from __future__ import annotations

import argparse
import dataclasses
import json

from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.progress import add_progress_options, begin_work, count_of

_EPILOG = """\
The digest is compared with the manifest before any file is touched. From then on the kernel refuses every change of
these files, and checks each page that is read. The file system needs the feature: mkfs.ext4 -O verity, or tune2fs -O
verity.

example:
  puzzlefs enable-fs-verity images:debian "$digest"
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "enable-fs-verity",
        help="have the kernel protect the files of an image",
        description="Enable fs-verity on every file of an image, and check what the kernel measures.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs enable-fs-verity [OPTION...] IMAGE DIGEST",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE DIGEST", help=f"{IMAGE_HELP}; then what build printed")
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    add_progress_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    _, reference, (digest,) = words(args.words, (), ("DIGEST",))

    from puzzlefs.enable_verity import enable_fs_verity  # noqa: PLC0415  imported when it is needed

    begin_work()
    with count_of(args, "enabling", in_bytes=True) as progress:
        report = enable_fs_verity(reference, digest, progress=progress)
    if args.json:
        print(json.dumps(dataclasses.asdict(report)))
    return 0
