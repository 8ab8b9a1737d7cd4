"""The members of archives → the tree that unpacking them makes, in memory.

A later member takes the place of an earlier one of its name, as when unpacked: a directory keeps its entries, anything
else becomes another file, and further names of the old one keep what they had. Directories that are not mentioned are
made, 0755 and root's.

Nothing can lead outside, since there is no outside: names are taken apart here. ``..`` in a name is refused, slashes
in front of one are left out; a symbolic link on the way is followed within the tree, whose root is what its absolute
target begins at, and ``..`` in its target ends there. The target of a hard link must be in the tree.

White-outs of container layers (``.wh.NAME``, ``.wh..wh..opq``: image-spec, "Image Layer Filesystem Changeset") concern
what archives before had, not the one that they are in.

The result is a metadata layer with numbers of no meaning; who has it numbered gets the tree in the order of a build.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Literal

from puzzlefs.builder.source import printable
from puzzlefs.errors import FormatError, UnsafePathError
from puzzlefs.model import (
    ROOT_INO,
    BlockDevice,
    CharDevice,
    Content,
    Directory,
    DirEntry,
    Fifo,
    Inode,
    MetadataLayer,
    RegularFile,
    Symlink,
    Xattr,
)
from puzzlefs.tar.archive import Extent, Member
from puzzlefs.tar.records import BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, HARD_LINK, REGULAR, SYMLINK
from puzzlefs.vfs.paths import MAX_LINKS, MAX_PATH
from puzzlefs.vfs.tree import MAX_NAME_LENGTH, MAX_TARGET_LENGTH

WhiteoutRule = Literal["refuse", "apply", "keep"]
"""What names that begin with ``.wh.`` are: an error, what container layers mean by them, or files like others."""

_MAX_INODES: Final = 5_000_000
"""About as many as the metadata of an image have room for."""

_MAX_OWNER: Final = 0xFFFFFFFE
_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_EMPTY_DIRECTORY: Final = Directory(())


class _Node:
    """A file of any kind; ``entries`` is ``None`` for all but directories, whose ``content`` stays empty.

    An entry is a node, and the number of the archive that it is from.
    """

    __slots__ = ("archive", "content", "entries", "extents", "gid", "ino", "mode", "mtime_ns", "uid", "xattrs")

    def __init__(self) -> None:
        self.entries: dict[bytes, tuple[_Node, int]] | None = None
        self.content: Content = _EMPTY_DIRECTORY
        self.mode = 0o755
        self.uid = self.gid = 0
        self.mtime_ns = 0
        self.extents: tuple[Extent, ...] = ()
        self.xattrs: dict[bytes, bytes] = {}
        self.ino = 0
        self.archive = 0

    def describe(self, member: Member) -> None:
        """Take over a member's attributes."""
        self.mode, self.uid, self.gid = member.mode, member.uid, member.gid
        self.mtime_ns, self.xattrs = member.mtime_ns, member.xattrs


def _new_directory() -> _Node:
    node = _Node()
    node.entries = {}
    return node


class UnpackedTree:
    """The tree so far.

    Attributes:
        ignored: what was left out, and how often.
    """

    def __init__(self, whiteouts: WhiteoutRule) -> None:
        """An empty tree: a root directory, 0755 and root's."""
        self.ignored: Counter[str] = Counter()
        self._whiteouts = whiteouts
        self._root = _new_directory()
        self._count = 1
        self._archive = -1
        self._nodes: list[_Node] = []

    def next_archive(self) -> None:
        """What is added from now on is from another archive, on top of those before."""
        self._archive += 1

    def add(self, member: Member) -> None:
        """Unpack one more member.

        Raises:
            UnsafePathError: if its name, or what it is a hard link to, has ``..`` in it.
            FormatError: if it cannot be; it names the member.
        """
        try:
            self._add(member)
        except (FormatError, UnsafePathError) as error:
            error.message = f"{printable(member.name[:1000])}: {error.message}"
            raise

    def _add(self, member: Member) -> None:
        parts = self._parts(member.name)
        if not parts:
            if member.kind != DIRECTORY:
                raise FormatError("the root can only be a directory")
            self._describe(self._root, member)
            return
        name = parts.pop()
        if self._whiteouts != "keep" and name.startswith(_WHITEOUT):
            self._white_out(parts, name)
            return
        parent = self._directory(parts)
        entries = _entries(parent)
        if member.kind == HARD_LINK:
            self._link(entries, name, member.target)
            return
        old = entries.get(name)
        if member.kind == DIRECTORY:
            node = old[0] if old is not None and old[0].entries is not None else self._counted(_new_directory())
        else:
            node = self._counted(_Node())
            node.content = self._content(member)
            node.archive, node.extents = self._archive, member.extents
        self._describe(node, member)
        entries[name] = node, self._archive

    def layer(self, mtime_of: Callable[[int], int | None]) -> MetadataLayer:
        """The tree as inodes.

        Args:
            mtime_of: the timestamp to store for a modification time, both in nanoseconds since the epoch.
        """
        self._nodes = [self._root]
        self._root.ino = ROOT_INO
        inodes: list[Inode] = []
        for node in self._nodes:  # grows
            content = node.content if node.entries is None else Directory(tuple(self._numbered(node.entries)))
            xattrs = tuple(Xattr(key, value) for key, value in sorted(node.xattrs.items())) if node.xattrs else ()
            inodes.append(Inode(node.ino, node.uid, node.gid, node.mode, content, xattrs, mtime_of(node.mtime_ns)))
        return MetadataLayer(inodes)

    def content(self, ino: int) -> tuple[int, tuple[Extent, ...]]:
        """Where the data of a file are, by its number in ``layer``: the number of the archive, and where there."""
        node = self._nodes[ino - ROOT_INO]
        return node.archive, node.extents

    def _numbered(self, entries: dict[bytes, tuple[_Node, int]]) -> list[DirEntry]:
        found: list[DirEntry] = []
        for name in sorted(entries):
            node = entries[name][0]
            if not node.ino:
                self._nodes.append(node)
                node.ino = len(self._nodes)
            found.append(DirEntry(node.ino, name))
        return found

    # ---- members

    def _describe(self, node: _Node, member: Member) -> None:
        if max(member.uid, member.gid) > _MAX_OWNER:
            raise FormatError(f"no file can belong to {max(member.uid, member.gid)}")
        for key in member.xattrs:
            if not 0 < len(key) <= MAX_NAME_LENGTH or b"\0" in key:
                raise FormatError(f"{key[:80]!r} cannot be the name of an extended attribute")
        node.describe(member)

    def _content(self, member: Member) -> Content:
        if member.kind == REGULAR:
            return RegularFile(member.size, ())
        if member.kind == SYMLINK:
            if not 0 < len(member.target) <= MAX_TARGET_LENGTH or b"\0" in member.target:
                raise FormatError(f"a symbolic link cannot point to {member.target[:80]!r}")
            return Symlink(member.target)
        if member.kind == CHAR_DEVICE:
            return CharDevice(*member.device)
        if member.kind == BLOCK_DEVICE:
            return BlockDevice(*member.device)
        return Fifo()

    def _link(self, entries: dict[bytes, tuple[_Node, int]], name: bytes, target: bytes) -> None:
        parts = self._parts(target)
        shown = printable(target[:1000])
        if not parts:
            raise FormatError(f"it is a hard link to {shown or 'nothing'!r}, which can only be a directory")
        last = parts.pop()
        found = _entries(self._directory(parts, make=False)).get(last)
        if found is None:
            raise FormatError(
                f"it is a hard link to {shown}, which the archive does not have before it",
                hint="hard links must lead to members of the same archive",
            )
        if found[0].entries is not None:
            raise FormatError(f"it is a hard link to {shown}, which is a directory")
        entries[name] = found[0], self._archive

    def _counted(self, node: _Node) -> _Node:
        self._count += 1
        if self._count > _MAX_INODES:
            raise FormatError(f"there are more than {_MAX_INODES} files, which an image has no room for")
        return node

    # ---- names

    def _parts(self, name: bytes) -> list[bytes]:
        """The components of a name."""
        if len(name) > MAX_PATH or b"\0" in name:
            raise FormatError(f"it has a name of {len(name)} bytes" if len(name) > MAX_PATH else "it has a NUL in it")
        if name.startswith(b"/"):
            self.ignored["slashes in front of names"] += 1
        parts = [part for part in name.split(b"/") if part and part != b"."]
        if b".." in parts:
            raise UnsafePathError(
                "there is '..' in the name",
                hint="an archive that would be unpacked outside of its directory is refused",
            )
        if len(name) > MAX_NAME_LENGTH and max(map(len, parts), default=0) > MAX_NAME_LENGTH:
            raise FormatError(f"a name has more than {MAX_NAME_LENGTH} bytes")
        return parts

    def _directory(self, parts: list[bytes], *, make: bool = True) -> _Node:
        """The directory with this path; what is missing of it is made, if something is to be put there."""
        node = self._root
        for index, part in enumerate(parts):
            entries = _entries(node)
            found = entries.get(part)
            if found is None:
                if not make:
                    raise FormatError(f"the archive has no {_shown(parts, index)}")
                node = self._make(entries, part)
            elif found[0].entries is not None:
                node = self._enter(entries, part, found, make=make)
            else:
                return self._follow(parts, make=make)
        return node

    def _follow(self, parts: list[bytes], *, make: bool) -> _Node:
        """As ``_directory``, where there may be symbolic links on the way."""
        way = [self._root]
        todo = list(reversed(parts))
        of_links = links = 0  # of the components to come, so many are from targets
        while todo:
            part = todo.pop()
            is_of_link, of_links = of_links > 0, max(0, of_links - 1)
            if part == b"..":
                if len(way) > 1:
                    way.pop()
                continue
            entries = _entries(way[-1])
            found = entries.get(part)
            if found is None:
                if is_of_link or not make:
                    raise FormatError(
                        f"the way to it leads through a symbolic link to {printable(part)}, which is not there"
                        if is_of_link
                        else f"the archive has no {printable(part)}"
                    )
                way.append(self._make(entries, part))
            elif found[0].entries is not None:
                way.append(self._enter(entries, part, found, make=make))
            elif isinstance(found[0].content, Symlink):
                links += 1
                if links > MAX_LINKS:
                    raise FormatError("there are too many symbolic links on the way to it")
                target = found[0].content.target
                if target.startswith(b"/"):
                    del way[1:]
                new = [step for step in target.split(b"/") if step and step != b"."]
                todo += reversed(new)
                of_links += len(new)
            else:
                raise FormatError(f"{printable(part)}, which is on the way to it, is not a directory")
        return way[-1]

    def _make(self, entries: dict[bytes, tuple[_Node, int]], name: bytes) -> _Node:
        """A directory that no member mentions."""
        node = self._counted(_new_directory())
        entries[name] = node, self._archive
        return node

    def _enter(
        self, entries: dict[bytes, tuple[_Node, int]], name: bytes, found: tuple[_Node, int], *, make: bool
    ) -> _Node:
        """A directory on the way. If there is to be something in it, white-outs of this archive leave it there."""
        node, archive = found
        if make and archive != self._archive:
            entries[name] = node, self._archive
        return node

    # ---- white-outs

    def _white_out(self, parts: list[bytes], name: bytes) -> None:
        if self._whiteouts == "refuse":
            raise FormatError(
                "it is a white-out of a container layer",
                hint="import all layers of the image in their order with --whiteouts apply, "
                "or a file of this name with --whiteouts keep",
            )
        try:
            directory = self._directory(parts, make=False)
        except FormatError:
            return  # nothing to hide
        entries = _entries(directory)
        if name == _OPAQUE:
            self._prune(directory)
            return
        hidden = name[len(_WHITEOUT) :]
        found = entries.get(hidden)
        if found is None:
            return
        node, archive = found
        if archive != self._archive:
            del entries[hidden]
        elif node.entries is not None:
            self._prune(node)

    def _prune(self, top: _Node) -> None:
        """Remove everything below a directory that is from archives before this one."""
        directories = [top]
        for directory in directories:  # grows
            entries = _entries(directory)
            for name, (node, archive) in list(entries.items()):
                if archive == self._archive and node.entries is not None:
                    directories.append(node)
                elif archive != self._archive:
                    del entries[name]


def _entries(node: _Node) -> dict[bytes, tuple[_Node, int]]:
    if node.entries is None:
        raise FormatError("it is not a directory")
    return node.entries


def _shown(parts: list[bytes], index: int) -> str:
    return printable(b"/".join(parts[: index + 1])[:1000])
