"""Taking a mount away from outside.

Root asks the kernel; everybody else asks ``fusermount3``, which is set-user-ID for that. Only mounts of PuzzleFS are
taken away: whoever wants another one gone has ``umount``.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from puzzlefs.errors import MountError, NotFoundError, UnsupportedError
from puzzlefs.mount.mountinfo import mounted_at

_UMOUNT_NOFOLLOW: Final = 8  # <linux/fs.h>: do not follow a link that was put in place of the mount point
_FS_TYPE: Final = "fuse.puzzlefs"


def unmount(mountpoint: Path) -> None:
    """Unmount the image that is mounted at ``mountpoint``. Its server ends by itself.

    Raises:
        NotFoundError: if nothing is mounted there.
        MountError: if something else is mounted there, if it is in use, or if this user may not.
        UnsupportedError: if this user needs ``fusermount3``, which is missing.
    """
    # not strict: a link loop or a dead server must not keep us from looking into the kernel's table
    point = Path(os.path.realpath(mountpoint))
    mount = mounted_at(point)
    if mount is None:
        raise NotFoundError(f"{mountpoint} is not a mount point")
    if mount.fs_type != _FS_TYPE:
        raise MountError(
            f"{mountpoint} is a mount of type {mount.fs_type}, not one of PuzzleFS", hint=f"use umount {point}"
        )
    if os.geteuid() == 0:
        _unmount_as_root(point)
    else:
        _unmount_as_user(point)


def _unmount_as_root(point: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), _UMOUNT_NOFOLLOW) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EBUSY:
        raise _busy(point, f"umount -l {point}")
    raise MountError(f"{point} cannot be unmounted: {os.strerror(number)}")


def _unmount_as_user(point: Path) -> None:
    import shutil  # noqa: PLC0415  neither root nor whoever mounts needs these
    import subprocess  # noqa: PLC0415

    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise UnsupportedError("fusermount3 is not installed", hint="install the package fuse3, or unmount as root")
    # without LC_ALL the word "busy" could come in another language
    environment = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(
        [program, "-u", "--", os.fspath(point)],
        capture_output=True,
        env=environment,
        check=False,
        text=True,
        errors="replace",
    )
    if result.returncode == 0:
        return
    said = " ".join(result.stderr.split())
    if "busy" in said:
        raise _busy(point, f"fusermount3 -u -z {point}")
    raise MountError(f"{point} cannot be unmounted: {said or f'{program} gave exit code {result.returncode}'}")


def _busy(point: Path, detach: str) -> MountError:
    return MountError(
        f"{point} is busy: a file in it is open, or it is the working directory of a process",
        hint=f"find it with: fuser -vm {point}; or detach the mount now and let it end with its last user: {detach}",
    )
