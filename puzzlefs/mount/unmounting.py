"""Taking a mount away from outside.

Root asks the kernel; everybody else asks ``fusermount3``, which is set-user-ID for that. Only mounts of PuzzleFS are
taken away: whoever wants another one gone has ``umount``.

Of a writable mount (``writable``) the overlay goes first; if that is in use, nothing is changed. What its server would
clear away is cleared away here if the server is dead, so that everything is gone when ``unmount`` returns.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from puzzlefs.errors import MountError, NotFoundError, UnsupportedError
from puzzlefs.mount.mountinfo import IMAGE_FS_TYPE, RO, Mount, all_mounts, on_top, writable_mount


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
        overlay, image = writable
        _need_root(point)
        _unmount_as_root(overlay)
        _clear(point, image)
        return
    mount = on_top(mounts, point)
    if (mount is None or mount.fs_type != IMAGE_FS_TYPE) and _has_record(point):
        image = on_top(mounts, point / RO)
        _need_root(point)
        _clear(point, image if image is not None and image.fs_type == IMAGE_FS_TYPE else None)
        return
    if mount is None:
        raise NotFoundError(f"{mountpoint} is not a mount point")
    if mount.fs_type != IMAGE_FS_TYPE:
        raise MountError(
            f"{mountpoint} is a mount of type {mount.fs_type}, not one of PuzzleFS", hint=f"use umount {point}"
        )
    if os.geteuid() == 0:
        _unmount_as_root(mount)
    else:
        _unmount_as_user(point)


def _has_record(point: Path) -> bool:
    """Whether a writable mount without an overlay is at ``point``."""
    from puzzlefs.mount.record import DIRECTORY, read_record  # noqa: PLC0415  whoever mounts or unmounts an image does not pay for it

    try:
        top = os.open(point, DIRECTORY)
    except OSError:
        return False
    try:
        return read_record(top, point) is not None
    except MountError:
        return False  # a file of the record's name, in a directory where nothing is mounted
    finally:
        os.close(top)


def _clear(point: Path, image: Mount | None) -> None:
    """Clear away a writable mount whose overlay is gone. Nobody but its server knows the image that was below it."""
    from puzzlefs.mount.overlay import take_away  # noqa: PLC0415  as above
    from puzzlefs.mount.place import clear_left_over  # noqa: PLC0415

    if image is not None:
        take_away(image)
    clear_left_over(point)


def _need_root(point: Path) -> None:
    if os.geteuid() != 0:
        raise MountError(f"{point} is a writable mount, which only root can unmount", hint="run it as root")


def _unmount_as_root(mount: Mount) -> None:
    from puzzlefs.mount import namespace  # noqa: PLC0415  whoever mounts does not pay for it

    point = mount.point
    try:
        namespace.unmount(point, namespace.UMOUNT_NOFOLLOW)  # not what a link leads to that was put in its place
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise MountError(f"{point} cannot be unmounted: {error.strerror}") from error
        inside = [other.point for other in all_mounts() if other.parent_id == mount.mount_id]
        if inside:
            raise MountError(
                f"{point} is busy: something else is mounted in it, at {inside[-1]}",
                hint=f"unmount that first: umount {inside[-1]}; or detach all of it: umount -l {point}",
            ) from error
        raise _busy(point, f"umount -l {point}") from error


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
