"""Files of an image as Python's file objects.

``ImageFile`` is the raw one: it has a position, and whatever is read is fetched and verified then, so an error is met
where the bad bytes are, and none of them is handed out. ``open_file`` puts Python's own buffers and decoders over it.
Several file objects may be open on one image, in several threads; one file object is for one thread.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from puzzlefs.errors import InvalidArgumentError, PathIsDirectoryError
from puzzlefs.model import Kind
from puzzlefs.vfs.paths import Place, shown

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from puzzlefs.vfs import ReadPlan, Tree

BUFFER_SIZE: Final = 128 << 10
"""Bytes that are read at a time where the caller does not say: some two chunks."""

WINDOW: Final = 1 << 20
"""Bytes that are held in memory at a time where a whole file is passed on."""

_READ_MODES: Final = frozenset({"r", "rt", "tr", "rb", "br"})
_KIND_NAMES: Final = {
    Kind.FIFO: "a FIFO",
    Kind.CHAR_DEVICE: "a character device",
    Kind.BLOCK_DEVICE: "a block device",
    Kind.SOCKET: "a socket",
    Kind.SYMLINK: "a symbolic link",
}


class FileSource(Protocol):
    """What an image must be able to do here; ``puzzlefs.Image`` can."""

    @property
    def tree(self) -> Tree:
        """The file system."""
        ...

    def fetch(self, plan: ReadPlan) -> bytes:
        """The verified bytes of a plan."""
        ...


class ImageFile(io.RawIOBase):
    """A regular file of an image, unbuffered. Every method that reads raises what ``Image.read`` does."""

    def __init__(self, image: FileSource, ino: int, name: str) -> None:
        """The file with inode number ``ino``, which calls itself ``name``.

        Raises:
            InvalidArgumentError: if the inode is no regular file.
            FormatError: if it is malformed.
        """
        super().__init__()
        self._image = image
        self._ino = ino
        self._size = image.tree.file_map(ino).size
        self._position = 0
        self.name = name
        self.mode = "rb"

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check_open()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise InvalidArgumentError(f"{self.name}: {whence} is no place to seek from")
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise InvalidArgumentError(f"{self.name}: cannot seek to {position}, before the beginning")
        self._position = position
        return position

    def read(self, size: int | None = -1, /) -> bytes:
        self._check_open()
        left = max(self._size - self._position, 0)
        size = left if size is None or size < 0 else min(size, left)
        data = self._image.fetch(self._image.tree.plan(self._ino, self._position, size)) if size else b""
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def __repr__(self) -> str:
        return f"<ImageFile {self.name!r}>"

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def open_file(
    image: FileSource,
    place: Place,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> io.TextIOWrapper | io.BufferedReader[ImageFile] | ImageFile:
    """Open what is at ``place``, as ``open`` does; an image cannot be written to.

    Raises:
        PathIsDirectoryError: if it is a directory.
        InvalidArgumentError: if it is no regular file, or ``mode`` is not one of reading.
        FormatError: if it is malformed.
    """
    if mode not in _READ_MODES:
        raise InvalidArgumentError(
            f"{shown(place.path)} cannot be opened with mode {mode!r}: an image is read-only",
            hint="open it with 'r' or 'rb'",
        )
    check_is_file(place)
    if "b" in mode and (encoding is not None or errors is not None or newline is not None):
        raise InvalidArgumentError("a file that is opened with 'b' has no encoding, errors or newline")
    raw = ImageFile(image, place.ino, os.fsdecode(place.path))
    if "b" in mode and buffering == 0:
        return raw
    if buffering == 0:
        raise InvalidArgumentError("text cannot be read without a buffer")
    buffered = io.BufferedReader(raw, buffering if buffering > 1 else BUFFER_SIZE)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding, errors, newline)


def check_is_file(place: Place) -> None:
    """Raise if what is at ``place`` is not a regular file.

    Raises:
        PathIsDirectoryError: if it is a directory.
        InvalidArgumentError: if it is something else.
    """
    if place.kind is Kind.DIRECTORY:
        raise PathIsDirectoryError(f"{shown(place.path)} is a directory", os.fsdecode(place.path))
    if place.kind is not Kind.REGULAR:
        what = _KIND_NAMES.get(place.kind, "of an unknown kind")
        raise InvalidArgumentError(f"{shown(place.path)} is {what}, and has no content in an image")


def content_of(image: FileSource, place: Place) -> Iterator[bytes]:
    """The content of the regular file at ``place``, verified, in pieces of at most ``WINDOW`` bytes.

    Raises:
        PathIsDirectoryError: as ``open_file``.
        InvalidArgumentError: as ``open_file``.
        NotFoundError: if a blob is missing.
        FormatError: if the image is malformed.
        IntegrityError: if a blob is not what its name says; the pieces before were sound.
        StorageError: if the host cannot read a blob.
    """
    check_is_file(place)
    size = image.tree.file_map(place.ino).size
    for offset in range(0, size, WINDOW):
        yield image.fetch(image.tree.plan(place.ino, offset, WINDOW))
