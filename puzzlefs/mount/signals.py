"""Holding signals back where they would leave a mount without its server.

From the moment when something is mounted until it is unmounted again, a signal must find a handler that unmounts; the
default action would kill the process and leave a mount point that answers nobody. Engines therefore hold signals back
around mounting and unmounting and let them through while they serve. What arrives while unmounting asks for what is
happening anyway, and is dropped.

Only the main thread gets signals in Python; in any other thread all of this does nothing.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from puzzlefs.signal_mask import ENDING, blocked

Handler = Callable[[int, FrameType | None], object]

STEP_ASIDE: Final = signal.SIGUSR1
"""Says to a server that has a guardian: answer what you have begun, and leave the rest to somebody else."""


_noted: set[int] = set()
"""What came to other threads while signals were held back in the main one."""


@contextmanager
def held_back(numbers: Collection[signal.Signals] = ENDING) -> Iterator[None]:
    """Hold signals back inside; drop those that are left in the end.

    What is blocked here can still come to another thread of this process, one of a library or of the caller, and what
    it does is what was set for all of them. So until the end it is only noted.
    """
    if not in_main_thread():
        yield
        return
    with blocked(numbers), _handlers(numbers, _note):
        try:
            yield
        finally:
            while signal.sigtimedwait(numbers, 0) is not None:
                pass
            _noted.difference_update(numbers)


@contextmanager
def let_through(numbers: Collection[signal.Signals] = ENDING) -> Iterator[None]:
    """Inside ``held_back``: let the signals through again, those that waited first. The caller has set handlers."""
    if not in_main_thread():
        yield
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        for number in _noted.intersection(numbers):
            _noted.discard(number)
            signal.raise_signal(number)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


@contextmanager
def handled(numbers: Collection[signal.Signals], handle: Handler, wake_fd: int) -> Iterator[None]:
    """Inside ``held_back``: have signals handled, and let them through.

    A handler runs between two steps of Python; a signal that comes after the last of them and before a wait begins
    would be noticed only when the wait ends. So each also writes into ``wake_fd``, which does not block, and which
    whoever waits has to look at.
    """
    if not in_main_thread():
        yield
        return
    with _handlers(numbers, handle):
        fd_before = signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
        try:
            with let_through(numbers):
                yield
        finally:
            signal.set_wakeup_fd(fd_before)


@contextmanager
def _handlers(numbers: Collection[signal.Signals], handle: Handler) -> Iterator[None]:
    before = [(number, signal.signal(number, handle)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.add(number)


def in_main_thread() -> bool:
    """Whether this thread is the one that gets signals."""
    return threading.current_thread() is threading.main_thread()
