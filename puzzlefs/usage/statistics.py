"""What the images of a layout take, what they share, and what each has for itself.

One pass: every image is opened once, every blob's size is asked of the file system once, and for each blob it is noted
which entries of the index reach it, as a bit for each entry. Everything else is told from that. No chunk is read.

Entries that lead to the same manifest share all they have, so neither has anything for itself: removing one tag of two
frees nothing. An entry whose manifest cannot be read may reach anything; then what the others have for themselves is
not told.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from puzzlefs.blobs import Layout
from puzzlefs.blobs.host import storage_errors
from puzzlefs.digest import Digest
from puzzlefs.errors import PuzzlefsError
from puzzlefs.image import Image
from puzzlefs.oci import Descriptor
from puzzlefs.reachable import Reachable
from puzzlefs.usage.content import BlobNumbers, BlobSet, FileContents
from puzzlefs.usage.reach import (
    Entry,
    entries_of,
    is_puzzlefs,
    manifests_below,
    open_manifest,
)

MAX_COMPARED: Final = 256
"""So many entries are compared with each other."""

_MAX_NUMBER: Final = (1 << 64) - 1
_ZEROS: Final = array("Q", [0])
_FIELD: Final = 96
"""Bits of a sum of file sizes among others in one number; no file system's add up to more."""
_BLOB_NAME: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class EntryStatistics:
    """An entry of the index: a tag, or an untagged one that is still there.

    Attributes:
        tag: its tag, if it has one.
        manifest: sha256 of what it points to, ``sha256:…``.
        format_version: 1, 2 or 3; ``None`` where it is no PuzzleFS image, or cannot be read.
        inodes: inodes that can be seen; ``None`` likewise, and so on.
        apparent_bytes: bytes of all files.
        unique_bytes: content of the distinct chunks that they use.
        chunk_bytes: bytes of the blobs of those.
        metadata_bytes: bytes of the blobs that are no chunks.
        stored_bytes: bytes of all blobs that the entry reaches.
        added_bytes: those of them that no earlier entry reaches: what the layout grew by.
        exclusive_bytes: those that no other entry reaches: what removing it would free; ``None`` if that cannot be
            told.
        exclusive_linked_bytes: those of these whose files have further names, outside of ``blobs/sha256``: removing
            them gives nothing back to the disk.
        missing_blobs: how many blobs are not there, but for hidden chunks, which nobody needs.
        problem: why it could not be read; else ``None``.
    """

    tag: str | None
    manifest: str
    format_version: int | None
    inodes: int | None
    apparent_bytes: int | None
    unique_bytes: int | None
    chunk_bytes: int | None
    metadata_bytes: int | None
    stored_bytes: int
    added_bytes: int
    exclusive_bytes: int | None
    exclusive_linked_bytes: int | None
    missing_blobs: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class LayoutStatistics:
    """The whole picture of a layout.

    Attributes:
        layout: where it is.
        entries: the entries of the index, in its order.
        shared_bytes: for each pair of entries, in their order, the bytes of the blobs that both reach; the diagonal is
            ``stored_bytes``. Empty where there are more than ``MAX_COMPARED``.
        images: distinct PuzzleFS images; two tags of one are one.
        apparent_bytes: bytes of all files of all distinct images.
        unique_bytes: content of all distinct chunks.
        chunk_bytes: bytes of the blobs of those.
        metadata_bytes: bytes of the blobs of those images that are no chunks.
        blobs: files in ``blobs/sha256`` that are named like blobs.
        blob_bytes: bytes of them.
        unreachable_blobs: how many of them no entry reaches; ``None`` if that cannot be told.
        unreachable_bytes: bytes of those.
        shares_blobs: whether ``blobs/sha256`` is a symbolic link: other layouts may use what nothing here reaches.
        deduplication: ``apparent_bytes`` / ``unique_bytes``, three decimals; ``None`` if nothing is there.
        compression: ``unique_bytes`` / ``chunk_bytes``, likewise.
    """

    layout: str
    entries: tuple[EntryStatistics, ...]
    shared_bytes: tuple[tuple[int, ...], ...]
    images: int
    apparent_bytes: int
    unique_bytes: int
    chunk_bytes: int
    metadata_bytes: int
    blobs: int
    blob_bytes: int
    unreachable_blobs: int | None
    unreachable_bytes: int | None
    shares_blobs: bool
    deduplication: float | None
    compression: float | None


def layout_statistics(layout: Path | str, *, progress: Callable[[int, int], None] | None = None) -> LayoutStatistics:
    """What the images of a layout take, what they share, and what each has for itself.

    Args:
        layout: the directory.
        progress: is called with how many entries of the index are done, and how many there are.

    Raises:
        NotFoundError: if it is no layout.
        FormatError: if its index is malformed. What is wrong with one entry is told in the report.
        StorageError: if the host cannot read.
    """
    with Layout.open(Path(layout)) as opened:
        return _Survey(opened).run(progress)


@dataclass(slots=True)
class _Contents:
    """What is in an image, or in all images to which an entry leads.

    Attributes:
        used: the numbers of the chunks that visible files use; there are many, so they are kept small.
        metadata: those of the blobs that are no chunks.
        version: ``None`` where there is none of our images, or it cannot be read.
        problem: why it cannot.
    """

    used: array[int] = field(default_factory=lambda: array("I"))
    metadata: frozenset[int] = frozenset()
    version: int | None = None
    inodes: int = 0
    apparent: int = 0
    problem: str | None = None


@dataclass(slots=True)
class _Found:
    """What an entry leads to: the numbers of all blobs that it reaches, and what is in its images."""

    blobs: array[int]
    contents: _Contents


def _together(images: Sequence[_Contents]) -> _Contents:
    """What is in several images; a chunk that two of them use is one."""
    if len(images) == 1:
        return images[0]
    return _Contents(
        used=array("I", set[int]().union(*(image.used for image in images))),
        metadata=frozenset[int]().union(*(image.metadata for image in images)),
        version=next((image.version for image in images if image.version is not None), None),
        inodes=sum(image.inodes for image in images),
        apparent=sum(image.apparent for image in images),
        problem=next((image.problem for image in images if image.problem is not None), None),
    )


class _Survey:
    """One pass over a layout."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._numbers = BlobNumbers()
        self._sizes: list[int] = []
        self._linked: set[int] = set()
        self._list_blobs()
        self._present = len(self._numbers)  # numbers from here on are of blobs that are missing
        self._reachable = Reachable(layout, self._numbers)
        self._images: dict[Digest, _Contents] = {}
        self._entries: dict[Digest, _Found] = {}
        self._used = BlobSet(self._numbers)
        self._content = array("Q")  # of chunks, by number: how far the file that goes furthest reaches
        self._masks: list[int] = [0] * self._present

    def _shares_blobs(self) -> bool:
        path = self._layout.path / "blobs" / "sha256"
        with storage_errors("look at", path):
            return path.is_symlink()

    def _list_blobs(self) -> None:
        path = self._layout.path / "blobs" / "sha256"
        with storage_errors("list", path), os.scandir(self._layout.blobs_fd) as listing:
            for found in listing:
                if not _BLOB_NAME.fullmatch(found.name):
                    continue
                try:
                    status = found.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # collected meanwhile
                if stat.S_ISREG(status.st_mode):
                    number = self._numbers.number(Digest(bytes.fromhex(found.name)))
                    self._sizes.append(status.st_size)
                    if status.st_nlink > 1:
                        self._linked.add(number)

    def run(self, progress: Callable[[int, int], None] | None) -> LayoutStatistics:
        """Look at every entry; the report."""
        entries = entries_of(self._layout.read_index())
        found: list[_Found | str] = []
        added: list[int] = []
        for position, entry in enumerate(entries):
            if progress is not None:
                progress(position, len(entries))
            try:
                reached = self._reached(entry)
            except PuzzlefsError as error:
                found.append(str(error))
                added.append(0)
            else:
                found.append(reached)
                added.append(self._mark(reached.blobs, position))
        if progress is not None:
            progress(len(entries), len(entries))
        return self._report(entries, found, added)

    def _reached(self, entry: Entry) -> _Found:
        """What an entry leads to.

        Raises:
            PuzzlefsError: if that cannot be told.
        """
        descriptor = entry.descriptor
        if descriptor.digest not in self._entries:
            reachable = self._reachable.anew()
            reachable.add_entry(descriptor)
            blobs = BlobSet(self._numbers)
            blobs.add(reachable.named)
            images: list[_Contents] = []
            for manifest in manifests_below(self._layout, descriptor):
                if manifest.digest not in self._images:
                    self._images[manifest.digest] = self._read(manifest, entry.tag)
                images.append(self._images[manifest.digest])
            self._entries[descriptor.digest] = _Found(array("I", blobs), _together(images))
        return self._entries[descriptor.digest]

    def _read(self, descriptor: Descriptor, tag: str | None) -> _Contents:
        """What is in the image whose manifest this is, if it is one of ours."""
        try:
            if not is_puzzlefs(self._layout, descriptor):
                return _Contents()
            with open_manifest(self._layout, descriptor, tag) as image:
                return self._look_into(image)
        except PuzzlefsError as error:
            return _Contents(problem=str(error))

    def _look_into(self, image: Image) -> _Contents:
        numbers = self._numbers
        contents = FileContents(image, numbers)
        used = BlobSet(numbers, contents.used())
        known = self._content
        known.extend(_ZEROS * (len(numbers) - len(known)))
        for number in used:
            size = contents.content_size(number, self._size(number))
            if size > known[number]:
                known[number] = min(size, _MAX_NUMBER)
        self._used.mark(used)
        return _Contents(
            used=array("I", used),
            metadata=frozenset(number for number in numbers.numbers(image.metadata_blobs()) if number not in used),
            version=image.version,
            inodes=image.tree.totals().inodes,
            apparent=sum(contents.sizes),
        )

    def _size(self, number: int) -> int:
        return self._sizes[number] if number < self._present else 0

    def _sum(self, numbers: Iterable[int]) -> int:
        return sum(map(self._size, numbers))

    def _mark(self, blobs: Iterable[int], position: int) -> int:
        """Note that an entry reaches blobs; the bytes of those that none reached before."""
        masks = self._masks
        masks.extend([0] * (len(self._numbers) - len(masks)))
        bit = 1 << position
        fresh = 0
        for number in blobs:
            if not masks[number]:
                fresh += self._size(number)
            masks[number] |= bit
        return fresh

    # ---- what is told from it

    def _report(
        self, entries: Sequence[Entry], found: Sequence[_Found | str], added: Sequence[int]
    ) -> LayoutStatistics:
        is_complete = not any(isinstance(result, str) for result in found)
        images = [image for image in self._images.values() if image.version is not None]
        unreached = [number for number in range(self._present) if not self._masks[number]]
        unique_bytes, chunk_bytes = sum(self._content), self._sum(self._used)
        apparent_bytes = sum(image.apparent for image in images)
        metadata = frozenset[int]().union(*(image.metadata for image in images))
        exclusive = self._exclusive(len(entries)) if is_complete else None
        return LayoutStatistics(
            layout=str(self._layout.path),
            entries=tuple(
                self._entry(entry, result, added[position], None if exclusive is None else exclusive[position])
                for position, (entry, result) in enumerate(zip(entries, found, strict=True))
            ),
            shared_bytes=self._shared(len(entries)),
            images=len(images),
            apparent_bytes=apparent_bytes,
            unique_bytes=unique_bytes,
            chunk_bytes=chunk_bytes,
            metadata_bytes=self._sum(number for number in metadata if number not in self._used),
            blobs=self._present,
            blob_bytes=sum(self._sizes),
            unreachable_blobs=len(unreached) if is_complete else None,
            unreachable_bytes=self._sum(unreached) if is_complete else None,
            shares_blobs=self._shares_blobs(),
            deduplication=_ratio(apparent_bytes, unique_bytes),
            compression=_ratio(unique_bytes, chunk_bytes),
        )

    def _entry(
        self, entry: Entry, result: _Found | str, added: int, exclusive: tuple[int, int] | None
    ) -> EntryStatistics:
        if isinstance(result, str):
            result = _Found(array("I"), _Contents(problem=result))
        here = result.contents
        is_image = here.version is not None
        needed = here.metadata.union(here.used) if is_image else result.blobs
        return EntryStatistics(
            tag=entry.tag,
            manifest=entry.descriptor.digest.oci,
            format_version=here.version,
            inodes=here.inodes if is_image else None,
            apparent_bytes=here.apparent if is_image else None,
            unique_bytes=sum(self._content[number] for number in here.used) if is_image else None,
            chunk_bytes=self._sum(here.used) if is_image else None,
            metadata_bytes=self._sum(here.metadata) if is_image else None,
            stored_bytes=self._sum(result.blobs),
            added_bytes=added,
            exclusive_bytes=None if exclusive is None else exclusive[0],
            exclusive_linked_bytes=None if exclusive is None else exclusive[1],
            missing_blobs=sum(1 for number in needed if number >= self._present),
            problem=here.problem,
        )

    def _exclusive(self, count: int) -> list[tuple[int, int]]:
        """The bytes that only one entry reaches, for each; and those of them whose files have further names."""
        sums, linked = [0] * count, [0] * count
        for number in range(self._present):
            mask = self._masks[number]
            if mask and not mask & (mask - 1):
                position = mask.bit_length() - 1
                sums[position] += self._sizes[number]
                if number in self._linked:
                    linked[position] += self._sizes[number]
        return list(zip(sums, linked, strict=True))

    def _shared(self, count: int) -> tuple[tuple[int, ...], ...]:
        """The bytes that each pair of entries shares.

        Blobs that the same entries reach are one case, and a row of the matrix is one number of ``count`` fields, so
        that a case is added to a row at once.
        """
        if count > MAX_COMPARED:
            return ()
        cases: Counter[int] = Counter()
        for number in range(self._present):
            cases[self._masks[number]] += self._sizes[number]
        rows = [0] * count
        for mask, size in cases.items():
            bits = [position for position in range(count) if mask >> position & 1]
            addend = size * sum(1 << position * _FIELD for position in bits)
            for position in bits:
                rows[position] += addend
        field_mask = (1 << _FIELD) - 1
        return tuple(tuple(row >> other * _FIELD & field_mask for other in range(count)) for row in rows)


def _ratio(whole: int, part: int) -> float | None:
    return round(whole / part, 3) if part else None
