"""``puzzlefs tag``: one more name for an image."""

from __future__ import annotations

import argparse
import dataclasses
import json

from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words

_EPILOG = """\
The new tag is in the same OCI directory, and moves if it is there. What the old one points to need not be a PuzzleFS
image. Nothing is printed, unless --json asks for it: one object with "image" (as it is named now), "manifest" (sha256
of what it points to), "before" (what the tag pointed to, or null) and "other_tags" that point there.

example:
  puzzlefs tag images:debian stable
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "tag",
        help="give an image one more tag",
        description="Have one more tag point to an image.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs tag [--json] IMAGE NEWTAG",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE NEWTAG", help=f"{IMAGE_HELP}; then the new tag")
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    _, reference, (new_tag,) = words(args.words, (), ("NEWTAG",))

    from puzzlefs.tags import tag  # noqa: PLC0415  imported when it is needed: starting must be quick

    change = tag(reference, new_tag)
    if args.json:
        print(json.dumps(dataclasses.asdict(change)))
    return 0
