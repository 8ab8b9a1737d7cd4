"""Where commands are interrupted, and by what."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_calls import FaultyCommand

SMALL_WORTH_PROCESSES = (
    "from puzzlefs.builder import processes; processes.WORTH_PROCESSES = 0; "
    "from puzzlefs.blobs import writer; writer._WORTH_NAMING = 1"
)


@pytest.fixture(scope="session", autouse=True)
def _compiler() -> None:
    """The library that makes calls fail is compiled here."""
    if shutil.which("gcc") is None:
        if os.environ.get("CI"):
            pytest.fail("gcc is not installed", pytrace=False)
        pytest.skip("gcc is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory in memory, if there is one with room: on a disk, each sync waits for what others write."""
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 128 << 20:
            made = Path(tempfile.mkdtemp(prefix="puzzlefs-faults-", dir=memory))
            yield made
            shutil.rmtree(made)
            return
    yield tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyCommand]:
    """The command, with calls that fail."""
    with FaultyCommand(tmp_path_factory.mktemp("command")) as made:
        yield made


@pytest.fixture(scope="module")
def command_with_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyCommand]:
    """The same, with processes as workers; small trees would have threads otherwise."""
    with FaultyCommand(tmp_path_factory.mktemp("command"), SMALL_WORTH_PROCESSES) as made:
        yield made
