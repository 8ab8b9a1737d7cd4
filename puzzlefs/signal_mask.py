"""The signals that end a program, held off for a moment in which an exception would do harm."""

from __future__ import annotations

import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a program, or a mount."""


@contextmanager
def blocked(numbers: Collection[signal.Signals] = ENDING) -> Iterator[None]:
    """Block signals for this thread, and for what is started inside; to this thread they come afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
