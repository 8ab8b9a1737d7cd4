"""The errno table, entry by entry."""

from __future__ import annotations

import errno

import pytest

from puzzlefs import errors
from puzzlefs.errors import PuzzlefsError
from puzzlefs.mount.errors import ERRNO, RequestError, errno_of

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (errors.FormatError("x"), errno.EIO),
        (errors.UnsupportedVersionError(9), errno.EIO),
        (errors.IntegrityError("x", expected="a", actual="b"), errno.EIO),
        (errors.NotFoundError("x"), errno.ENOENT),
        (errors.TagNotFoundError("x", "t", ()), errno.ENOENT),
        (errors.BlobNotFoundError("00", "path"), errno.EIO),
        (errors.PathNotFoundError("x", "path"), errno.ENOENT),
        (errors.PathError("x", "path"), errno.EINVAL),
        (errors.UnsafePathError("x"), errno.EIO),
        (errors.VerityUnavailableError("x"), errno.EIO),
        (errors.VerityNotEnabledError("x"), errno.EIO),
        (errors.InvalidArgumentError("x"), errno.EINVAL),
        (errors.UnsupportedError("x"), errno.EOPNOTSUPP),
        (errors.SourceError("x"), errno.EIO),
        (errors.StorageError("x"), errno.EIO),
        (errors.MountError("x"), errno.EIO),
        (PuzzlefsError("x"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (PermissionError(errno.EACCES, "x"), errno.EIO),
        (OSError(errno.ENOSPC, "x"), errno.EIO),
        (ZeroDivisionError(), errno.EIO),
        (RequestError(errno.EROFS), errno.EROFS),
        (KeyboardInterrupt(), errno.EIO),
    ],
    ids=lambda value: type(value).__name__,
)
def test_number(error: BaseException, number: int) -> None:
    assert errno_of(error) == number


def test_every_class_of_the_tree_has_a_row() -> None:
    rows = set(ERRNO)
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, PuzzlefsError):
            assert rows & set(kind.__mro__[: kind.__mro__.index(PuzzlefsError)]) or kind is PuzzlefsError, kind
