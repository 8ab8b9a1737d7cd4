"""What the engine on the kernel's protocol promises beyond what every engine does.

A server that is stopped (SIGSTOP) answers nothing. What still works then comes from the kernel's caches.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import Built, Mount, build
from odd_tree import BIG_FILE, MANY
from support.layouts import copy_layout

pytestmark = pytest.mark.mount

SMALL_FILES = 40
TIMEOUT = 20


@pytest.fixture(scope="module")
def engine() -> str:
    return "kernel"


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def in_time(program: str, *words: str | Path) -> str:
    """What a Python program prints; it must not wait for anybody who has stopped."""
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout


LOOK = """
import os, sys
found, directories = [], [sys.argv[1]]
for top in directories:
    for entry in os.scandir(top):
        if entry.is_dir(follow_symlinks=False):
            directories.append(entry.path)
        target = os.readlink(entry.path) if entry.is_symlink() else None
        found.append((entry.path, tuple(os.lstat(entry.path)), target))
print(sorted(map(repr, found)))
"""

READ = """
import hashlib, os, sys
for path in sys.argv[1:]:  # not open(), which asks each file whether it is a terminal
    fd, hasher = os.open(path, os.O_RDONLY), hashlib.sha256()
    while block := os.read(fd, 1 << 20):
        hasher.update(block)
    os.close(fd)
    print(hasher.hexdigest())
"""


def digests(*paths: Path) -> str:
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in paths)


def test_what_was_looked_at_needs_no_server(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        first = in_time(LOOK, mount.path)
        assert len(first) > 100_000
        with stopped(mount.server):
            assert in_time(LOOK, mount.path) == first


def test_what_was_read_needs_no_server_not_even_to_open_it(odd: Built, mounted: Mount) -> None:
    expected = digests(odd.source / os.fsdecode(BIG_FILE))
    with mounted(odd.image("v3-zstd")) as mount:
        path = mount.path / os.fsdecode(BIG_FILE)
        assert in_time(READ, path) == expected
        with stopped(mount.server):
            assert in_time(READ, path) == expected


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A directory of small files, which share a few chunks."""
    base = tmp_path_factory.mktemp("small")
    built = Built(base / "tree", base, {})
    built.source.mkdir()
    for number in range(SMALL_FILES):
        (built.source / f"{number:03}").write_bytes(number.to_bytes(2, "big") * (300 + number))
    (built.source / "empty").touch()
    (built.source / "link").symlink_to("001")
    for tag, options in (("v3", ()), ("v3-zstd", ("-c",))):
        built.digests[tag] = build(built.source, built.image(tag), *options)
    return built


@pytest.mark.parametrize("tag", ["v3", "v3-zstd"])
def test_small_files_come_with_their_neighbours(small_files: Built, mounted: Mount, tag: str) -> None:
    names = [f"{number:03}" for number in range(SMALL_FILES)]
    with mounted(small_files.image(tag)) as mount:
        for name in names:  # the kernel must know an inode before it can have content
            assert (mount.path / name).stat().st_size == (small_files.source / name).stat().st_size
        assert in_time(READ, mount.path / names[0]) == digests(small_files.source / names[0])
        with stopped(mount.server):
            shown = in_time(READ, *(mount.path / name for name in names))
    assert shown == digests(*(small_files.source / name for name in names))


def test_a_small_read_brings_its_chunk_along(odd: Built, mounted: Mount) -> None:
    data = (odd.source / os.fsdecode(BIG_FILE)).read_bytes()
    middle = len(data) // 2 & -mmap.PAGESIZE
    with mounted(odd.image("v3")) as mount, open(mount.path / os.fsdecode(BIG_FILE), "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        assert os.pread(file.fileno(), 1, middle) == data[middle : middle + 1]
        resident = _resident_pages(file.fileno(), len(data))
        assert middle // mmap.PAGESIZE in resident
        # the smallest chunk that a builder makes has 16 KiB, and a page that two chunks share does not come along
        assert 3 <= len(resident) <= (256 << 10) // mmap.PAGESIZE
        assert resident == list(range(resident[0], resident[-1] + 1))
        with stopped(mount.server):
            for page in resident:
                offset = page * mmap.PAGESIZE
                assert os.pread(file.fileno(), mmap.PAGESIZE, offset) == data[offset : offset + mmap.PAGESIZE]


def _resident_pages(fd: int, size: int) -> list[int]:
    """The pages of a file that are in the page cache (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found) == 0
    assert libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
    return [number for number, byte in enumerate(found) if byte & 1]


def test_listings_show_attributes_whoever_asks_in_whichever_way(odd: Built, mounted: Mount) -> None:
    source = {entry.name: entry for entry in os.scandir(odd.source)}
    with mounted(odd.image("v3")) as mount:
        assert set(os.listdir(mount.path)) == source.keys()
        for entry in os.scandir(mount.path):
            expected = source[entry.name].stat(follow_symlinks=False)
            shown = entry.stat(follow_symlinks=False)
            assert stat.S_IFMT(shown.st_mode) == stat.S_IFMT(expected.st_mode)
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(expected.st_mode)
        for _ in range(2):
            many = [_sizes(top / os.fsdecode(MANY)) for top in (mount.path, odd.source)]
            assert many[0] == many[1]


def _sizes(directory: Path) -> dict[str, int]:
    return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(directory)}


def test_a_slow_host_stops_only_who_waits_for_it(odd: Built, mounted: Mount, tmp_path: Path) -> None:
    data = (odd.source / os.fsdecode(BIG_FILE)).read_bytes()
    copy_layout(odd.layout / "new", tmp_path / "host" / "layout")
    build(tmp_path / "host", f"{tmp_path / 'outer'}:t")
    with (
        mounted(f"{tmp_path / 'outer'}:t") as outer,
        mounted(f"{outer.path / 'layout'}:v3") as inner,
        contextlib.ExitStack() as stack,
    ):
        big = inner.path / os.fsdecode(BIG_FILE)
        assert big.stat().st_size == len(data)
        results: list[bytes] = []

        def read(offset: int) -> None:
            with open(big, "rb", buffering=0) as file:
                results.append(os.pread(file.fileno(), 10, offset))

        offsets = [len(data) - 100_000, len(data) // 2, 100]
        with stopped(outer.server):
            readers = [threading.Thread(target=read, args=(offset,), daemon=True) for offset in offsets]
            for reader in readers:
                reader.start()
                time.sleep(0.1)
            # three servers wait for the host now; a fourth one answers
            assert in_time("import os, sys; print(len(os.listdir(sys.argv[1])))", inner.path / "links") > "0"
            assert in_time("import os, sys; print(os.stat(sys.argv[1]).st_size)", inner.path / "bin" / "script")
            assert results == []
            assert all(reader.is_alive() for reader in readers)
        for reader in readers:
            reader.join(TIMEOUT)
        assert sorted(results) == sorted(data[offset : offset + 10] for offset in offsets)
        stack.close()
        assert in_time("import os, sys; print(os.stat(sys.argv[1]).st_size)", inner.path / "bin" / "program")


def test_many_readers_of_the_same_small_files(small_files: Built, mounted: Mount) -> None:
    read = "import os, sys; os.chdir(sys.argv[1]); print(sum(len(open(n, 'rb').read()) for n in os.listdir()))"
    total = sum(path.stat().st_size for path in small_files.source.iterdir() if not path.is_symlink())
    total += (small_files.source / "001").stat().st_size
    for _ in range(3):
        with mounted(small_files.image("v3")) as mount:
            command = [sys.executable, "-c", read, str(mount.path)]
            readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
            assert [int(reader.communicate(timeout=TIMEOUT)[0]) for reader in readers] == [total] * 6
