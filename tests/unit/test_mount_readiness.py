"""The FIFO that scripts wait for."""

from __future__ import annotations

import os
import select
import threading
import time
from pathlib import Path

import pytest

from puzzlefs.errors import InvalidArgumentError, NotFoundError
from puzzlefs.mount.readiness import ReadinessFifo

pytestmark = pytest.mark.unit


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([fd], [], [], 10)[0]
        return os.read(fd, 10)
    finally:
        os.close(fd)


def test_ready_does_not_wait(fifo: Path) -> None:
    began = time.monotonic()
    ReadinessFifo(fifo).ready()
    assert time.monotonic() - began < 1
    assert _read(fifo) == b"s"


def test_failed_waits_for_a_reader(fifo: Path) -> None:
    result: list[bool] = []
    teller = threading.Thread(target=lambda: result.append(ReadinessFifo(fifo).failed(10)))
    teller.start()
    assert _read(fifo) == b"f"
    teller.join()
    assert result == [True]


def test_failed_does_not_wait_for_ever(fifo: Path) -> None:
    began = time.monotonic()
    assert not ReadinessFifo(fifo).failed(0.2)
    assert 0.2 <= time.monotonic() - began < 3


def test_a_fifo_that_is_removed(fifo: Path) -> None:
    notifier = ReadinessFifo(fifo)
    fifo.unlink()
    assert not notifier.failed(5)
    notifier.ready()


def test_a_relative_path_stays_right(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fifo.parent)
    notifier = ReadinessFifo(Path("fifo"))
    monkeypatch.chdir("/")
    notifier.ready()
    assert _read(fifo) == b"s"


def test_a_link_to_a_fifo(fifo: Path) -> None:
    link = fifo.with_name("link")
    link.symlink_to(fifo)
    ReadinessFifo(link).ready()
    assert _read(fifo) == b"s"


def test_what_is_no_fifo(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (file, tmp_path, Path("/dev/null"), loop):
        with pytest.raises(InvalidArgumentError, match="FIFO"):
            ReadinessFifo(path)
    for path in (tmp_path / "nothing", file / "below"):
        with pytest.raises(NotFoundError):
            ReadinessFifo(path)
