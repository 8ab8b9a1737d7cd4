"""Reading a large file into memory and hashing it at the same time.

The metadata of a million inodes are 150 MB. To copy them out of the host's page cache takes as long as to hash them,
and whoever mounts waits for both; on two processors, one after the other is twice as long as it has to be.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from typing import Final

from puzzlefs.blobs.host import read_bounded
from puzzlefs.digest import Digest

Content = bytes | mmap.mmap
"""What was read: bytes, or anonymous memory of this process, whose slices are bytes."""

_LARGE: Final = 1 << 20
"""Bytes from which on a thread is worth starting, which takes 0.1 ms."""
_BLOCK_SIZE: Final = 1 << 20


def read_and_hash(fd: int, what: str, limit: int) -> tuple[Content, Digest]:
    """Everything in an open file, and its sha256: of the very bytes that are returned.

    Raises:
        FormatError: if that is more than ``limit`` bytes; the message begins with ``what``.
        OSError: if the host cannot read it.
    """
    size = os.fstat(fd).st_size
    if _LARGE <= size <= limit:
        return _Overlapped(fd, size).run()
    return read_then_hash(fd, what, limit)


def read_then_hash(fd: int, what: str, limit: int) -> tuple[bytes, Digest]:
    """As ``read_and_hash``, one after the other, as bytes whatever the size."""
    data = read_bounded(fd, what, limit)
    return data, Digest.of(data)


class _Overlapped:
    """One thread reads, the other one hashes what is there.

    A file that shrinks meanwhile ends in zeros, which are hashed; of one that grows, what it had is read.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._content = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._content)
        self._filled = 0
        self._is_done = False
        self._progress = threading.Semaphore(0)
        self._failure: BaseException | None = None

    def run(self) -> tuple[Content, Digest]:
        thread = threading.Thread(target=self._read, name="reader", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no room for a thread
            self._read()
        whole = hashlib.sha256()
        hashed = 0
        try:
            while not self._is_done or hashed < self._filled:
                self._progress.acquire()
                filled = self._filled
                whole.update(self._view[hashed:filled])
                hashed = filled
        finally:
            self._is_done = True  # also if a signal ends this: the descriptor is the caller's to close
            if thread.ident is not None:
                thread.join()
        if self._failure is not None:
            raise self._failure
        whole.update(self._view[hashed:])
        return self._content, Digest(whole.digest())

    def _read(self) -> None:
        try:
            while not self._is_done:
                begin = self._filled
                count = os.preadv(self._fd, [self._view[begin : begin + _BLOCK_SIZE]], begin)
                self._filled = begin + count
                if count == 0 or self._filled == len(self._view):
                    self._is_done = True
                self._progress.release()
        except BaseException as error:  # noqa: BLE001  it is raised where somebody waits
            self._failure = error
            self._is_done = True
            self._progress.release()
