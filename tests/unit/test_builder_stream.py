"""The stream: files end to end, holes without work, parts of chunks, and files that change under our
hands."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.pipeline import BUFFER_SIZE, ChunkPipeline
from puzzlefs.builder.scan import ScannedTree, SourceFile, scan
from puzzlefs.builder.source import SourceTree
from puzzlefs.builder.storage import Storage
from puzzlefs.builder.stream import StreamCutter, StreamReader
from puzzlefs.chunking import MAX_SIZE, chunker
from puzzlefs.digest import Digest
from puzzlefs.errors import SourceError, StorageError
from puzzlefs.image import dialect_of
from puzzlefs.image_commit import StoredChunk
from puzzlefs.model import BlobRef, FileChunk

pytestmark = pytest.mark.unit


def digests_of(data: bytes) -> list[Digest]:
    """The chunks of a stream, worked out in one go."""
    result = []
    for length in chunker("fastcdc2020").cut(memoryview(data), final=True):
        result.append(Digest.of(data[:length]))
        data = data[length:]
    return result


class Store:
    """A layout, a writer and a pipeline to feed."""

    def __init__(self, place: Path, *, workers: int = 2) -> None:
        self.layout = Layout.open_or_create(place, dialect_of(3))
        self.writer = BlobWriter(self.layout)
        self.stream = FileStream()
        self.pipeline = ChunkPipeline(self.stream, self.writer, version=3, storage=Storage(), workers=workers)
        self.cutter = StreamCutter(chunker("fastcdc2020"), self.pipeline)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.__exit__(None, None, None)
        self.writer.abort()
        self.layout.close()

    def append(self, data: bytes) -> None:
        while data:
            with self.cutter.space() as view:
                count = min(len(view), len(data))
                view[:count] = data[:count]
            self.cutter.advance(count)
            data = data[count:]

    def finish(self) -> list[Digest]:
        self.cutter.finish()
        self.pipeline.finish()
        return [chunk.digest for chunk in self.stream.chunks]


class TestCutting:
    @pytest.mark.parametrize("size", [0, 1, BUFFER_SIZE - 1, BUFFER_SIZE, BUFFER_SIZE + 1, 3 * BUFFER_SIZE + 5])
    def test_buffers_leave_no_trace(self, tmp_path: Path, size: int) -> None:
        data = random.Random(size).randbytes(size)
        with Store(tmp_path / "oci") as store:
            for start in range(0, size, 700_001):
                store.append(data[start : start + 700_001])
            assert store.finish() == digests_of(data)

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["noise", "hole"]), st.integers(0, 3 * BUFFER_SIZE // 2)),
            max_size=6,
        )
    )
    def test_holes_are_cut_like_the_zeros_that_they_are(
        self, tmp_path_factory: pytest.TempPathFactory, parts: Sequence[tuple[str, int]]
    ) -> None:
        data = b""
        with Store(tmp_path_factory.mktemp("store") / "oci") as store:
            for kind, size in parts:
                if kind == "noise":
                    noise = random.Random(size).randbytes(size)
                    store.append(noise)
                    data += noise
                else:
                    store.cutter.zeros(size)
                    data += bytes(size)
            assert store.finish() == digests_of(data)
            assert store.pipeline.bytes_done == len(data)

    @pytest.mark.parametrize("around", [0, 1, 5000, MAX_SIZE - 1, MAX_SIZE, MAX_SIZE + 1, BUFFER_SIZE - 1])
    @pytest.mark.parametrize("hole", [MAX_SIZE - 1, MAX_SIZE, 2 * MAX_SIZE, 2 * MAX_SIZE + 1, BUFFER_SIZE + MAX_SIZE])
    def test_holes_at_every_edge(self, tmp_path: Path, around: int, hole: int) -> None:
        noise = random.Random(around).randbytes(around)
        with Store(tmp_path / "oci") as store:
            store.append(noise)
            store.cutter.zeros(hole)
            store.append(noise)
            assert store.finish() == digests_of(noise + bytes(hole) + noise)

    def test_a_terabyte_of_hole_is_no_work(self, tmp_path: Path) -> None:
        size = 1 << 40
        with Store(tmp_path / "oci") as store:
            file = store.stream.reserve(size)
            started = time.process_time()
            store.cutter.zeros(size)
            chunks = store.finish()
            assert time.process_time() - started < 10
            assert len(chunks) == size // MAX_SIZE
            assert set(chunks) == {Digest.of(bytes(MAX_SIZE))}
            assert (store.writer.new_blobs, store.writer.stored_bytes) == (1, MAX_SIZE)
            assert len(file.chunks) == len(chunks)


class TestParts:
    """Which parts of which chunks a file consists of."""

    A, B, C = (StoredChunk(Digest.of(name), 1, name == b"b") for name in (b"a", b"b", b"c"))

    def files(self, sizes: Sequence[int]) -> list[list[tuple[Digest, int, bool, int]]]:
        stream = FileStream()
        files = [stream.reserve(size) for size in sizes]
        for chunk, length in ((self.A, 10), (self.B, 20), (self.C, 5)):
            stream.append(chunk, length)
        assert sum(sizes) == stream.size == 35
        for file in files:
            assert sum(chunk.length for chunk in file.chunks) == file.size
            assert len(file.chunks) == len(list(file.chunks))
            assert [file.chunks[index] for index in range(len(file.chunks))] == list(file.chunks)
            assert list(file.chunks[::-1]) == list(reversed(list(file.chunks)))
        return [
            [(part.blob.digest, part.blob.offset, part.blob.compressed, part.length) for part in file.chunks]
            for file in files
        ]

    def test_one_file_of_all_chunks(self) -> None:
        assert self.files([35]) == [
            [(self.A.digest, 0, False, 10), (self.B.digest, 0, True, 20), (self.C.digest, 0, False, 5)]
        ]

    def test_borders_that_coincide(self) -> None:
        assert self.files([10, 20, 5]) == [
            [(self.A.digest, 0, False, 10)],
            [(self.B.digest, 0, True, 20)],
            [(self.C.digest, 0, False, 5)],
        ]

    def test_borders_that_do_not(self) -> None:
        assert self.files([3, 3, 0, 25, 4]) == [
            [(self.A.digest, 0, False, 3)],
            [(self.A.digest, 3, False, 3)],
            [],
            [(self.A.digest, 6, False, 4), (self.B.digest, 0, True, 20), (self.C.digest, 0, False, 1)],
            [(self.C.digest, 1, False, 4)],
        ]

    def test_an_index_beyond_the_end(self) -> None:
        stream = FileStream()
        file = stream.reserve(10)
        stream.append(self.A, 10)
        assert file.chunks[-1] == FileChunk(BlobRef(self.A.digest, 0, False), 10)
        with pytest.raises(IndexError):
            file.chunks[1]

    def test_repeats(self) -> None:
        stream = FileStream()
        file = stream.reserve(40)
        stream.append(self.A, 10, 3)
        stream.append(self.B, 10)
        assert [chunk.blob.digest for chunk in file.chunks] == [self.A.digest] * 3 + [self.B.digest]


class _NotFromTheBeginning(list[SourceFile]):
    def __iter__(self) -> NoReturn:
        raise AssertionError("all files are passed over")


def build_stream(root: Path, place: Path, disturb: Callable[[int], None] | None = None) -> FileStream:
    """Scan and read ``root``; ``disturb`` is called after the scan with 0, and while files are read with the
    bytes done."""
    stream = FileStream()
    with (
        SourceTree(root) as tree,
        Layout.open_or_create(place, dialect_of(3)) as layout,
        BlobWriter(layout) as writer,
    ):
        found: ScannedTree = scan(tree, stream, mtime_of=lambda _: None)
        if disturb is not None:
            disturb(0)
        with ChunkPipeline(stream, writer, version=3, storage=Storage(), workers=1, progress=disturb) as pipeline:
            StreamReader(tree, found.files, StreamCutter(chunker("fastcdc2020"), pipeline)).run()
            pipeline.finish()
    return stream


class TestReading:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        place = tmp_path / "root"
        place.mkdir()
        return place

    def test_files_follow_one_another_in_the_order_of_their_numbers(self, root: Path, tmp_path: Path) -> None:
        (root / "sub").mkdir()
        (root / "sub" / "a").write_bytes(b"third")
        (root / "z").write_bytes(b"second")
        (root / "b").write_bytes(b"first")
        (root / "empty").write_bytes(b"")
        stream = build_stream(root, tmp_path / "oci")
        assert [chunk.digest for chunk in stream.chunks] == [Digest.of(b"firstsecondthird")]

    def test_what_is_found_meanwhile_is_looked_at_once(self, root: Path, tmp_path: Path) -> None:
        """A tree of 100,000 files in 10,000 directories took three times as long when all files were passed over each
        time that a directory was looked into."""
        for number in range(30):
            (root / f"{number:02}").write_bytes(b"%d," % number)
        stream = FileStream()
        with (
            SourceTree(root) as tree,
            Layout.open_or_create(tmp_path / "oci", dialect_of(3)) as layout,
            BlobWriter(layout) as writer,
        ):
            found = scan(tree, stream, mtime_of=lambda _: None)
            files = _NotFromTheBeginning()
            rest = iter(found.files)

            def look_further() -> bool:
                more = list(itertools.islice(rest, 1))
                files.extend(more)
                return bool(more)

            with ChunkPipeline(stream, writer, version=3, storage=Storage(), workers=1) as pipeline:
                cutter = StreamCutter(chunker("fastcdc2020"), pipeline)
                StreamReader(tree, files, cutter, look_further=look_further).run()
                pipeline.finish()
        assert [chunk.digest for chunk in stream.chunks] == [Digest.of(b"".join(b"%d," % n for n in range(30)))]

    @pytest.mark.parametrize(
        "layout",
        [
            [(0, 10)],
            [(5 << 20, 10)],
            [(0, 100_000), (3 << 20, 100_000), (9 << 20, 1)],
            [(1 << 20, 4096), ((1 << 20) + 8192, 4096)],
            [],
        ],
    )
    def test_sparse_files_are_read_as_what_they_show(
        self, root: Path, tmp_path: Path, layout: list[tuple[int, int]]
    ) -> None:
        with open(root / "sparse", "wb") as file:
            for offset, size in layout:
                file.seek(offset)
                file.write(random.Random(offset).randbytes(size))
            file.truncate((10 << 20) + 12345)
        assert (root / "sparse").stat().st_blocks * 512 < 2 << 20
        stream = build_stream(root, tmp_path / "oci")
        assert [chunk.digest for chunk in stream.chunks] == digests_of((root / "sparse").read_bytes())

    def test_access_times_stay(self, root: Path, tmp_path: Path) -> None:
        (root / "file").write_bytes(b"x" * 1000)
        os.utime(root / "file", ns=(1, 2))
        build_stream(root, tmp_path / "oci")
        assert (root / "file").stat().st_atime_ns == 1

    def test_long_names_and_depth(self, root: Path, tmp_path: Path) -> None:
        place = root
        for _ in range(15):  # 15 * 200 bytes: beyond what one component may have, below what a path may
            place /= "d" * 200
            place.mkdir()
            (place / ("f" * 255)).write_bytes(b"deep")
        stream = build_stream(root, tmp_path / "oci")
        assert [chunk.digest for chunk in stream.chunks] == [Digest.of(b"deep" * 15)]


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"new")


class TestChanges:
    """A tree that does not hold still is an error that names the file."""

    SIZE = 24 << 20  # several times the buffers, so that progress is reported while the file is read

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        place = tmp_path / "root"
        place.mkdir()
        (place / "a-first").write_bytes(b"first")
        with open(place / "big", "wb") as file:
            for number in range(self.SIZE >> 20):
                file.write(random.Random(number).randbytes(1 << 20))
        return place

    def refuse(self, root: Path, place: Path, change: Callable[[Path], object], *, midway: bool, match: str) -> None:
        done = threading.Event()

        def disturb(bytes_done: int) -> None:
            if not done.is_set() and bool(bytes_done) is midway:
                done.set()
                change(root / "big")

        with pytest.raises(SourceError, match=match):
            build_stream(root, place / "oci", disturb)
        assert done.is_set()

    @pytest.mark.parametrize("midway", [False, True], ids=["before", "while"])
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda path: os.truncate(path, 5 << 20), id="shrinks"),
            pytest.param(lambda path: os.truncate(path, 0), id="empties"),
            pytest.param(lambda path: os.truncate(path, (24 << 20) + 1), id="grows"),
            pytest.param(overwrite, id="is-written-to"),
            pytest.param(lambda path: os.utime(path, ns=(5, 5)), id="gets-another-time"),
            pytest.param(lambda path: path.chmod(0o600), id="changes-its-mode"),
        ],
    )
    def test_a_file_that_changes(
        self, root: Path, tmp_path: Path, change: Callable[[Path], object], midway: bool
    ) -> None:
        time.sleep(0.02)  # a clock tick of the file system's times
        self.refuse(root, tmp_path, change, midway=midway, match="/big changed while it was read; a tree must not")

    def test_a_file_that_vanishes_before(self, root: Path, tmp_path: Path) -> None:
        self.refuse(root, tmp_path, Path.unlink, midway=False, match="cannot read .*/big: No such file")

    def test_a_file_that_vanishes_while_it_is_read(self, root: Path, tmp_path: Path) -> None:
        time.sleep(0.02)
        self.refuse(root, tmp_path, Path.unlink, midway=True, match="/big changed while it was read")

    def test_a_file_that_becomes_a_link(self, root: Path, tmp_path: Path) -> None:
        def swap(path: Path) -> None:
            path.unlink()
            path.symlink_to("/etc/passwd")

        self.refuse(root, tmp_path, swap, midway=False, match="cannot read .*/big: ")

    def test_a_file_that_becomes_a_fifo_does_not_block(self, root: Path, tmp_path: Path) -> None:
        def swap(path: Path) -> None:
            path.unlink()
            os.mkfifo(path)

        self.refuse(root, tmp_path, swap, midway=False, match="/big changed while it was read")

    def test_a_file_replaced_by_an_equal_one(self, root: Path, tmp_path: Path) -> None:
        def swap(path: Path) -> None:
            data, times = path.read_bytes(), path.stat()
            path.rename(path.with_name("old"))
            path.write_bytes(data)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

        self.refuse(root, tmp_path, swap, midway=False, match="/big changed while it was read")

    def test_nothing_is_left_open_or_behind(self, root: Path, tmp_path: Path) -> None:
        before = len(os.listdir("/proc/self/fd"))
        self.refuse(root, tmp_path, Path.unlink, midway=False, match="/big")
        assert len(os.listdir("/proc/self/fd")) == before
        assert os.listdir(tmp_path / "oci" / "blobs" / "sha256") == []


class TestPipeline:
    @pytest.mark.parametrize("workers", [1, 2, 7])
    def test_results_are_in_order_with_any_number_of_workers(self, tmp_path: Path, workers: int) -> None:
        data = b"".join(random.Random(number % 5).randbytes(1 << 20) for number in range(16))
        with Store(tmp_path / "oci", workers=workers) as store:
            store.append(data)
            assert store.finish() == digests_of(data)
            assert store.pipeline.verity.keys() == set(digests_of(data))
            assert store.writer.new_blobs == len(set(digests_of(data)))

    def test_buffers_are_bounded(self, tmp_path: Path) -> None:
        with Store(tmp_path / "oci", workers=2) as store:
            buffers = set()
            for number in range(60):
                store.append(random.Random(number).randbytes(1 << 20))
                buffers.add(id(store.cutter._buffer))
            store.finish()
            assert 1 < len(buffers) <= 6

    def test_an_error_of_a_worker_is_raised(self, tmp_path: Path) -> None:
        with Store(tmp_path / "oci", workers=2) as store:
            store.layout.close()  # writing fails from here on
            with pytest.raises(StorageError, match="Bad file descriptor"):
                store.append(random.Random(1).randbytes(20 << 20))
                store.finish()
