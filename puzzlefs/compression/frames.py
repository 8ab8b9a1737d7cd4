"""The layout of zstd data (RFC 8878): where one frame ends and the next begins, and the seek table. No
decompression.

The zstd library finds the end of a frame only by decompressing it. Walking the block headers instead costs
one step for each block of up to 128 KiB, allocates nothing, and lets every frame be decompressed in a single
call with an exact bound on its output.

``zstd_seekable_compression_format.md`` of the zstd project describes the seek table: a skippable frame at the
very end

    magic 0x184D2A5E | frame size | entries | number of frames (4) | descriptor (1) | magic 0x8F92EAB1

with an entry of 8 bytes (compressed size, decompressed size) for each frame before it, 12 where the
descriptor's checksum flag is set. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from puzzlefs.errors import FormatError

MAGIC: Final = 0xFD2FB528
SKIPPABLE_MAGIC: Final = 0x184D2A50
"""The first of sixteen magic numbers of skippable frames."""

SEEK_TABLE_MAGIC: Final = 0x184D2A5E
SEEKABLE_MAGIC: Final = 0x8F92EAB1

MAX_PARTS: Final = 1 << 15
"""Frames and blocks of one chunk that are read. 64 MiB in frames of 4 KiB, as the original makes them, are half as
many. The smallest ones are of a few bytes: without a bound, a blob of 8 MiB costs half a minute and 400 MiB."""

_MAX_BLOCK_CONTENT: Final = 128 << 10
_WORD = struct.Struct("<I")
_SKIPPABLE_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_ENTRY = struct.Struct("<II")
_CHECKSUM_FLAG = 0x80
_RESERVED_BITS = 0x7C

_RLE_BLOCK = 1
_RESERVED_BLOCK = 3
_CONTENT_SIZE_FIELD = (0, 2, 4, 8)
_DICTIONARY_FIELD = (0, 1, 2, 4)


class Frame(NamedTuple):
    """One frame of zstd data.

    Attributes:
        start: where it begins.
        end: where the next one begins.
        blocks: how many blocks it has; 0 if it is to be skipped.
    """

    start: int
    end: int
    blocks: int

    @property
    def skippable(self) -> bool:
        """Whether it holds something else than content."""
        return not self.blocks

    @property
    def max_content(self) -> int:
        """The most bytes that it can hold (RFC 8878, 3.1.1.2.4, "Block_Maximum_Size")."""
        return self.blocks * _MAX_BLOCK_CONTENT


class SeekEntry(NamedTuple):
    """What a seek table says of one frame, in bytes."""

    compressed_size: int
    decompressed_size: int


def frames_of(data: bytes) -> list[Frame]:
    """The frames that ``data`` consists of, without a byte between or behind them.

    Raises:
        FormatError: if ``data`` is empty, truncated, not a sequence of frames, or absurdly many.
    """
    frames: list[Frame] = []
    position = 0
    left = MAX_PARTS
    while position < len(data) or not frames:
        frame = _frame_at(data, position, left)
        frames.append(frame)
        position = frame.end
        left -= frame.blocks or 1
        if left < 0:
            raise _too_many()
    return frames


def seek_table(frames: list[SeekEntry]) -> bytes:
    """The seek table that follows these frames, without checksums."""
    body = b"".join(_ENTRY.pack(frame.compressed_size, frame.decompressed_size) for frame in frames)
    body += _FOOTER.pack(len(frames), 0, SEEKABLE_MAGIC)
    return _SKIPPABLE_HEADER.pack(SEEK_TABLE_MAGIC, len(body)) + body


def parse_seek_table(data: bytes, frame: Frame) -> list[SeekEntry] | None:
    """What the seek table in the skippable frame ``frame`` says; ``None`` where that frame holds no seek
    table.

    Raises:
        FormatError: if it is one, but its numbers do not fit its size.
    """
    magic, size = _SKIPPABLE_HEADER.unpack_from(data, frame.start)
    if magic != SEEK_TABLE_MAGIC or size < _FOOTER.size:
        return None
    count, descriptor, seekable_magic = _FOOTER.unpack_from(data, frame.end - _FOOTER.size)
    if seekable_magic != SEEKABLE_MAGIC:
        return None
    if descriptor & _RESERVED_BITS:
        raise FormatError("the seek table of a compressed chunk uses reserved bits")
    entry_size = 12 if descriptor & _CHECKSUM_FLAG else 8
    if count > MAX_PARTS:
        raise _too_many()
    if count * entry_size + _FOOTER.size != size:
        raise FormatError(f"the seek table of a compressed chunk has {size} bytes, which {count} frames do not fill")
    first = frame.start + _SKIPPABLE_HEADER.size
    return [SeekEntry(*_ENTRY.unpack_from(data, first + index * entry_size)) for index in range(count)]


def _frame_at(data: bytes, start: int, max_blocks: int) -> Frame:
    if start + 8 > len(data):
        raise _truncated()
    magic, size = _SKIPPABLE_HEADER.unpack_from(data, start)
    if magic & ~0xF == SKIPPABLE_MAGIC:
        end = start + _SKIPPABLE_HEADER.size + size
        if end > len(data):
            raise _truncated()
        return Frame(start, end, 0)
    if magic != MAGIC:
        raise FormatError("a compressed chunk holds something that is not a zstd frame")
    return Frame(start, *_blocks(data, start, max_blocks))


def _blocks(data: bytes, start: int, max_blocks: int) -> tuple[int, int]:
    """Where a frame ends, and how many blocks it has."""
    # RFC 8878, 3.1.1: frame header, blocks with a header of 3 bytes each, checksum of 4 bytes where the
    # header says so.
    descriptor = data[start + 4]
    single_segment = bool(descriptor & 0x20)
    content_size_field = _CONTENT_SIZE_FIELD[descriptor >> 6] or int(single_segment)
    position = start + 5 + (not single_segment) + _DICTIONARY_FIELD[descriptor & 3] + content_size_field
    last = False
    count = 0
    while not last:
        count += 1
        if count > max_blocks:
            raise _too_many()
        if position + 3 > len(data):
            raise _truncated()
        header = int.from_bytes(data[position : position + 3], "little")
        last, kind = bool(header & 1), header >> 1 & 3
        if kind == _RESERVED_BLOCK:
            raise FormatError("a compressed chunk holds a zstd block of the reserved type")
        position += 3 + (1 if kind == _RLE_BLOCK else header >> 3)
    position += 4 if descriptor & 0x04 else 0
    if position > len(data):
        raise _truncated()
    return position, count


def _too_many() -> FormatError:
    return FormatError(f"a compressed chunk has more than {MAX_PARTS} frames and blocks")


def _truncated() -> FormatError:
    return FormatError("a compressed chunk ends in the middle of a zstd frame")
