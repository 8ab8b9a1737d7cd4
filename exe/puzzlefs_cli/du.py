"""``puzzlefs du``: what the folders of an image weigh, and what removing its tag would free.

``--json`` prints one object with the keys of ``puzzlefs.usage.UsageReport``: ``image``, ``digest``, ``rows`` (``path``,
``depth``, ``is_directory``, ``inodes``, ``apparent_bytes``, ``stored_bytes``, ``exclusive_bytes``), ``image_bytes``,
``metadata_bytes``, ``hidden_bytes``, ``missing_blobs``, ``freed_bytes``, ``unreadable``, ``problems``. A path is
text with surrogate escapes where it is not UTF-8, as in ``ls --json``.

``-b`` prints, for programs, lines of four fields with a tab between them: apparent, stored, exclusive, path.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from puzzlefs.errors import InvalidArgumentError
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter
from puzzlefs_cli.exit_codes import ExitCode
from puzzlefs_cli.looking import opened, whole_number
from puzzlefs_cli.options import add_image_options
from puzzlefs_cli.text import UNKNOWN, bytes_or_unknown, counted, name_for_stdout, readable, write_bytes

if TYPE_CHECKING:
    from puzzlefs.usage import Usage, UsageReport

_EPILOG = """\
"apparent" are the bytes of the files below a folder; "stored" is its part of the blobs that hold them: where files
share a chunk, each carries what it uses of it, so all parts add up to the whole. "exclusive" is its part of those blobs
that no other entry of the OCI directory reaches. A file with several names counts once, where it is met first. No
content is read.

examples:
  puzzlefs du -d 1 --sort images:debian /usr
  puzzlefs du -s images:debian
"""

_HEADINGS: Final = ("apparent", "stored", "exclusive", "path")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "du",
        help="show what the folders of an image weigh",
        description="Show for each folder of an image how large its files are, what they take in the OCI directory, "
        "and what of that no other image uses.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs du [OPTION...] IMAGE [PATH]",
    )
    parser.add_argument(
        "words", nargs="+", metavar="IMAGE [PATH]", help=f"{IMAGE_HELP}; then a path in the image (default: /)"
    )
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("-s", "--summarize", action="store_true", help="one line, for the whole")
    depth.add_argument("-d", "--max-depth", type=whole_number, metavar="N", help="folders at most N levels below PATH")
    parser.add_argument("-a", "--all", action="store_true", help="a line for every file, too")
    parser.add_argument("--sort", action="store_true", help="what takes most room in the OCI directory first")
    parser.add_argument("-b", "--bytes", action="store_true", help="exact numbers and nothing else, tabs between them")
    parser.add_argument("-0", "--null", action="store_true", help="as -b, with a NUL at the end of each line")
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    add_image_options(parser, short=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    with opened(args) as look:
        if len(look.paths) > 1:
            raise InvalidArgumentError("too many arguments: IMAGE [PATH] expected", hint="name one path at a time")

        from puzzlefs.usage import disk_usage  # noqa: PLC0415  imported when it is needed: starting must be quick

        depth = 0 if args.summarize else args.max_depth
        report = disk_usage(look.image, look.paths[0], max_depth=depth, files=args.all)
    rows = sorted(report.rows, key=lambda row: -row.stored_bytes) if args.sort else list(report.rows)
    if args.json:
        print(json.dumps(_json(report, rows)))
    elif args.bytes or args.null:
        _print_exact(rows, b"\0" if args.null else b"\n")
    else:
        _print_table(report, rows)
    for problem in report.problems:
        print(f"puzzlefs: {problem}", file=sys.stderr)
    for entry in report.unreadable:
        print(f"puzzlefs: what only this image uses cannot be told: {entry}", file=sys.stderr)
    return ExitCode.BAD_IMAGE if report.problems else ExitCode.OK


def _json(report: UsageReport, rows: Sequence[Usage]) -> dict[str, object]:
    from puzzlefs.usage import bytes_to_text  # noqa: PLC0415

    return {
        **dataclasses.asdict(report),
        "rows": [{**dataclasses.asdict(row), "path": bytes_to_text(row.path)} for row in rows],
    }


def _print_exact(rows: Sequence[Usage], end: bytes) -> None:
    for row in rows:
        exclusive = UNKNOWN if row.exclusive_bytes is None else row.exclusive_bytes
        write_bytes(f"{row.apparent_bytes}\t{row.stored_bytes}\t{exclusive}\t".encode() + row.path + end)


def _print_table(report: UsageReport, rows: Sequence[Usage]) -> None:
    cells = [_HEADINGS[:3], *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    names = [_HEADINGS[3].encode(), *(name_for_stdout(row.path) for row in rows)]
    for line, name in zip(cells, names, strict=True):
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        write_bytes(numbers.encode() + b"  " + name + b"\n")
    hidden = f", chunks that no visible file uses {readable(report.hidden_bytes)}" if report.hidden_bytes else ""
    are = "is" if report.missing_blobs == 1 else "are"
    missing = f"; {counted(report.missing_blobs, 'blob')} {are} missing" if report.missing_blobs else ""
    print(
        f"\nThe image takes {readable(report.image_bytes)}: metadata {readable(report.metadata_bytes)}"
        f"{hidden}{missing}."
    )
    print(f"Removing its tag would free {bytes_or_unknown(report.freed_bytes)}.")


def _cells(row: Usage) -> tuple[str, str, str]:
    return readable(row.apparent_bytes), readable(row.stored_bytes), bytes_or_unknown(row.exclusive_bytes)
