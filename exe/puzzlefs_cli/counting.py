"""A progress bar for work that is counted in things or in bytes, on stderr and only where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

_INTERVAL: Final = 0.1
"""Seconds between two pictures."""


@contextlib.contextmanager
def count_bar(what: str, wanted: bool, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Show how far some work is; the bar is gone afterwards.

    Args:
        what: what is being done.
        wanted: whether there is to be a bar; without, or where stderr is no terminal, ``None`` is yielded.
        in_bytes: whether what is counted are bytes.

    Yields:
        What is to be called with how much is done, of how much.
    """
    if not wanted or not sys.stderr.isatty():
        yield None
        return

    from rich import progress as bars  # noqa: PLC0415  only a terminal needs it, and it takes a while to load
    from rich.console import Console  # noqa: PLC0415

    amounts: tuple[bars.ProgressColumn, ...] = (bars.MofNCompleteColumn(),)
    if in_bytes:
        amounts = (bars.DownloadColumn(binary_units=True), bars.TransferSpeedColumn())
    columns = (bars.TextColumn("{task.description:<15}"), bars.BarColumn(), *amounts, bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(what, total=None)
        drawn = 0.0

        def show(done: int, total: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            is_due = now >= drawn + _INTERVAL
            drawn = now if is_due else drawn
            bar.update(task, completed=done, total=total or None, refresh=is_due)

        yield show
