"""``puzzlefs copy``: images in another OCI directory."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from puzzlefs.errors import InvalidArgumentError
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.options import add_digest_option
from puzzlefs_cli.progress import add_progress_options, begin_work, count_of
from puzzlefs_cli.text import readable

if TYPE_CHECKING:
    from puzzlefs.copy_image import CopyReport

_EPILOG = """\
Only blobs that DEST has not are copied; where the file system can do it, they are linked, or share their blocks. All
are verified. Interrupted, it goes on where it ended when it is run again. The tag moves last. Indexes of several
images, and images of other programs, are copied as well, and so is what refers to them: signatures, for example.

DEST is OCI_DIR:TAG, or a directory, in which the tag stays what it is. It is made if need be. Images of format versions
1 and 2 and those of version 3 cannot be in one directory: see `puzzlefs convert`.

--json prints one object: "images" (what the copies are called), "referrers", "blobs", "bytes", "new_blobs",
"copied_bytes", "cloned_bytes", "linked_bytes", "skipped_blobs" and "skipped_bytes" (they were there), "missing_blobs"
(named, not there, and not needed by any file that can be seen), "seconds".

examples:
  puzzlefs copy images:debian /mnt/backup
  puzzlefs copy images:debian elsewhere:stable
  puzzlefs copy --all images /mnt/backup
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "copy",
        help="copy images to another OCI directory",
        description="Copy an image, or all images of an OCI directory, to another OCI directory.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs copy [OPTION...] IMAGE DEST\n       puzzlefs copy --all [OPTION...] OCI_DIR DEST_DIR",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE DEST", help=f"{IMAGE_HELP}; then where to copy it")
    parser.add_argument("-a", "--all", action="store_true", help="copy every tag of an OCI directory")
    add_digest_option(parser)
    parser.add_argument(
        "--check-existing",
        action="store_true",
        help="hash blobs that are there already instead of trusting their size, and replace damaged ones",
    )
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    add_progress_options(parser, "no report, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.all and (len(args.words) != 2 or args.digest):
        raise InvalidArgumentError("--all goes with two directories, and without --digest")

    from puzzlefs.copy_image import copy_all, copy_image  # noqa: PLC0415  imported when needed: starting must be quick

    begin_work()
    with count_of(args, "copying", in_bytes=True) as progress:
        if args.all:
            report = copy_all(*args.words, check_existing=args.check_existing, progress=progress)
        else:
            _, reference, (target,) = words(args.words, (), ("DEST",))
            report = copy_image(
                reference, target, digest=args.digest, check_existing=args.check_existing, progress=progress
            )
    if args.json:
        print(json.dumps({**dataclasses.asdict(report), "seconds": round(report.seconds, 3)}))
    elif not args.quiet:
        print(line(report))
    return 0


def line(report: CopyReport) -> str:
    """The report for people: ``debian: 2 blobs of 2328 new, 1.7 MiB (linked 1.7 MiB)``."""
    ways = {"copied": report.copied_bytes, "cloned": report.cloned_bytes, "linked": report.linked_bytes}
    how = ", ".join(f"{readable(size)} {way}" for way, size in ways.items() if size) or "nothing had to be copied"
    images = report.images[0] if len(report.images) == 1 else f"{len(report.images)} images"
    return f"{images}: {report.new_blobs} of {report.blobs} blobs are new: {how}"
