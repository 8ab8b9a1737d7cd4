"""What each request of the kernel's protocol is answered with.

``Answers`` turns a request (nodeid and the bytes behind the header) into the bytes behind the reply's header, by asking
``Operations``; it speaks to nobody. The nodeid is the inode number of the image. What it wants from the kernel:

* names, attributes, listings, links and content stay in the kernel's caches for as long as it likes (nothing changes);
* no OPEN, OPENDIR and RELEASE: these are answered with ENOSYS once, and the kernel then stops asking, keeps cached
  content at open and caches listings (``fuse_file_open`` in fs/fuse/file.c: no-open means ``FOPEN_KEEP_CACHE``, and
  no-opendir ``FOPEN_CACHE_DIR``);
* listings come with attributes, so that a ``stat`` of what was listed needs no further request;
* nothing that this file system has no opinion on: ENOSYS is answered once, and never asked again.

Methods fail with ``RequestError`` only. Thread safe.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from puzzlefs.mount.engine import FOREVER
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.kernel_protocol import (
    BODY,
    DIRENT_SIZE,
    DIRENTPLUS_SIZE,
    GETXATTR_IN,
    GETXATTR_OUT,
    IN_HEADER,
    OPEN_IN,
    READ_IN,
    InitFlag,
    Opcode,
    absent_reply,
    attr_reply,
    dirent,
    direntplus,
    direntplus_without_lookup,
    encode_attributes,
    entry_reply,
    padded_name_size,
    statfs_reply,
)
from puzzlefs.mount.operations import Operations
from puzzlefs.vfs import kind_to_file_type

WANTED_FLAGS: Final = int(
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.POSIX_ACL  # without it the kernel lets group members in and keeps granted users out
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.EXPLICIT_INVAL_DATA
)
"""What INIT asks for. ``NO_OPEN_SUPPORT`` and ``NO_OPENDIR_SUPPORT`` are what the kernel says, not what is asked."""

_VALID: Final = int(FOREVER)
_ABSENT: Final = absent_reply(_VALID)
_NO_INO: Final = (1 << 64) - 1
_DIRECTORY: Final = 4  # DT_DIR
_BLOCK_SIZE: Final = 4096
_MAX_NAME: Final = 255

Answer = Callable[[int, bytearray, int], bytes]
"""``answer(nodeid, request, size)`` gives what follows the header of the reply; ``request`` is a buffer that will be
used again."""


class Answers:
    """The answers over one image, to everything but INIT, READ and what is not answered at all."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self.table: Final[Mapping[int, Answer]] = MappingProxyType(self._table())

    def _table(self) -> dict[int, Answer]:
        def refusal(number: int) -> Answer:
            def refuse(nodeid: int, request: bytearray, size: int) -> bytes:
                raise RequestError(number)

            return refuse

        read_only, not_here = refusal(errno.EROFS), refusal(errno.ENOSYS)
        table: dict[int, Answer] = dict.fromkeys((int(opcode) for opcode in Opcode), not_here)
        for opcode in (
            *(Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME),
            *(Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE, Opcode.FALLOCATE),
            *(Opcode.RENAME2, Opcode.COPY_FILE_RANGE, Opcode.TMPFILE),
        ):
            table[opcode] = read_only
        table |= {
            Opcode.LOOKUP: self.lookup,
            Opcode.GETATTR: self.getattr,
            Opcode.READLINK: self.readlink,
            Opcode.OPEN: self.open,
            Opcode.STATFS: self.statfs,
            Opcode.GETXATTR: self.getxattr,
            Opcode.LISTXATTR: self.listxattr,
            Opcode.READDIR: self.readdir,
            Opcode.READDIRPLUS: self.readdirplus,
            Opcode.RELEASE: self.nothing,
            Opcode.RELEASEDIR: self.nothing,
            Opcode.DESTROY: self.nothing,
            Opcode.IOCTL: refusal(errno.ENOTTY),
        }
        return table

    # ---- names and attributes

    def lookup(self, nodeid: int, request: bytearray, size: int) -> bytes:
        attributes = self._operations.lookup(nodeid, bytes(request[BODY : size - 1]))
        if attributes is None:
            return _ABSENT
        return entry_reply(attributes.ino, encode_attributes(attributes), _VALID)

    def getattr(self, nodeid: int, request: bytearray, size: int) -> bytes:
        return attr_reply(encode_attributes(self._operations.getattr(nodeid)), _VALID)

    def readlink(self, nodeid: int, request: bytearray, size: int) -> bytes:
        return self._operations.readlink(nodeid)

    # ---- directories

    def readdir(self, nodeid: int, request: bytearray, size: int) -> bytes:
        _, offset, room = READ_IN.unpack_from(request, BODY)
        parts: list[bytes] = []
        for position, name, ino, kind in self._dots(nodeid, offset):
            parts.append(dirent(ino, position + 1, kind, name))
            room -= len(parts[-1])
        entries = self._operations.entries(nodeid)
        for position in range(max(offset - 2, 0), len(entries)):
            entry = entries[position]
            room -= DIRENT_SIZE + padded_name_size(len(entry.name))
            if room < 0:
                break
            kind = kind_to_file_type(entry.kind) >> 12
            parts.append(dirent(entry.ino or _NO_INO, position + 3, kind, entry.name))
        return b"".join(parts)

    def readdirplus(self, nodeid: int, request: bytearray, size: int) -> bytes:
        _, offset, room = READ_IN.unpack_from(request, BODY)
        operations = self._operations
        parts: list[bytes] = []
        for position, name, ino, kind in self._dots(nodeid, offset):
            parts.append(direntplus_without_lookup(ino, position + 1, kind, name))
            room -= len(parts[-1])
        first = max(offset - 2, 0)
        entries = operations.entries(nodeid)[first:]
        fitting = 0
        for entry in entries:
            room -= DIRENTPLUS_SIZE + padded_name_size(len(entry.name))
            if room < 0:
                break
            fitting += 1
        entries = entries[:fitting]
        after = first + 3
        for entry, attributes in zip(entries, operations.listed(nodeid, entries), strict=True):
            if attributes is None:  # its name is all that can be shown; looking it up fails
                kind = kind_to_file_type(entry.kind) >> 12
                parts.append(direntplus_without_lookup(entry.ino or _NO_INO, after, kind, entry.name))
            else:
                parts.append(direntplus(attributes, _VALID, after, entry.name))
            after += 1
        return b"".join(parts)

    def _dots(self, nodeid: int, offset: int) -> list[tuple[int, bytes, int, int]]:
        # an offset is the position in a listing that cannot change: 0 is ".", 1 is "..", then the entries
        if offset > 1:
            return []
        dots = [(0, b".", nodeid, _DIRECTORY), (1, b"..", self._operations.parent(nodeid), _DIRECTORY)]
        return dots[offset:]

    # ---- content

    def open(self, nodeid: int, request: bytearray, size: int) -> bytes:
        flags, _ = OPEN_IN.unpack_from(request, BODY)
        self._operations.open(nodeid, flags)
        raise RequestError(errno.ENOSYS)

    # ---- extended attributes

    def getxattr(self, nodeid: int, request: bytearray, size: int) -> bytes:
        room, _ = GETXATTR_IN.unpack_from(request, BODY)
        name = bytes(request[BODY + GETXATTR_IN.size : size - 1])
        return _sized(self._operations.getxattr(nodeid, name), room)

    def listxattr(self, nodeid: int, request: bytearray, size: int) -> bytes:
        room, _ = GETXATTR_IN.unpack_from(request, BODY)
        uid = IN_HEADER.unpack_from(request)[4]
        names = self._operations.listxattr(nodeid, privileged=uid == 0)
        return _sized(b"".join([name + b"\0" for name in names]), room)

    # ---- the file system

    def statfs(self, nodeid: int, request: bytearray, size: int) -> bytes:
        totals = self._operations.totals()
        return statfs_reply(
            blocks=-(-totals.size // _BLOCK_SIZE), files=totals.inodes, block_size=_BLOCK_SIZE, max_name=_MAX_NAME
        )

    def nothing(self, nodeid: int, request: bytearray, size: int) -> bytes:
        return b""


def _sized(value: bytes, room: int) -> bytes:
    """``value`` for a caller who has ``room`` bytes; the size of it for one who has none."""
    if room == 0:
        return GETXATTR_OUT.pack(len(value), 0)
    if len(value) > room:
        raise RequestError(errno.ERANGE)
    return value
