"""Compressed chunks: what we write, everything valid that others write, and everything invalid as
FormatError."""

import contextlib
import random
import struct
import threading
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlefs.compression import compress_chunk, decompress_chunk
from puzzlefs.compression.frames import MAX_PARTS, SKIPPABLE_MAGIC, SeekEntry, frames_of, parse_seek_table, seek_table
from puzzlefs.errors import FormatError

pytestmark = pytest.mark.unit

TEXT = b"".join(b"line %06d\n" % number for number in range(20_000))
LIMIT = 256 << 10
VERSIONS = [1, 2, 3]


def frame(data: bytes, **parameters: bool) -> bytes:
    return zstandard.ZstdCompressor(level=3, **parameters).compress(data)


def seekable(pieces: list[bytes]) -> bytes:
    frames = [frame(piece) for piece in pieces]
    entries = [SeekEntry(len(stored), len(piece)) for stored, piece in zip(frames, pieces, strict=True)]
    return b"".join(frames) + seek_table(entries)


class TestWhatWeWrite:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("data", [b"", b"x", TEXT[:LIMIT], bytes(LIMIT), random.Random(1).randbytes(LIMIT)])
    def test_comes_back(self, version: int, data: bytes) -> None:
        assert decompress_chunk(compress_chunk(data, version), limit=LIMIT) == data

    @pytest.mark.parametrize("version", [1, 2])
    def test_versions_1_and_2_are_one_frame_without_size_and_checksum(self, version: int) -> None:
        stored = compress_chunk(TEXT, version)
        assert [(found.skippable, found.end) for found in frames_of(stored)] == [(False, len(stored))]
        parameters = zstandard.get_frame_parameters(stored)
        assert parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN
        assert not parameters.has_checksum

    def test_version_3_is_one_frame_and_its_seek_table(self) -> None:
        stored = compress_chunk(TEXT, 3)
        content, table = frames_of(stored)
        assert parse_seek_table(stored, table) == [SeekEntry(content.end, len(TEXT))]
        assert stored[content.end :] == struct.pack(
            "<IIIIIBI", 0x184D2A5E, 17, content.end, len(TEXT), 1, 0, 0x8F92EAB1
        )
        assert not zstandard.get_frame_parameters(stored).has_checksum

    @pytest.mark.parametrize("version", VERSIONS)
    def test_is_the_same_in_every_thread(self, version: int) -> None:
        expected = compress_chunk(TEXT, version)
        results: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: results.extend(compress_chunk(TEXT, version) for _ in range(20)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [expected] * 80

    @pytest.mark.parametrize("version", VERSIONS)
    def test_any_buffer_will_do(self, version: int) -> None:
        expected = compress_chunk(TEXT, version)
        assert compress_chunk(memoryview(bytearray(b"-" + TEXT))[1:], version) == expected


class TestWhatOthersWrite:
    def test_small_seekable_frames(self) -> None:
        pieces = [TEXT[start : start + 4096] for start in range(0, 100_000, 4096)]
        assert decompress_chunk(seekable(pieces), limit=LIMIT) == b"".join(pieces)

    def test_a_seek_table_with_checksums(self) -> None:
        content = frame(TEXT)
        body = struct.pack("<III", len(content), len(TEXT), 0x12345678) + struct.pack("<IBI", 1, 0x80, 0x8F92EAB1)
        stored = content + struct.pack("<II", 0x184D2A5E, len(body)) + body
        assert decompress_chunk(stored, limit=LIMIT) == TEXT

    def test_several_plain_frames(self) -> None:
        assert decompress_chunk(frame(b"one") + frame(b"two", write_content_size=False), limit=6) == b"onetwo"

    def test_skippable_frames_that_are_not_a_seek_table(self) -> None:
        skipped = struct.pack("<II", 0x184D2A5E, 3) + b"abc" + struct.pack("<II", 0x184D2A50, 0)
        assert decompress_chunk(skipped + frame(b"data") + skipped, limit=4) == b"data"

    @pytest.mark.parametrize("level", [-5, 1, 9, 19])
    def test_any_level_and_checksums(self, level: int) -> None:
        stored = zstandard.ZstdCompressor(level=level, write_checksum=True).compress(TEXT)
        assert decompress_chunk(stored, limit=LIMIT) == TEXT

    def test_an_empty_seekable_blob(self) -> None:
        assert decompress_chunk(seek_table([]), limit=0) == b""


class TestWhatIsRefused:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_every_truncation(self, version: int) -> None:
        stored = compress_chunk(TEXT[:3000], version)
        whole_frame = frames_of(stored)[0].end  # a seekable blob without its table is a plain one
        for length in set(range(len(stored))) - {whole_frame}:
            with pytest.raises(FormatError):
                decompress_chunk(stored[:length], limit=LIMIT)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_bytes_behind_the_end(self, version: int) -> None:
        with pytest.raises(FormatError):
            decompress_chunk(compress_chunk(TEXT, version) + b"\0", limit=LIMIT)

    def test_a_seek_table_that_does_not_fit(self) -> None:
        first, second = frame(TEXT[:5000]), frame(TEXT[5000:9000])
        right = [SeekEntry(len(first), 5000), SeekEntry(len(second), 4000)]
        assert decompress_chunk(first + second + seek_table(right), limit=9000) == TEXT[:9000]
        wrong = [
            right[:1],
            [*right, SeekEntry(0, 0)],
            right[::-1],
            [SeekEntry(len(first), 4999), SeekEntry(len(second), 4001)],
            [SeekEntry(len(first) - 1, 5000), SeekEntry(len(second) + 1, 4000)],
        ]
        for entries in wrong:
            with pytest.raises(FormatError, match="seek table"):
                decompress_chunk(first + second + seek_table(entries), limit=LIMIT)

    @pytest.mark.parametrize(
        ("count", "descriptor"), [(0, 0), (2, 0), (0xFFFFFFFF, 0), (1, 0x80), (1, 0x04), (1, 0x40)]
    )
    def test_a_seek_table_that_contradicts_itself(self, count: int, descriptor: int) -> None:
        content = frame(b"content")
        body = struct.pack("<II", len(content), 7) + struct.pack("<IBI", count, descriptor, 0x8F92EAB1)
        with pytest.raises(FormatError):
            decompress_chunk(content + struct.pack("<II", 0x184D2A5E, len(body)) + body, limit=LIMIT)

    @pytest.mark.parametrize("make", [frame, lambda data: frame(data, write_content_size=False)])
    def test_more_content_than_the_limit(self, make: Callable[[bytes], bytes]) -> None:
        assert decompress_chunk(make(b"x" * 1000), limit=1000) == b"x" * 1000
        for limit in (0, 1, 999):
            with pytest.raises(FormatError):
                decompress_chunk(make(b"x" * 1000), limit=limit)

    def test_many_frames_together_above_the_limit(self) -> None:
        with pytest.raises(FormatError):
            decompress_chunk(frame(bytes(1000)) * 3, limit=2999)
        with pytest.raises(FormatError):
            decompress_chunk(seekable([bytes(1000)] * 3), limit=2999)

    def test_more_frames_and_blocks_than_a_chunk_can_need(self) -> None:
        """The smallest take 8 and 3 bytes; what is made of each takes a hundred."""
        skipped = struct.pack("<II", SKIPPABLE_MAGIC, 0)
        begin = zstandard.ZstdCompressor(write_content_size=False).compress(b"")[:6]
        empty, last = b"\0\0\0", b"\1\0\0"
        assert decompress_chunk(skipped * MAX_PARTS, limit=LIMIT) == b""
        assert decompress_chunk(begin + empty * (MAX_PARTS - 1) + last, limit=LIMIT) == b""
        assert decompress_chunk(skipped + begin + empty * (MAX_PARTS - 2) + last, limit=LIMIT) == b""
        for stored in (
            skipped * (MAX_PARTS + 1),
            begin + empty * MAX_PARTS + last,
            skipped + begin + empty * (MAX_PARTS - 1) + last,
            (begin + last) * (MAX_PARTS + 1),
            begin + last + seek_table([SeekEntry(0, 0)] * (MAX_PARTS + 1)),
        ):
            with pytest.raises(FormatError, match=f"more than {MAX_PARTS} frames and blocks"):
                decompress_chunk(stored, limit=LIMIT)

    def test_frames_without_sizes_get_no_more_room_than_their_blocks_have(self) -> None:
        """A frame of one byte must not have the limit for all of them allocated, again and again."""
        pieces = [zstandard.ZstdCompressor(write_content_size=False).compress(bytes([n])) for n in range(256)]
        assert decompress_chunk(b"".join(pieces) * 100, limit=1 << 30) == bytes(range(256)) * 100

    def test_a_content_size_that_no_memory_could_hold(self) -> None:
        # Frame header: 8-byte content size, single segment; then one last raw block of one byte.
        stored = struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 60) + b"\x09\0\0x"
        with pytest.raises(FormatError, match="more than"):
            decompress_chunk(stored, limit=LIMIT)

    def test_a_content_size_that_is_not_true(self) -> None:
        stored = struct.pack("<IBB", 0xFD2FB528, 0x20, 200) + b"\x09\0\0x"
        with pytest.raises(FormatError):
            decompress_chunk(stored, limit=LIMIT)

    def test_a_window_of_two_gigabytes(self) -> None:
        stored = struct.pack("<IBB", 0xFD2FB528, 0x00, 0xA8) + b"\x09\0\0x"
        with pytest.raises(FormatError):
            decompress_chunk(stored, limit=LIMIT)

    @pytest.mark.parametrize("data", [b"", b"\x28\xb5\x2f\xfd", b"plain text, not zstd at all", bytes(64)])
    def test_what_is_not_zstd(self, data: bytes) -> None:
        with pytest.raises(FormatError):
            decompress_chunk(data, limit=LIMIT)

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(VERSIONS), st.integers(0, 10_000), st.integers(1, 255))
    def test_a_flipped_byte_is_an_error_or_bounded_data(self, version: int, position: int, change: int) -> None:
        stored = bytearray(compress_chunk(TEXT[:5000], version))
        stored[position % len(stored)] ^= change
        with contextlib.suppress(FormatError):
            assert len(decompress_chunk(bytes(stored), limit=6000)) <= 6000

    @settings(max_examples=300, deadline=None)
    @given(st.binary(max_size=200))
    def test_noise_is_an_error_or_bounded_data(self, noise: bytes) -> None:
        for stored in (noise, b"\x28\xb5\x2f\xfd" + noise, b"\x5e\x2a\x4d\x18" + noise):
            with contextlib.suppress(FormatError):
                assert len(decompress_chunk(stored, limit=1000)) <= 1000
