"""What one input may cost, and how that is measured.

Time is the processor time of this process (``ITIMER_PROF`` and ``process_time``): other programs do not count. The
timer ends what runs Python; what stays inside of a C library is measured when it comes back.

Memory is address space: before each input the soft limit becomes what the process has now and ``MEMORY``, so whatever
asks for more gets a ``MemoryError``. That counts at least what is used of it. What the process holds and has not in use
does not count, so the C library is told to give memory back at once (it would keep up to 64 MiB).
"""

from __future__ import annotations

import ctypes
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import FrameType
from typing import Final

from puzzlefs.errors import PuzzlefsError

CPU_SECONDS: Final = 1.0
MEMORY: Final = 200 << 20
"""Bytes."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_SMALL: Final = 128 << 10
_HERE: Final = "/tests/fuzz/"


class TooSlowError(BaseException):
    """The time is over. Not an ``Exception``, so that nothing on the way takes it for an error of the image."""


@dataclass(frozen=True)
class Verdict:
    """How a target took an input.

    Attributes:
        seconds: processor time.
        refused: whether it ended with a ``PuzzlefsError``.
        violation: what was wrong with that, or nothing.
        place: where, so that the same thing is told once.
    """

    seconds: float
    refused: bool
    violation: str = ""
    place: str = ""


def judge(run: Callable[[bytes], object], data: bytes, *, cpu_seconds: float = CPU_SECONDS) -> Verdict:
    """Give ``data`` to a target, within the bounds."""
    _give_back_at_once()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, _stop)
    refused = False
    violation = place = ""
    started = time.process_time()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY, hard))
        signal.setitimer(signal.ITIMER_PROF, 2 * cpu_seconds, cpu_seconds)
        run(data)
    except PuzzlefsError:
        refused = True
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        violation = "".join(traceback.format_exception(error))
        place = f"{type(error).__name__} {_place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - started
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)
    if not violation and seconds > cpu_seconds:
        violation, place = f"it took {seconds:.2f} s of processor time", "slow"
    return Verdict(seconds, refused, violation, place)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise TooSlowError


@cache
def _give_back_at_once() -> None:
    """Fix the thresholds that glibc otherwise raises with what is freed (mallopt(3)); other libraries have none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _SMALL)
        mallopt(_M_TRIM_THRESHOLD, _SMALL)


def _address_space() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _place(error: BaseException) -> str:
    """File and line of the innermost frame, and of the innermost one of the program itself."""
    frames = traceback.extract_tb(error.__traceback__)
    named = [frame for frame in frames if "/puzzlefs/" in frame.filename or _HERE in frame.filename][-1:]
    places = [f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno}" for frame in [*named, *frames[-1:]]]
    return " ".join(dict.fromkeys(places))
