"""Running the real command, and looking at the mounts and processes that it makes."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-m", "puzzlefs_cli"]
_TIMEOUT = 60
_BAD_LINE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")


def run_puzzlefs(*words: str | Path, check: bool = True, **named: object) -> subprocess.CompletedProcess[str]:
    """Run the command; fail if it fails, unless ``check`` is false."""
    result = subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=_TIMEOUT, check=False, **named
    )  # type: ignore[call-overload]
    assert not check or result.returncode == 0, f"{words}: {result.returncode}: {result.stderr}"
    return result


def build(source: Path, image: str, *options: str) -> str:
    """Build an image and return its digest."""
    printed = run_puzzlefs("build", *options, source, image).stdout
    match = re.fullmatch(r"puzzlefs image manifest digest: ([0-9a-f]{64})\n", printed)
    assert match is not None, printed
    return match[1]


def is_mounted(path: Path) -> bool:
    """Whether the kernel lists a mount at ``path``."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(line.split(" ")[4] == str(path) for line in mounts)


def wait_for_end(pid: int, timeout: float = 20) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], timeout)[0], f"process {pid} did not end"
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Mounted:
    """A mount that is being served."""

    path: Path
    log_file: Path

    @property
    def pid(self) -> int:
        """The daemon, as its log names it."""
        match = re.search(r"puzzlefs\[(\d+)\]", self.log_file.read_text())
        assert match is not None, "the log is empty"
        return int(match[1])

    def log_lines(self) -> list[str]:
        """What the daemon has logged."""
        return self.log_file.read_text(errors="replace").splitlines()

    def bad_lines(self) -> list[str]:
        """What it has logged as a warning or worse."""
        return [line for line in self.log_lines() if _BAD_LINE.search(line)]


Mount = Callable[..., AbstractContextManager[Mounted]]
Foreground = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@dataclass(frozen=True)
class Built:
    """A tree and the images that were made of it."""

    source: Path
    layout: Path
    digests: dict[str, str]

    def image(self, tag: str) -> str:
        return f"{self.layout / ('old' if tag.startswith(('v1', 'v2')) else 'new')}:{tag}"


ENGINES = ("kernel", "pyfuse3")
"""Who speaks to the kernel; every test of a working mount runs with each of them."""

VARIANTS: dict[str, Sequence[str]] = {
    "v1": ("--format-version", "1"),
    "v2-zstd": ("--format-version", "2", "-c"),
    "v3": (),
    "v3-zstd": ("-c", "--timestamps", "keep"),
}


def read_fifo(path: Path, timeout: float = 20) -> bytes:
    """What is written into a FIFO until it is closed; empty if nothing comes in time."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 10) if select.select([fd], [], [], timeout)[0] else b""
    finally:
        os.close(fd)
