"""Metadata layers and the root file system that a stack of them describes.

A metadata layer is one inode vector. How its inodes are kept (decoded, or read from the wire bytes when asked for) is
nobody's business above ``puzzlefs.wire``: both are an ``InodeTable``. ``MetadataLayer`` is the decoded one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.model.inode import Directory, FileChunk, Inode, Kind, RegularFile, Whiteout, kind_of

ROOT_INO = 1
"""The inode number of the root directory in every image. A change breaks every image."""


class Glance(NamedTuple):
    """What can be said of an inode that has no xattrs and is no device, without decoding it.

    Attributes:
        kind: its kind, as a number; never a white-out.
        permissions: the 12 permission bits.
        uid: owner.
        gid: group.
        size: bytes of a regular file or of a symlink's target, else 0.
        mtime_ns: modification time in nanoseconds since the epoch; 0 where the image carries none.
    """

    kind: int
    permissions: int
    uid: int
    gid: int
    size: int
    mtime_ns: int


class Resident(NamedTuple):
    """A file that begins in a chunk.

    Attributes:
        ino: its number.
        offset: where it begins in the uncompressed content of the chunk.
        length: how many of its bytes are there.
        is_whole: whether these are all of them.
    """

    ino: int
    offset: int
    length: int
    is_whole: bool


class InodeTable(Protocol):
    """The inodes of one metadata layer, sorted by number.

    A number may stand twice, once as a white-out and once alive (deltas of the original implementation): the live one
    counts in ``find`` and ``kind``. Every method raises ``FormatError`` where the layer is malformed; none of them
    reads more than it needs for the answer.
    """

    def __len__(self) -> int:
        """How many inodes the layer has."""
        ...

    def __iter__(self) -> Iterator[Inode]:
        """Every inode, in the order of the layer."""
        ...

    def find(self, ino: int) -> Inode | None:
        """The inode with this number, ``None`` if this layer does not mention it."""
        ...

    def mentions(self, ino: int) -> bool:
        """Whether this layer has an inode with this number, a white-out or a malformed one too."""
        ...

    def kind(self, ino: int) -> Kind | None:
        """The kind of the inode with this number, without decoding it; ``None`` if this layer does not mention it."""
        ...

    def kinds(self) -> Iterator[tuple[int, int]]:
        """``(ino, kind)`` of every inode, in the order of the layer, as plain numbers: ``Kind`` values, or others where
        the inode is of a kind that we do not know."""
        ...

    def entry_numbers(self, ino: int) -> tuple[Sequence[int], bool] | None:
        """The inode numbers in the entries of directory ``ino`` (no names decoded) and its ``look_below``.

        ``None`` if this layer has no directory of this number.
        """
        ...

    def max_ino(self) -> int:
        """The highest inode number in the layer, 0 if it is empty."""
        ...

    def glance(self, ino: int) -> Glance | None:
        """What ``find`` would say, for the ordinary inode and in a hurry; ``None`` where it takes ``find`` to tell.

        A glance at a directory does not look at its entries, so it may succeed where they are malformed.
        """
        ...

    def total_size(self, inos: Iterable[int]) -> tuple[int, list[int]]:
        """Bytes of the ordinary regular files among ``inos``, and the numbers about which ``find`` has to be asked."""
        ...

    def names(self, ino: int) -> tuple[list[bytes], list[int]] | None:
        """The entries of an ordinary directory that is complete in this layer, likewise: names and numbers.

        They are in the order of the layer. The names can be names, each of them once; other layers may have the inodes.
        """
        ...

    def live_kinds(self, numbers: list[int]) -> list[Kind] | None:
        """The kinds of inodes; ``None`` if one of them is not here, a white-out, or not ordinary."""
        ...

    def may_have_xattrs(self) -> bool:
        """Whether any inode has xattrs; may be wrong in saying that one has."""
        ...

    def chunks(self, ino: int) -> list[FileChunk] | None:
        """The parts of an ordinary regular file, likewise."""
        ...

    def files_in(self, blob: Digest, first: int, stop: int) -> tuple[list[Resident], int]:
        """The ordinary files from number ``first`` on (and before ``stop``) that begin in ``blob``.

        Files are stored in the order of their numbers, so that is what else a chunk holds. The search ends at a file
        that begins elsewhere, or ends elsewhere; its number is the second result (else ``stop``).
        """
        ...


class MetadataLayer:
    """An ``InodeTable`` over decoded inodes."""

    __slots__ = ("_inodes", "_numbers")

    def __init__(self, inodes: Sequence[Inode]) -> None:
        self._inodes = tuple(sorted(inodes, key=lambda inode: inode.ino))
        self._numbers = [inode.ino for inode in self._inodes]

    def __len__(self) -> int:
        return len(self._inodes)

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._inodes)

    def find(self, ino: int) -> Inode | None:
        position = bisect_left(self._numbers, ino)
        found: Inode | None = None
        while position < len(self._numbers) and self._numbers[position] == ino:
            found = self._inodes[position]
            if not isinstance(found.content, Whiteout):
                break
            position += 1
        return found

    def mentions(self, ino: int) -> bool:
        return self.find(ino) is not None

    def kind(self, ino: int) -> Kind | None:
        inode = self.find(ino)
        return None if inode is None else kind_of(inode.content)

    def kinds(self) -> Iterator[tuple[int, int]]:
        return ((inode.ino, kind_of(inode.content)) for inode in self._inodes)

    def entry_numbers(self, ino: int) -> tuple[Sequence[int], bool] | None:
        inode = self.find(ino)
        if inode is None or not isinstance(inode.content, Directory):
            return None
        return [entry.ino for entry in inode.content.entries], inode.content.look_below

    def max_ino(self) -> int:
        return self._numbers[-1] if self._numbers else 0

    def glance(self, ino: int) -> Glance | None:
        return None  # here, find is as quick as can be

    def total_size(self, inos: Iterable[int]) -> tuple[int, list[int]]:
        return 0, list(inos)

    def names(self, ino: int) -> tuple[list[bytes], list[int]] | None:
        return None

    def live_kinds(self, numbers: list[int]) -> list[Kind] | None:
        return None

    def may_have_xattrs(self) -> bool:
        return any(inode.xattrs for inode in self._inodes)

    def chunks(self, ino: int) -> list[FileChunk] | None:
        return None

    def files_in(self, blob: Digest, first: int, stop: int) -> tuple[list[Resident], int]:
        return [], stop


def chunks_of(table: InodeTable, ino: int) -> Sequence[FileChunk]:
    """What a regular file of a layer refers to; nothing for any other inode.

    Raises:
        FormatError: if the inode is malformed. The chunks of a file that has many are decoded when they are accessed.
    """
    chunks = table.chunks(ino)
    if chunks is not None:
        return chunks
    inode = table.find(ino)
    return inode.content.chunks if inode is not None and isinstance(inode.content, RegularFile) else ()


class Rootfs(NamedTuple):
    """A whole image.

    Attributes:
        version: the wire version that it was read from or is to be written in (1, 2 or 3).
        metadata_layers: the inode tables, topmost first.
        verity: sha256 of a stored blob → fs-verity digest of the same bytes.
    """

    version: int
    metadata_layers: tuple[InodeTable, ...]
    verity: Mapping[Digest, VerityDigest]
