"""An image as one of two trees that are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final

from puzzlefs.diff.report import EntryState
from puzzlefs.diff.side import Read
from puzzlefs.errors import PathNotDirectoryError, PathNotFoundError
from puzzlefs.image import Image
from puzzlefs.model import ROOT_INO, BlockDevice, CharDevice, FileChunk, Kind, RegularFile, Symlink, kind_of
from puzzlefs.vfs import Entry
from puzzlefs.vfs.paths import resolve

_LOOKED_AT: Final = (Kind.DIRECTORY, Kind.UNKNOWN)


class ImageSide:
    """See ``Side``. Nodes are inode numbers."""

    root: Final = ROOT_INO
    mount_points: Final[Sequence[bytes]] = ()

    def __init__(self, image: Image, is_shared: Callable[[int], bool] | None = None) -> None:
        """The tree that ``image`` shows.

        Args:
            image: the image; it stays open.
            is_shared: whether an inode number means the same inode in the other tree; none does, if not given.
        """
        self.image = image
        self._tree = image.tree
        self._is_shared = is_shared
        self._shared_links = image.tree.links().shared

    def resolve(self, path: bytes) -> tuple[int, Kind, bytes] | None:
        try:
            place = resolve(self._tree, path, follow=False)
        except (PathNotFoundError, PathNotDirectoryError):
            return None
        return place.ino, place.kind, place.path

    def entries(self, node: int) -> Sequence[Entry]:
        entries = self._tree.entries(node)
        for entry in entries:
            if entry.kind in _LOOKED_AT:
                self._tree.check_entry(node, entry)
        return entries

    def state(self, node: int) -> EntryState:
        inode = self._tree.inode(node)
        content = inode.content
        return EntryState(
            kind=kind_of(content),
            permissions=inode.permissions,
            uid=inode.uid,
            gid=inode.gid,
            size=content.size if isinstance(content, RegularFile) else None,
            target=content.target if isinstance(content, Symlink) else None,
            device=(content.major, content.minor) if isinstance(content, CharDevice | BlockDevice) else None,
            xattrs={xattr.key: xattr.value for xattr in inode.xattrs},
            mtime_ns=inode.mtime_ns,
        )

    def links(self, node: int) -> Hashable | None:
        return node if node in self._shared_links else None

    def may_have_links(self) -> bool:
        return bool(self._shared_links)

    def identity(self, node: int) -> Hashable | None:
        return node if self._is_shared is not None and self._is_shared(node) else None

    def parts(self, node: int) -> Sequence[FileChunk]:
        return self._tree.parts(node)

    @contextlib.contextmanager
    def reading(self, node: int) -> Iterator[Read]:
        yield lambda offset, size: self.image.read(node, offset, size)
