"""This machine's kernel is older than this program likes, which is why some things are tried in it."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import puzzlefs

pytestmark = pytest.mark.verity

_KILLS = 4
_SENDS_AGAIN = (6, 9)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    for number in range(40):
        (directory / f"file-{number}").write_bytes(os.urandom(20_000))
    return directory


@pytest.fixture
def point(tmp_path: Path, source: Path) -> Iterator[Path]:
    directory = tmp_path / "mnt"
    directory.mkdir()
    puzzlefs("build", source, tmp_path / "images:all")
    puzzlefs("mount", tmp_path / "images:all", directory)
    yield directory
    puzzlefs("umount", directory)


def _sum(directory: Path) -> str:
    total = hashlib.sha256()
    for name in sorted(os.listdir(directory)):
        total.update((directory / name).read_bytes())
    return total.hexdigest()


def test_requests_that_no_kernel_sends_again(source: Path, point: Path) -> None:
    from puzzlefs.mount.status import mount_status

    version = tuple(int(word) for word in os.uname().release.split(".")[:2])
    if version >= _SENDS_AGAIN:
        pytest.skip(f"Linux {os.uname().release} sends requests again")
    sums: list[str] = []

    def read() -> None:
        for _ in range(2):
            Path("/proc/sys/vm/drop_caches").write_text("3")
            sums.append(_sum(point))

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(_KILLS):
        os.kill(mount_status(point).server_pid, signal.SIGKILL)
    for reader in readers:
        reader.join(200)
        assert not reader.is_alive(), "a reader hangs"
    assert set(sums) == {_sum(source)}
    assert len(sums) == len(readers) * 2
    assert mount_status(point).restarts == _KILLS
