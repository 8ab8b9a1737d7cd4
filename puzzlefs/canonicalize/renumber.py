"""The tree that an image shows → inodes with the numbers that a build would give them.

The order is that of ``builder.scan`` (format/README.md, "Building"): a directory's entries take the next numbers in the
order of their names before any of its subdirectories is visited; a further name of a hard link takes a number and
leaves it unused. What a file system makes of an image when it is extracted is made of it here, too: a symbolic link has
the mode 0777, permissions have 12 bits.

Malformed trees are refused whole, as ``extract`` does: nothing is stored for an image that cannot be shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.describe import PERMISSIONS
from puzzlefs.builder.source import SourceDirectory, printable
from puzzlefs.errors import FormatError, NotFoundError
from puzzlefs.model import (
    MAX_FILE_SIZE,
    ROOT_INO,
    Content,
    Directory,
    DirEntry,
    Inode,
    Kind,
    RegularFile,
    Symlink,
    Xattr,
)
from puzzlefs.vfs import Tree

_SYMLINK_PERMISSIONS: Final = 0o777


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A regular file that is not empty, and so has a place in the stream.

    Attributes:
        directory: the directory it is in.
        name: its first name there.
        ino: its number in the image.
        size: bytes.
    """

    directory: SourceDirectory
    name: bytes
    ino: int
    size: int

    def shown(self) -> str:
        """Its path, for messages."""
        return "/" + printable(self.directory.path(self.name))


@dataclass(frozen=True, slots=True)
class CanonicalTree:
    """A tree with the numbers of a build.

    Attributes:
        inodes: every inode, sorted by its new number; regular files refer to parts of the stream that is still to be
            cut.
        files: the files of the stream, in its order.
    """

    inodes: list[Inode]
    files: list[ImageFile]


@dataclass(frozen=True, slots=True)
class _Visit:
    """A directory whose entries are still to be numbered."""

    place: SourceDirectory
    ino: int
    index: int


def renumber(tree: Tree, stream: FileStream) -> CanonicalTree:
    """Number everything in ``tree``, and give each of its files a part of ``stream``.

    Raises:
        FormatError: if the tree is malformed; it names the path.
    """
    return _Renumbering(tree, stream).run()


class _Renumbering:
    def __init__(self, tree: Tree, stream: FileStream) -> None:
        self._tree = tree
        self._stream = stream
        self._found = CanonicalTree([], [])
        self._linked: dict[int, int] = {}
        self._next_ino = ROOT_INO

    def run(self) -> CanonicalTree:
        self._shared = self._tree.links().shared  # and there are not more entries than the image can hold
        top = SourceDirectory()
        self._number(top, b"", ROOT_INO)
        stack = [_Visit(top, ROOT_INO, 0)]
        while stack:
            stack += reversed(self._visit(stack.pop()))
        return self._found

    def _visit(self, visit: _Visit) -> list[_Visit]:
        """Number the entries of a directory; returns its subdirectories."""
        entries: list[DirEntry] = []
        below: list[_Visit] = []
        try:
            found = self._tree.entries(visit.ino)
        except (FormatError, NotFoundError) as error:
            raise _at(visit.place, b"", error) from error
        for entry in found:
            try:
                self._tree.check_entry(visit.ino, entry)
            except FormatError as error:
                raise _at(visit.place, entry.name, error) from error
            if entry.kind is Kind.DIRECTORY:
                here = SourceDirectory(visit.place, entry.name)
                below.append(_Visit(here, entry.ino, len(self._found.inodes)))
                number = self._number(here, b"", entry.ino)
            else:
                number = self._number(visit.place, entry.name, entry.ino)
            entries.append(DirEntry(number, entry.name))
        inodes = self._found.inodes
        inodes[visit.index] = inodes[visit.index]._replace(content=Directory(tuple(entries)))
        return below

    def _number(self, place: SourceDirectory, name: bytes, ino: int) -> int:
        """The new number of an entry, whose inode is described unless this is one more name of it."""
        number = self._next_ino
        self._next_ino += 1
        if ino in self._shared:
            first = self._linked.setdefault(ino, number)
            if first != number:
                return first
        try:
            self._found.inodes.append(self._described(place, name, ino, number))
        except (FormatError, NotFoundError) as error:
            raise _at(place, name, error) from error
        return number

    def _described(self, place: SourceDirectory, name: bytes, ino: int, number: int) -> Inode:
        tree = self._tree
        tree.attributes(ino)  # an owner or a device number that cannot be is refused here
        inode = tree.inode(ino)
        permissions = inode.permissions & PERMISSIONS
        content: Content = inode.content
        match content:
            case RegularFile(size=size):
                content = self._stream.reserve(size)
                if self._stream.size > MAX_FILE_SIZE:
                    raise FormatError("the files of the image are too large for one stream")
                if size:
                    self._found.files.append(ImageFile(place, name, ino, size))
            case Directory():
                content = Directory(())
            case Symlink():
                content = Symlink(tree.readlink(ino))
                permissions = _SYMLINK_PERMISSIONS
            case _:
                pass
        xattrs = tuple(Xattr(key, value) for key, value in sorted(tree.xattrs(ino).items()))
        return Inode(number, inode.uid, inode.gid, permissions, content, xattrs, inode.mtime_ns)


def _at(place: SourceDirectory, name: bytes, error: FormatError | NotFoundError) -> FormatError:
    return FormatError(f"/{printable(place.path(name))}: {error.message}", hint=error.hint)
