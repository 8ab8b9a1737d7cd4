"""The few things this room needs from the host that Python's ``os`` does not offer, and its I/O errors as ours."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from puzzlefs.errors import StorageError

_HINTS = {
    errno.ENOSPC: "free some space there and run the command again",
    errno.EDQUOT: "free some of your quota there and run the command again",
    errno.EACCES: "check who may read and write there",
    errno.EPERM: "check who may read and write there",
    errno.EROFS: "the file system there is mounted read-only",
    errno.EIO: "the medium may be failing: see the kernel's log",
}

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
        hint = _HINTS.get(error.errno or 0, "")
        raise StorageError(f"cannot {action} {path}: {error.strerror or error}", hint=hint) from error
