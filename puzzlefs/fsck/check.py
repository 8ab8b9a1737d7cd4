"""One check of a layout, or of one image: survey, look at or hash every blob, look at every tree.

What turns up while somebody else works in the layout is asked once more at the end: an image whose entry has left the
index meanwhile may have been collected, and nothing is wrong with it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from puzzlefs.blobs import Layout
from puzzlefs.blobs.inventory import list_blobs
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, PuzzlefsError
from puzzlefs.fsck.hashing import Finding, hash_blobs, look_at_blobs
from puzzlefs.fsck.report import BadBlob, Hit, Malformed, Remark, RemarkKind
from puzzlefs.fsck.survey import Expected, Survey, Surveyor, parts_of
from puzzlefs.fsck.tree import check_image
from puzzlefs.fsck.uses import visible_files
from puzzlefs.image import Image, open_image
from puzzlefs.oci import Descriptor, ImageReference, media_types
from puzzlefs.reachable import Reachable

_WHOLE: Final = frozenset({"index", "manifest", "rootfs", "metadata", "layer"})
"""Roles without which nothing of an image can be seen."""

_COUNTED: Final = {
    RemarkKind.VERITY_OF_OTHER_BYTES: "of {} chunks the fs-verity digest of other bytes is recorded, as the original "
    "does for chunks that did not shrink; a kernel cannot check them",
    RemarkKind.DESCRIPTOR_SIZE: "of {} blobs the manifest has another size than they have",
    RemarkKind.NOT_RECORDED: "of {} chunks no fs-verity digest is recorded",
    RemarkKind.NOT_NEEDED: "{} chunks are missing that no file needs any more",
}


@dataclass(slots=True)
class Check:
    """A check, to be ``run`` once.

    Attributes:
        layout: what is checked.
        descriptors: the entries of its index that are.
        quick: whether contents are left alone.
        workers: threads.
        progress: told how many bytes are done, of how many.
        good: blobs whose contents need not be looked at again; those that turn out good are added.
        survey: what was found in documents.
        there: the regular files that have names of blobs.
        inodes: how many were decoded.
        bytes_read: of contents.
        bad_sizes: bytes of the blobs among them that are bad.
    """

    layout: Layout
    descriptors: Sequence[Descriptor]
    quick: bool
    workers: int
    progress: Callable[[int, int], None]
    good: set[Digest]
    survey: Survey = field(default_factory=Survey)
    there: dict[Digest, os.stat_result] = field(default_factory=dict)
    inodes: int = 0
    bytes_read: int = 0
    bad_sizes: dict[Digest, int] = field(default_factory=dict)
    _counts: Counter[tuple[RemarkKind, int]] = field(default_factory=Counter)

    def run(self) -> None:
        """Look at everything.

        Raises:
            FormatError: if the index leads to absurdly many images.
        """
        surveyor = Surveyor(self.layout, self._look_at_image)
        self.survey = surveyor.survey
        self.there, _ = list_blobs(self.layout)
        surveyor.add_entries(self.descriptors)
        faults = self.survey.faults
        left = {digest: blob for digest, blob in self.survey.blobs.items() if digest not in faults}
        if self.quick:
            for digest, finding in look_at_blobs(self.layout, self.there, left):
                self._note(digest, left[digest], finding)
        else:
            left = {digest: blob for digest, blob in left.items() if digest not in self.good}
            total = sum(self.there[digest].st_size for digest in left if digest in self.there)
            for digest, finding in hash_blobs(
                self.layout, left, self.workers, lambda done: self.progress(done, max(done, total))
            ):
                self.bytes_read += finding.size
                self._note(digest, left[digest], finding)
        if faults or self.survey.malformed:
            self._forget_what_is_gone()

    # ---- images

    def _look_at_image(self, number: int, image: Image) -> None:
        layers = image.rootfs.metadata_layers
        self.inodes += sum(map(len, layers))
        visible: frozenset[int] | None = None
        if len(layers) > 1:  # in one layer, what nobody sees hardly matters
            try:
                visible = frozenset(image.tree.links().visible)
            except FormatError:
                visible = None  # reported with the tree
        recorded = self._recorded(number, image)
        chunks: dict[Digest, Expected] = {}
        has_compressed = image.manifest is not None and any(
            isinstance(layer, dict) and layer.get("mediaType") == media_types.FILE_DATA_ZSTD
            for layer in image.manifest.layer_objects
        )
        above: set[int] = set()
        unneeded: set[Digest] = set()
        for table in layers:
            for ino, parts in parts_of(table):
                is_needed = visible is None or (ino in visible and ino not in above)
                for part in parts:
                    ref = part.blob
                    blob = chunks.get(ref.digest)
                    if blob is None:
                        if not (is_needed or ref.digest in self.survey.blobs or ref.digest in self.there):
                            unneeded.add(ref.digest)
                            continue
                        blob = chunks[ref.digest] = self.survey.expect(ref.digest, "chunk", number)
                    end = ref.offset + part.length
                    if ref.compressed:
                        has_compressed = True
                        blob.content_length = max(blob.content_length, end)
                    else:
                        blob.raw_length = max(blob.raw_length, end)
            if len(layers) > 1:
                above.update([ino for ino, _ in table.kinds()])
        self._count(RemarkKind.NOT_NEEDED, number, len(unneeded - chunks.keys()))
        if self.quick:
            return
        for ref in image.metadata_refs:
            chunks[ref.digest] = self.survey.blobs[ref.digest]
        for digest, blob in chunks.items():
            verity = recorded.get(digest)
            if verity is None:
                self._count(RemarkKind.NOT_RECORDED, number)
            else:
                blob.verity.add(verity)
            blob.in_compressed |= has_compressed
        self.survey.malformed += [(number, path, message) for path, message in check_image(image)]

    def _recorded(self, number: int, image: Image) -> dict[Digest, VerityDigest]:
        """The fs-verity digests that an image records. They are decoded here, once, and nowhere else."""
        if self.quick:
            return {}
        try:
            return dict(image.rootfs.verity.items())
        except FormatError as error:
            self.survey.malformed.append((number, None, error.message))
            return {}

    def unreachable(self) -> list[int] | None:
        """The sizes of the blobs that nothing reaches, ``None`` if that cannot be known.

        Raises:
            StorageError: if the host fails.
        """
        # What has to be there is reached. The others may yet be, by an inode that nobody sees for example.
        others = [digest for digest in self.there if digest not in self.survey.blobs]
        reachable = Reachable(self.layout, others)
        try:
            for descriptor in self.descriptors if others else ():
                reachable.add_entry(descriptor)
        except PuzzlefsError:
            return None
        return [self.there[digest].st_size for digest in others if digest not in reachable.named]

    # ---- blobs

    def _note(self, digest: Digest, blob: Expected, finding: Finding) -> None:
        if finding.fault is not None:
            self.survey.faults[digest] = finding.fault, finding.detail
            self.bad_sizes[digest] = finding.size
            return
        self.good.add(digest)
        if finding.too_short:
            self._is_malformed(blob, f"{blob.role} {digest.oci}: {finding.too_short}")
        if finding.verity is not None:
            if blob.in_compressed and blob.role == "chunk" and not blob.content_length:
                for number in blob.images:
                    self._count(RemarkKind.VERITY_OF_OTHER_BYTES, number)
            else:
                others = ", ".join(sorted(verity.hex() for verity in blob.verity if verity != finding.verity))
                self._is_malformed(
                    blob, f"{blob.role} {digest.oci}: its fs-verity digest is {finding.verity}, recorded is {others}"
                )
        if blob.sizes and finding.size not in blob.sizes:
            for number in blob.images:
                self._count(RemarkKind.DESCRIPTOR_SIZE, number)

    def _is_malformed(self, blob: Expected, message: str) -> None:
        self.survey.malformed += [(number, None, message) for number in sorted(blob.images)]

    def _count(self, kind: RemarkKind, number: int, count: int = 1) -> None:
        if count:
            self._counts[kind, number] += count

    def _forget_what_is_gone(self) -> None:
        """Forget what concerns only images that have left the index since it was read."""
        current = {entry.digest for entry in self.layout.read_index().manifests}
        before = {entry.digest for entry in self.descriptors}
        survey = self.survey
        gone = {number for number, entry in enumerate(survey.entries) if entry.descriptor.digest in before - current}
        survey.malformed = [found for found in survey.malformed if found[0] not in gone]
        for digest in list(survey.faults):
            if survey.blobs[digest].images <= gone:
                del survey.faults[digest]

    # ---- the report

    def bad_blobs(self) -> list[BadBlob]:
        """The blobs that are bad, with the files that they hit; those that hit most first."""
        chunks = {digest for digest in self.survey.faults if self.survey.blobs[digest].role == "chunk"}
        numbers = sorted(set(chain.from_iterable(self.survey.blobs[digest].images for digest in chunks)))
        files = {number: self._files_of(number, chunks) for number in numbers}
        bad: list[BadBlob] = []
        for digest, (fault, detail) in self.survey.faults.items():
            blob = self.survey.blobs[digest]
            is_whole = blob.role in _WHOLE
            hits = [
                Hit(name, tuple(files.get(number, {}).get(digest, ())), is_whole)
                for number in sorted(blob.images)
                for name in self.survey.entries[number].names
            ]
            bad.append(BadBlob(digest.oci, blob.role, fault, detail, tuple(hits)))
        return sorted(bad, key=lambda blob: (blob.role == "chunk", blob.role, blob.digest))

    def _files_of(self, number: int, chunks: set[Digest]) -> dict[Digest, list[bytes]]:
        try:
            with self.open_image(number) as image:
                return visible_files(image, chunks)
        except PuzzlefsError:
            return {}  # it cannot be opened, and that has been reported

    def open_image(self, number: int) -> Image:
        """The image with this number.

        Raises:
            PuzzlefsError: if it cannot be opened.
        """
        entry = self.survey.entries[number]
        return open_image(ImageReference(self.layout.path, "fsck"), manifest=entry.descriptor.digest)

    def malformed(self) -> list[Malformed]:
        """What is malformed."""
        entries = self.survey.entries
        return [Malformed(entries[number].name, path, message) for number, path, message in self.survey.malformed]

    def remarks(self) -> list[Remark]:
        """What is worth knowing."""
        entries = self.survey.entries
        found = [Remark(kind, entries[number].name, message) for kind, number, message in self.survey.remarks]
        for (kind, number), count in sorted(self._counts.items(), key=lambda item: (item[0][1], item[0][0])):
            found.append(Remark(kind, entries[number].name, _COUNTED[kind].format(count)))
        return found

    def is_bad(self) -> bool:
        """Whether a blob is bad."""
        return bool(self.survey.faults)
