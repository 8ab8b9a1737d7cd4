"""Linux namespaces and the mounts inside them: the system calls that Python has no function for.

Each function is one system call (namespaces(7), mount(2), pivot_root(2), prctl(2), mount_setattr(2)) with its flags by
name. They raise ``OSError`` with what the kernel said and the path it is about, and nothing else; what that means for
a user says whoever calls. Nothing here keeps state.

Paths are taken as they are: whoever mounts at a place that an image names opens it without following links first
(``open_beneath``), and mounts at ``fd_path`` of that descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000  # <linux/sched.h>
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000

MS_NOSUID: Final = 1 << 1  # <linux/mount.h>
MS_NODEV: Final = 1 << 2
MS_NOEXEC: Final = 1 << 3
MS_BIND: Final = 1 << 12
MS_REC: Final = 1 << 14
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 1 << 1  # <linux/fs.h>
UMOUNT_NOFOLLOW: Final = 1 << 3

_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>

_MOUNT_SETATTR: Final = 442  # the same number on every architecture that has it
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOUNT_ATTR_RDONLY: Final = 1
_MOUNT_ATTR: Final = struct.Struct("=4Q")  # attr_set, attr_clr, propagation, userns_fd

_STATMOUNT: Final = 457  # likewise
_MNT_ID_REQUEST: Final = struct.Struct("=IIQQ")  # struct mnt_id_req: size, spare, mnt_id, param
_STATMOUNT_MNT_BASIC: Final = 2
_STATMOUNT_SIZE: Final = 512  # of the fixed part of struct statmount

_AT_FDCWD: Final = -100  # <linux/fcntl.h>
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_MNT_ID_UNIQUE: Final = 0x4000  # <linux/stat.h>
_STATX: Final = struct.Struct("=I140xQ104x")  # struct statx: stx_mask, stx_mnt_id

_libc: Final = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces of ``flags`` for new ones; with ``CLONE_NEWPID`` the next child is in the new one.

    Raises:
        OSError: if this user or this kernel may not.
    """
    _check(_libc.unshare(flags), None)


def mount(source: str, target: str | Path, fs_type: str, flags: int = 0, data: str = "") -> None:
    """Mount a file system, or bind (``MS_BIND``), or change how mounts propagate.

    Raises:
        OSError: what the kernel said, with ``target``.
    """
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(fs_type),
            ctypes.c_ulong(flags),
            os.fsencode(data) if data else None,
        ),
        target,
    )


def bind(source: str | Path, target: str | Path, *, recursive: bool = False) -> None:
    """Show what is at ``source`` at ``target``, too.

    Raises:
        OSError: what the kernel said, with ``target``.
    """
    mount(os.fspath(source), target, "", MS_BIND | (MS_REC if recursive else 0))


def unmount(target: str | Path, flags: int = 0) -> None:
    """Unmount what is on top at ``target``.

    Raises:
        OSError: what the kernel said, with ``target``.
    """
    _check(_libc.umount2(os.fsencode(target), flags), target)


def detach(target: str | Path) -> None:
    """Take the mount at ``target`` away at once; it ends with its last user.

    Raises:
        OSError: what the kernel said, with ``target``.
    """
    unmount(target, MNT_DETACH)


def unique_mount_id(path: str | Path) -> int:
    """The number of the mount that is on top at ``path``, which no other mount ever gets; 0 if it cannot be had.

    Linux has it since 6.8 (statx(2), ``STATX_MNT_ID_UNIQUE``). An overlay asks the file systems below it.
    """
    statx = getattr(_libc, "statx", None)  # not every C library has it
    answer = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), flags, _STATX_MNT_ID_UNIQUE, answer) != 0:
        return 0
    known, number = _STATX.unpack(answer.raw)
    return number if known & _STATX_MNT_ID_UNIQUE else 0


def has_mount(unique_id: int) -> bool | None:
    """Whether the mount with this ``unique_mount_id`` is in this mount namespace (statmount(2), Linux 6.8).

    No file system is asked. ``None`` where the kernel, or a filter of system calls, does not let it be known.
    """
    request = _MNT_ID_REQUEST.pack(_MNT_ID_REQUEST.size, 0, unique_id, _STATMOUNT_MNT_BASIC)
    answer = ctypes.create_string_buffer(_STATMOUNT_SIZE)
    size = ctypes.c_size_t(_STATMOUNT_SIZE)
    if _libc.syscall(ctypes.c_long(_STATMOUNT), request, answer, size, ctypes.c_uint(0)) == 0:
        return True
    return False if ctypes.get_errno() == errno.ENOENT else None


def make_read_only(mount_fd: int, *, recursive: bool = False) -> None:
    """Make the mount whose root is open as ``mount_fd`` read-only, with all mounts below it if ``recursive``.

    Raises:
        OSError: what the kernel said; ``ENOSYS`` before Linux 5.12.
    """
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    attributes = _MOUNT_ATTR.pack(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _libc.syscall(
            ctypes.c_long(_MOUNT_SETATTR),
            ctypes.c_int(mount_fd),
            b"",
            ctypes.c_uint(flags),
            attributes,
            ctypes.c_size_t(len(attributes)),
        ),
        None,
    )


def change_root(root: str | Path) -> None:
    """Make the mount at ``root`` the root of this mount namespace, and take the old root away.

    Raises:
        OSError: what the kernel said, with ``root``.
    """
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), root)  # the old root now lies on top of the new one: pivot_root(2), NOTES
    detach(".")
    os.chdir("/")


def die_with_parent(number: int) -> None:
    """Get the signal ``number`` when the thread that forked this process ends.

    The caller checks afterwards whether that has happened already.

    Raises:
        OSError: if there is no such signal.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0), None)


def open_beneath(root: str | Path, parts: Sequence[bytes]) -> int:
    """A descriptor (``O_PATH``) for what ``parts`` lead to from ``root`` on, which follows no link on the way.

    Raises:
        OSError: if there is no such path, or a link in it.
    """
    fd = os.open(root, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
    for number, part in enumerate(parts, 1):
        flags = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_DIRECTORY if number < len(parts) else 0)
        try:
            below = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def fd_path(fd: int) -> str:
    """A path that leads to exactly what ``fd`` is open on."""
    return f"/proc/self/fd/{fd}"


def _check(result: int, path: str | Path | None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if path is None else os.fspath(path))
