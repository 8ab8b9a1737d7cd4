"""``puzzlefs untag``: remove a tag."""

from __future__ import annotations

import argparse
import dataclasses
import json

from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words

_EPILOG = """\
The blobs stay until `puzzlefs gc` finds that nothing else names them. Nothing is printed, unless --json asks for it:
one object with "image", "manifest" and "before" (sha256 of what the tag pointed to) and "other_tags" that still point
there.

example:
  puzzlefs untag images:old && puzzlefs gc images
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "untag",
        help="remove a tag",
        description="Remove a tag. What it points to stays until garbage is collected.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs untag [--json] IMAGE",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    _, reference, _ = words(args.words, (), ())

    from puzzlefs.tags import untag  # noqa: PLC0415  imported when it is needed: starting must be quick

    change = untag(reference)
    if args.json:
        print(json.dumps(dataclasses.asdict(change)))
    return 0
