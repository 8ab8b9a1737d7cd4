"""The few things this room needs from the host that Python's ``os`` does not offer, and its I/O errors as ours.

Everything in a layout may have been put there to hurt, so files are opened without waiting (a FIFO), without following
links, and count only if they are regular; reading has a bound, also where a file grows meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, StorageError

_HINTS = {
    errno.ENOSPC: "free some space there and run the command again",
    errno.EDQUOT: "free some of your quota there and run the command again",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EROFS: "the file system there is mounted read-only",
    errno.EIO: "the medium may be failing: see the kernel's log",
}

READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
"""How a file is opened that may be anything."""

_libc = ctypes.CDLL(None, use_errno=True)


def sync_file_system(fd: int) -> None:
    """Put everything that was written to the file system that holds ``fd`` on disk (syncfs(2)).

    Raises:
        OSError: as the kernel reports it; since Linux 5.8 also for a write-back that failed earlier.
    """
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def storage_errors(action: str, path: object) -> Iterator[None]:
    """Turn the host's errors into ``StorageError`` that names what was done to which path."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, action, path) from error


def storage_error(error: OSError, action: str, path: object) -> StorageError:
    """What ``storage_errors`` raises."""
    hint = _HINTS.get(error.errno or 0, "")
    return StorageError(f"cannot {action} {path}: {error.strerror or error}", hint=hint)


def open_regular(name: str, what: str, *, dir_fd: int) -> int:
    """A read-only descriptor of a regular file, which the caller closes. A symbolic link is not one.

    Args:
        name: its name in a directory.
        what: what to call it in messages.
        dir_fd: the directory.

    Raises:
        FormatError: if it is something else.
        OSError: if the host cannot open it.
    """
    try:
        fd = os.open(name, READ_FLAGS, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FormatError(f"{what} is a symbolic link, which it must not be") from error
        if error.errno == errno.ENXIO:  # a socket
            raise FormatError(f"{what} is not a regular file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FormatError(f"{what} is not a regular file")
    except BaseException:
        close_read(fd)
        raise
    return fd


def close_read(fd: int) -> None:
    """Close a descriptor that was only read from, or is of a directory: what close(2) may report is about data that
    was written, and must not stand in the place of an error that matters."""
    with contextlib.suppress(OSError):
        os.close(fd)


def regular_file_size(name: str, dir_fd: int) -> int | None:
    """The size in bytes of a regular file, ``None`` if there is none of this name.

    Raises:
        OSError: as the host reports it.
    """
    try:
        status = os.lstat(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def hash_file(fd: int) -> Digest:
    """The sha256 of an open file, from where it stands to its end.

    Raises:
        OSError: if the host cannot read it.
    """
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return Digest(hashlib.file_digest(file, "sha256").digest())


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of ``data``, however many calls that takes.

    Raises:
        OSError: if the host cannot write it.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_bounded(fd: int, what: str, limit: int) -> bytes:
    """Everything in an open file.

    Raises:
        FormatError: if that is more than ``limit`` bytes.
        OSError: if the host cannot read it.
    """
    size = os.fstat(fd).st_size
    parts: list[bytes] = []
    total = 0
    while size <= limit and (part := os.read(fd, size + 1)):  # once, but for files that change, and huge ones
        parts.append(part)
        total += len(part)
        size = max(size, total)
    if size > limit:
        raise FormatError(f"{what} has {size} bytes, more than the {limit} that are allowed")
    return parts[0] if len(parts) == 1 else b"".join(parts)
