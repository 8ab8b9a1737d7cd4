"""A directory of the host as one of two trees that are compared.

It is reached as for a build (``builder.source``): never through a symbolic link, whoever moves directories about, and
with the same idea of what a mount point is. Files are compared by their bytes, and must not change meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from puzzlefs.builder.describe import PERMISSIONS, xattrs_of
from puzzlefs.builder.scan import identity_of
from puzzlefs.builder.source import SourceDirectory, SourceTree
from puzzlefs.diff.report import EntryState
from puzzlefs.diff.side import Read
from puzzlefs.errors import InvalidArgumentError, SourceError
from puzzlefs.model import Kind
from puzzlefs.vfs import file_type_to_kind
from puzzlefs.vfs.paths import MAX_LINKS, shown


@dataclass(frozen=True, slots=True, eq=False)
class HostNode:
    """An inode of the host, as it was met under one of its names.

    Attributes:
        directory: the directory that it is in.
        name: its name there; the root has none.
        status: what ``lstat`` said.
    """

    directory: SourceDirectory
    name: bytes
    status: os.stat_result

    @property
    def itself(self) -> SourceDirectory:
        """A directory as such."""
        return SourceDirectory(self.directory, self.name) if self.name else self.directory


class HostSide:
    """See ``Side``. Use it as a context manager."""

    def __init__(self, path: Path, *, cross_mounts: bool = False) -> None:
        """The tree below a directory.

        Args:
            path: the directory.
            cross_mounts: whether to look into directories on which something else is mounted.

        Raises:
            NotFoundError: if there is nothing.
            InvalidArgumentError: if it is no directory.
            SourceError: if it cannot be opened.
        """
        self._tree = SourceTree(path)
        self._cross_mounts = cross_mounts
        self._root = HostNode(self._tree.top, b"", os.fstat(self._tree.fd))
        self.mount_points: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tree.close()

    @property
    def root(self) -> HostNode:
        return self._root

    def resolve(self, path: bytes) -> tuple[HostNode, Kind, bytes] | None:
        if b"\0" in path:
            raise InvalidArgumentError(f"{shown(path)} cannot be a path: there is a NUL in it")
        way = [self._root]
        todo = path.split(b"/")[::-1]
        links = 0
        while todo:
            name = todo.pop()
            here = way[-1]
            if not stat.S_ISDIR(here.status.st_mode):
                return None
            if name in (b"", b"."):
                continue
            if name == b"..":
                way = way[:-1] or way
                continue
            node = self._look_up(here, name)
            if node is None:
                return None
            if stat.S_ISLNK(node.status.st_mode) and todo:
                links += 1
                if links > MAX_LINKS:
                    raise InvalidArgumentError(f"{shown(path)} leads through more than {MAX_LINKS} symbolic links")
                target = self._readlink(node)
                todo += target.split(b"/")[::-1]
                if target.startswith(b"/"):
                    del way[1:]
                continue
            way.append(node)
        return way[-1], self._kind_of(way[-1]), way[-1].directory.path(way[-1].name)

    def entries(self, node: HostNode) -> Sequence[tuple[bytes, HostNode, Kind]]:
        tree = self._tree
        directory = node.itself
        if node.status.st_dev != self._root.status.st_dev and not self._cross_mounts:
            self.mount_points.append(directory.path())
            return ()
        fd = tree.enter(directory)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (node.status.st_dev, node.status.st_ino):
            raise tree.changed(directory)
        try:
            names = sorted(os.listdir(tree.base(directory)))
        except OSError as error:
            raise tree.failure("list", directory, b"", error) from error
        found: list[tuple[bytes, HostNode, Kind]] = []
        for name in names:
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                raise tree.failure("read", directory, name, error) from error
            node = HostNode(directory, name, status)
            found.append((name, node, self._kind_of(node)))
        return found

    def state(self, node: HostNode) -> EntryState:
        status = node.status
        mode = status.st_mode
        where: bytes | int = self._tree.base(node.directory) + b"/" + node.name if node.name else self._tree.fd
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        return EntryState(
            kind=self._kind_of(node),
            permissions=mode & PERMISSIONS,
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size if stat.S_ISREG(mode) else None,
            target=self._readlink(node) if stat.S_ISLNK(mode) else None,
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else None,
            xattrs={xattr.key: xattr.value for xattr in xattrs_of(self._tree, where, node.directory, node.name)},
            mtime_ns=status.st_mtime_ns,
        )

    def links(self, node: HostNode) -> Hashable | None:
        status = node.status
        return None if status.st_nlink < 2 else (status.st_dev, status.st_ino)

    def may_have_links(self) -> bool:
        return True

    def identity(self, node: HostNode) -> Hashable | None:
        return node.status.st_dev, node.status.st_ino

    def parts(self, node: HostNode) -> None:
        return None

    @contextlib.contextmanager
    def reading(self, node: HostNode) -> Iterator[Read]:
        tree = self._tree
        fd = tree.open_file(node.directory, node.name)

        def check() -> None:
            if identity_of(os.fstat(fd)) != identity_of(node.status):
                raise tree.changed(node.directory, node.name)

        def read(offset: int, size: int) -> bytes:
            stop = min(offset + size, node.status.st_size)
            parts: list[bytes] = []
            while offset < stop:
                try:
                    part = os.pread(fd, stop - offset, offset)
                except OSError as error:
                    raise tree.failure("read", node.directory, node.name, error) from error
                if not part:
                    raise tree.changed(node.directory, node.name)
                parts.append(part)
                offset += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

        try:
            check()
            yield read
            check()
        finally:
            os.close(fd)

    # ---- inside

    def _kind_of(self, node: HostNode) -> Kind:
        kind = file_type_to_kind(stat.S_IFMT(node.status.st_mode))
        if kind is None:
            path = self._tree.shown(node.directory.path(node.name))
            raise SourceError(f"{path} is of a kind that no image can hold (mode {node.status.st_mode:#o})")
        return kind

    def _look_up(self, directory: HostNode, name: bytes) -> HostNode | None:
        here = directory.itself
        try:
            return HostNode(here, name, os.stat(name, dir_fd=self._tree.enter(here), follow_symlinks=False))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._tree.failure("read", here, name, error) from error

    def _readlink(self, node: HostNode) -> bytes:
        try:
            return os.readlink(node.name, dir_fd=self._tree.enter(node.directory))
        except OSError as error:
            raise self._tree.failure("read", node.directory, node.name, error) from error
