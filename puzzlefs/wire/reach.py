"""How many bytes each metadata layer takes of the message that holds all of them (version 3).

An encoder may lay things out as it likes and store once what is equal. So this follows the pointers of every inode and
marks the words that are reached. A word that several layers reach is the lowest one's: what a layer takes is what would
not be there without it.

What hangs on an object is followed when the first of its words is marked, so each is paid for once; a ledger bounds
what objects that overlap can add to that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from puzzlefs.model import InodeTable, Kind
from puzzlefs.wire.message import Ledger, Message
from puzzlefs.wire.pointers import FAR
from puzzlefs.wire.table import WireInodeTable

_OVERLAP: Final = 4
"""How many times its size a message may seem to hold, as in ``Message.ledger``."""

_Records = tuple[int, int, int, int, int]


def embedded_sizes(tables: Sequence[InodeTable]) -> list[int]:
    """The bytes that each of the metadata layers (topmost first) of a version 3 rootfs takes.

    Raises:
        FormatError: a pointer is malformed, or objects overlap absurdly.
    """
    reached: dict[int, _Reach] = {}
    sizes = []
    for table in reversed(tables):
        words = 0
        if isinstance(table, WireInodeTable):
            message, records = table.place()
            if id(message) not in reached:
                reached[id(message)] = _Reach(message)
            words = reached[id(message)].inodes(records)
        sizes.append(words << 3)
    return sizes[::-1]


class _Reach:
    """The words of a message that were reached. Methods mark more, and say how many of those are new."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._seen = bytearray(len(message.words))
        self._ledger = Ledger(_OVERLAP * len(message.words))

    def inodes(self, records: _Records) -> int:
        segment, first, count, data_words, pointer_words = records
        if not count:
            return 0
        stride = data_words + pointer_words
        total = self._mark(first - 1, 1 + count * stride)
        words = self._message.words
        for at in range(first, first + count * stride, stride):
            kind = words[at + 1] & 0xFFFF if data_words > 1 else Kind.UNKNOWN
            pointers = at + data_words
            if pointer_words > 0 and words[pointers]:
                total += self._content(kind, segment, pointers)
            if pointer_words > 1 and words[pointers + 1]:
                total += self._additional(segment, pointers + 1)
        return total

    def _content(self, kind: int, segment: int, at: int) -> int:
        match kind:
            case Kind.REGULAR:
                return self._list(segment, at, "chunks", self._chunk)
            case Kind.DIRECTORY:
                total, segment, pointers = self._struct(segment, at, 1, "directory")
                return total + (self._list(segment, pointers, "directory entries", self._data) if total else 0)
            case Kind.CHAR_DEVICE | Kind.BLOCK_DEVICE:
                return self._struct(segment, at, 0, "device")[0]
            case _:
                return 0

    def _chunk(self, segment: int, at: int) -> int:
        total, segment, pointers = self._struct(segment, at, 1, "blob reference")
        return total + (self._data(segment, pointers) if total else 0)

    def _additional(self, segment: int, at: int) -> int:
        total, segment, pointers = self._struct(segment, at, 2, "additional data")
        if not total:
            return 0
        return total + self._list(segment, pointers, "xattrs", self._xattr, 2) + self._data(segment, pointers + 1)

    def _xattr(self, segment: int, at: int) -> int:
        return self._data(segment, at) + self._data(segment, at + 1)

    def _struct(self, segment: int, at: int, pointers: int, what: str) -> tuple[int, int, int]:
        """A struct: new words, its segment, and where its pointers are; no words are new if there are too few."""
        segment, start, data_words, pointer_words = self._message.struct_at(segment, at, what)
        if pointer_words < pointers:
            return 0, segment, start
        return self._mark(start, data_words + pointer_words) + self._pad(at), segment, start + data_words

    def _list(self, segment: int, at: int, what: str, follow: Callable[[int, int], int], least: int = 1) -> int:
        """A list of structs; ``follow`` gets the segment and the pointers, ``least`` or more, of each."""
        if not self._message.words[at]:
            return 0
        segment, first, count, data_words, pointer_words = self._message.records_at(segment, at, what)
        if first == at:
            return 0  # an empty list of nothing
        stride = data_words + pointer_words
        total = self._mark(first - 1, 1 + count * stride) + self._pad(at)
        if not total or pointer_words < least:
            return total
        return total + sum(
            [follow(segment, slot) for slot in range(first + data_words, first + count * stride, stride)]
        )

    def _data(self, segment: int, at: int) -> int:
        start, size = self._message.extent_at(segment, at, "bytes of the metadata")
        return self._mark(start >> 3, size + 7 >> 3) + self._pad(at)

    def _pad(self, at: int) -> int:
        """The landing pad of a pointer that was followed, if it is a far one."""
        word = self._message.words[at]
        if word & 3 != FAR:
            return 0
        starts, _ = self._message.segments()
        return self._mark(starts[word >> 32] + (word >> 3 & 0x1FFFFFFF), 1 + (word >> 2 & 1))

    def _mark(self, start: int, length: int) -> int:
        self._ledger.spend(length, "metadata layers")
        seen = self._seen
        fresh = seen.count(0, start, start + length)
        if fresh:
            seen[start : start + length] = b"\1" * length
        return fresh
