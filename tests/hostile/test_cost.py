"""Small images that ask for much: time and memory stay bounded, and what is no damage still comes out right."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import zstandard
from support import forge as f
from support.examine import Outcome, examine_limited, limited
from support.forge import Forge

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, PuzzlefsError
from puzzlefs.extract import extract
from puzzlefs.image import Image, open_image
from puzzlefs.model import BlobRef, Fifo, FileChunk, Inode, Kind

pytestmark = pytest.mark.hostile

MEBI = 1 << 20


def one_file(forge: Forge, *chunks: FileChunk) -> str:
    return forge.image([f.directory(1, {b"file": 2}), f.regular(2, *chunks)])


# ---- compression


def zeros(size: int) -> bytes:
    """A zstd frame of ``size`` zero bytes, without a content size."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    block = bytes(MEBI)
    parts = [compressor.compress(block) for _ in range(size // MEBI)]
    return b"".join([*parts, compressor.compress(block[: size % MEBI]), compressor.flush()])


def frame(content_size: int, content: bytes = b"abc") -> bytes:
    """A frame of one raw block whose header claims ``content_size``."""
    block = len(content) << 3 | 1
    return b"\x28\xb5\x2f\xfd\xe0" + content_size.to_bytes(8, "little") + block.to_bytes(3, "little") + content


def seek_table(entries: list[tuple[int, int]], *, count: int | None = None, descriptor: int = 0) -> bytes:
    body = b"".join(struct.pack("<II", *entry) for entry in entries)
    body += struct.pack("<IBI", len(entries) if count is None else count, descriptor, 0x8F92EAB1)
    return struct.pack("<II", 0x184D2A5E, len(body)) + body


FRAME = zstandard.compress(b"abc")
BOMB = zeros(64 * MEBI)

STORED = {
    "1 GiB of zeros": zeros(1024 * MEBI),
    "a thousand bombs in a row": BOMB * 1000,
    "header claims 2^64 - 1": frame((1 << 64) - 1),
    "header claims 2^62": frame(1 << 62),
    "header claims 1 GiB": frame(1 << 30),
    "header claims 4": frame(4),
    "window of 2 GiB": b"\x28\xb5\x2f\xfd\x00\xa8" + (3 << 3 | 1).to_bytes(3, "little") + b"abc",
    "frame and garbage": FRAME + b"garbage!",
    "frame cut": FRAME[:-1],
    "only a skippable frame": struct.pack("<II", 0x184D2A50, 4) + b"skip",
    "a million empty frames": zstandard.compress(b"") * 100_000,
    "seek table says more": FRAME + seek_table([(len(FRAME), 4)]),
    "seek table says less": FRAME + seek_table([(len(FRAME), 2)]),
    "seek table of another frame": FRAME + seek_table([(len(FRAME) + 1, 3)]),
    "seek table of two frames": FRAME + seek_table([(len(FRAME), 3), (len(FRAME), 3)]),
    "seek table with a wrong count": FRAME + seek_table([(len(FRAME), 3)], count=2),
    "seek table with an absurd count": FRAME + seek_table([], count=(1 << 32) - 1),
    "seek table with reserved bits": FRAME + seek_table([(len(FRAME), 3)], descriptor=0x7C),
    "seek table of 4 GiB frames": FRAME + seek_table([((1 << 32) - 1, (1 << 32) - 1)] * 1000),
    "only a seek table": seek_table([]),
    "empty": b"",
}


@pytest.mark.parametrize("name", STORED)
def test_compressed_chunks_that_lie(tmp_path: Path, name: str) -> None:
    forge = Forge(tmp_path / "layout")
    digest = forge.blob(STORED[name])
    reference = one_file(forge, FileChunk(BlobRef(digest, 0, True), 5))
    outcome = examine_limited(reference, tmp_path / "out", memory=256 << 20)
    assert (outcome.opening, outcome.problems) == (None, {b"file": "FormatError"}), outcome.messages
    assert outcome.extraction == "FormatError"
    assert outcome.cpu_seconds < 2


def test_what_a_chunk_may_hold_is_read(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    plain = FRAME * 20_000
    seekable = FRAME * 3 + seek_table([(len(FRAME), 3)] * 3)
    reference = forge.image(
        [
            f.directory(1, {b"bomb": 2, b"plain": 3, b"seekable": 4}),
            f.regular(2, FileChunk(BlobRef(forge.blob(BOMB), 0, True), 64 * MEBI)),
            f.regular(3, FileChunk(BlobRef(forge.blob(plain), 0, True), 60_000)),
            f.regular(4, FileChunk(BlobRef(forge.blob(seekable), 1, True), 8)),
        ]
    )
    outcome = examine_limited(reference, tmp_path / "out", memory=512 << 20)
    assert (outcome.problems, outcome.extraction) == ({}, None), outcome.messages
    assert (tmp_path / "out" / "plain").read_bytes() == b"abc" * 20_000
    assert (tmp_path / "out" / "seekable").read_bytes() == b"bcabcabc"
    assert (tmp_path / "out" / "bomb").stat().st_size == 64 * MEBI


@pytest.mark.parametrize("version", [1, 2])
def test_an_inode_vector_that_is_a_bomb(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    outcome = examine_limited(forge.raw_vectors(zeros(512 * MEBI), compressed=True), memory=256 << 20)
    assert outcome.opening == "FormatError"
    assert outcome.cpu_seconds < 2


@pytest.mark.parametrize("version", [1, 2])
def test_an_inode_vector_may_be_compressed(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    vector = forge.codec.encode_inode_vector([f.directory(1, {b"x": 2}), f.symlink(2, b"target")])
    assert examine_limited(forge.raw_vectors(zstandard.compress(vector), compressed=True)).paths == [b".", b"x"]
    shifted = forge.raw_vectors(zstandard.compress(b"12345678" + vector), compressed=True, offset=8)
    assert examine_limited(shifted).paths == [b".", b"x"]
    beyond = forge.raw_vectors(zstandard.compress(vector), compressed=True, offset=1 << 40)
    assert examine_limited(beyond).opening == "FormatError"


@pytest.mark.parametrize("version", [1, 2])
def test_one_inode_vector_thousands_of_times(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    names = {b"%06d" % number: number for number in range(2, 2000)}
    vector = forge.codec.encode_inode_vector(
        [f.directory(1, names), *(f.symlink(number, b"t" * 200) for number in names.values())]
    )
    outcome = examine_limited(forge.raw_vectors(*[vector] * 4000), memory=256 << 20)
    assert (outcome.opening, outcome.problems, len(outcome.paths)) == (None, {}, 1999), outcome.messages
    assert outcome.cpu_seconds < 2
    blob = forge.blob(b"".join(vector for _ in range(20)))
    refs = [BlobRef(blob, number * len(vector), False) for number in range(20)]
    assert examine_limited(forge.raw_rootfs(encode_refs(forge, refs[:10]))).problems == {}
    assert examine_limited(forge.raw_rootfs(encode_refs(forge, refs))).opening == "FormatError"


def encode_refs(forge: Forge, refs: list[BlobRef]) -> bytes:
    return forge.codec.encode_rootfs(layers=(), metadata_refs=refs, verity={})


# ---- files that are made of nothing much


def test_hundreds_of_thousands_of_parts_without_a_byte(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    empty = forge.chunk(b"x", length=0)
    reference = one_file(forge, *[empty] * 300_000, forge.chunk(b"a"), *[empty] * 300_000, forge.chunk(b"b"))
    outcome = examine_limited(reference, tmp_path / "out")
    assert (outcome.problems, outcome.extraction) == ({}, None), outcome.messages
    assert (tmp_path / "out" / "file").read_bytes() == b"ab"
    assert outcome.cpu_seconds < 2


def test_a_file_of_single_bytes(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    parts = [forge.chunk(bytes([value])) for value in b"ab"]
    outcome = examine_limited(one_file(forge, *parts * 100_000), tmp_path / "out")
    assert (outcome.problems, outcome.extraction) == ({}, None), outcome.messages
    assert (tmp_path / "out" / "file").read_bytes() == b"ab" * 100_000
    assert outcome.cpu_seconds < 10


@pytest.mark.parametrize("kind", ["bombs", "large raw chunks"])
def test_single_bytes_out_of_large_chunks(tmp_path: Path, kind: str) -> None:
    """Each byte makes the one before it drop out of the cache: without a budget this takes hours."""
    forge = Forge(tmp_path / "layout")
    chunks = []
    for number in range(3):
        if kind == "bombs":
            stored = zstandard.compress(bytes([number]) * (48 * MEBI))
            digest = forge.blob(stored)
        else:
            size = 300 * MEBI + number
            digest = digest_of_zeros(size)
            forge.sparse_blob(digest, size)
        chunks.append(FileChunk(BlobRef(digest, 0, kind == "bombs"), 1))
    reference = one_file(forge, *chunks * 50_000)

    def run() -> tuple[str | None, float]:
        started = time.process_time()
        with open_image(reference) as image:
            try:
                image.read(2, 0, 128 << 10)
            except PuzzlefsError as error:
                return type(error).__name__, time.process_time() - started
        return None, time.process_time() - started

    error, seconds = limited(run)
    assert error == FormatError.__name__
    assert seconds < 5


def digest_of_zeros(size: int) -> Digest:
    hasher = hashlib.sha256()
    block = bytes(MEBI)
    for _ in range(size // MEBI):
        hasher.update(block)
    hasher.update(block[: size % MEBI])
    return Digest(hasher.digest())


def test_raw_chunks_of_any_size_up_to_a_gigabyte(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    sizes = (300 * MEBI + 5, (1 << 30) + 1)
    chunks = []
    for size in sizes:
        digest = digest_of_zeros(size)
        forge.sparse_blob(digest, size)
        chunks.append(FileChunk(BlobRef(digest, size - 3, False), 3))
    reference = forge.image([f.directory(1, {b"a": 2, b"b": 3}), f.regular(2, chunks[0]), f.regular(3, chunks[1])])
    outcome = examine_limited(reference, memory=256 << 20)
    assert outcome.problems == {b"b": "FormatError"}


# ---- holes


def test_an_immense_hole_is_extracted_at_once(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    hole = FileChunk(BlobRef(forge.blob(BOMB), 0, True), 64 * MEBI)
    reference = one_file(forge, forge.chunk(b"begin"), *[hole] * 16_384, forge.chunk(b"end"))
    size = (1 << 40) + len(b"beginend")

    def run() -> tuple[int, float]:
        started = time.process_time()
        report = extract(reference, tmp_path / "out")
        return report.bytes, time.process_time() - started

    done, seconds = limited(run)
    assert done == size
    assert seconds < 5
    status = (tmp_path / "out" / "file").stat()
    assert status.st_size == size
    assert status.st_blocks <= 64
    with open(tmp_path / "out" / "file", "rb") as file:
        assert file.read(8) == b"begin\0\0\0"
        file.seek(-8, os.SEEK_END)
        assert file.read() == b"\0\0\0\0\0end"


@pytest.mark.parametrize("length", [(1 << 63) - 1, 1 << 62])
def test_a_file_of_an_absurd_size(tmp_path: Path, length: int) -> None:
    forge = Forge(tmp_path / "layout")
    hole = forge.blob(BOMB)
    reference = one_file(forge, FileChunk(BlobRef(hole, 0, True), length))
    outcome = examine_limited(reference, tmp_path / "out")
    assert outcome.problems == {b"file": "FormatError"}
    assert outcome.extraction in ("StorageError", "FormatError")
    assert outcome.totals == (2, length)
    assert outcome.cpu_seconds < 2
    assert not (tmp_path / "out" / "file").exists() or (tmp_path / "out" / "file").stat().st_blocks == 0


# ---- trees


def chain(depth: int) -> list[Inode]:
    """A directory in a directory in a directory; in the last one a symlink and two names of a fifo."""
    last = depth + 2
    return [
        *(f.directory(number, {b"d": number + 1}) for number in range(1, depth + 1)),
        f.directory(depth + 1, {b"end": last, b"one": last + 1, b"two": last + 1}),
        f.symlink(last, b"here"),
        f.inode(last + 1, Fifo()),
    ]


@pytest.mark.parametrize("depth", [2_000, 15_000])
def test_deep_trees(tmp_path: Path, depth: int) -> None:
    reference = Forge(tmp_path / "layout").image(chain(depth))
    target = tmp_path / "out"

    def run() -> tuple[int, float]:
        started = time.process_time()
        with open_image(reference) as image:
            deepest = max(level for level, _, _ in image.tree.walk())
            extract(image, target)
        return deepest, time.process_time() - started

    try:
        deepest, seconds = limited(run, memory=512 << 20)
        assert deepest == depth
        assert seconds < 10
        found = depth_on_disk(target)
    finally:
        remove_deep(target)
    assert found == depth


def depth_on_disk(target: Path) -> int:
    """How deep a chain of directories ``d`` is; the last one must hold what ``chain`` put there."""
    fd = os.open(target, os.O_RDONLY)
    depth = 0
    try:
        while os.listdir(fd) == ["d"]:
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
            depth += 1
        assert os.readlink("end", dir_fd=fd) == "here"
        assert os.stat("one", dir_fd=fd).st_ino == os.stat("two", dir_fd=fd).st_ino
    finally:
        os.close(fd)
    return depth


def remove_deep(target: Path) -> None:
    """Remove a chain of directories, from below, without recursion: pytest's own way of cleaning up recurses."""
    fd = os.open(target, os.O_RDONLY)
    levels = 0
    while "d" in os.listdir(fd):
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        levels += 1
    for name in os.listdir(fd):
        os.unlink(name, dir_fd=fd)
    for _ in range(levels):
        above = os.open("..", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = above
        os.rmdir("d", dir_fd=fd)
    os.close(fd)


def test_many_names_far_from_one_another(tmp_path: Path) -> None:
    """Names of one inode at both ends of a deep tree, many times over."""
    depth, count = 1000, 2000
    links = {b"l%d" % number: depth + 10 + number for number in range(count)}
    inodes = [
        f.directory(1, {b"d": 2, **links}),
        *(f.directory(number, {b"d": number + 1}) for number in range(2, depth)),
        f.directory(depth, links),
        *(f.inode(number, Fifo()) for number in links.values()),
    ]
    reference = Forge(tmp_path / "layout").image(inodes)
    outcome = examine_limited(reference, tmp_path / "out")
    assert (outcome.problems, outcome.extraction) == ({}, None), outcome.messages
    assert outcome.cpu_seconds < 8
    assert all((tmp_path / "out" / os.fsdecode(name)).stat().st_nlink == 2 for name in links)
    remove_deep_files(tmp_path / "out", depth - 1, links)


def remove_deep_files(target: Path, depth: int, names: dict[bytes, int]) -> None:
    path = target.joinpath(*["d"] * depth)
    for name in names:
        os.unlink(path / os.fsdecode(name))
    for _ in range(depth):
        path.rmdir()
        path = path.parent


def shared_list(directories: int, entries: int) -> bytes:
    """Version 3: a root with ``directories`` directories, all of which have one and the same list of ``entries``.

    One segment: rootfs, vectors, inodes, the root's ``Dir``, the shared ``Dir``, its names. The entries are fifos.
    """
    inode_words = 5
    count = 1 + directories + entries
    inodes_at = 7
    root_dir = inodes_at + count * inode_words
    root_list = root_dir + 2
    shared_dir = root_list + 1 + 2 * directories
    shared_entries = shared_dir + 2
    names = shared_entries + 1 + 2 * entries
    words = [0] * (names + max(directories, entries))

    def struct_pointer(at: int, to: int, data: int, pointers: int) -> None:
        words[at] = (to - at - 1 & 0x3FFFFFFF) << 2 | data << 32 | pointers << 48

    def list_pointer(at: int, to: int, elements: int, data: int, pointers: int) -> None:
        words[at] = (to - at - 1 & 0x3FFFFFFF) << 2 | 1 | 7 << 32 | elements * (data + pointers) << 35
        words[to] = elements << 2 | data << 32 | pointers << 48

    def name_pointer(at: int, to: int) -> None:
        words[at] = (to - at - 1 & 0x3FFFFFFF) << 2 | 1 | 2 << 32 | 8 << 35

    struct_pointer(0, 1, 1, 2)
    words[1] = 3
    list_pointer(2, 4, 1, 0, 1)
    list_pointer(5, 6, count, 3, 2)
    for number in range(count):
        at = inodes_at + number * inode_words
        kind = Kind.DIRECTORY if number <= directories else Kind.FIFO
        words[at] = number + 1
        words[at + 1] = int(kind) | 0o755 << 16
        if kind is Kind.DIRECTORY:
            struct_pointer(at + 3, shared_dir if number else root_dir, 1, 1)
    for dir_at, list_at, length, first in (
        (root_dir, root_list, directories, 2),
        (shared_dir, shared_entries, entries, 2 + directories),
    ):
        list_pointer(dir_at + 1, list_at, length, 1, 1)
        for number in range(length):
            words[list_at + 1 + 2 * number] = first + number
            name_pointer(list_at + 2 + 2 * number, names + number)
    for number in range(max(directories, entries)):
        words[names + number] = int.from_bytes(b"%08d" % number, "little")
    return struct.pack("<II", 0, len(words)) + struct.pack(f"<{len(words)}Q", *words)


def test_one_list_for_all_directories(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    small = examine_limited(forge.raw_rootfs(shared_list(3, 2)), tmp_path / "small")
    assert (small.problems, small.walk, len(small.paths)) == ({}, None, 10)  # few share little: that is no harm
    assert os.stat(tmp_path / "small" / "00000000" / "00000001").st_nlink == 3
    reference = forge.raw_rootfs(shared_list(20_000, 20_000))
    assert os.stat(forge.path / "blobs").st_size < 4 * MEBI
    actions: list[Callable[[Image], object]] = [
        lambda image: list(image.tree.walk()),
        lambda image: image.tree.totals(),
        lambda image: image.tree.lookup(1, b"00000000"),
        lambda image: extract(image, tmp_path / "out"),
    ]

    def attempt(action: Callable[[Image], object]) -> tuple[str | None, float]:
        started = time.process_time()
        try:
            with open_image(reference) as image:
                action(image)
        except PuzzlefsError as error:
            return type(error).__name__, time.process_time() - started
        return None, time.process_time() - started

    for action in actions:
        error, seconds = limited(partial(attempt, action))
        assert error == FormatError.__name__
        assert seconds < 2
    assert not (tmp_path / "out").exists()


def test_a_directory_of_many_names_over_many_layers(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    names = {b"%06d" % number: number for number in range(2, 20_000)}
    between = [[f.symlink(1_000_000, b"x")] for _ in range(2000)]
    bottom = [f.symlink(number, b"t") for number in names.values()]
    outcome = examine_limited(forge.image([f.directory(1, names)], *between, bottom))
    assert (outcome.problems, len(outcome.paths)) == ({}, len(names) + 1), outcome.messages
    assert outcome.cpu_seconds < 8


def test_a_directory_that_goes_on_below_in_thousands_of_layers(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    layers = [
        [f.directory(1, {b"%06d" % number: number}, look_below=True), f.symlink(number, b"t")]
        for number in range(2, 4000)
    ]
    outcome = examine_limited(forge.image(*layers))
    assert (outcome.problems, len(outcome.paths)) == ({}, 3999), outcome.messages
    assert outcome.totals == (3999, 0)
    assert outcome.cpu_seconds < 8


def test_layers_beyond_number(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    assert examine_limited(forge.image(*[[f.directory(1)]] * 10_000)).opening == "FormatError"


# ---- documents


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'{"a":0},', b'"ab",', b"1e9,", b"999,"], ids=repr)
@pytest.mark.parametrize("document", ["index", "manifest"])
def test_documents_of_many_small_things(tmp_path: Path, document: str, unit: bytes) -> None:
    forge = Forge(tmp_path / "layout")
    many = unit * (15 * MEBI // len(unit)) + b"0"
    if document == "index":
        reference = forge.raw_index(b'{"schemaVersion":2,"manifests":[],"x":[' + many + b"]}")
    else:
        reference = forge.raw_manifest(b'{"schemaVersion":2,"x":[' + many + b"]}")
    outcome = examine_limited(reference, memory=360 << 20)
    if unit.startswith((b"[", b"{")):
        assert "absurdly many" in outcome.messages[0]
    assert outcome.opening in ("FormatError", "TagNotFoundError")
    assert outcome.cpu_seconds < 4


def test_fifty_thousand_tags(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    reference = forge.image([f.directory(1)])
    good = (forge.path / "index.json").read_bytes()
    start = good.index(b'[{"annotations"') + 1
    end = good.index(b'],"schemaVersion"')
    descriptor = good[start:end]
    others = b",".join(descriptor.replace(b'"hostile"', b'"t%d"' % number) for number in range(40_000))
    forge.raw_index(good[:end] + b"," + others + good[end:])
    outcome = examine_limited(reference)
    assert (outcome.opening, outcome.paths) == (None, [b"."]), outcome.messages
    assert outcome.cpu_seconds < 8


# ---- at the same time


def test_threads_that_read_one_image(tmp_path: Path) -> None:
    """Everything below the adapters is thread safe: the same answers from many threads at once."""
    forge = Forge(tmp_path / "layout")
    contents = [os.urandom(50_000) for _ in range(40)]
    files = [
        f.regular(number + 2, forge.chunk(data, compressed=bool(number % 2))) for number, data in enumerate(contents)
    ]
    reference = forge.image([f.directory(1, {b"%02d" % number: number + 2 for number in range(40)}), *files])
    failures: list[BaseException] = []
    with open_image(reference) as image:

        def work(seed: int) -> None:
            try:
                for step in range(200):
                    number = (seed * 7 + step * 13) % 40
                    entry = image.tree.lookup(1, b"%02d" % number)
                    assert image.tree.attributes(entry.ino).size == 50_000
                    assert image.read(entry.ino, 1000, 40_000) == contents[number][1000:41_000]
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_what_examining_reports_is_real(tmp_path: Path) -> None:
    """The examiner itself: it must notice what the tests above rely on."""
    with pytest.raises(AssertionError, match="MemoryError"):
        limited(lambda: bytearray(256 << 20)[0], memory=64 << 20)
    with pytest.raises(AssertionError, match="no answer"):
        limited(lambda: time.sleep(60), seconds=0.2)
    with pytest.raises(AssertionError, match="died"):
        limited(lambda: os._exit(3))
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        limited(lambda: 1 // 0)
    assert limited(lambda: Outcome(opening="x")).opening == "x"
