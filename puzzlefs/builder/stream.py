"""Regular files → ONE stream of bytes → buffers of whole chunks.

Files are read in the order of their inode numbers, into buffers that the chunker then cuts; a chunk may span
files and a file chunks. Bytes are copied once more only where a chunk begins in one buffer and ends in the
next.

Every file is checked before and after it is read: what is open must be what was scanned, and must not have
changed meanwhile, or the image would hold a state that the tree never had.

Holes cost nothing: while the current chunk begins in a hole with enough zeros ahead for a cut, its bytes and
its length are known, and nothing is read, filled, cut or hashed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from puzzlefs.builder.pipeline import BUFFER_SIZE, ChunkPipeline
from puzzlefs.builder.scan import SourceFile, identity_of
from puzzlefs.builder.source import SourceTree
from puzzlefs.chunking import Chunker

_BLOCK = 512


class StreamCutter:
    """Collects the bytes of the stream and hands whole chunks to the pipeline.

    The current chunk always begins at the beginning of the buffer.
    """

    def __init__(self, chunker: Chunker, pipeline: ChunkPipeline) -> None:
        self._chunker = chunker
        self._pipeline = pipeline
        self._max_size = chunker.max_size
        self._zeros = bytes(self._max_size)
        self._zero_length = chunker.cut(memoryview(self._zeros), final=False)[0]
        self._buffer = pipeline.buffer()
        self._filled = 0

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
        with memoryview(self._buffer) as view, view[: self._filled] as data:
            lengths = self._chunker.cut(data, final)
            rest = bytes(data[sum(lengths) :])
        if lengths:
            self._pipeline.submit(self._buffer, lengths)
            self._buffer = self._pipeline.buffer()
            self._buffer[: len(rest)] = rest
        self._filled = len(rest)


def read_files(tree: SourceTree, files: Sequence[SourceFile], cutter: StreamCutter) -> None:
    """Append the content of ``files``, in their order, and end the stream.

    Raises:
        SourceError: if a file cannot be read, is not what was scanned, or changes; it names the file.
        StorageError: if a chunk cannot be stored.
    """
    for file in files:
        fd = tree.open_file(file.directory, file.name)
        try:
            _read_file(tree, file, fd, cutter)
        finally:
            os.close(fd)
    cutter.finish()


def _read_file(tree: SourceTree, file: SourceFile, fd: int, cutter: StreamCutter) -> None:
    try:
        before = os.fstat(fd)
        if identity_of(before) != file.identity:
            raise tree.changed(file.directory, file.name)
        if before.st_blocks * _BLOCK < file.size:
            complete = _read_around_holes(fd, file.size, cutter)
        else:
            complete = _read_range(fd, file.size, cutter)
        if not complete or identity_of(os.fstat(fd)) != file.identity:
            raise tree.changed(file.directory, file.name)
    except OSError as error:
        raise tree.failure("read", file.directory, file.name, error) from error


def _read_range(fd: int, size: int, cutter: StreamCutter) -> bool:
    """Append ``size`` bytes from the file's position on; whether there were so many."""
    while size:
        with cutter.space() as view, view[:size] as target:
            count = os.readv(fd, [target])
        if not count:
            return False
        cutter.advance(count)
        size -= count
    return True


def _read_around_holes(fd: int, size: int, cutter: StreamCutter) -> bool:
    """Append a file of ``size`` bytes without reading its holes; whether it has so many."""
    position = 0
    while position < size:
        try:
            data = min(os.lseek(fd, position, os.SEEK_DATA), size)
            end = min(os.lseek(fd, data, os.SEEK_HOLE), size) if data < size else size
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data up to the end
                data = end = size
            elif error.errno == errno.EINVAL and not position:  # a file system that knows of no holes
                data, end = 0, size
            else:
                raise
        cutter.zeros(data - position)
        if data < end:
            os.lseek(fd, data, os.SEEK_SET)
            if not _read_range(fd, end - data, cutter):
                return False
        position = end
    return True
