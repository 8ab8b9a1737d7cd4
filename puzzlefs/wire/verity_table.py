"""The verity digests of an image as a mapping that reads the message when it is asked.

The list is sorted by digest, so a lookup is a bisection; iterating walks the list. Keys and values are decoded one at a
time, but by ``items``, which reads a list that is laid out as encoders do in one pass. That the list is sorted is
checked when it matters: before a digest is said to be missing, and before iterating. Threads may share it.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping

from puzzlefs.digest import Digest, VerityDigest, as_digest, as_verity_digest
from puzzlefs.errors import FormatError
from puzzlefs.wire.contents import sha256_at
from puzzlefs.wire.message import Message
from puzzlefs.wire.pointers import OFFSET_MASK, OFFSET_SIGN, SHAPE_MASK
from puzzlefs.wire.shapes import DIGEST_SHAPE, DIGEST_WORDS


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
        index = self._place(digest)
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

    def ordinary_pairs(self) -> list[tuple[Digest, VerityDigest]] | None:
        """All entries, if they are sorted and laid out as encoders do."""
        message, first, stride = self._message, self._first, self._stride
        words, data = message.words, message.data
        begin, end = (places[self._segment] for places in message.segments())
        if self._pointer_words < 2:
            return None
        stop = first + self._count * stride
        found: list[tuple[Digest, VerityDigest]] = []
        previous = b""
        for at, key, value in zip(
            range(first, stop, stride), words[first:stop:stride], words[first + 1 : stop : stride], strict=False
        ):
            if key & SHAPE_MASK != DIGEST_SHAPE or value & SHAPE_MASK != DIGEST_SHAPE:
                return None
            # as a signed number: what an encoder shares may lie in front
            start = at + 1 + ((key >> 2 & OFFSET_MASK) ^ OFFSET_SIGN) - OFFSET_SIGN
            verity_start = at + 2 + ((value >> 2 & OFFSET_MASK) ^ OFFSET_SIGN) - OFFSET_SIGN
            if not (begin <= start <= end - DIGEST_WORDS and begin <= verity_start <= end - DIGEST_WORDS):
                return None
            digest = as_digest(data[start << 3 : start + DIGEST_WORDS << 3])
            if digest <= previous:
                return None
            previous = digest
            found.append((digest, as_verity_digest(data[verity_start << 3 : verity_start + DIGEST_WORDS << 3])))
        self._sorted = True
        return found

    def _place(self, digest: Digest) -> int:
        """Where the digest is or belongs: a bisection that reads keys on the spot where encoders put them."""
        words, data, first, stride = self._message.words, self._message.data, self._first, self._stride
        begin, end = (places[self._segment] for places in self._message.segments())
        low, high = 0, self._count
        while low < high:
            middle = (low + high) >> 1
            at = first + middle * stride
            word = words[at] if self._pointer_words else 0
            start = at + 1 + ((word >> 2 & OFFSET_MASK) ^ OFFSET_SIGN) - OFFSET_SIGN
            if word & SHAPE_MASK == DIGEST_SHAPE and begin <= start <= end - DIGEST_WORDS:
                key = bytes(data[start << 3 : start + DIGEST_WORDS << 3])
            else:
                key = self._key(middle)
            if key < digest:
                low = middle + 1
            else:
                high = middle
        return low

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
        if (pairs := table.ordinary_pairs()) is not None:
            return iter(pairs)
        iter(table)  # checks the order
        return map(table.pair, range(len(table)))
