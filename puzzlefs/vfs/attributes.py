"""What ``stat`` shows of an inode."""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from puzzlefs.errors import FormatError
from puzzlefs.model import (
    NO_OWNER,
    BlockDevice,
    CharDevice,
    Content,
    Glance,
    Inode,
    Kind,
    RegularFile,
    Symlink,
    kind_of,
)

BLOCK_SIZE: Final = 512
"""Bytes of the unit in which ``st_blocks`` counts (stat(2))."""

_MAX_MAJOR: Final = (1 << 12) - 1
_MAX_MINOR: Final = (1 << 20) - 1
"""What Linux has room for (``MINORBITS``); FUSE and mknod(2) would cut off the rest and show another device."""

_FILE_TYPES: Final[dict[int, int]] = {
    int(Kind.FIFO): stat.S_IFIFO,
    int(Kind.CHAR_DEVICE): stat.S_IFCHR,
    int(Kind.DIRECTORY): stat.S_IFDIR,
    int(Kind.BLOCK_DEVICE): stat.S_IFBLK,
    int(Kind.REGULAR): stat.S_IFREG,
    int(Kind.SYMLINK): stat.S_IFLNK,
    int(Kind.SOCKET): stat.S_IFSOCK,
}
_KINDS: Final = {file_type: Kind(kind) for kind, file_type in _FILE_TYPES.items()}


class Attributes(NamedTuple):
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


def kind_to_file_type(kind: int) -> int:
    """The ``S_IFMT`` bits of a kind; 0 for a white-out, which is no file."""
    return _FILE_TYPES.get(kind, 0)


def file_type_to_kind(file_type: int) -> Kind | None:
    """The kind that ``S_IFMT`` bits mean; ``None`` if no image can hold it."""
    return _KINDS.get(file_type)


def attributes_at_a_glance(ino: int, glance: Glance, nlink: int) -> Attributes:
    """What ``stat`` shows of an ordinary inode, which has ``nlink`` names."""
    kind, permissions, uid, gid, size, mtime_ns = glance
    return Attributes(ino, _FILE_TYPES[kind] | permissions, nlink, uid, gid, 0, size, -(-size // BLOCK_SIZE), mtime_ns)


def attributes_of(inode: Inode, nlink: int) -> Attributes:
    """What ``stat`` shows of ``inode``, which has ``nlink`` names.

    Raises:
        FormatError: for an owner that cannot be, or a device number that Linux cannot express.
    """
    if NO_OWNER in (inode.uid, inode.gid):
        raise FormatError(f"inode {inode.ino}: no file can belong to {NO_OWNER}")
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
            if major > _MAX_MAJOR or minor > _MAX_MINOR:
                raise FormatError(f"device {major}:{minor} is beyond what a device number of Linux can hold")
            return os.makedev(major, minor)
        case _:
            return 0
