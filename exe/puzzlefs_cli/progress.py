"""How far long work is: a bar on stderr, only where that is a terminal; or, for programs, a line of JSON for each step.

Lines of ``--progress=json`` are objects with ``stage``, what is being done, and ``seconds`` since the beginning. Where
images are made (``scan``, ``chunks``, ``commit``) they have ``inodes``, ``bytes_done`` and ``bytes_total`` (0 until it
is known); where blobs are counted, ``done`` and ``total``, in bytes or in blobs. There are at most ten lines a second,
one for each new stage, and one where all is done.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import ProgressColumn

    from puzzlefs.builder import Progress

_STAGES = {"scan": "looking around", "chunks": "storing", "commit": "writing to disk"}
_INTERVAL = 0.1
"""Seconds between two pictures, or two lines."""


def begin_work() -> None:
    """Say that this process is about to do the work of its life: nobody looks for garbage in it, since all objects that
    are made die with it; and told to end, it takes back what it did not finish, as it does on Ctrl-C."""
    gc.disable()
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def add_progress_options(parser: argparse.ArgumentParser, quiet: str = "only errors") -> None:
    """Add ``-q`` and ``--progress``; ``quiet``: what ``-q`` does besides showing no progress, for the help."""
    parser.add_argument("-q", "--quiet", action="store_true", help=f"no progress, {quiet}")
    parser.add_argument(
        "--progress",
        choices=("auto", "json", "none"),
        default="auto",
        help="how far it is, on stderr: auto (a bar on a terminal, the default), json (a line for each step) or none",
    )


# ---- images that are made


@contextlib.contextmanager
def progress_of(args: argparse.Namespace) -> Iterator[Callable[[Progress], None] | None]:
    """Show how far a build is, as the options of ``add_progress_options`` say, with what this yields."""
    if _wants_lines(args):
        write = _lines()
        yield lambda progress: write(
            progress.stage,
            {
                "inodes": progress.inodes,
                "bytes_done": progress.bytes_done,
                "bytes_total": progress.bytes_total,
            },
            progress.bytes_done == progress.bytes_total,
        )
        return
    with progress_bar(_wants_bar(args)) as progress:
        yield progress


@contextlib.contextmanager
def progress_bar(wanted: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show how far a build is, with what this yields as its ``progress``; the bar is gone afterwards.

    Args:
        wanted: whether there is to be a bar; without, or where stderr is no terminal, ``None`` is yielded.
    """
    if not wanted or not sys.stderr.isatty():
        yield None
        return

    from rich import progress as bars  # noqa: PLC0415  only a terminal needs it, and it takes a while to load

    amounts = (bars.DownloadColumn(binary_units=True), bars.TransferSpeedColumn())
    with _bar(*amounts, after=(bars.TextColumn("{task.fields[inodes]} inodes"),)) as bar:
        task = bar.add_task(_STAGES["scan"], total=None, inodes=0)
        is_due = _clock()

        def show(progress: Progress) -> None:
            bar.update(
                task,
                description=_STAGES[progress.stage],
                completed=progress.bytes_done,
                total=progress.bytes_total or None,
                inodes=progress.inodes,
                refresh=is_due(),
            )

        yield show


# ---- what is counted


@contextlib.contextmanager
def count_of(
    args: argparse.Namespace, what: str, *, in_bytes: bool = False
) -> Iterator[Callable[[int, int], None] | None]:
    """Show how far some work is, as the options of ``add_progress_options`` say.

    Args:
        args: the options.
        what: what is being done.
        in_bytes: whether what is counted are bytes.

    Yields:
        What is to be called with how much is done, of how much; ``None`` if nobody wants to know.
    """
    if _wants_lines(args):
        write = _lines()
        yield lambda done, total: write(what, {"done": done, "total": total}, done == total)
        return
    if not _wants_bar(args) or not sys.stderr.isatty():
        yield None
        return

    from rich import progress as bars  # noqa: PLC0415  only a terminal needs it, and it takes a while to load

    amounts: tuple[ProgressColumn, ...] = (bars.MofNCompleteColumn(),)
    if in_bytes:
        amounts = (bars.DownloadColumn(binary_units=True), bars.TransferSpeedColumn())
    with _bar(*amounts) as bar:
        task = bar.add_task(what, total=None)
        is_due = _clock()
        yield lambda done, total: bar.update(task, completed=done, total=total or None, refresh=is_due())


# ---- what both have in common


def _wants_lines(args: argparse.Namespace) -> bool:
    return args.progress == "json" and not args.quiet


def _wants_bar(args: argparse.Namespace) -> bool:
    return args.progress == "auto" and not args.quiet


def _bar(*amounts: ProgressColumn, after: tuple[ProgressColumn, ...] = ()) -> Bar:
    """A bar; drawn by whoever reports, not by a thread of its own: a program without threads builds with processes."""
    from rich import progress as bars  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    columns = (bars.TextColumn("{task.description:<15}"), bars.BarColumn(), *amounts, bars.TimeRemainingColumn())
    return bars.Progress(*columns, *after, console=Console(stderr=True), transient=True, auto_refresh=False)


def _clock() -> Callable[[], bool]:
    """Says whether it is time for the next picture."""
    last = 0.0

    def is_due() -> bool:
        nonlocal last
        now = time.monotonic()
        if now < last + _INTERVAL:
            return False
        last = now
        return True

    return is_due


def _lines() -> Callable[[str, Mapping[str, int], bool], None]:
    """Writes a line if it is time for one, if there is a new stage, or if all is done."""
    started = time.monotonic()
    is_due = _clock()
    last = ""

    def write(stage: str, numbers: Mapping[str, int], is_done: bool) -> None:
        nonlocal last
        if is_due() or stage != last or is_done:
            last = stage
            line = {"stage": stage, **numbers, "seconds": round(time.monotonic() - started, 3)}
            print(json.dumps(line), file=sys.stderr, flush=True)

    return write
