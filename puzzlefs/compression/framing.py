"""The framing of a compressed chunk, as one format version has it and as another.

Versions 1 and 2 store a zstd frame; version 3 stores frames and a seek table behind them. So a chunk goes from one to
the other by adding the table or cutting it off: the compressed data stay what they are, and back again give the same
bytes. Only where there are several frames (version 3 of the original has one for every 4 KiB) the older versions need
new ones.
"""

from __future__ import annotations

from puzzlefs.compression.frames import SeekEntry, frames_of, parse_seek_table, seek_table
from puzzlefs.compression.zstd import SEEKABLE_SINCE_VERSION, compress_chunk, decompress_chunk


def has_same_framing(version: int, other: int) -> bool:
    """Whether two format versions store compressed chunks alike."""
    return (version < SEEKABLE_SINCE_VERSION) == (other < SEEKABLE_SINCE_VERSION)


def reframed(stored: bytes, version: int, *, limit: int) -> bytes:
    """A compressed chunk as a format version stores it.

    Args:
        stored: the chunk as any version stores it.
        version: the format version.
        limit: the most bytes that the content may have.

    Raises:
        FormatError: if ``stored`` is malformed, or its content is longer than ``limit``.
    """
    content = decompress_chunk(stored, limit=limit)
    frames = frames_of(stored)
    has_table = frames[-1].skippable and parse_seek_table(stored, frames[-1]) is not None
    if version < SEEKABLE_SINCE_VERSION:
        if has_table:
            del frames[-1]
        if len(frames) == 1:
            return stored[: frames[0].end]
        return compress_chunk(content, version)
    if has_table:
        return stored
    if len(frames) == 1:
        return stored + seek_table([SeekEntry(len(stored), len(content))])
    left = limit
    entries: list[SeekEntry] = []
    for frame in frames:
        size = 0 if frame.skippable else len(decompress_chunk(stored[frame.start : frame.end], limit=left))
        entries.append(SeekEntry(frame.end - frame.start, size))
        left -= size
    return stored + seek_table(entries)
