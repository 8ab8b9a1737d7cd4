"""fs-verity in user space: pinned digests, streaming, memory; and what the kernel's refusals mean."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlefs.errors import VerityNotEnabledError, VerityUnavailableError
from puzzlefs.verity import VerityHasher, enable, find_measurement, kernel, measure, verity_digest
from puzzlefs.verity.digest import verity_digest_of_file
from puzzlefs.verity.kernel import FileSystem, explain, file_system_of, parse_mountinfo

pytestmark = pytest.mark.unit

BLOCK = 4096

# Printed by `fsverity digest` for files of these sizes that repeat the bytes 0 to 250.
PINNED = {
    0: "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95",
    1: "b803429503d95915829b29fdbc8bbad142f3abfd11b1cadf5526582e685c0551",
    4095: "5f4953aad672b0188023d6cd6fbce9d09508eb7dad165b6298ce0086bc1e72db",
    4096: "13e9b8848ae484a36acb3f3cac0ceb2f7601e96633d15c92f9bd3dd44e492157",
    4097: "b0d074abef4d544404facfab6ba242f6a8ccbde90f1325cd286f3c8aa8d0f8aa",
    65536: "c6f25f33d20d3e6bcd188017a754ea5c8b64b5c3aebbe4b0c7bb0f57e92ba6d6",
    128 * BLOCK: "d82861203d50ae9b60948504a704f35f5118bd229aeb1a22d6dae47b1767c4c4",
    128 * BLOCK + 1: "4dc6905041c9c4ee73e13b53f63f5d289c46da359b664a965ead7f8cc4d799d4",
    128 * 128 * BLOCK: "196650e8bd05f8516c0ede56deeb4d1ff2be9809dc2d827261db4a7773957567",
    128 * 128 * BLOCK + 1: "acba6554fbff4e8b2fc0361086b9e8ed6afbbd3196ade159c0f3e2bf9ecb2ed1",
}


def pattern(size: int) -> bytes:
    unit = bytes(range(251))
    return (unit * (size // len(unit) + 1))[:size]


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[int]:
    """A file to read and write."""
    fd = os.open(tmp_path / "scratch", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("size", PINNED)
def test_digest_is_the_pinned_one(size: int, scratch: int) -> None:
    data = pattern(size)
    hasher = VerityHasher()
    hasher.update(data)
    os.write(scratch, data)

    assert verity_digest(data).hex() == PINNED[size]
    assert hasher.digest().hex() == PINNED[size]
    assert verity_digest_of_file(scratch).hex() == PINNED[size]


@pytest.mark.interop
@pytest.mark.skipif(not shutil.which("fsverity"), reason="the fsverity tool is not installed (apt: fsverity)")
@pytest.mark.parametrize("size", [*PINNED, 64 * 1024 * 1024 + 1, 300 * 1024 * 1024 + 4097])
def test_digest_is_what_the_fsverity_tool_prints(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, size)
    with path.open("r+b") as file:
        file.write(pattern(min(size, 100_000)))
        printed = subprocess.run(
            ["fsverity", "digest", "--compact", path], check=True, capture_output=True, text=True
        ).stdout.strip()

        assert verity_digest_of_file(file.fileno()).hex() == printed


@given(data=st.binary(max_size=3 * BLOCK), repeat=st.integers(1, 200), cuts=st.lists(st.integers(1, 700_000)))
@settings(max_examples=60, deadline=None)
def test_any_cutting_of_the_stream_gives_the_same_digest(data: bytes, repeat: int, cuts: list[int]) -> None:
    whole = data * repeat
    hasher = VerityHasher()
    rest = memoryview(whole)
    for cut in cuts:
        hasher.update(rest[:cut])
        rest = rest[cut:]
    hasher.update(rest)

    assert hasher.digest() == verity_digest(whole)


@given(sizes=st.lists(st.sampled_from([0, 1, 31, 32, 4064, 4095, 4096, 4097, 524_288]), max_size=12))
@settings(max_examples=60, deadline=None)
def test_asking_for_the_digest_does_not_end_the_stream(sizes: list[int]) -> None:
    hasher = VerityHasher()
    so_far = b""
    for size in sizes:
        piece = os.urandom(size)
        so_far += piece
        hasher.update(piece)

        assert hasher.digest() == hasher.digest() == verity_digest(so_far)


@given(data=st.binary(min_size=1, max_size=5 * BLOCK), where=st.integers(min_value=0), bit=st.integers(0, 7))
def test_every_bit_and_the_length_count(data: bytes, where: int, bit: int) -> None:
    flipped = bytearray(data)
    flipped[where % len(data)] ^= 1 << bit

    assert verity_digest(flipped) != verity_digest(data)
    assert verity_digest(data + b"\0") != verity_digest(data)


def test_any_contiguous_buffer_is_hashed_as_bytes() -> None:
    words = memoryview(bytearray(pattern(8 * BLOCK))).cast("Q")
    hasher = VerityHasher()
    hasher.update(words)

    expected = verity_digest(pattern(8 * BLOCK))
    assert hasher.digest() == expected
    assert verity_digest(words) == expected


def test_file_digest_neither_uses_nor_moves_the_position(scratch: int) -> None:
    os.write(scratch, pattern(BLOCK + 1))
    os.lseek(scratch, 17, os.SEEK_SET)

    assert verity_digest_of_file(scratch) == verity_digest(pattern(BLOCK + 1))
    assert os.lseek(scratch, 0, os.SEEK_CUR) == 17


def test_memory_does_not_grow_with_the_file(scratch: int) -> None:
    os.truncate(scratch, 64 * 1024 * 1024)
    tracemalloc.start()
    try:
        verity_digest_of_file(scratch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 2 * 1024 * 1024


def test_ioctl_numbers_are_those_of_the_kernel_headers() -> None:
    def numbers(machine: str) -> tuple[int, int]:
        return (
            kernel._ioctl_number(machine, read=False, number=133, size=128),
            kernel._ioctl_number(machine, read=True, number=134, size=4),
        )

    for machine in ("x86_64", "aarch64", "riscv64", "s390x"):
        assert numbers(machine) == (0x40806685, 0xC0046686)
    for machine in ("ppc64le", "mips64", "sparc64", "alpha"):
        assert numbers(machine) == (0x80806685, 0xC0046686)
    assert numbers(platform.machine()) == (kernel.FS_IOC_ENABLE_VERITY, kernel.FS_IOC_MEASURE_VERITY)
    assert kernel._ENABLE_ARG.size == 128


MOUNTINFO = (
    b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
    b"23 22 0:5 / /proc rw master:1 propagate_from:2 - proc proc rw\n"
    b"31 22 7:0 / /mnt/with\\040blank\\134 rw shared:9 - f2fs /dev/loop\\0400 rw,lazytime\n"
    b"222 22 0:9 / /mnt - - none\n"
)


@pytest.mark.parametrize(
    ("mount_id", "expected"),
    [
        (b"22", FileSystem("ext4", "/dev/vda", "/")),
        (b"23", FileSystem("proc", "proc", "/proc")),
        (b"31", FileSystem("f2fs", "/dev/loop 0", "/mnt/with blank\\")),
        (b"2", FileSystem("", "", "")),
        (b"", FileSystem("", "", "")),
    ],
)
def test_mountinfo(mount_id: bytes, expected: FileSystem) -> None:
    assert parse_mountinfo(MOUNTINFO, mount_id=mount_id) == expected


def test_file_system_of_an_open_file() -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)
    try:
        assert file_system_of(fd).kind == "proc"
        assert file_system_of(fd).mount_point == "/proc"
    finally:
        os.close(fd)


EXT4 = FileSystem("ext4", "/dev/vda", "/srv")
TMPFS = FileSystem("tmpfs", "tmpfs", "/tmp")
UNKNOWN = FileSystem("", "", "")


@pytest.mark.parametrize(
    ("refusal", "file_system", "kernel_has_it", "blamed", "remedy"),
    [
        (errno.ENOTTY, TMPFS, None, "the tmpfs file system at /tmp has no fs-verity", "mkfs.ext4 -O verity"),
        (errno.ENOTTY, UNKNOWN, None, "the file's file system has no fs-verity", "mkfs.ext4 -O verity"),
        (errno.ENOTTY, EXT4, False, "this kernel (", "CONFIG_FS_VERITY"),
        (errno.EOPNOTSUPP, EXT4, False, "this kernel (", "CONFIG_FS_VERITY"),
        (errno.EOPNOTSUPP, EXT4, True, "the ext4 file system at /srv", "tune2fs -O verity /dev/vda"),
        (
            errno.EOPNOTSUPP,
            FileSystem("f2fs", "/dev/sdb", "/"),
            True,
            "the f2fs",
            "fsck.f2fs -O verity /dev/sdb",
        ),
        (errno.EOPNOTSUPP, FileSystem("ext4", "", ""), True, "the ext4", "tune2fs -O verity DEVICE"),
        (errno.EOPNOTSUPP, FileSystem("btrfs", "/dev/sdb", "/b"), True, "the btrfs", "copy the image to"),
        (errno.EOPNOTSUPP, EXT4, None, "or this kernel", "if the kernel has it, switch it on with `tune2fs"),
    ],
)
def test_refusals_say_who_lacks_it_and_how_to_get_it(
    refusal: int, file_system: FileSystem, kernel_has_it: bool | None, blamed: str, remedy: str
) -> None:
    error = explain(refusal, file_system, kernel_has_it=kernel_has_it)

    assert isinstance(error, VerityUnavailableError)
    assert blamed in error.message
    assert remedy in error.hint
    assert "\n" not in str(error)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no tmpfs at /dev/shm")
def test_this_kernel_on_tmpfs() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        for operation in (enable, measure):
            with pytest.raises(VerityUnavailableError, match="the tmpfs file system at /dev/shm has no fs-verity"):
                operation(file.fileno())
        assert find_measurement(file.fileno()) is None


def test_this_kernel_on_the_disk(tmp_path: Path) -> None:
    """Whatever this machine can do, ``measure`` and ``enable`` agree about it."""
    path = tmp_path / "file"
    path.write_bytes(b"data")
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises((VerityNotEnabledError, VerityUnavailableError)) as before:
            measure(fd)
        assert find_measurement(fd) is None
        if isinstance(before.value, VerityNotEnabledError):
            enable(fd)
            assert measure(fd) == find_measurement(fd) == verity_digest(b"data")
        else:
            with pytest.raises(VerityUnavailableError) as refused:
                enable(fd)
            assert str(refused.value) == str(before.value)
    finally:
        os.close(fd)
