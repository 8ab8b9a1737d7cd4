"""A metadata layer that is being made: new and changed inodes, and the files whose content is to be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.scan import SourceFile
from puzzlefs.image import Image
from puzzlefs.model import Inode, Kind, Xattr
from puzzlefs.vfs import Entry


@dataclass(slots=True)
class NewLayer:
    """One layer.

    Attributes:
        stream: the content of ``files``; read later.
        inodes: new and changed inodes.
        files: the files of the stream, in its order.
        mount_points: paths of directories that were left empty because something else is mounted there.
        has_pyc: whether there is a compiled Python module.
    """

    stream: FileStream = field(default_factory=FileStream)
    inodes: list[Inode] = field(default_factory=list)
    files: list[SourceFile] = field(default_factory=list)
    mount_points: list[bytes] = field(default_factory=list)
    has_pyc: bool = False


class Numbers:
    """Gives out the inode numbers of a layer: each of the base's once, and new ones behind the highest."""

    def __init__(self, base: Image) -> None:
        self._next = max(table.max_ino() for table in base.rootfs.metadata_layers) + 1
        self._taken: set[int] = set()

    def take(self, ino: int) -> bool:
        """Keep a number of the base; whether nobody else has."""
        if ino in self._taken:
            return False
        self._taken.add(ino)
        return True

    def new(self) -> int:
        """A number that the base does not have."""
        number = self._next
        self._next += 1
        return number


def entries_of(base: Image, ino: int | None) -> Mapping[bytes, Entry]:
    """The entries of a directory of the base by name, without those that lead nowhere; none if ``ino`` is ``None``."""
    if ino is None:
        return {}
    return {entry.name: entry for entry in base.tree.entries(ino) if entry.kind is not Kind.UNKNOWN}


def has_same_attributes(inode: Inode, old: Inode) -> bool:
    """Whether two inodes have the same owner, permissions, extended attributes and modification time."""
    return (inode.uid, inode.gid, inode.permissions, inode.mtime_ns) == (
        old.uid,
        old.gid,
        old.permissions,
        old.mtime_ns,
    ) and _by_key(inode.xattrs) == _by_key(old.xattrs)


def _by_key(xattrs: tuple[Xattr, ...]) -> dict[bytes, bytes]:
    return {xattr.key: xattr.value for xattr in xattrs}


def has_timestamps(base: Image) -> bool:
    """Whether the image carries modification times."""
    return base.tree.inode(base.tree.root).mtime_ns is not None
