"""The conversion: metadata layers, chunks, the new image's tag."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder import VERSIONS, Progress
from puzzlefs.builder.workers import worker_count
from puzzlefs.convert.chunks import ChunkConverter, ConvertedChunk
from puzzlefs.convert.stack import Key, encode_stack
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import BlobNotFoundError, FormatError, InvalidArgumentError
from puzzlefs.image import DEFAULT_VERSION, Image, dialect_of, open_image
from puzzlefs.image_commit import CommittedImage, commit_again, commit_image, commit_rootfs
from puzzlefs.model import FileChunk, Inode, RegularFile
from puzzlefs.oci import ImageReference, parse_reference


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was made.

    Attributes:
        digest: the new image's digest: the fs-verity digest of its manifest, which ``--digest`` takes.
        metadata_layers: how many there are, in both images.
        chunks: distinct chunks that they refer to.
        changed_chunks: those of them that the new version stores as other bytes.
        stored_bytes: bytes of every blob that the new image's layout did not hold before, linked ones included.
        seconds: how long it took.
    """

    digest: VerityDigest
    metadata_layers: int
    chunks: int
    changed_chunks: int
    stored_bytes: int
    seconds: float


def convert(
    reference: ImageReference | str,
    target: ImageReference | str,
    *,
    format_version: int,
    digest: VerityDigest | str | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ConvertReport:
    """Write an image in another version of the format, or the same one in another layout.

    Args:
        reference: the image, ``OCI_DIR:TAG``.
        target: what to call the new one: its layout, made if need be, and its tag, moved if it is there.
        format_version: 1, 2 or 3.
        digest: the fs-verity digest that the image's manifest must have.
        workers: threads that convert and copy chunks; as many as there are CPUs, up to 8, if not given.
        progress: called now and then, in the caller's thread.

    Returns:
        What was made, with the new digest.

    Raises:
        InvalidArgumentError: for arguments that make no sense, also if ``target`` is a layout of the other kind.
        NotFoundError: if the image or one of its blobs is missing.
        FormatError: if the image is malformed.
        IntegrityError: if a blob is not what its name says.
        StorageError: if a layout cannot be read or written. In all of these cases no tag has moved.
    """
    started = time.monotonic()
    if isinstance(target, str):
        target = parse_reference(target)
    if format_version not in VERSIONS:
        raise InvalidArgumentError(f"there is no format version {format_version}", hint="there are 1, 2 and 3")
    count = worker_count(workers)
    report = progress or (lambda _: None)
    with (
        open_image(reference, digest=digest) as image,
        Layout.open_or_create(target.layout, dialect_of(format_version)) as layout,
        BlobWriter(layout) as writer,
    ):
        try:
            layers = [list(layer) for layer in image.rootfs.metadata_layers]
            with ChunkConverter(image, layers, layout, writer, version=format_version, workers=count) as chunks:
                if format_version == image.version:
                    inodes = sum(map(len, layers))
                    committed = _copy(image, chunks, layout, writer, target.tag, inodes, report)
                else:
                    committed = _rewrite(image, layers, chunks, layout, writer, target.tag, format_version, report)
        except FormatError as error:
            error.message = f"{image.reference}: {error.message}"
            raise
        return ConvertReport(
            digest=committed.verity,
            metadata_layers=len(layers),
            chunks=len(chunks.sizes),
            changed_chunks=chunks.changed,
            stored_bytes=writer.stored_bytes,
            seconds=time.monotonic() - started,
        )


def _rewrite(
    image: Image,
    layers: list[list[Inode]],
    chunks: ChunkConverter,
    layout: Layout,
    writer: BlobWriter,
    tag: str,
    version: int,
    report: Callable[[Progress], None],
) -> CommittedImage:
    """Write the image in another version."""
    inodes, total = sum(map(len, layers)), sum(chunks.sizes.values())
    converted = chunks.convert_all(lambda done: report(Progress("chunks", inodes, done, total)))
    report(Progress("commit", inodes, total, total))
    writer.begin_write_out()  # while the metadata are encoded
    if chunks.changed:
        layers = [[_with_new_chunks(inode, converted) for inode in layer] for layer in layers]
    verity = {one.chunk.digest: one.verity for one in converted.values()}
    for key in chunks.sizes:
        if key not in converted and key[0] in image.rootfs.verity:  # it is missing, and nobody needs it
            verity.setdefault(key[0], image.rootfs.verity[key[0]])
    if version != DEFAULT_VERSION:
        return commit_image(layout, tag, version=version, layers=layers, chunks=(), verity=verity, writer=writer)
    stored = {(one.chunk.digest, one.chunk.compressed): one.chunk for one in converted.values()}
    rootfs, listed = encode_stack(layers, verity, stored)
    return commit_rootfs(layout, tag, rootfs, chunks=listed, writer=writer)


def _with_new_chunks(inode: Inode, converted: dict[Key, ConvertedChunk]) -> Inode:
    """The inode with references to the chunks as they are stored now."""
    content = inode.content
    if not isinstance(content, RegularFile) or not any(part.blob.compressed for part in content.chunks):
        return inode
    parts: list[FileChunk] = []
    for part in content.chunks:
        blob = part.blob
        found = converted.get((blob.digest, blob.compressed))
        parts.append(part if found is None else part._replace(blob=blob._replace(digest=found.chunk.digest)))
    return inode._replace(content=RegularFile(content.size, tuple(parts)))


def _copy(
    image: Image,
    chunks: ChunkConverter,
    layout: Layout,
    writer: BlobWriter,
    tag: str,
    inodes: int,
    report: Callable[[Progress], None],
) -> CommittedImage:
    """Take everything over as it is, the manifest included."""
    needed = {ref.digest for ref in image.metadata_refs}
    others = set(needed)
    if image.manifest is not None:
        needed.add(image.manifest.rootfs().digest)
        others.update((image.manifest.config.digest, *(layer.digest for layer in image.manifest.layers())))
    total = sum(chunks.sizes.values())
    chunks.take_all(needed, others, lambda done: report(Progress("chunks", inodes, done, total)))
    report(Progress("commit", inodes, total, total))
    manifest = (image.manifest_digest, chunks.take(image.manifest_digest))
    committed = CommittedImage(image.version, image.verity_digest(), manifest, ())
    if not commit_again(layout, tag, committed, (), writer):
        raise BlobNotFoundError(image.manifest_digest.hex(), str(layout.blob_path(image.manifest_digest)))
    return committed
