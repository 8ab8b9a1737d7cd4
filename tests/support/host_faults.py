"""What a host does to a server, or to the files below it, while it serves. Everything is taken back in the end."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_MEBIBYTE = 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")


def processes_of(pid: int) -> list[int]:
    """A process and those that descend from it: whoever of them serves is among them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for process in found:
        found += children.get(process, [])
    return found


@contextlib.contextmanager
def paused(pids: Sequence[int]) -> Iterator[None]:
    """Processes that do nothing inside (SIGSTOP)."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def limited(pids: Sequence[int], kind: int, soft: Sequence[int]) -> Iterator[None]:
    """Processes that are held to limits inside, one for each (setrlimit(2))."""
    before = [resource.prlimit(pid, kind) for pid in pids]
    try:
        for pid, value, (_, hard) in zip(pids, soft, before, strict=True):
            resource.prlimit(pid, kind, (value, hard))
        yield
    finally:
        for pid, limits in zip(pids, before, strict=True):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, kind, limits)


@contextlib.contextmanager
def without_room(pids: Sequence[int], spare: int = 0) -> Iterator[None]:
    """Processes that can map no more than ``spare`` bytes more than now: no thread, and soon no memory."""
    used = [int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * _PAGE for pid in pids]
    with limited(pids, resource.RLIMIT_AS, [size + spare for size in used]):
        yield


@contextlib.contextmanager
def without_descriptors(pids: Sequence[int]) -> Iterator[None]:
    """Processes that can open nothing more."""
    free = []
    for pid in pids:
        taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        free.append(next(number for number in range(len(taken) + 1) if number not in taken))
    with limited(pids, resource.RLIMIT_NOFILE, free):
        yield


@contextlib.contextmanager
def squeezed(pids: Sequence[int], spare: int) -> Iterator[None]:
    """Processes in a control group whose memory, with the pages of files, is ``spare`` bytes more than they have now.

    Skips the test where there is no such thing to be had.
    """
    group = Path("/sys/fs/cgroup/memory") / f"puzzlefs-test-{os.getpid()}"
    limit, root = "memory.limit_in_bytes", group.parent
    if not (root / "cgroup.procs").exists():
        limit, group, root = "memory.max", Path("/sys/fs/cgroup") / group.name, Path("/sys/fs/cgroup")
        if "memory" not in (root / "cgroup.controllers").read_text().split():
            pytest.skip("this machine's control groups do not limit memory")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        if not (group / limit).exists():
            pytest.skip("this machine's control groups do not limit memory here")
        resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE for pid in pids)
        (group / limit).write_text(str(resident + spare))
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(pid)
        group.rmdir()


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own, on a loop device.

    Attributes:
        image: the file that it lies in.
        root: where it is mounted.
    """

    image: Path
    root: Path

    def remount(self, options: str) -> None:
        """Mount it with other options, as its administrator does."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.root], check=True)

    def fail(self) -> None:
        """Have the file system find an error, upon which it becomes read-only, whoever may have files open."""
        words = ["findmnt", "-nro", "SOURCE", self.root]
        found = subprocess.run(words, capture_output=True, text=True, check=True)
        device = Path(found.stdout.strip()).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test wants it")

    def detach(self) -> None:
        """Take it out of the tree; who has it open keeps it (umount -l)."""
        subprocess.run(["umount", "-l", self.root], check=True)

    @contextlib.contextmanager
    def broken_at(self, path: Path) -> Iterator[None]:
        """Inside, the medium fails where the data of a file lies, and behind that (EIO).

        The file that the device lies in ends there, and reading beyond its end is an error of the device.
        """
        subprocess.run(["sync", "-f", self.root], check=True)
        extents = subprocess.run(["filefrag", "-b1", "-v", path], capture_output=True, text=True, check=True).stdout
        begin = int(re.findall(r"^ *0: +0\.\. *\d+: +(\d+)\.\.", extents, re.MULTILINE)[0])
        size = self.image.stat().st_size
        with self.image.open("r+b") as file:
            file.seek(begin)
            lost = file.read()
            for file_there in self.root.rglob("*"):
                if file_there.is_file():
                    drop_pages(file_there)
            file.truncate(begin)
            try:
                yield
            finally:
                file.seek(begin)
                file.write(lost)
                assert file.tell() == size


def drop_pages(path: Path) -> None:
    """Have the kernel forget what it has of the content of a file, as far as nobody uses it just now."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@contextlib.contextmanager
def small_disk(directory: Path, size: int = 64 * _MEBIBYTE) -> Iterator[SmallDisk]:
    """A new ext4 file system of ``size`` bytes in ``directory``; skips the test where there are no loop devices."""
    if not Path("/dev/loop-control").exists():
        pytest.skip("this machine has no loop devices")
    disk = SmallDisk(directory / "disk", directory / "on-disk")
    disk.root.mkdir(parents=True)
    with disk.image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", disk.image], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", disk.image, disk.root], check=True)
    try:
        yield disk
    finally:
        if disk.root.is_mount():
            disk.detach()
