"""The requests that a server has taken from the kernel's queue and has not answered yet, in memory that outlives it.

A request that was taken is the server's alone: when the server is killed, the kernel goes on waiting for the answer.
So requests are read into memory that is shared with whoever starts the next server. A slot holds a request from the
moment when the kernel has copied it there until its answer was sent: there is no step between in which it could be
lost. Kernels since 6.9 can be asked to put such requests into the queue again (``RESEND``); for older ones they are
handed over in the slots of the next server.

The first slots belong to one serving thread each, the others hold what was taken ahead of its turn.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Final

from puzzlefs.mount.kernel_protocol import IN_HEADER

SLOT_SIZE: Final = 1 << 16
"""Bytes of the longest request that is understood whole."""

MAX_WORKERS: Final = 8
"""Threads that may serve one queue."""

MAX_AHEAD: Final = 128
"""Requests that may be taken ahead of their turn."""

FLIGHT_SIZE: Final = (MAX_WORKERS + MAX_AHEAD) * SLOT_SIZE
"""Bytes of memory; what no request was ever in takes no room."""

_DONE: Final = bytes(4)
_OPCODE: Final = slice(4, 8)


class Flight:
    """The slots of one server.

    Attributes:
        workers: the slots of serving threads.
        ahead: the slots for requests that were taken ahead.
    """

    __slots__ = ("ahead", "workers")

    def __init__(self, fd: int = -1) -> None:
        """Slots in a file of ``FLIGHT_SIZE`` bytes, which stay what they were; without one, in new memory.

        Raises:
            OSError: if there is no memory.
        """
        memory = memoryview(mmap.mmap(fd, FLIGHT_SIZE, mmap.MAP_SHARED))
        slots = [memory[start : start + SLOT_SIZE] for start in range(0, FLIGHT_SIZE, SLOT_SIZE)]
        self.workers: Final = tuple(slots[:MAX_WORKERS])
        self.ahead: Final = tuple(slots[MAX_WORKERS:])

    def unanswered(self) -> list[bytes]:
        """The requests that have no answer, those that were taken ahead first."""
        return [_content(slot) for slot in (*self.ahead, *self.workers) if slot[_OPCODE] != _DONE]

    def begun(self) -> list[memoryview]:
        """The slots with requests that a thread was at."""
        return [slot for slot in self.workers if slot[_OPCODE] != _DONE]

    def hand_over(self, requests: Sequence[bytes]) -> None:
        """Put requests into the slots for those that were taken ahead, which are empty.

        Raises:
            ValueError: if there are more than ``MAX_AHEAD``.
        """
        if len(requests) > len(self.ahead):
            raise ValueError(f"{len(requests)} requests are too many to hand over")
        for slot, request in zip(self.ahead, requests, strict=False):
            slot[: len(request)] = request

    def taken_over(self) -> list[int]:
        """The numbers of the slots in ``ahead`` that hold something."""
        return [number for number, slot in enumerate(self.ahead) if slot[_OPCODE] != _DONE]


def clear(slot: memoryview) -> None:
    """The request in ``slot`` has its answer."""
    slot[_OPCODE] = _DONE


def _content(slot: memoryview) -> bytes:
    size, *_ = IN_HEADER.unpack_from(slot)
    return bytes(slot[: min(max(size, IN_HEADER.size), SLOT_SIZE)])
