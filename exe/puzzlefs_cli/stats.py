"""``puzzlefs stats``: what the images of an OCI directory take, share, and have for themselves.

``--json`` prints one object with the keys of ``puzzlefs.usage.LayoutStatistics``: ``layout``, ``entries`` (``tag``,
``manifest``, ``format_version``, ``inodes``, ``apparent_bytes``, ``unique_bytes``, ``chunk_bytes``, ``metadata_bytes``,
``stored_bytes``, ``added_bytes``, ``exclusive_bytes``, ``exclusive_linked_bytes``, ``missing_blobs``, ``problem``),
``shared_bytes`` (a row of numbers for each entry), ``images``, ``apparent_bytes``, ``unique_bytes``, ``chunk_bytes``,
``metadata_bytes``, ``blobs``, ``blob_bytes``, ``unreachable_blobs``, ``unreachable_bytes``, ``shares_blobs``,
``deduplication``, ``compression``. What cannot be told is ``null``.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.exit_codes import ExitCode
from puzzlefs_cli.progress import add_progress_options, count_of
from puzzlefs_cli.text import aligned, bytes_or_unknown, counted, readable, times

if TYPE_CHECKING:
    from puzzlefs.usage import EntryStatistics, LayoutStatistics

_EPILOG = """\
"apparent" are the bytes of all files of an image, "unique" those of the distinct chunks that they are made of, "stored"
those of all blobs, metadata too. "added" is what of that no earlier entry has, "exclusive" what no other entry has:
removing the tag would free it. The second table says what each pair has in common. No content is read.

examples:
  puzzlefs stats images
  puzzlefs stats --plot images.svg images
"""

_HEADINGS: Final = ("", "inodes", "apparent", "unique", "stored", "added", "exclusive")
_MAX_COLUMNS: Final = 12
"""So many entries are compared on the screen; more are told by --json and --plot."""
_MAX_NAME: Final = 24


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "stats",
        help="show what the images of an OCI directory take and share",
        description="Show for each tag of an OCI directory how large its files are, what it takes, what it shares with "
        "each other tag, and what removing it would free.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs stats [--json] [--plot FILE] [OPTION...] OCI_DIR",
    )
    parser.add_argument("layout", metavar="OCI_DIR", help="the OCI directory")
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object, with exact numbers")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw what tags share, and how the directory grew (.svg or .png; needs matplotlib)",
    )
    add_progress_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from puzzlefs.usage import layout_statistics  # noqa: PLC0415  imported when it is needed: starting must be quick

    if args.plot is not None:
        from puzzlefs.plots import check_plot, plot_layout  # noqa: PLC0415

        check_plot(args.plot)
    gc.disable()  # all that is made here dies with the process
    with count_of(args, "looking around") as progress:
        report = layout_statistics(args.layout, progress=progress)
    if args.plot is not None:
        plot_layout(report, args.plot)
    if args.json:
        print(json.dumps(dataclasses.asdict(report)))
    elif args.plot is None:
        print("\n".join(_lines(report)))
    problems = [entry for entry in report.entries if entry.problem is not None]
    for entry in problems:
        print(f"puzzlefs: {_name(entry)}: {entry.problem}", file=sys.stderr)
    return ExitCode.BAD_IMAGE if problems else ExitCode.OK


# ---- for people


def _lines(report: LayoutStatistics) -> Iterator[str]:
    if not report.entries:
        yield f"{report.layout} has no images; {report.blobs} blobs, {readable(report.blob_bytes)}"
        return
    yield from aligned([_HEADINGS, *(_row(entry) for entry in report.entries), _total(report)], left=1)
    if 1 < len(report.entries) <= _MAX_COLUMNS:
        yield from ("", *_matrix(report))
    yield ""
    yield (
        f"{report.images} distinct image{'s' if report.images != 1 else ''}: {times(report.deduplication)} smaller by "
        f"deduplication, {times(report.compression)} by compression; metadata {readable(report.metadata_bytes)}"
    )
    yield from _remarks(report)


def _row(entry: EntryStatistics) -> tuple[str, ...]:
    sizes = (
        entry.apparent_bytes,
        entry.unique_bytes,
        entry.stored_bytes,
        entry.added_bytes,
        entry.exclusive_bytes,
    )
    inodes = "-" if entry.inodes is None else str(entry.inodes)
    return (_name(entry), inodes, *map(_or_dash, sizes[:2]), *map(bytes_or_unknown, sizes[2:]))


def _or_dash(size: int | None) -> str:
    return "-" if size is None else readable(size)


def _total(report: LayoutStatistics) -> tuple[str, ...]:
    reached = sum(entry.added_bytes for entry in report.entries)
    return ("all", "", readable(report.apparent_bytes), readable(report.unique_bytes), readable(reached), "", "")


def _matrix(report: LayoutStatistics) -> list[str]:
    names = [_name(entry) for entry in report.entries]
    rows = [("shared", *names)]
    rows += [(name, *map(readable, row)) for name, row in zip(names, report.shared_bytes, strict=True)]
    return aligned(rows, left=1)


def _remarks(report: LayoutStatistics) -> Iterator[str]:
    if report.unreachable_blobs is None:
        yield "What nothing reaches cannot be told: there are manifests that cannot be read."
    elif report.unreachable_blobs:
        size = readable(report.unreachable_bytes or 0)
        are = "is" if report.unreachable_blobs == 1 else "are"
        yield f"{counted(report.unreachable_blobs, 'blob')} ({size}) {are} reached by nothing here."
    missing = sum(entry.missing_blobs for entry in report.entries)
    if missing:
        yield f"{counted(missing, 'blob')} {'is' if missing == 1 else 'are'} missing."
    linked = sum(entry.exclusive_linked_bytes or 0 for entry in report.entries)
    if linked:
        yield f"Of what is exclusive, {readable(linked)} has hard links elsewhere, and would not leave the disk."
    if report.shares_blobs:
        yield "blobs/sha256 is a symbolic link: other OCI directories may use what is exclusive here."


def _name(entry: EntryStatistics) -> str:
    name = entry.manifest.removeprefix("sha256:")[:12] if entry.tag is None else entry.tag
    text = name if name.isprintable() else ascii(name)
    text = text if len(text) <= _MAX_NAME else text[: _MAX_NAME - 1] + "…"
    return f"({text})" if entry.tag is None else text
