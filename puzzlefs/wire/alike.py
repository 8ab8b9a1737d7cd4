"""Which inodes of two tables are provably the same, without decoding either.

Two versions of an image have nearly all inodes in common, so what is asked of each pair is a handful of words. Numbers
may differ, and where things lie: two builds agree in neither. A pair that is not ordinary, or for which the words alone
do not tell, is said to be unlike; whoever asks then decodes it and compares. So an answer "alike" is always right.

Alike means: the same kind, permissions, owners and extended attributes; the same time of modification, where both
tables have times; the same target of a symbolic link; the same parts of the same chunks. What is in a directory is not
looked at. What a pair can cost is bounded by itself, as in ``quick``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from puzzlefs.digest import SHA256_SIZE, Digest
from puzzlefs.model import InodeTable, Kind, RegularFile
from puzzlefs.wire.pointers import FAR, OFFSET_MASK
from puzzlefs.wire.quick import DATA, LIST_MASK, RECORDS, STRUCT_MASK, Part, QuickLook, UnusualError
from puzzlefs.wire.shapes import (
    BLOB_REF_SHAPE,
    DIGEST_SHAPE,
    DIGEST_WORDS,
    FORWARD_MASK,
    ONE_CHUNK_SHAPE,
    ONE_CHUNK_TAG,
    ONE_CHUNK_WORDS,
)
from puzzlefs.wire.table import WireInodeTable

_REGULAR: Final = int(Kind.REGULAR)
_SYMLINK: Final = int(Kind.SYMLINK)
_SAID: Final = frozenset({_SYMLINK, int(Kind.FIFO), int(Kind.SOCKET), int(Kind.DIRECTORY)})
"""The kinds that have nothing that was not compared when attributes and targets were."""
_MAX_CHUNKS: Final = 16
_MAX_XATTRS: Final = 16
_MAX_EXTRA_SIZE: Final = 4096
"""Bytes of a target, and of a name or a value of an extended attribute."""

_LOW_32: Final = 0xFFFFFFFF
_FILE_WORDS: Final = ONE_CHUNK_WORDS + DIGEST_WORDS


class Likeness:
    """Compares inodes of two tables, which are sorted by number: else a lookup finds one of several. For one thread."""

    def __init__(self, one: InodeTable, other: InodeTable) -> None:
        """For inodes of ``one`` and of ``other``; of tables that are not read from a message, all are unlike."""
        self._readers: tuple[_Reader, _Reader] | None = None
        if isinstance(one, WireInodeTable) and isinstance(other, WireInodeTable):
            self._readers = _Reader(one), _Reader(other)

    def unlike(self, numbers: Sequence[int], other_numbers: Sequence[int]) -> list[int]:
        """The positions of those pairs of inodes, one of each table, that are not provably the same."""
        if self._readers is None or not all(reader.usable for reader in self._readers):
            return list(range(len(numbers)))
        one, other = self._readers
        words, other_words = one.words, other.words
        pointers, other_pointers = one.data_words, other.data_words
        timed = pointers > 3 and other_pointers > 3
        only_chunk, other_only_chunk = one.only_chunk, other.only_chunk
        same_chunk = _same_chunk(one, other)
        found: list[int] = []
        positions = zip(one.positions(numbers), other.positions(other_numbers), strict=True)
        for position, (here, there) in enumerate(positions):
            try:
                head = words[here + 1]
                at, other_at = here + pointers, there + other_pointers
                kind = head & 0xFFFF
                if (
                    here < 0
                    or there < 0
                    or head != other_words[there + 1]
                    or (words[here + 2] ^ other_words[there + 2]) & _LOW_32
                    or (timed and words[here + 3] != other_words[there + 3])
                ) or (
                    (words[at + 1] or other_words[other_at + 1] or kind == _SYMLINK)
                    and (one.extras(at + 1, kind) != other.extras(other_at + 1, kind))
                ):
                    found.append(position)
                elif kind == _REGULAR:
                    if same_chunk(at, other_at):
                        continue
                    chunk = only_chunk(at)
                    if (not chunk or chunk != other_only_chunk(other_at)) and one.parts(at) != other.parts(other_at):
                        found.append(position)
                elif kind not in _SAID:
                    found.append(position)
            except LookupError:
                found.append(position)
        return found


def _same_chunk(one: _Reader, other: _Reader) -> Callable[[int, int], bool]:
    """Whether two files, by their pointers to chunks, have one chunk each, the same, laid out in the simplest way.

    All of that is ten words in a row. "No" says nothing.
    """
    words, data, end = one.words, one.data, one.end
    other_words, other_data, other_end = other.words, other.data, other.end
    (starts, ends), (other_starts, other_ends) = one.segments, other.segments
    size = _FILE_WORDS << 3

    def is_same(at: int, other_at: int) -> bool:
        word, other_word = words[at], other_words[other_at]
        limit, other_limit = end, other_end
        if word & 7 == FAR:
            at = starts[word >> 32] + (word >> 3 & 0x1FFFFFFF)  # an IndexError is a LookupError
            limit = ends[word >> 32]
            word = words[at]
        if other_word & 7 == FAR:
            other_at = other_starts[other_word >> 32] + (other_word >> 3 & 0x1FFFFFFF)
            other_limit = other_ends[other_word >> 32]
            other_word = other_words[other_at]
        start = at + 1 + (word >> 2 & OFFSET_MASK)
        other_start = other_at + 1 + (other_word >> 2 & OFFSET_MASK)
        return (
            word & FORWARD_MASK == ONE_CHUNK_SHAPE == other_word & FORWARD_MASK
            and start + _FILE_WORDS <= limit
            and other_start + _FILE_WORDS <= other_limit
            and data[start << 3 : (start << 3) + size] == other_data[other_start << 3 : (other_start << 3) + size]
            and words[start] == ONE_CHUNK_TAG
            and words[start + 2] == BLOB_REF_SHAPE
            and words[start + 5] == DIGEST_SHAPE
        )

    return is_same if not one.has_file_struct and not other.has_file_struct else lambda _at, _other_at: False


def same_records(one: InodeTable, other: InodeTable) -> bool:
    """Whether two tables have the same bytes, without what hangs on the inodes: one may be a copy of the other."""
    if not (isinstance(one, WireInodeTable) and isinstance(other, WireInodeTable)):
        return False
    parts: list[memoryview] = []
    for table in (one, other):
        message, (_, first, count, data_words, pointer_words) = table.place()
        parts.append(message.words[first : first + count * (data_words + pointer_words)])
    return len(one) == len(other) and one.place()[1][3:] == other.place()[1][3:] and parts[0] == parts[1]


def chunk_digests(table: InodeTable) -> set[Digest]:
    """The blobs that the regular files of a table refer to, whether they can be seen or not.

    Raises:
        FormatError: if a file is malformed.
    """
    found: set[bytes] = set()
    reader = _Reader(table) if isinstance(table, WireInodeTable) else None
    for ino, kind in table.kinds():
        if kind != _REGULAR:
            continue
        if reader is not None and reader.usable:
            try:
                at = reader.locate(ino) + reader.data_words
                if only := reader.only_chunk(at):
                    found.add(only[-SHA256_SIZE:])
                else:
                    found.update([digest for digest, *_ in reader.parts(at)])
            except LookupError:
                pass
            else:
                continue
        inode = table.find(ino)
        if inode is not None and isinstance(inode.content, RegularFile):
            found.update([chunk.blob.digest for chunk in inode.content.chunks])
    return {Digest(digest) for digest in found}


class _Reader(QuickLook):
    """The parts of ordinary inodes as values that can be compared. All but ``positions`` raise ``LookupError`` for what
    is not ordinary."""

    __slots__ = ("data", "data_words", "end", "has_file_struct", "segments", "usable", "words")

    def __init__(self, table: WireInodeTable) -> None:
        super().__init__(*table.place(), file_struct=False)
        self.has_file_struct = table.has_file_struct
        self.words = self._words
        self.data = self._data
        self.end = self._end
        self.segments = self._starts, self._ends
        self.data_words = self._data_words
        self.usable = self._usable

    def positions(self, numbers: Sequence[int]) -> Iterator[int]:
        """Where the inodes with these numbers begin; negative for one that is not ordinary."""
        try:
            run = self._run(list(numbers))
        except LookupError:
            run = None
        return iter(run) if run else map(self._located, numbers)

    def locate(self, ino: int) -> int:
        """Where the inode with this number begins."""
        return self._locate(ino)

    def _located(self, ino: int) -> int:
        try:
            return self._locate(ino)
        except LookupError:
            return -1

    def only_chunk(self, at: int) -> bytes:
        """Of a file with one chunk that is laid out as encoders do, the bytes that say which; else nothing.

        They are the words of length, offset and compression, and, at the end, the digest. Encoders of two kinds give
        different bytes for one chunk.
        """
        words = self.words
        end = self._end
        if self.has_file_struct:
            at, end = self._in_struct(at)
        word = words[at]
        if word & 7 == FAR:
            segment = word >> 32
            at = self._starts[segment] + (word >> 3 & 0x1FFFFFFF)  # an IndexError is a LookupError
            end = self._ends[segment]
            word = words[at]
        start = at + 1 + (word >> 2 & OFFSET_MASK)
        if word & FORWARD_MASK != ONE_CHUNK_SHAPE or start + ONE_CHUNK_WORDS + DIGEST_WORDS > end:
            return b""
        place = words[start + 5]
        if words[start] != ONE_CHUNK_TAG or words[start + 2] != BLOB_REF_SHAPE or place & FORWARD_MASK != DIGEST_SHAPE:
            return b""
        data = self._data
        if place == DIGEST_SHAPE:  # it comes next
            return bytes(data[start + 1 << 3 : start + ONE_CHUNK_WORDS + DIGEST_WORDS << 3])
        digest = start + ONE_CHUNK_WORDS + (place >> 2 & OFFSET_MASK)
        if digest + DIGEST_WORDS > end:
            return b""
        return b"".join((data[start + 1 << 3 : start + 5 << 3], data[digest << 3 : digest + DIGEST_WORDS << 3]))

    def extras(self, at: int, kind: int) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """The target and the extended attributes in the struct that the pointer at ``at`` leads to."""
        words = self._words
        has_target = kind == _SYMLINK
        if not words[at] and not has_target:
            return b"", []
        start, word, end = self._follow(at, self._end)
        pointers = word >> 48
        start += word >> 32 & 0xFFFF
        if word & STRUCT_MASK or start + pointers > end or not pointers:
            raise UnusualError
        xattrs: list[tuple[bytes, bytes]] = []
        if words[start]:
            first, word, list_end = self._follow(start, end)
            if word & LIST_MASK != RECORDS or first + (word >> 35) >= list_end:
                raise UnusualError
            tag = words[first]
            count, stride = tag >> 2 & OFFSET_MASK, (tag >> 32 & 0xFFFF) + (tag >> 48)
            skip = 1 + (tag >> 32 & 0xFFFF)
            if tag & 3 or count > _MAX_XATTRS or (count and tag >> 48 < 2) or count * stride > word >> 35:
                raise UnusualError
            for pair in range(first + skip, first + skip + count * stride, stride or 1):
                xattrs.append((self._bytes(pair, list_end), self._bytes(pair + 1, list_end)))
            xattrs.sort()
        if not has_target:
            return b"", xattrs
        if pointers < 2:
            raise UnusualError
        return self._bytes(start + 1, end), xattrs

    def _bytes(self, at: int, end: int) -> bytes:
        if not self._words[at]:
            return b""
        start, word, end = self._follow(at, end)
        size = word >> 35
        if word & LIST_MASK != DATA or size > _MAX_EXTRA_SIZE or start + (size + 7 >> 3) > end:
            raise UnusualError
        return bytes(self._data[start << 3 : (start << 3) + size])

    def _in_struct(self, at: int) -> tuple[int, int]:
        """Where the pointer to the chunks is in the struct ``File`` of version 1, and the end of that segment."""
        start, word, end = self._follow(at, self._end)
        data_words = word >> 32 & 0xFFFF
        if word & STRUCT_MASK or not word >> 48 or start + data_words + (word >> 48) > end:
            raise UnusualError
        return start + data_words, end

    def parts(self, at: int) -> list[Part]:
        """The parts of a file whose content hangs on the pointer at ``at``."""
        end = self._end
        if self.has_file_struct:
            at, end = self._in_struct(at)
        return self._parts(at, end, _MAX_CHUNKS)
