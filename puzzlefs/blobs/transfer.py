"""A blob of one layout as a file of another, in the cheapest way that the file systems allow.

* A hard link costs nothing and takes no room. Both layouts then depend on one file, so only one that nobody but its
  owner, who is the one that links it, may write to.
* A clone (``FICLONE`` of ``ioctl_ficlone(2)``) shares the blocks until one of the two is written to.
* Otherwise the bytes are copied.

Whatever it is, it counts only once its bytes have been hashed: of a link and a clone those of the new file, of a copy
those that are written. Layouts are reached through descriptors, so nobody can put another file in between.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import hashlib
import os
from collections.abc import Iterator
from typing import Final

from puzzlefs.blobs.host import hash_file, storage_error, write_all
from puzzlefs.digest import Digest
from puzzlefs.errors import IntegrityError, StorageError

_FICLONE: Final = 0x40049409
_BLOCK_SIZE: Final = 1 << 20
_WRITABLE_BY_OTHERS: Final = 0o022


class Transferred(enum.Enum):
    """How a blob became a file of another layout."""

    LINKED = "linked"
    CLONED = "cloned"
    COPIED = "copied"


class UnreadableBlobError(StorageError):
    """The blob cannot be read. Everything else that fails is about where it was to go."""


@contextlib.contextmanager
def reading(subject: object) -> Iterator[None]:
    """An error of the host inside is one of reading ``subject``."""
    try:
        yield
    except OSError as error:
        told = storage_error(error, "read", subject)
        raise UnreadableBlobError(told.message, hint=told.hint) from error


def transfer(source: int, digest: Digest, directory: int, name: str, subject: str) -> Transferred:
    """Make the file ``name`` in ``directory`` of an open blob.

    Args:
        source: the open blob, at its beginning; its position moves.
        digest: its sha256.
        directory: a descriptor of the directory.
        name: the new file, which does not exist.
        subject: what to call the blob in messages.

    Returns:
        How it was done.

    Raises:
        IntegrityError: if it is not what ``digest`` says. There is no new file then, as in every case of failure.
        UnreadableBlobError: if it cannot be read.
        OSError: if the new file cannot be made.
    """
    try:
        if _link(source, directory, name):
            with reading(subject):
                how, actual = Transferred.LINKED, hash_file(source)
        else:
            how, actual = _hash_of_copy(source, directory, name, subject)
        if actual != digest:
            raise IntegrityError(
                subject, expected=digest.hex(), actual=actual.hex(), hint="restore it from a good copy"
            )
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise
    return how


def _link(source: int, directory: int, name: str) -> bool:
    status = os.fstat(source)
    if status.st_uid != os.geteuid() or status.st_mode & _WRITABLE_BY_OTHERS:
        return False
    try:
        os.link(f"/proc/self/fd/{source}", name, dst_dir_fd=directory, follow_symlinks=True)
    except OSError:  # another file system, too many links, no /proc: there are other ways
        return False
    return True


def _hash_of_copy(source: int, directory: int, name: str, subject: str) -> tuple[Transferred, Digest]:
    """Clone or copy the blob; the digest of what was written."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    target = os.open(name, flags, 0o644, dir_fd=directory)
    try:
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError:
            pass
        else:
            return Transferred.CLONED, hash_file(target)
        hasher = hashlib.sha256()
        while True:
            with reading(subject):
                block = os.read(source, _BLOCK_SIZE)
            if not block:
                return Transferred.COPIED, Digest(hasher.digest())
            hasher.update(block)
            write_all(target, block)
    finally:
        os.close(target)
