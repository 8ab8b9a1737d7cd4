"""Committing an image: its metadata, its manifest, its tag, in this order.

Blobs come first, on disk and under their names; then the index. Nothing here walks the inodes. Whoever cuts and stores
the content has its chunks in a ``BlobWriter`` already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.compression import compress_whole
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image import DEFAULT_VERSION, MAX_METADATA_RATIO, Image, this_platform
from puzzlefs.model import BlobRef, Inode
from puzzlefs.oci import EMPTY_CONFIG_DATA, Descriptor, Manifest, media_types
from puzzlefs.verity import verity_digest
from puzzlefs.wire import codec_for, encode_compact_rootfs, encode_on_top

_METADATA_LEVEL: Final = 9
"""The zstd level of compressed metadata: beyond it they take much longer and shrink no more."""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk as it was stored.

    Attributes:
        digest: sha256 of the stored bytes.
        size: stored bytes.
        compressed: whether they are zstd.
    """

    digest: Digest
    size: int
    compressed: bool


@dataclass(frozen=True, slots=True)
class CommittedImage:
    """What was committed.

    Attributes:
        version: the format version.
        verity: the image's digest: the fs-verity digest of its manifest.
        manifest: sha256 of the manifest, and its bytes.
        metadata: sha256 and bytes of every other blob that is no chunk.
    """

    version: int
    verity: VerityDigest
    manifest: tuple[Digest, int]
    metadata: tuple[tuple[Digest, int], ...]


def commit_image(
    layout: Layout,
    tag: str,
    *,
    version: int,
    layers: Sequence[Sequence[Inode]],
    chunks: Sequence[StoredChunk],
    verity: Mapping[Digest, VerityDigest],
    writer: BlobWriter,
    compact: bool = False,
    compress_metadata: bool = False,
) -> CommittedImage:
    """Store the metadata of an image whose chunks are in ``writer`` already, commit that, and point the tag to it.

    Args:
        layout: where to.
        tag: the tag, which moves if it is there.
        version: the format version.
        layers: the metadata layers, topmost first.
        chunks: the chunks of the stream in its order, repeats included.
        verity: for each distinct stored chunk the fs-verity digest of the stored bytes.
        writer: the writer that holds the chunks; it is committed.
        compact: version 3: store once what is equal in the metadata, and list each chunk once, instead of writing the
            bytes that the original writes.
        compress_metadata: version 3: store the rootfs blob as zstd if that is smaller, for this program alone.

    Raises:
        StorageError: if the host fails. The tag is then what it was.
        FormatError: if something does not fit the format.
    """
    codec = codec_for(version)
    if version == DEFAULT_VERSION:
        if compact:
            rootfs = encode_compact_rootfs(version, layers, verity)
            chunks = list(dict.fromkeys(chunks))
        else:
            rootfs = codec.encode_rootfs(layers=layers, metadata_refs=(), verity=verity)
        return commit_rootfs(layout, tag, rootfs, chunks=chunks, writer=writer, compress=compress_metadata)
    metadata = _Metadata(version, writer)
    all_verity = dict(verity)
    refs = [metadata.put_vector(layer, all_verity) for layer in layers]
    manifest = codec.encode_rootfs(layers=(), metadata_refs=refs, verity=all_verity)
    return metadata.commit(layout, tag, manifest)


def commit_rootfs(
    layout: Layout,
    tag: str,
    rootfs: bytes,
    *,
    chunks: Sequence[StoredChunk],
    writer: BlobWriter,
    compress: bool = False,
) -> CommittedImage:
    """Store an encoded rootfs blob of version 3 as an image, commit that, and point the tag to it.

    Args:
        layout: where to.
        tag: the tag, which moves if it is there.
        rootfs: the blob.
        chunks: what the manifest lists; these blobs are in ``writer`` already.
        writer: it is committed.
        compress: store the blob as zstd if that is smaller, for this program alone.

    Raises:
        StorageError: if the host fails. The tag is then what it was.
    """
    metadata = _Metadata(DEFAULT_VERSION, writer)
    manifest = Manifest.of([metadata.put_rootfs(rootfs, compress=compress), *map(_chunk_descriptor, chunks)])
    return metadata.commit(layout, tag, manifest.encode())


def commit_on_top(
    layout: Layout,
    tag: str,
    base: Image,
    *,
    inodes: Sequence[Inode],
    chunks: Sequence[StoredChunk],
    verity: Mapping[Digest, VerityDigest],
    writer: BlobWriter,
) -> CommittedImage:
    """Store the image that consists of ``base`` and one more metadata layer, and point a tag to it.

    What is in ``base`` is copied without looking into it, and its chunks are not touched.

    Args:
        layout: where ``base`` is.
        tag: the tag, which moves if it is there.
        base: the image below.
        inodes: the new metadata layer, sorted by number.
        chunks: the chunks of its stream in its order; they are in ``writer`` already.
        verity: the fs-verity digests of those.
        writer: it is committed.

    Raises:
        StorageError: if the host fails. The tag is then what it was.
        FormatError: if something does not fit the format.
        InvalidArgumentError: if ``base`` has as many metadata layers as an image can.
    """
    metadata = _Metadata(base.version, writer)
    if base.manifest is not None:
        is_compressed = base.manifest.rootfs().media_type == media_types.ROOTFS_ZSTD
        rootfs = metadata.put_rootfs(encode_on_top(base.rootfs_data, inodes, verity), compress=is_compressed)
        manifest = Manifest.of([rootfs, *map(_chunk_descriptor, chunks)], base.manifest.chunk_objects()).encode()
    else:
        all_verity = {**base.rootfs.verity, **verity}
        refs = (metadata.put_vector(inodes, all_verity), *base.metadata_refs)
        manifest = codec_for(base.version).encode_rootfs(layers=(), metadata_refs=refs, verity=all_verity)
    return metadata.commit(layout, tag, manifest)


def commit_again(
    layout: Layout, tag: str, image: CommittedImage, chunks: Iterable[tuple[Digest, int]], writer: BlobWriter
) -> bool:
    """Point the tag to an image that was committed before, if the layout still has all of it.

    Args:
        layout: where to.
        tag: the tag, which moves if it is there.
        image: what was committed.
        chunks: digest and size of each of its stored chunks.
        writer: a writer that looks whether blobs are there; it is committed.

    Returns:
        Whether the layout has it; if not, nothing is done.

    Raises:
        StorageError: as ``commit_image``.
    """
    if not writer.adopt_all([image.manifest, *image.metadata, *chunks]):
        return False
    _commit_tag(layout, tag, image.version, image.manifest, writer)
    return True


class _Metadata:
    """The blobs of one image's metadata on their way into the layout."""

    def __init__(self, version: int, writer: BlobWriter) -> None:
        self._version = version
        self._writer = writer
        self._blobs: list[tuple[Digest, int]] = []

    def put_rootfs(self, rootfs: bytes, *, compress: bool) -> Descriptor:
        """Store the rootfs blob of version 3, compressed if that is asked for and makes it smaller, and the
        configuration that an OCI image has."""
        media_type = media_types.ROOTFS
        if compress:
            smaller = compress_whole(rootfs, _METADATA_LEVEL)
            if len(smaller) < len(rootfs) <= MAX_METADATA_RATIO * len(smaller):  # or no reader would take it
                media_type, rootfs = media_types.ROOTFS_ZSTD, smaller
        annotations = {media_types.VERITY_ROOT_HASH: verity_digest(rootfs).hex()}
        descriptor = Descriptor(media_type, self._put(rootfs), len(rootfs), annotations)
        self._put(EMPTY_CONFIG_DATA)
        return descriptor

    def put_vector(self, layer: Sequence[Inode], verity: dict[Digest, VerityDigest]) -> BlobRef:
        """Store a metadata layer of versions 1 and 2, and add its fs-verity digest to ``verity``."""
        vector = codec_for(self._version).encode_inode_vector(layer)
        digest = self._put(vector)
        verity[digest] = verity_digest(vector)
        return BlobRef(digest, 0, False)

    def commit(self, layout: Layout, tag: str, manifest: bytes) -> CommittedImage:
        """Store the manifest, put everything on disk, and point the tag to it."""
        top = (self._writer.put(manifest), len(manifest))
        _commit_tag(layout, tag, self._version, top, self._writer)
        return CommittedImage(self._version, verity_digest(manifest), top, tuple(self._blobs))

    def _put(self, data: bytes) -> Digest:
        digest = self._writer.put(data)
        self._blobs.append((digest, len(data)))
        return digest


def _commit_tag(layout: Layout, tag: str, version: int, manifest: tuple[Digest, int], writer: BlobWriter) -> None:
    is_oci = version == DEFAULT_VERSION
    media_type = media_types.MANIFEST if is_oci else media_types.ROOTFS
    top = Descriptor(media_type, *manifest, extra={"platform": this_platform()} if is_oci else {})
    writer.commit()
    layout.update_index(lambda index: index.with_tag(tag, top))


def _chunk_descriptor(chunk: StoredChunk) -> Descriptor:
    media_type = media_types.FILE_DATA_ZSTD if chunk.compressed else media_types.FILE_DATA
    return Descriptor(media_type, chunk.digest, chunk.size)
