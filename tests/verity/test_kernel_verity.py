"""The kernel's fs-verity: what it measures is what ``verity_digest`` computes, and its refusals are told
apart."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import MakeDisk

from puzzlefs.errors import IntegrityError, StorageError, VerityNotEnabledError, VerityUnavailableError
from puzzlefs.verity import enable, find_measurement, measure, verity_digest

pytestmark = pytest.mark.verity

SIZES = [0, 1, 4095, 4096, 4097, 128 * 4096, 128 * 4096 + 1, 128 * 128 * 4096 + 1]
OpenFile = Callable[[Path], int]


@pytest.fixture
def open_file() -> Iterator[OpenFile]:
    """Opens files for reading and closes them after the test, before the disk goes away."""
    fds: list[int] = []

    def opened(path: Path) -> int:
        fds.append(os.open(path, os.O_RDONLY))
        return fds[-1]

    yield opened
    for fd in fds:
        os.close(fd)


def pattern(size: int) -> bytes:
    unit = bytes(range(251))
    return (unit * (size // len(unit) + 1))[:size]


def test_measurement_is_what_user_space_computes(make_disk: MakeDisk, open_file: OpenFile) -> None:
    disk = make_disk(size=128 << 20)
    for size in SIZES:
        path = disk.root / "file"
        path.write_bytes(pattern(size))
        fd = open_file(path)
        with pytest.raises(VerityNotEnabledError, match=f"{path} does not have fs-verity enabled"):
            measure(fd)
        assert find_measurement(fd) is None

        enable(fd)
        enable(fd)

        assert measure(fd) == verity_digest(pattern(size)), size
        assert find_measurement(fd) == measure(fd)
        assert path.read_bytes() == pattern(size)
        with pytest.raises(PermissionError):
            path.open("r+b")
        path.unlink()


def test_tmpfs_cannot(tmp_path: Path, open_file: OpenFile) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    fd = open_file(path)
    for operation in (enable, measure):
        with pytest.raises(VerityUnavailableError) as error:
            operation(fd)
        assert str(error.value).startswith("the tmpfs file system at /run has no fs-verity; copy the image to ext4")
    assert find_measurement(fd) is None


def test_ext4_without_the_feature_cannot_until_it_is_switched_on(make_disk: MakeDisk, open_file: OpenFile) -> None:
    disk = make_disk(verity=False)
    path = disk.root / "file"
    path.write_bytes(b"data")
    fd = open_file(path)
    for operation in (enable, measure):
        with pytest.raises(VerityUnavailableError) as error:
            operation(fd)
        assert error.value.message == f"the ext4 file system at {disk.root} was made without the verity feature"
        assert error.value.hint == f"switch it on with `tune2fs -O verity {disk.device}`"
    assert find_measurement(fd) is None

    subprocess.run(["tune2fs", "-O", "verity", disk.device], check=True, capture_output=True)
    enable(fd)
    assert measure(fd) == verity_digest(b"data")


def test_open_for_writing_is_refused(make_disk: MakeDisk, open_file: OpenFile) -> None:
    path = make_disk().root / "file"
    with path.open("wb") as writer:
        writer.write(b"data")
        writer.flush()
        fd = open_file(path)
        with pytest.raises(StorageError, match="some process has it open for writing") as error:
            enable(fd)
    assert isinstance(error.value.__cause__, OSError)
    assert error.value.__cause__.errno == errno.ETXTBSY
    enable(fd)
    assert measure(fd) == verity_digest(b"data")


def test_read_only_file_system_is_refused_but_can_be_measured(make_disk: MakeDisk) -> None:
    disk = make_disk()
    for name in ("sealed", "open"):
        (disk.root / name).write_bytes(b"data")
    fd = os.open(disk.root / "sealed", os.O_RDONLY)
    enable(fd)
    os.close(fd)
    disk.unmount()
    disk.mount("ro")

    fd = os.open(disk.root / "open", os.O_RDONLY)
    with pytest.raises(StorageError, match="mounted read-only"):
        enable(fd)
    os.close(fd)
    fd = os.open(disk.root / "sealed", os.O_RDONLY)
    assert measure(fd) == verity_digest(b"data")
    os.close(fd)


def test_somebody_elses_file_is_refused(make_disk: MakeDisk, open_file: OpenFile) -> None:
    path = make_disk().root / "file"
    path.write_bytes(b"data")
    path.chmod(0o644)
    fd = open_file(path)
    os.seteuid(65534)
    try:
        with pytest.raises(StorageError, match="as the owner of the file or as root"):
            enable(fd)
    finally:
        os.seteuid(0)


def test_another_algorithm_is_not_taken_for_ours(make_disk: MakeDisk, open_file: OpenFile) -> None:
    path = make_disk().root / "file"
    path.write_bytes(b"data")
    subprocess.run(["fsverity", "enable", "--hash-alg=sha512", path], check=True)
    fd = open_file(path)
    enable(fd)
    for operation in (measure, find_measurement):
        with pytest.raises(IntegrityError, match=f"{path}.*found sha512:[0-9a-f]{{128}}"):
            operation(fd)


def test_corruption_on_the_disk_becomes_an_error_of_the_reader(make_disk: MakeDisk, open_file: OpenFile) -> None:
    disk = make_disk()
    data = bytearray(os.urandom(5 * 4096))
    path = disk.root / "file"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    enable(fd)
    os.close(fd)
    block = bytes(data[2 * 4096 : 3 * 4096])
    disk.corrupt(block, bytes([block[0] ^ 1]) + block[1:])

    fd = open_file(path)
    assert measure(fd) == verity_digest(data)
    assert os.pread(fd, 4096, 0) == data[:4096]
    with pytest.raises(OSError, match="Input/output error"):
        os.pread(fd, 4096, 2 * 4096)
