"""From what went wrong to what a system call answers: the one errno table of the mount.

The kernel can be told a number and nothing else, so an error loses its text here; whoever translates one logs it
first. The table is searched from the class of the error upwards, so a new error class gets the number of its group.
An image that is wrong, in whichever way, is an I/O error for who reads it; only a name that is not there is "not
found", and a blob that is missing is not a name. Pure; thread safe.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    MountError,
    NotFoundError,
    PuzzlefsError,
    SourceError,
    StorageError,
    UnsafePathError,
    UnsupportedError,
    VerityNotEnabledError,
    VerityUnavailableError,
)

ERRNO: Final[Mapping[type[BaseException], int]] = MappingProxyType(
    {
        NotFoundError: errno.ENOENT,
        BlobNotFoundError: errno.EIO,
        FormatError: errno.EIO,
        IntegrityError: errno.EIO,
        UnsafePathError: errno.EIO,
        VerityUnavailableError: errno.EIO,
        VerityNotEnabledError: errno.EIO,
        StorageError: errno.EIO,
        SourceError: errno.EIO,
        MountError: errno.EIO,
        UnsupportedError: errno.EOPNOTSUPP,
        InvalidArgumentError: errno.EINVAL,
        PuzzlefsError: errno.EIO,
        MemoryError: errno.ENOMEM,
        OSError: errno.EIO,
        Exception: errno.EIO,
    }
)
"""Error class → errno. Programs see these numbers; ``tests/unit/test_mount_errors.py`` pins each."""


class RequestError(Exception):
    """What a request is answered with when it fails.

    Attributes:
        errno: the number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


def errno_of(error: BaseException) -> int:
    """The number that a request which failed with ``error`` is answered with."""
    if isinstance(error, RequestError):
        return error.errno
    for kind in type(error).__mro__:
        number = ERRNO.get(kind)
        if number is not None:
            return number
    return errno.EIO
