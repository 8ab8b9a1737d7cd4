"""The memory that a message is built in: segments, and where in them the next object goes.

An arena lays objects out as the builder of the Rust library ``capnp`` does, because the digest of an image is a digest
of these bytes (FORMAT rules: first segment of 1,024 words; a new one has max(words needed, ``next``), where ``next``
starts at 1,024 and grows by the size of each segment made). An object goes

1. into the segment of the pointer that refers to it, right after what is there, if it fits;
2. else into the first segment, counted from 0, that has room for it and for one landing pad word before it;
3. else into a new segment.

Changing any of this changes the digest of every image that needs more than one segment; golden tests pin it.

Objects are not placed one by one: a *batch* is a run of objects in the order of their allocation, already laid out one
after the other with near pointers between them. Where the first object's segment has room for all of them, rules 1 to 3
would put each object exactly there, so a batch is one copy. Where it has not, ``put`` applies the rules object by
object. One thread builds one arena.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from puzzlefs.errors import FormatError
from puzzlefs.wire.pointers import FAR, SHAPE_MASK

FIRST_SEGMENT_WORDS = 1024
MAX_SEGMENT_WORDS = 1 << 29
"""Segments never grow beyond what a pointer's offset can span."""

_MAPPED_FROM_BYTES = 1 << 20
"""Larger segments are anonymous mappings: their unused end never becomes memory."""

Outline = Iterable[tuple[int, int, int]]
"""The objects of a batch in the order of their allocation: the word of the batch that holds the pointer to the object
(-1 for the first one, whose pointer is outside), the word where it starts, its length in words."""

_word = struct.Struct("<Q")


def framed(segments: Sequence[memoryview]) -> bytes:
    """The message of these segments: stream framing (number of segments, sizes, padding), then the segments."""
    count = len(segments)
    header = struct.pack(f"<{count + 1}I", count - 1, *(len(segment) >> 3 for segment in segments))
    if not count % 2:
        header += bytes(4)
    return b"".join((header, *segments))


class Arena:
    """A message under construction. Word 0 of segment 0, the root pointer, is taken from the start.

    An arena may also make the last segments of a message that begins with others: then word 0 of its first one is free
    for a landing pad, and all numbers of segments that callers see are counted from its first one.
    """

    __slots__ = ("_buffers", "_cursors", "_ends", "_first_number", "_next_words", "_used")

    def __init__(self, *, first_number: int = 0, first_words: int = FIRST_SEGMENT_WORDS) -> None:
        """An arena.

        Args:
            first_number: how many other segments stand before its own in the message.
            first_words: room in its first segment; whatever is not the default gives other bytes than the original's.
        """
        self._first_number = first_number
        self._buffers: list[memoryview] = []
        self._used: list[int] = []
        self._ends: list[int] = []
        self._next_words = FIRST_SEGMENT_WORDS
        # Room in a segment only shrinks, so the first segment with room for n words only moves up: no rescans.
        self._cursors: dict[int, int] = {}
        self._add_segment(first_words)
        self._used[0] = 1

    def put(
        self, segment: int, at: int, shape: int, batch: bytes, first_words: int, *, outline: Callable[[], Outline]
    ) -> int:
        """Store ``batch``, which the pointer at word ``at`` of ``segment`` is to refer to.

        Args:
            shape: kind and size bits of that pointer.
            first_words: words of the first object of the batch.
            outline: called where the batch has to be taken apart.

        Returns:
            The pointer to write at ``at``.
        """
        size = len(batch)
        place = self._place(segment, at, shape, first_words, size >> 3)
        if place is None:
            return self._scatter(segment, at, shape, batch, outline())
        target, start, pointer = place
        self._buffers[target][start << 3 : (start << 3) + size] = batch
        return pointer

    def reserve(self, segment: int, at: int, shape: int, words: int) -> tuple[int, int]:
        """Make room for one object of ``words`` zero words and write the pointer at word ``at`` of ``segment``.

        Returns:
            The segment and the word where the object starts.
        """
        target, start, pointer = self._place_one(segment, at, shape, words)
        _word.pack_into(self._buffers[segment], at << 3, pointer)
        return target, start

    def segment(self, number: int) -> memoryview:
        """The bytes of a segment, to be written to where words have been reserved."""
        return self._buffers[number]

    def take(self, segment: int, words: int) -> int:
        """Take ``words`` zero words at the end of what is used of a segment that has room for them; where they are."""
        start = self._used[segment]
        if words > self._ends[segment] - start:
            raise AssertionError("there is no room for them")
        self._used[segment] = start + words
        return start

    def used(self) -> list[memoryview]:
        """The used words of each segment."""
        return [buffer[: words << 3] for buffer, words in zip(self._buffers, self._used, strict=True)]

    def message(self) -> bytes:
        """The message, if nothing stands before it."""
        return framed(self.used())

    def _place(self, segment: int, at: int, shape: int, words: int, total: int) -> tuple[int, int, int] | None:
        """Room for a batch of ``total`` words whose first object has ``words``: segment, word, pointer.

        ``None`` where the rules put the first object into a segment that has no room for all of the batch.
        """
        start = self._used[segment]
        room = self._ends[segment] - start
        if words <= room:
            if total > room:
                return None
            self._used[segment] = start + total
            return segment, start, shape | (start - at - 1) << 2
        target = self._first_with(words + 1)
        pad = self._used[target]
        if total + 1 > self._ends[target] - pad:
            return None
        self._used[target] = pad + 1 + total
        _word.pack_into(self._buffers[target], pad << 3, shape)
        return target, pad + 1, FAR | pad << 3 | target + self._first_number << 32

    def _place_one(self, segment: int, at: int, shape: int, words: int) -> tuple[int, int, int]:
        place = self._place(segment, at, shape, words, words)
        if place is None:
            raise AssertionError("a single object always has a place")
        return place

    def _scatter(self, segment: int, at: int, shape: int, batch: bytes, outline: Outline) -> int:
        """Place the objects of a batch one by one; the pointer to the first of them."""
        first_pointer = 0
        starts: list[int] = []  # in the batch; ascending
        places: list[tuple[int, int]] = []
        buffers = self._buffers
        for pointer_word, start, words in outline:
            if pointer_word < 0:
                target, place, first_pointer = self._place_one(segment, at, shape, words)
            else:
                owner = bisect_right(starts, pointer_word) - 1
                owner_segment, owner_start = places[owner]
                owner_at = owner_start + pointer_word - starts[owner]
                near = _word.unpack_from(batch, pointer_word << 3)[0]
                target, place, pointer = self._place_one(owner_segment, owner_at, near & SHAPE_MASK, words)
                _word.pack_into(buffers[owner_segment], owner_at << 3, pointer)
            buffers[target][place << 3 : place + words << 3] = batch[start << 3 : start + words << 3]
            starts.append(start)
            places.append((target, place))
        return first_pointer

    def _first_with(self, words: int) -> int:
        """The first segment that has room for ``words``, made if there is none."""
        used, ends = self._used, self._ends
        index = self._cursors.get(words, 0)
        while index < len(used) and ends[index] - used[index] < words:
            index += 1
        self._cursors[words] = index
        if index == len(used):
            self._add_segment(words)
        return index

    def _add_segment(self, words: int) -> None:
        size = max(words, self._next_words)
        if size > MAX_SEGMENT_WORDS:
            raise FormatError(f"an object of {words} words is more than a Cap'n Proto message can hold")
        self._next_words = min(self._next_words + size, MAX_SEGMENT_WORDS)
        length = size << 3
        self._buffers.append(memoryview(mmap.mmap(-1, length) if length >= _MAPPED_FROM_BYTES else bytearray(length)))
        self._used.append(0)
        self._ends.append(size)
