"""Which blob holds which byte of a file.

A regular file is a sequence of parts of chunks. ``FileMap`` keeps where in the file each part begins, and answers for
any range of the file which pieces of which chunks make it up. It decodes the parts that are asked for, and no others.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, InvalidArgumentError
from puzzlefs.model import MAX_FILE_SIZE, FileChunk, RegularFile


class Piece(NamedTuple):
    """A run of bytes in one chunk.

    Attributes:
        blob: sha256 of the stored blob.
        compressed: whether it is zstd.
        offset: where the run begins in the uncompressed content.
        length: its bytes.
    """

    blob: Digest
    compressed: bool
    offset: int
    length: int


class ReadPlan(NamedTuple):
    """The pieces that make up a range of a file, in order; empty at and beyond its end."""

    pieces: tuple[Piece, ...]


class FileMap:
    """Where the parts of one file begin. Immutable; thread safe."""

    __slots__ = ("_chunks", "_ends", "size")

    def __init__(self, file: RegularFile) -> None:
        """The map of ``file``.

        Raises:
            FormatError: if the file is larger than any file can be.
        """
        self._chunks: Sequence[FileChunk] = file.chunks
        lengths = getattr(file.chunks, "lengths", None)
        if lengths is None:
            lengths = (chunk.length for chunk in file.chunks)
        if file.size > MAX_FILE_SIZE:
            raise FormatError(f"a file of {file.size} bytes cannot be")
        self._ends = array("Q", accumulate(lengths))
        self.size = file.size

    def __len__(self) -> int:
        return len(self._ends)

    def position(self, offset: int) -> int:
        """The number of the part that holds the byte at ``offset``."""
        return bisect_right(self._ends, offset)

    def extent(self, offset: int) -> tuple[int, int, int]:
        """Where the part that holds the byte at ``offset`` begins and ends in the file, and the size of the file."""
        number = bisect_right(self._ends, offset)
        return self._ends[number - 1] if number else 0, self._ends[number], self.size

    def blob(self, number: int) -> Digest:
        """The blob that holds a part.

        Raises:
            FormatError: if the part is malformed.
        """
        return self._chunks[number].blob.digest

    def plan(self, offset: int, size: int) -> ReadPlan:
        """The pieces of ``size`` bytes from ``offset`` on, cut at the end of the file.

        Raises:
            InvalidArgumentError: if one of them is negative.
            FormatError: if a part that is needed is malformed.
        """
        if offset < 0 or size < 0:
            raise InvalidArgumentError(f"{size} bytes from {offset} on cannot be read")
        stop = min(offset + size, self.size)
        pieces: list[Piece] = []
        number = bisect_right(self._ends, offset)
        while offset < stop:
            end = self._ends[number]
            chunk = self._chunks[number]
            begin = end - chunk.length
            length = min(stop, end) - offset
            ref = chunk.blob
            pieces.append(Piece(ref.digest, ref.compressed, ref.offset + offset - begin, length))
            offset += length
            # Not simply the next one: there may be any number of parts without a byte.
            number = bisect_right(self._ends, offset, number + 1)
        return ReadPlan(tuple(pieces))
