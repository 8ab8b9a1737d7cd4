"""``puzzlefs commit``: make a new image of what was written to a writable mount."""

from __future__ import annotations

import argparse
import gc
import signal
from types import FrameType

from puzzlefs_cli.arguments import HelpFormatter, size
from puzzlefs_cli.build_report import print_report, remark
from puzzlefs_cli.progress import add_progress_options, progress_of

_EPILOG = """\
The new image is a metadata layer on top of the image that is mounted, also if its tag points elsewhere by now, in the
same OCI directory. It costs what was written, not what the image holds. The mount stays as it is: what was written
stays on top of the old image, and a later commit holds it too. A file that is written to meanwhile makes it fail.

example:
  puzzlefs mount --writable images:debian /mnt
  chroot /mnt apt-get install -y jq
  puzzlefs commit /mnt debian-jq
  puzzlefs umount /mnt
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "commit",
        help="make an image of what was written to a mount",
        description="Make a new image of what a writable mount shows, and print the image's digest.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs commit [OPTION...] MOUNTPOINT NEWTAG",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where an image is mounted with -w or -p: /mnt")
    parser.add_argument("tag", metavar="NEWTAG", help="the tag of the new image, moved if it is there: debian-jq")
    parser.add_argument(
        "-c",
        "--compression",
        action=argparse.BooleanOptionalAction,
        help="whether new chunks are compressed (default: if those of the image are)",
    )
    storing = parser.add_argument_group("how it is stored", "As for build.")
    storing.add_argument("--compression-level", type=int, metavar="N", help="zstd level (default: 5)")
    storing.add_argument("--chunk-size", type=size, metavar="SIZE", help="average bytes of a chunk (default: 128K)")
    storing.add_argument(
        "--cut-at-files", type=size, metavar="SIZE", help="which files have chunks of their own (default: 48K)"
    )
    storing.add_argument("--compress-metadata", action="store_true", help="compress the metadata, too")
    parser.add_argument(
        "--timestamps",
        choices=("none", "keep"),
        help="modification times: none (everything shows 1970) or keep (default: as in the image)",
    )
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object instead of the digest")
    add_progress_options(parser, remarks=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from puzzlefs.builder import StorageOptions  # noqa: PLC0415  imported when it is needed: starting must be quick
    from puzzlefs.mount.committing import commit  # noqa: PLC0415

    gc.disable()  # as for build: the objects that are made die with the process
    signal.signal(signal.SIGTERM, _interrupt)
    with progress_of(args) as progress:
        report = commit(
            args.mountpoint,
            args.tag,
            compression=args.compression,
            storage=StorageOptions(
                level=args.compression_level,
                chunk_size=args.chunk_size,
                cut_at_files=args.cut_at_files,
                compress_metadata=args.compress_metadata,
            ),
            timestamps=args.timestamps,
            progress=progress,
        )
    if not args.quiet:
        remark(report, timestamps=args.timestamps)
    print_report(report, as_json=args.json)
    return 0


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
