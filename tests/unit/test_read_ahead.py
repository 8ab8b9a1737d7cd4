"""What the host is asked to read before it is needed: which chunks, how often, and that it can do no harm."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from support.forge import Forge, directory, put_file, regular

from puzzlefs.blobs import VerifiedBlobs
from puzzlefs.digest import Digest
from puzzlefs.errors import IntegrityError
from puzzlefs.image import Image, open_image
from puzzlefs.model import BlobRef, FileChunk
from puzzlefs.mount.kernel_content import ContentServer
from puzzlefs.mount.operations import Operations
from puzzlefs.mount.read_ahead import ReadAhead

pytestmark = pytest.mark.unit

_CHUNK, _CHUNKS, _BIG, _BROKEN, _NEXT = 5000, 180, 2, 3, 4
_TIMEOUT = 20


class Recorder(ReadAhead):
    """Remembers what it is asked for, and does nothing."""

    def __init__(self, blobs: VerifiedBlobs) -> None:
        super().__init__(blobs)
        self.touched: list[Digest] = []
        self.has_room = True

    def touch(self, blob: Digest) -> bool:
        self.touched.append(blob)
        return self.has_room


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "layout")


@pytest.fixture
def parts(forge: Forge) -> list[FileChunk]:
    return [forge.chunk(bytes([number]) * _CHUNK) for number in range(_CHUNKS)]


@pytest.fixture
def image(forge: Forge, parts: list[FileChunk]) -> Iterator[Image]:
    broken = FileChunk(BlobRef(Digest.of(b"not here"), 0, False), _CHUNK)
    following = [forge.chunk(bytes([200 + number]) * _CHUNK) for number in range(3)]
    name = forge.image(
        [
            directory(1, {b"big": _BIG, b"broken": _BROKEN, b"next": _NEXT}),
            regular(_BIG, *parts),
            regular(_BROKEN, parts[0], broken),
            regular(_NEXT, *following),
        ]
    )
    with open_image(name) as opened:
        yield opened


@pytest.fixture
def ahead(image: Image) -> Recorder:
    return Recorder(image.blobs)


@pytest.fixture
def server(image: Image, ahead: Recorder) -> ContentServer:
    def store(ino: int, offset: int, content: memoryview) -> bool:
        return False

    def wanted() -> Collection[int]:
        return ()

    return ContentServer(Operations(image), store, wanted, ahead)


def read(server: ContentServer, first: int, count: int, ino: int = _BIG) -> bytes:
    content = b"".join(server.read(ino, first * _CHUNK, count * _CHUNK, may_guess=False))
    server.follow()
    return content


def digests(parts: list[FileChunk]) -> list[Digest]:
    return [part.blob.digest for part in parts]


# ---- which chunks


@pytest.mark.parametrize("count", [1, 7])
def test_a_file_that_is_read_in_its_order_is_read_ahead(
    server: ContentServer, ahead: Recorder, parts: list[FileChunk], count: int
) -> None:
    for first in range(0, 35, count):
        assert read(server, first, count) == b"".join(bytes([first + number]) * _CHUNK for number in range(count))
        if first >= 2 * count:  # the second read shows that there is an order
            assert set(digests(parts[first + count : first + count + 8])) <= set(ahead.touched)
    assert set(ahead.touched) <= set(digests(parts))


def test_it_goes_on_where_chunks_are_in_memory(
    server: ContentServer, ahead: Recorder, image: Image, parts: list[FileChunk]
) -> None:
    for first in range(20):
        if first > 1:
            image.blobs.read_chunk(parts[first].blob.digest, False, 0, 1)  # for another file
        read(server, first, 1)
    assert digests(parts)[27] in ahead.touched


def test_a_place_that_was_skipped_is_no_end_of_the_order(
    server: ContentServer, ahead: Recorder, parts: list[FileChunk]
) -> None:
    for first in (0, 1, 2):
        read(server, first, 1)
    read(server, 3, 15)  # further than what was read ahead
    assert digests(parts)[20] in ahead.touched


def test_the_longer_chunks_are_wanted_in_order_the_further_it_goes(
    server: ContentServer, ahead: Recorder, parts: list[FileChunk]
) -> None:
    def furthest() -> int:
        return max(map(digests(parts).index, ahead.touched))

    for first in range(10):
        read(server, first, 1)
    assert furthest() == 9 + 8
    for first in range(10, 33):
        read(server, first, 1)
    assert furthest() == 32 + 16
    ahead.touched.clear()
    for first in (100, 101, 102):  # a jump, and a new order
        read(server, first, 1)
    assert furthest() == 102 + 8


def test_the_next_file_follows(server: ContentServer, ahead: Recorder, image: Image) -> None:
    for first in range(_CHUNKS - 4, _CHUNKS):
        read(server, first, 1)
    assert image.tree.file_map(_NEXT).blob(0) in ahead.touched


def test_scattered_reads_have_the_host_read_what_is_behind(
    server: ContentServer, ahead: Recorder, parts: list[FileChunk]
) -> None:
    for first in (40, 10, 30, 20):
        read(server, first, 1)
    assert ahead.touched == [blob for first in (40, 10, 30, 20) for blob in digests(parts)[first + 1 : first + 9]]


def test_what_is_wrong_further_on_is_no_matter_of_this_read(server: ContentServer) -> None:
    assert read(server, 0, 1, _BROKEN) == bytes(_CHUNK)


def test_a_read_of_very_many_pieces_asks_for_a_bounded_number_ahead(
    server: ContentServer, ahead: Recorder, parts: list[FileChunk]
) -> None:
    for first in (0, 1):
        read(server, first, 1)
    ahead.touched.clear()
    read(server, 2, 40)
    assert len([blob for blob in ahead.touched if blob in digests(parts[42:])]) == 96


def test_behind_scattered_reads_each_chunk_is_named_once_in_a_while(
    server: ContentServer, ahead: Recorder, parts: list[FileChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("puzzlefs.mount.kernel_content.time.monotonic", lambda: now)
    ahead.has_room = False
    read(server, 20, 1)
    assert ahead.touched == digests(parts)[21:29]
    ahead.touched.clear()
    ahead.has_room = True
    read(server, 10, 1)
    read(server, 14, 1)
    assert ahead.touched == digests(parts)[11:23]
    ahead.touched.clear()
    read(server, 12, 1)
    assert ahead.touched == []
    now += 1  # the host may have forgotten
    read(server, 16, 1)
    assert ahead.touched == digests(parts)[17:25]


# ---- when there is time


def test_the_next_chunks_are_loaded_in_their_order(server: ContentServer, image: Image, parts: list[FileChunk]) -> None:
    for first in (0, 1):
        read(server, first, 1)
    for number in range(2, 6):
        assert not image.blobs.is_cached(digests(parts)[number])
        assert server.load_next()
        assert image.blobs.cached(digests(parts)[number], False) == bytes([number]) * _CHUNK
    assert not server.load_next()
    read(server, 2, 1)  # goes on from there
    assert server.load_next()
    assert [image.blobs.is_cached(blob) for blob in digests(parts)[:8]] == [True] * 7 + [False]


def test_nothing_is_loaded_where_there_is_no_order(server: ContentServer, image: Image, parts: list[FileChunk]) -> None:
    assert not server.load_next()
    for first in (40, 10, 30):
        read(server, first, 1)
        assert not server.load_next()
    assert sum(map(image.blobs.is_cached, digests(parts))) == 3


def test_a_chunk_that_is_not_what_it_should_be_is_tried_once(
    server: ContentServer, forge: Forge, image: Image, parts: list[FileChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_file(forge.blob_path(digests(parts)[2]), b"corrupt")
    for first in (0, 1):
        read(server, first, 1)
    assert not server.load_next()
    assert not image.blobs.is_cached(digests(parts)[2])
    loads: list[Digest] = []
    monkeypatch.setattr(image.blobs, "load", lambda digest, _compressed: loads.append(digest))
    assert not server.load_next()
    assert loads == []


@pytest.mark.parametrize(("size", "loaded"), [(3 << 20, 1), (5 << 20, 0)])
def test_large_chunks_are_not_loaded_over_and_over(tmp_path: Path, size: int, loaded: int) -> None:
    """Four of them are more than is kept in memory, or each of them is: loading would never end."""
    forge = Forge(tmp_path / "layout")
    parts = [forge.chunk(bytes([number]) * size) for number in range(6)]
    with open_image(forge.image([directory(1, {b"big": _BIG}), regular(_BIG, *parts)])) as image:
        server = ContentServer(Operations(image), lambda *_: False, lambda: (), Recorder(image.blobs))
        for first in (0, 1):
            server.read(_BIG, first * size, 4096, may_guess=False)
            server.follow()
        verified: list[Digest] = []
        image.blobs.on_verified = verified.append
        assert not any(server.load_next() for _ in range(20))
        assert verified == digests(parts)[2 : 2 + loaded]


def test_who_reads_meanwhile_is_not_kept_waiting(
    server: ContentServer, image: Image, parts: list[FileChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in (0, 1):
        read(server, first, 1)
    slow, reading, go_on = digests(parts)[2], threading.Event(), threading.Event()
    real = image.blobs.load

    def load(digest: Digest, compressed: bool) -> bytes | None:
        if digest == slow:
            reading.set()
            assert go_on.wait(_TIMEOUT)
        return real(digest, compressed)

    monkeypatch.setattr(image.blobs, "load", load)
    loader = threading.Thread(target=server.load_next)
    loader.start()
    assert reading.wait(_TIMEOUT)
    assert read(server, 30, 1) == bytes([30]) * _CHUNK
    go_on.set()
    loader.join(_TIMEOUT)
    assert not loader.is_alive()


# ---- how


def test_the_host_is_told_once_and_what_is_in_memory_is_not_named(
    image: Image, parts: list[FileChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Digest] = []
    monkeypatch.setattr(image.blobs, "will_need", told.append)
    first, second, third = digests(parts)[:3]
    image.blobs.read_chunk(second, False, 0, 1)
    ahead = ReadAhead(image.blobs)
    for blob in (first, second, third, first):
        ahead.touch(blob)
    ahead.end()
    ahead.work()
    assert told == [first, third]


def test_there_is_room_for_so_many(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Digest] = []
    monkeypatch.setattr(image.blobs, "will_need", told.append)
    ahead = ReadAhead(image.blobs)
    for number in range(1000):
        ahead.touch(Digest.of(number.to_bytes(2, "big")))
    ahead.end()
    ahead.work()
    assert told == [Digest.of(number.to_bytes(2, "big")) for number in range(256)]


def test_nothing_that_goes_wrong_ends_it(forge: Forge, image: Image, parts: list[FileChunk]) -> None:
    corrupt, replaced, good = digests(parts)[:3]
    put_file(forge.blob_path(corrupt), b"corrupt")
    forge.blob_path(replaced).unlink()
    forge.blob_path(replaced).mkdir()
    ahead = ReadAhead(image.blobs)
    for blob in (Digest.of(b"not here"), corrupt, replaced, good):
        ahead.touch(blob)
    worker = threading.Thread(target=ahead.work)
    worker.start()
    ahead.end()
    worker.join(_TIMEOUT)
    assert not worker.is_alive()
    with pytest.raises(IntegrityError):
        image.blobs.read_chunk(corrupt, False, 0, 1)
    assert image.blobs.read_chunk(good, False, 0, 1) == b"\2"


def test_what_was_named_a_while_ago_is_named_again(
    image: Image, parts: list[FileChunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((100.0, 100.01, 101.0))  # the host may have dropped its caches by the third
    monkeypatch.setattr("puzzlefs.mount.read_ahead.time.monotonic", lambda: next(times))
    asked: list[Digest] = []
    monkeypatch.setattr(image.blobs, "will_need", asked.append)
    ahead = ReadAhead(image.blobs)
    blob = parts[0].blob.digest
    for _ in range(3):
        ahead.touch(blob)
    ahead.end()
    ahead.work()
    assert asked == [blob, blob]
