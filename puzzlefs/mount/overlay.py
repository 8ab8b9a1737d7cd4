"""Mounting an overlayfs over an image, so that what is written stays in an upper directory.

The kernel takes the three directories as texts in which ``,`` divides options, ``:`` divides lower directories and
``\\`` escapes, by rules that differed from release to release. So a path that holds one of these is not escaped but
named by a descriptor, ``/proc/self/fd/N``; all other paths are given as they are, because ``mount`` shows them.

An upper directory has to mean the same without its mount: to be carried elsewhere, mounted over the image again, and
read by ``commit``. Everything is switched off that makes it depend on the lower file system's inodes (``index``,
``nfs_export``) or that has entries refer to others (``redirect_dir``: renaming a directory of the image gives EXDEV,
and programs copy it; ``metacopy``: a changed owner copies the file). ``xino`` is on: all files of the mount report one
``st_dev``, without which ``du -x`` leaves files out, and a file keeps its number when it is copied up and linked. It
has the kernel follow notes in the upper directory, which are therefore removed before that is mounted (``origins``).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puzzlefs.errors import MountError, UnsupportedError
from puzzlefs.mount import namespace
from puzzlefs.mount.mountinfo import OVERLAY_FS_TYPE, Mount, is_still_there
from puzzlefs.mount.options import MountOptions

_OPTIONS: Final = ("index=off", "nfs_export=off", "redirect_dir=off", "metacopy=off", "xino=on")
_SPECIAL: Final = frozenset(b",:\\\"'")
_MAX_DATA: Final = 4_000
"""Bytes of options: mount(2) takes a page less one."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A directory that an overlay is made of.

    Attributes:
        path: its path, absolute.
        fd: a descriptor of it.
    """

    path: Path
    fd: int


def mount_overlay(
    point: Branch, lower: Branch, upper: Branch, work: Branch, options: MountOptions, source: str
) -> None:
    """Mount an overlay at ``point``.

    Args:
        point: where.
        lower: the image.
        upper: where changes go.
        work: an empty directory of the same file system as ``upper``.
        options: of these, those that hold for what a user sees: ``dev``, ``suid``, ``exec``.
        source: what ``mount`` shows as the source.

    Raises:
        MountError: if the kernel refuses.
        UnsupportedError: if it has no overlayfs, or this user may not mount one.
    """
    branches = {b"lowerdir": lower, b"upperdir": upper, b"workdir": work}
    plain = {name: os.fsencode(branch.path) for name, branch in branches.items()}
    data = _data({name: _by_descriptor(branches[name]) if _SPECIAL & {*path} else path for name, path in plain.items()})
    if len(data) > _MAX_DATA:
        data = _data({name: _by_descriptor(branch) for name, branch in branches.items()})
    flags = 0 if options.suid else namespace.MS_NOSUID
    flags |= 0 if options.dev else namespace.MS_NODEV
    flags |= 0 if options.exec else namespace.MS_NOEXEC
    try:
        namespace.mount(source, namespace.fd_path(point.fd), OVERLAY_FS_TYPE, flags, os.fsdecode(data))
    except OSError as error:
        raise _refused(point.path, upper.path, error) from error


def take_away(mount: Mount) -> None:
    """Detach a part of a writable mount if it is still there; it lives on for its users until they let go of it.

    Raises:
        MountError: if the kernel refuses.
    """
    if not is_still_there(mount):
        return
    try:
        namespace.unmount(mount.point, namespace.MNT_DETACH | namespace.UMOUNT_NOFOLLOW)
    except OSError as error:
        if is_still_there(mount):  # else somebody was quicker
            raise MountError(f"{mount.point} cannot be unmounted: {error.strerror}") from error


def _data(branches: dict[bytes, bytes]) -> bytes:
    return b",".join([*(name + b"=" + path for name, path in branches.items()), *map(str.encode, _OPTIONS)])


def _by_descriptor(branch: Branch) -> bytes:
    return os.fsencode(namespace.fd_path(branch.fd))


def _refused(point: Path, upper: Path, error: OSError) -> MountError | UnsupportedError:
    if error.errno == errno.ENODEV:
        return UnsupportedError("this kernel has no overlayfs", hint="load the kernel module: modprobe overlay")
    if error.errno == errno.EPERM:
        return UnsupportedError(
            f"{point} cannot be made writable: this user may not mount an overlayfs",
            hint="without root, `puzzlefs shell` runs a program in an image that it can write to",
        )
    hint = "the kernel's log (dmesg) may say more"
    if error.errno == errno.EINVAL:
        hint = (
            f"the file system of {upper} cannot hold the changes (an overlay, NFS, FUSE); name a directory on another "
            f"one with --persist; {hint}"
        )
    return MountError(f"{point} cannot be made writable: the overlay is refused: {error.strerror}", hint=hint)
