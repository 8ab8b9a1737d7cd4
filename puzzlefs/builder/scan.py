"""Host tree → inodes: who is there, in which order, and under which number.

The order is that of ``format/README.md``: the root is 1; visiting a directory numbers all of its entries,
sorted by their raw names, before any of its subdirectories is visited; subdirectories are visited depth
first. Every entry takes a number, a further name of a hard link too, which keeps the number of the first and
leaves its own unused. So numbers depend on names only, not on the order in which a file system lists them.

Hard links are entries, other than directories, of one ``(st_dev, st_ino)``: on an overlay, inode numbers
alone repeat. Only directories are compared with the root's ``st_dev``, since on an overlay files report other
devices; a directory on another one is a mount point.

Nothing is recursive, and a path is never handed to the kernel whole, so depth has no limit but memory. The
content of regular files is read later; their places in the stream are given out here, in the order of the
numbers.
"""

from __future__ import annotations

import errno
import hashlib
import marshal
import os
import stat
import struct
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Final

from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.describe import PERMISSIONS, content_of, xattrs_of
from puzzlefs.builder.source import SourceDirectory, SourceTree
from puzzlefs.model import (
    ROOT_INO,
    Content,
    Directory,
    DirEntry,
    Inode,
    Symlink,
    Xattr,
)

_UNREADABLE_XATTR = {errno.ENODATA, errno.EACCES, errno.EPERM, errno.ENOTSUP}
_identity = struct.Struct("=5Q")
_identity_parts = struct.Struct("=Q16x2q")
_U64: Final = (1 << 64) - 1

IDENTITY_SIZE: Final = _identity.size
"""Bytes of what ``identity_of`` returns: five numbers of eight bytes in the machine's order, the third is the size."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file that is not empty, and so has a place in the stream.

    Attributes:
        directory: the directory it is in.
        name: its name there.
        identity: what ``identity_of`` said when it was met.
        size: bytes.
        has_xattrs: whether it has extended attributes.
    """

    directory: SourceDirectory
    name: bytes
    identity: bytes
    size: int
    has_xattrs: bool


@dataclass(frozen=True, slots=True)
class ScannedTree:
    """What a scan found.

    Attributes:
        inodes: every inode, sorted by number; those of regular files refer to parts of the stream that is
            still to be read.
        files: the files of the stream, in its order.
        mount_points: paths of directories that were left empty because something else is mounted there.
        has_pyc: whether there is a compiled Python module.
        fingerprint: 32 bytes that stand for everything in ``inodes`` but the content of files.
    """

    inodes: list[Inode]
    files: list[SourceFile]
    mount_points: list[bytes]
    has_pyc: bool
    fingerprint: bytes


def identity_of(status: os.stat_result) -> bytes:
    """What must stay the same while a file is read: device, inode, size, times of modification and change."""
    return _identity.pack(
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns & _U64,
        status.st_ctime_ns & _U64,
    )


def identity_parts(identity: bytes) -> tuple[int, int, int]:
    """Of an identity, the device, and the times of modification and change in nanoseconds since the epoch."""
    device, mtime_ns, ctime_ns = _identity_parts.unpack(identity)
    return device, mtime_ns, ctime_ns


def scan(
    tree: SourceTree,
    stream: FileStream,
    *,
    mtime_of: Callable[[int], int | None],
    cross_mounts: bool = False,
    without_xattrs: Container[bytes] = frozenset(),
    progress: Callable[[int], None] | None = None,
) -> ScannedTree:
    """Number and describe everything in ``tree``.

    Args:
        tree: where to look.
        stream: gives out the places of regular files.
        mtime_of: the timestamp to store for a modification time, both in nanoseconds since the epoch.
        cross_mounts: whether to look into directories on which something else is mounted.
        without_xattrs: identities of regular files that are known to have no extended attributes.
        progress: called from time to time with the number of entries met.

    Raises:
        SourceError: if something cannot be read, or changes meanwhile; it names what.
    """
    walk = TreeScan(tree, stream, mtime_of=mtime_of, cross_mounts=cross_mounts, without_xattrs=without_xattrs)
    while walk.step():
        if progress is not None:
            progress(walk.entries)
    return walk.found()


@dataclass(frozen=True, slots=True)
class _Visit:
    """A directory that is still to be visited: which one it must be, and where its inode is in the list."""

    directory: SourceDirectory
    device: int
    host_ino: int
    index: int


class TreeScan:
    """A scan that is done a directory at a time, for whoever has something else to do meanwhile."""

    def __init__(
        self,
        tree: SourceTree,
        stream: FileStream,
        *,
        mtime_of: Callable[[int], int | None],
        cross_mounts: bool = False,
        without_xattrs: Container[bytes] = frozenset(),
    ) -> None:
        """A scan that has looked at the root alone; see ``scan``, also for the exceptions."""
        self._tree = tree
        self._stream = stream
        self._mtime_of = mtime_of
        self._cross_mounts = cross_mounts
        self._without_xattrs = without_xattrs
        self._found = ScannedTree([], [], [], False, b"")
        self._facts: list[object] = []
        self._linked: dict[tuple[int, int], int] = {}
        self._next_ino = ROOT_INO
        self._has_pyc = False
        top = tree.top
        status = os.fstat(tree.fd)
        self._device = status.st_dev
        self._add(self._take_number(), status, Directory(()), xattrs_of(tree, tree.fd, top, b""), b"")
        self._to_visit = [_Visit(top, status.st_dev, status.st_ino, 0)]

    @property
    def files(self) -> list[SourceFile]:
        """The files of the stream that were met so far, in its order."""
        return self._found.files

    @property
    def entries(self) -> int:
        """How many entries were met so far."""
        return self._next_ino - ROOT_INO

    @property
    def is_finished(self) -> bool:
        """Whether everything was looked at."""
        return not self._to_visit

    def step(self) -> bool:
        """Look into one more directory; whether there was one left. Raises as ``scan``."""
        if not self._to_visit:
            return False
        self._to_visit += reversed(self._visit(self._to_visit.pop()))
        return True

    def found(self) -> ScannedTree:
        """What the whole scan found; it must be finished."""
        if not self.is_finished:
            raise RuntimeError("there are directories that were not looked at")
        # Format 2 of marshal: what it makes of a value does not depend on who else refers to it.
        fingerprint = hashlib.sha256(marshal.dumps(self._facts, 2)).digest()
        return replace(self._found, has_pyc=self._has_pyc, fingerprint=fingerprint)

    def _visit(self, visit: _Visit) -> list[_Visit]:
        """Number the entries of a directory; returns its subdirectories."""
        tree, directory = self._tree, visit.directory
        fd = tree.enter(directory)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (visit.device, visit.host_ino):
            raise tree.changed(directory)
        base = tree.base(directory)
        try:
            names = sorted(os.listdir(base))
        except OSError as error:
            raise tree.failure("list", directory, b"", error) from error
        entries: list[DirEntry] = []
        below: list[_Visit] = []
        for name in names:
            try:
                entries.append(DirEntry(self._number(fd, base, directory, name, below), name))
            except OSError as error:
                raise tree.failure("read", directory, name, error) from error
        self._facts += (names, [entry.ino for entry in entries])
        inode = self._found.inodes[visit.index]
        self._found.inodes[visit.index] = inode._replace(content=Directory(tuple(entries)))
        return below

    def _number(self, fd: int, base: bytes, directory: SourceDirectory, name: bytes, below: list[_Visit]) -> int:
        """The inode number of an entry, which is described unless it is one more name of a known inode."""
        ino = self._take_number()
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if status.st_dev == self._device or self._cross_mounts:
                here = SourceDirectory(directory, name)
                below.append(_Visit(here, status.st_dev, status.st_ino, len(self._found.inodes)))
            else:
                self._found.mount_points.append(directory.path(name))
        elif status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), ino)
            if first != ino:
                return first
        identity = identity_of(status) if stat.S_ISREG(status.st_mode) and status.st_size else b""
        known_without = identity in self._without_xattrs
        xattrs = () if known_without else xattrs_of(self._tree, base + b"/" + name, directory, name)
        if identity:
            self._found.files.append(SourceFile(directory, name, identity, status.st_size, bool(xattrs)))
        if stat.S_ISREG(status.st_mode):
            self._has_pyc = self._has_pyc or name.endswith(b".pyc")
        content = content_of(self._tree, fd, directory, name, status, self._stream.reserve)
        self._add(ino, status, content, xattrs, content.target if isinstance(content, Symlink) else b"")
        return ino

    def _add(
        self, ino: int, status: os.stat_result, content: Content, xattrs: tuple[Xattr, ...], target: bytes
    ) -> None:
        mode = status.st_mode
        uid, gid = status.st_uid, status.st_gid
        mtime_ns = self._mtime_of(status.st_mtime_ns)
        size = status.st_size if stat.S_ISREG(mode) else status.st_rdev
        self._facts += (ino, mode, uid, gid, size, mtime_ns, target)
        if xattrs:
            self._facts.append([(xattr.key, xattr.value) for xattr in xattrs])
        self._found.inodes.append(Inode(ino, uid, gid, mode & PERMISSIONS, content, xattrs, mtime_ns))

    def _take_number(self) -> int:
        ino = self._next_ino
        self._next_ino += 1
        return ino
