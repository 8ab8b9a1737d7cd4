"""Reading and hashing at the same time."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from puzzlefs.blobs import BlobVerifier, BlobWriter, Layout, VerifiedBlobs
from puzzlefs.blobs.overlapped import Content, read_and_hash
from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, IntegrityError
from puzzlefs.oci import Dialect

pytestmark = pytest.mark.unit

MEBI = 1 << 20
LIMIT = 16 * MEBI


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threading.active_count() == 1


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def read(path: Path, limit: int = LIMIT) -> tuple[Content, Digest]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_and_hash(fd, "the file", limit)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, MEBI - 1, MEBI, MEBI + 1, 2 * MEBI, 3 * MEBI + 12_345])
def test_what_is_read_is_what_is_there_and_what_is_hashed(path: Path, size: int) -> None:
    data = data_of(size)
    path.write_bytes(data)
    content, digest = read(path)
    assert content[:] == data
    assert len(content) == size
    assert digest == Digest.of(data)
    assert isinstance(content[size // 2 : size // 2 + 10], bytes)


@pytest.mark.parametrize("size", [100, 2 * MEBI])
def test_a_limit_is_a_limit(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))
    assert len(read(path, size)[0]) == size
    with pytest.raises(FormatError, match=r"^the file has \d+ bytes, more than the \d+"):
        read(path, size - 1)


def test_where_no_thread_can_be_started(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    data = data_of(2 * MEBI + 1)
    path.write_bytes(data)
    content, digest = read(path)
    assert (content[:], digest) == (data, Digest.of(data))


@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_read_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    """As a file does whose fs-verity finds a page to be wrong."""
    path.write_bytes(data_of(3 * MEBI))
    count = 0
    preadv = os.preadv

    def failing(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal count
        count += 1
        if count > good:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(OSError, match="Input/output error"):
        read(path)


def test_a_file_that_shrinks_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is that of the bytes that are returned, so they are not what was asked for, and refused."""
    data = data_of(3 * MEBI)
    path.write_bytes(data)
    preadv = os.preadv

    def shrinking(fd: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(path, MEBI + 1000)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrinking)
    content, digest = read(path)
    assert content[:] == data[: MEBI + 1000] + bytes(2 * MEBI - 1000)
    assert digest == Digest.of(content[:]) != Digest.of(data)


def test_reads_that_give_less_than_was_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of(2 * MEBI)
    path.write_bytes(data)
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][: 100_000 + offset % 7]], offset)
    )
    content, digest = read(path)
    assert (content[:], digest) == (data, Digest.of(data))


def test_an_interruption_ends_both(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(data: memoryview) -> None:
        raise KeyboardInterrupt

    path.write_bytes(bytes(LIMIT))
    monkeypatch.setattr(hashlib, "sha256", lambda: SimpleNamespace(update=update))
    with pytest.raises(KeyboardInterrupt):
        read(path)


def test_a_process_that_is_forked_later_cannot_change_it(path: Path) -> None:
    """A server that an image has taken over must not be able to change what its successors are forked with."""
    path.write_bytes(bytes(2 * MEBI))
    content, _ = read(path)
    assert isinstance(content, mmap.mmap)
    child = os.fork()
    if child == 0:
        content[:10] = b"0123456789"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert content[:10] == bytes(10)


def test_a_large_blob_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    data = data_of(2 * MEBI + 1)
    with Layout.open_or_create(tmp_path / "layout", Dialect.OCI) as layout:
        with BlobWriter(layout) as writer:
            digest = writer.put(data)
            writer.commit()
        blobs = VerifiedBlobs(layout, BlobVerifier("user"))
        assert blobs.read_large(digest, limit=LIMIT)[:] == blobs.read(digest, limit=LIMIT) == data
        with layout.blob_path(digest).open("r+b") as file:
            file.seek(MEBI)
            file.write(bytes([data[MEBI] ^ 1]))
        for way in (blobs.read_large, blobs.read):
            with pytest.raises(IntegrityError):
                way(digest, limit=LIMIT)
