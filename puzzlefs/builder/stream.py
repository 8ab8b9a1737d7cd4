"""Regular files → ONE stream of bytes → buffers of whole chunks.

Files are read in the order of their inode numbers, into buffers that the chunker then cuts; a chunk may span
files and a file chunks. Bytes are copied once more only where a chunk begins in one buffer and ends in the
next.

Where the last build had the same files and a cut at the same place, what follows is taken over from it unread (see
``reuse``). After a change, reading stops at every place where it could resume like that, to see whether there is a
cut.

Where files of some size have chunks of their own, the stream is also cut at the *borders* of those: where one begins,
and where it ends. What lies between two borders is cut as if it were a stream of its own.

Every file that is read is checked before and after it is read: what is open must be what was scanned, and must not have
changed meanwhile, or the image would hold a state that the tree never had.

Holes cost nothing: while the current chunk begins in a hole with enough zeros ahead for a cut, its bytes and
its length are known, and nothing is read, filled, cut or hashed.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, islice

from puzzlefs.builder.pipeline import BUFFER_SIZE, ChunkPipeline
from puzzlefs.builder.reuse import Reuse, ReusedChunks
from puzzlefs.builder.scan import SourceFile, identity_of
from puzzlefs.builder.source import SourceTree
from puzzlefs.chunking import LOOK_AHEAD, Chunker

_BLOCK = 512


def _nowhere() -> bool:
    return False


class StreamCutter:
    """Collects the bytes of the stream and hands whole chunks to the pipeline.

    The buffer begins with a chunk. What is known to be cut already is at its beginning.

    Attributes:
        position: where in the stream the buffer begins.
    """

    def __init__(self, chunker: Chunker, pipeline: ChunkPipeline) -> None:
        self.position = 0
        self._chunker = chunker
        self._pipeline = pipeline
        self._max_size = chunker.max_size
        self._zeros = bytes(self._max_size)
        self._zero_length = chunker.cut(memoryview(self._zeros), final=False)[0]
        self._buffer = pipeline.buffer()
        self._filled = 0
        self._lengths: list[int] = []
        self._cut = 0

    def space(self) -> memoryview:
        """Where the next bytes of the stream go: at least one byte of room. Released by the caller."""
        if self._filled == BUFFER_SIZE:
            self._flush(final=False)
        return memoryview(self._buffer)[self._filled :]

    def advance(self, count: int) -> None:
        """Say that ``count`` bytes were put into the ``space``."""
        self._filled += count

    def zeros(self, count: int) -> None:
        """Append ``count`` zeros."""
        while count:
            if not self._filled and count >= self._max_size:
                repeat = (count - self._max_size) // self._zero_length + 1
                self._pipeline.submit_zeros(self._zero_length, repeat)
                self.position += repeat * self._zero_length
                count -= repeat * self._zero_length
                continue
            # A long run is begun by filling up with max_size zeros and cutting: what is left uncut is
            # shorter, so it is zeros alone, and the current chunk can begin anew within them.
            long = count >= 2 * self._max_size
            step = min(count, self._max_size)
            self._fill_with_zeros(step)
            count -= step
            if long:
                self._flush(final=False)
                count += self._filled
                self._filled = 0

    def border(self) -> None:
        """Cut what was collected as if the stream ended here."""
        self._cut_rest(final=True)

    def find_cut(self, wanted: Callable[[int], bool]) -> int | None:
        """The first certain cut whose place in the stream is wanted.

        The chunks before it are handed over, and what was collected behind it is dropped: the stream goes on there.
        """
        self._cut_rest(final=False)
        end = 0
        for index, length in enumerate((0, *self._lengths)):
            end += length
            if wanted(self.position + end):
                del self._lengths[index:]
                self._cut = end
                self._hand_over(b"")
                return self.position
        return None

    def take(self, known: ReusedChunks) -> None:
        """Append chunks that are stored. The stream must be cut here: nothing is collected."""
        self._pipeline.submit_known(known)
        self.position += sum(known.lengths)

    def finish(self) -> None:
        """End the stream: what is left is cut as its end."""
        self._flush(final=True)

    def _fill_with_zeros(self, count: int) -> None:
        while count:
            with self.space() as view:
                step = min(count, len(view))
                view[:step] = self._zeros[:step]
            self.advance(step)
            count -= step

    def _flush(self, *, final: bool) -> None:
        self._cut_rest(final=final)
        with memoryview(self._buffer) as view:
            rest = bytes(view[self._cut : self._filled])
        self._hand_over(rest)

    def _cut_rest(self, *, final: bool) -> None:
        """Cut what is not known to be cut; with ``final`` all of it."""
        with memoryview(self._buffer) as view, view[self._cut : self._filled] as data:
            lengths = self._chunker.cut(data, final)
        self._lengths += lengths
        self._cut += sum(lengths)

    def _hand_over(self, rest: bytes) -> None:
        """Give the pipeline what is cut; ``rest`` is what was collected behind it."""
        if self._lengths:
            self._pipeline.submit(self._buffer, self._lengths)
            self._buffer = self._pipeline.buffer()
            self._buffer[: len(rest)] = rest
        self.position += self._cut
        self._filled = len(rest)
        self._lengths = []
        self._cut = 0


class StreamReader:
    """Reads the files of a tree as one stream, as far as that is needed.

    Attributes:
        bytes_read: bytes that were read.
    """

    def __init__(
        self,
        tree: SourceTree,
        files: Sequence[SourceFile],
        cutter: StreamCutter,
        reuse: Reuse | None = None,
        *,
        cut_at_files: int = 0,
        look_further: Callable[[], bool] = _nowhere,
    ) -> None:
        """A reader of ``files``, in their order; what ``reuse`` knows is not read.

        Args:
            tree: where they are.
            files: the files.
            cutter: takes their content.
            reuse: what is known.
            cut_at_files: files of so many bytes or more, if it is not 0, have borders.
            look_further: called when all of ``files`` are read: looks for more, and says whether there may be some. All
                must be there from the beginning with ``reuse``.
        """
        self.bytes_read = 0
        self._tree = tree
        self._files = files
        self._cutter = cutter
        self._reuse = reuse
        self._cut_at_files = cut_at_files
        self._look_further = look_further
        self._starts = [0]

    def run(self) -> None:
        """Append the content of all files to the stream, and end it.

        Raises:
            SourceError: if a file cannot be read, is not what was scanned, or changes; it names the file.
            StorageError: if a chunk cannot be stored.
        """
        position = self._skip(0)
        while position < (size := self._size()) or self._look_further():
            goal = None if self._reuse is None else self._reuse.next_after(position)
            if goal is None:  # nothing that follows is known
                self._reuse = None
                goal = size
            position = self._append(position, min(goal + LOOK_AHEAD, size))
            if self._reuse is not None:
                cut = self._cutter.find_cut(self._reuse.resumes_at)
                if cut is not None:
                    position = self._skip(cut)
        self._cutter.finish()

    def _size(self) -> int:
        """How long the stream of the files is that there are by now."""
        starts = self._starts
        sizes = (file.size for file in self._files[len(starts) - 1 :])
        starts += islice(accumulate(sizes, initial=starts[-1]), 1, None)
        return starts[-1]

    def _skip(self, position: int) -> int:
        """Take over what is known from a cut at ``position`` on; where that ends."""
        while self._reuse is not None:
            known = self._reuse.take(position)
            if not known.lengths:
                break
            self._cutter.take(known)
            position = self._cutter.position
        return position

    def _append(self, position: int, goal: int) -> int:
        """Append the stream from ``position`` to ``goal``, or a bit further; where that ends."""
        index = bisect_right(self._starts, position) - 1
        while position < goal:
            file, start = self._files[index], self._starts[index]
            has_borders = 0 < self._cut_at_files <= file.size
            if has_borders and position == start:
                self._cutter.border()
            fd = self._tree.open_file(file.directory, file.name)
            try:
                position = start + self._read_file(file, fd, position - start, min(goal - start, file.size))
            finally:
                os.close(fd)
            index += 1
            if has_borders and position == self._starts[index]:
                self._cutter.border()
        return position

    def _read_file(self, file: SourceFile, fd: int, position: int, goal: int) -> int:
        """Append a file from ``position`` to ``goal``, or to the end of the hole there; where that ends."""
        try:
            before = os.fstat(fd)
            if identity_of(before) != file.identity:
                raise self._tree.changed(file.directory, file.name)
            if before.st_blocks * _BLOCK < file.size:
                end = self._read_around_holes(fd, position, goal, file.size)
            else:
                if position:
                    os.lseek(fd, position, os.SEEK_SET)
                end = self._read_range(fd, position, goal)
            if end is None or identity_of(os.fstat(fd)) != file.identity:
                raise self._tree.changed(file.directory, file.name)
        except OSError as error:
            raise self._tree.failure("read", file.directory, file.name, error) from error
        return end

    def _read_range(self, fd: int, position: int, goal: int) -> int | None:
        """Append the bytes from ``position``, where the file is, to ``goal``; ``None`` if it ends before."""
        while position < goal:
            with self._cutter.space() as view, view[: goal - position] as target:
                count = os.readv(fd, [target])
            if not count:
                return None
            self._cutter.advance(count)
            self.bytes_read += count
            position += count
        return position

    def _read_around_holes(self, fd: int, position: int, goal: int, size: int) -> int | None:
        """Append a part of a file of ``size`` bytes without reading its holes; ``None`` if it has not so many."""
        while position < goal:
            try:
                data = min(os.lseek(fd, position, os.SEEK_DATA), size)
                end = min(os.lseek(fd, data, os.SEEK_HOLE), size) if data < size else size
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data up to the end
                    data = end = size
                elif error.errno == errno.EINVAL:  # a file system that knows of no holes
                    data, end = position, size
                else:
                    raise
            self._cutter.zeros(data - position)
            position = data
            end = min(end, goal)
            if data < end:
                os.lseek(fd, data, os.SEEK_SET)
                reached = self._read_range(fd, data, end)
                if reached is None:
                    return None
                position = reached
        return position
