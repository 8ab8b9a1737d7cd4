"""``puzzlefs extract``: write an image out as ordinary files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.options import add_image_options
from puzzlefs_cli.progress import add_progress_options, begin_work, progress_of
from puzzlefs_cli.text import counted

_EPILOG = """\
Everything is restored: contents, holes, owners, modes, times, hard links, devices, extended attributes. Without root,
owners, devices and some attributes cannot be; a line on stderr says what is missing. All data is verified on the way.

example:
  puzzlefs extract images:debian /srv/debian
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "extract",
        help="write an image out as ordinary files",
        description="Write everything in an image below an empty or new directory.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs extract [OPTION...] IMAGE DIR",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE DIR", help=f"{IMAGE_HELP}; then an empty or new directory")
    add_image_options(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    add_progress_options(parser, "no remarks, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    _, reference, (directory,) = words(args.words, (), ("DIR",))

    from puzzlefs.builder import Progress  # noqa: PLC0415  imported when it is needed: starting must be quick
    from puzzlefs.extract import extract  # noqa: PLC0415
    from puzzlefs.image import open_image  # noqa: PLC0415

    begin_work()
    with open_image(reference, digest=args.digest, verity=args.verity) as image, progress_of(args) as show:
        total = image.tree.totals().size if show is not None else 0

        def progress(entries: int, size: int) -> None:
            if show is not None:
                show(Progress("chunks", entries, size, total))

        report = extract(image, directory, progress=progress)
    if args.json:
        print(json.dumps(dataclasses.asdict(report)))
    if report.not_restored and not args.quiet:
        missing = ", ".join(
            f"{what} of {counted(count, 'entry', 'entries')}" for what, count in sorted(report.not_restored.items())
        )
        print(f"puzzlefs: not restored (this needs root, or another file system): {missing}", file=sys.stderr)
    return 0
