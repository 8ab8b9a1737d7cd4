"""The life of a mount: signals, daemonising, logging, and clients that are killed."""

from __future__ import annotations

import fcntl
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import COMMAND, Built, Foreground, Mount, is_mounted, read_fifo, run_puzzlefs, wait_for_end

from puzzlefs.mount import namespace

pytestmark = pytest.mark.mount


# ---- the foreground


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_foreground(odd: Built, point: Path, foreground: Foreground, number: signal.Signals) -> None:
    with foreground(odd.image("v3")) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0, said
        assert not is_mounted(point)


def test_a_signal_ends_a_mount_in_use(odd: Built, point: Path, foreground: Foreground) -> None:
    with foreground(odd.image("v3")) as process, open(point / "big" / "text", "rb") as file:
        assert file.read(4) == b"line"
        user = subprocess.Popen(["sleep", "60"], cwd=point / "bin")
        try:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
            assert process.returncode == 0
            assert not is_mounted(point)
        finally:
            user.kill()
            user.wait()


def test_an_unmount_from_outside_ends_the_foreground(odd: Built, point: Path, foreground: Foreground) -> None:
    with foreground(odd.image("v3")) as process:
        subprocess.run(["umount", point], check=True)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_puzzlefs_umount_ends_the_foreground(odd: Built, point: Path, foreground: Foreground) -> None:
    with foreground(odd.image("v3")) as process:
        run_puzzlefs("umount", point)
        assert not is_mounted(point)
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_a_lazy_unmount_does_not_endanger_what_is_mounted_next(
    odd: Built, point: Path, foreground: Foreground, mounted: Mount
) -> None:
    with foreground(odd.image("v3")) as process, open(point / "big" / "text", "rb") as file:
        subprocess.run(["umount", "-l", point], check=True)
        with mounted(odd.image("v1"), at=point):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
            assert process.returncode == 0
            assert is_mounted(point)
        assert file.readable()


def test_who_learns_late_of_an_unmount_spares_what_took_its_place(
    odd: Built, point: Path, foreground: Foreground, mounted: Mount
) -> None:
    """The kernel gives a mount's numbers out again at once: the next one, of the same image, looks the same."""
    with foreground(odd.image("v3")) as process:
        process.send_signal(signal.SIGSTOP)
        namespace.unmount(point)
        with mounted(odd.image("v3"), at=point, bad_lines=True):  # nobody can ask it: the first has the socket
            process.send_signal(signal.SIGCONT)
            process.communicate(timeout=20)
            assert process.returncode == 0
            assert is_mounted(point)
            assert (point / "big" / "text").read_bytes()


def test_a_daemon_that_learns_late_of_an_unmount_spares_what_took_its_place(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as first:
        os.kill(first.pid, signal.SIGSTOP)
        namespace.unmount(first.path)
        with mounted(odd.image("v3"), at=first.path, bad_lines=True):
            os.kill(first.pid, signal.SIGCONT)
            wait_for_end(first.pid)
            assert is_mounted(first.path)
            assert (first.path / "big" / "text").read_bytes()


def test_a_mount_without_standard_streams(odd: Built, point: Path, engine: str) -> None:
    """As a boot script may start it: no file of the mount's gets the number of a stream that was closed."""
    words = [*COMMAND, "mount", "--engine", engine, odd.image("v3"), str(point)]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words], timeout=60, check=False)
    assert done.returncode == 0
    assert is_mounted(point)
    assert (point / "big" / "text").read_bytes().startswith(b"line")
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND, "umount", point], timeout=60, check=False
    )
    assert done.returncode == 0
    assert not is_mounted(point)


def test_the_foreground_logs_to_stderr(odd: Built, point: Path, foreground: Foreground) -> None:
    with foreground(odd.image("v3")) as process:
        process.send_signal(signal.SIGTERM)
        printed, said = process.communicate(timeout=20)
    assert printed == ""
    assert re.search(rf"INFO Mounting {point}$", said, re.MULTILINE)
    assert re.search(rf"INFO Unmounted {point}$", said, re.MULTILINE)
    assert "DEBUG" not in said


@pytest.mark.parametrize(
    ("variable", "options", "expected"),
    [
        ("debug", (), {"DEBUG", "INFO"}),
        ("error", (), set()),
        ("debug", ("--log-level", "warning"), set()),
        ("", (), {"INFO"}),
    ],
)
def test_how_much_is_logged(
    odd: Built, point: Path, foreground: Foreground, variable: str, options: tuple[str, ...], expected: set[str]
) -> None:
    with foreground(odd.image("v3"), *options, env={"PUZZLEFS_LOG": variable}) as process:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert {word for word in ("DEBUG", "INFO") if word in said} == expected


def test_a_log_level_that_does_not_exist(odd: Built, point: Path) -> None:
    environment = {**os.environ, "PUZZLEFS_LOG": "loud"}
    result = run_puzzlefs("mount", odd.image("v3"), point, check=False, env=environment)
    assert result.returncode == 2
    assert "PUZZLEFS_LOG=loud" in result.stderr


# ---- the background


def test_the_daemon_is_detached(odd: Built, tmp_path: Path, engine: str) -> None:
    inherited = os.open(tmp_path / "inherited", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(inherited, True)
    log = tmp_path / "log"
    point = tmp_path / "point"
    point.mkdir()
    command = [*COMMAND, "mount", "--engine", engine, "--log-file", str(log), odd.image("v3"), str(point)]
    with subprocess.Popen(command, pass_fds=[inherited], stdin=subprocess.DEVNULL) as process:
        assert process.wait(timeout=30) == 0
    os.close(inherited)
    match = re.search(r"puzzlefs\[(\d+)\]", log.read_text())
    assert match is not None
    pid = int(match[1])
    try:
        assert os.getsid(pid) not in (os.getsid(0), pid)
        proc = Path("/proc", str(pid))
        assert (proc / "cwd").readlink() == Path("/")
        assert (proc / "stat").read_text().rpartition(")")[2].split()[4] == "0"  # no terminal
        descriptors = {int(entry.name): os.readlink(entry) for entry in (proc / "fd").iterdir()}
        assert [descriptors[number] for number in range(3)] == ["/dev/null"] * 3
        files = {target for number, target in descriptors.items() if number > 2 and target.startswith("/")}
        blobs = odd.layout / "new" / "blobs" / "sha256"
        (lease,) = (target for target in files if target.startswith(str(blobs / ".lease-")))
        files = {target for target in files if not target.startswith("/memfd:")}
        assert files == {"/dev/fuse", str(log), str(odd.layout / "new"), str(blobs), lease}
    finally:
        run_puzzlefs("umount", point)
        wait_for_end(pid)


def test_relative_paths(odd: Built, tmp_path: Path, point: Path, fifo: Path) -> None:
    layout = os.path.relpath(odd.layout / "new", tmp_path)
    run_puzzlefs("mount", "-i", "ready", "--log-file", "log", layout, "v3", "mnt", cwd=tmp_path)
    assert read_fifo(fifo) == b"s"
    assert (point / "big" / "1").stat().st_size == 1
    pid = int(re.findall(r"puzzlefs\[(\d+)\]", (tmp_path / "log").read_text())[0])
    run_puzzlefs("umount", "mnt", cwd=tmp_path)
    wait_for_end(pid)


def test_a_signal_ends_the_daemon(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        os.kill(mount.pid, signal.SIGTERM)
        wait_for_end(mount.pid)
        assert not is_mounted(mount.path)


def test_the_log_file(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        pid = mount.pid
    assert [line.partition("puzzlefs")[2] for line in mount.log_lines()] == [
        f"[{pid}]: INFO Mounting {mount.path}",
        f"[{pid}]: INFO Unmounted {mount.path}",
    ]


@pytest.fixture
def syslog() -> Iterator[socket.socket]:
    """A system log that is us; one test at a time, for there is one ``/dev/log``."""
    path = Path("/dev/log")
    with open(Path(tempfile.gettempdir()) / "puzzlefs-test-syslog.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_symlink() or path.exists():
            pytest.skip("this machine has a system log already")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(path))
            try:
                listener.settimeout(20)
                yield listener
            finally:
                path.unlink()


def test_syslog(odd: Built, mounted: Mount, syslog: socket.socket) -> None:
    messages: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:  # from the beginning: other tests' daemons may be logging, too, and a full queue loses ours
        while message := syslog.recv(2000).decode():
            messages.put(message)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        with mounted(odd.image("v3")) as mount:
            pid = mount.pid
            date = r"[A-Z][a-z][a-z] [ 123]\d \d\d:\d\d:\d\d"
            daemon_info = 3 << 3 | 6
            while not (message := messages.get(timeout=20)).endswith(f"puzzlefs[{pid}]: Mounting {mount.path}"):
                pass
            assert re.fullmatch(rf"<{daemon_info}>{date} puzzlefs\[{pid}\]: Mounting {mount.path}", message)
    finally:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", "/dev/log")
        listener.join(20)


def test_a_stuck_syslog_does_not_stop_the_file_system(odd: Built, mounted: Mount, syslog: socket.socket) -> None:
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with filler:
        filler.connect("/dev/log")
        with pytest.raises(BlockingIOError):
            while True:
                filler.send(b"full")
        with mounted(odd.image("v3")) as mount:
            assert (mount.path / "big" / "text").read_bytes().startswith(b"line")


# ---- under fire


def test_killed_readers_do_not_stop_the_others(odd: Built, mounted: Mount) -> None:
    program = (
        "import os, sys\n"
        "while True:\n"
        "    for name in os.listdir(sys.argv[1]):\n"
        "        fd = os.open(os.path.join(sys.argv[1], name), os.O_RDONLY)\n"
        "        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "        os.read(fd, 5000)\n"
        "        os.close(fd)\n"
    )
    with mounted(odd.image("v3")) as mount:
        for round_number in range(12):
            readers = [subprocess.Popen([sys.executable, "-c", program, mount.path / "big"]) for _ in range(4)]
            time.sleep(0.15 + round_number * 0.003)  # into the middle of their reading
            for reader in readers:
                reader.kill()
            for reader in readers:
                reader.wait(timeout=10)
        assert (mount.path / "big" / "text").read_bytes() == (odd.source / "big" / "text").read_bytes()


def test_whenever_a_signal_comes_nothing_is_left_mounted(odd: Built, point: Path, engine: str) -> None:
    command = [*COMMAND, "mount", "-f", "--engine", engine, odd.image("v3"), str(point)]
    ends = set()
    for step in range(30):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 5
            if step % 2:  # as near as can be to the moment of mounting
                while not is_mounted(point) and time.monotonic() < deadline:
                    pass
                time.sleep(step * 0.0002)
            else:
                time.sleep(step * 0.015)
            for _ in range(1 + step % 3):  # the impatient press Ctrl-C more than once
                process.send_signal(signal.SIGTERM if step % 4 else signal.SIGINT)
            try:
                ends.add(process.wait(timeout=20))
            finally:
                process.kill()
        assert not is_mounted(point), f"step {step}"
    assert 0 in ends
    assert ends <= {0, 1, 130, -signal.SIGTERM, -signal.SIGINT}  # before there was anything to unmount
