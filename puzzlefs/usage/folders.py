"""What the folders of an image weigh, and what removing its tag would free.

For each folder there are three numbers, each of them for everything below it:

* *apparent*: bytes of its files, as ``stat`` tells them; holes count.
* *stored*: its part of the stored chunks, after deduplication and compression. Where files share a chunk, each carries
  what it uses of it (``puzzlefs.usage.content``), so the parts of all files add up to what is stored.
* *exclusive*: its part of those chunks that no other entry of the layout's index reaches: what ``gc`` would free if the
  tag were gone.

An inode with several names counts once, where the walk meets it first. What removing the tag frees besides (metadata,
and chunks that the image lists although no visible file uses them) belongs to no folder; ``UsageReport`` has it.

What is malformed is passed over and told in the report. Memory is proportional to the number of references to chunks
and of distinct chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from puzzlefs.blobs import VerityMode
from puzzlefs.blobs.inventory import blobs_in
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import PuzzlefsError
from puzzlefs.image import Image, open_image
from puzzlefs.model import Kind
from puzzlefs.oci import ImageReference
from puzzlefs.reachable import Reachable
from puzzlefs.usage.content import BlobNumbers, BlobSet, FileContents, blob_sizes
from puzzlefs.usage.reach import entries_of, image_blobs
from puzzlefs.vfs import Tree
from puzzlefs.vfs.paths import Place, resolve, shown, walk_below

_MAX_PATH: Final = 4095
"""Bytes of the longest path that is told (Linux PATH_MAX); what is below counts where it is."""
_MAX_PROBLEMS: Final = 100


@dataclass(frozen=True, slots=True)
class Usage:
    """What a folder or a file weighs, with everything below it.

    Attributes:
        path: where it is in the image; begins with ``/``.
        depth: how far below the folder that was asked for.
        is_directory: whether it is a folder.
        inodes: it, and the inodes below it.
        apparent_bytes: bytes of the files.
        stored_bytes: their part of the stored chunks.
        exclusive_bytes: their part of those that nothing else in the layout reaches; ``None`` if that cannot be told.
    """

    path: bytes
    depth: int
    is_directory: bool
    inodes: int
    apparent_bytes: int
    stored_bytes: int
    exclusive_bytes: int | None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """What the folders of an image weigh.

    Attributes:
        image: what it was opened as.
        digest: its digest, as ``build`` printed it.
        rows: the folders (and files, if they were asked for), each behind what is in it; the last is the one that was
            asked for.
        image_bytes: all blobs that the image reaches.
        metadata_bytes: those of them that no file uses, and that are no chunks.
        hidden_bytes: those that are chunks of which no visible file uses anything.
        missing_blobs: how many of the blobs are not there, but for hidden chunks, which nobody needs.
        freed_bytes: what removing the tag would free: the blobs that no other entry of the index reaches. ``None`` if
            that cannot be told.
        unreadable: why it cannot be told: the entries whose manifests cannot be read, each with what is wrong.
        problems: what is malformed in the image, and counts for nothing; the first hundred.
    """

    image: str
    digest: str
    rows: tuple[Usage, ...]
    image_bytes: int
    metadata_bytes: int
    hidden_bytes: int
    missing_blobs: int
    freed_bytes: int | None
    unreadable: tuple[str, ...]
    problems: tuple[str, ...]


def disk_usage(
    image: Image | ImageReference | str,
    path: bytes | str = b"/",
    *,
    max_depth: int | None = None,
    files: bool = False,
    digest: VerityDigest | str | None = None,
    verity: VerityMode = "auto",
) -> UsageReport:
    """What the folders of an image weigh.

    No chunk is read: sizes are those of the files that hold them.

    Args:
        image: an open image, or the name of one.
        path: the folder or file in the image; symbolic links on the way are followed inside the image.
        max_depth: how far below ``path`` folders get a row of their own; without, all do.
        files: whether everything else gets one, too.
        digest: the fs-verity digest that the manifest must have; only where ``image`` is a name.
        verity: how the image is verified below that; only where ``image`` is a name.

    Raises:
        NotFoundError: if the image, a blob of its metadata or ``path`` is missing.
        PathError: if ``path`` leads through something that is no directory, or in circles.
        FormatError: if the image is malformed as a whole.
        IntegrityError: if metadata is not what its digest says.
        StorageError: if the host cannot read.
    """
    if not isinstance(image, Image):
        with open_image(image, digest=digest, verity=verity) as opened:
            return disk_usage(opened, path, max_depth=max_depth, files=files)
    path = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    top = resolve(image.tree, path, follow=False)
    numbers = BlobNumbers()
    contents = FileContents(image, numbers)
    used = len(numbers)  # these come first
    own, others, unreadable = _reached(image, contents, numbers)
    metadata = numbers.numbers(image.metadata_blobs())
    known = [0] * len(numbers)
    missing = 0
    names = list(numbers)
    for number, size in zip(own, blob_sizes(image.layout, map(names.__getitem__, own)), strict=True):
        known[number] = size or 0
        missing += size is None and (number < used or number in metadata)
    freeable = None if unreadable else [0 if number in others else size for number, size in enumerate(known)]
    weights = _Weights(image.tree, contents, known, freeable)
    return UsageReport(
        image=str(image.reference),
        digest=image.verity_digest().hex(),
        rows=weights.walk(top, max_depth, files),
        image_bytes=sum(known),
        metadata_bytes=sum(known[number] for number in metadata if number >= used),
        hidden_bytes=sum(known[number] for number in own if number >= used and number not in metadata),
        missing_blobs=missing,
        freed_bytes=None if freeable is None else sum(freeable),
        unreadable=tuple(unreadable),
        problems=tuple(weights.problems),
    )


def _reached(image: Image, contents: FileContents, numbers: BlobNumbers) -> tuple[BlobSet, BlobSet, list[str]]:
    """The blobs that the image's tag reaches, those of them that other entries do, and the entries that cannot be read.

    Every blob with a number is one that the tag reaches.
    """
    layout = image.layout
    entries = entries_of(layout.read_index())
    mine = next((entry for entry in entries if entry.tag == image.reference.tag), None)
    own = BlobSet(numbers, contents.used())
    own.add(image_blobs(image, contents))
    if mine is not None and mine.descriptor.digest != image.manifest_digest:  # an index, or the tag has moved
        reached = Reachable(layout, blobs_in(layout))
        reached.add_entry(mine.descriptor)
        if image.manifest_digest in reached.named:
            own.add(reached.named)
        else:
            mine = None
    reachable = Reachable(layout, numbers)
    unreadable: list[str] = []
    for entry in entries:
        if entry is not mine:
            try:
                reachable.add_entry(entry.descriptor)
            except PuzzlefsError as error:
                unreadable.append(f"{entry.tag or entry.descriptor.digest.oci}: {error}")
    others = BlobSet(numbers)
    others.add(digest for digest in reachable.named if digest in numbers)
    return own, others, unreadable


@dataclass(slots=True)
class _Folder:
    """A folder while what is below it is added up; ``path`` is ``None`` where it gets no row."""

    path: bytes | None
    inodes: int = 1
    apparent: int = 0
    stored: int = 0
    exclusive: int = 0

    def add(self, inodes: int, apparent: int, stored: int, exclusive: int) -> None:
        self.inodes += inodes
        self.apparent += apparent
        self.stored += stored
        self.exclusive += exclusive


class _Weights:
    """What each inode weighs, and the walk that adds it up.

    Attributes:
        problems: what was passed over; grows.
    """

    def __init__(self, tree: Tree, contents: FileContents, sizes: list[int], free: list[int] | None) -> None:
        self.problems: list[str] = []
        self._tree = tree
        self._places = {ino: place for place, ino in enumerate(contents.inodes)}
        self._sizes = contents.sizes
        self._stored = contents.weigh(sizes)
        self._exclusive = None if free is None else contents.weigh(free)
        if contents.malformed:
            self.problems.append(f"files that cannot be decoded: {contents.malformed}")

    def walk(self, top: Place, max_depth: int | None, files: bool) -> tuple[Usage, ...]:
        """A row for every folder from ``top`` on, children first."""
        if top.kind is not Kind.DIRECTORY:
            return (self._row(top.path, 0, False, 1, *self._weight(top.ino)),)
        rows: list[Usage] = []
        seen: set[int] = set()
        shared = self._tree.links().shared
        stack = [_Folder(top.path)]
        for visit in walk_below(self._tree, top, top.path, failed=self._failed):
            while len(stack) > visit.depth + 1:
                self._leave(stack, rows)
            entry = visit.entry
            depth = visit.depth + 1
            path = None
            if (max_depth is None or depth <= max_depth) and (files or entry.kind is Kind.DIRECTORY):
                path = visit.path + entry.name
                path = path if len(path) <= _MAX_PATH else None
            if entry.kind is Kind.DIRECTORY:
                stack.append(_Folder(path))
                continue
            if entry.ino in shared:
                if entry.ino in seen:
                    continue
                seen.add(entry.ino)
            weight = self._weight(entry.ino)
            stack[-1].add(1, *weight)
            if path is not None:
                rows.append(self._row(path, depth, False, 1, *weight))
        while stack:
            self._leave(stack, rows)
        return tuple(rows)

    def _weight(self, ino: int) -> tuple[int, int, int]:
        """Apparent, stored and exclusive bytes of an inode."""
        place = self._places.get(ino)
        if place is None:
            return 0, 0, 0
        return self._sizes[place], self._stored[place], 0 if self._exclusive is None else self._exclusive[place]

    def _leave(self, stack: list[_Folder], rows: list[Usage]) -> None:
        """All that is below the innermost folder has been added up."""
        folder = stack.pop()
        sums = folder.inodes, folder.apparent, folder.stored, folder.exclusive
        if stack:
            stack[-1].add(*sums)
        if folder.path is not None:
            rows.append(self._row(folder.path, len(stack), True, *sums))

    def _row(
        self, path: bytes, depth: int, is_directory: bool, inodes: int, apparent: int, stored: int, exclusive: int
    ) -> Usage:
        return Usage(
            path, depth, is_directory, inodes, apparent, stored, None if self._exclusive is None else exclusive
        )

    def _failed(self, path: bytes, error: PuzzlefsError) -> None:
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(f"{shown(path)}: {error.message}")
