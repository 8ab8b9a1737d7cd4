"""The mounts of this process's namespace, from ``/proc/self/mountinfo`` (proc(5)), and which of them are ours.

Asking the kernel's table never touches a mounted file system, so it answers even where ``stat`` on the mount point
would hang or fail because the server behind it is dead.

The numbers in the table are given out again as soon as a mount is gone, so a mount that took the place of another can
look the same there. What tells them apart is a further number, which Linux has since 6.8; who wants to take a mount
away later has to ask for that one in time (``new_mount_at``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from puzzlefs.mount.namespace import has_mount, unique_mount_id
from puzzlefs.mount.options import SUBTYPE

IMAGE_FS_TYPE: Final = f"fuse.{SUBTYPE}"
OVERLAY_FS_TYPE: Final = "overlay"

RO: Final = "ro"
"""Where in its mount point a writable mount has the image."""

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount.

    Attributes:
        mount_id: its number, unique while it is mounted.
        device: ``major:minor`` of ``st_dev`` in it, unique as long as anybody uses the file system.
        point: where it is.
        fs_type: file system type with the subtype, for example ``fuse.puzzlefs``.
        source: what ``mount`` shows as the source.
        parent_id: the mount that it is mounted in.
        super_options: options of the file system, as the kernel lists them.
        unique_id: a number that no other mount ever has; 0 where it was not asked for, or cannot be looked up.
    """

    mount_id: int
    device: str
    point: Path
    fs_type: str
    source: str
    parent_id: int = 0
    super_options: bytes = b""
    unique_id: int = 0

    def __eq__(self, other: object) -> bool:
        """Whether they look the same in the table, but for options, which may change."""
        return isinstance(other, Mount) and self[:5] == other[:5]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:5])

    def super_option(self, name: bytes) -> bytes | None:
        """The value of an option ``name=value`` of the file system, ``None`` if there is no such option."""
        for word in self.super_options.split(b","):  # commas in values are octal escapes
            key, separator, value = word.partition(b"=")
            if separator and key == name:
                return _unescape(value)
        return None


def parse_mountinfo(data: bytes) -> list[Mount]:
    """The mounts that the text of a mountinfo file lists, in its order: of several at one place, the last is on top."""
    return [mount for line in data.splitlines() if (mount := _parse_line(line)) is not None]


def all_mounts() -> list[Mount]:
    """The mounts of this process's namespace that it can reach, as ``parse_mountinfo`` orders them."""
    return parse_mountinfo(_MOUNTINFO.read_bytes())


def mounted_at(point: Path) -> Mount | None:
    """The mount that is on top at ``point`` (an absolute path without links), ``None`` if it is no mount point."""
    return on_top(all_mounts(), point)


def new_mount_at(point: Path) -> Mount | None:
    """As ``mounted_at``, with its unique number. If it is an overlay, what is below it must answer."""
    found = mounted_at(point)
    number = unique_mount_id(point)
    return found._replace(unique_id=number) if found is not None and has_mount(number) else found


def is_still_there(mount: Mount) -> bool:
    """Whether ``mount``, from ``new_mount_at``, is still the one that is on top at its place."""
    return mounted_at(mount.point) == mount and not has_left(mount)


def has_left(mount: Mount) -> bool:
    """Whether ``mount``, from ``new_mount_at``, is known to be nowhere in this namespace, whatever looks like it."""
    return mount.unique_id != 0 and has_mount(mount.unique_id) is False


def on_top(mounts: Iterable[Mount], point: Path) -> Mount | None:
    """Of ``mounts`` the one that is on top at ``point``, ``None`` if none of them is there."""
    found = None
    for mount in mounts:
        if mount.point == point:
            found = mount
    return found


def writable_mount(mounts: Sequence[Mount], point: Path) -> tuple[Mount, Mount | None] | None:
    """The overlay and the image of the writable mount that is on top at ``point``, ``None`` if there is none.

    The image is ``None`` if it was unmounted from below the overlay.
    """
    overlay = on_top(mounts, point)
    if overlay is None or overlay.fs_type != OVERLAY_FS_TYPE:
        return None
    beside = [
        mount
        for mount in mounts
        if mount.point == point / RO and mount.fs_type == IMAGE_FS_TYPE and mount.parent_id == overlay.parent_id
    ]
    if beside:
        return overlay, beside[-1]
    return (overlay, None) if overlay.super_option(b"lowerdir") == os.fsencode(point / RO) else None


def is_hidden(mount: Mount) -> bool:
    """Whether another mount covers a directory above ``mount``, so that its path leads somewhere else."""
    return any(other.parent_id == mount.parent_id and other.point in mount.point.parents for other in all_mounts())


def _parse_line(line: bytes) -> Mount | None:
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
    before, separator, after = line.partition(b" - ")
    fields, rest = before.split(b" "), after.split(b" ")
    if not separator or len(fields) < 6 or len(rest) < 2:
        return None
    return Mount(
        mount_id=int(fields[0]),
        device=fields[2].decode("ascii"),
        point=Path(os.fsdecode(_unescape(fields[4]))),
        fs_type=os.fsdecode(rest[0]),
        source=os.fsdecode(_unescape(rest[1])),
        parent_id=int(fields[1]),
        super_options=rest[2] if len(rest) > 2 else b"",
    )


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
