"""The verity digests of an image as a mapping that reads the message when it is asked.

The list is sorted by digest, so a lookup is a bisection; iterating walks the list. Keys and values are decoded one at a
time. That the list is sorted is checked when it matters: before a digest is said to be missing, and before iterating.
Threads may share it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import ItemsView, Iterator, Mapping

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.wire.contents import sha256_at
from puzzlefs.wire.message import Message


class VerityTable(Mapping[Digest, VerityDigest]):
    """sha256 of a stored blob → fs-verity digest of the same bytes.

    Every access raises ``FormatError`` where an entry that it reads is malformed; saying that a digest is missing, and
    iterating, also where the list is not sorted or names a digest twice.
    """

    __slots__ = ("_count", "_first", "_message", "_pointer_words", "_segment", "_sorted", "_stride")

    def __init__(self, message: Message, records: tuple[int, int, int, int, int]) -> None:
        self._message = message
        self._segment, first, self._count, data_words, self._pointer_words = records
        self._first = first + data_words
        self._stride = data_words + self._pointer_words
        self._sorted = False

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Digest]:
        self._check_order()
        return map(self._key, range(self._count))

    def __getitem__(self, digest: Digest) -> VerityDigest:
        index = bisect_left(range(self._count), digest, key=self._key)
        if index == self._count or self._key(index) != digest:
            self._check_order()
            raise KeyError(digest)
        return VerityDigest(self._digest(index, 1, "verity digest"))

    def items(self) -> ItemsView[Digest, VerityDigest]:
        """See ``Mapping``; without looking for each digest."""
        return _Items(self)

    def pair(self, index: int) -> tuple[Digest, VerityDigest]:
        """The entry with this number."""
        return self._key(index), VerityDigest(self._digest(index, 1, "verity digest"))

    def _check_order(self) -> None:
        if self._sorted:
            return
        previous = b""
        for index in range(self._count):
            key = self._key(index)
            if key <= previous:
                raise FormatError(f"verity entry {index}: the entries are not sorted by digest")
            previous = key
        self._sorted = True

    def _key(self, index: int) -> Digest:
        return Digest(self._digest(index, 0, "blob digest"))

    def _digest(self, index: int, pointer: int, what: str) -> bytes:
        if pointer >= self._pointer_words:
            raise FormatError(f"verity entry {index}: the {what} is missing")
        at = self._first + index * self._stride + pointer
        return sha256_at(self._message, self._segment, at, f"verity entry {index}: {what}")


class _Items(ItemsView[Digest, VerityDigest]):
    _mapping: VerityTable

    def __iter__(self) -> Iterator[tuple[Digest, VerityDigest]]:
        table = self._mapping
        iter(table)  # checks the order
        return map(table.pair, range(len(table)))
