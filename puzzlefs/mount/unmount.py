"""Taking a mount away from outside.

Root asks the kernel; everybody else asks ``fusermount3``, which is set-user-ID for that. Only mounts of PuzzleFS are
taken away: whoever wants another one gone has ``umount``.

Of a writable mount (``writable``) the overlay goes first; if that is in use, nothing is changed. What its server would
clear away is cleared away here if the server is dead, so that everything is gone when ``unmount`` returns.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from puzzlefs.errors import MountError, NotFoundError, UnsupportedError
from puzzlefs.mount.mountinfo import Mount, all_mounts, on_top
from puzzlefs.mount.overlay import IMAGE_FS_TYPE, RO, unmount_overlay, writable_mount

_UMOUNT_NOFOLLOW: Final = 8  # <linux/fs.h>: do not follow a link that was put in place of the mount point


def unmount(mountpoint: Path) -> None:
    """Unmount the image that is mounted at ``mountpoint``. Its server ends by itself.

    Of a writable mount the directories in the mount point are removed; what was written is lost, unless its upper
    directory is a persistent one, which stays as it is. This clears away what is left of a writable mount, too, if
    its overlay or its server is gone.

    Raises:
        NotFoundError: if nothing is mounted there.
        MountError: if something else is mounted there, if it is in use, or if this user may not.
        UnsupportedError: if this user needs ``fusermount3``, which is missing.
    """
    # not strict: a link loop or a dead server must not keep us from looking into the kernel's table
    point = Path(os.path.realpath(mountpoint))
    mounts = all_mounts()
    writable = writable_mount(mounts, point)
    if writable is not None:
        _need_root(point)
        _unmount_writable(point, writable[1])
        return
    mount = on_top(mounts, point)
    if (mount is None or mount.fs_type != IMAGE_FS_TYPE) and _clear_rest(mounts, point):
        return
    if mount is None:
        raise NotFoundError(f"{mountpoint} is not a mount point")
    if mount.fs_type != IMAGE_FS_TYPE:
        raise MountError(
            f"{mountpoint} is a mount of type {mount.fs_type}, not one of PuzzleFS", hint=f"use umount {point}"
        )
    if os.geteuid() == 0:
        _unmount_as_root(point)
    else:
        _unmount_as_user(point)


def _unmount_writable(point: Path, image: Mount | None) -> None:
    number = unmount_overlay(point)
    if number == errno.EBUSY:
        inside = [mount.point for mount in all_mounts() if point in mount.point.parents and mount != image]
        if inside:
            raise MountError(
                f"{point} is busy: something else is mounted in it, at {inside[-1]}",
                hint=f"unmount that first: umount {inside[-1]}; or detach all of it: umount -l {point}",
            )
        raise _busy(point, f"umount -l {point}")
    if number:
        raise MountError(f"{point} cannot be unmounted: {os.strerror(number)}")
    _take_image_away(image)
    _clear(point)


def _clear_rest(mounts: list[Mount], point: Path) -> bool:
    """Clear away a writable mount without an overlay; whether there is one."""
    from puzzlefs.mount.record import read_record  # noqa: PLC0415  whoever mounts or unmounts an image does not pay for it

    try:
        top = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if read_record(top, point) is None:
            return False
    except MountError:
        return False  # a file of the record's name, in a directory where nothing is mounted
    finally:
        os.close(top)
    _need_root(point)
    image = on_top(mounts, point / RO)
    if image is not None and image.fs_type == IMAGE_FS_TYPE:
        _take_image_away(image)
    _clear(point)
    return True


def _take_image_away(image: Mount | None) -> None:
    """Unmount the image below an overlay that is gone. Nobody but its server knows it, unless the server did it."""
    if image is not None and on_top(all_mounts(), image.point) == image:
        number = unmount_overlay(image.point, detach=True)
        if number and on_top(all_mounts(), image.point) == image:
            raise MountError(f"{image.point} cannot be unmounted: {os.strerror(number)}")


def _clear(point: Path) -> None:
    from puzzlefs.mount.place import clear_left_over  # noqa: PLC0415  as above

    top = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        clear_left_over(top, point)
    finally:
        os.close(top)


def _need_root(point: Path) -> None:
    if os.geteuid() != 0:
        raise MountError(f"{point} is a writable mount, which only root can unmount", hint="run it as root")


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
