"""Running the real command, and looking at the mounts and processes that it makes."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.writable import PUZZLEFS as COMMAND
from support.writable import digest_of, kill_all, wait_for_end

from puzzlefs.image import open_image
from puzzlefs.mount.status import mount_status

__all__ = [
    "COMMAND",
    "ENGINES",
    "VARIANTS",
    "Built",
    "Foreground",
    "Mount",
    "Mounted",
    "as_user",
    "blob_with",
    "build",
    "copy_packages",
    "flipped",
    "is_mounted",
    "python_for",
    "read_fifo",
    "run_puzzlefs",
    "wait_for_end",
]

_PACKAGES = (
    *("puzzlefs", "puzzlefs_cli", "pyfuse3", "trio", "outcome", "sniffio", "attr", "attrs", "typing_extensions"),
    *("sortedcontainers", "idna", "zstandard", "pyfastcdc", "fastcdc", "rich"),
)
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
    return digest_of(run_puzzlefs("build", *options, source, image))


def blob_with(image: str, name: str, offset: int) -> Path:
    """The stored blob that holds a byte of a file."""
    with open_image(image) as opened:
        ino = opened.tree.root
        for part in os.fsencode(name).split(b"/"):
            ino = opened.tree.lookup(ino, part).ino
        (piece,) = opened.tree.plan(ino, offset, 1).pieces
        return opened.layout.path / "blobs" / "sha256" / piece.blob.hex()


@contextmanager
def flipped(path: Path, position: int | None = None) -> Iterator[None]:
    """A file with one bit changed."""
    good = path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2 if position is None else position] ^= 0x10
    path.write_bytes(bad)
    try:
        yield
    finally:
        path.write_bytes(good)


def is_mounted(path: Path) -> bool:
    """Whether the kernel lists a mount at ``path``."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(line.split(" ")[4] == str(path) for line in mounts)


def as_user(uid: int) -> list[str]:
    """What runs the command that comes behind it as a user."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]


def copy_packages(directory: Path) -> None:
    """Copy our packages to where every user can read them: neither the checkout nor the environment need be."""
    directory.mkdir()
    for module in _PACKAGES:
        spec = importlib.util.find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        origin = Path(spec.origin)
        if origin.name.startswith("__init__."):
            shutil.copytree(origin.parent, directory / module, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, directory)
    subprocess.run(["chmod", "-R", "a+rX", directory], check=True)


def python_for(prefix: Sequence[str], environment: Mapping[str, str], modules: str) -> str:
    """An interpreter with which whoever ``prefix`` makes of us can import ``modules``; skips the test if there is none.

    Through ``as_user`` alone it is still opened with the rights of root; through ``env`` behind that it is not.
    """
    said = ""
    for name in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        words = [*prefix, name, "-c", f"import {modules}"]
        result = subprocess.run(words, capture_output=True, text=True, env=environment, cwd="/", check=False)
        if result.returncode == 0:
            return name
        said = result.stderr
    pytest.skip(f"an ordinary user can start no interpreter that has our packages: {said.strip()[-200:]}")


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

    @property
    def server(self) -> int:
        """The process that answers requests."""
        return mount_status(self.path).server_pid

    def kill(self) -> None:
        """Kill whoever serves the mount, and whoever could start another server; return when they are dead."""
        kill_all(self.path)

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
