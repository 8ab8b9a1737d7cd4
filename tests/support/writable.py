"""Writable mounts through the real command, for tests that write to them."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from compare_trees import Options, Statistics, compare

from puzzlefs.mount.status import mount_status

PUZZLEFS = [sys.executable, "-m", "puzzlefs_cli"]
_TIMEOUT = 120

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="writable mounts need root and /dev/fuse"
)


def puzzlefs(*words: str | Path, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; fail if it fails, unless ``check`` is false."""
    result = subprocess.run(
        [*PUZZLEFS, *map(str, words)], capture_output=True, text=True, timeout=_TIMEOUT, check=False, cwd=cwd
    )
    assert not check or result.returncode == 0, f"{words}: {result.returncode}: {result.stderr}"
    return result


def digest_of(result: subprocess.CompletedProcess[str]) -> str:
    """The digest in the line that a command ends with."""
    match = re.fullmatch(r"puzzlefs image manifest digest: ([0-9a-f]{64})\n", result.stdout)
    assert match is not None, result.stdout
    return match[1]


def mounts_at(path: Path) -> list[tuple[str, str]]:
    """File system type and options of the mounts that are at or below ``path``."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if Path(point).is_relative_to(path):
            found.append((after.split(" ")[0], fields[5]))
    return found


def kill_all(path: Path) -> None:
    """Kill whoever serves a mount, and whoever could start another server; return when they are dead."""
    status = mount_status(path)
    pids = [pid for pid in (status.guardian_pid, status.server_pid) if pid is not None]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait_for_end(pid)


@dataclass(frozen=True)
class Writable:
    """A writable mount.

    Attributes:
        path: where it is.
        log_file: the log of its server.
    """

    path: Path
    log_file: Path

    @property
    def pid(self) -> int:
        """The server, as its log names it."""
        return int(re.findall(r"puzzlefs\[(\d+)\]", self.log_file.read_text())[-1])

    def bad_lines(self) -> list[str]:
        """What the server has logged as a warning or worse."""
        return [line for line in self.log_file.read_text().splitlines() if re.search(r"WARNING|ERROR|CRITICAL", line)]


@contextlib.contextmanager
def writable(
    image: str, path: Path, *options: str | Path, how: str | Path = "-w", bad_lines: bool = False
) -> Iterator[Writable]:
    """Mount ``image`` at ``path``, which is made if it is missing; unmount it in the end if it is still there.

    Args:
        image: the image.
        path: the mount point.
        options: more options of the command.
        how: ``-w``, or a persistent upper directory.
        bad_lines: whether the test looks at the log itself.
    """
    path.mkdir(exist_ok=True)
    made = Writable(path, path.with_name(path.name + ".log"))
    how_words = ["-w"] if how == "-w" else ["--persist", how]
    puzzlefs("mount", *how_words, "--log-file", made.log_file, *options, image, path)
    pid = made.pid
    try:
        yield made
    finally:
        if mounts_at(path):
            taken = puzzlefs("umount", path, check=False)
            while mounts_at(path) and subprocess.run(["umount", "-l", path], check=False).returncode == 0:
                pass
            assert taken.returncode == 0, taken.stderr
        wait_for_end(pid)
        assert mounts_at(path) == []
    if not bad_lines:
        assert made.bad_lines() == []


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


def below(path: Path, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script that sees what a writable mount hides, in a view of its own."""
    command = f"umount -l {shlex.quote(str(path))} && {{ {script}; }}"
    return subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", command], capture_output=True, check=False
    )


@contextlib.contextmanager
def read_only(image: str, path: Path) -> Iterator[Path]:
    """Mount ``image`` at ``path`` as it is."""
    path.mkdir(exist_ok=True)
    puzzlefs("mount", "-o", "dev,suid", image, path)
    try:
        yield path
    finally:
        puzzlefs("umount", path)


def differences(a: Path, b: Path, *, mtime: bool = True) -> list[str]:
    """In what ``b`` differs from ``a``; something has to be there."""
    statistics = Statistics()
    found = [str(difference) for difference in compare(a, b, Options(mtime=mtime), statistics)]
    assert statistics.entries > 1
    return found
