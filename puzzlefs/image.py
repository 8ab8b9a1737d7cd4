"""An image as a whole: opening one along the chain of trust. (Committing one: ``image_commit``.)

Opening goes down a chain in which each level vouches for the next::

    --digest (or nothing) → manifest → rootfs (versions 1 and 2: the manifest is the rootfs) → inode vectors → chunks

Without a digest the chain starts at the index: each level is checked by the sha256 that the level above names, so
corruption is found, but not an image that was replaced as a whole. With a digest the manifest's fs-verity digest must
equal it. The bytes that are checked are the bytes that are parsed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from puzzlefs.blobs import BlobVerifier, Layout, LoadBudget, VerifiedBlobs, VerityMode
from puzzlefs.blobs.host import read_bounded, storage_errors
from puzzlefs.blobs.layout import MAX_INDEX_SIZE, MAX_MANIFEST_SIZE
from puzzlefs.blobs.overlapped import Content
from puzzlefs.compression import decompress_chunk
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, IntegrityError, InvalidArgumentError, TagNotFoundError
from puzzlefs.model import ROOT_INO, BlobRef, InodeTable, Kind, Rootfs
from puzzlefs.oci import (
    Descriptor,
    Dialect,
    ImageReference,
    Index,
    Manifest,
    ManifestOutline,
    media_types,
    parse_reference,
)
from puzzlefs.verity import verity_digest
from puzzlefs.vfs import ReadPlan, Tree
from puzzlefs.wire import codec_for, rootfs_version

if TYPE_CHECKING:
    from puzzlefs.image_path import ImagePath

DEFAULT_VERSION: Final = 3
"""The format version that is written unless another is asked for."""

MAX_METADATA_SIZE: Final = 1 << 30
"""Bytes of the largest rootfs or inode vector that is read: some five million inodes."""

_MAX_INDEX_DEPTH: Final = 4
_MAX_VECTORS_IN_BLOB: Final = 16
"""Vectors at different offsets of one blob could share their bytes; real ones are alone in theirs."""
MAX_METADATA_RATIO: Final = 100
"""How much smaller compressed metadata can be; real ones shrink to a tenth."""
_MIN_ENTRY_SIZE: Final = 16
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class Image:
    """An open image. Use it as a context manager, or ``close`` it. Thread safe.

    Attributes:
        reference: what it was opened as.
        manifest_digest: sha256 of its manifest (the OCI manifest; the capnp manifest in versions 1 and 2).
        manifest: the OCI manifest, ``None`` in versions 1 and 2.
        rootfs: the decoded metadata.
        rootfs_data: the bytes that it was decoded from, not compressed.
        metadata_refs: versions 1 and 2: the blobs that hold the inode vectors, topmost first.
        tree: the file system that it shows.
        blobs: its blobs, verified.
        anchor: the fs-verity digest that its manifest was held against, ``None`` if nobody named one.
        verity: how its blobs are verified (``puzzlefs.blobs.verified``); *user* without an anchor.
    """

    def __init__(
        self,
        *,
        reference: ImageReference,
        layout: Layout,
        manifest_digest: Digest,
        manifest: Manifest | None,
        rootfs: Rootfs,
        rootfs_data: Content,
        metadata_refs: tuple[BlobRef, ...],
        tree: Tree,
        blobs: VerifiedBlobs,
        anchor: VerityDigest | None,
        verity: VerityMode,
    ) -> None:
        """Not for callers: use ``open_image``."""
        self.reference = reference
        self.layout = layout
        self.manifest_digest = manifest_digest
        self.manifest = manifest
        self.rootfs = rootfs
        self.rootfs_data = rootfs_data
        self.metadata_refs = metadata_refs
        self.tree = tree
        self.blobs = blobs
        self.anchor = anchor
        self.verity = verity

    @property
    def version(self) -> int:
        """The format version: 1, 2 or 3."""
        return self.rootfs.version

    def verity_digest(self) -> VerityDigest:
        """The fs-verity digest of the manifest: what ``build`` prints and ``--digest`` takes.

        Raises:
            PuzzlefsError: if the manifest cannot be read any more.
        """
        return verity_digest(self.blobs.read(self.manifest_digest, limit=MAX_MANIFEST_SIZE))

    def check_blob(self, digest: Digest) -> int:
        """Read all of a blob of this image and verify it as reading the image does, without keeping any of it.

        Returns:
            How many bytes it has.

        Raises:
            PuzzlefsError: as ``VerifiedBlobs.check``.
        """
        if digest == self.manifest_digest:
            return self.blobs.check(digest, expected=self.anchor, by_name=self.anchor is None)
        if self.manifest is not None and self.verity != "user":
            rootfs = self.manifest.rootfs()
            if digest == rootfs.digest:
                return self.blobs.check(digest, expected=_recorded(rootfs))
        # nothing is ever read of the configuration, and no fs-verity digest of it recorded
        is_config = self.manifest is not None and digest == self.manifest.config.digest
        return self.blobs.check(digest, by_name=is_config)

    def metadata_blobs(self) -> set[Digest]:
        """The blobs that are no chunks: manifest, configuration, rootfs, metadata layers."""
        found = {self.manifest_digest, *(ref.digest for ref in self.metadata_refs)}
        if self.manifest is not None:
            found |= {self.manifest.config.digest, self.manifest.rootfs().digest}
        return found

    def opened_blobs(self) -> set[Digest]:
        """The blobs that opening the image has read and verified: all of ``metadata_blobs`` but the configuration."""
        return self.metadata_blobs() - ({self.manifest.config.digest} if self.manifest is not None else set())

    def layer_sizes(self) -> list[tuple[int, Digest | None]]:
        """What each metadata layer takes, topmost first: bytes, and the blob whose bytes those are.

        In version 3 a layer is a part of the rootfs blob: bytes before compression, and no blob.

        Raises:
            FormatError: if metadata are malformed.
            StorageError: if the host cannot tell the size of a blob.
        """
        if not self.metadata_refs:
            from puzzlefs.wire import embedded_sizes  # noqa: PLC0415  whoever mounts does not need it

            return [(size, None) for size in embedded_sizes(self.rootfs.metadata_layers)]
        digests = [ref.digest for ref in dict.fromkeys(self.metadata_refs)]  # as they were opened
        with storage_errors("look for metadata in", self.layout.path):
            return [(self.layout.blob_size(digest) or 0, digest) for digest in digests]

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """``size`` bytes of a regular file from ``offset`` on, fewer at its end; all of them verified.

        Raises:
            NotFoundError: if there is no such inode, or a blob is missing.
            InvalidArgumentError: if the inode is no regular file.
            FormatError: if the image is malformed there.
            IntegrityError: if a blob is not what its name says.
            StorageError: if the host cannot read a blob.
        """
        return self.fetch(self.tree.plan(ino, offset, size))

    def fetch(self, plan: ReadPlan) -> bytes:
        """The bytes of a plan that ``tree`` made, all of them verified.

        Raises:
            NotFoundError: if a blob is missing.
            FormatError: if the image is malformed there, also if it would take absurdly much work.
            IntegrityError: if a blob is not what its name says.
            StorageError: if the host cannot read a blob.
        """
        return b"".join(self.views(plan))

    def views(self, plan: ReadPlan) -> list[memoryview]:
        """The pieces of a plan as ``fetch`` joins them, without copying them; as ``fetch``."""
        view = self.blobs.view_chunk
        pieces = plan.pieces
        if len(pieces) == 1:
            piece = pieces[0]
            return [view(piece.blob, piece.compressed, piece.offset, piece.length)]
        budget = LoadBudget.for_reading(sum(piece.length for piece in pieces))
        return [view(piece.blob, piece.compressed, piece.offset, piece.length, budget) for piece in pieces]

    def path(self, path: str | bytes = "/") -> ImagePath:
        """A path inside the image, to be used like one of ``pathlib``: ``image.path("/etc") / "passwd"``."""
        from puzzlefs.image_path import ImagePath  # noqa: PLC0415  whoever mounts does not need it

        return ImagePath(self, path)

    def close(self) -> None:
        """Give the descriptors back."""
        self.layout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_image(
    reference: ImageReference | str,
    *,
    digest: VerityDigest | str | None = None,
    verity: VerityMode = "auto",
    manifest: Digest | None = None,
    outline: ManifestOutline | None = None,
) -> Image:
    """Open an image for reading.

    Args:
        reference: the image, ``OCI_DIR:TAG``.
        digest: the fs-verity digest that its manifest must have, as ``build`` printed it; 64 hex digits.
        verity: how what lies below is checked when a digest is given (``puzzlefs.blobs.verified``).
        manifest: sha256 of the manifest to open, wherever the tag points by now, or if it is gone.
        outline: what ``outline_ahead`` knows about a manifest; it need not be this one.

    Raises:
        NotFoundError: if the layout, the tag or a blob of metadata is missing.
        FormatError: if the image is malformed.
        IntegrityError: if a blob is not what it should be, or the manifest is not the one that ``digest`` names.
        VerityNotEnabledError: with ``verity="kernel"``, if a file has no fs-verity.
        VerityUnavailableError: with ``verity="kernel"``, if the kernel or the file system cannot do fs-verity.
        InvalidArgumentError: for ``verity="kernel"`` without a digest, or a malformed reference or digest.
    """
    if isinstance(reference, str):
        reference = parse_reference(reference)
    anchor = _parse_anchor(digest)
    if anchor is None and verity == "kernel":
        raise InvalidArgumentError(
            "fs-verity by the kernel needs a digest to compare with",
            hint="give the digest that build printed",
        )
    layout = Layout.open(reference.layout)
    try:
        if manifest is None:
            manifest = find_manifest(layout, layout.read_index(), reference).digest
        return _open(reference, layout, manifest, anchor, verity if anchor is not None else "user", outline)
    except BaseException:
        layout.close()
        raise


def open_manifest(
    layout: Layout,
    reference: ImageReference,
    manifest: Digest,
    *,
    digest: VerityDigest | None = None,
    verity: VerityMode = "user",
) -> Image:
    """Open the image of a manifest in a layout that is open already, wherever the layout and its tags are by now.

    Args:
        layout: the layout, which closes with the image; if this raises, it stays open.
        reference: what to call the image.
        manifest: sha256 of its manifest.
        digest: as ``open_image``, as are the exceptions.
        verity: likewise; *user* without a digest.
    """
    return _open(reference, layout, manifest, digest, verity if digest is not None else "user")


def _open(
    reference: ImageReference,
    layout: Layout,
    digest: Digest,
    anchor: VerityDigest | None,
    mode: VerityMode,
    outline: ManifestOutline | None = None,
) -> Image:
    verifier = BlobVerifier(mode)
    data = _read_manifest(layout, digest, verifier, anchor)
    metadata = VerifiedBlobs(layout, verifier)
    manifest: Manifest | None = None
    if layout.dialect is Dialect.OCI:
        if outline is not None and outline.digest == digest:
            manifest = Manifest.outlined(data, outline)
        else:
            manifest = Manifest.skim(data)
        rootfs_descriptor = manifest.rootfs()
        content = _read_metadata(
            metadata,
            rootfs_descriptor.digest,
            MAX_METADATA_SIZE,
            is_compressed=rootfs_descriptor.media_type == media_types.ROOTFS_ZSTD,
            expected=_recorded(rootfs_descriptor) if mode != "user" else None,
        )
    else:
        content = data
    version = rootfs_version(content)
    codec = codec_for(version)
    if (version == DEFAULT_VERSION) != (layout.dialect is Dialect.OCI):
        raise FormatError(f"{reference}: metadata of format version {version} does not belong into this kind of layout")
    wire = codec.decode_rootfs(content)
    blobs = VerifiedBlobs(layout, BlobVerifier(mode, wire.verity))
    tables: list[InodeTable] = list(wire.tables)
    size = len(content)
    uses = Counter(ref.digest for ref in dict.fromkeys(wire.metadata_refs))
    if uses and max(uses.values()) > _MAX_VECTORS_IN_BLOB:
        raise FormatError(f"{reference}: more than {_MAX_VECTORS_IN_BLOB} metadata layers are in one blob")
    for ref in dict.fromkeys(wire.metadata_refs):  # one that stands twice says nothing new the second time
        vector = _read_vector(blobs, ref, MAX_METADATA_SIZE - size)
        size += len(vector)
        tables.append(codec.decode_inode_vector(vector))
    rootfs = Rootfs(version, tuple(tables), wire.verity)
    tree = Tree(tables, max_entries=size // _MIN_ENTRY_SIZE)
    if tree.kind(ROOT_INO) is not Kind.DIRECTORY:
        raise FormatError(f"{reference} has no root directory")
    return Image(
        reference=reference,
        layout=layout,
        manifest_digest=digest,
        manifest=manifest,
        rootfs=rootfs,
        rootfs_data=content,
        metadata_refs=wire.metadata_refs,
        tree=tree,
        blobs=blobs,
        anchor=anchor,
        verity=mode,
    )


def find_manifest(layout: Layout, index: Index, reference: ImageReference) -> Descriptor:
    """What the tag points to: the descriptor of the manifest, through nested indexes if need be.

    Of several manifests in a nested index, the one for this machine counts, else the first.

    Raises:
        TagNotFoundError: if there is no such tag.
        FormatError: if it points to something that is not an image.
    """
    descriptor = index.find(reference.tag)
    if descriptor is None:
        raise TagNotFoundError(str(reference.layout), reference.tag, index.tags())
    wanted = media_types.MANIFEST if layout.dialect is Dialect.OCI else media_types.ROOTFS
    blobs = VerifiedBlobs(layout, BlobVerifier("user"))
    for _ in range(_MAX_INDEX_DEPTH):
        if descriptor.media_type != media_types.INDEX:
            break
        nested = Index.parse(blobs.read(descriptor.digest, limit=MAX_INDEX_SIZE), f"index {descriptor.digest.oci}")
        if not nested.manifests:
            raise FormatError(f"{reference} points to an index without manifests")
        here = [entry for entry in nested.manifests if _is_for_this_machine(entry)]
        descriptor = (here or list(nested.manifests))[0]
    if descriptor.media_type != wanted:
        raise FormatError(f"{reference} is not a PuzzleFS image: it points to {descriptor.media_type[:120]!r}")
    return descriptor


def _is_for_this_machine(descriptor: Descriptor) -> bool:
    wanted = descriptor.extra.get("platform")
    return isinstance(wanted, Mapping) and wanted.items() >= this_platform().items()


def _parse_anchor(digest: VerityDigest | str | None) -> VerityDigest | None:
    if digest is None or isinstance(digest, VerityDigest):
        return digest
    try:
        return VerityDigest.from_hex(digest.strip().lower().removeprefix("sha256:"))
    except FormatError as error:
        raise InvalidArgumentError(error.message, hint="give the digest that build printed") from error


def _read_manifest(layout: Layout, digest: Digest, verifier: BlobVerifier, anchor: VerityDigest | None) -> bytes:
    """The manifest's bytes: what the index names, and, where an anchor is given, what the anchor names."""
    subject = f"manifest {layout.blob_path(digest)}"
    with storage_errors("read", layout.blob_path(digest)):
        fd = layout.open_blob(digest)
        try:
            data = read_bounded(fd, subject, MAX_MANIFEST_SIZE)
            if anchor is not None:
                verifier.check_anchor(fd, data, subject, anchor)
        finally:
            os.close(fd)
    actual = Digest.of(data)
    if actual != digest:
        raise IntegrityError(subject, expected=digest.hex(), actual=actual.hex())
    return data


def _recorded(descriptor: Descriptor) -> VerityDigest | None:
    expected = descriptor.annotation(media_types.VERITY_ROOT_HASH)
    return None if expected is None else VerityDigest.from_hex(expected)


def _read_vector(blobs: VerifiedBlobs, ref: BlobRef, limit: int) -> Content:
    content = _read_metadata(blobs, ref.digest, limit, is_compressed=ref.compressed)
    if ref.offset > len(content):
        raise FormatError(f"metadata blob {ref.digest.oci} is shorter than the offset {ref.offset} in it")
    return content[ref.offset :] if ref.offset else content


def _read_metadata(
    blobs: VerifiedBlobs, digest: Digest, limit: int, *, is_compressed: bool, expected: VerityDigest | None = None
) -> Content:
    if not is_compressed:
        return blobs.read_large(digest, limit=limit, expected=expected)
    stored = blobs.read(digest, limit=limit, expected=expected)
    try:
        return decompress_chunk(stored, limit=min(limit, MAX_METADATA_RATIO * len(stored)))
    except FormatError as error:
        raise FormatError(f"metadata blob {digest.oci}: {error.message}") from error


def dialect_of(version: int) -> Dialect:
    """The kind of layout that holds images of a format version."""
    return Dialect.OCI if version == DEFAULT_VERSION else Dialect.PUZZLEFS_DEV


def this_platform() -> dict[str, str]:
    """This machine, as a descriptor's ``platform`` says it."""
    machine = os.uname().machine
    return {"architecture": _MACHINES.get(machine, machine), "os": "linux"}
