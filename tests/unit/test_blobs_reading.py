"""The reader that verifies: what it reads, what that costs, and what verified means."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from support.blobs import reader, store

from puzzlefs.blobs import BlobVerifier, Layout, LoadBudget, VerifiedBlobs
from puzzlefs.blobs.host import read_bounded
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    StorageError,
    VerityNotEnabledError,
    VerityUnavailableError,
)
from puzzlefs.oci import Dialect
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.unit

MEBI = 1 << 20


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    with Layout.open_or_create(tmp_path / "layout", Dialect.OCI) as opened:
        yield opened


# ---- reading


def test_the_host_of_a_blob_is_named(layout: Layout) -> None:
    missing = Digest.of(b"missing")
    with pytest.raises(BlobNotFoundError) as caught:
        reader(layout).read(missing, limit=1)
    assert str(layout.blob_path(missing)) in str(caught.value)
    assert caught.value.digest == missing.hex()
    assert layout.blob_size(missing) is None


def test_a_limit_is_a_limit(layout: Layout) -> None:
    digest = store(layout, bytes(100))
    assert reader(layout).read(digest, limit=100) == bytes(100)
    with pytest.raises(FormatError, match="100 bytes, more than the 99"):
        reader(layout).read(digest, limit=99)


def test_reading_has_a_bound_while_a_file_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    fd = os.open(path, os.O_RDONLY)
    real = os.read

    def growing(fd: int, size: int) -> bytes:
        with open(path, "ab") as file:
            file.write(b"y" * 10)
        return real(fd, size)

    monkeypatch.setattr(os, "read", growing)
    with pytest.raises(FormatError, match="more than the 50"):
        read_bounded(fd, "it", 50)
    os.close(fd)


def test_parts_of_chunks(layout: Layout) -> None:
    content = os.urandom(100_000)
    raw = store(layout, content)
    packed = store(layout, zstandard.compress(content))
    blobs = reader(layout)
    for digest, compressed in ((raw, False), (packed, True)):
        assert not blobs.is_cached(digest)
        assert blobs.read_chunk(digest, compressed, 5, 10) == content[5:15]
        assert blobs.is_cached(digest)
        layout.blob_path(digest).write_bytes(b"changed underneath")
        assert blobs.read_chunk(digest, compressed, 99_999, 1) == content[-1:]
        assert blobs.read_chunk(digest, compressed, 100_000, 0) == b""
        with pytest.raises(FormatError, match="100000 bytes, but a file uses it up to byte 100001"):
            blobs.read_chunk(digest, compressed, 99_999, 2)


def test_one_blob_used_both_as_zstd_and_as_it_is(layout: Layout) -> None:
    """A tree may hold a file that happens to be the compressed form of a chunk."""
    stored = zstandard.compress(b"content" * 100)
    digest = store(layout, stored)
    blobs = reader(layout)
    for _ in range(2):
        assert blobs.read_chunk(digest, True, 0, 7) == b"content"
        assert blobs.read_chunk(digest, False, 0, len(stored)) == stored


@pytest.mark.parametrize("size", [4 * MEBI, 4 * MEBI + 1, 9 * MEBI, 9 * MEBI + 12_345])
def test_large_raw_chunks(layout: Layout, size: int) -> None:
    content = os.urandom(size)
    digest = store(layout, content)
    blobs = reader(layout)
    for offset, length in ((0, 1), (MEBI - 1, 2), (size - 5, 5), (3, 2 * MEBI), (0, size), (size, 0), (MEBI, MEBI)):
        assert blobs.read_chunk(digest, False, offset, length) == content[offset : offset + length]
    for offset, length in ((size, 1), (size + MEBI, 1), (1 << 62, 1), (0, size + 1)):
        with pytest.raises(FormatError):
            blobs.read_chunk(digest, False, offset, length)


def test_a_large_chunk_that_changes_after_it_was_verified(layout: Layout) -> None:
    """Each block is compared again, so not even a change that keeps the times goes unnoticed."""
    content = bytearray(os.urandom(9 * MEBI))
    digest = store(layout, bytes(content))
    blobs = reader(layout)
    path = layout.blob_path(digest)
    assert blobs.read_chunk(digest, False, 0, 10) == content[:10]
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(5 * MEBI)
        file.write(bytes([content[5 * MEBI] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(IntegrityError):
        blobs.read_chunk(digest, False, 5 * MEBI + 100, 10)
    assert blobs.read_chunk(digest, False, 0, 10) == content[:10]
    os.truncate(path, 6 * MEBI)
    with pytest.raises((FormatError, IntegrityError)):
        blobs.read_chunk(digest, False, 8 * MEBI, 10)


@pytest.mark.parametrize("size", [10, 5 * MEBI])
def test_a_corrupt_chunk_is_never_returned(layout: Layout, size: int) -> None:
    digest = store(layout, bytes(size))
    path = layout.blob_path(digest)
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"\1")
    blobs = reader(layout)
    for _ in range(2):
        with pytest.raises(IntegrityError) as caught:
            blobs.read_chunk(digest, False, 0, 1)
        assert (caught.value.expected, caught.value.subject) == (digest.hex(), f"blob {path}")
        assert not blobs.is_cached(digest)
    path.write_bytes(bytes(size))
    assert blobs.read_chunk(digest, False, 0, 1) == b"\0"


def test_the_cache_is_bounded(layout: Layout) -> None:
    blobs = reader(layout)
    digests = [store(layout, bytes([number]) * (2 * MEBI)) for number in range(12)]
    for digest in digests:
        blobs.read_chunk(digest, False, 0, 1)
    cached = [blobs.is_cached(digest) for digest in digests]
    assert cached == [False] * 9 + [True] * 3  # 8 MiB with what the items take themselves


def test_a_budget_ends(layout: Layout) -> None:
    blobs = reader(layout)
    digests = [store(layout, bytes([number]) * MEBI) for number in range(4)]
    budget = LoadBudget(3 * MEBI)
    for digest in digests[:3]:
        blobs.read_chunk(digest, False, 0, 1, budget)
        blobs.read_chunk(digest, False, 0, 1, budget)  # from the cache: free
    with pytest.raises(FormatError, match="absurdly small"):
        blobs.read_chunk(digests[3], False, 0, 1, budget)


# ---- what verified means


RECORDED = VerityDigest(bytes(32))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Stands in for the kernel (the real one is asked in tests/verity): what it answers for any file."""
    answer: dict[str, object] = {}

    def measure(fd: int) -> VerityDigest:
        value = answer["value"]
        if isinstance(value, Exception):
            raise value
        assert isinstance(value, VerityDigest)
        return value

    def find_measurement(fd: int) -> VerityDigest | None:
        try:
            return measure(fd)
        except (VerityNotEnabledError, VerityUnavailableError):
            return None

    monkeypatch.setattr("puzzlefs.blobs.verified.measure", measure)
    monkeypatch.setattr("puzzlefs.blobs.verified.find_measurement", find_measurement)
    return answer


@pytest.mark.parametrize("error", [VerityNotEnabledError("off"), VerityUnavailableError("none")])
def test_without_fs_verity(layout: Layout, measured: dict[str, object], error: Exception) -> None:
    digest = store(layout, b"data")
    measured["value"] = error
    recorded = {digest: RECORDED}
    for mode in ("auto", "user"):
        assert VerifiedBlobs(layout, BlobVerifier(mode, recorded)).read(digest, limit=9) == b"data"
    with pytest.raises(type(error), match=digest.hex()):
        VerifiedBlobs(layout, BlobVerifier("kernel", recorded)).read(digest, limit=9)


def test_the_measurement_must_be_the_recorded_one(layout: Layout, measured: dict[str, object]) -> None:
    digest = store(layout, b"data")
    measured["value"] = verity_digest(b"data")
    for mode in ("auto", "kernel"):
        good = VerifiedBlobs(layout, BlobVerifier(mode, {digest: verity_digest(b"data")}))
        assert good.read(digest, limit=9) == b"data"
        bad = VerifiedBlobs(layout, BlobVerifier(mode, {digest: RECORDED}))
        with pytest.raises(IntegrityError) as caught:
            bad.read(digest, limit=9)
        assert (caught.value.expected, caught.value.actual) == (RECORDED.hex(), verity_digest(b"data").hex())
        with pytest.raises(IntegrityError):
            bad.read_chunk(digest, False, 0, 1)
    assert VerifiedBlobs(layout, BlobVerifier("user", {digest: RECORDED})).read(digest, limit=9) == b"data"


def test_in_kernel_mode_every_blob_needs_a_record(layout: Layout, measured: dict[str, object]) -> None:
    digest = store(layout, b"data")
    measured["value"] = verity_digest(b"data")
    with pytest.raises(IntegrityError):
        VerifiedBlobs(layout, BlobVerifier("kernel", {})).read(digest, limit=9)
    assert VerifiedBlobs(layout, BlobVerifier("auto", {})).read(digest, limit=9) == b"data"
    given = VerifiedBlobs(layout, BlobVerifier("kernel"))
    assert given.read(digest, limit=9, expected=verity_digest(b"data")) == b"data"


@pytest.mark.parametrize("available", [False, True])
def test_a_host_without_fs_verity_is_not_asked_for_each_chunk(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, available: bool
) -> None:
    asked: list[str] = []

    def find_measurement(fd: int) -> None:
        asked.append("measurement")

    def is_available(fd: int) -> bool:
        asked.append("host")
        return available

    monkeypatch.setattr("puzzlefs.blobs.verified.find_measurement", find_measurement)
    monkeypatch.setattr("puzzlefs.blobs.verified.is_available", is_available)
    digests = [store(layout, bytes([number])) for number in range(3)]
    blobs = VerifiedBlobs(layout, BlobVerifier("auto", dict.fromkeys(digests, RECORDED)))
    for number, digest in enumerate(digests):
        assert blobs.read_chunk(digest, False, 0, 1) == bytes([number])
        assert blobs.read(digest, limit=9) == bytes([number])
    assert asked == ["measurement", "host"] + 5 * ["measurement"] * available


def test_in_kernel_mode_a_chunk_is_what_the_kernel_vouches_for(layout: Layout, measured: dict[str, object]) -> None:
    """It is not hashed; and no chunk is shown for which nothing is recorded, whatever its bytes."""
    digest = store(layout, b"data")
    path = layout.blob_path(digest)
    path.chmod(0o600)
    path.write_bytes(b"DATA")  # what the stand-in for a kernel does not find out
    measured["value"] = verity_digest(b"data")
    for mode in ("auto", "kernel"):
        assert (
            VerifiedBlobs(layout, BlobVerifier(mode, {digest: verity_digest(b"data")})).load(digest, False) == b"DATA"
        )
    good = store(layout, b"good")
    with pytest.raises(IntegrityError, match="recorded"):
        VerifiedBlobs(layout, BlobVerifier("kernel", {})).load(good, False)
    measured["value"] = VerityNotEnabledError("off")
    with pytest.raises(VerityNotEnabledError, match=good.hex()):
        VerifiedBlobs(layout, BlobVerifier("kernel", {good: verity_digest(b"good")})).load(good, False)


def test_large_chunks_with_fs_verity(layout: Layout, measured: dict[str, object]) -> None:
    digest = store(layout, bytes(5 * MEBI))
    measured["value"] = RECORDED
    blobs = VerifiedBlobs(layout, BlobVerifier("kernel", {digest: RECORDED}))
    assert blobs.read_chunk(digest, False, 5 * MEBI - 1, 1) == b"\0"
    with pytest.raises(FormatError):
        blobs.read_chunk(digest, False, 5 * MEBI, 1)


@pytest.mark.parametrize("mode", ["auto", "kernel"])
def test_the_anchor_by_the_kernel(layout: Layout, measured: dict[str, object], mode: str) -> None:
    verifier = BlobVerifier("auto" if mode == "auto" else "kernel")
    measured["value"] = RECORDED
    verifier.check_anchor(0, b"whatever: the kernel vouches", "it", RECORDED)
    with pytest.raises(IntegrityError):
        verifier.check_anchor(0, b"data", "it", verity_digest(b"data"))


def test_the_anchor_in_user_space(measured: dict[str, object]) -> None:
    measured["value"] = VerityNotEnabledError("off")
    for mode in ("auto", "user"):
        BlobVerifier(mode).check_anchor(0, b"data", "it", verity_digest(b"data"))
        with pytest.raises(IntegrityError):
            BlobVerifier(mode).check_anchor(0, b"date", "it", verity_digest(b"data"))
    with pytest.raises(VerityNotEnabledError):
        BlobVerifier("kernel").check_anchor(0, b"data", "it", verity_digest(b"data"))


def test_an_error_while_a_blob_is_read(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store(layout, b"data")

    def failing(fd: int, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "read", failing)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageError, match=rf"{digest.hex()}: Input/output error"):
        reader(layout).read(digest, limit=10)
    assert len(os.listdir("/proc/self/fd")) == open_before
