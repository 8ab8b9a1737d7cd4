"""``puzzlefs extract``: write an image out as ordinary files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.options import add_image_options

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
        usage="puzzlefs extract [-d HEX] [--verity MODE] [--json] IMAGE DIR",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE DIR", help=f"{IMAGE_HELP}; then an empty or new directory")
    add_image_options(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    _, reference, (directory,) = words(args.words, (), ("DIR",))

    from puzzlefs.extract import extract  # noqa: PLC0415  imported when it is needed: starting must be quick

    report = extract(reference, directory, digest=args.digest, verity=args.verity)
    if args.json:
        print(json.dumps(dataclasses.asdict(report)))
    if report.not_restored:
        missing = ", ".join(f"{what} of {count} entries" for what, count in sorted(report.not_restored.items()))
        print(f"puzzlefs: not restored (this needs root, or another file system): {missing}", file=sys.stderr)
    return 0
