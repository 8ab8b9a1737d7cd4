"""``puzzlefs history``: what each metadata layer of an image added, changed and removed."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
from typing import TYPE_CHECKING, Final

from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.options import add_image_options
from puzzlefs_cli.text import aligned, readable

if TYPE_CHECKING:
    from puzzlefs.history import HistoryReport

_EPILOG = """\
The newest layer comes first; layer 1 is the lowest. "added", "changed" and "removed" are inodes that can be seen with
the layer, with and without it, or without it. "chunks" are those that no lower layer refers to, "content" their bytes
before compression and "stored" those of their blobs; "metadata" is what the layer takes itself.

example:
  puzzlefs history images:debian-3
"""

_HEADINGS: Final = ("layer", "added", "changed", "removed", "chunks", "content", "stored", "metadata")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "history",
        help="show what each metadata layer of an image changed",
        description="Show what each metadata layer of an image added, changed and removed, and what it stores.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs history [-d HEX] [--verity MODE] [--json] IMAGE",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE", help=IMAGE_HELP)
    add_image_options(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object, with exact numbers")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    _, reference, _ = words(args.words, (), ())

    from puzzlefs.history import history  # noqa: PLC0415  imported when it is needed: starting must be quick

    gc.disable()  # all that is made here dies with the process
    report = history(reference, digest=args.digest, verity=args.verity)
    print(json.dumps(dataclasses.asdict(report)) if args.json else table(report))
    return 0


def table(report: HistoryReport) -> str:
    """The report for people: a line for each layer."""
    rows = [
        (
            str(layer.layer),
            str(layer.added),
            str(layer.changed),
            str(layer.removed),
            str(layer.new_chunks),
            readable(layer.new_bytes),
            readable(layer.new_stored_bytes) + (f" ({layer.missing_chunks} missing)" if layer.missing_chunks else ""),
            readable(layer.metadata_bytes),
        )
        for layer in report.layers
    ]
    return "\n".join(aligned([_HEADINGS, *rows]))
