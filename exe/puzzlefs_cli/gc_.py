"""``puzzlefs gc``: remove the blobs that no image needs."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys

from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.progress import add_progress_options, count_of
from puzzlefs_cli.text import counted, readable

_EPILOG = """\
What any entry of the index reaches stays, and so does what live mounts serve and running builds rely on, however old it
is. Other programs that write into the directory take no lease: do not run it beside them, or leave the grace as it is.
Nothing is removed if any manifest cannot be read.

If blobs/sha256 is a link to a folder that several OCI directories share, all of them have to be named.

--json prints one object: dry_run, removed_blobs, removed_bytes, dropped_entries, temporary_files, temporary_bytes,
kept_blobs, kept_bytes, young_blobs and young_bytes (those of them that only the grace protects), leases (mounts and
builds that were asked), seconds.

examples:
  puzzlefs untag images:old && puzzlefs gc images
  puzzlefs gc --dry-run --grace 0 images
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "gc",
        help="remove the blobs that no image needs",
        description="Remove the blobs of an OCI directory that nothing in its index reaches, and left-over files.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs gc [OPTION...] OCI_DIR [OTHER_OCI_DIR...]",
    )
    parser.add_argument(
        "words", nargs="+", metavar="OCI_DIR", help="an OCI directory; then all others that share its blobs, if any do"
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--grace",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="keep what is younger than that, and what it names if it is a manifest (default: 3600)",
    )
    parser.add_argument(
        "--untagged", action="store_true", help="drop entries of the index that have no tag, and what only they reach"
    )
    parser.add_argument(
        "--sole", action="store_true", help="blobs/sha256 is a link, but nobody else uses what it leads to"
    )
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    add_progress_options(parser, "no report, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from puzzlefs.collect import collect_garbage  # noqa: PLC0415  imported when it is needed: starting must be quick

    gc.disable()  # all that is made here dies with the process
    first, *others = args.words
    with count_of(args, "removing") as progress:
        report = collect_garbage(
            first,
            others=others,
            is_sole=args.sole,
            dry_run=args.dry_run,
            grace=args.grace,
            untagged=args.untagged,
            progress=progress,
        )
    if args.json:
        print(json.dumps({**dataclasses.asdict(report), "seconds": round(report.seconds, 3)}))
        return 0
    if args.quiet:
        return 0
    verb = "would remove" if report.dry_run else "removed"
    print(f"{verb} {counted(report.removed_blobs, 'blob')} ({readable(report.removed_bytes)})", end="")
    if report.temporary_files:
        print(f" and {counted(report.temporary_files, 'temporary file')} ({readable(report.temporary_bytes)})", end="")
    if report.dropped_entries:
        print(f", dropped {counted(report.dropped_entries, 'entry', 'entries')} without a tag", end="")
    stay = "stays" if report.kept_blobs == 1 else "stay"
    print(f"; {counted(report.kept_blobs, 'blob')} {stay} ({readable(report.kept_bytes)})")
    if report.young_blobs:
        are = "it is" if report.young_blobs == 1 else "they are"
        print(
            f"puzzlefs: {report.young_blobs} of those ({readable(report.young_bytes)}) nothing reaches, but {are} "
            f"younger than {args.grace:g} seconds; --grace says how long to wait",
            file=sys.stderr,
        )
    return 0
