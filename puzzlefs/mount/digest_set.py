"""A set of digests that takes little memory, and that a process shares with those that it forks.

Which blobs a mount has verified is asked of images with hundreds of thousands of chunks, and a Python set of digests
takes a hundred bytes for each. Here it is a table of 64-bit numbers, made of digests by the interpreter's keyed hash,
so nobody can prepare an image whose digests collide; by chance two of a million do once in thirty million images, and
are counted as one. Thread safe, unless it is forked while another thread is inside.
"""

from __future__ import annotations

import mmap
import threading
from typing import Final

from puzzlefs.digest import Digest

_WORD: Final = 8
_HEADER: Final = 1
"""Slots before the table: the number of digests."""
_LEAST: Final = 512
_MOST_ROOM: Final = 1 << 20
"""Digests for which room is made before they are there: what an image says of itself may be wrong."""
_MASK_64: Final = (1 << 64) - 1


class DigestSet:
    """Digests that were put in. It can only grow."""

    __slots__ = ("_lock", "_mask", "_words")

    def __init__(self, room: int = 0) -> None:
        """An empty set. Forked processes share it as long as it has no more than ``room`` digests (or a million)."""
        size = _LEAST
        while size < 2 * min(room, _MOST_ROOM):
            size *= 2
        self._lock = threading.Lock()
        self._mask = size - 1
        self._words = _table(size)

    def __len__(self) -> int:
        return self._words[0]

    def add(self, digest: Digest) -> bool:
        """Put a digest in; whether it was not there yet."""
        with self._lock:
            is_new = self._put(hash(digest) & _MASK_64 or 1)
            if is_new:
                self._words[0] += 1
                if self._words[0] * 4 > self._mask * 3:
                    self._grow()
            return is_new

    def __contains__(self, digest: Digest) -> bool:
        with self._lock:
            number = hash(digest) & _MASK_64 or 1
            return self._words[self._slot(number)] == number

    def _put(self, number: int) -> bool:
        at = self._slot(number)
        if self._words[at] == number:
            return False
        self._words[at] = number
        return True

    def _slot(self, number: int) -> int:
        """Where a number is, or would go."""
        words, mask = self._words, self._mask
        at = number & mask
        while (found := words[at + _HEADER]) and found != number:
            at = at + 1 & mask
        return at + _HEADER

    def _grow(self) -> None:
        old, count = self._words, self._words[0]
        size = 2 * (self._mask + 1)
        self._words, self._mask = _table(size), size - 1
        for number in old[_HEADER:]:
            if number:
                self._put(number)
        self._words[0] = count


def _table(size: int) -> memoryview[int]:
    memory = mmap.mmap(-1, (size + _HEADER) * _WORD, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    return memoryview(memory).cast("Q")
