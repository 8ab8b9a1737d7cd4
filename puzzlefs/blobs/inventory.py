"""What lies in the directory of blobs: blobs by name, and what programs that were killed have left.

Names only: nothing is opened but leases.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from puzzlefs.blobs.host import close_read, storage_errors
from puzzlefs.blobs.layout import TEMPORARY_PREFIX, Layout
from puzzlefs.blobs.lease import LEASE_PREFIX, is_live
from puzzlefs.digest import SHA256_SIZE, Digest, digests_of

_HEX_LENGTH: Final = 2 * SHA256_SIZE
_HEX_DIGITS: Final = re.compile("[0-9a-f]*")


def blobs_in(layout: Layout) -> list[Digest]:
    """The regular files that have names of blobs, as the directory lists them.

    Raises:
        StorageError: if the directory cannot be read.
    """
    with storage_errors("list the blobs of", layout.path), os.scandir(layout.blobs_fd) as found:
        names = [
            entry.name for entry in found if len(entry.name) == _HEX_LENGTH and entry.is_file(follow_symlinks=False)
        ]
    # There can be hundreds of thousands, so all of them are looked at and converted at once.
    if not _HEX_DIGITS.fullmatch("".join(names)):
        names = [name for name in names if _HEX_DIGITS.fullmatch(name)]
    return digests_of("".join(names))


def blob_sizes(layout: Layout, digests: Iterable[Digest]) -> dict[Digest, int]:
    """The bytes of those blobs that are there, as regular files.

    Raises:
        StorageError: if the host cannot tell.
    """
    sizes: dict[Digest, int] = {}
    with storage_errors("look at the blobs of", layout.path):
        directory = layout.blobs_fd
        for digest in digests:
            try:
                status = os.stat(digest.hex(), dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                sizes[digest] = status.st_size
    return sizes


@dataclass(frozen=True, slots=True)
class LeftOver:
    """A temporary file whose owner is gone.

    Attributes:
        directory: where it is, a descriptor.
        name: its name there.
        size: its bytes.
    """

    directory: int
    name: str
    size: int


def left_overs(layout: Layout, grace: float) -> Iterator[LeftOver]:
    """The temporary files and leases in a layout that nobody uses any more.

    While the directory of blobs is not locked (``collecting``), a lease that is just being taken may look abandoned.

    Raises:
        StorageError: if the host fails.
    """
    with storage_errors("look for left-over files in", layout.path):
        names = [name for name in os.listdir(layout.blobs_fd) if name.startswith((TEMPORARY_PREFIX, LEASE_PREFIX))]
        live: set[str] = set()
        for name in names:
            if name.startswith(LEASE_PREFIX):
                if is_live(layout.blobs_fd, name):
                    live.add(name.removeprefix(LEASE_PREFIX))
                else:
                    yield from _left_over(layout.blobs_fd, name, 0)
        for name in names:
            session = name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
            if name.startswith(TEMPORARY_PREFIX) and session not in live:
                yield from _left_over(layout.blobs_fd, name, grace)
        fd = os.open(layout.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(fd):
                if name.startswith(TEMPORARY_PREFIX):
                    yield from _left_over(fd, name, grace)
        finally:
            close_read(fd)


def _left_over(directory: int, name: str, grace: float) -> Iterator[LeftOver]:
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        is_old = max(status.st_mtime, status.st_ctime) + grace <= time.time()
        if is_old and not stat.S_ISDIR(status.st_mode):
            yield LeftOver(directory, name, status.st_size)
