"""What ``stat`` shows of an inode."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Final

from puzzlefs.errors import FormatError
from puzzlefs.model import BlockDevice, CharDevice, Content, Inode, Kind, RegularFile, Symlink, kind_of

BLOCK_SIZE: Final = 512
"""Bytes of the unit in which ``st_blocks`` counts (stat(2))."""

_MAX_DEVICE_NUMBER: Final = 0xFFFFFFFF
"""The most that ``makedev`` takes for a major or a minor number."""

_FILE_TYPES: Final = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHAR_DEVICE: stat.S_IFCHR,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.REGULAR: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.SOCKET: stat.S_IFSOCK,
}


@dataclass(frozen=True, slots=True)
class Attributes:
    """The fields of ``struct stat``.

    Attributes:
        ino: inode number.
        mode: file type and the 12 permission bits.
        nlink: number of names; of a directory, 2 plus the number of its subdirectories.
        uid: owner.
        gid: group.
        rdev: device number of a device (``makedev``), else 0.
        size: bytes of a regular file or a symlink's target, else 0.
        blocks: units of 512 bytes that ``size`` fills.
        mtime_ns: nanoseconds since the epoch; 0 where the image carries no times.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    mtime_ns: int


def kind_to_file_type(kind: Kind) -> int:
    """The ``S_IFMT`` bits of a kind; 0 for a white-out, which is no file."""
    return _FILE_TYPES.get(kind, 0)


def attributes_of(inode: Inode, nlink: int) -> Attributes:
    """What ``stat`` shows of ``inode``, which has ``nlink`` names.

    Raises:
        FormatError: for a device number that no system can express.
    """
    size = _size(inode.content)
    return Attributes(
        ino=inode.ino,
        mode=kind_to_file_type(kind_of(inode.content)) | (inode.permissions & 0o7777),
        nlink=nlink,
        uid=inode.uid,
        gid=inode.gid,
        rdev=_rdev(inode.content),
        size=size,
        blocks=-(-size // BLOCK_SIZE),
        mtime_ns=inode.mtime_ns or 0,
    )


def _size(content: Content) -> int:
    match content:
        case RegularFile(size=size):
            return size
        case Symlink(target=target):
            return len(target)
        case _:
            return 0


def _rdev(content: Content) -> int:
    match content:
        case CharDevice(major=major, minor=minor) | BlockDevice(major=major, minor=minor):
            if max(major, minor) > _MAX_DEVICE_NUMBER:
                raise FormatError(f"device {major}:{minor} is beyond what a device number can hold")
            return os.makedev(major, minor)
        case _:
            return 0
