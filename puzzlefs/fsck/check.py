"""One check of a layout, or of one image: survey, look at or hash every blob, look at every tree.

Chunks that a manifest lists are hashed while the metadata are looked at, if processes can do that; then whatever else
there has to be, and what turned out to need more than was asked.

What turns up while somebody else works in the layout is asked once more at the end: an image whose entry has left the
index meanwhile may have been collected, and nothing is wrong with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from puzzlefs.blobs import Layout
from puzzlefs.blobs.inventory import blob_sizes, blobs_in
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, PuzzlefsError
from puzzlefs.fsck.hashing import Facts, Finding, Question, finding_of, look_at_blobs
from puzzlefs.fsck.readers import ReaderProcesses, can_read_in_processes, read_facts
from puzzlefs.fsck.report import BadBlob, Hit, Malformed, Remark, RemarkKind
from puzzlefs.fsck.survey import Expected, Survey, Surveyor, parts_of
from puzzlefs.fsck.tree import check_image
from puzzlefs.fsck.uses import visible_files
from puzzlefs.image import Image, open_image
from puzzlefs.oci import Descriptor, ImageReference
from puzzlefs.reachable import Reachable
from puzzlefs.wire.audit import audit

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
        workers: processes or threads.
        progress: told how many bytes are done, of how many.
        good: blobs whose contents need not be looked at again; those that turn out good are added.
        survey: what was found in documents.
        there: the regular files that have names of blobs.
        sizes: their bytes; only where contents are left alone.
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
    there: frozenset[Digest] = frozenset()
    sizes: dict[Digest, int] = field(default_factory=dict)
    inodes: int = 0
    bytes_read: int = 0
    bad_sizes: dict[Digest, int] = field(default_factory=dict)
    _counts: Counter[tuple[RemarkKind, int]] = field(default_factory=Counter)
    _readers: list[ReaderProcesses] = field(default_factory=list)
    _is_listed: bool = False

    def run(self) -> None:
        """Look at everything.

        Raises:
            FormatError: if the index leads to absurdly many images.
        """
        try:
            surveyor = Surveyor(self.layout, self._look_at_image, self._read_ahead)
            self.survey = surveyor.survey
            surveyor.add_entries(self.descriptors)
            self._list_blobs()
            faults = self.survey.faults
            left = {digest: blob for digest, blob in self.survey.blobs.items() if digest not in faults}
            if self.quick:
                for digest, finding in look_at_blobs(self.layout, self.sizes, left):
                    self._note(digest, left[digest], finding)
            else:
                self._read({digest: blob for digest, blob in left.items() if digest not in self.good})
        finally:
            for readers in self._readers:
                readers.close()
        if faults or self.survey.malformed:
            self._forget_what_is_gone()

    def _list_blobs(self) -> None:
        """See which blobs there are, once: before it matters, and not while nobody reads yet."""
        if self._is_listed:
            return
        self._is_listed = True
        self.there = frozenset(blobs_in(self.layout))
        if self.quick:
            self.sizes = blob_sizes(self.layout, self.there)

    # ---- contents

    def _read_ahead(self, chunks: Sequence[Digest], compressed: bool) -> None:
        """Begin to read chunks of an image, the metadata of which will be looked at next."""
        if self.quick or any(not readers.are_done() for readers in self._readers):
            return
        questions = [Question(digest, True, compressed) for digest in chunks if digest not in self.good]
        if can_read_in_processes(len(questions)):
            # one less than there may be: this process is busy, too
            self._readers.append(ReaderProcesses(self.layout, questions, max(1, self.workers - 1)))

    def _read(self, left: dict[Digest, Expected]) -> None:
        """Read everything, and note what there is to say."""
        total = sum(max(blob.sizes) for blob in left.values() if blob.sizes)
        total += sum(blob_sizes(self.layout, [digest for digest, blob in left.items() if not blob.sizes]).values())
        done = 0

        def tell(more: int) -> None:
            self.progress(done + more, max(done + more, total))

        answered: set[Digest] = set()
        for readers in self._readers:
            if self.workers > 1 and not readers.are_done():
                readers.add(1)
            for question, facts in readers.facts(tell):
                digest = question.digest
                blob = left.get(digest)
                if blob is not None and facts is not None and _is_answer(facts, blob):
                    done += facts.size
                    answered.add(digest)
                    self._note_facts(digest, blob, facts)
        rest = {digest: blob for digest, blob in left.items() if digest not in answered} if answered else left
        questions = [Question(digest, bool(blob.verity), bool(blob.content_length)) for digest, blob in rest.items()]
        for question, facts in read_facts(self.layout, questions, self.workers, tell) if questions else ():
            self._note_facts(question.digest, rest[question.digest], facts)

    def _note_facts(self, digest: Digest, blob: Expected, facts: Facts) -> None:
        self.bytes_read += facts.size
        finding = finding_of(facts, blob)
        if finding is None:
            self.good.add(digest)
        else:
            self._note(digest, blob, finding)

    # ---- images

    def _look_at_image(self, number: int, image: Image) -> None:
        self._list_blobs()
        layers = image.rootfs.metadata_layers
        self.inodes += sum(map(len, layers))
        audits = [audit(table) for table in layers]
        raw_ends: dict[Digest, int] = {}
        content_ends: dict[Digest, int] = {}
        for table, audited in zip(layers, audits, strict=True):
            _add_ends(raw_ends, audited.raw_ends)
            _add_ends(content_ends, audited.content_ends)
            for _, parts in parts_of(table, audited.unusual):
                for part in parts:
                    ends = content_ends if part.blob.compressed else raw_ends
                    _add_ends(ends, {part.blob.digest: part.blob.offset + part.length})
        chunks = self._needed_chunks(number, image, raw_ends, content_ends)
        if self.quick:
            return
        for ref in image.metadata_refs:
            chunks[ref.digest] = self.survey.blobs[ref.digest]
        recorded = 0
        for digest, verity in self._recorded(number, image):
            if digest in chunks:
                recorded += 1
                self.survey.record_verity(digest, verity, number)
        self._count(RemarkKind.NOT_RECORDED, number, len(chunks) - recorded)
        if content_ends or self.survey.entries[number].lists_compressed:
            for blob in chunks.values():
                blob.in_compressed = True
        unusual = [audited.unusual for audited in audits]
        self.survey.malformed += [(number, path, message) for path, message in check_image(image, unusual)]

    def _needed_chunks(
        self, number: int, image: Image, raw_ends: Mapping[Digest, int], content_ends: Mapping[Digest, int]
    ) -> dict[Digest, Expected]:
        """The chunks that an image takes, now expected to be that long; those aside that are missing and that no file
        needs any more, which are counted."""
        survey = self.survey
        blobs = survey.blobs
        unneeded: set[Digest] = set()
        if len(image.rootfs.metadata_layers) > 1:  # in one layer, what nobody sees hardly matters
            there = self.there
            absent = {digest for digest in chain(raw_ends, content_ends) if digest not in blobs and digest not in there}
            unneeded = absent - self._needed_by_files(image, absent) if absent else absent
            self._count(RemarkKind.NOT_NEEDED, number, len(unneeded))
        found: dict[Digest, Expected] = {}
        for digest in chain(raw_ends, content_ends):
            if digest in unneeded:
                continue
            blob = blobs.get(digest)
            if blob is None:
                blob = survey.expect(digest, "chunk", number)
            elif blob.images[-1] != number:
                survey.is_needed_by(blob, number)
            found[digest] = blob
        for digest, end in raw_ends.items():
            if digest not in unneeded and found[digest].raw_length < end:
                found[digest].raw_length = end
        for digest, end in content_ends.items():
            if digest not in unneeded and found[digest].content_length < end:
                found[digest].content_length = end
        return found

    def _needed_by_files(self, image: Image, digests: set[Digest]) -> set[Digest]:
        """Those of these chunks in which a file has bytes that can be seen."""
        try:
            visible = frozenset(image.tree.links().visible)
        except FormatError:
            return digests  # reported with the tree
        needed: set[Digest] = set()
        above: set[int] = set()
        for table in image.rootfs.metadata_layers:
            for ino, parts in parts_of(table):
                if ino in visible and ino not in above:
                    needed.update([part.blob.digest for part in parts])
            above.update([ino for ino, _ in table.kinds()])
        return needed & digests

    def _recorded(self, number: int, image: Image) -> Sequence[tuple[Digest, VerityDigest]]:
        """The fs-verity digests that an image records. They are decoded here, once, and nowhere else."""
        try:
            return list(image.rootfs.verity.items())
        except FormatError as error:
            self.survey.malformed.append((number, None, error.message))
            return ()

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
        return list(blob_sizes(self.layout, [digest for digest in others if digest not in reachable.named]).values())

    # ---- blobs

    def _note(self, digest: Digest, blob: Expected, finding: Finding) -> None:
        if finding.fault is not None:
            self.survey.faults[digest] = finding.fault, finding.detail
            self.bad_sizes[digest] = finding.size
            return
        self.good.add(digest)
        if finding.too_short:
            self._is_malformed(blob.images, f"{blob.role} {digest.oci}: {finding.too_short}")
        if finding.verity is not None:
            images = self.survey.with_other_verity(digest, finding.verity)
            if blob.in_compressed and blob.role == "chunk" and not blob.content_length:
                for number in images:
                    self._count(RemarkKind.VERITY_OF_OTHER_BYTES, number)
            else:
                others = ", ".join(sorted(verity.hex() for verity in blob.verity if verity != finding.verity))
                self._is_malformed(
                    images, f"{blob.role} {digest.oci}: its fs-verity digest is {finding.verity}, recorded is {others}"
                )
        if blob.sizes and finding.size not in blob.sizes:
            for number in blob.images:
                self._count(RemarkKind.DESCRIPTOR_SIZE, number)

    def _is_malformed(self, images: Collection[int], message: str) -> None:
        self.survey.malformed += [(number, None, message) for number in sorted(images)]

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
            if gone.issuperset(survey.blobs[digest].images):
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


def _add_ends(ends: dict[Digest, int], more: Mapping[Digest, int]) -> None:
    """Add up to which byte something takes blobs."""
    if not ends:
        ends.update(more)
        return
    for digest, end in more.items():
        if ends.get(digest, -1) < end:
            ends[digest] = end


def _is_answer(facts: Facts, blob: Expected) -> bool:
    """Whether nothing else has to be known about a blob."""
    is_content_known = facts.content is not None or not blob.content_length
    return is_content_known and (facts.verity is not None or not blob.verity)
