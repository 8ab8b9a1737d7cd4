"""How many requests of each kind a mount has answered.

The counts live in anonymous memory that is shared over ``fork``, so a server that takes the place of another one goes
on counting where that one was killed. One server counts at a time; who reads meanwhile sees numbers that may be a
moment old. Counting is ``counters.counts[opcode] += 1``, without a lock and without a call, because it is part of every
request: where several threads of one engine count at once, a number can get lost.
"""

from __future__ import annotations

import mmap
from typing import Final

COUNTERS_SIZE: Final = 4096
"""Bytes of memory."""

_UNKNOWN: Final = "opcode {}"


class RequestCounters:
    """The counts of one mount.

    Attributes:
        counts: how often each opcode came; there is room for every one that a kernel may send.
    """

    __slots__ = ("counts",)

    def __init__(self, fd: int = -1) -> None:
        """The counts in a file of ``COUNTERS_SIZE`` bytes; without one all of them are zero."""
        memory = mmap.mmap(fd, COUNTERS_SIZE, mmap.MAP_SHARED)
        self.counts: memoryview[int] = memoryview(memory).cast("Q")

    def by_kind(self) -> dict[str, int]:
        """How many requests there were of each kind that came at all, by its name in lower case, as ``lookup``."""
        from puzzlefs.mount.kernel_protocol import Opcode  # noqa: PLC0415  pyfuse3 does without it until somebody asks

        names = {int(opcode): opcode.name.lower() for opcode in Opcode}
        return {names.get(opcode, _UNKNOWN.format(opcode)): count for opcode, count in enumerate(self.counts) if count}

    def total(self) -> int:
        """All requests."""
        return sum(self.counts)
