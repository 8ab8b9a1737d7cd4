"""What a comparison says: one ``Difference`` for each entry that is not the same in both trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from puzzlefs.errors import FormatError
from puzzlefs.model import Kind
from puzzlefs.vfs.paths import MAX_PATH, shown

Aspect = Literal["type", "content", "target", "device", "mode", "owner", "xattrs", "mtime", "links"]
"""In what an entry can differ, in the order in which they are told. ``links``: which of the other entries that both
trees have are the same file."""

ASPECTS: Final[tuple[Aspect, ...]] = (
    "type",
    "content",
    "target",
    "device",
    "mode",
    "owner",
    "xattrs",
    "mtime",
    "links",
)

Status = Literal["added", "removed", "changed", "renamed"]


class Way:
    """The path of an entry: where its directory is, and its name there. The root has neither.

    Entries know their directories instead of their paths, whose lengths would add up in a deep tree.
    """

    __slots__ = ("_parent", "_size", "name")

    def __init__(self, parent: Way | None = None, name: bytes = b"") -> None:
        """The entry ``name`` of ``parent``.

        Raises:
            FormatError: if the path is longer than is told (``MAX_PATH``).
        """
        self._parent = parent
        self.name = name
        self._size: int = len(name) + 1 + (0 if parent is None else parent._size)
        if self._size > MAX_PATH:
            raise FormatError(f"{shown(self.path)} is too deep: its path has more than {MAX_PATH} bytes")

    @property
    def path(self) -> bytes:
        """The path, relative to the root; empty for the root."""
        names: list[bytes] = []
        way: Way | None = self
        while way is not None:
            names.append(way.name)
            way = way._parent
        return b"/".join(name for name in reversed(names) if name)

    @classmethod
    def of(cls, path: bytes) -> Way:
        """The way that ``path`` is."""
        way = cls()
        for name in path.split(b"/"):
            if name:
                way = cls(way, name)
        return way


@dataclass(frozen=True, slots=True)
class EntryState:
    """An entry as one of the trees has it.

    Attributes:
        kind: what kind of file.
        permissions: the 12 permission bits.
        uid: owner.
        gid: group.
        size: bytes of a regular file, else ``None``.
        target: of a symbolic link, else ``None``.
        device: major and minor number of a device, else ``None``.
        xattrs: extended attributes.
        mtime_ns: modification time in nanoseconds since the epoch; ``None`` where an image carries none.
    """

    kind: Kind
    permissions: int
    uid: int
    gid: int
    size: int | None
    target: bytes | None
    device: tuple[int, int] | None
    xattrs: Mapping[bytes, bytes]
    mtime_ns: int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry that is not the same in both trees.

    Attributes:
        status: ``added`` is in the second tree only, ``removed`` in the first only, ``changed`` in both; ``renamed`` is
            in both, under different paths.
        way: where it is in the second tree; of what was removed, in the first.
        old_way: where it is in the first tree.
        aspects: in what it differs; empty for what is in one tree only, and for what was only renamed.
        before: as the first tree has it.
        after: as the second tree has it.
    """

    status: Status
    way: Way
    old_way: Way
    aspects: tuple[Aspect, ...]
    before: EntryState | None
    after: EntryState | None

    @property
    def path(self) -> bytes:
        """Its path in the second tree, in the first if it was removed; empty for the root."""
        return self.way.path

    @property
    def old_path(self) -> bytes:
        """Its path in the first tree; the same as ``path`` unless it, or a directory above it, was renamed."""
        return self.old_way.path


@dataclass(frozen=True, slots=True)
class Needed:
    """What the second image needs and the first has not.

    Attributes:
        chunks: distinct chunks that only the second image refers to.
        stored_bytes: bytes of their blobs.
        missing_chunks: those of them whose blobs are not there.
        metadata_bytes: bytes of the blobs of its metadata that are not the first image's too.
    """

    chunks: int
    stored_bytes: int
    missing_chunks: int
    metadata_bytes: int


@dataclass(frozen=True, slots=True)
class DiffReport:
    """How two trees differ.

    Attributes:
        old: what the first one was named.
        new: what the second one was named.
        differences: in the order of the paths, directories before what is in them; what is below a renamed directory
            comes behind it.
        entries: how many entries were compared; those of shared metadata layers that need no look are not among them.
        bytes_read: bytes of content that were read to compare, of both trees.
        needed: what the second image needs, if that was asked for, and both are images.
        mount_points: paths of directories of the host on which something else is mounted, and which count as empty.
    """

    old: str
    new: str
    differences: tuple[Difference, ...]
    entries: int
    bytes_read: int
    needed: Needed | None
    mount_points: tuple[bytes, ...]

    @property
    def is_same(self) -> bool:
        """Whether there is no difference."""
        return not self.differences

    def counts(self) -> Mapping[Status, int]:
        """How many differences there are of each status."""
        found = Counter(difference.status for difference in self.differences)
        return {status: found[status] for status in ("added", "removed", "changed", "renamed")}
