"""What has to be copied so that an entry of an index means in another layout what it means here.

Documents are verified before they are followed. What a document names comes before it. Not for several threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from puzzlefs.blobs import BlobVerifier, Layout, VerifiedBlobs
from puzzlefs.blobs.host import storage_errors
from puzzlefs.blobs.layout import MAX_INDEX_SIZE, MAX_MANIFEST_SIZE
from puzzlefs.digest import Digest
from puzzlefs.errors import BlobNotFoundError, FormatError, PuzzlefsError
from puzzlefs.image import Image, open_image
from puzzlefs.model import RegularFile
from puzzlefs.oci import Descriptor, ImageReference, Index, media_types
from puzzlefs.oci.json_text import JsonObject, as_list, parse_object
from puzzlefs.wire import chunk_digests

_MAX_DEPTH: Final = 8
"""Documents that name documents, one below the other."""
_MAX_REFERRER_SIZE: Final = 4 << 20
"""Bytes of the largest manifest that is looked into for what it refers to; registries take no larger ones at all."""


class Survey:
    """The blobs that entries of an index lead to.

    Attributes:
        blobs: their sizes, what is named before what names it.
        missing: blobs that are named, are not there, and that nobody needs.
    """

    def __init__(self, layout: Layout) -> None:
        """Nothing yet."""
        self.blobs: dict[Digest, int] = {}
        self.missing: set[Digest] = set()
        self._layout = layout
        self._tag = ""
        self._verified = VerifiedBlobs(layout, BlobVerifier("user"))

    def add(self, tag: str, entry: Descriptor) -> None:
        """Add an entry, and all that it leads to; ``tag`` is what it is called in messages.

        Raises:
            BlobNotFoundError: if something is missing that is needed.
            FormatError: if a document or an image is malformed.
            IntegrityError: if a document, or metadata of an image, is not what its digest says.
            StorageError: if the host cannot read one.
        """
        self._tag = tag
        self._follow(entry, 0)

    def referrers(self, index: Index, copied: Iterable[Descriptor]) -> list[Descriptor]:
        """The entries of the index, besides ``copied``, that refer to what was added; they are added too.

        Raises:
            PuzzlefsError: as ``add``.
        """
        found: list[Descriptor] = []
        known = {_key(entry) for entry in copied}
        waiting = [(entry, self._subject(entry)) for entry in index.manifests if _key(entry) not in known]
        while True:
            new = [entry for entry, subject in waiting if self._refers(entry, subject)]
            if not new:
                return found
            waiting = [(entry, subject) for entry, subject in waiting if not self._refers(entry, subject)]
            for entry in new:
                self.add(entry.annotation(media_types.REF_NAME) or entry.digest.oci, entry)
            found += new

    # ---- inside

    def _refers(self, entry: Descriptor, subject: Digest | None) -> bool:
        if subject in self.blobs:
            return True
        # distribution-spec, "Referrers Tag Schema", and what signing tools make of it: sha256-<hex>.sig
        tag = entry.annotation(media_types.REF_NAME) or ""
        prefix, _, rest = tag.partition("-")
        try:
            return prefix == "sha256" and Digest.from_hex(rest[:64]) in self.blobs
        except FormatError:
            return False

    def _subject(self, entry: Descriptor) -> Digest | None:
        """What a document refers to; ``None`` if that cannot be told: something else is copied, so that is no error."""
        if entry.media_type not in (*media_types.INDEX_TYPES, *media_types.MANIFEST_TYPES):
            return None
        try:
            if (self._layout.blob_size(entry.digest) or 0) > _MAX_REFERRER_SIZE:
                return None
            subject = self._read(entry, _MAX_REFERRER_SIZE).get("subject")
            return None if subject is None else Descriptor.from_json(subject, "subject").digest
        except (PuzzlefsError, OSError):
            return None

    def _follow(self, descriptor: Descriptor, depth: int) -> None:
        digest = descriptor.digest
        if digest in self.blobs:
            return
        if depth > _MAX_DEPTH:
            raise FormatError(f"more than {_MAX_DEPTH} documents name one another down to {digest.oci}")
        what = f"document {digest.oci}"
        if descriptor.media_type in media_types.INDEX_TYPES:
            document = self._read(descriptor, MAX_INDEX_SIZE)
            for below in _descriptors(document, "manifests", what):
                self._follow(below, depth + 1)
            self._follow_subject(document, what, depth)
        elif descriptor.media_type in media_types.MANIFEST_TYPES:
            document = self._read(descriptor, MAX_MANIFEST_SIZE)
            listed = [Descriptor.from_json(document.get("config"), f"{what}: config")]
            listed += _descriptors(document, "layers", what)
            if any(layer.media_type in media_types.ROOTFS_TYPES for layer in listed):
                self._add_image(digest, [one.digest for one in listed])
            else:
                for layer in listed:
                    if not layer.extra.get("urls") or self._size(layer.digest) is not None:
                        self._add(layer.digest)
            self._follow_subject(document, what, depth)
        elif descriptor.media_type == media_types.ROOTFS:
            self._add_image(digest, ())
        self._add(digest)

    def _follow_subject(self, document: JsonObject, what: str, depth: int) -> None:
        """What a manifest refers to need not be there (image-spec, manifest.md)."""
        if document.get("subject") is not None:
            subject = Descriptor.from_json(document["subject"], f"{what}: subject")
            if self._size(subject.digest) is not None:
                self._follow(subject, depth + 1)

    def _add_image(self, manifest: Digest, listed: Sequence[Digest]) -> None:
        """An image of ours: chunks first, then metadata."""
        with open_image(ImageReference(self._layout.path, self._tag), manifest=manifest) as image:
            metadata = [ref.digest for ref in image.metadata_refs]
            if image.manifest is not None:
                metadata.append(image.manifest.rootfs().digest)
            chunks = set().union(*map(chunk_digests, image.rootfs.metadata_layers))
            chunks.update(listed)
            gone = [digest for digest in chunks.difference(metadata) if self._size(digest) is None]
            if gone:
                needed = _needed_chunks(image)
                for digest in sorted(needed.intersection(gone)):
                    raise BlobNotFoundError(digest.hex(), str(self._layout.blob_path(digest)))
                self.missing.update(gone)
            for digest in sorted(chunks.difference(gone, metadata)):
                self._add(digest)
            for digest in metadata:
                self._add(digest)

    def _add(self, digest: Digest) -> None:
        if digest not in self.blobs:
            size = self._size(digest)
            if size is None:
                raise BlobNotFoundError(digest.hex(), str(self._layout.blob_path(digest)))
            self.blobs[digest] = size

    def _size(self, digest: Digest) -> int | None:
        with storage_errors("look for blobs in", self._layout.path):
            return self._layout.blob_size(digest)

    def _read(self, descriptor: Descriptor, limit: int) -> JsonObject:
        data = self._verified.read(descriptor.digest, limit=limit)
        return parse_object(data, f"document {descriptor.digest.oci}")


def _key(entry: Descriptor) -> tuple[Digest, str | None]:
    return entry.digest, entry.annotation(media_types.REF_NAME)


def _descriptors(document: JsonObject, key: str, what: str) -> Iterator[Descriptor]:
    for number, value in enumerate(as_list(document.get(key), f"{what}: {key}")):
        if isinstance(value, Mapping) and value.get("mediaType") is None:
            raise FormatError(f"{what}: {key} {number} has no mediaType")
        yield Descriptor.from_json(value, f"{what}: {key} {number}")


def _needed_chunks(image: Image) -> set[Digest]:
    """The chunks that a reader of the image can come across."""
    found: set[Digest] = set()
    for ino in image.tree.links().visible:
        content = image.tree.inode(ino).content
        if isinstance(content, RegularFile):
            found.update([part.blob.digest for part in content.chunks if part.length])
    return found
