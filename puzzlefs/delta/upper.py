"""What was written to an overlay on an image, from its upper directory: a metadata layer on top of the image.

Only the upper directory is walked. Of the image, the directories on the way are read, and written whole where something
in them changed: a name that a white-out hides is left out. So the cost is that of what was written.

A directory keeps the number of the directory of the image that it lies over. Everything else in the upper directory
gets a new number: it was copied up, and whatever other names its inode has in the image show the old one. Names of one
inode within the upper directory stay names of one inode.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from puzzlefs.builder.describe import PERMISSIONS, content_of, xattrs_of
from puzzlefs.builder.scan import SourceFile, identity_of
from puzzlefs.builder.source import SourceDirectory, SourceTree, printable
from puzzlefs.delta.layer import NewLayer, Numbers, entries_of, has_same_attributes
from puzzlefs.delta.overlay import TRUSTED, USER, OverlayEntry, is_whiteout, read_overlay_xattrs
from puzzlefs.errors import NotFoundError, PuzzlefsError, SourceError
from puzzlefs.image import Image
from puzzlefs.model import ROOT_INO, Content, Directory, DirEntry, Inode, Kind, RegularFile
from puzzlefs.vfs import Entry

_HINT: Final = "it must be the upper directory of an overlayfs on this very image"


def layer_of_upper(
    tree: SourceTree, base: Image, mtime_of: Callable[[int], int | None], *, userxattr: bool | None = None
) -> NewLayer:
    """The layer that makes of ``base`` what an overlay with this upper directory shows.

    Args:
        tree: the upper directory.
        base: the image that is the lower one.
        mtime_of: the timestamp to store for a modification time, both in nanoseconds since the epoch.
        userxattr: whether the overlay is mounted with ``userxattr``; attributes of both kinds are taken for its own if
            that is not known.

    Returns:
        The layer; it has no inodes if nothing was changed.

    Raises:
        SourceError: if something cannot be read, changes meanwhile, or refers to what the image does not have.
        FormatError: if ``base`` is malformed where it has to be read.
    """
    prefixes = {None: (TRUSTED, USER), False: (TRUSTED,), True: (USER,)}[userxattr]
    return _Upper(tree, base, mtime_of, prefixes).run()


@dataclass(frozen=True, slots=True)
class _Visit:
    """A directory that is still to be visited.

    Attributes:
        directory: the upper directory.
        identity: device and inode number that it must have.
        inode: it, without entries, under its number.
        below: the directory of the image with which it merges.
        old: the inode of the image whose number it has.
    """

    directory: SourceDirectory
    identity: tuple[int, int]
    inode: Inode
    below: int | None
    old: int | None


class _Upper:
    def __init__(
        self,
        tree: SourceTree,
        base: Image,
        mtime_of: Callable[[int], int | None],
        prefixes: tuple[bytes, ...],
    ) -> None:
        self._tree = tree
        self._base = base
        self._mtime_of = mtime_of
        self._prefixes = prefixes
        self._layer = NewLayer()
        self._numbers = Numbers(base)
        self._linked: dict[tuple[int, int], int] = {}
        self._device = os.fstat(tree.fd).st_dev

    def run(self) -> NewLayer:
        tree, top = self._tree, self._tree.top
        status = os.fstat(tree.fd)
        entry = read_overlay_xattrs(xattrs_of(tree, tree.fd, top, b""), self._prefixes)
        self._numbers.take(ROOT_INO)
        below = None if entry.is_opaque else ROOT_INO
        root = self._inode(ROOT_INO, status, Directory(()), entry)
        stack = [_Visit(top, (status.st_dev, status.st_ino), root, below, ROOT_INO)]
        while stack:
            stack += reversed(self._visit(stack.pop()))
        self._layer.inodes.sort(key=lambda inode: inode.ino)
        return self._layer

    def _visit(self, visit: _Visit) -> list[_Visit]:
        """Describe the entries of a directory, and the directory if it is not as it was; its subdirectories."""
        tree, directory = self._tree, visit.directory
        fd = tree.enter(directory)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != visit.identity:
            raise tree.changed(directory)
        base = tree.base(directory)
        try:
            names = sorted(os.listdir(base))
        except OSError as error:
            raise tree.failure("list", directory, b"", error) from error
        below = entries_of(self._base, visit.below)
        entries = {name: entry.ino for name, entry in below.items()}
        visits: list[_Visit] = []
        for name in names:
            try:
                ino = self._number(fd, base, visit, name, below, visits)
            except OSError as error:
                raise tree.failure("read", directory, name, error) from error
            if ino is None:
                entries.pop(name, None)
            else:
                entries[name] = ino
        content = Directory(tuple(DirEntry(entries[name], name) for name in sorted(entries)))
        self._add_directory(visit.inode._replace(content=content), content, visit.old)
        return visits

    def _add_directory(self, inode: Inode, directory: Directory, old_ino: int | None) -> None:
        if old_ino is not None and has_same_attributes(inode, self._base.tree.inode(old_ino)):
            old = tuple((entry.ino, entry.name) for entry in self._base.tree.entries(old_ino))
            if old == tuple((entry.ino, entry.name) for entry in directory.entries):
                return
        self._layer.inodes.append(inode)

    def _number(
        self,
        fd: int,
        base: bytes,
        visit: _Visit,
        name: bytes,
        below: Mapping[bytes, Entry],
        visits: list[_Visit],
    ) -> int | None:
        """The inode number of an upper entry, which is described unless it is one more name of a known inode.

        ``None`` for a white-out.
        """
        tree, directory = self._tree, visit.directory
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISCHR(status.st_mode) and not status.st_rdev:
            return None
        entry = read_overlay_xattrs(xattrs_of(tree, base + b"/" + name, directory, name), self._prefixes)
        if is_whiteout(status, entry):
            return None
        if stat.S_ISDIR(status.st_mode):
            return self._number_directory(status, entry, visit, name, below.get(name), visits)
        ino = self._numbers.new()
        if status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), ino)
            if first != ino:
                return first
        content: Content
        if entry.is_metacopy and stat.S_ISREG(status.st_mode):
            content = self._lower_content(entry, visit, name)
        else:
            content = content_of(tree, fd, directory, name, status, self._layer.stream.reserve)
            if stat.S_ISREG(status.st_mode):
                self._layer.has_pyc = self._layer.has_pyc or name.endswith(b".pyc")
                if status.st_size:
                    identity = identity_of(status)
                    self._layer.files.append(SourceFile(directory, name, identity, status.st_size, bool(entry.xattrs)))
        self._layer.inodes.append(self._inode(ino, status, content, entry))
        return ino

    def _number_directory(
        self,
        status: os.stat_result,
        entry: OverlayEntry,
        visit: _Visit,
        name: bytes,
        here: Entry | None,
        visits: list[_Visit],
    ) -> int:
        """The number of an upper directory, which is to be visited."""
        merges = None
        if not entry.is_opaque:
            if entry.redirect is not None:
                merges = self._redirected(entry.redirect, visit, name, Kind.DIRECTORY)
            elif here is not None and here.kind is Kind.DIRECTORY:
                merges = here.ino
        old = merges
        if old is None and here is not None and here.kind is Kind.DIRECTORY and entry.redirect is None:
            old = here.ino
        if old is not None and not self._numbers.take(old):
            if merges is not None:
                raise self._refused(
                    visit, name, "it lies over a directory of the image that another one lies over, too"
                )
            old = None
        ino = self._numbers.new() if old is None else old
        inode = self._inode(ino, status, Directory(()), entry)
        here_directory = SourceDirectory(visit.directory, name)
        if status.st_dev == self._device:
            identity = (status.st_dev, status.st_ino)
            visits.append(_Visit(here_directory, identity, inode, merges, old))
        else:
            self._layer.mount_points.append(visit.directory.path(name))
            self._layer.inodes.append(inode)
        return ino

    def _lower_content(self, entry: OverlayEntry, visit: _Visit, name: bytes) -> RegularFile:
        """The content of the lower file of which only the attributes were copied up."""
        path = name if entry.redirect is None else entry.redirect
        content = self._base.tree.inode(self._redirected(path, visit, name, Kind.REGULAR)).content
        if not isinstance(content, RegularFile):
            raise AssertionError("its kind was looked at")
        return content

    def _redirected(self, path: bytes, visit: _Visit, name: bytes, kind: Kind) -> int:
        """The inode of the image at ``path``, which an upper entry names."""
        tree = self._base.tree
        ino = ROOT_INO if path.startswith(b"/") else visit.below
        found: Entry | None = None
        try:
            for part in filter(None, path.split(b"/")):
                if ino is None or part in (b".", b".."):
                    raise NotFoundError("")
                found = tree.lookup(ino, part)
                ino = found.ino
        except NotFoundError:
            found = None
        if found is None or found.kind is not kind:
            raise self._refused(visit, name, f"it refers to {printable(path)!r}, which the image does not have")
        return found.ino

    def _inode(self, ino: int, status: os.stat_result, content: Content, entry: OverlayEntry) -> Inode:
        return Inode(
            ino,
            status.st_uid,
            status.st_gid,
            status.st_mode & PERMISSIONS,
            content,
            entry.xattrs,
            self._mtime_of(status.st_mtime_ns),
        )

    def _refused(self, visit: _Visit, name: bytes, why: str) -> PuzzlefsError:
        return SourceError(f"{self._tree.shown(visit.directory.path(name))}: {why}", hint=_HINT)
