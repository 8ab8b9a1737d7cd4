"""Building an image on top of another one: find the difference, store its content, commit the new metadata layer."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder import BuildReport, Progress, StorageOptions, Timestamps
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.finish import begin_commit
from puzzlefs.builder.pipeline import ChunkPipeline
from puzzlefs.builder.processes import is_worth_processes
from puzzlefs.builder.run import mtime_rule, refuse_overlap
from puzzlefs.builder.scan import scan
from puzzlefs.builder.source import SourceTree
from puzzlefs.builder.storage import storage_of
from puzzlefs.builder.stream import StreamCutter, StreamReader
from puzzlefs.builder.workers import worker_count
from puzzlefs.chunking import ChunkerName
from puzzlefs.chunking import chunker as make_chunker
from puzzlefs.delta.layer import NewLayer, has_timestamps
from puzzlefs.delta.upper import layer_of_upper
from puzzlefs.delta.whole_tree import layer_of_tree
from puzzlefs.errors import InvalidArgumentError
from puzzlefs.image import Image
from puzzlefs.image_commit import CommittedImage, commit_again, commit_on_top
from puzzlefs.model import Kind, RegularFile
from puzzlefs.oci import make_reference, media_types

_ENOUGH: Final = 64
"""Files that are asked whether an image is compressed."""


def build_from_tree(
    rootfs: Path | str,
    base: Image,
    tag: str,
    *,
    compression: bool | None = None,
    storage: StorageOptions | None = None,
    chunker: ChunkerName = "fastcdc2020",
    timestamps: Timestamps | None = None,
    clamp_ns: int | None = None,
    cross_mounts: bool = False,
    check_existing: bool = False,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Build the image of a directory as a metadata layer on top of another image in the same layout.

    If there is no difference, the tag points to the base itself.

    Args:
        rootfs: the directory that becomes the image's root.
        base: the image below.
        tag: the tag, moved if it is there.
        compression: whether to store new chunks as zstd; as the base's are, if not given.
        storage: for compressed ones: how small, and cut how.
        chunker: how the stream of changed files is cut.
        timestamps: whether modification times are stored; as in the base, if not given.
        clamp_ns: for ``clamp``: the latest time to store, in nanoseconds since the epoch.
        cross_mounts: look into what is mounted below ``rootfs``, too.
        check_existing: hash blobs that the layout holds already before relying on them.
        workers: as for ``build``.
        progress: as for ``build``.

    Returns:
        What was built; ``inodes``, ``content_size`` and ``chunks`` are those of the new layer.

    Raises:
        PuzzlefsError: as ``build``; also if ``base`` is malformed, or its content, which is compared with that of
            files, is missing or corrupt.
    """
    job = _Job(base, tag, compression, storage, chunker, check_existing, workers, progress)
    mtime_of = mtime_rule(timestamps or _timestamps_of(base), clamp_ns)
    with SourceTree(Path(rootfs)) as tree:
        job.refuse_overlap(tree)
        found = scan(
            tree,
            FileStream(),
            mtime_of=mtime_of,
            cross_mounts=cross_mounts,
            progress=lambda inodes: job.report(Progress("scan", inodes, 0, 0)),
        )
        return job.commit(tree, layer_of_tree(tree, found, base))


def build_from_upper(
    upper: Path | str,
    base: Image,
    tag: str,
    *,
    compression: bool | None = None,
    storage: StorageOptions | None = None,
    chunker: ChunkerName = "fastcdc2020",
    timestamps: Timestamps | None = None,
    clamp_ns: int | None = None,
    check_existing: bool = False,
    userxattr: bool | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Build what an overlayfs on an image shows, from its upper directory, as a metadata layer on top of the image.

    The cost is that of what the upper directory holds, and one copy of the image's metadata. Sync the overlay before,
    if it is mounted.

    Args:
        upper: the upper directory.
        base: the image that is the lower directory.
        tag: the tag, moved if it is there.
        compression: whether to store new chunks as zstd; as the base's are, if not given.
        storage: for compressed ones: how small, and cut how.
        chunker: how the stream of new and changed files is cut.
        timestamps: whether modification times are stored; as in the base, if not given.
        clamp_ns: for ``clamp``: the latest time to store, in nanoseconds since the epoch.
        check_existing: hash blobs that the layout holds already before relying on them.
        userxattr: whether the overlay is mounted with ``userxattr``, so that ``trusted.overlay.*`` are attributes like
            others, or without, so that ``user.overlay.*`` are; neither are part of the image if that is not known.
        workers: as for ``build``.
        progress: as for ``build``.

    Raises:
        PuzzlefsError: as ``build_from_tree``; ``SourceError`` also for an upper directory that does not fit the image.
    """
    job = _Job(base, tag, compression, storage, chunker, check_existing, workers, progress)
    mtime_of = mtime_rule(timestamps or _timestamps_of(base), clamp_ns)
    with SourceTree(Path(upper)) as tree:
        job.refuse_overlap(tree)
        return job.commit(tree, layer_of_upper(tree, base, mtime_of, userxattr=userxattr))


class _Job:
    """What both have in common."""

    def __init__(
        self,
        base: Image,
        tag: str,
        compression: bool | None,
        storage: StorageOptions | None,
        chunker: ChunkerName,
        check_existing: bool,
        workers: int | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._started = time.monotonic()
        self._base = base
        self._tag = make_reference(base.reference.layout, tag).tag
        if compression is None:
            compression = is_compressed(base)
        self._storage = storage_of(base.version, compression=compression, options=storage or StorageOptions())
        self._cutter_of = make_chunker(chunker, self._storage.sizes)
        self._check_existing = check_existing
        self._workers = worker_count(workers)
        self.report = progress or (lambda _: None)

    def refuse_overlap(self, tree: SourceTree) -> None:
        """Refuse a tree that holds the layout."""
        layout = self._base.reference.layout
        refuse_overlap(tree, layout, "an OCI directory")
        refuse_overlap(tree, layout / "blobs" / "sha256", "an OCI directory")

    def commit(self, tree: SourceTree, layer: NewLayer) -> BuildReport:
        """Store the content of a layer, and the layer."""
        base, stream = self._base, layer.stream
        inodes, total = len(layer.inodes), stream.size
        with (
            Layout.open_or_create(base.reference.layout, base.layout.dialect) as layout,
            BlobWriter(layout, check_existing=self._check_existing) as writer,
        ):
            writer.rely_on(base.manifest_digest, is_rootfs=base.manifest is None)
            if not layer.inodes:
                image = self._point_to_base(layout, writer)
                return self._reported(image, layer, writer, chunks=0, new_chunks=0, bytes_read=0)
            with ChunkPipeline(
                stream,
                writer,
                version=base.version,
                storage=self._storage,
                workers=self._workers,
                processes=is_worth_processes(total),
                progress=lambda done: self.report(Progress("chunks", inodes, done, total)),
            ) as pipeline:
                cutter = StreamCutter(self._cutter_of, pipeline)
                reader = StreamReader(tree, layer.files, cutter, cut_at_files=self._storage.cut_at_files)
                reader.run()
                pipeline.finish()
            begin_commit(pipeline, inodes, stream, self.report)
            new_chunks = writer.new_blobs
            image = commit_on_top(
                layout,
                self._tag,
                base,
                inodes=layer.inodes,
                chunks=stream.chunks,
                verity=pipeline.verity,
                writer=writer,
            )
            chunks = len(pipeline.verity)
            return self._reported(
                image, layer, writer, chunks=chunks, new_chunks=new_chunks, bytes_read=reader.bytes_read
            )

    def _point_to_base(self, layout: Layout, writer: BlobWriter) -> CommittedImage:
        base = self._base
        size = layout.blob_size(base.manifest_digest)
        image = CommittedImage(base.version, base.verity_digest(), (base.manifest_digest, size or 0), ())
        if not commit_again(layout, self._tag, image, (), writer):
            raise InvalidArgumentError(
                f"the manifest of {base.reference} is not in {layout.path} any more", hint="build it again"
            )
        return image

    def _reported(
        self,
        image: CommittedImage,
        layer: NewLayer,
        writer: BlobWriter,
        *,
        chunks: int,
        new_chunks: int,
        bytes_read: int,
    ) -> BuildReport:
        return BuildReport(
            digest=image.verity,
            inodes=len(layer.inodes),
            content_size=layer.stream.size,
            bytes_read=bytes_read,
            chunks=chunks,
            new_chunks=new_chunks,
            stored_bytes=writer.stored_bytes,
            seconds=time.monotonic() - self._started,
            mount_points=tuple(layer.mount_points),
            has_pyc=layer.has_pyc,
        )


def is_compressed(image: Image) -> bool:
    """Whether an image has compressed chunks, as far as a quick look tells."""
    if image.manifest is not None:
        return any(
            isinstance(layer, dict) and layer.get("mediaType") == media_types.FILE_DATA_ZSTD
            for layer in image.manifest.layer_objects
        )
    regular = int(Kind.REGULAR)
    for table in reversed(image.rootfs.metadata_layers):
        for ino, _ in islice(((ino, kind) for ino, kind in table.kinds() if kind == regular), _ENOUGH):
            inode = table.find(ino)
            if (
                inode is not None
                and isinstance(inode.content, RegularFile)
                and any(chunk.blob.compressed for chunk in inode.content.chunks)
            ):
                return True
    return False


def _timestamps_of(base: Image) -> Timestamps:
    return "keep" if has_timestamps(base) else "none"
