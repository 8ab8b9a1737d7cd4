"""Target: compressed chunks: frames, seek tables, what they unfold to, and the other framing of them."""

from __future__ import annotations

import random
import struct

import zstandard

from fuzz.asking import answer, attempt
from fuzz.mutation import any_bytes
from fuzz.target import Target
from puzzlefs.blobs.verified import MAX_CHUNK_CONTENT
from puzzlefs.compression import compress_chunk, compress_whole, decompress_chunk
from puzzlefs.compression.frames import SeekEntry, frames_of, parse_seek_table, seek_table
from puzzlefs.compression.framing import reframed
from puzzlefs.errors import FormatError


def chunks(data: bytes) -> None:
    """A blob that an image says is a compressed chunk."""
    frames = attempt(frames_of, data)
    if frames is not None:
        assert [frame.start for frame in frames] == [0, *(frame.end for frame in frames[:-1])]
        assert frames[-1].end == len(data)
        for frame in frames:
            if frame.skippable:
                attempt(parse_seek_table, data, frame)
    short = answer(lambda: decompress_chunk(data, limit=10))
    assert isinstance(short, str) or len(short) <= 10
    content = decompress_chunk(data, limit=MAX_CHUNK_CONTENT)
    assert len(content) <= MAX_CHUNK_CONTENT
    assert isinstance(short, str) or short == content
    if len(content) > 1 << 20:
        return  # what converts images takes no larger ones
    for version in (2, 3):
        other = attempt(lambda version=version: reframed(data, version, limit=1 << 20))
        if other is not None:
            assert decompress_chunk(other, limit=1 << 20) == content
            assert reframed(other, version, limit=1 << 20) == other


def _seeds() -> list[bytes]:
    text = b"some text that repeats, some text that repeats; " * 30
    found = [compress_chunk(text, 1), compress_chunk(text, 3), compress_whole(b""), compress_chunk(bytes(5000), 3)]
    pieces = [compress_whole(text[at : at + 100]) for at in range(0, 500, 100)]
    table = [SeekEntry(len(piece), 100) for piece in pieces]
    found.append(b"".join(pieces) + seek_table(table))
    found.append(b"".join(pieces[:2]))
    sums = b"".join(struct.pack("<III", len(piece), 100, 7) for piece in pieces) + struct.pack(
        "<IBI", 5, 0x80, 0x8F92EAB1
    )
    found.append(b"".join(pieces) + struct.pack("<II", 0x184D2A5E, len(sums)) + sums)
    found.append(struct.pack("<II", 0x184D2A50, 3) + b"abc" + pieces[0])
    found.append(zstandard.ZstdCompressor(write_checksum=True).compress(random.Random(3).randbytes(600)))
    found.append(zstandard.ZstdCompressor(level=19).compress(bytes(1 << 20)))
    found.append(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(300_000)))
    return found


def _mutate(data: bytes, rnd: random.Random) -> bytes:
    """Bytes; or whole frames moved, a seek table changed, or made anew for whatever frames there are."""
    frames = attempt(frames_of, data)
    if frames is None or rnd.random() < 0.6:
        return any_bytes(data, rnd)
    parts = [data[frame.start : frame.end] for frame in frames]
    at = rnd.randrange(len(parts))
    match rnd.randrange(5):
        case 0:
            parts.insert(at, rnd.choice(parts))
        case 1:
            parts.pop(at)
        case 2:
            parts *= rnd.choice((2, 3, 50))
        case 3:
            parts = [part for part, frame in zip(parts, frames, strict=True) if not frame.skippable]
            entries = []
            for part in parts:
                try:
                    entries.append(
                        SeekEntry(len(part), len(decompress_chunk(part, limit=1 << 20)) + rnd.choice((0, 0, 1)))
                    )
                except FormatError:
                    entries.append(SeekEntry(len(part), rnd.randrange(1000)))
            parts.append(seek_table(entries))
        case _:
            parts[at] = any_bytes(parts[at], rnd)
    return b"".join(parts)


TARGETS = (Target("chunks", chunks, _seeds, _mutate, max_size=1 << 16),)
