"""The directories of a writable mount, and the file that says what is mounted.

A writable mount at ``MNT`` has these below what the overlay shows there::

    MNT/ro             where the image is mounted
    MNT/upper, /work   the overlay's directories; with a persistent upper directory UPPER: UPPER and UPPER.work
    MNT/puzzlefs.json  the *record*: which manifest of which layout is mounted, and where the changes are

Rules:

* everything in ``MNT`` is made here, and removed here when the mount ends, but nothing that was there before; the
  record says whose it is. A record without a mount is what a crash or a power cut left: the next mount, or ``umount``,
  clears it away;
* whoever makes or clears holds a lock on the directory ``MNT`` meanwhile, so that the end of one mount and the
  beginning of the next don't meet;
* the server of a mount holds a lock on its work directory for as long as it lives, in whichever namespace that is: two
  mounts cannot have one upper directory;
* a persistent upper directory forgets the inodes of the image that it was written over (``origins``);
* a fresh upper directory gets the attributes of the image's root, because those of the upper directory are what the
  root of the mount shows. Fresh is one that is empty and has no work directory yet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from puzzlefs.digest import Digest
from puzzlefs.errors import InvalidArgumentError, MountError
from puzzlefs.mount.mountinfo import RO, mounted_at
from puzzlefs.mount.namespace import fd_path
from puzzlefs.mount.origins import forget_origins
from puzzlefs.mount.record import DIRECTORY, RECORD, Record, read_record, write_record
from puzzlefs.oci import ImageReference

UPPER: Final = "upper"
WORK: Final = "work"
WORK_SUFFIX: Final = ".work"
"""What follows the name of a persistent upper directory in that of its work directory."""

_LOCK_WAIT: Final = 3.0
"""Seconds in which the server of a mount that was taken away lets go of its directories."""
_TURN_WAIT: Final = 20.0
"""Seconds in which others finish what they make or clear away in the same mount point."""
_POLL_INTERVAL: Final = 0.01
_KERNELS_OWN: Final = frozenset({"work", "index"})
"""What the kernel makes in a work directory."""
_PRIVATE_XATTRS: Final = ("trusted.overlay.", "user.overlay.")


class Place:
    """The directories of one mount, held open.

    Attributes:
        point: the mount point.
        top: a descriptor of it, which goes on showing what the overlay hides.
        upper_path, upper_fd: the overlay's upper directory.
        work_path, work_fd: its work directory.
        is_fresh: whether nothing has been written into ``upper`` yet.
    """

    def __init__(self, point: Path, top: int) -> None:
        """Not for callers: use ``made``."""
        self.point = point
        self.top = top
        self.upper_path = point / UPPER
        self.work_path = point / WORK
        self.upper_fd = -1
        self.work_fd = -1
        self.is_fresh = True
        self._undo: list[Path] = []
        self._record: Record | None = None

    @property
    def record(self) -> Record:
        """What is mounted."""
        if self._record is None:
            raise MountError(f"nothing is mounted at {self.point}")
        return self._record

    def note_device(self, device: str) -> None:
        """Write into the record which overlay it belongs to."""
        self._write(replace(self.record, device=device))

    def adopt_root(self, root: int) -> None:
        """Give a fresh upper directory the attributes of the directory that the descriptor ``root`` stands for.

        Raises:
            MountError: if the host refuses one.
        """
        try:
            status = os.fstat(root)
            os.fchown(self.upper_fd, status.st_uid, status.st_gid)
            os.fchmod(self.upper_fd, stat.S_IMODE(status.st_mode))
            for name in os.listxattr(root):
                if not name.startswith(_PRIVATE_XATTRS):
                    os.setxattr(self.upper_fd, name, os.getxattr(root, name))
            os.utime(self.upper_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        except OSError as error:
            raise MountError(
                f"{self.upper_path} cannot have the attributes of the image's root directory: {error.strerror}",
                hint="name a directory on another file system with --persist",
            ) from error

    # ---- making

    def _make_or_nothing(self, image: ImageReference, manifest: Digest, upper: Path | None) -> None:
        try:
            self._make(image, manifest, upper)
        except BaseException:
            self._take_back()
            raise

    def _make(self, image: ImageReference, manifest: Digest, upper: Path | None) -> None:
        if read_record(self.top, self.point) is not None:
            raise MountError(
                f"a writable mount at {self.point} is being made, or has users that still see it",
                hint=f"let them end, or take it away: puzzlefs umount {self.point}",
            )
        if upper is None:
            self._make_in_point(UPPER)
            self._make_in_point(WORK)
        else:
            self._make_persistent(upper)
        self._make_in_point(RO)
        self.upper_fd = os.open(self.upper_path, DIRECTORY)
        self.work_fd = os.open(self.work_path, DIRECTORY)
        if not _lock(self.work_fd, _LOCK_WAIT):
            raise MountError(
                f"{self.upper_path} is in use by another writable mount",
                hint="unmount that one first; it may be in another mount namespace, that of a container",
            )
        if upper is not None:
            self._forget_origins()
        status = os.fstat(self.upper_fd)
        self._write(Record(os.urandom(16).hex(), image, manifest, upper, (status.st_dev, status.st_ino)))

    def _forget_origins(self) -> None:
        try:
            forget_origins(self.upper_fd)
        except OSError as error:
            path = os.fsdecode(error.filename).replace(fd_path(self.upper_fd), os.fspath(self.upper_path), 1)
            raise MountError(
                f"{path} cannot forget the image that it was written over: {error.strerror}",
                hint="it must be possible to change what is in the upper directory: see lsattr",
            ) from error

    def _make_in_point(self, name: str) -> None:
        try:
            os.mkdir(name, 0o755, dir_fd=self.top)
        except FileExistsError as error:
            raise MountError(
                f"{self.point / name} exists, and a writable mount at {self.point} needs that name",
                hint="move it away, or mount somewhere else",
            ) from error
        self._undo.append(self.point / name)

    def _make_persistent(self, upper: Path) -> None:
        work = upper.with_name(upper.name + WORK_SUFFIX)
        missing = [path for path in (upper, *upper.parents) if not path.exists()]
        upper.mkdir(parents=True, exist_ok=True)
        self._undo += reversed(missing)
        if mounted_at(upper) is not None:
            raise InvalidArgumentError(
                f"{upper} is a mount point, so that no work directory can be beside it on the same file system",
                hint=f"use a directory in it: --persist {upper / UPPER}",
            )
        try:
            work.mkdir(0o700)
        except FileExistsError:
            others = sorted({*os.listdir(work)} - _KERNELS_OWN) if work.is_dir() and not work.is_symlink() else ["?"]
            if others:
                raise MountError(
                    f"{work} exists, and is not the work directory that {upper} needs beside it",
                    hint="move it away, or give another directory with --persist",
                ) from None
            self.is_fresh = False
        else:
            self._undo.append(work)
            self.is_fresh = not os.listdir(upper)
        self.upper_path, self.work_path = upper, work

    def _write(self, record: Record) -> None:
        write_record(self.top, record)
        self._record = record

    def _take_back(self) -> None:
        """Remove what a mount that came to nothing has made."""
        for path in reversed(self._undo):
            with contextlib.suppress(OSError):  # what is not empty is not ours alone
                shutil.rmtree(path) if path == self.work_path else path.rmdir()

    def _close(self) -> None:
        for fd in (self.upper_fd, self.work_fd):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def made(point: Path, image: ImageReference, manifest: Digest, upper: Path | None) -> Iterator[Place]:
    """Make the directories of a writable mount; clear them away in the end.

    If the body raises, persistent directories that were made are removed as well, unless something is in them.

    Args:
        point: the mount point, without links.
        image: what will be mounted, its layout absolute.
        manifest: which manifest of it.
        upper: the persistent upper directory, absolute and without links; ``None`` for one that goes with the mount.

    Raises:
        MountError: if something is in the way, in use, or cannot be made.
        InvalidArgumentError: if ``upper`` cannot be an upper directory.
    """
    top = os.open(point, DIRECTORY)
    place = Place(point, top)
    try:
        _clear_left_over(top, point)
        with host_errors(point), _locked(top, point):
            place._make_or_nothing(image, manifest, upper)
        try:
            yield place
        except BaseException:
            with _locked(top, point):  # once for both: another mount may begin after it
                try:
                    _clear_if_there(top, point, place.record)
                finally:
                    place._take_back()
            raise
        with _locked(top, point):
            _clear_if_there(top, point, place.record)
    finally:
        place._close()
        os.close(top)


@contextlib.contextmanager
def host_errors(point: Path) -> Iterator[None]:
    """Turn what the host says while a mount is made into ``MountError``."""
    try:
        yield
    except OSError as error:
        subject = error.filename or point
        raise MountError(
            f"{point} cannot be mounted writable: {os.fsdecode(subject)}: {error.strerror}",
            hint="the mount point must be on a file system that can be written to",
        ) from error


def clear_left_over(point: Path) -> None:
    """Remove what a mount that is gone has left in the directory ``point``.

    Its server is given some seconds to do it. One that lives on, because somebody uses the mount still, for example a
    container, will do it later.

    Raises:
        MountError: if it cannot be removed, or the file with the name of the record is something else.
    """
    top = os.open(point, DIRECTORY)
    try:
        _clear_left_over(top, point)
    finally:
        os.close(top)


def _clear_left_over(top: int, point: Path) -> None:
    record = read_record(top, point)
    if record is None:
        return
    work = _open_work(top, record)
    try:
        if work < 0 or _lock(work, _LOCK_WAIT):
            with _locked(top, point):
                _clear_if_there(top, point, record)
    finally:
        if work >= 0:
            os.close(work)


def _clear_if_there(top: int, point: Path, record: Record) -> None:
    """Clear away the mount of ``record``, unless somebody else did, and perhaps began another one."""
    found = read_record(top, point)
    if found is not None and found.mount == record.mount:
        _clear(top, point, found)


def _open_work(top: int, record: Record) -> int:
    try:
        if record.upper is None:
            return os.open(WORK, DIRECTORY, dir_fd=top)
        return os.open(record.upper.with_name(record.upper.name + WORK_SUFFIX), DIRECTORY)
    except OSError:
        return -1


def _clear(top: int, point: Path, record: Record) -> None:
    """Remove what the mount of ``record`` has made in its mount point."""
    for name in (RO,) if record.upper is not None else (RO, UPPER, WORK):
        try:
            if name == RO:
                os.rmdir(name, dir_fd=top)
            else:
                shutil.rmtree(name, dir_fd=top)
        except FileNotFoundError:
            continue
        except OSError as error:
            is_mounted = name == RO and error.errno == errno.EBUSY
            what = "" if name == RO else f"{os.fsdecode(error.filename or name)}: "
            raise MountError(
                f"{point / name} cannot be removed: {what}{error.strerror}",
                hint=f"an image is still mounted there: puzzlefs umount {point}" if is_mounted else "remove it by hand",
            ) from error
    with contextlib.suppress(FileNotFoundError):
        os.unlink(RECORD, dir_fd=top)


@contextlib.contextmanager
def _locked(top: int, point: Path) -> Iterator[None]:
    if not _lock(top, _TURN_WAIT):
        raise MountError(f"{point} is locked by another program", hint="find it with: lslocks; and try again")
    try:
        yield
    finally:
        fcntl.flock(top, fcntl.LOCK_UN)


def _lock(fd: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_INTERVAL)
        else:
            return True
