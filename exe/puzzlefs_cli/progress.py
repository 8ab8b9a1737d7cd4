"""How far long work is: a bar on stderr, only where that is a terminal; or, for programs, a line of JSON for each step.

Lines of ``--progress=json`` are objects with ``stage`` (``scan``, ``chunks``, ``commit``), ``inodes``, ``bytes_done``,
``bytes_total`` (0 until it is known) and ``seconds`` since the beginning. There are at most ten lines a second, one for
each new stage, and one where all bytes are done.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puzzlefs.builder import Progress

_STAGES = {"scan": "looking around", "chunks": "storing", "commit": "writing to disk"}
_INTERVAL = 0.1
"""Seconds between two pictures."""


def begin_work() -> None:
    """Say that this process is about to do the work of its life: nobody looks for garbage in it, since all objects that
    are made die with it; and told to end, it takes back what it did not finish, as it does on Ctrl-C."""
    gc.disable()
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def add_progress_options(parser: argparse.ArgumentParser, *, remarks: bool) -> None:
    """Add ``-q`` and ``--progress``; ``remarks``: whether the verb says other things, too, that ``-q`` silences."""
    what = "no progress and no remarks, only errors" if remarks else "no progress, only errors"
    parser.add_argument("-q", "--quiet", action="store_true", help=what)
    parser.add_argument(
        "--progress",
        choices=("auto", "json", "none"),
        default="auto",
        help="how far it is, on stderr: auto (a bar on a terminal, the default), json (a line for each step) or none",
    )


@contextlib.contextmanager
def progress_of(args: argparse.Namespace) -> Iterator[Callable[[Progress], None] | None]:
    """As ``progress_bar``, as the options of ``add_progress_options`` say."""
    if args.progress == "json" and not args.quiet:
        yield _lines()
        return
    with progress_bar(args.progress == "auto" and not args.quiet) as progress:
        yield progress


def _lines() -> Callable[[Progress], None]:
    started = time.monotonic()
    last: tuple[str, float] = ("", 0.0)

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if progress.stage == last[0] and now < last[1] + _INTERVAL and progress.bytes_done != progress.bytes_total:
            return
        last = progress.stage, now
        line = {
            "stage": progress.stage,
            "inodes": progress.inodes,
            "bytes_done": progress.bytes_done,
            "bytes_total": progress.bytes_total,
            "seconds": round(now - started, 3),
        }
        print(json.dumps(line), file=sys.stderr, flush=True)

    return show


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
    from rich.console import Console  # noqa: PLC0415

    columns = (
        bars.TextColumn("{task.description:<15}"),
        bars.BarColumn(),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[inodes]} inodes"),
    )
    # Drawn by whoever reports, not by a thread of the bar's own: a program without threads builds with processes.
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(_STAGES["scan"], total=None, inodes=0)
        drawn = 0.0

        def show(progress: Progress) -> None:
            nonlocal drawn
            now = time.monotonic()
            is_due = now >= drawn + _INTERVAL
            drawn = now if is_due else drawn
            bar.update(
                task,
                description=_STAGES[progress.stage],
                completed=progress.bytes_done,
                total=progress.bytes_total or None,
                inodes=progress.inodes,
                refresh=is_due,
            )

        yield show
