"""``puzzlefs commit``: make a new image of what was written to a writable mount."""

from __future__ import annotations

import argparse

from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.build_report import print_report, remark
from puzzlefs_cli.options import add_storage_options, storage_options
from puzzlefs_cli.progress import add_progress_options, begin_work, progress_of

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
    add_storage_options(parser, "The same options as for build.")
    parser.add_argument(
        "--timestamps",
        choices=("none", "keep"),
        help="modification times: none (everything shows 1970) or keep (default: as in the image)",
    )
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object instead of the digest")
    add_progress_options(parser, "no remarks, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from puzzlefs.mount.committing import commit  # noqa: PLC0415  imported when it is needed: starting must be quick

    begin_work()
    with progress_of(args) as progress:
        report = commit(
            args.mountpoint,
            args.tag,
            compression=args.compression,
            storage=storage_options(args),
            timestamps=args.timestamps,
            progress=progress,
        )
    if not args.quiet:
        remark(report, timestamps=args.timestamps)
    print_report(report, as_json=args.json)
    return 0
