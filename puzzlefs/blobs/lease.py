"""Leases: what a build or a mount relies on and no tag may name, written down where ``gc`` looks before it removes.

A lease is a file ``.lease-…`` beside the blobs, held with a ``flock`` as long as its owner lives: no process number
that could mean somebody else by now, and nothing to clean up after a ``kill -9``, for a lease that nobody holds counts
for nothing. Each line of it names a root::

    blob <64 hex>        this blob
    manifest <64 hex>    this OCI manifest, and whatever it names
    rootfs <64 hex>      this rootfs blob of versions 1 and 2, and whatever it names

The other half is a ``flock`` on the directory of the blobs itself, which all layouts that share it have in common. Who
relies on a blob that is there looks and writes the line under the shared lock (``claim``); ``gc`` reads all leases,
lists the directory and takes names away under the exclusive one. So either ``gc`` sees the line, or the owner sees
that the blob is gone. No clock is involved. What a build adds is named before it gets its name (``name``), likewise.

The lock is held for microseconds by owners, and for as long as it takes to rename what is unreachable by ``gc``.

A ``Lease`` may be used from several threads; by a forked process through ``in_fork``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

from puzzlefs.blobs.host import close_read, open_regular, read_bounded, regular_file_size, write_all
from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError

LEASE_PREFIX: Final = ".lease-"
"""How names of leases begin. A ``gc`` of another version must find them: never change it."""

_MAX_LEASE_SIZE: Final = 512 << 20
"""Bytes of the largest lease that is read: some seven million blobs."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_SETTLED: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_POLL_SECONDS: Final = 0.02


class Root(Enum):
    """What kind of thing a line names. The values are in files."""

    BLOB = "blob"
    MANIFEST = "manifest"
    ROOTFS = "rootfs"


_KIND: Final = "|".join(kind.value for kind in Root)
_BEGINNING: Final = "|".join(kind.value[:length] for kind in Root for length in range(1, len(kind.value)))
_LINE: Final = re.compile(rf"(?:{_BEGINNING}|(?:{_KIND})(?: [0-9a-f]{{0,64}})?)?({_KIND}) ([0-9a-f]{{64}})")
"""A line. Before it there may be what was written of another one until the disk was full; whoever tried to knows that.
What is last and not complete is no line."""


class Lease:
    """What somebody relies on, for as long as this is open. ``close`` it."""

    def __init__(self, blobs_fd: int, session: str | None = None, *, patience: float | None = None) -> None:
        """Take a lease on blobs in a directory, on nothing yet.

        Args:
            blobs_fd: a descriptor of the directory, which stays open as long as the lease.
            session: what to call it; nobody else may.
            patience: seconds to wait for a ``gc`` that is at work; ``None``: until it has finished.

        Raises:
            OSError: as the host reports it; ``TimeoutError`` if patience ended.
        """
        self.name_on_disk = LEASE_PREFIX + (session or os.urandom(8).hex())
        self._mutex = threading.Lock()
        self._blobs_fd = blobs_fd
        self._directory = os.open(".", _DIRECTORY, dir_fd=blobs_fd)  # a lock belongs to an open file: one of our own
        self._fd = -1
        try:
            with self._locked(patience):
                self._fd = os.open(self.name_on_disk, _NEW, 0o644, dir_fd=self._directory)
                fcntl.flock(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self.close()
            raise

    def claim(self, digest: Digest, size: int) -> bool:
        """Rely on a blob, if it is there with this size; whether it is.

        Raises:
            OSError: as the host reports it.
        """
        return self.claim_all(((digest, size),))

    def claim_all(self, blobs: Iterable[tuple[Digest, int]]) -> bool:
        """Rely on blobs, if all of them are there with these sizes; whether they are.

        Raises:
            OSError: as the host reports it.
        """
        lines: list[str] = []
        with self._locked():
            for digest, size in blobs:
                name = digest.hex()
                if regular_file_size(name, self._directory) != size:
                    return False
                lines.append(f"blob {name}\n")
            write_all(self._fd, "".join(lines).encode())
        return True

    def name(self, roots: Iterable[Digest], kind: Root = Root.BLOB) -> None:
        """Rely on roots, whether they are there or not.

        Raises:
            OSError: as the host reports it.
        """
        text = "".join([f"{kind.value} {digest.hex()}\n" for digest in roots])
        with self._locked():
            write_all(self._fd, text.encode())

    def settle(self) -> None:
        """Name nothing more: no file is held open for writing from here on, so the host can make its disk read-only.

        Raises:
            OSError: as the host reports it; all is as before then.
        """
        with self._locked():  # so nobody looks whether it is held
            fd = os.open(self.name_on_disk, _SETTLED, dir_fd=self._directory)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.close(self._fd)
            self._fd = fd

    def in_fork(self) -> Lease:
        """The same lease for a process that is about to be forked, which must not close it."""
        other = object.__new__(Lease)
        other.name_on_disk = self.name_on_disk
        other._mutex = threading.Lock()
        other._blobs_fd = self._blobs_fd
        other._directory = -1  # opened over there: the lock must not be the same
        other._fd = self._fd
        return other

    def close(self) -> None:
        """Give it up. Calling it twice is fine."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.name_on_disk, dir_fd=self._directory)
            close_read(self._fd)
            self._fd = -1
        if self._directory >= 0:
            close_read(self._directory)
            self._directory = -1

    @contextlib.contextmanager
    def _locked(self, patience: float | None = None) -> Iterator[None]:
        with self._mutex:
            if self._directory < 0:
                self._directory = os.open(".", _DIRECTORY, dir_fd=self._blobs_fd)
            _flock(self._directory, fcntl.LOCK_SH, patience)
            try:
                yield
            finally:
                fcntl.flock(self._directory, fcntl.LOCK_UN)


@contextlib.contextmanager
def collecting(blobs_fd: int, patience: float) -> Iterator[None]:
    """Hold the exclusive lock on a directory of blobs, so that nobody can begin to rely on anything.

    Raises:
        TimeoutError: if somebody held it for ``patience`` seconds.
        OSError: as the host reports it.
    """
    fd = os.open(".", _DIRECTORY, dir_fd=blobs_fd)
    try:
        _flock(fd, fcntl.LOCK_EX, patience)
        yield
    finally:
        close_read(fd)


def is_live(blobs_fd: int, name: str) -> bool:
    """Whether somebody holds the lease of this name. Only while ``collecting``: one that is made must not be seen.

    Raises:
        OSError: as the host reports it.
    """
    try:
        fd = open_regular(name, f"lease {name}", dir_fd=blobs_fd)
    except (FileNotFoundError, FormatError):  # what is no file is nobody's lease
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        close_read(fd)
    return False


def read_lease(blobs_fd: int, name: str) -> list[tuple[Root, Digest]]:
    """The roots that a lease names; empty if it is gone.

    Raises:
        FormatError: if it is not a lease, or of a version of this program that knows more kinds of roots.
        OSError: as the host reports it.
    """
    what = f"lease {name}"
    try:
        fd = open_regular(name, what, dir_fd=blobs_fd)
    except FileNotFoundError:
        return []
    try:
        data = read_bounded(fd, what, _MAX_LEASE_SIZE)
    finally:
        close_read(fd)
    roots: list[tuple[Root, Digest]] = []
    for line in data.decode("ascii", "replace").split("\n")[:-1]:
        found = _LINE.fullmatch(line)
        if found is None:
            raise FormatError(f"{what}: {line[:80]!r} names nothing that this version knows")
        roots.append((Root(found[1]), Digest.from_hex(found[2])))
    return roots


def _flock(fd: int, how: int, patience: float | None) -> None:
    if patience is None:
        fcntl.flock(fd, how)
        return
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise TimeoutError("somebody holds the lock of the directory") from None
            time.sleep(_POLL_SECONDS)
        else:
            return
