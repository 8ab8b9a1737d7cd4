"""What follows when the content of an image is stored: its metadata are written while the chunks go to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.pipeline import ChunkPipeline
from puzzlefs.builder.report import Progress
from puzzlefs.builder.storage import Storage
from puzzlefs.image_commit import CommittedImage, commit_image
from puzzlefs.model import Inode


def finish_image(
    layout: Layout,
    tag: str,
    inodes: Sequence[Inode],
    stream: FileStream,
    pipeline: ChunkPipeline,
    writer: BlobWriter,
    *,
    version: int,
    storage: Storage,
    report: Callable[[Progress], None],
) -> tuple[CommittedImage, int]:
    """Commit an image of one metadata layer.

    Args:
        layout: where to.
        tag: the tag, which moves if it is there.
        inodes: all of them, sorted by number.
        stream: the content of their files.
        pipeline: what stored it; it is finished. While it is entered as a context, its workers help.
        writer: it is committed.
        version: the format version.
        storage: how the metadata are stored.
        report: told that this stage begins.

    Returns:
        What was committed, and how many of its chunks the layout did not hold before.

    Raises:
        StorageError: if the host fails. The tag is then what it was.
        FormatError: if something does not fit the format.
    """
    begin_commit(pipeline, len(inodes), stream, report)
    new_chunks = writer.new_blobs
    image = commit_image(
        layout,
        tag,
        version=version,
        layers=[inodes],
        chunks=stream.chunks,
        verity=pipeline.verity,
        writer=writer,
        compact=storage.compact_metadata,
        compress_metadata=storage.compress_metadata,
    )
    return image, new_chunks


def begin_commit(pipeline: ChunkPipeline, inodes: int, stream: FileStream, report: Callable[[Progress], None]) -> None:
    """Let the chunks go to disk while the metadata of so many ``inodes`` are encoded, and report that stage."""
    pipeline.begin_commit()
    report(Progress("commit", inodes, stream.size, stream.size))
