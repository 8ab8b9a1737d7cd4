"""Compressing and decompressing one chunk with zstd.

Level and frame parameters are part of an image's identity: another level gives other blobs under other names.
The frames of versions 1 and 2 are those that the original writes (streaming interface, level 3, no content
size, no checksum). Version 3 puts one frame and a seek table into a blob; the frame carries its content size,
so that a reader can decompress it in one pass.

Reading trusts nothing: output is bounded by the caller's limit, the content size and the window of a frame
are checked before the library may act on them, and a seek table must agree with the frames that it describes.
"""

from __future__ import annotations

import threading
from typing import Final

import zstandard

from puzzlefs.compression.frames import Frame, SeekEntry, frames_of, parse_seek_table, seek_table
from puzzlefs.errors import FormatError

LEVEL: Final = 3
"""The zstd level, unless another is asked for. A change gives every compressed chunk another name."""

LEVELS: Final = range(1, 23)
"""The zstd levels that there are."""

MAX_WINDOW_SIZE: Final = 8 << 20
"""Bytes of the largest window that a frame may ask for: what RFC 8878 (3.1.1.1.2) asks every decoder to
support."""

SEEKABLE_SINCE_VERSION: Final = 3
"""The first format version whose compressed chunks are seekable."""


class _Contexts(threading.local):
    """The zstd contexts of one thread, made when it first needs them."""

    def __init__(self) -> None:
        self._compressors: dict[tuple[int, bool], zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_SIZE)

    def compressor(self, level: int, *, sized: bool) -> zstandard.ZstdCompressor:
        """One that says in each frame how long the content is, if ``sized``."""
        found = self._compressors.get((level, sized))
        if found is None:
            found = zstandard.ZstdCompressor(level=level, write_content_size=sized, write_checksum=False)
            self._compressors[level, sized] = found
        return found


_contexts = _Contexts()


def compress_chunk(data: bytes | bytearray | memoryview, version: int, level: int = LEVEL) -> bytes:
    """What is stored for a chunk in a compressed image, if that is smaller than the chunk.

    Args:
        data: the chunk.
        version: the format version: 1 and 2 give one zstd frame, 3 a frame and a seek table.
        level: the zstd level, one of ``LEVELS``.
    """
    if version < SEEKABLE_SINCE_VERSION:
        # The streaming interface chooses other parameters than the one-shot one, and is what the original
        # uses.
        stream = _contexts.compressor(level, sized=False).compressobj()
        return stream.compress(data) + stream.flush()
    frame = compress_whole(data, level)
    return frame + seek_table([SeekEntry(len(frame), len(data))])


def compress_whole(data: bytes | bytearray | memoryview, level: int = LEVEL) -> bytes:
    """One zstd frame that says how long its content is, as metadata are stored in; ``decompress_chunk`` reads it.

    Args:
        data: what to compress.
        level: the zstd level, one of ``LEVELS``.
    """
    return _contexts.compressor(level, sized=True).compress(data)


def decompress_chunk(stored: bytes, *, limit: int) -> bytes:
    """The content of a compressed chunk: plain zstd frames, or the seekable format with frames of any size.

    Args:
        stored: the whole blob.
        limit: the most bytes that the content may have.

    Raises:
        FormatError: if ``stored`` is malformed, or its content is longer than ``limit``.
    """
    frames = frames_of(stored)
    entries = parse_seek_table(stored, frames[-1]) if frames[-1].skippable else None
    if entries is not None:
        del frames[-1]
        _check_sizes(entries, frames, limit)
    pieces: list[bytes] = []
    left = limit
    whole = memoryview(stored)
    for frame in frames:
        pieces.append(b"" if frame.skippable else _decompress_frame(whole[frame.start : frame.end], left, frame))
        left -= len(pieces[-1])
    sizes = [len(piece) for piece in pieces]
    if entries is not None and sizes != [entry.decompressed_size for entry in entries]:
        raise FormatError("the seek table of a compressed chunk does not fit its content")
    return b"".join(pieces)


def _check_sizes(entries: list[SeekEntry], frames: list[Frame], limit: int) -> None:
    if [entry.compressed_size for entry in entries] != [frame.end - frame.start for frame in frames]:
        raise FormatError("the seek table of a compressed chunk does not fit its frames")
    if sum(entry.decompressed_size for entry in entries) > limit:
        raise _too_long(limit)


def _decompress_frame(data: memoryview, limit: int, frame: Frame) -> bytes:
    try:
        parameters = zstandard.get_frame_parameters(data)
        sized = parameters.content_size != zstandard.CONTENTSIZE_UNKNOWN
        if sized and parameters.content_size > limit:
            raise _too_long(limit)
        # The library allocates what the header claims, or, where it claims nothing, the bound that we give. A
        # bound of 0 means none to it, so an exhausted limit becomes 1, and the length is checked afterwards.
        bound = max(min(limit, frame.max_content), 1)
        content = _contexts.decompressor.decompress(data, max_output_size=bound)
    except zstandard.ZstdError as error:
        raise FormatError(f"a compressed chunk is malformed: {error}") from error
    if len(content) > limit:
        raise _too_long(limit)
    return content


def _too_long(limit: int) -> FormatError:
    return FormatError(f"a compressed chunk holds more than the {limit} bytes that it may")
