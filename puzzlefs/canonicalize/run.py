"""The canonical form itself: walk, stream, chunks, metadata, tag.

The tag is moved last, as in a build. Old and new image are in one layout, so what lines up needs no copy, and what the
old image alone used stays until it is collected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from puzzlefs.blobs import BlobWriter
from puzzlefs.builder import Progress, StorageOptions
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.finish import finish_image
from puzzlefs.builder.stream import StreamCutter
from puzzlefs.builder.workers import worker_count
from puzzlefs.canonicalize.content import ContentReader
from puzzlefs.canonicalize.lining import LiningPipeline
from puzzlefs.canonicalize.renumber import renumber
from puzzlefs.canonicalize.way import way_of
from puzzlefs.chunking import ChunkerName
from puzzlefs.chunking import chunker as make_chunker
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.image import Image, open_image
from puzzlefs.oci import ImageReference, make_reference, parse_reference


@dataclass(frozen=True, slots=True)
class CanonicalReport:
    """What was made.

    Attributes:
        digest: the image's digest: the fs-verity digest of its manifest, which ``--digest`` takes.
        inodes: inodes in the image; several names of one count once.
        content_size: bytes of all regular files together.
        chunks: chunks of the stream, repeats included.
        reused_chunks: those of them that were taken over as they were stored.
        new_chunks: distinct chunks that the layout did not hold before.
        stored_bytes: bytes of every blob that the layout did not hold before, metadata included.
        seconds: how long it took.
    """

    digest: VerityDigest
    inodes: int
    content_size: int
    chunks: int
    reused_chunks: int
    new_chunks: int
    stored_bytes: int
    seconds: float


def canonicalize(
    reference: ImageReference | str,
    new_tag: str | None = None,
    *,
    compression: bool | None = None,
    storage: StorageOptions | None = None,
    chunker: ChunkerName = "fastcdc2020",
    digest: VerityDigest | str | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> CanonicalReport:
    """Make of an image with any number of metadata layers the image that ``build`` makes of the tree that it shows.

    Nothing is extracted. Chunks of the image that the new stream has again are taken over as they are stored; content
    is verified on the way. The format version stays.

    Args:
        reference: the image, ``OCI_DIR:TAG``.
        new_tag: the tag of the result, in the same layout; the image's own, which moves, if not given.
        compression: whether chunks are compressed; as the image's are, if not given.
        storage: how a compressed image is stored, as for ``build``; what is left open there is inferred where it can be
            (the level, compressed metadata), and the default of ``build`` otherwise.
        chunker: how the stream is cut: ``fastcdc2020`` or ``ronomon``.
        digest: the fs-verity digest that the image's manifest must have.
        workers: threads that load and store chunks; as many as there are CPUs, up to 8, if not given.
        progress: called now and then, in the caller's thread.

    Returns:
        What was made, with the new digest.

    Raises:
        InvalidArgumentError: for arguments that make no sense.
        NotFoundError: if the image or one of its blobs is missing.
        FormatError: if the image is malformed.
        IntegrityError: if data is not what its digest says.
        StorageError: if the layout cannot be read or written. In all of these cases no tag has moved.
    """
    started = time.monotonic()
    if isinstance(reference, str):
        reference = parse_reference(reference)
    count = worker_count(workers)
    target = reference if new_tag is None else make_reference(reference.layout, new_tag)
    with open_image(reference, digest=digest) as image:
        return _Canonicalization(
            image,
            target.tag,
            compression,
            storage or StorageOptions(),
            chunker,
            count,
            progress or (lambda _: None),
            started,
        ).run()


@dataclass(frozen=True, slots=True)
class _Canonicalization:
    image: Image
    tag: str
    compression: bool | None
    options: StorageOptions
    chunker: ChunkerName
    workers: int
    progress: Callable[[Progress], None]
    started: float

    def run(self) -> CanonicalReport:
        image, layout = self.image, self.image.layout
        self.progress(Progress("scan", 0, 0, 0))
        stream = FileStream()
        try:
            found = renumber(image.tree, stream)
        except FormatError as error:
            error.message = f"{image.reference}: {error.message}"
            raise
        way = way_of(image, found.files, self.compression, self.options)
        cutter_of = make_chunker(self.chunker, way.storage.sizes)
        inodes, total = len(found.inodes), stream.size
        with BlobWriter(layout) as writer:
            writer.rely_on(image.manifest_digest, is_rootfs=image.manifest is None)
            with LiningPipeline(
                stream,
                writer,
                version=image.version,
                storage=way.storage,
                workers=self.workers,
                progress=lambda done: self.progress(Progress("chunks", inodes, done, total)),
            ) as pipeline:
                ContentReader(
                    image,
                    found.files,
                    StreamCutter(cutter_of, pipeline),
                    pipeline,
                    takes_over=way.takes_over,
                    cut_at_files=way.storage.cut_at_files,
                    workers=self.workers,
                ).run()
                pipeline.finish()
            committed, new_chunks = finish_image(
                layout,
                self.tag,
                found.inodes,
                stream,
                pipeline,
                writer,
                version=image.version,
                storage=way.storage,
                report=self.progress,
            )
        return CanonicalReport(
            digest=committed.verity,
            inodes=inodes,
            content_size=total,
            chunks=len(stream.chunks),
            reused_chunks=pipeline.reused,
            new_chunks=new_chunks,
            stored_bytes=writer.stored_bytes,
            seconds=time.monotonic() - self.started,
        )
