"""Importing itself: members, tree, numbers, stream, chunks, metadata, tag.

The archives are read once, to the end; only then is it known which files there are, in which order the image has them,
and the chunks can be cut. The tag is moved last, as in a build.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder import VERSIONS, Progress, StorageOptions, Timestamps
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.finish import finish_image
from puzzlefs.builder.pipeline import ChunkPipeline
from puzzlefs.builder.processes import is_worth_processes
from puzzlefs.builder.run import mtime_rule
from puzzlefs.builder.storage import storage_of
from puzzlefs.builder.stream import StreamCutter
from puzzlefs.builder.workers import worker_count
from puzzlefs.canonicalize.renumber import CanonicalTree, renumber
from puzzlefs.chunking import ChunkerName
from puzzlefs.chunking import chunker as make_chunker
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import FormatError, InvalidArgumentError, NotFoundError, SourceError, UnsafePathError
from puzzlefs.image import DEFAULT_VERSION, dialect_of
from puzzlefs.oci import ImageReference, parse_reference
from puzzlefs.tar.archive import Extent, MemberReader
from puzzlefs.tar.feed import feed
from puzzlefs.tar.spool import Archive
from puzzlefs.tar.tree import UnpackedTree, WhiteoutRule
from puzzlefs.vfs import Tree

Source = BinaryIO | str | os.PathLike[str]
"""An archive: an open file, or a path."""

_MAX_HOLES: Final = 1 << 40
"""Bytes of holes of all files together. A hole costs an archive nothing, but an image 24 bytes for each 256 KiB."""

_REPORT_EVERY: Final = 256


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was imported.

    Attributes:
        digest: the image's digest: the fs-verity digest of its manifest, which ``--digest`` takes.
        members: members that were read.
        inodes: inodes in the image; several names of one count once.
        content_size: bytes of all regular files together, holes included.
        chunks: distinct chunks that the image consists of.
        new_chunks: those of them that the layout did not hold before.
        stored_bytes: bytes of every blob that the layout did not hold before, metadata included.
        seconds: how long it took.
        ignored: what was left out, or is odd about the archive, and how often.
    """

    digest: VerityDigest
    members: int
    inodes: int
    content_size: int
    chunks: int
    new_chunks: int
    stored_bytes: int
    seconds: float
    ignored: Mapping[str, int]


def import_tar(
    archives: Source | Sequence[Source],
    reference: ImageReference | str,
    *,
    whiteouts: WhiteoutRule = "refuse",
    format_version: int = DEFAULT_VERSION,
    compression: bool = False,
    storage: StorageOptions | None = None,
    chunker: ChunkerName = "fastcdc2020",
    timestamps: Timestamps = "none",
    clamp_ns: int | None = None,
    check_existing: bool = False,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ImportReport:
    """Make an image of what is in a tar archive, or in several, as if each were unpacked over those before it.

    The image is the one that ``build`` makes of the unpacked tree, with the same digest: owners by their numbers, as
    ``tar --numeric-owner`` unpacks them. Archives may be compressed with gzip, bzip2, xz or zstd. Nothing is unpacked;
    what does not come from an ordinary, uncompressed file is kept in a temporary file without a name beside the image.

    Args:
        archives: files that are open, from where they stand on, or paths; the lowest first.
        reference: ``OCI_DIR:TAG``: the layout, made if need be, and the tag, moved if it is there.
        whiteouts: what names that begin with ``.wh.`` are: ``refuse`` them, ``apply`` them to the archives before, or
            ``keep`` them as files.
        format_version: as for ``build``; so are the following.
        compression: store chunks as zstd where that is smaller.
        storage: for compressed images: how small, and cut how.
        chunker: how the file stream is cut.
        timestamps: whether modification times are stored: ``none``, ``keep`` or ``clamp``.
        clamp_ns: for ``clamp``: the latest time to store, in nanoseconds since the epoch.
        check_existing: hash blobs that the layout holds already before relying on them.
        workers: threads or processes that hash, compress and write.
        progress: called now and then, in the caller's thread; while archives are read, the bytes are theirs.

    Returns:
        What was imported, with the image's digest.

    Raises:
        InvalidArgumentError: for arguments that make no sense.
        NotFoundError: if an archive is not there.
        FormatError: if an archive is malformed, ends early, or has what an image cannot hold.
        UnsafePathError: if it would be unpacked outside of its directory.
        SourceError: if an archive cannot be read, or changes meanwhile.
        StorageError: if the layout cannot be written. In all of these cases no tag has moved.
    """
    started = time.monotonic()
    if isinstance(reference, str):
        reference = parse_reference(reference)
    if format_version not in VERSIONS:
        raise InvalidArgumentError(f"there is no format version {format_version}", hint="there are 1, 2 and 3")
    workers = worker_count(workers)
    mtime_of = mtime_rule(timestamps, clamp_ns)
    stored = storage_of(format_version, compression=compression, options=storage or StorageOptions())
    cutter_of = make_chunker(chunker, stored.sizes)
    report = progress or (lambda _: None)
    stream = FileStream()
    with contextlib.ExitStack() as stack:
        layout = stack.enter_context(Layout.open_or_create(reference.layout, dialect_of(format_version)))
        opened: list[Archive] = []
        unpacked = UnpackedTree(whiteouts)
        members = 0
        ignored: Counter[str] = Counter()
        for source in _sources(archives):
            archive = stack.enter_context(_open(source, reference.layout, stack))
            opened.append(archive)
            members = _read(archive, unpacked, members, ignored, report)
        found = _numbered(unpacked, mtime_of, stream)
        _check_holes(found, unpacked, stream)

        def content_of(ino: int) -> tuple[Archive, Sequence[Extent]]:
            number, extents = unpacked.content(ino)
            return opened[number], extents

        inodes, total = len(found.inodes), stream.size
        writer = stack.enter_context(BlobWriter(layout, check_existing=check_existing))
        with ChunkPipeline(
            stream,
            writer,
            version=format_version,
            storage=stored,
            workers=workers,
            processes=is_worth_processes(total),
            progress=lambda done: report(Progress("chunks", inodes, done, total)),
        ) as pipeline:
            cutter = StreamCutter(cutter_of, pipeline)
            feed(found.files, content_of, cutter, cut_at_files=stored.cut_at_files)
            pipeline.finish()
        for archive in opened:
            archive.check_unchanged()
            archive.close()  # or what it keeps would be put on disk with the image
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
        return ImportReport(
            digest=image.verity,
            members=members,
            inodes=inodes,
            content_size=total,
            chunks=len(pipeline.verity),
            new_chunks=new_chunks,
            stored_bytes=writer.stored_bytes,
            seconds=time.monotonic() - started,
            ignored=dict(ignored + unpacked.ignored),
        )


def _sources(archives: Source | Sequence[Source]) -> Sequence[Source]:
    if isinstance(archives, str | os.PathLike) or not isinstance(archives, Sequence):
        return [archives]
    if not archives:
        raise InvalidArgumentError("there is no archive to import", hint="name one at least")
    return archives


def _open(source: Source, directory: Path, stack: contextlib.ExitStack) -> Archive:
    """An archive by its path, or from an open file."""
    if not isinstance(source, str | os.PathLike):
        return Archive(source, str(getattr(source, "name", "the archive")), directory)
    path = Path(source)
    try:
        file = stack.enter_context(path.open("rb", buffering=0))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist", hint="name the archive to import") from error
    except OSError as error:
        raise SourceError(f"cannot open {path}: {error.strerror}") from error
    return Archive(file, str(path), directory)


def _read(
    archive: Archive,
    unpacked: UnpackedTree,
    members: int,
    ignored: Counter[str],
    report: Callable[[Progress], None],
) -> int:
    """Unpack one archive; how many members there have been by now."""
    unpacked.next_archive()
    reader = MemberReader(archive)
    for member in reader:
        try:
            unpacked.add(member)
        except (FormatError, UnsafePathError) as error:
            error.message = f"{archive.name}: {error.message}"
            raise
        members += 1
        if not members % _REPORT_EVERY:
            report(Progress("scan", members, archive.position, archive.total))
    ignored.update(reader.ignored)
    return members


def _numbered(unpacked: UnpackedTree, mtime_of: Callable[[int], int | None], stream: FileStream) -> CanonicalTree:
    """The tree in the order of a build."""
    try:
        return renumber(Tree([unpacked.layer(mtime_of)]), stream)
    except FormatError as error:
        error.hint = error.hint or "the archive has what an image cannot hold"
        raise


def _check_holes(found: CanonicalTree, unpacked: UnpackedTree, stream: FileStream) -> None:
    """Refuse what an archive of a few bytes could say and no image can hold."""
    data = sum(extent.length for file in found.files for extent in unpacked.content(file.ino)[1])
    if stream.size - data > _MAX_HOLES:
        raise FormatError(
            f"the files of the archive have {stream.size - data} bytes of holes",
            hint=f"an image has room for {_MAX_HOLES}",
        )
