"""A file's content with its holes: found while it is read; aligned blocks of zeros are left out where it is written.

A long hole in an image is the same chunk of zeros many times over. Once a part of a chunk is known to hold nothing but
zeros it is not read again, so a hole costs one look at the plan for each gigabyte, not its bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from puzzlefs.digest import Digest
from puzzlefs.image import Image
from puzzlefs.vfs import Piece

_WINDOW: Final = 1 << 20
"""Bytes that are read and written at a time."""

_MAX_HOLE: Final = 1 << 30
"""Bytes of a hole that are passed over at a time."""

_BLOCK: Final = 4096
"""Bytes, and alignment, of the smallest run of zeros that becomes a hole."""

_MAX_KNOWN_CHUNKS: Final = 4096
_ZERO_BLOCK: Final = bytes(_BLOCK)
_ZERO_WINDOW: Final = bytes(_WINDOW)


class SparseReader:
    """Reads contents of files of one image, window by window. Not for several threads."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._zeros: dict[tuple[Digest, bool], tuple[int, int]] = {}

    def windows(self, ino: int, start: int, stop: int) -> Iterator[tuple[int, bytes | None]]:
        """The content of a regular file from ``start`` to ``stop``, in pieces.

        Args:
            ino: the inode.
            start: where to begin.
            stop: where to end, at most at the end of the file.

        Yields:
            Length and bytes of each piece; ``None`` for one of nothing but zeros.

        Raises:
            NotFoundError: if a blob is missing.
            FormatError: if the image is malformed.
            IntegrityError: if a blob is not what its name says.
            StorageError: if the host cannot read a blob.
        """
        offset = start
        window = _WINDOW
        while offset < stop:
            length = min(window, stop - offset)
            plan = self._image.tree.plan(ino, offset, length)
            if self._are_zeros(plan.pieces):
                window = min(2 * window, _MAX_HOLE)
                yield length, None
            elif window > _WINDOW:
                window = _WINDOW
                continue
            else:
                data = self._image.fetch(plan)
                if _ZERO_WINDOW.startswith(data):
                    self._learn(plan.pieces)
                    yield length, None
                else:
                    yield length, data
            offset += length

    def _are_zeros(self, pieces: Sequence[Piece]) -> bool:
        for piece in pieces:
            start, end = self._zeros.get((piece.blob, piece.compressed), (0, 0))
            if piece.offset < start or piece.offset + piece.length > end:
                return False
        return True

    def _learn(self, pieces: Sequence[Piece]) -> None:
        if len(self._zeros) > _MAX_KNOWN_CHUNKS:
            self._zeros.clear()
        for piece in pieces:
            start, end = piece.offset, piece.offset + piece.length
            known_start, known_end = self._zeros.get((piece.blob, piece.compressed), (start, start))
            if start <= known_end and end >= known_start:
                start, end = min(start, known_start), max(end, known_end)
            self._zeros[piece.blob, piece.compressed] = start, end


class SparseWriter:
    """Writes contents of files of one image. Not for several threads."""

    def __init__(self, image: Image) -> None:
        self._reader = SparseReader(image)

    def write(self, fd: int, ino: int, size: int, written: Callable[[int], None]) -> None:
        """Write the content of a regular file into an empty one.

        Args:
            fd: where to.
            ino: the inode.
            size: its size in bytes.
            written: told how many bytes more are done, holes included.

        Raises:
            NotFoundError: if a blob is missing.
            FormatError: if the image is malformed.
            IntegrityError: if a blob is not what its name says.
            StorageError: if the host cannot read a blob.
            OSError: if the host cannot write.
        """
        os.truncate(fd, size)  # first: a size that the file system cannot do fails at once
        offset = 0
        for length, data in self._reader.windows(ino, 0, size):
            if data is not None:
                _write_blocks(fd, data, offset)
            offset += length
            written(length)


def _write_blocks(fd: int, data: bytes, offset: int) -> None:
    """Write ``data`` at ``offset`` (a multiple of ``_BLOCK``), leaving out aligned blocks that are all zeros."""
    start = 0
    if _ZERO_BLOCK in data:
        for position in range(0, len(data), _BLOCK):
            block = data[position : position + _BLOCK]
            if _ZERO_BLOCK.startswith(block):
                if start < position:
                    _write_all(fd, data[start:position], offset + start)
                start = position + len(block)
    if start < len(data):
        _write_all(fd, data[start:], offset + start)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
