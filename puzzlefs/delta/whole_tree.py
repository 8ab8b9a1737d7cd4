"""What a whole tree has that an image has not: a metadata layer on top of the image.

The tree is scanned as for any build; then each of its inodes is given the number of an inode of the image, if it can:
a directory that of the directory at its path; anything else that of an inode of the same kind at one of its paths. Each
number is given away once. What finds none gets a new number, so a file that became a directory does, and all that is
below a directory that was renamed.

An inode is written if it is new, or its attributes or entries differ, or its content does. Content is compared byte by
byte, since nothing less proves that it is the same; where only attributes differ, the chunks of the image are kept.
"""

from __future__ import annotations

import os

from puzzlefs.builder.scan import ScannedTree, SourceFile, identity_of
from puzzlefs.builder.source import SourceTree
from puzzlefs.delta.layer import NewLayer, Numbers, entries_of, has_same_attributes
from puzzlefs.image import Image
from puzzlefs.model import ROOT_INO, Directory, DirEntry, Inode, Kind, RegularFile, kind_of

_PIECE = 1 << 20


def layer_of_tree(tree: SourceTree, found: ScannedTree, base: Image) -> NewLayer:
    """The layer that makes of ``base`` what ``found`` is.

    Args:
        tree: the host's tree.
        found: what was found in it; its numbers are the tree's own.
        base: the image below.

    Returns:
        The layer; it has no inodes if there is no difference.

    Raises:
        SourceError: if a file cannot be read, or changes meanwhile.
        FormatError: if ``base`` is malformed.
        IntegrityError: if content of ``base`` is not what its digest says, with which a file has to be compared.
        NotFoundError: if it is missing.
    """
    return _Difference(tree, found, base).run()


class _Difference:
    def __init__(self, tree: SourceTree, found: ScannedTree, base: Image) -> None:
        self._tree = tree
        self._found = found
        self._base = base
        self._inodes = {inode.ino: inode for inode in found.inodes}
        regular = (inode.ino for inode in found.inodes if isinstance(inode.content, RegularFile) and inode.content.size)
        self._files = dict(zip(regular, found.files, strict=True))
        self._numbers: dict[int, int] = {}
        self._old: dict[int, Inode] = {}
        self._buffer = memoryview(bytearray(_PIECE))

    def run(self) -> NewLayer:
        self._give_numbers()
        layer = NewLayer(mount_points=self._found.mount_points, has_pyc=self._found.has_pyc)
        changed = [
            (self._numbers[inode.ino], inode.ino, changed)
            for inode in self._found.inodes
            if (changed := self._changed(inode)) is not None
        ]
        for number, ino, inode in sorted(changed, key=lambda row: row[0]):
            content = inode.content
            if isinstance(content, RegularFile) and ino in self._files and not self._keeps_chunks(ino, inode):
                content = layer.stream.reserve(content.size)
                layer.files.append(self._files[ino])
            layer.inodes.append(inode._replace(ino=number, content=content))
        return layer

    def _give_numbers(self) -> None:
        numbers = Numbers(self._base)
        numbers.take(ROOT_INO)
        given = self._numbers
        given[ROOT_INO] = ROOT_INO
        stack = [ROOT_INO]
        while stack:
            ino = stack.pop()
            below = entries_of(self._base, given.get(ino))
            directory = self._inodes[ino].content
            if not isinstance(directory, Directory):
                raise AssertionError("only directories are visited")
            for entry in directory.entries:
                kind = kind_of(self._inodes[entry.ino].content)
                old = below.get(entry.name)
                if old is not None and entry.ino not in given and old.kind is kind and numbers.take(old.ino):
                    given[entry.ino] = old.ino
                if kind is Kind.DIRECTORY:
                    stack.append(entry.ino)
        self._old = {ino: self._base.tree.inode(number) for ino, number in given.items()}
        for inode in self._found.inodes:
            if inode.ino not in given:
                given[inode.ino] = numbers.new()

    def _changed(self, inode: Inode) -> Inode | None:
        """The inode as it is to be written, its number aside; ``None`` if the image has it as it is."""
        old = self._old.get(inode.ino)
        content = inode.content
        if isinstance(content, Directory):
            entries = tuple(DirEntry(self._numbers[entry.ino], entry.name) for entry in content.entries)
            inode = inode._replace(content=Directory(entries))
            if old is not None and has_same_attributes(inode, old):
                below = tuple((entry.ino, entry.name) for entry in self._base.tree.entries(old.ino))
                if below == tuple((entry.ino, entry.name) for entry in entries):
                    return None
            return inode
        if old is None:
            return inode
        if isinstance(content, RegularFile):
            if not self._has_same_content(inode, old):
                return inode
            inode = inode._replace(content=old.content)
        elif content != old.content:
            return inode
        return None if has_same_attributes(inode, old) else inode

    def _keeps_chunks(self, ino: int, inode: Inode) -> bool:
        old = self._old.get(ino)
        return old is not None and inode.content is old.content

    # ---- content

    def _has_same_content(self, inode: Inode, old: Inode) -> bool:
        if not isinstance(old.content, RegularFile) or not isinstance(inode.content, RegularFile):
            raise AssertionError("numbers are given to inodes of the same kind")
        size = inode.content.size
        if size != old.content.size:
            return False
        return not size or self._is_same(self._files[inode.ino], old.ino, size)

    def _is_same(self, file: SourceFile, ino: int, size: int) -> bool:
        """Whether a file of the tree has the bytes of one of the image."""
        tree = self._tree
        fd = tree.open_file(file.directory, file.name)
        try:
            if identity_of(os.fstat(fd)) != file.identity:
                raise tree.changed(file.directory, file.name)
            same = True
            offset = 0
            while same and offset < size:
                count = os.readv(fd, [self._buffer])
                if not count:
                    raise tree.changed(file.directory, file.name)
                count = min(count, size - offset)
                same = self._matches(ino, offset, count)
                offset += count
            if identity_of(os.fstat(fd)) != file.identity:
                raise tree.changed(file.directory, file.name)
        except OSError as error:
            raise tree.failure("read", file.directory, file.name, error) from error
        finally:
            os.close(fd)
        return same

    def _matches(self, ino: int, offset: int, count: int) -> bool:
        """Whether the first ``count`` bytes of the buffer are those of a file of the image from ``offset`` on."""
        at = 0
        for view in self._base.views(self._base.tree.plan(ino, offset, count)):
            if bytes(view) != bytes(self._buffer[at : at + len(view)]):
                return False
            at += len(view)
        return at == count
