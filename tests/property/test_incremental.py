"""A build with a cache is the build without one, whatever was done to the tree in between."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Literal

import pyfastcdc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder import StorageOptions, build
from puzzlefs.builder.cache import BuildCache, clock_ns
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.pipeline import ChunkPipeline
from puzzlefs.builder.reuse import Reuse
from puzzlefs.builder.scan import scan
from puzzlefs.builder.source import SourceTree
from puzzlefs.builder.storage import Storage
from puzzlefs.builder.stream import StreamCutter, StreamReader
from puzzlefs.chunking import CHUNKER_NAMES, LOOK_AHEAD, MAX_SIZE, ChunkerName, chunker
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image import dialect_of
from puzzlefs.image_commit import CommittedImage, StoredChunk

pytestmark = pytest.mark.property

NAMES = [f"{directory}{name}" for directory in ("", "a/", "b/c/") for name in "klmnop"]

_NO_IMAGE = CommittedImage(3, VerityDigest(bytes(32)), (Digest(bytes(32)), 0), ())
names = st.sampled_from(NAMES)
seeds = st.integers(0, 1 << 16)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class TestLookAhead:
    """What lets a chunk be taken over although what follows it is new."""

    @pytest.mark.parametrize("name", CHUNKER_NAMES)
    @settings(max_examples=60, deadline=None)
    @given(seed=seeds, more=st.integers(0, 3), after=st.sampled_from([0, 1, 1000, MAX_SIZE]), zeros=st.booleans())
    def test_a_cut_stands_once_so_many_bytes_follow(
        self, name: ChunkerName, seed: int, more: int, after: int, zeros: bool
    ) -> None:
        data = noise(seed, 2 * MAX_SIZE)
        cutter = chunker(name)
        first = cutter.cut(memoryview(data), final=False)[0]
        other = data[: first + LOOK_AHEAD + more] + (bytes(after) if zeros else noise(seed + 1, after))
        assert cutter.cut(memoryview(other), final=True)[0] == first

    def test_and_not_before(self) -> None:
        """Why the bytes behind a chunk count at all: the first of them moves cuts of FastCDC 2020."""
        cutter = chunker("fastcdc2020")
        moved = 0
        for seed in range(20):
            data = noise(seed, 2 * MAX_SIZE)
            first = cutter.cut(memoryview(data), final=False)[0]
            moved += cutter.cut(memoryview(data[:first] + noise(seed + 1, MAX_SIZE)), final=True)[0] != first
        assert moved


class _SmallChunks:
    """FastCDC with chunks of 64 to 1024 bytes: as many borders in a kilobyte as else in a hundred."""

    name = "fastcdc2020"
    max_size = 1024

    def __init__(self) -> None:
        self._fastcdc = pyfastcdc.FastCDC(256, min_size=64, max_size=1024)

    def cut(self, data: memoryview, final: bool) -> list[int]:
        lengths = [chunk.length for chunk in self._fastcdc.cut_buf(data)]
        if not final and lengths and lengths[-1] < self.max_size and sum(lengths) == len(data):
            lengths.pop()
        return lengths


class Trees(RuleBasedStateMachine):
    """A tree that is changed in all ways that there are, and after each change built with the cache and without."""

    root: Path
    cut_at_files = 0
    bytes_read = 0
    bytes_held = 0

    def __init__(self) -> None:
        super().__init__()
        self.place = Trees.root / os.urandom(8).hex()
        self.tree = self.place / "tree"
        self.builds = 0

    @initialize(seed=seeds, age=st.booleans())
    def fill(self, seed: int, age: bool) -> None:
        for directory in ("a", "b/c"):
            (self.tree / directory).mkdir(parents=True)
        generator = random.Random(seed)
        for name in NAMES:
            if generator.random() < 0.7:
                self.path(name).write_bytes(generator.randbytes(generator.choice([0, 1, 50, 700, 5000, 40_000])))
        if age:
            time.sleep(0.03)

    def teardown(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def path(self, name: str) -> Path:
        return self.tree / name

    def files(self) -> list[Path]:
        return [path for path in map(self.path, NAMES) if path.is_file()]

    # ---- changes

    @rule(name=names, seed=seeds, size=st.sampled_from([0, 1, 300, 3000, 70_000]))
    def create_or_replace(self, name: str, seed: int, size: int) -> None:
        self.path(name).unlink(missing_ok=True)
        self.path(name).write_bytes(noise(seed, size))

    @rule(name=names, seed=seeds, size=st.integers(1, 100), where=st.floats(0, 1), keep_times=st.booleans())
    def write_into(self, name: str, seed: int, size: int, where: float, keep_times: bool) -> None:
        """Overwrites, so the size stays unless it is at the end; and may put the time of modification back."""
        path = self.path(name)
        if path.is_file():
            status = path.stat()
            with path.open("r+b") as file:
                file.seek(int(where * status.st_size))
                file.write(noise(seed, size))
            if keep_times:
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    @rule(name=names, seed=seeds)
    def rewrite_in_the_same_size(self, name: str, seed: int) -> None:
        path = self.path(name)
        if path.is_file():
            size = path.stat().st_size
            path.write_bytes(noise(seed, size))

    @rule(name=names, size=st.sampled_from([0, 1, 100, 2000, 50_000, 300_000]))
    def truncate_or_add_a_hole(self, name: str, size: int) -> None:
        if self.path(name).is_file():
            os.truncate(self.path(name), size)

    @rule(name=names, before=st.integers(0, 100_000), after=st.integers(0, 100_000), seed=seeds)
    def make_sparse(self, name: str, before: int, after: int, seed: int) -> None:
        with self.path(name).open("wb") as file:
            file.seek(before)
            file.write(noise(seed, 5000))
            file.truncate(before + 5000 + after)

    @rule(old=names, new=names)
    def rename(self, old: str, new: str) -> None:
        if self.path(old).exists():
            self.path(old).rename(self.path(new))

    @rule(name=names)
    def unlink(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    @rule(old=names, new=names)
    def link(self, old: str, new: str) -> None:
        if self.path(old).exists() and not self.path(new).exists():
            os.link(self.path(old), self.path(new))

    @rule(name=names, mode=st.sampled_from([0o600, 0o644, 0o4755]))
    def chmod(self, name: str, mode: int) -> None:
        if self.path(name).exists():
            self.path(name).chmod(mode)

    @rule(name=names, time_ns=st.sampled_from([0, 1, 10**18, 10**19]))
    def touch(self, name: str, time_ns: int) -> None:
        if self.path(name).exists():
            os.utime(self.path(name), ns=(time_ns, time_ns))

    @rule()
    def wait(self) -> None:
        time.sleep(0.03)

    @rule(share=st.floats(0, 1), seed=seeds)
    def lose_blobs(self, share: float, seed: int) -> None:
        """Somebody else collects garbage."""
        blobs = self.place / "oci" / "blobs" / "sha256"
        generator = random.Random(seed)
        for path in blobs.iterdir() if blobs.is_dir() else ():
            if generator.random() < share:
                path.unlink()

    # ---- what must hold

    def chunks(
        self, layout: Path, cache: Path | None
    ) -> tuple[list[StoredChunk], list[int], dict[Digest, VerityDigest], int]:
        stream = FileStream()
        began_ns = clock_ns()
        with (
            SourceTree(self.tree) as tree,
            Layout.open_or_create(layout, dialect_of(3)) as opened,
            BlobWriter(opened) as writer,
        ):
            found = scan(tree, stream, mtime_of=lambda _: None)
            reuse = memory = None
            if cache is not None:
                memory = BuildCache(
                    cache, tree, chunker="fastcdc2020", format_version=3, storage=Storage(), cross_mounts=False
                )
                old = memory.load()
                assert (old is not None) is (self.builds > 0)
                reuse = None if old is None else Reuse(old, found.files, writer, cut_at_files=self.cut_at_files)
            with ChunkPipeline(stream, writer, version=3, storage=Storage(), workers=1) as pipeline:
                cutter = StreamCutter(_SmallChunks(), pipeline)
                reader = StreamReader(tree, found.files, cutter, reuse, cut_at_files=self.cut_at_files)
                reader.run()
                pipeline.finish()
            writer.commit()
            if memory is not None:
                memory.save(found, stream, pipeline.verity, _NO_IMAGE, began_ns)
        assert sum(stream.lengths()) == stream.size
        if self.cut_at_files:
            cuts = {0, *accumulate(stream.lengths())}
            ends = list(accumulate(file.size for file in found.files))
            for file, end in zip(found.files, ends, strict=True):
                if file.size >= self.cut_at_files:
                    assert {end - file.size, end} <= cuts
        for chunk in stream.chunks:
            assert (layout / "blobs" / "sha256" / chunk.digest.hex()).stat().st_size == chunk.size
        return stream.chunks, stream.lengths(), pipeline.verity, reader.bytes_read

    @invariant()
    def the_cache_changes_nothing(self) -> None:
        if not self.tree.exists():
            return
        *plain, held = self.chunks(self.place / "fresh", None)
        *cached, read = self.chunks(self.place / "oci", self.place / "cache")
        assert cached == plain
        self.builds += 1
        Trees.bytes_held += held
        Trees.bytes_read += read
        shutil.rmtree(self.place / "fresh")


@pytest.fixture
def memory_place(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system without a disk, where there is one: hundreds of builds wait for the disk else."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="puzzlefs-", dir=shared) as directory:
        yield Path(directory)


@pytest.mark.parametrize("cut_at_files", [0, 128, 4000])
def test_edits_with_small_chunks(memory_place: Path, cut_at_files: int) -> None:
    Trees.root = memory_place
    Trees.cut_at_files = cut_at_files
    Trees.bytes_read = Trees.bytes_held = 0
    machine: Callable[[], None] = Trees.TestCase().runTest
    Trees.TestCase.settings = settings(
        max_examples=40, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine()
    assert 0 < Trees.bytes_read < 0.75 * Trees.bytes_held  # or there was nothing to test


@pytest.mark.parametrize(
    ("version", "storage"),
    [
        (1, None),
        (1, StorageOptions()),
        (1, StorageOptions(level=1, chunk_size=16 << 10, cut_at_files=100_000)),
        (3, None),
        (3, StorageOptions()),
        (3, StorageOptions(level=7, cut_at_files=4 << 10, compress_metadata=True)),
        (3, StorageOptions(chunk_size=16 << 10, cut_at_files=0)),
    ],
)
def test_whole_images(tmp_path: Path, version: int, storage: StorageOptions | None) -> None:
    """Digests of whole builds, with chunks of the usual sizes, over random edits of real files; compressed if there are
    options."""
    compression = storage is not None
    generator = random.Random(f"{version}{compression}")
    root = tmp_path / "root"
    root.mkdir()
    for number in range(60):
        size = generator.choice([100, 5000, 60_000, 200_000])
        (root / f"{number:02}").write_bytes(generator.randbytes(size // 2) + bytes(size // 2))
    shares = []
    for step in range(8):
        for _ in range(step % 3):
            path = root / f"{generator.randrange(60):02}"
            match generator.randrange(4) if path.exists() else 0:
                case 0:
                    path.write_bytes(generator.randbytes(generator.choice([10, 70_000])))
                case 1:
                    path.unlink()
                case 2:
                    times = path.stat()
                    with path.open("r+b") as file:
                        file.write(generator.randbytes(5))
                    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
                case 3:
                    path.rename(root / f"{generator.randrange(60):02}")
        if step % 2:
            time.sleep(0.03)
        plain = build(
            root, f"{tmp_path}/fresh{step}:t", format_version=version, compression=compression, storage=storage
        )
        cached = build(
            root,
            f"{tmp_path}/oci:t",
            format_version=version,
            compression=compression,
            storage=storage,
            cache=tmp_path / "cache",
        )
        assert cached.digest == plain.digest
        assert plain.bytes_read == plain.content_size
        shares.append(cached.bytes_read / cached.content_size)
    assert shares[0] == 1
    assert min(shares) == 0
    assert sum(shares[1:]) / len(shares[1:]) < 0.5


def _edit(root: Path, generator: random.Random) -> None:
    """Change something about a tree that is not the content of a file."""
    path = root / f"{generator.randrange(12):02}"
    other = root / "below" / f"{generator.randrange(12):02}"
    match generator.randrange(8):
        case 0:
            path.chmod(generator.choice([0o600, 0o644, 0o4755]))
        case 1:
            value = generator.choice([b"", b"1", b"2"])
            os.setxattr(path, "user.test", value)
        case 2:
            if os.listxattr(path):
                os.removexattr(path, "user.test")
        case 3:
            os.utime(path, ns=(0, generator.choice([10**18, 2 * 10**18])))
        case 4:
            if other.exists():
                other.unlink()
            else:
                os.link(path, other)
        case 5:
            link = root / "link"
            link.unlink(missing_ok=True)
            link.symlink_to(generator.choice(["00", "01", "below"]))
        case 6:
            fifo = root / "pipe"
            if fifo.exists():
                fifo.unlink()
            else:
                os.mkfifo(fifo)
        case 7:
            (root / "below").chmod(generator.choice([0o700, 0o755]))


@pytest.mark.parametrize("timestamps", ["none", "keep"])
@pytest.mark.parametrize("version", [2, 3])
def test_whatever_changes_besides_content(tmp_path: Path, version: int, timestamps: Literal["none", "keep"]) -> None:
    """Metadata that are taken over from the last build are those of now, and are taken over when nothing changed."""
    generator = random.Random(f"{version}{timestamps}")
    root = tmp_path / "root"
    (root / "below").mkdir(parents=True)
    for number in range(12):
        (root / f"{number:02}").write_bytes(generator.randbytes(30_000))
    digests = set()
    for step in range(40):
        if step % 3:
            _edit(root, generator)
        time.sleep(0.025)
        plain = build(root, f"{tmp_path}/fresh:t", format_version=version, timestamps=timestamps)
        cached = build(
            root, f"{tmp_path}/oci:t{step}", format_version=version, timestamps=timestamps, cache=tmp_path / "cache"
        )
        assert cached.digest == plain.digest
        digests.add(cached.digest)
    assert len(digests) > 8


@pytest.mark.parametrize("beyond", [-1, 0, 1, 2, LOOK_AHEAD - 1, LOOK_AHEAD, LOOK_AHEAD + 1])
def test_files_that_end_at_a_cut(tmp_path: Path, beyond: int) -> None:
    """The cut at the end of what did not change depends on what comes behind it, and on whether anything does."""
    root = tmp_path / "root"
    root.mkdir()
    cutter = chunker("fastcdc2020")
    reused = 0
    for seed in range(6):
        data = noise(seed, 2 * MAX_SIZE)
        cut = cutter.cut(memoryview(data), final=False)[0] + beyond
        (root / "first").write_bytes(data[:cut])
        for content in (data[cut:], noise(seed + 100, MAX_SIZE), b"", data[cut : cut + 1], data[cut:]):
            (root / "second").write_bytes(content)
            time.sleep(0.025)
            plain = build(root, f"{tmp_path}/fresh:t")
            cached = build(root, f"{tmp_path}/oci:t", cache=tmp_path / "cache")
            assert cached.digest == plain.digest
        reused += cached.bytes_read < cached.content_size
    assert bool(reused) is (beyond >= LOOK_AHEAD)


@pytest.mark.parametrize(
    "options",
    [
        StorageOptions(),
        StorageOptions(level=4),
        StorageOptions(chunk_size=32 << 10),
        StorageOptions(cut_at_files=0),
        StorageOptions(compress_metadata=True),
    ],
)
def test_other_options_are_another_build(tmp_path: Path, options: StorageOptions) -> None:
    """What a build with other options remembers is of no use, and is not used."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(10):
        (root / f"{number}").write_bytes(noise(number, 30_000) + b"again " * 10_000)
    time.sleep(0.03)
    others = (StorageOptions(), StorageOptions(level=9, chunk_size=16 << 10, cut_at_files=8 << 10))
    for storage in [other for other in others if other != options]:
        build(root, f"{tmp_path}/oci:t", compression=True, storage=storage, cache=tmp_path / "cache")
    fresh = build(root, f"{tmp_path}/fresh:t", compression=True, storage=options)
    cached = build(root, f"{tmp_path}/oci:t", compression=True, storage=options, cache=tmp_path / "cache")
    again = build(root, f"{tmp_path}/oci:t", compression=True, storage=options, cache=tmp_path / "cache")
    assert fresh.digest == cached.digest == again.digest
    assert (cached.bytes_read, again.bytes_read) == (cached.content_size, 0)


def test_what_has_borders_is_read_without_its_neighbours(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(40):
        (root / f"{number:02}").write_bytes(noise(number, 50_000))
    time.sleep(0.03)
    build(root, f"{tmp_path}/oci:t", compression=True, cache=tmp_path / "cache")
    (root / "20").write_bytes(noise(99, 60_000))
    report = build(root, f"{tmp_path}/oci:t", compression=True, cache=tmp_path / "cache")
    assert 60_000 <= report.bytes_read <= 60_000 + 2 * LOOK_AHEAD
    assert report.new_chunks <= 2
    assert report.digest == build(root, f"{tmp_path}/fresh:t", compression=True).digest


@pytest.mark.parametrize("name", CHUNKER_NAMES)
def test_little_is_read_after_a_change(tmp_path: Path, name: ChunkerName) -> None:
    """A change costs about the chunk that it is in."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(300):
        (root / f"{number:03}").write_bytes(noise(number, 30_000))
    time.sleep(0.03)
    build(root, f"{tmp_path}/oci:t", chunker=name, cache=tmp_path / "cache")
    changed = range(20, 300, 100)
    for number in changed:
        (root / f"{number:03}").write_bytes(noise(number + 1000, 31_000))
    report = build(root, f"{tmp_path}/oci:t", chunker=name, cache=tmp_path / "cache")
    assert report.bytes_read < len(changed) * 2 * MAX_SIZE
    assert report.digest == build(root, f"{tmp_path}/fresh:t", chunker=name).digest
    assert report.bytes_read < report.content_size / 5
