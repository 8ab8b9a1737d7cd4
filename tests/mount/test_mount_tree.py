"""A mount shows what the source shows: every entry, every attribute, every byte."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from listing import listing
from mounting import VARIANTS, Built, Mount
from odd_tree import BIG_FILE, BIG_FILE_SIZE, MANY, MANY_COUNT

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def source(odd: Built) -> Path:
    return odd.source


@pytest.mark.parametrize("tag", VARIANTS)
def test_whole_tree(odd: Built, mounted: Mount, tag: str) -> None:
    times = tag == "v3-zstd"
    expected = listing(odd.source, mtime=times)
    assert len(expected) > MANY_COUNT
    with mounted(odd.image(tag)) as mount:
        shown = listing(mount.path, mtime=times)
    assert shown.keys() == expected.keys()
    different = {path: (shown[path], expected[path]) for path in expected if shown[path] != expected[path]}
    assert different == {}


def test_attributes_that_only_a_mount_has(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        root = mount.path.lstat()
        assert root.st_ino == 1
        assert root.st_mtime_ns == root.st_atime_ns == root.st_ctime_ns == 0
        subdirectories = sum(entry.is_dir() for entry in os.scandir(odd.source))
        assert root.st_nlink == 2 + subdirectories
        numbers: dict[int, Path] = {}
        for directory, _, files in os.walk(mount.path):
            for name in files:
                path = Path(directory, name)
                found = path.lstat()
                assert found.st_blocks == -(-found.st_size // 512), path
                assert found.st_dev == root.st_dev
                if found.st_nlink == 1:
                    assert numbers.setdefault(found.st_ino, path) == path
        for entry in os.scandir(mount.path / "dev"):
            assert entry.inode() == entry.stat(follow_symlinks=False).st_ino


def test_types_in_listings(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        kinds = {name: kind for name, _, _, kind in _raw_listing(os.fsencode(mount.path / "dev"))}
        links = {name: kind for name, _, _, kind in _raw_listing(os.fsencode(mount.path / "links"))}
    fifo, character, directory, block, link, sock, regular = 1, 2, 4, 6, 10, 12, 8
    assert kinds[b"."] == kinds[b".."] == directory
    assert (kinds[b"fifo"], kinds[b"null"], kinds[b"sda17"], kinds[b"socket"]) == (fifo, character, block, sock)
    assert (links[b"first"], links[b"dangling"]) == (regular, link)


def test_dot_and_dot_dot(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        deep = mount.path / "deep" / "deep"
        shown = {name: ino for name, ino, _, _ in _raw_listing(os.fsencode(deep))}
        assert shown[b"."] == deep.stat().st_ino
        assert shown[b".."] == deep.parent.stat().st_ino
        assert sorted(os.listdir(deep)) == ["deep"]


def test_big_directory_has_stable_offsets(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        path = os.fsencode(mount.path / os.fsdecode(MANY))
        first = _raw_listing(path)
        assert len(first) == MANY_COUNT + 2
        names = [name for name, _, _, _ in first]
        assert len(set(names)) == len(names)
        offsets = [offset for _, _, offset, _ in first]
        assert len(set(offsets)) == len(offsets)
        for position in (0, 1, 2, 3, 117, 5_000, MANY_COUNT, MANY_COUNT + 1):
            assert [name for name, _, _, _ in _raw_listing(path, offsets[position])] == names[position + 1 :]


def test_statfs(odd: Built, mounted: Mount) -> None:
    content = inodes = 0
    seen = set()
    for path, found in _walk(odd.source):
        if found.st_ino not in seen:
            seen.add(found.st_ino)
            inodes += 1
            content += found.st_size if stat.S_ISREG(found.st_mode) else 0
        assert path
    with mounted(odd.image("v3")) as mount:
        totals = os.statvfs(mount.path)
    assert totals.f_files == inodes
    assert totals.f_blocks == -(-content // totals.f_frsize)
    assert (totals.f_bfree, totals.f_bavail, totals.f_ffree) == (0, 0, 0)
    assert totals.f_namemax == 255
    assert totals.f_flag & os.ST_RDONLY
    assert totals.f_flag & os.ST_NOSUID
    assert totals.f_flag & os.ST_NODEV


@pytest.mark.parametrize("tag", ["v1", "v3-zstd"])
def test_reads_anywhere(odd: Built, mounted: Mount, tag: str) -> None:
    data = (odd.source / os.fsdecode(BIG_FILE)).read_bytes()
    rnd = random.Random(3)
    with mounted(odd.image(tag)) as mount:
        fd = os.open(mount.path / os.fsdecode(BIG_FILE), os.O_RDONLY)
        try:
            for _ in range(300):
                offset = rnd.randrange(BIG_FILE_SIZE + 10_000)
                size = rnd.choice((1, 100, 4096, 70_000, 700_000))
                assert os.pread(fd, size, offset) == data[offset : offset + size], (offset, size)
            assert os.pread(fd, 100, BIG_FILE_SIZE) == b""
            assert os.pread(fd, 100, BIG_FILE_SIZE - 1) == data[-1:]
        finally:
            os.close(fd)


def test_mmap(odd: Built, mounted: Mount) -> None:
    name = os.fsdecode(BIG_FILE)
    data = (odd.source / name).read_bytes()
    with (
        mounted(odd.image("v3-zstd")) as mount,
        open(mount.path / name, "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping,
    ):
        for offset in range(0, BIG_FILE_SIZE, 99_991):
            assert mapping[offset : offset + 5] == data[offset : offset + 5]
        assert hashlib.sha256(mapping).digest() == hashlib.sha256(data).digest()


def test_programs_run(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3-zstd")) as mount:
        assert subprocess.run([mount.path / "bin" / "program"], check=False).returncode == 0
        result = subprocess.run([mount.path / "bin" / "script"], capture_output=True, check=True)
        assert result.stdout == b"ran from the mount\n"


def test_concurrent_readers(odd: Built, mounted: Mount) -> None:
    names = [path for path, found in _walk(odd.source) if stat.S_ISREG(found.st_mode) and found.st_size]
    expected = {path: hashlib.sha256((odd.source / os.fsdecode(path)).read_bytes()).digest() for path in names}

    def read_all(mount: Path, seed: int) -> int:
        order = names * 2
        random.Random(seed).shuffle(order)
        for path in order:
            data = (mount / os.fsdecode(path)).read_bytes()
            assert hashlib.sha256(data).digest() == expected[path], path
        return len(order)

    with mounted(odd.image("v3-zstd")) as mount, ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda seed: read_all(mount.path, seed), range(8)))
    assert counts == [2 * len(names)] * 8


def test_two_mounts_of_one_image(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as one, mounted(odd.image("v3")) as two:
        assert one.pid != two.pid
        assert one.path.stat().st_dev != two.path.stat().st_dev
        assert listing(one.path / "links", mtime=True) == listing(two.path / "links", mtime=True)
        assert (one.path / "big" / "text").read_bytes() == (two.path / "big" / "text").read_bytes()


def test_over_a_directory_that_is_not_empty(odd: Built, mounted: Mount, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    (below / "hidden").write_text("still here afterwards")
    with mounted(odd.image("v3"), at=below):
        assert "hidden" not in os.listdir(below)
        assert "links" in os.listdir(below)
    assert os.listdir(below) == ["hidden"]


def test_names_that_are_not_there(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        for _ in range(2):  # the second answer comes from the kernel
            with pytest.raises(FileNotFoundError):
                os.stat(mount.path / "bin" / "nothing")
        with pytest.raises(OSError, match="File name too long"):
            os.stat(os.fsencode(mount.path) + b"/" + b"n" * 256)
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(mount.path / "xattrs" / "file", "user.nothing")
        with pytest.raises(NotADirectoryError):
            os.stat(mount.path / "big" / "text" / "below")


def test_small_xattr_buffers(odd: Built, mounted: Mount) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with mounted(odd.image("v3")) as mount:
        path = os.fsencode(mount.path / "xattrs" / "file")
        buffer = ctypes.create_string_buffer(300)
        assert libc.getxattr(path, b"user.binary", buffer, 256) == 256
        assert libc.getxattr(path, b"user.binary", None, 0) == 256
        assert libc.getxattr(path, b"user.binary", buffer, 255) == -1
        assert os.strerror(ctypes.get_errno()) == "Numerical result out of range"
        assert libc.listxattr(path, buffer, 3) == -1
        assert os.strerror(ctypes.get_errno()) == "Numerical result out of range"
        assert libc.getxattr(path, b"user.empty", buffer, 300) == 0


def _walk(top: Path) -> list[tuple[bytes, os.stat_result]]:
    root = os.fsencode(top)
    found = [(b".", os.lstat(root))]
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            found.append((os.path.relpath(path, root), os.lstat(path)))
    return found


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("kind", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


def _raw_listing(path: bytes, start: int = 0) -> list[tuple[bytes, int, int, int]]:
    """``(name, d_ino, d_off, d_type)`` as getdents64(2) gives them, from an offset on."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.lseek(fd, start, os.SEEK_SET)
        buffer = ctypes.create_string_buffer(4096)
        result = []
        while (size := libc.syscall(217 if os.uname().machine == "x86_64" else 61, fd, buffer, 4096)) > 0:
            position = 0
            while position < size:
                dirent = _Dirent.from_buffer_copy(buffer.raw[position:].ljust(ctypes.sizeof(_Dirent), b"\0"))
                result.append((dirent.name, dirent.ino, dirent.offset, dirent.kind))
                position += dirent.length
        assert size == 0, os.strerror(ctypes.get_errno())
        return result
    finally:
        os.close(fd)
