"""The build itself: scan, stream, chunks, metadata, tag. Of a first build, the scan goes on while chunks are stored.

The tag is moved last, after everything that the image consists of is on disk; whatever goes wrong before
leaves the layout's older images as they were. The same tree gives the same bytes, from any path and with any
number of workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder.cache import BuildCache, clock_ns
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.finish import finish_image
from puzzlefs.builder.pipeline import ChunkPipeline
from puzzlefs.builder.processes import WORTH_PROCESSES, is_worth_processes
from puzzlefs.builder.report import BuildReport, Progress
from puzzlefs.builder.reuse import Reuse
from puzzlefs.builder.scan import ScannedTree, TreeScan
from puzzlefs.builder.source import SourceTree
from puzzlefs.builder.storage import StorageOptions, storage_of
from puzzlefs.builder.stream import StreamCutter, StreamReader
from puzzlefs.builder.workers import worker_count
from puzzlefs.chunking import ChunkerName
from puzzlefs.chunking import chunker as make_chunker
from puzzlefs.errors import InvalidArgumentError
from puzzlefs.image import DEFAULT_VERSION, dialect_of
from puzzlefs.image_commit import CommittedImage, commit_again
from puzzlefs.oci import ImageReference, parse_reference

Timestamps = Literal["none", "keep", "clamp"]
"""``none``: store no modification times, as the original does; ``keep``: store them; ``clamp``: none later
than a bound."""

VERSIONS: Final = (1, 2, 3)

_INT64: Final = 1 << 63


def build(
    rootfs: Path | str,
    reference: ImageReference | str,
    *,
    format_version: int = DEFAULT_VERSION,
    compression: bool = False,
    storage: StorageOptions | None = None,
    chunker: ChunkerName = "fastcdc2020",
    timestamps: Timestamps = "none",
    clamp_ns: int | None = None,
    cross_mounts: bool = False,
    check_existing: bool = False,
    cache: Path | str | None = None,
    verify_cache: bool = False,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Build an image from a directory and give it a tag.

    Args:
        rootfs: the directory that becomes the image's root.
        reference: ``OCI_DIR:TAG``: the layout, made if need be, and the tag, moved if it is there.
        format_version: 1, 2 or 3.
        compression: store chunks as zstd where that is smaller.
        storage: for compressed images: how small, and cut how. The defaults give the best images for every reader.
        chunker: how the file stream is cut: ``fastcdc2020`` or ``ronomon``.
        timestamps: whether modification times are stored: ``none``, ``keep`` or ``clamp``.
        clamp_ns: for ``clamp``: the latest time to store, in nanoseconds since the epoch.
        cross_mounts: look into what is mounted below ``rootfs``, too.
        check_existing: hash blobs that the layout holds already before relying on them.
        cache: a directory, made if need be, in which builds remember what they read, so that the next one from the
            same ``rootfs`` reads only what changed. The image is the same with and without.
        verify_cache: read everything, and compare it with what the cache says.
        workers: threads or processes that hash, compress and write; as many as there are CPUs, up to 8, if not given.
        progress: called now and then, in the caller's thread.

    Returns:
        What was built, with the image's digest.

    Raises:
        InvalidArgumentError: for arguments that make no sense, a layout or cache inside of ``rootfs``, a layout
            that holds images of the other kind of format version.
        NotFoundError: if ``rootfs`` does not exist.
        IntegrityError: with ``verify_cache``, if the cache is wrong.
        SourceError: if something in ``rootfs`` cannot be read or changes meanwhile.
        StorageError: if the layout cannot be written. None of the three leaves a tag or a part of a blob
            behind.
    """
    started = time.monotonic()
    if isinstance(reference, str):
        reference = parse_reference(reference)
    if format_version not in VERSIONS:
        raise InvalidArgumentError(f"there is no format version {format_version}", hint="there are 1, 2 and 3")
    count = worker_count(workers)
    mtime_of = mtime_rule(timestamps, clamp_ns)
    stored = storage_of(format_version, compression=compression, options=storage or StorageOptions())
    cutter_of = make_chunker(chunker, stored.sizes)
    report = progress or (lambda _: None)
    stream = FileStream()
    began_ns = clock_ns()
    with SourceTree(Path(rootfs)) as tree:
        refuse_overlap(tree, reference.layout, "an OCI directory")
        refuse_overlap(tree, reference.layout / "blobs" / "sha256", "an OCI directory")
        memory: BuildCache | None = None
        if cache is not None:
            refuse_overlap(tree, Path(cache), "a cache directory")
            memory = BuildCache(
                Path(cache),
                tree,
                chunker=chunker,
                format_version=format_version,
                storage=stored,
                cross_mounts=cross_mounts,
            )
        old = None if memory is None else memory.load()
        with (
            Layout.open_or_create(reference.layout, dialect_of(format_version)) as layout,
            BlobWriter(layout, check_existing=check_existing) as writer,
        ):
            walk = TreeScan(
                tree,
                stream,
                mtime_of=mtime_of,
                cross_mounts=cross_mounts,
                without_xattrs=frozenset() if old is None or verify_cache else old.without_xattrs(),
            )
            # Where nothing is known, storing begins when there is enough to store; the rest is looked at meanwhile.
            while (old is not None or stream.size < WORTH_PROCESSES) and walk.step():
                report(Progress("scan", walk.entries, 0, 0))

            def reported(
                found: ScannedTree, image: CommittedImage, chunks: int, new_chunks: int, bytes_read: int
            ) -> BuildReport:
                return BuildReport(
                    digest=image.verity,
                    inodes=len(found.inodes),
                    content_size=stream.size,
                    bytes_read=bytes_read,
                    chunks=chunks,
                    new_chunks=new_chunks,
                    stored_bytes=writer.stored_bytes,
                    seconds=time.monotonic() - started,
                    mount_points=tuple(found.mount_points),
                    has_pyc=found.has_pyc,
                )

            def stored_so_far(size: int) -> None:
                report(Progress("chunks", walk.entries, size, stream.size if walk.is_finished else 0))

            if memory is not None and old is not None and not verify_cache:
                found = walk.found()
                is_same = old.image.version == format_version and old.is_of(found)
                if is_same and commit_again(layout, reference.tag, old.image, old.blobs(), writer):
                    memory.keep()
                    return reported(found, old.image, len(old.lengths), 0, 0)
            reuse = None if old is None else Reuse(old, walk.files, writer, cut_at_files=stored.cut_at_files)
            with ChunkPipeline(
                stream,
                writer,
                version=format_version,
                storage=stored,
                workers=count,
                processes=reuse is None and is_worth_processes(stream.size),
                progress=stored_so_far,
                meanwhile=walk.step,
            ) as pipeline:
                cutter = StreamCutter(cutter_of, pipeline)
                reader = StreamReader(
                    tree,
                    walk.files,
                    cutter,
                    None if verify_cache else reuse,
                    cut_at_files=stored.cut_at_files,
                    look_further=walk.step,
                )
                reader.run()
                pipeline.finish()
                if verify_cache and reuse is not None and memory is not None:
                    reuse.check(stream, pipeline.verity, f"the build cache {memory.path}")
                found = walk.found()
                image, new_chunks = finish_image(
                    layout,
                    reference.tag,
                    found.inodes,
                    stream,
                    pipeline,
                    writer,
                    version=format_version,
                    storage=stored,
                    report=report,
                )
        if memory is not None:
            memory.save(found, stream, pipeline.verity, image, began_ns)
        return reported(found, image, len(pipeline.verity), new_chunks, reader.bytes_read)


def mtime_rule(timestamps: Timestamps, clamp_ns: int | None) -> Callable[[int], int | None]:
    """What to store for a modification time; both in nanoseconds since the epoch.

    Raises:
        InvalidArgumentError: for other words, and ``clamp`` without a time.
    """
    match timestamps:
        case "none":
            return lambda _: None
        case "keep":
            return _to_int64
        case "clamp" if clamp_ns is not None:
            latest = clamp_ns
            return lambda mtime_ns: _to_int64(min(mtime_ns, latest))
        case "clamp":
            raise InvalidArgumentError(
                "timestamps can be clamped only with a time to clamp to", hint="set SOURCE_DATE_EPOCH (seconds)"
            )
        case unknown:
            raise InvalidArgumentError(f"timestamps cannot be {unknown!r}", hint="say none, keep or clamp")


def _to_int64(mtime_ns: int) -> int:
    # The field ends in the year 2262; a file system may hold later times.
    return max(-_INT64, min(_INT64 - 1, mtime_ns))


def refuse_overlap(tree: SourceTree, place: Path, what: str) -> None:
    """Refuse a directory inside of the tree: it would grow while it is built, and hold itself the next time.

    Compared are devices and inode numbers of the directories above, so links and bind mounts do not hide it.
    """
    root = os.fstat(tree.fd)
    real = place.resolve()
    for directory in (real, *real.parents):
        try:
            status = directory.stat()
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (root.st_dev, root.st_ino):
            raise InvalidArgumentError(
                f"{place} lies inside of {tree.root}, the tree to build from",
                hint=f"name {what} outside of it",
            )
