"""The kernel's FUSE protocol: numbers and layouts of <linux/fuse.h>, as pure encoding and decoding.

A request is a header (``IN_HEADER``), a structure that depends on the opcode, and for some opcodes bytes that end with
NUL. A reply is a header (``OUT_HEADER``) and what the opcode wants. All numbers are in the machine's byte order, and
structures are padded to 8 bytes, so every layout here is the same on 32-bit and on 64-bit machines.

Version notes, from the header's own history. 7.31 (Linux 5.4) is the oldest that is spoken; nothing newer is needed,
but for ``RESEND`` where there is one:

* 7.21 ``READDIRPLUS`` · 7.23 negative time stamps, ``NO_OPEN_SUPPORT`` · 7.25 ``PARALLEL_DIROPS`` · 7.26 ``POSIX_ACL``
* 7.28 ``MAX_PAGES``, ``CACHE_SYMLINKS``, ``FOPEN_CACHE_DIR`` · 7.29 ``NO_OPENDIR_SUPPORT``
* 7.30 ``EXPLICIT_INVAL_DATA``
* 7.32 and 7.36 put meaning into reserved fields (``fuse_attr.flags``; ``flags2`` of INIT) that are zero here
* 7.38 splits the header's padding (``total_extlen``); 7.39 adds ``STATX``, which ENOSYS turns off; a kernel that is
  newer than this speaks the older protocol when INIT answers with it.
* 7.40 (Linux 6.9) adds the notification ``RESEND``, whatever INIT agreed on.

Changing a layout or a number here breaks the session with every kernel; ``tests/unit/test_kernel_protocol.py`` holds
them against the header of the machine.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final, NamedTuple

from puzzlefs.vfs import Attributes

MAJOR: Final = 7
MINOR: Final = 31
"""The protocol that is spoken, and the oldest that is understood."""

MIN_READ_BUFFER: Final = 8192
"""Bytes that a buffer for requests needs at least; a file system that takes no writes gets nothing longer."""

MAX_NAME: Final = 1024
"""Bytes of the longest name that the kernel asks for."""

INTERRUPT_BIT: Final = 1
"""Set in ``unique`` of an INTERRUPT; the request that it means has the number without it."""

RESENT_BIT: Final = 1 << 63
"""Set in ``unique`` of a request that the kernel sends again; the answer has to have it too."""

IN_HEADER: Final = Struct("=IIQQIIII")  # len opcode unique nodeid uid gid pid extlen+padding
OUT_HEADER: Final = Struct("=IiQ")  # len error unique
INIT_IN: Final = Struct("=IIII")  # major minor max_readahead flags (more may follow)
INIT_OUT: Final = Struct("=IIIIHHIIHHIIHHIIIII")  # 64 bytes: see init_reply
READ_IN: Final = Struct("=QQI")  # fh offset size (more follows)
FORGET_IN: Final = Struct("=Q")
GETXATTR_IN: Final = Struct("=II")  # size padding
GETXATTR_OUT: Final = Struct("=II")  # size padding
OPEN_IN: Final = Struct("=II")  # flags open_flags
INTERRUPT_IN: Final = Struct("=Q")
STATFS_OUT: Final = Struct("=QQQQQIIIIIIIIII")
STORE: Final = Struct("=IiQQQII")  # out header, then nodeid offset size padding
_ENTRY_OUT: Final = Struct("=QQQQII")  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
_ATTR_OUT: Final = Struct("=QII")  # attr_valid attr_valid_nsec dummy
_ATTR: Final = Struct("=QQQqqqIIIIIIIIII")
_DIRENT: Final = Struct("=QQII")  # ino off namelen type; the name follows
_DIRENTPLUS: Final = Struct("=QQQQIIQQQqqqIIIIIIIIIIQQII")  # entry out, attributes and dirent in one step

BODY: Final = IN_HEADER.size
"""Where the structure of an opcode begins in a request."""

DIRENT_SIZE: Final = _DIRENT.size
DIRENTPLUS_SIZE: Final = _DIRENTPLUS.size
"""Bytes of an entry of READDIR and READDIRPLUS before the name."""

_NO_ENTRY: Final = bytes(_ENTRY_OUT.size + _ATTR.size)
_PADDING: Final = tuple(b"\0" * (-length % 8) for length in range(8))
_NANOSECONDS: Final = 1_000_000_000
_BLOCK_SIZE: Final = 4096


class Opcode(enum.IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class InitFlag(enum.IntFlag):
    """What kernel and server agree on in INIT; the ones that a read-only file system can use."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25


NOTIFY_STORE: Final = 4
"""The code of a notification that puts content into the page cache."""

NOTIFY_RESEND: Final = 7
"""The code of a notification that has the kernel send unanswered requests again (7.40, Linux 6.9)."""


class InitRequest(NamedTuple):
    """What the kernel says of itself.

    Attributes:
        major: protocol version.
        minor: protocol version.
        max_readahead: bytes that it would read ahead.
        flags: what it offers.
    """

    major: int
    minor: int
    max_readahead: int
    flags: int


def parse_init(body: bytes | memoryview) -> InitRequest:
    """The INIT request; ``body`` is what follows the header."""
    return InitRequest(*INIT_IN.unpack_from(body))


def init_reply(request: InitRequest, flags: int, *, max_pages: int, max_background: int) -> bytes:
    """The answer to INIT.

    Args:
        request: what the kernel offered.
        flags: what is wanted; only what the kernel offered is asked for.
        max_pages: of 4 KiB, the most that one READ may ask for.
        max_background: requests that may be under way without anybody waiting for them (read-ahead).
    """
    return INIT_OUT.pack(
        MAJOR,
        MINOR,
        request.max_readahead,
        request.flags & flags,
        max_background,
        max_background * 3 // 4,
        _BLOCK_SIZE,  # max_write: the least there is, since nothing is written
        1,  # time_gran: time stamps are exact to the nanosecond
        max_pages,
        *(0,) * 10,
    )


def reply_header(unique: int, size: int) -> bytes:
    """The header of a reply with ``size`` bytes behind it."""
    return OUT_HEADER.pack(16 + size, 0, unique)


def error_reply(unique: int, number: int) -> bytes:
    """A whole reply that says that a request failed with the errno ``number``."""
    return OUT_HEADER.pack(16, -number, unique)


def store_header(nodeid: int, offset: int, size: int) -> bytes:
    """The header of a notification that is followed by ``size`` bytes of the content of ``nodeid`` from ``offset``."""
    return STORE.pack(STORE.size + size, NOTIFY_STORE, 0, nodeid, offset, size, 0)


def resend_notification() -> bytes:
    """A notification that asks for every request again that was taken and not answered. EINVAL before Linux 6.9."""
    return OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)


def encode_attributes(attributes: Attributes) -> bytes:
    """``struct fuse_attr``, 88 bytes."""
    seconds, nanoseconds = divmod(attributes.mtime_ns, _NANOSECONDS)
    return _ATTR.pack(
        attributes.ino,
        attributes.size,
        attributes.blocks,
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        attributes.mode,
        attributes.nlink,
        attributes.uid,
        attributes.gid,
        attributes.rdev,
        _BLOCK_SIZE,
        0,
    )


def entry_reply(ino: int, attr: bytes, valid: int) -> bytes:
    """``struct fuse_entry_out``: a name that was found; its attributes and itself are valid for ``valid`` seconds."""
    return _ENTRY_OUT.pack(ino, 0, valid, valid, 0, 0) + attr


def absent_reply(valid: int) -> bytes:
    """``struct fuse_entry_out`` of a name that is not there, which may be believed for ``valid`` seconds."""
    return _ENTRY_OUT.pack(0, 0, valid, 0, 0, 0) + bytes(_ATTR.size)


def attr_reply(attr: bytes, valid: int) -> bytes:
    """``struct fuse_attr_out``."""
    return _ATTR_OUT.pack(valid, 0, 0) + attr


def dirent(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """An entry of READDIR: ``offset`` is where the next entry is, ``kind`` the ``DT_`` number (file type >> 12)."""
    return _DIRENT.pack(ino, offset, len(name), kind) + name + _PADDING[len(name) & 7]


def direntplus(attributes: Attributes, valid: int, offset: int, name: bytes) -> bytes:
    """An entry of READDIRPLUS: what a lookup would have answered, and the entry."""
    ino, mode, nlink, uid, gid, rdev, size, blocks, mtime_ns = attributes
    seconds, nanoseconds = divmod(mtime_ns, _NANOSECONDS)
    length = len(name)
    return (
        _DIRENTPLUS.pack(
            *(ino, 0, valid, valid, 0, 0),
            *(ino, size, blocks, seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds),
            *(mode, nlink, uid, gid, rdev, _BLOCK_SIZE, 0),
            *(ino, offset, length, mode >> 12),
        )
        + name
        + _PADDING[length & 7]
    )


def direntplus_without_lookup(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """An entry of READDIRPLUS that is shown in the listing and nothing more; the kernel asks when it needs it.

    The nodeid is 0, which the kernel takes to mean this; for ``.`` and ``..`` it is never more than that.
    """
    length = len(name)
    return _NO_ENTRY + _DIRENT.pack(ino, offset, length, kind) + name + _PADDING[length & 7]


def padded_name_size(length: int) -> int:
    """Bytes that a name of ``length`` bytes takes in an entry of a listing."""
    return (length + 7) & ~7


def statfs_reply(*, blocks: int, files: int, block_size: int, max_name: int) -> bytes:
    """``struct fuse_statfs_out`` of a file system without free space."""
    return STATFS_OUT.pack(blocks, 0, 0, files, 0, block_size, max_name, block_size, *(0,) * 7)
