"""How compressed chunks are framed, told from the seek tables at their ends.

The content of a chunk is not read, nor is the table verified: what is told is what the files say. A table is bounded by
what a chunk of the largest size that is read can have. Of many chunks only some are looked at, evenly spread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from puzzlefs.blobs import Layout
from puzzlefs.blobs.host import storage_errors
from puzzlefs.compression.frames import Frame, SeekEntry, parse_seek_table
from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, NotFoundError

_SAMPLE: Final = 1024
_TAIL: Final = 4096
_FOOTER: Final = 9
_HEADER: Final = 8
_MAX_TABLE: Final = 1 << 20
_LONGEST_ENTRY: Final = 12
_SHORTEST_ENTRY: Final = 8


@dataclass(frozen=True, slots=True)
class FrameSummary:
    """How compressed chunks are framed.

    Attributes:
        examined_chunks: how many were looked at.
        seekable_chunks: those of them that have a seek table; the others are plain zstd.
        frames: frames of the seekable ones.
        smallest_bytes: content of the smallest frame; 0 if there is none.
        largest_bytes: content of the largest one.
        mean_bytes: content of one on average, rounded.
    """

    examined_chunks: int
    seekable_chunks: int
    frames: int
    smallest_bytes: int
    largest_bytes: int
    mean_bytes: int


def summarize_frames(layout: Layout, chunks: Sequence[Digest]) -> FrameSummary:
    """How these compressed chunks are framed; those that are missing or malformed are passed over.

    Raises:
        StorageError: if the host cannot read.
    """
    step = max(1, len(chunks) / _SAMPLE)
    chosen = [chunks[int(number * step)] for number in range(min(len(chunks), _SAMPLE))]
    examined = seekable = 0
    sizes: list[int] = []
    for digest in chosen:
        try:
            entries = _read_seek_table(layout, digest)
        except (FormatError, NotFoundError):
            continue
        examined += 1
        if entries is not None:
            seekable += 1
            sizes.extend(entry.decompressed_size for entry in entries)
    return FrameSummary(
        examined_chunks=examined,
        seekable_chunks=seekable,
        frames=len(sizes),
        smallest_bytes=min(sizes, default=0),
        largest_bytes=max(sizes, default=0),
        mean_bytes=round(sum(sizes) / len(sizes)) if sizes else 0,
    )


def _read_seek_table(layout: Layout, digest: Digest) -> list[SeekEntry] | None:
    """The seek table of a blob, ``None`` if it has none."""
    with storage_errors("read", layout.blob_path(digest)):
        fd = layout.open_blob(digest)
        try:
            size = os.fstat(fd).st_size
            tail = os.pread(fd, _TAIL, max(0, size - _TAIL))
            if len(tail) < _FOOTER + _HEADER:
                return None
            count = int.from_bytes(tail[-_FOOTER : -_FOOTER + 4], "little")
            entry_size = _LONGEST_ENTRY if tail[-5] & 0x80 else _SHORTEST_ENTRY
            length = _HEADER + count * entry_size + _FOOTER
            if length > min(size, _MAX_TABLE):
                return None
            if length > len(tail):
                tail = os.pread(fd, length, size - length)
            return parse_seek_table(tail, Frame(len(tail) - length, len(tail), 0))
        finally:
            os.close(fd)
