"""What each request of the kernel's protocol is answered with.

``Answers`` turns a request (nodeid and the bytes behind the header) into the bytes behind the reply's header, by asking
``Operations``; it speaks to nobody. The nodeid is the inode number of the image. What it wants from the kernel:

* names, attributes, listings, links and content stay in the kernel's caches for as long as it likes (nothing changes);
* no OPEN, OPENDIR and RELEASE: these are answered with ENOSYS once, and the kernel then stops asking, keeps cached
  content at open and caches listings (``fuse_file_open`` in fs/fuse/file.c: no-open means ``FOPEN_KEEP_CACHE``, and
  no-opendir ``FOPEN_CACHE_DIR``);
* listings come with attributes where these are used (``kernel_listing``);
* nothing that this file system has no opinion on: ENOSYS is answered once, and never asked again. That goes for
  extended attributes too, if no inode of the image has any: otherwise the kernel looks for an ACL at each inode that
  somebody else than its owner uses. (Programs are told that the file system does not support them.)

Methods fail with ``RequestError`` only. Thread safe.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from puzzlefs.mount.engine import FOREVER
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.kernel_listing import Listings
from puzzlefs.mount.kernel_protocol import (
    BODY,
    GETXATTR_IN,
    GETXATTR_OUT,
    IN_HEADER,
    OPEN_IN,
    InitFlag,
    Opcode,
    absent_reply,
    attr_reply,
    encode_attributes,
    entry_reply,
    statfs_reply,
)
from puzzlefs.mount.operations import Operations

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
_FILE_TYPE: Final = 0o170000
_DIRECTORY: Final = 0o040000
_BLOCK_SIZE: Final = 4096
_MAX_NAME: Final = 255

Answer = Callable[[int, memoryview, int], bytes]
"""``answer(nodeid, request, size)`` gives what follows the header of the reply; ``request`` is a buffer that will be
used again."""


class Answers:
    """The answers over one image, to everything but INIT, READ and what is not answered at all."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._tree = operations.image.tree
        self._listings = Listings(operations, _VALID)
        self.table: Final[Mapping[int, Answer]] = MappingProxyType(self._table())
        self.prepare: Final = self._listings.prepare

    def _table(self) -> dict[int, Answer]:
        def refusal(number: int) -> Answer:
            def refuse(nodeid: int, request: memoryview, size: int) -> bytes:
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
            Opcode.READDIR: self._listings.readdir,
            Opcode.READDIRPLUS: self._listings.readdirplus,
            Opcode.RELEASE: self.nothing,
            Opcode.RELEASEDIR: self.nothing,
            Opcode.DESTROY: self.nothing,
            Opcode.IOCTL: refusal(errno.ENOTTY),
        }
        return table

    # ---- names and attributes

    def lookup(self, nodeid: int, request: memoryview, size: int) -> bytes:
        attributes = self._operations.lookup(nodeid, bytes(request[BODY : size - 1]))
        if attributes is None:
            return _ABSENT
        if attributes.mode & _FILE_TYPE != _DIRECTORY:
            self._listings.looked_up(nodeid)
        return entry_reply(attributes.ino, encode_attributes(attributes), _VALID)

    def getattr(self, nodeid: int, request: memoryview, size: int) -> bytes:
        return attr_reply(encode_attributes(self._operations.getattr(nodeid)), _VALID)

    def readlink(self, nodeid: int, request: memoryview, size: int) -> bytes:
        return self._operations.readlink(nodeid)

    # ---- content

    def open(self, nodeid: int, request: memoryview, size: int) -> bytes:
        flags, _ = OPEN_IN.unpack_from(request, BODY)
        self._operations.open(nodeid, flags)
        raise RequestError(errno.ENOSYS)

    # ---- extended attributes

    # ENOSYS, where an image has no xattrs, would spare these requests, but programs see "Operation not supported" then:
    # a comparison with the source, or a copy, would stop at the first file.

    def getxattr(self, nodeid: int, request: memoryview, size: int) -> bytes:
        if not self._tree.may_have_xattrs():
            raise RequestError(errno.ENODATA)
        room, _ = GETXATTR_IN.unpack_from(request, BODY)
        name = bytes(request[BODY + GETXATTR_IN.size : size - 1])
        return _sized(self._operations.getxattr(nodeid, name), room)

    def listxattr(self, nodeid: int, request: memoryview, size: int) -> bytes:
        room, _ = GETXATTR_IN.unpack_from(request, BODY)
        if not self._tree.may_have_xattrs():
            return _sized(b"", room)
        uid = IN_HEADER.unpack_from(request)[4]
        names = self._operations.listxattr(nodeid, privileged=uid == 0)
        return _sized(b"".join([name + b"\0" for name in names]), room)

    # ---- the file system

    def statfs(self, nodeid: int, request: memoryview, size: int) -> bytes:
        totals = self._operations.totals()
        return statfs_reply(
            blocks=-(-totals.size // _BLOCK_SIZE), files=totals.inodes, block_size=_BLOCK_SIZE, max_name=_MAX_NAME
        )

    def nothing(self, nodeid: int, request: memoryview, size: int) -> bytes:
        return b""


def _sized(value: bytes, room: int) -> bytes:
    """``value`` for a caller who has ``room`` bytes; the size of it for one who has none."""
    if room == 0:
        return GETXATTR_OUT.pack(len(value), 0)
    if len(value) > room:
        raise RequestError(errno.ERANGE)
    return value
