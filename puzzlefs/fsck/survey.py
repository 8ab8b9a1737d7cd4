"""Which blobs there have to be: from the index down through manifests and metadata, whatever is wrong on the way.

A document or metadata blob that is bad ends the way below it: what it named is not known, and so not missed. Where it
has been repaired, the next survey goes on.

Sizes in descriptors are looked at only to tell a truncated file without reading it: readers ignore them, and compressed
images of release 0.2.0 of the original record other ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from puzzlefs.blobs import BlobVerifier, Layout, VerifiedBlobs
from puzzlefs.blobs.layout import MAX_INDEX_SIZE, MAX_MANIFEST_SIZE
from puzzlefs.digest import SHA256_SIZE, Digest, VerityDigest, digests_of
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    PuzzlefsError,
    StorageError,
)
from puzzlefs.fsck.report import Fault, RemarkKind
from puzzlefs.image import MAX_METADATA_SIZE, Image, open_image
from puzzlefs.model import FileChunk, InodeTable, Kind, RegularFile
from puzzlefs.oci import Descriptor, ImageReference, Index, Manifest, media_types
from puzzlefs.wire import codec_for, rootfs_version

_MAX_DEPTH: Final = 4
_MAX_ENTRIES: Final = 100_000
_DIGESTS: Final = re.compile(r"(?:sha256:[0-9a-f]{64})*")
_FEW: Final = 4
_TEXT_LENGTH: Final = 7 + 2 * SHA256_SIZE


@dataclass(slots=True)
class Expected:
    """A blob that has to be there. There are very many, and most of them look alike: so tuples, which they share.

    Attributes:
        role: as in ``BadBlob``.
        images: the numbers of the images that need it, in the order in which those were looked at.
        sizes: what descriptors say of its size.
        raw_length: bytes of it that inodes take, where they take it as it is.
        content_length: bytes of its content that inodes take, where they take it for compressed.
        verity: the fs-verity digests that are recorded for it.
        recorders: the numbers of the images that record the first of those.
        in_compressed: whether an image with compressed chunks takes it as it is.
    """

    role: str
    images: tuple[int, ...] = ()
    sizes: tuple[int, ...] | set[int] = ()
    raw_length: int = 0
    content_length: int = 0
    verity: tuple[VerityDigest, ...] = ()
    recorders: tuple[int, ...] = ()
    in_compressed: bool = False

    def add_size(self, size: int) -> None:
        """Note what a descriptor says."""
        if size in self.sizes:
            return
        if isinstance(self.sizes, set):
            self.sizes.add(size)
        else:
            more = (*self.sizes, size)
            self.sizes = more if len(more) <= _FEW else set(more)


@dataclass(slots=True)
class Entry:
    """Something that entries of the index lead to: an image, or an index.

    Attributes:
        descriptor: of its manifest.
        names: the tags, or its digest where there is none.
        lists_compressed: whether its manifest lists compressed chunks.
    """

    descriptor: Descriptor
    names: list[str]
    lists_compressed: bool = False

    @property
    def name(self) -> str:
        """All names in one."""
        return ", ".join(self.names)


@dataclass(slots=True)
class Survey:
    """What is known after looking at all documents.

    Attributes:
        entries: the images.
        blobs: every blob that has to be there, and is no document that was read.
        faults: bad documents and metadata blobs, with what is wrong and what more there is to say.
        malformed: what is malformed: the number of the image, where in its tree, and what.
        remarks: what is worth knowing: its kind, the number of the image, and what.
        documents: documents and metadata blobs that were read and are good, with their sizes.
    """

    entries: list[Entry] = field(default_factory=list)
    blobs: dict[Digest, Expected] = field(default_factory=dict)
    faults: dict[Digest, tuple[Fault, str]] = field(default_factory=dict)
    malformed: list[tuple[int, bytes | None, str]] = field(default_factory=list)
    remarks: list[tuple[RemarkKind, int, str]] = field(default_factory=list)
    documents: dict[Digest, int] = field(default_factory=dict)
    _dissenters: dict[tuple[Digest, VerityDigest], set[int]] = field(default_factory=dict)
    _joined: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    _joining: int = -1

    def expect(self, digest: Digest, role: str, number: int, *, size: int | None = None) -> Expected:
        """Note that an image needs a blob.

        Args:
            digest: the blob.
            role: what it is, if that is not known yet.
            number: the image.
            size: what a descriptor says of its size.
        """
        blob = self.blobs.get(digest)
        if blob is None:
            blob = self.blobs[digest] = Expected(role)
        self.is_needed_by(blob, number)
        if size is not None:
            blob.add_size(size)
        return blob

    def record_verity(self, digest: Digest, verity: VerityDigest, number: int) -> None:
        """Note which fs-verity digest the image that is being looked at records for a blob that it needs."""
        blob = self.blobs[digest]
        if not blob.verity:
            blob.verity = (verity,)
        if blob.verity[0] == verity:
            blob.recorders = self._joined_by(blob.recorders, number)
            return
        if verity not in blob.verity:
            blob.verity += (verity,)
        self._dissenters.setdefault((digest, verity), set()).add(number)

    def with_other_verity(self, digest: Digest, verity: VerityDigest) -> Collection[int]:
        """The images that record another fs-verity digest for a blob than this one, which it has."""
        blob = self.blobs[digest]
        numbers = set(blob.recorders) if blob.verity[0] != verity else set()
        return numbers.union(*(self._dissenters[digest, other] for other in blob.verity[1:] if other != verity))

    def is_needed_by(self, blob: Expected, number: int) -> None:
        """Note that the image that is being looked at needs a blob, too."""
        blob.images = self._joined_by(blob.images, number)

    def _joined_by(self, images: tuple[int, ...], number: int) -> tuple[int, ...]:
        """``images`` and the one that is being looked at."""
        if images and images[-1] == number:
            return images
        if self._joining != number:
            self._joining = number
            self._joined.clear()
        found = self._joined.get(id(images))  # most blobs share few of them, which the values keep alive
        if found is None:
            found = self._joined[id(images)] = images, images if number in images else (*images, number)
        return found[1]

    def expect_chunks(self, digests: Sequence[Digest], sizes: Sequence[int], number: int) -> list[Digest]:
        """Note that an image needs chunks of these sizes; those that were not known before."""
        blobs = self.blobs
        alone = (number,)
        fresh: list[Digest] = []
        for digest, size in zip(digests, sizes, strict=True):
            blob = blobs.get(digest)
            if blob is None:
                blobs[digest] = Expected("chunk", alone, (size,))
                fresh.append(digest)
                continue
            if blob.images[-1] != number:
                self.is_needed_by(blob, number)
            if size not in blob.sizes:
                blob.add_size(size)
        return fresh


class Surveyor:
    """Makes a survey of a layout. Not for several threads."""

    def __init__(
        self,
        layout: Layout,
        on_image: Callable[[int, Image], None],
        on_chunks: Callable[[Sequence[Digest], bool], None] = lambda _chunks, _compressed: None,
    ) -> None:
        """A surveyor.

        Args:
            layout: the layout.
            on_image: called with the number and the image, for each that can be opened.
            on_chunks: called with the chunks that a manifest lists and none did before, and whether there are
                compressed ones among them, before the image is opened.
        """
        self.survey = Survey()
        self._layout = layout
        self._blobs = VerifiedBlobs(layout, BlobVerifier("user"))
        self._on_image = on_image
        self._on_chunks = on_chunks
        self._numbers: dict[Digest, int] = {}
        self._nested: dict[Digest, Sequence[Descriptor]] = {}
        self._added = 0

    def add_entries(self, descriptors: Sequence[Descriptor]) -> None:
        """Look at entries of the index, and at everything below.

        Raises:
            FormatError: if they lead to absurdly many images.
        """
        for descriptor in descriptors:
            self._add(descriptor, descriptor.annotation(media_types.REF_NAME) or descriptor.digest.oci, 0)

    def _add(self, descriptor: Descriptor, name: str, depth: int) -> None:
        self._added += 1
        if self._added > _MAX_ENTRIES:
            raise FormatError(f"{self._layout.path}: the index leads to more than {_MAX_ENTRIES} images")
        number = self._numbers.get(descriptor.digest)
        if number is not None:
            entry = self.survey.entries[number]
            if name not in entry.names:
                entry.names.append(name)
                for below in self._nested.get(descriptor.digest, ()):
                    self._add(below, name, depth + 1)
            return
        number = self._numbers[descriptor.digest] = len(self.survey.entries)
        self.survey.entries.append(Entry(descriptor, [name]))
        media_type, digest = descriptor.media_type, descriptor.digest
        if media_type == media_types.INDEX:
            self._index(descriptor, name, depth, number)
        elif media_type == media_types.ROOTFS:
            self._old_image(digest, number)
        elif media_type == media_types.MANIFEST:
            self._image(descriptor, number)
        else:
            self.survey.expect(digest, "layer", number, size=descriptor.size)
            self._remark(RemarkKind.OTHER_IMAGE, number, f"it is something else: {media_type[:80]!r}")

    def _index(self, descriptor: Descriptor, name: str, depth: int, number: int) -> None:
        data = self._document(descriptor.digest, "index", MAX_INDEX_SIZE, number, descriptor.size)
        if data is None:
            return
        try:
            if depth >= _MAX_DEPTH:
                raise FormatError(f"more than {_MAX_DEPTH} indexes lead to its manifest")
            nested = Index.parse(data, f"index {descriptor.digest.oci}")
        except FormatError as error:
            self._malformed(number, error.message)
            return
        self._nested[descriptor.digest] = nested.manifests
        for below in nested.manifests:
            self._add(below, name, depth + 1)

    # ---- version 3, and whatever else has a manifest

    def _image(self, descriptor: Descriptor, number: int) -> None:
        data = self._document(descriptor.digest, "manifest", MAX_MANIFEST_SIZE, number, descriptor.size)
        if data is None:
            return
        try:
            manifest = Manifest.parse(data)
        except FormatError as error:
            self._malformed(number, error.message)
            return
        self.survey.expect(manifest.config.digest, "config", number, size=manifest.config.size)
        rootfs: list[Descriptor] = []
        # There can be hundreds of thousands of chunks, so nothing is called for each that need not be.
        layers = manifest.layer_objects
        types = [value.get("mediaType") if isinstance(value, dict) else None for value in layers]
        listed: list[Mapping[str, object]] = []
        for position, (value, media_type) in enumerate(zip(layers, types, strict=True)):
            if media_type in media_types.CHUNK_TYPES and isinstance(value, dict):
                listed.append(value)
                continue
            try:
                layer = Descriptor.from_json(value, f"the OCI manifest's layer {position}")
            except FormatError as error:
                self._malformed(number, error.message)
                continue
            if layer.media_type in media_types.ROOTFS_TYPES:
                rootfs.append(layer)
            else:
                self.survey.expect(layer.digest, "layer", number, size=layer.size)
        self._listed_chunks(listed, media_types.FILE_DATA_ZSTD in types, number)
        if not rootfs:
            self._remark(RemarkKind.OTHER_IMAGE, number, "it is a container image of another kind")
            return
        for layer in rootfs:
            stored = self._document(layer.digest, "rootfs", MAX_METADATA_SIZE, number, layer.size)
            annotation = layer.annotation(media_types.VERITY_ROOT_HASH)
            if stored is None:
                continue
            if annotation is None:
                self._remark(RemarkKind.NOT_RECORDED, number, "no fs-verity digest of its rootfs blob is recorded")
                continue
            try:
                recorded = VerityDigest.from_hex(annotation)
            except FormatError as error:
                self._malformed(number, f"the recorded fs-verity digest of its rootfs blob: {error.message}")
            else:
                self.survey.expect(layer.digest, "rootfs", number)
                self.survey.record_verity(layer.digest, recorded, number)
        if all(layer.digest in self.survey.documents for layer in rootfs):
            self._open(descriptor.digest, number)

    def _listed_chunks(self, listed: Sequence[Mapping[str, object]], compressed: bool, number: int) -> None:
        pairs = [
            (text, size)
            for value in listed
            if isinstance(text := value.get("digest"), str) and isinstance(size := value.get("size"), int)
        ]
        for _ in range(len(listed) - len(pairs)):
            self._malformed(number, "a chunk in the OCI manifest has no digest or no size")
        texts: Sequence[str] = [text for text, _ in pairs]
        sizes: Sequence[int] = [size for _, size in pairs]
        together = "".join(texts)
        if {_TEXT_LENGTH}.issuperset(map(len, texts)) and _DIGESTS.fullmatch(together):
            digests = digests_of(together.replace("sha256:", ""))
        else:
            digests, sizes = self._parsed(texts, sizes, number)
        fresh = self.survey.expect_chunks(digests, sizes, number)
        self.survey.entries[number].lists_compressed = compressed
        self._on_chunks(fresh, compressed)

    def _parsed(self, texts: Sequence[str], sizes: Sequence[int], number: int) -> tuple[list[Digest], list[int]]:
        """The digests among texts that are some, with their sizes."""
        found: list[Digest] = []
        their_sizes: list[int] = []
        for text, size in zip(texts, sizes, strict=True):
            try:
                found.append(Digest.parse(text))
                their_sizes.append(size)
            except FormatError as error:
                self._malformed(number, error.message)
        return found, their_sizes

    # ---- versions 1 and 2

    def _old_image(self, digest: Digest, number: int) -> None:
        data = self._document(digest, "rootfs", MAX_MANIFEST_SIZE, number, None)
        if data is None:
            return
        try:
            refs = codec_for(rootfs_version(data)).decode_rootfs(data).metadata_refs
        except FormatError as error:
            self._malformed(number, error.message)
            return
        read = [self._document(ref.digest, "metadata", MAX_METADATA_SIZE, number, None) for ref in dict.fromkeys(refs)]
        if None not in read:
            self._open(digest, number)

    # ---- all versions

    def _open(self, manifest: Digest, number: int) -> None:
        """Look at the inodes of an image all of whose metadata blobs are good."""
        try:
            image = open_image(ImageReference(self._layout.path, "fsck"), manifest=manifest)
        except FormatError as error:
            self._malformed(number, error.message.replace(f"{self._layout.path}:fsck", "the image"))
        except PuzzlefsError as error:  # it was there a moment ago
            self._fault(manifest, number, error)
        else:
            with image:
                self._on_image(number, image)

    def _document(self, digest: Digest, role: str, limit: int, number: int, size: int | None) -> bytes | None:
        """The bytes of a document or metadata blob, ``None`` if they are bad, which is noted."""
        self.survey.expect(digest, role, number, size=size)
        try:
            data = self._blobs.read(digest, limit=limit)
        except PuzzlefsError as error:
            self._fault(digest, number, error)
            return None
        self.survey.documents[digest] = len(data)
        return data

    def _fault(self, digest: Digest, number: int, error: PuzzlefsError) -> None:
        match error:
            case BlobNotFoundError():
                found = Fault.MISSING, ""
            case IntegrityError(actual=actual):
                found = Fault.CORRUPT, f"sha256:{actual}"
            case StorageError():
                found = Fault.UNREADABLE, error.message
            case _ if self._layout.blob_size(digest) is None:
                found = Fault.NO_FILE, ""
            case _:
                self._malformed(number, error.message)
                return
        self.survey.faults[digest] = found

    def _malformed(self, number: int, message: str) -> None:
        self.survey.malformed.append((number, None, message))

    def _remark(self, kind: RemarkKind, number: int, message: str) -> None:
        self.survey.remarks.append((kind, number, message))


def parts_of(table: InodeTable, positions: Sequence[int] | None = None) -> Iterator[tuple[int, Sequence[FileChunk]]]:
    """The regular files of a metadata layer by number, with the parts that they consist of; malformed ones left out.

    Args:
        table: the layer.
        positions: where in it to look; everywhere if not given.
    """
    regular = int(Kind.REGULAR)
    if positions is not None and not positions:
        return
    inodes = table.kinds() if positions is None else map(list(table.kinds()).__getitem__, positions)
    for ino, kind in inodes:
        if kind != regular:
            continue
        try:
            parts = table.chunks(ino)
            if parts is None:
                inode = table.find(ino)
                if inode is None or not isinstance(inode.content, RegularFile):
                    continue
                yield ino, list(inode.content.chunks)
            else:
                yield ino, parts
        except FormatError:
            continue
