"""Signals around mounting, in a process that has more threads than one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from puzzlefs.mount.signals import handled, held_back
from puzzlefs.signal_mask import ENDING

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def other_thread() -> Iterator[None]:
    """A thread that blocks nothing, so that the kernel gives it what the main thread does not take."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
def wake_fd() -> Iterator[int]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    yield write_end
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("number", ENDING)
def test_what_another_thread_got_comes_when_signals_are_let_through(number: signal.Signals, wake_fd: int) -> None:
    got: list[int] = []
    before = signal.getsignal(number)
    with held_back():
        os.kill(os.getpid(), number)
        with handled(ENDING, lambda number, _frame: got.append(number), wake_fd):
            assert got == [number]
            os.kill(os.getpid(), number)
        assert got == [number, number]
    assert got == [number, number]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", ENDING)
def test_what_comes_at_the_end_is_dropped(number: signal.Signals, wake_fd: int) -> None:
    """It would kill this process, or end it with KeyboardInterrupt."""
    got: list[int] = []
    with held_back():
        with handled(ENDING, lambda number, _frame: got.append(number), wake_fd):
            pass
        os.kill(os.getpid(), number)
    with held_back(), handled(ENDING, lambda number, _frame: got.append(number), wake_fd):
        assert got == []
