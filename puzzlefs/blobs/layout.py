"""An OCI image layout: a directory with ``oci-layout``, ``index.json`` and ``blobs/sha256`` (image-spec,
image-layout.md).

Invariants:

* ``index.json`` is replaced atomically, and changed only under the layout's lock: an advisory ``flock`` on the layout
  directory itself, so that no lock file is left in images that travel.
* A layout holds either images of format versions 1 and 2 or images of version 3; their ``index.json`` differ.
* ``blobs/sha256`` may be, or be reached through, a symbolic link to a directory that several layouts share. Nothing
  else in a layout may be a link: its owner must not make whoever reads it, root perhaps, open other files, or devices
  that do something when they are opened. (The path of the layout is the reader's own, and followed wherever it leads.)

A ``Layout`` keeps its directory and ``blobs/sha256`` open: everything is opened beneath these, so it is the same layout
from beginning to end, whatever is put in its place meanwhile, and a mount survives that its image is moved. Thread
safe.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from puzzlefs.blobs.host import (
    READ_FLAGS,
    close_read,
    open_regular,
    read_bounded,
    regular_file_size,
    storage_errors,
    sync_file_system,
    write_all,
)
from puzzlefs.digest import Digest
from puzzlefs.errors import BlobNotFoundError, FormatError, InvalidArgumentError, NotFoundError, TagNotFoundError
from puzzlefs.oci import Descriptor, Dialect, Index
from puzzlefs.oci.json_text import encode, parse_object

MAX_INDEX_SIZE: Final = 16 << 20
"""Bytes of the largest ``index.json`` that is read: some 50,000 tags."""

MAX_MANIFEST_SIZE: Final = 128 << 20
"""Bytes of the largest OCI manifest that is read: some 800,000 chunks, or 50 GB of content."""

TEMPORARY_PREFIX: Final = ".tmp-"
"""How names of unfinished files begin; no blob and no document of the image-spec is named so."""

_MARKER = "oci-layout"
_MARKER_KEY = "imageLayoutVersion"
_INDEX = "index.json"
_BLOBS = "blobs/sha256"
_MAX_MARKER_SIZE = 64 << 10
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Layout:
    """An open image layout. Use it as a context manager, or ``close`` it."""

    def __init__(self, path: Path, dialect: Dialect, fd: int, blobs_fd: int) -> None:
        """Not for callers: use ``open`` or ``open_or_create``."""
        self.path = path
        self.dialect = dialect
        self._fd = fd
        self._blobs_fd = blobs_fd

    # ---- opening and closing

    @classmethod
    def open(cls, path: Path) -> Layout:
        """Open the layout at ``path``, whose form is checked.

        Raises:
            NotFoundError: if there is no such directory, or it is not a layout.
            FormatError: if it says it is a layout but is not one that we know.
            StorageError: if it cannot be read.
        """
        fd = _open_directory(path)
        try:
            dialect = _read_dialect(fd, path)
            blobs_fd = _open_blobs(fd, path)
        except BaseException:
            close_read(fd)
            raise
        return cls(path, dialect, fd, blobs_fd)

    @classmethod
    def open_or_create(cls, path: Path, dialect: Dialect) -> Layout:
        """Open the layout at ``path``, or make an empty one in the dialect given.

        Two callers at once make one layout.

        Raises:
            InvalidArgumentError: if the layout is of the other dialect, or ``path`` is a directory with other things.
            StorageError: if it cannot be made.
        """
        with storage_errors("create the image layout", path):
            try:
                path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise InvalidArgumentError(f"cannot create {path}: a file is in the way") from error
            fd = _open_directory(path)
            try:
                with _locked(fd, path):
                    if not _exists(fd, _MARKER):
                        _create(fd, path, dialect)
            finally:
                close_read(fd)
        layout = cls.open(path)
        if layout.dialect is not dialect:
            layout.close()
            holds, wanted = _VERSIONS[layout.dialect], _VERSIONS[dialect]
            raise InvalidArgumentError(
                f"{path} holds images of format {holds}, and cannot hold one of format {wanted}",
                hint="name another directory, or another --format-version",
            )
        return layout

    def close(self) -> None:
        """Give the descriptors back. Calling it twice is fine."""
        for fd in (self._fd, self._blobs_fd):
            if fd >= 0:
                close_read(fd)
        self._fd = self._blobs_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- blobs

    @property
    def fd(self) -> int:
        """A descriptor of the layout's directory, owned by the layout."""
        return self._fd

    @property
    def blobs_fd(self) -> int:
        """A descriptor of the directory ``blobs/sha256``, owned by the layout."""
        return self._blobs_fd

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob is, or would be."""
        return self.path / "blobs" / "sha256" / digest.hex()

    def open_blob(self, digest: Digest) -> int:
        """A read-only descriptor of a blob, which the caller closes. Nothing is verified here.

        Raises:
            BlobNotFoundError: if it is not there.
            FormatError: if something stands there that is not a regular file (a link or a device, for example).
            OSError: if the host cannot open it.
        """
        try:
            name = digest.hex()  # no Path is made for a message that is hardly ever needed
            return open_regular(name, f"blob {self.path}/blobs/sha256/{name}", dir_fd=self._blobs_fd)
        except FileNotFoundError as error:
            raise BlobNotFoundError(digest.hex(), str(self.blob_path(digest))) from error

    def advise(self, digest: Digest) -> None:
        """Have the host read a blob into its page cache, without waiting for the content.

        Raises:
            OSError: if it cannot be opened, or is nothing that can be read ahead.
        """
        fd = os.open(digest.hex(), READ_FLAGS, dir_fd=self._blobs_fd)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)

    def blob_size(self, digest: Digest) -> int | None:
        """The size in bytes of the file that has the blob's name, ``None`` if there is none."""
        return regular_file_size(digest.hex(), self._blobs_fd)

    # ---- the index

    def read_index(self) -> Index:
        """The index as it is now.

        Raises:
            FormatError: if it is malformed or of the wrong dialect.
            NotFoundError: if it is missing.
        """
        path = self.path / _INDEX
        data = _read_document(self._fd, path, MAX_INDEX_SIZE)
        if data is None:
            raise NotFoundError(f"{self.path} is not an image layout: it has no {_INDEX} file")
        index = Index.parse(data, str(path))
        if index.dialect is not self.dialect:
            raise FormatError(f"{path} is not what {_MARKER} beside it says: its schemaVersion does not fit")
        return index

    def find_entry(self, index: Index, tag: str) -> Descriptor:
        """What a tag of its index points to.

        Raises:
            TagNotFoundError: if there is no such tag.
        """
        entry = index.find(tag)
        if entry is None:
            raise TagNotFoundError(str(self.path), tag, index.tags())
        return entry

    def update_index(self, change: Callable[[Index], Index]) -> None:
        """Replace the index by ``change(index)``: under the lock, atomically, and on disk when this returns.

        Raises:
            FormatError: if the index there is cannot be read.
            StorageError: as ``write_index``.
        """
        with self.locked():
            self.write_index(change(self.read_index()))

    def write_index(self, index: Index) -> None:
        """Replace the index by one that was made of it under the lock (``locked``), which is still held; atomically.

        Raises:
            StorageError: if it cannot be written; the old one is then still there. If nothing but the last sync failed,
                which the message says, the new one is, and may be gone after a power cut.
        """
        with storage_errors("write", self.path / _INDEX):
            _replace_file(self._fd, self.path / _INDEX, index.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the layout's lock, which every change of the index needs."""
        with _locked(self._fd, self.path):
            yield


_VERSIONS = {Dialect.OCI: "version 3", Dialect.PUZZLEFS_DEV: "versions 1 and 2"}


def _open_directory(path: Path) -> int:
    """A descriptor that other things are opened beneath; it needs no right to list the directory."""
    with storage_errors("open the image layout", path):
        try:
            return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
            raise NotFoundError(f"{path} is not a directory", hint="an image is named OCI_DIR:TAG") from error


def _read_dialect(fd: int, path: Path) -> Dialect:
    marker = _read_document(fd, path / _MARKER, _MAX_MARKER_SIZE)
    if marker is None:
        raise NotFoundError(f"{path} is not an image layout: it has no {_MARKER} file")
    version = parse_object(marker, f"{path / _MARKER}").get(_MARKER_KEY)
    try:
        return Dialect(version)
    except ValueError as error:
        raise FormatError(f"{path}: image layout version {repr(version)[:80]} is not known") from error


def _open_blobs(fd: int, path: Path) -> int:
    with storage_errors("open", path / _BLOBS):
        try:
            return os.open(_BLOBS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
            raise FormatError(f"{path} is not an image layout: it has no directory {_BLOBS}") from error


def _create(fd: int, path: Path, dialect: Dialect) -> None:
    """Make an empty layout of a directory that holds nothing else, but for what an interrupted attempt left."""
    foreign = {name for name in _list(fd) if not name.startswith(TEMPORARY_PREFIX)} - {"blobs", _INDEX}
    if foreign:
        raise InvalidArgumentError(
            f"{path} is neither empty nor an image layout: it holds {min(foreign)!r}",
            hint="name an empty or a new directory",
        )
    index = _read_document(fd, path / _INDEX, MAX_INDEX_SIZE)
    if index is not None and Index.parse(index, str(path / _INDEX)).manifests:
        raise InvalidArgumentError(
            f"{path} has an {_INDEX} that names images, but no {_MARKER} file",
            hint=f"restore {_MARKER}, or name another directory",
        )
    for directory in ("blobs", _BLOBS):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, dir_fd=fd)
    _replace_file(fd, path / _INDEX, Index(dialect).encode())
    _replace_file(fd, path / _MARKER, encode({_MARKER_KEY: dialect.value}))


def _list(fd: int) -> list[str]:
    listed = os.open(".", _DIRECTORY, dir_fd=fd)
    try:
        return os.listdir(listed)
    finally:
        close_read(listed)


def _exists(fd: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _locked(directory: int, path: Path) -> Iterator[None]:
    with storage_errors("lock", path):
        fd = os.open(".", _DIRECTORY, dir_fd=directory)  # a lock belongs to an open file: one of our own
    try:
        with storage_errors("lock", path):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        close_read(fd)


def _read_document(directory: int, path: Path, limit: int) -> bytes | None:
    """The content of a small file of a directory, ``None`` if it is not there; ``path`` is how messages call it.

    Raises:
        FormatError: if it is larger than ``limit`` bytes, or not a regular file.
        StorageError: if it cannot be read.
    """
    with storage_errors("read", path):
        try:
            fd = open_regular(path.name, str(path), dir_fd=directory)
        except FileNotFoundError:
            return None
        try:
            return read_bounded(fd, str(path), limit)
        finally:
            close_read(fd)


def _replace_file(directory: int, path: Path, data: bytes) -> None:
    """Put ``data`` under the name of ``path``: the old content or the new is there at every moment, also after a power
    cut.

    Raises:
        OSError: if it cannot be written; the old one is still there.
        StorageError: if the new one is there, but the sync that makes it last has failed.
    """
    name = path.name
    temporary = f"{TEMPORARY_PREFIX}{name}-{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)  # left by a process that was killed
    try:
        fd = os.open(temporary, _NEW, 0o666, dir_fd=directory)
        try:
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    with storage_errors("be sure that a power cut spares the new", path):
        fd = os.open(".", _DIRECTORY, dir_fd=directory)
        try:
            sync_file_system(fd)
        finally:
            close_read(fd)
