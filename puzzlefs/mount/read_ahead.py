"""A thread that has the host read what will be needed.

Opening a chunk that the host has to find on its disk first takes several times as long as opening one that it has in
memory, and reading it again as long. So the thread that serves names the chunks that are likely to be needed, and this
one opens them and asks the host to read them into its page cache, which needs the interpreter for moments only.

It does not read or hash them itself, and there is only one such thread: each step that lets go of the interpreter and
wants it back makes the thread that serves wait, and that costs more than hashing on the other processor gains
(docs/performance.md).

Everything is a guess. There is room for ``_MAX_WAITING`` of them; what comes when there is no room is dropped, and so
is, silently, whatever goes wrong: who really asks for a chunk is told. Any thread may name chunks.
"""

from __future__ import annotations

import contextlib
import time
from queue import SimpleQueue
from typing import Final

from puzzlefs.blobs import VerifiedBlobs
from puzzlefs.digest import Digest
from puzzlefs.lru import WeightedLru

_MAX_WAITING: Final = 256
_MAX_REMEMBERED: Final = 4096
SHORT_WHILE: Final = 0.2
"""Seconds for which the host is trusted to keep what it was told to read."""


class ReadAhead:
    """Names chunks of one image to the host."""

    def __init__(self, blobs: VerifiedBlobs) -> None:
        self._blobs = blobs
        self._waiting: SimpleQueue[Digest | None] = SimpleQueue()
        self._named: WeightedLru[Digest, float] = WeightedLru(_MAX_REMEMBERED)

    def touch(self, blob: Digest) -> bool:
        """Have the host read a chunk, unless it is in memory or was named a short while ago; whether there was room."""
        now = time.monotonic()
        named = self._named.get(blob)
        if (named is not None and now < named + SHORT_WHILE) or self._blobs.is_cached(blob):
            return True
        if self._waiting.qsize() >= _MAX_WAITING:
            return False
        self._named.put(blob, now, 1)
        self._waiting.put(blob)
        return True

    def end(self) -> None:
        """Make ``work`` return."""
        self._waiting.put(None)

    def work(self) -> None:
        """Do what is asked for, until the end."""
        while (blob := self._waiting.get()) is not None:
            with contextlib.suppress(MemoryError):
                self._blobs.will_need(blob)
