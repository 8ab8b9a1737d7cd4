"""The file stream as a table of chunks, and files as parts of it.

A build numbers files before it reads them, and cuts the stream into chunks without regard to where files end.
So each file is given its part of the stream first (``FileStream.reserve``), chunks are appended in the order
of the stream, and what a file consists of is worked out when somebody asks. That keeps the memory for a chunk
at a few words, and the memory for a file at two numbers.

One thread writes; afterwards any number may read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import overload

from puzzlefs.image_commit import StoredChunk
from puzzlefs.model import BlobRef, FileChunk, RegularFile


class FileStream:
    """The regular files of a tree, concatenated.

    Attributes:
        chunks: the stored chunks that it consists of, in its order, repeats included.
        size: bytes that were reserved so far.
    """

    def __init__(self) -> None:
        self.chunks: list[StoredChunk] = []
        self.size = 0
        self._ends = array("Q")

    def reserve(self, size: int) -> RegularFile:
        """The next ``size`` bytes of the stream, as a file."""
        start = self.size
        self.size += size
        return RegularFile(size, _Part(self, start, size) if size else ())

    def append(self, chunk: StoredChunk, length: int, count: int = 1) -> None:
        """Add what the next ``length`` bytes of the stream were stored as, ``count`` times."""
        end = self._ends[-1] if self._ends else 0
        self.chunks.extend([chunk] * count)
        self._ends.extend(range(end + length, end + length * count + 1, length))

    def extend(self, chunks: Sequence[StoredChunk], lengths: Sequence[int]) -> None:
        """Add what the next bytes of the stream were stored as, chunk by chunk."""
        end = self._ends[-1] if self._ends else 0
        self.chunks.extend(chunks)
        self._ends.extend(islice(accumulate(lengths, initial=end), 1, None))

    def lengths(self) -> list[int]:
        """The bytes of the stream that each of ``chunks`` stands for."""
        return [end - start for start, end in pairwise((0, *self._ends))]

    def indices(self, start: int, end: int) -> range:
        """The indices of the chunks that the bytes from ``start`` to ``end`` lie in."""
        return range(bisect_right(self._ends, start), bisect_left(self._ends, end) + 1)

    def count(self, start: int, end: int) -> int:
        """In how many chunks the bytes from ``start`` to ``end`` lie."""
        ends = self._ends
        first = bisect_right(ends, start)
        return 1 if end <= ends[first] else bisect_left(ends, end, first) + 1 - first

    def first_part(self, start: int, end: int) -> FileChunk:
        """What the bytes from ``start`` to ``end`` take of the chunk that ``start`` lies in."""
        return self.part(bisect_right(self._ends, start), start, end)

    def part(self, index: int, start: int, end: int) -> FileChunk:
        """What the bytes from ``start`` to ``end`` take of the chunk with the given index."""
        chunk = self.chunks[index]
        chunk_start = self._ends[index - 1] if index else 0
        chunk_end = self._ends[index]
        first = start if start > chunk_start else chunk_start  # max and min are calls, and this is done for each file
        last = end if end < chunk_end else chunk_end
        return FileChunk(BlobRef(chunk.digest, first - chunk_start, chunk.compressed), last - first)


class _Part(Sequence[FileChunk]):
    """The chunks of one file, worked out on demand. Needs the stream to be complete."""

    __slots__ = ("_size", "_start", "_stream")

    def __init__(self, stream: FileStream, start: int, size: int) -> None:
        self._stream = stream
        self._start = start
        self._size = size

    def __len__(self) -> int:
        return self._stream.count(self._start, self._start + self._size)

    def __iter__(self) -> Iterator[FileChunk]:
        start, end = self._start, self._start + self._size
        return (self._stream.part(index, start, end) for index in self._stream.indices(start, end))

    @overload
    def __getitem__(self, index: int) -> FileChunk: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[FileChunk]: ...

    def __getitem__(self, index: int | slice) -> FileChunk | Sequence[FileChunk]:
        start, end = self._start, self._start + self._size
        if index == 0:  # most files lie in one chunk
            return self._stream.first_part(start, end)
        chosen = self._stream.indices(start, end)[index]
        if isinstance(chosen, range):
            return [self._stream.part(one, start, end) for one in chosen]
        return self._stream.part(chosen, start, end)
