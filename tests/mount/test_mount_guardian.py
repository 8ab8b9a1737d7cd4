"""A mount outlives its server: who reads sees a pause, whatever becomes of the process that serves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mounting import Built, Mount, as_user, blob_with, copy_packages, is_mounted, python_for, run_puzzlefs, wait_for_end
from support.writable import mounts_at, writable

from puzzlefs.mount.status import mount_status

pytestmark = pytest.mark.mount

_KILLS = 20
_TAR = ("tar", "--sort=name", "--numeric-owner", "--warning=no-file-ignored", "-c", ".")
_DEADLINE = 120.0


@pytest.fixture(scope="module")
def engine() -> str:
    """Only one engine can take over a mount."""
    return "kernel"


def _server(point: Path) -> int:
    return mount_status(point).server_pid


def _kill(point: Path) -> int:
    """Kill the server; its number."""
    pid = _server(point)
    os.kill(pid, signal.SIGKILL)
    return pid


def _wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _tar_sum(path: Path) -> str:
    with subprocess.Popen(_TAR, cwd=path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        digest = hashlib.sha256(process.stdout.read()).hexdigest()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
    return digest


class _Readers:
    """Threads that read all of a tree over and over, with cold caches, and keep what went wrong."""

    def __init__(self, point: Path, count: int) -> None:
        self.sums: set[str] = set()
        self.errors: list[BaseException] = []
        self.rounds = 0
        self._point = point
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._read, daemon=True) for _ in range(count)]

    def _read(self) -> None:
        try:
            while not self._ended.is_set():
                Path("/proc/sys/vm/drop_caches").write_text("3")
                self.sums.add(_tar_sum(self._point))
                self.rounds += 1
        except BaseException as error:  # noqa: BLE001
            self.errors.append(error)

    def __enter__(self) -> _Readers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(_DEADLINE)
            assert not thread.is_alive(), "a reader hangs"


@pytest.mark.parametrize("tag", ["v1", "v3-zstd"])
def test_nobody_notices_that_the_server_is_killed(odd: Built, mounted: Mount, tag: str) -> None:
    with mounted(odd.image(tag), bad_lines=True) as mount:
        expected = _tar_sum(mount.path)
        rnd = random.Random(tag)
        with _Readers(mount.path, 2) as readers:
            for _ in range(_KILLS):
                time.sleep(rnd.uniform(0.0, 0.15))
                _kill(mount.path)
            _wait_for(lambda: readers.rounds > 0 or readers.errors)
        assert readers.errors == []
        assert readers.sums == {expected}
        status = mount_status(mount.path)
        assert status.restarts == _KILLS
        assert status.guardian_pid == mount.pid
        assert status.requests["lookup"] > 0  # counted over all servers
        assert len(mount.bad_lines()) == _KILLS


def test_open_files_and_directories_go_on(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3"), bad_lines=True) as mount:
        name = "big/file"
        expected = (odd.source / name).read_bytes()
        with open(mount.path / name, "rb") as file, os.scandir(mount.path) as entries:
            assert file.read(1000) == expected[:1000]
            first = next(entries).name
            _kill(mount.path)
            assert file.read() == expected[1000:]
            assert {first, *(entry.name for entry in entries)} == set(os.listdir(odd.source))


def test_a_request_of_a_stopped_server_is_answered_by_the_next_one(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3"), bad_lines=True) as mount:
        pid = _server(mount.path)
        os.kill(pid, signal.SIGSTOP)
        found: list[os.stat_result] = []
        reader = threading.Thread(target=lambda: found.append(os.lstat(mount.path / "links")), daemon=True)
        reader.start()
        time.sleep(0.1)
        assert found == []
        os.kill(pid, signal.SIGKILL)
        reader.join(_DEADLINE)
        assert found[0].st_ino == os.lstat(mount.path / "links").st_ino


_LIBRARY = """
import mmap, os, signal, sys, threading, time
import puzzlefs.mount.guardian as guardian
from puzzlefs.mount import mount
from puzzlefs.mount.operations import Operations
from puzzlefs.mount.errors import RequestError
image, point = sys.argv[1:3]
successor = None
{before}
mount(image, point, on_ready=lambda: print("ready", flush=True), supervise=True, successor=successor)
"""


@contextmanager
def _library(image: str, point: Path, before: str) -> Iterator[subprocess.Popen[str]]:
    """A supervised mount by a program that runs ``before`` first."""
    words = [sys.executable, "-c", _LIBRARY.format(before=before), image, str(point)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            if is_mounted(point):
                run_puzzlefs("umount", point)
            process.wait(_DEADLINE)


_OLD_KERNEL = (
    "guardian.resend_notification = lambda: (16).to_bytes(4, 'little') + (99).to_bytes(4, 'little') + bytes(8)"
)


def test_a_kernel_that_cannot_send_requests_again(odd: Built, point: Path) -> None:
    with _library(odd.image("v3-zstd"), point, _OLD_KERNEL) as process:
        expected = _tar_sum(point)
        rnd = random.Random(7)
        with _Readers(point, 2) as readers:
            for _ in range(_KILLS):
                time.sleep(rnd.uniform(0.0, 0.1))
                _kill(point)
            _wait_for(lambda: readers.rounds > 0 or readers.errors)
        assert readers.errors == []
        assert readers.sums == {expected}
    assert process.returncode == 0


_SLOW = """
once = mmap.mmap(-1, 8)  # what servers have in common
original = Operations.readlink
def readlink(self, ino):
    if not once[0]:
        once[0] = 1
        time.sleep(1000)
    return original(self, ino)
Operations.readlink = readlink
"""


@pytest.mark.parametrize("kernel", ["", _OLD_KERNEL], ids=["resent", "handed-over"])
def test_a_request_that_a_server_was_at_is_answered_by_the_next_one(odd: Built, point: Path, kernel: str) -> None:
    link = next(path for path in sorted(odd.source.rglob("*")) if path.is_symlink()).relative_to(odd.source)
    with _library(odd.image("v3"), point, _SLOW + kernel):
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(os.readlink(point / link)), daemon=True)
        reader.start()
        _wait_for(lambda: mount_status(point).requests.get("readlink"))
        assert os.lstat(point / "links").st_nlink > 0  # another thread serves
        assert found == []
        _kill(point)
        reader.join(_DEADLINE)
        assert found == [os.readlink(odd.source / link)]


_DEADLY = """
def readlink(self, ino):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1000)
Operations.readlink = readlink
"""


@pytest.mark.parametrize("kernel", ["", _OLD_KERNEL], ids=["resent", "handed-over"])
def test_a_request_that_kills_every_server_is_refused(odd: Built, point: Path, kernel: str) -> None:
    link = next(path for path in sorted(odd.source.rglob("*")) if path.is_symlink()).relative_to(odd.source)
    with _library(odd.image("v3"), point, _DEADLY + kernel):
        with pytest.raises(OSError, match="Input/output error") as caught:
            os.readlink(point / link)
        assert caught.value.errno == errno.EIO
        assert (point / "big" / "file").stat().st_size > 0
        assert 1 < mount_status(point).restarts < 20


_FAILING_IN_THE_END = """
from puzzlefs.mount import kernel_engine
original = kernel_engine.Session.leave
def leave(self):
    raise OSError(5, "the end goes wrong")
kernel_engine.Session.leave = leave
"""


def test_a_server_that_fails_in_the_end_is_not_replaced(odd: Built, point: Path) -> None:
    with _library(odd.image("v3"), point, _FAILING_IN_THE_END) as process:
        os.listdir(point)
        run_puzzlefs("umount", point)
        assert process.wait(_DEADLINE) == 0


# ---- another version of the program


def test_restart(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3-zstd"), "--digest", odd.digests["v3-zstd"]) as mount:
        before = mount_status(mount.path)
        expected = _tar_sum(mount.path)
        with _Readers(mount.path, 1) as readers:
            said = run_puzzlefs("restart", mount.path).stdout
            after = mount_status(mount.path)
            _wait_for(lambda: readers.rounds > 1 or readers.errors)
        assert readers.errors == []
        assert readers.sums == {expected}
        assert said == f"{mount.path} is served by process {after.server_pid}\n"
        assert after.server_pid != before.server_pid
        assert (after.restarts, after.guardian_pid) == (1, before.guardian_pid)
        assert (after.image, after.manifest, after.digest) == (before.image, before.manifest, before.digest)
        assert (after.is_digest_required, after.verity) == (True, before.verity)
        assert after.confinement == before.confinement
        assert after.uptime > after.server_uptime
        wait_for_end(before.server_pid)
        assert mount.path.joinpath("links").is_dir()


@pytest.mark.parametrize("of", ["guardian_pid", "server_pid"])
def test_hangup_is_a_restart(odd: Built, mounted: Mount, of: str) -> None:
    with mounted(odd.image("v1"), bad_lines=True) as mount:
        before = mount_status(mount.path)
        os.kill(getattr(before, of), signal.SIGHUP)
        wait_for_end(before.server_pid, _DEADLINE)
        executed = mount_status(mount.path)
        command = Path("/proc", str(executed.server_pid), "cmdline").read_bytes()
        assert b"puzzlefs_cli.takeover" in command
        killed = _kill(mount.path)  # from now on that program is what takes over
        _wait_for(lambda: _server(mount.path) != killed)
        assert (
            Path("/proc", str(_server(mount.path)), "cmdline").read_bytes().split(b"\0")[:3] == command.split(b"\0")[:3]
        )
        assert _tar_sum(mount.path) == _tar_sum(mount.path)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('no such luck')", "ended with exit code 1: no such luck"),
        ("import os; os.abort()", "was killed by SIGABRT"),
        ("import nothing.of.this.name", "No module named 'nothing'"),
        (None, "No such file or directory"),
    ],
)
def test_a_program_that_does_not_start_changes_nothing(
    odd: Built, point: Path, program: str | None, reason: str
) -> None:
    words = ("/no/such/program",) if program is None else (sys.executable, "-c", program)
    before = f"from puzzlefs.mount.successor import Successor; successor = Successor({words!r}, {{}})"
    with _library(odd.image("v3"), point, before):
        server = _server(point)
        result = run_puzzlefs("restart", point, check=False)
        assert result.returncode == 7
        assert "the server was not replaced: " in result.stderr
        assert reason in result.stderr
        assert (_server(point), mount_status(point).restarts) == (server, 0)
        _kill(point)
        assert _tar_sum(point) == _tar_sum(point)


def test_no_guardian_no_restart(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3"), "--no-supervise") as mount:
        assert not mount_status(mount.path).is_supervised
        result = run_puzzlefs("restart", mount.path, check=False)
        assert result.returncode == 6
        assert "--supervise" in result.stderr


def test_libfuse_cannot_be_supervised(odd: Built, point: Path) -> None:
    result = run_puzzlefs("mount", "--engine", "pyfuse3", "--supervise", odd.image("v3"), point, check=False)
    assert result.returncode == 2
    assert "--engine kernel" in result.stderr


# ---- what may happen besides


@pytest.mark.parametrize("executed", [False, True])
def test_the_layout_is_elsewhere_by_now(odd: Built, mounted: Mount, tmp_path: Path, executed: bool) -> None:
    image = tmp_path / "images:v3"
    run_puzzlefs("build", odd.source, image)
    with mounted(str(image), bad_lines=True) as mount:
        expected = _tar_sum(mount.path)
        run_puzzlefs("untag", image)
        (tmp_path / "images").rename(tmp_path / "moved")
        if executed:
            run_puzzlefs("restart", mount.path)
        _kill(mount.path)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        assert _tar_sum(mount.path) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("of", ["guardian_pid", "server_pid"])
def test_signals_unmount(odd: Built, mounted: Mount, of: str, number: signal.Signals) -> None:
    with mounted(odd.image("v3")) as mount:
        status = mount_status(mount.path)
        os.kill(getattr(status, of), number)
        wait_for_end(mount.pid)
        wait_for_end(status.server_pid)
        assert not is_mounted(mount.path)


def test_without_its_guardian_a_server_goes_on(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        status = mount_status(mount.path)
        os.kill(mount.pid, signal.SIGKILL)
        wait_for_end(mount.pid)
        assert _tar_sum(mount.path) == _tar_sum(mount.path)
        assert _server(mount.path) == status.server_pid
        run_puzzlefs("umount", mount.path)
        wait_for_end(status.server_pid)


def test_failures_are_remembered(odd: Built, mounted: Mount, tmp_path: Path) -> None:
    image = tmp_path / "images:v3"
    run_puzzlefs("build", odd.source, image)
    with mounted(str(image), bad_lines=True) as mount:
        blob_with(str(image), "big/file", 0).unlink()
        with pytest.raises(OSError):
            (mount.path / "big" / "file").read_bytes()
        before = mount_status(mount.path)
        assert before.corruptions >= 1
        _kill(mount.path)
        after = mount_status(mount.path)
        assert (after.corruptions, after.events) == (before.corruptions, before.events)
        run_puzzlefs("restart", mount.path)
        assert mount_status(mount.path).events == before.events


def test_a_writable_mount(odd: Built, tmp_path: Path) -> None:
    with writable(odd.image("v3"), tmp_path / "mnt", bad_lines=True) as mount:
        with open(mount.path / "big" / "file", "r+b") as file:
            file.write(b"written")
            for _ in range(5):
                _kill(mount.path)
                file.seek(0)
                assert file.read(7) == b"written"
        (mount.path / "new").write_text("x")
        run_puzzlefs("restart", mount.path)
        assert (mount.path / "links").is_dir()
        _kill(mount.path)
        assert (mount.path / "big" / "file").read_bytes()[7:] == (odd.source / "big" / "file").read_bytes()[7:]
        run_puzzlefs("umount", mount.path)
        assert mounts_at(mount.path) == []
        assert list(mount.path.iterdir()) == []


def test_a_mount_in_the_foreground(odd: Built, point: Path) -> None:
    words = [sys.executable, "-m", "puzzlefs_cli", "mount", "-f", "--supervise", odd.image("v3"), str(point)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        _wait_for(lambda: is_mounted(point))
        status = mount_status(point)
        assert status.guardian_pid == process.pid
        os.kill(process.pid, signal.SIGHUP)
        wait_for_end(status.server_pid, _DEADLINE)
        killed = _kill(point)
        _wait_for(lambda: _server(point) != killed)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0
    assert "was killed by SIGKILL; another one takes over" in said
    assert "SIGINT: unmounting" in said


def test_an_ordinary_user(odd: Built, open_directory: Path, mounted: Mount) -> None:
    uid = 65534
    packages = open_directory / "guardian-packages"
    copy_packages(packages)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    python = python_for([*as_user(uid), "env"], environment, "puzzlefs.image, puzzlefs_cli.main")
    home = open_directory / "guardian-home"
    (home / "mnt").mkdir(parents=True)
    run_puzzlefs("build", odd.source / "big", home / "images:v3")
    subprocess.run(["chown", "-R", str(uid), home], check=True)

    def puzzlefs(*words: str | Path) -> str:
        command = [*as_user(uid), "env", python, "-m", "puzzlefs_cli", *map(str, words)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(puzzlefs("status", "--json", home / "mnt"))
        return found

    def read() -> bytes:
        words = [*as_user(uid), "cat", str(home / "mnt" / "file")]
        return subprocess.run(words, capture_output=True, check=True).stdout

    puzzlefs("mount", home / "images:v3", home / "mnt")
    try:
        expected = (odd.source / "big" / "file").read_bytes()
        before = status()
        os.kill(before["server_pid"], signal.SIGKILL)
        assert read() == expected
        puzzlefs("restart", home / "mnt")
        assert read() == expected
        after = status()
        assert after["restarts"] == 2
        assert after["confinement"]["capabilities"] == []
    finally:
        puzzlefs("umount", home / "mnt")
    wait_for_end(before["guardian_pid"])
