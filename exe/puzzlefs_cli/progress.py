"""A progress bar for builds, on stderr and only where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puzzlefs.builder import Progress

_STAGES = {"scan": "looking around", "chunks": "storing", "commit": "writing to disk"}
_INTERVAL = 0.1
"""Seconds between two pictures."""


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
