"""Which chunks one image needs that another has not, and what their blobs and the metadata take."""

from __future__ import annotations

from collections.abc import Iterable

from puzzlefs.blobs.host import storage_errors
from puzzlefs.diff.report import Needed
from puzzlefs.digest import Digest
from puzzlefs.image import Image
from puzzlefs.wire import chunk_digests


def needed_by(new: Image, old: Image, files: Iterable[int] | None = None) -> Needed:
    """What ``new`` needs beyond what ``old`` has, hidden inodes of lower metadata layers included.

    Args:
        new: the image that needs it.
        old: the image that is there.
        files: the inodes of those of its files that count, and nothing but them; all, and the metadata, if not given.

    Raises:
        FormatError: if a file is malformed.
        StorageError: if the host cannot tell the size of a blob.
    """
    here = _chunks(old)
    metadata: set[Digest] = set()
    if files is None:
        wanted = _chunks(new)
        metadata = new.metadata_blobs() - old.metadata_blobs() - here
    else:
        wanted = set()
        for ino in files:
            wanted.update([part.blob.digest for part in new.tree.parts(ino)])
    wanted -= here
    with storage_errors("look for blobs in", new.layout.path):
        sizes = [new.layout.blob_size(digest) for digest in wanted]
        metadata_sizes = [new.layout.blob_size(digest) for digest in metadata - wanted]
    stored = [size for size in sizes if size is not None]
    return Needed(
        chunks=len(wanted),
        stored_bytes=sum(stored),
        missing_chunks=len(sizes) - len(stored),
        metadata_bytes=sum(size or 0 for size in metadata_sizes),
    )


def _chunks(image: Image) -> set[Digest]:
    return set().union(*map(chunk_digests, image.rootfs.metadata_layers))
