"""Bounds-checked reading of one Cap'n Proto message, for bytes from anywhere.

A ``Message`` is the bytes and a view of them as 64-bit words; positions are words from the start of the message,
framing included. Nothing is decoded ahead: opening costs O(segments). Every pointer that is followed is checked against
the end of the segment it leads into, so all that callers get are positions that exist, and everything that does not fit
is a ``FormatError`` whose text begins with ``what``, the caller's word for the thing.

What a message can cost is bounded by its size: a list is as long as the bytes that hold it (elements of no size are
refused), pointers to pointers do not exist but for far pointers, which are one step (two when double-far), and a
``Ledger`` bounds what lists and bytes reached from many places can add up to.

Missing words read as zero and unknown further ones are ignored, as Cap'n Proto says: structs grow at their end.
Threads may share a message; it never changes.
"""

from __future__ import annotations

import mmap
import struct
import sys
from array import array
from collections.abc import Sequence

from puzzlefs.errors import FormatError
from puzzlefs.wire.pointers import BYTES, COMPOSITE, FAR, LIST, OFFSET_MASK, OFFSET_SIGN, STRUCT

MAX_SEGMENTS = 512
"""What the Cap'n Proto libraries of C++ and Rust accept; ours and theirs write some 20 for the largest image."""

LOW_HALF = 0 if sys.byteorder == "little" else 3
"""Index of the lowest 16 bits of a word in ``Message.quarters``, modulo 4."""

# A message's objects, counted once each, are fewer words than it has. Two decodings of an inode (all of it; its numbers
# only) and threads that decode the same inode at the same time need some more.
_LEDGER_FACTOR = 4

Buffer = bytes | bytearray | memoryview | mmap.mmap


class OverdrawnError(FormatError):
    """More was reached through pointers than the message has words: the same bytes count many times."""


class Ledger:
    """How many more words may be visited. Races between threads only ever make it more generous."""

    __slots__ = ("left",)

    def __init__(self, words: int) -> None:
        self.left = words

    def spend(self, words: int, what: str) -> None:
        """Take note that ``words`` are going to be visited.

        Raises:
            OverdrawnError: that is more than there can be without counting something many times.
        """
        self.left -= words
        if self.left < 0:
            raise OverdrawnError(f"{what} overlap with other parts of the message")


class Message:
    """One message in stream framing.

    Attributes:
        data: the bytes; a slice of them gives bytes (or a view, which ``bytes`` copies).
        words: the same as native unsigned 64-bit numbers.
        quarters: the same as native unsigned 16-bit numbers.
        ledger: what may still be visited of this message in passes over many inodes.
    """

    __slots__ = ("_ends", "_starts", "data", "ledger", "quarters", "words")

    def __init__(self, data: Buffer) -> None:
        """Read the framing.

        Args:
            data: the message; kept as it is, not copied. Bytes behind the message are ignored.

        Raises:
            FormatError: the framing is malformed or the message is truncated.
        """
        raw = memoryview(data).cast("B")
        self.data = data if isinstance(data, bytes | mmap.mmap) else raw
        size = len(raw)
        if size < 8:
            raise FormatError(f"the message is truncated: {size} bytes")
        count = int.from_bytes(raw[:4], "little") + 1
        if count > MAX_SEGMENTS:
            raise FormatError(f"the message says that it has {count} segments; at most {MAX_SEGMENTS} are possible")
        header = count // 2 + 1
        if size < header << 3:
            raise FormatError(f"the message is truncated: {size} bytes are less than its list of segments")
        starts: list[int] = []
        ends: list[int] = []
        position = header
        for words in struct.unpack_from(f"<{count}I", raw, 4):
            starts.append(position)
            position += words
            ends.append(position)
        if position << 3 > size:
            raise FormatError(f"the message is truncated: {size} bytes of {position << 3}")
        self._starts = starts
        self._ends = ends
        self.words = native_words(raw[: position << 3])
        self.quarters = self.words.cast("B").cast("H")
        self.ledger = Ledger(_LEDGER_FACTOR * position)

    def root(self) -> tuple[int, int]:
        """Segment and position of the root pointer.

        Raises:
            FormatError: there is none.
        """
        if self._starts[0] == self._ends[0]:
            raise FormatError("the message is empty")
        return 0, self._starts[0]

    def struct_at(self, segment: int, at: int, what: str) -> tuple[int, int, int, int]:
        """The struct that the pointer at word ``at`` refers to.

        Returns:
            Segment, position, data words, pointer words; a null pointer is a struct of no words.

        Raises:
            FormatError: the pointer is malformed, leads out of the message or to something else.
        """
        word = self.words[at]
        if not word:
            return segment, at, 0, 0
        segment, start, word = self._follow(segment, at, word, what)
        if word & 3 != STRUCT:
            raise FormatError(f"{what}: a list where a struct belongs")
        data_words = word >> 32 & 0xFFFF
        pointer_words = word >> 48
        if start < self._starts[segment] or start + data_words + pointer_words > self._ends[segment]:
            raise FormatError(f"{what}: points outside of the message")
        return segment, start, data_words, pointer_words

    def records_at(self, segment: int, at: int, what: str) -> tuple[int, int, int, int, int]:
        """The list of structs that the pointer at word ``at`` refers to.

        Returns:
            Segment, position of the first element, count, data words and pointer words of an element. A null pointer is
            an empty list; where the count is not 0, elements have at least one word and all of them exist.

        Raises:
            FormatError: the pointer is malformed, leads out of the message or to something else.
        """
        word = self.words[at]
        if not word:
            return segment, at, 0, 0, 0
        segment, start, word = self._follow(segment, at, word, what)
        if word & 3 != LIST:
            raise FormatError(f"{what}: a struct where a list belongs")
        length = word >> 35
        if word >> 32 & 7 != COMPOSITE:
            if length:
                raise FormatError(f"{what}: a list of numbers where a list of structs belongs")
            return segment, at, 0, 0, 0
        end = start + 1 + length
        if start < self._starts[segment] or end > self._ends[segment]:
            raise FormatError(f"{what}: points outside of the message")
        tag = self.words[start]
        if tag & 3 != STRUCT:
            raise FormatError(f"{what}: the list has no valid tag")
        count = tag >> 2 & OFFSET_MASK
        data_words = tag >> 32 & 0xFFFF
        pointer_words = tag >> 48
        stride = data_words + pointer_words
        if count and not stride:
            raise FormatError(f"{what}: a list of {count} elements of no size")
        if count * stride > length:
            raise FormatError(f"{what}: {count} elements are more than the list has room for")
        return segment, start + 1, count, data_words, pointer_words

    def extent_at(self, segment: int, at: int, what: str) -> tuple[int, int]:
        """The ``Data`` that the pointer at word ``at`` refers to: position in *bytes*, and length.

        Raises:
            FormatError: the pointer is malformed, leads out of the message or to something else.
        """
        word = self.words[at]
        if not word:
            return 0, 0
        segment, start, word = self._follow(segment, at, word, what)
        if word & 3 != LIST or (word >> 32 & 7 != BYTES and word >> 35):
            raise FormatError(f"{what}: something else where bytes belong")
        size = word >> 35
        if start < self._starts[segment] or start + (size + 7 >> 3) > self._ends[segment]:
            raise FormatError(f"{what}: points outside of the message")
        return start << 3, size

    def data_at(self, segment: int, at: int, what: str, ledger: Ledger) -> bytes:
        """The bytes that the pointer at word ``at`` refers to, paid from ``ledger``.

        Raises:
            FormatError: the pointer is malformed, leads out of the message or to something else.
        """
        start, size = self.extent_at(segment, at, what)
        ledger.spend(size + 7 >> 3, what)
        return bytes(self.data[start : start + size])

    def segments(self) -> tuple[Sequence[int], Sequence[int]]:
        """The first word of each segment, and the word behind its last one."""
        return self._starts, self._ends

    def end_of(self, segment: int) -> int:
        """The word behind the last one of a segment."""
        return self._ends[segment]

    def _follow(self, segment: int, at: int, word: int, what: str) -> tuple[int, int, int]:
        """Where a pointer leads: segment, position (unchecked), and the pointer that says what is there."""
        kind = word & 3
        if kind < FAR:
            return segment, at + 1 + _offset(word), word
        if kind > FAR:
            raise FormatError(f"{what}: a capability, which no image has")
        segment, pad = self._landing_pad(word, 1 + (word >> 2 & 1), what)
        landed = self.words[pad]
        if not word & 4:
            if landed & 3 >= FAR:
                raise FormatError(f"{what}: a far pointer leads to a far pointer")
            return segment, pad + 1 + _offset(landed), landed
        if landed & 7 != FAR:
            raise FormatError(f"{what}: a double-far pointer leads to something else than a far pointer")
        tag = self.words[pad + 1]
        if tag & 3 >= FAR:
            raise FormatError(f"{what}: a double-far pointer has a malformed tag")
        return *self._landing_pad(landed, 0, what), tag

    def _landing_pad(self, far: int, words: int, what: str) -> tuple[int, int]:
        segment = far >> 32
        if segment >= len(self._starts):
            raise FormatError(f"{what}: points into segment {segment}, which does not exist")
        pad = self._starts[segment] + (far >> 3 & 0x1FFFFFFF)
        if pad + words > self._ends[segment]:
            raise FormatError(f"{what}: points outside of the message")
        return segment, pad


def native_words(data: memoryview, byteorder: str = sys.byteorder) -> memoryview:
    """Little-endian 64-bit words as numbers: a view where the host is little-endian too, else a swapped copy."""
    if byteorder == "little":
        return data.cast("Q")
    swapped = array("Q", data.tobytes())
    swapped.byteswap()
    return memoryview(swapped)


def _offset(word: int) -> int:
    offset = word >> 2 & OFFSET_MASK
    return offset - (OFFSET_MASK + 1) if offset & OFFSET_SIGN else offset
