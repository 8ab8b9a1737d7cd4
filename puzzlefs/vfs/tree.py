"""The tree that a stack of metadata layers shows.

Rules (format/README.md, "Metadata layers"):

* An inode is what the topmost layer that mentions its number says; a white-out means that it does not exist.
* A directory's entries are those of that same layer; with ``look_below``, those of the next layer below that knows the
  directory count as well, under the names that are not taken yet. Then entries that point to white-outs go. (Within one
  layer a live entry wins over one that points to a white-out: deltas of the original implementation have both.)
* A directory has one place. A second entry for it, and any entry for the root, is an error of the format at that entry.

Everything is looked up when it is asked for; nothing walks the image but ``walk`` and the one pass that counts links.
Caches are bounded. Thread safe: the layers are immutable, the caches lock.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, InvalidArgumentError, NotFoundError
from puzzlefs.lru import WeightedLru
from puzzlefs.model import (
    MAX_FILE_SIZE,
    ROOT_INO,
    Directory,
    FileChunk,
    Glance,
    Inode,
    InodeTable,
    Kind,
    RegularFile,
    Resident,
    Symlink,
    Whiteout,
)
from puzzlefs.vfs.attributes import Attributes, attributes_at_a_glance, attributes_of
from puzzlefs.vfs.links import Links, count_links
from puzzlefs.vfs.plan import FileMap, ReadPlan
from puzzlefs.vfs.stack import LayerStack

MAX_NAME_LENGTH: Final = 255
"""Bytes of the longest name (Linux NAME_MAX)."""

MAX_TARGET_LENGTH: Final = 4095
"""Bytes of the longest symlink target (Linux PATH_MAX less the terminating NUL)."""

_ENTRY_CACHE: Final = 16_384
_MAP_CACHE: Final = 16_384
_UNBOUNDED: Final = 1 << 62


class Entry(NamedTuple):
    """A name in a directory as the whole stack shows it; ``kind`` is ``UNKNOWN`` where there is no such inode."""

    name: bytes
    ino: int
    kind: Kind


class Totals(NamedTuple):
    """What the image holds: ``inodes``, and ``size``, the bytes of all its regular files.

    Files that share their chunks can have more bytes together than any number has that a host knows; it ends there.
    """

    inodes: int
    size: int


class Tree:
    """An image as a file system, by inode numbers.

    Attributes:
        max_entries: how many directory entries an honest image of this size has at most.
        owner: gives the topmost metadata layer that mentions an inode; if none does, some layer, which will say so.
    """

    root: Final = ROOT_INO

    def __init__(self, layers: Sequence[InodeTable], *, max_entries: int = _UNBOUNDED) -> None:
        """The tree that ``layers`` (topmost first) show.

        Args:
            layers: the metadata layers.
            max_entries: no honest image of this size has more directory entries than that.
        """
        self._stack = stack = LayerStack(layers)
        self._top = stack.layers[0] if stack.layers else None
        self.owner: Callable[[int], InodeTable] = stack.owner
        self._glance: Callable[[int], Glance | None] = lambda ino: stack.owner(ino).glance(ino)
        if self._top is not None and len(stack.layers) == 1:  # most images: there is nothing to decide
            self.owner, self._glance = partial(_first, self._top), self._top.glance
        self.max_entries = max_entries
        self._entries: WeightedLru[int, tuple[Entry, ...]] = WeightedLru(_ENTRY_CACHE)
        self._maps: WeightedLru[int, FileMap] = WeightedLru(_MAP_CACHE)
        self._lock = threading.Lock()
        self._links: Links | None = None
        self._first_places: dict[int, tuple[int, bytes]] = {}
        self._totals: Totals | None = None
        self._has_xattrs: bool | None = None

    # ---- inodes

    def inode(self, ino: int) -> Inode:
        """The inode with this number.

        Raises:
            NotFoundError: if there is none, or it is whited out.
            FormatError: if it is malformed.
        """
        inode = self.owner(ino).find(ino)
        if inode is None or isinstance(inode.content, Whiteout):
            raise NotFoundError(f"the image has no inode {ino}")
        return inode

    def kind(self, ino: int) -> Kind | None:
        """The kind of an inode without decoding it: ``WHITEOUT`` if it is whited out, ``None`` if no layer has it.

        ``UNKNOWN`` is one that we do not know, which must not make its neighbours unreadable.
        """
        try:
            return self.owner(ino).kind(ino)
        except FormatError:
            return Kind.UNKNOWN

    def attributes(self, ino: int) -> Attributes:
        """What ``stat`` shows.

        The first call for anything but a directory counts the links of the whole image.

        Raises:
            NotFoundError: as ``inode``.
            FormatError: as ``inode``; also for sizes and device numbers that cannot be.
        """
        if (glance := self._glance(ino)) is not None:
            if glance.kind == Kind.DIRECTORY:
                return attributes_at_a_glance(ino, glance, 2 + self._count_subdirectories(ino))
            return attributes_at_a_glance(ino, glance, (self._links or self.links()).shared.get(ino, 1))
        inode = self.inode(ino)
        match inode.content:
            case Directory():
                return attributes_of(inode, 2 + self._count_subdirectories(ino))
            case RegularFile(size=size) if size > MAX_FILE_SIZE:
                raise FormatError(f"inode {ino}: a file of {size} bytes cannot be")
            case _:
                return attributes_of(inode, self.links().shared.get(ino, 1))

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        """The extended attributes of an inode.

        Raises:
            NotFoundError: as ``inode``.
            FormatError: as ``inode``; also for names that cannot be.
        """
        result: dict[bytes, bytes] = {}
        if self._glance(ino) is not None:
            return result  # the ordinary inode has none
        for xattr in self.inode(ino).xattrs:
            if not xattr.key or b"\0" in xattr.key or len(xattr.key) > MAX_NAME_LENGTH:
                raise FormatError(f"inode {ino}: {xattr.key[:80]!r} cannot be the name of an extended attribute")
            result[xattr.key] = xattr.value
        return result

    def may_have_xattrs(self) -> bool:
        """Whether any inode of any layer has extended attributes; may be wrong in saying that one has."""
        if self._has_xattrs is None:
            self._has_xattrs = any(layer.may_have_xattrs() for layer in self._stack.layers)
        return self._has_xattrs

    def readlink(self, ino: int) -> bytes:
        """The target of a symlink.

        Raises:
            NotFoundError: as ``inode``.
            InvalidArgumentError: if the inode is no symlink.
            FormatError: as ``inode``; also for a target that cannot be.
        """
        content = self.inode(ino).content
        if not isinstance(content, Symlink):
            raise InvalidArgumentError(f"inode {ino} is not a symbolic link")
        if not content.target or b"\0" in content.target or len(content.target) > MAX_TARGET_LENGTH:
            raise FormatError(f"inode {ino}: a symbolic link cannot point to {content.target[:80]!r}")
        return content.target

    # ---- directories

    def entries(self, ino: int) -> Sequence[Entry]:
        """The entries of a directory, sorted by name.

        Raises:
            NotFoundError: as ``inode``.
            InvalidArgumentError: if the inode is no directory.
            FormatError: as ``inode``; also for names that cannot be, and names that stand twice.
        """
        cached = self._entries.get(ino)
        if cached is None:
            cached = self._merge(ino)
            self._entries.put(ino, cached, len(cached) + 1)
        return cached

    def lookup(self, parent: int, name: bytes) -> Entry:
        """The entry ``name`` of a directory.

        Raises:
            NotFoundError: if there is no such name.
            InvalidArgumentError: if ``parent`` is no directory.
            FormatError: if the directory or the entry is malformed: it points to nothing, or to a directory that has
                its place elsewhere.
        """
        entries = self.entries(parent)
        position = bisect_left(entries, name, key=_name)
        if position == len(entries) or entries[position].name != name:
            raise NotFoundError(f"directory {parent} has no entry {name!r}")
        self.check_entry(parent, entries[position])
        return entries[position]

    def check_entry(self, parent: int, entry: Entry) -> None:
        """Raise what is wrong with an entry itself, if anything is.

        Raises:
            FormatError: if it points to nothing, or to a directory that has its place elsewhere.
        """
        if entry.kind is Kind.UNKNOWN:
            raise FormatError(
                f"entry {entry.name!r} of directory {parent} points to inode {entry.ino}, which is missing or no file"
            )
        if entry.kind is Kind.DIRECTORY and entry.ino in self.links().misplaced:
            if entry.ino == ROOT_INO:
                raise FormatError(f"entry {entry.name!r} of directory {parent} points to the root directory")
            if self._first_place(entry.ino) != (parent, entry.name):
                raise FormatError(
                    f"entry {entry.name!r} of directory {parent} is a second name of directory {entry.ino}"
                )

    def walk(self) -> Iterator[tuple[int, int, Entry]]:
        """Every entry below the root, depth first, each directory's entries in the order of their names.

        Yields:
            ``(depth, parent, entry)``; the entries of the root have depth 0.

        Raises:
            FormatError: at the first entry or directory that is malformed.
        """
        self.links()
        count = 0
        stack: list[tuple[int, Iterator[Entry]]] = [(ROOT_INO, iter(self.entries(ROOT_INO)))]
        while stack:
            parent, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
                continue
            count += 1
            if count > self.max_entries:
                raise FormatError(f"there are more than {self.max_entries} entries, which this image cannot hold")
            self.check_entry(parent, entry)
            yield len(stack) - 1, parent, entry
            if entry.kind is Kind.DIRECTORY:
                stack.append((entry.ino, iter(self.entries(entry.ino))))

    # ---- content

    def plan(self, ino: int, offset: int, size: int) -> ReadPlan:
        """Which pieces of which chunks make up ``size`` bytes of a file from ``offset`` on.

        Raises:
            NotFoundError: as ``inode``.
            InvalidArgumentError: if the inode is no regular file.
            FormatError: as ``inode``.
        """
        return self.file_map(ino).plan(offset, size)

    def parts(self, ino: int) -> Sequence[FileChunk]:
        """The parts of a file in their order, for whoever reads all of it once; as ``plan``."""
        chunks = self.owner(ino).chunks(ino)
        if chunks is not None:
            return chunks
        content = self.inode(ino).content
        if not isinstance(content, RegularFile):
            raise InvalidArgumentError(f"inode {ino} is not a regular file")
        return content.chunks

    def file_map(self, ino: int) -> FileMap:
        """Where the parts of a file begin; as ``plan``."""
        cached = self._maps.get(ino)
        if cached is None:
            chunks = self.owner(ino).chunks(ino)
            content = self.inode(ino).content if chunks is None else RegularFile.of(chunks)
            if not isinstance(content, RegularFile):
                raise InvalidArgumentError(f"inode {ino} is not a regular file")
            cached = FileMap(content)
            self._maps.put(ino, cached, len(cached) + 1)
        return cached

    def files_in(self, blob: Digest, first: int, stop: int) -> tuple[list[Resident], int]:
        """Which files begin in a chunk, from number ``first`` on; see ``InodeTable.files_in``. A guess: not all may be
        found.

        A chunk is a part of the stream of one metadata layer, so only that layer is searched which says what inode
        ``first - 1`` is, and files that a layer above it changed are left out.
        """
        table = self.owner(first - 1)
        found, after = table.files_in(blob, first, stop)
        if len(self._stack.layers) > 1:
            found = [resident for resident in found if self.owner(resident.ino) is table]
            while after < stop and not (self.owner(after) is table and table.mentions(after)):
                after += 1
        return found, after

    # ---- the whole

    def totals(self) -> Totals:
        """How many inodes are visible, and how many bytes their files have; counted once.

        Inodes that are malformed count as empty.
        """
        if self._totals is None:
            links = self.links()
            size = 0
            for table, inos in self._by_owner(links.visible):
                known, others = table.total_size(inos)
                size += known + sum(self._size(ino) for ino in others)
            self._totals = Totals(len(links.visible), min(size, MAX_FILE_SIZE))
        return self._totals

    def links(self) -> Links:
        """The link counts and misplaced directories of the whole image; counted once.

        Raises:
            FormatError: if the root is missing, or the image has more entries than it can hold.
        """
        with self._lock:
            if self._links is None:
                self._links = count_links(self._stack.layers, self._numbers, self.max_entries)
            return self._links

    # ---- inside

    def _size(self, ino: int) -> int:
        if self.kind(ino) is not Kind.REGULAR:
            return 0
        try:
            content = self.inode(ino).content
        except FormatError:
            return 0
        return content.size if isinstance(content, RegularFile) else 0

    def _merge(self, ino: int) -> tuple[Entry, ...]:
        table = self.owner(ino)
        if (found := table.names(ino)) is not None:
            names, numbers = found
            # what the topmost layer says is so; what another one says, those above it may have changed
            kinds = table.live_kinds(numbers) if table is self._top else None
            if kinds is None:
                kinds = self._stack.kinds(numbers)
            rows = zip(names, numbers, kinds, strict=True)
            entries = tuple(map(_entry, rows if names == sorted(names) else sorted(rows)))
            if Kind.WHITEOUT not in kinds:
                return entries
            return tuple([entry for entry in entries if entry.kind is not Kind.WHITEOUT])
        inode = table.find(ino)
        if inode is None or isinstance(inode.content, Whiteout):
            raise NotFoundError(f"the image has no inode {ino}")
        if not isinstance(inode.content, Directory):
            raise InvalidArgumentError(f"inode {ino} is not a directory")
        merged: dict[bytes, Entry] = {}
        self._add_entries(ino, inode.content, merged)
        if inode.content.look_below:
            self._add_from_below(ino, table, merged)
        live = (entry for entry in merged.values() if entry.kind is not Kind.WHITEOUT)
        return tuple(sorted(live, key=_name))

    def _add_from_below(self, ino: int, table: InodeTable, merged: dict[bytes, Entry]) -> None:
        """Add what the layers below ``table`` have in a directory, up to one in which its list is complete."""
        layers = iter(self._stack.mentioning(ino))
        for layer in layers:
            if layer is table:
                break
        for layer in layers:
            inode = layer.find(ino)
            if inode is None:
                continue
            if not isinstance(inode.content, Directory):
                break  # below, the number was something else
            self._add_entries(ino, inode.content, merged)
            if not inode.content.look_below:
                break

    def _add_entries(self, ino: int, directory: Directory, merged: dict[bytes, Entry]) -> None:
        """Add one layer's entries under the names that the layers above have not taken."""
        here: dict[bytes, Entry] = {}
        kinds = self._stack.kinds([wire_entry.ino for wire_entry in directory.entries])
        for wire_entry, kind in zip(directory.entries, kinds, strict=True):
            name = wire_entry.name
            if not 0 < len(name) <= MAX_NAME_LENGTH or name in (b".", b"..") or b"/" in name or b"\0" in name:
                raise FormatError(f"directory {ino}: {name[:80]!r} cannot be a name")
            entry = Entry(name, wire_entry.ino, kind)
            other = here.get(name)
            if other is None or other.kind is Kind.WHITEOUT:
                here[name] = entry
            elif entry.kind is not Kind.WHITEOUT:
                raise FormatError(f"directory {ino} has two entries {name!r}")
        for name, entry in here.items():
            merged.setdefault(name, entry)

    def _numbers(self, ino: int) -> Sequence[int]:
        """The inode numbers in a directory's entries; names are read only where layers merge."""
        found = self.owner(ino).entry_numbers(ino)
        if found is None:
            raise FormatError(f"inode {ino} should be a directory and is not")
        numbers, look_below = found
        return [entry.ino for entry in self.entries(ino)] if look_below else numbers

    def _by_owner(self, inos: Sequence[int]) -> Iterable[tuple[InodeTable, Sequence[int]]]:
        """Inodes divided by the layers that say what they are."""
        if len(self._stack.layers) == 1:
            return ((self._stack.layers[0], inos),)
        divided: dict[int, tuple[InodeTable, list[int]]] = {}
        for ino in inos:
            table = self.owner(ino)
            divided.setdefault(id(table), (table, []))[1].append(ino)
        return divided.values()

    def _count_subdirectories(self, ino: int) -> int:
        numbers = self._numbers(ino)
        if self._links is None:  # the root is looked at before anything has to be counted
            return self._stack.kinds(list(numbers)).count(Kind.DIRECTORY)
        directories = self._links.directories
        return sum(1 for number in numbers if number in directories)

    def _first_place(self, ino: int) -> tuple[int, bytes] | None:
        """The parent and the name under which the pass over the tree first met a misplaced directory."""
        if not self._first_places:
            misplaced = self.links().misplaced - {ROOT_INO}
            places: dict[int, tuple[int, bytes]] = {}
            queue = [ROOT_INO]
            for parent in queue:  # grows while it is read: the order is that of the pass that counted
                try:
                    entries = self.entries(parent)
                except FormatError:
                    continue  # the pass that counted passed over it as well
                for entry in entries:
                    if entry.kind is not Kind.DIRECTORY or entry.ino == ROOT_INO or entry.ino in places:
                        continue
                    if entry.ino in misplaced:
                        places[entry.ino] = (parent, entry.name)
                    queue.append(entry.ino)
            self._first_places = places
        return self._first_places.get(ino)


_entry: Callable[[Iterable[object]], Entry] = partial(tuple.__new__, Entry)
"""An ``Entry`` of three values; three times as quick as calling the class."""


def _first(table: InodeTable, _ino: int) -> InodeTable:
    return table


def _name(entry: Entry) -> bytes:
    return entry.name
