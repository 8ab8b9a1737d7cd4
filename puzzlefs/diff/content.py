"""Whether two files have the same bytes, reading as few of them as it takes.

Of two images, the lists of parts are gone through together: where both say the same bytes of the same chunk, they are
the same, and only the rest is read. Whatever is read has been verified, as always.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from puzzlefs.diff.side import Read, Side
from puzzlefs.digest import Digest
from puzzlefs.model import FileChunk

_WINDOW: Final = 1 << 20
_HEAD: Final = 4096

A = TypeVar("A")
B = TypeVar("B")

_Span = tuple[int, int, FileChunk]


class ContentReader:
    """Compares files of two trees, and counts what it reads.

    Attributes:
        bytes_read: how many bytes that were.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        """A reader; ``told`` is called when it has read something."""
        self.bytes_read = 0
        self._told = told

    def is_same(self, old: Side[A], a: A, new: Side[B], b: B, size: int) -> bool:
        """Whether two regular files of ``size`` bytes are the same.

        Raises:
            PuzzlefsError: as the trees do.
        """
        parts, other_parts = old.parts(a), new.parts(b)
        ranges: Iterable[tuple[int, int]] = [(0, size)]
        if parts is not None and other_parts is not None:
            ranges = _different_ranges(parts, other_parts, size)
        elif parts is other_parts and old.identity(a) == new.identity(b):
            return True  # one inode of the host
        with old.reading(a) as read_old, new.reading(b) as read_new:
            return all(self._agree(read_old, read_new, start, stop) for start, stop in ranges)

    def head(self, side: Side[A], node: A) -> bytes:
        """A digest of the first bytes of a file."""
        with side.reading(node) as read:
            return hashlib.sha256(self._read(read, 0, _HEAD)).digest()

    def digest(self, side: Side[A], node: A, size: int) -> Digest:
        """The sha256 of a file of ``size`` bytes."""
        hasher = hashlib.sha256()
        with side.reading(node) as read:
            for offset in range(0, size, _WINDOW):
                hasher.update(self._read(read, offset, min(_WINDOW, size - offset)))
        return Digest(hasher.digest())

    def _agree(self, old: Read, new: Read, start: int, stop: int) -> bool:
        for offset in range(start, stop, _WINDOW):
            size = min(_WINDOW, stop - offset)
            if self._read(old, offset, size) != self._read(new, offset, size):
                return False
        return True

    def _read(self, read: Read, offset: int, size: int) -> bytes:
        data = read(offset, size)
        self.bytes_read += len(data)
        self._told()
        return data


def _different_ranges(old: Sequence[FileChunk], new: Sequence[FileChunk], size: int) -> Iterator[tuple[int, int]]:
    """The ranges of two files of ``size`` bytes that are not the same bytes of the same chunks."""
    spans, others = _spans(old), _spans(new)
    at = end = other_end = 0
    start = -1  # of a range that is still growing
    begin = other_begin = 0
    chunk = other = None
    while at < size:
        if at == end:
            begin, end, chunk = next(spans)
        if at == other_end:
            other_begin, other_end, other = next(others)
        if chunk is None or other is None:
            raise AssertionError("both files have a part at every byte")
        is_same = (
            chunk.blob.digest == other.blob.digest
            and chunk.blob.compressed == other.blob.compressed
            and chunk.blob.offset - begin == other.blob.offset - other_begin
        )
        if is_same and start >= 0:
            yield start, at
            start = -1
        elif not is_same and start < 0:
            start = at
        at = min(end, other_end)
    if start >= 0:
        yield start, size


def _spans(parts: Sequence[FileChunk]) -> Iterator[_Span]:
    """Where each part begins and ends in the file; those without a byte are left out."""
    at = 0
    for part in parts:
        if part.length:
            yield at, at + part.length, part
            at += part.length
