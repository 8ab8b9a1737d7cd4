"""Every compressed chunk of the images of the original implementation, in the three formats that it wrote."""

import hashlib
from pathlib import Path

import pytest

from puzzlefs.compression import compress_chunk, decompress_chunk
from puzzlefs.compression.frames import frames_of

pytestmark = pytest.mark.golden

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
ZSTD_MAGIC = bytes.fromhex("28b52ffd")


def blobs(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (VECTORS / name / "blobs" / "sha256").iterdir()}


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_originals_compressed_chunks_hold_its_raw_ones(version: int) -> None:
    raw = blobs(f"v{version}")
    compressed = {name: data for name, data in blobs(f"v{version}-zstd").items() if data[:4] == ZSTD_MAGIC}
    assert len(compressed) == 12
    contents = {hashlib.sha256(decompress_chunk(data, limit=256 << 10)).hexdigest() for data in compressed.values()}
    assert len(contents) == 12
    assert contents <= raw.keys()


def test_the_originals_seekable_chunks_have_a_frame_for_every_4_kib() -> None:
    for data in blobs("v3-zstd").values():
        if data[:4] == ZSTD_MAGIC:
            content = decompress_chunk(data, limit=256 << 10)
            assert len(frames_of(data)) == -(-len(content) // 4096) + 1


@pytest.mark.parametrize("version", [1, 2])
def test_our_plain_frames_are_the_originals(version: int) -> None:
    """A failure after an upgrade of zstd means that chunks are no longer shared with images built before it."""
    for data in blobs(f"v{version}-zstd").values():
        if data[:4] == ZSTD_MAGIC:
            assert compress_chunk(decompress_chunk(data, limit=256 << 10), version) == data
