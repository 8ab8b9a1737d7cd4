"""Which blob holds which byte of a file.

A regular file is a sequence of parts of chunks. ``FileMap`` keeps where in the file each part begins, and answers for
any range of the file which pieces of which chunks make it up. It decodes the parts that are asked for, and no others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from puzzlefs.digest import Digest
from puzzlefs.model import FileChunk, RegularFile


@dataclass(frozen=True, slots=True)
class Piece:
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


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """The pieces that make up a range of a file, in order; empty at and beyond its end."""

    pieces: tuple[Piece, ...]


class FileMap:
    """Where the parts of one file begin. Immutable; thread safe."""

    __slots__ = ("_chunks", "_ends", "size")

    def __init__(self, file: RegularFile) -> None:
        self._chunks: Sequence[FileChunk] = file.chunks
        lengths = getattr(file.chunks, "lengths", None)
        if lengths is None:
            lengths = [chunk.length for chunk in file.chunks]
        self._ends = list(accumulate(lengths))
        self.size = file.size

    def __len__(self) -> int:
        return len(self._ends)

    def plan(self, offset: int, size: int) -> ReadPlan:
        """The pieces of ``size`` bytes from ``offset`` on, cut at the end of the file.

        Raises:
            FormatError: if a part that is needed is malformed.
        """
        stop = min(offset + size, self.size)
        pieces: list[Piece] = []
        number = bisect_right(self._ends, offset)
        while offset < stop:
            end = self._ends[number]
            chunk = self._chunks[number]
            begin = end - chunk.length
            length = min(stop, end) - offset
            if length > 0:
                ref = chunk.blob
                pieces.append(Piece(ref.digest, ref.compressed, ref.offset + offset - begin, length))
                offset += length
            number += 1
        return ReadPlan(tuple(pieces))
