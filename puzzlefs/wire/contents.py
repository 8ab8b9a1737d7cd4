"""The parts of an inode, decoded from the words of a message when they are asked for.

Functions here take a position that is known to exist and decode what hangs on it. ``ledger`` pays for what is visited:
where many inodes share one list or one run of bytes, the sum stays bounded by the size of the message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from puzzlefs.digest import SHA256_SIZE, Digest
from puzzlefs.errors import FormatError
from puzzlefs.model import MAX_FILE_SIZE, BlobRef, DirEntry, FileChunk, Xattr
from puzzlefs.wire.message import Ledger, Message, OverdrawnError
from puzzlefs.wire.pointers import BYTES, LIST, OFFSET_MASK, OFFSET_SIGN
from puzzlefs.wire.shapes import BLOB_REF_SHAPE, BLOB_REF_WORDS, DIGEST_SHAPE, DIGEST_WORDS, FORWARD_MASK

_NEAR_BYTES = 7 << 32 | 3
_NEAR_BYTES_SHAPE = BYTES << 32 | LIST


class ChunkList(Sequence[FileChunk]):
    """The chunks of one file, each decoded when it is accessed; equal to any sequence of the same chunks.

    Access raises ``FormatError`` where a chunk is malformed.
    """

    __slots__ = ("_count", "_data_words", "_end", "_first", "_ino", "_message", "_pointer_words", "_segment", "_stride")

    def __init__(self, message: Message, records: tuple[int, int, int, int, int], ino: int) -> None:
        self._message = message
        self._segment, self._first, self._count, self._data_words, self._pointer_words = records
        self._stride = self._data_words + self._pointer_words
        self._end = message.end_of(self._segment)
        self._ino = ino

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of all chunks, without decoding anything else."""
        if not self._data_words:
            return (0,) * self._count
        first = self._first
        return tuple(self._message.words[first : first + self._count * self._stride : self._stride])

    def total_size(self) -> int:
        """The size of the file.

        Raises:
            FormatError: it is more than a file can have.
        """
        if not self._data_words:
            return 0
        first = self._first
        size = sum(self._message.words[first : first + self._count * self._stride : self._stride])
        if size > MAX_FILE_SIZE:
            raise FormatError(f"its chunks add up to {size} bytes, more than a file can have")
        return size

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> FileChunk: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FileChunk, ...]: ...
    def __getitem__(self, index: int | slice) -> FileChunk | tuple[FileChunk, ...]:
        if isinstance(index, slice):
            return tuple(self._chunk(i) for i in range(*index.indices(self._count)))
        position = index + self._count if index < 0 else index
        if not 0 <= position < self._count:
            raise IndexError(f"chunk {index} of {self._count}")
        return self._chunk(position)

    def __iter__(self) -> Iterator[FileChunk]:
        return map(self._chunk, range(self._count))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{self._count} chunks>"

    def _chunk(self, index: int) -> FileChunk:
        at = self._first + index * self._stride
        message = self._message
        data_words = self._data_words
        length = message.words[at] if data_words else 0
        if self._pointer_words and (usual := _usual_blob_ref(message, at + data_words, self._end)) is not None:
            return FileChunk(usual, length)
        try:
            if not self._pointer_words:
                raise FormatError("it refers to no blob")
            return FileChunk(
                blob_ref(message, *message.struct_at(self._segment, at + data_words, "blob reference")), length
            )
        except FormatError as error:
            raise FormatError(f"inode {self._ino}: chunk {index}: {error.message}") from error


def _usual_blob_ref(message: Message, pointer: int, end: int) -> BlobRef | None:
    """The ``BlobRef`` that hangs on a pointer, if it and its digest lie ahead in the same segment.

    Reads of large files ask for many; ``blob_ref`` knows all other ways, and what is wrong.
    """
    words = message.words
    word = words[pointer]
    start = pointer + 1 + (word >> 2 & OFFSET_MASK)
    if word & FORWARD_MASK != BLOB_REF_SHAPE or start + BLOB_REF_WORDS > end:
        return None
    word = words[start + 2]
    digest = start + BLOB_REF_WORDS + (word >> 2 & OFFSET_MASK)
    if word & FORWARD_MASK != DIGEST_SHAPE or digest + DIGEST_WORDS > end:
        return None
    content = bytes(message.data[digest << 3 : digest + DIGEST_WORDS << 3])
    return BlobRef(Digest(content), words[start], bool(words[start + 1] & 1))


def blob_ref(message: Message, segment: int, start: int, data_words: int, pointer_words: int) -> BlobRef:
    """The ``BlobRef`` struct at ``start``.

    Raises:
        FormatError: it has no digest of 32 bytes.
    """
    words = message.words
    if not pointer_words:
        raise FormatError("the digest is missing")
    return BlobRef(
        Digest(sha256_at(message, segment, start + data_words, "digest")),
        words[start] if data_words else 0,
        bool(words[start + 1] & 1) if data_words > 1 else False,
    )


def sha256_at(message: Message, segment: int, at: int, what: str) -> bytes:
    """The 32 bytes that the pointer at ``at`` refers to.

    Raises:
        FormatError: there are more or fewer.
    """
    start, size = message.extent_at(segment, at, what)
    if size != SHA256_SIZE:
        raise FormatError(f"{what}: {size} bytes instead of {SHA256_SIZE}")
    return bytes(message.data[start : start + SHA256_SIZE])


def directory_records(
    message: Message, segment: int, at: int, ledger: Ledger
) -> tuple[tuple[int, int, int, int, int], bool]:
    """The entry list and ``look_below`` of the ``Dir`` struct that the pointer at ``at`` refers to.

    Raises:
        FormatError: it is malformed, or longer than ``ledger`` allows.
    """
    segment, start, data_words, pointer_words = message.struct_at(segment, at, "directory")
    look_below = bool(message.words[start] & 1) if data_words else False
    if not pointer_words:
        return (segment, start, 0, 0, 0), look_below
    records = message.records_at(segment, start + data_words, "directory entries")
    ledger.spend(records[2], "directory entries")
    return records, look_below


def entry_numbers(message: Message, records: tuple[int, int, int, int, int]) -> list[int]:
    """The inode numbers of a list of directory entries."""
    _segment, first, count, data_words, pointer_words = records
    if not data_words:
        return [0] * count
    stride = data_words + pointer_words
    return message.words[first : first + count * stride : stride].tolist()


def directory_entries(
    message: Message, records: tuple[int, int, int, int, int], ledger: Ledger
) -> tuple[DirEntry, ...]:
    """The entries of a list of directory entries.

    Raises:
        FormatError: a name is malformed, or the names are more than ``ledger`` allows.
    """
    segment, first, _count, data_words, pointer_words = records
    numbers = entry_numbers(message, records)
    if not pointer_words:
        return tuple([DirEntry(number, b"") for number in numbers])
    words, data = message.words, message.data
    high = message.end_of(segment)
    stride = data_words + pointer_words
    allowance = ledger.left
    spent = 0
    at = first + data_words
    entries: list[DirEntry] = []
    append = entries.append
    try:
        for number in numbers:
            word = words[at]
            start = at + 1 + (word >> 2 & 0x3FFFFFFF)
            size = word >> 35
            length = size + 7 >> 3
            # The usual case, a near pointer forward to bytes, in place; everything else takes the long way.
            if word & _NEAR_BYTES == _NEAR_BYTES_SHAPE and not word >> 2 & OFFSET_SIGN and start + length <= high:
                start <<= 3
            else:
                start, size = message.extent_at(segment, at, "name of a directory entry")
                length = size + 7 >> 3
            spent += length
            if spent > allowance:
                raise OverdrawnError("names of directory entries overlap")
            append(DirEntry(number, bytes(data[start : start + size])))
            at += stride
    finally:
        ledger.left -= spent
    return tuple(entries)


def xattrs_at(message: Message, segment: int, at: int, ledger: Ledger) -> tuple[Xattr, ...]:
    """The xattrs of the list that the pointer at ``at`` refers to.

    Raises:
        FormatError: one is malformed, or they are more than ``ledger`` allows.
    """
    segment, first, count, data_words, pointer_words = message.records_at(segment, at, "xattrs")
    if not count:
        return ()
    ledger.spend(count, "xattrs")
    found = []
    stride = data_words + pointer_words
    at = first + data_words
    for position in range(at, at + count * stride, stride):
        key = message.data_at(segment, position, "name of an xattr", ledger) if pointer_words else b""
        value = message.data_at(segment, position + 1, "value of an xattr", ledger) if pointer_words > 1 else b""
        found.append(Xattr(key, value))
    return tuple(found)
