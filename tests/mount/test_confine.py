"""What a server can still do when it has confined itself, and what it cannot; each time in a forked process.

What is refused is tried outside, too: there it works, so it is the confinement that refuses it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import logging
import os
import pwd
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from mounting import Mount, run_puzzlefs
from support import forge as f
from support.examine import limited
from support.forge import Forge

from puzzlefs.image import open_image
from puzzlefs.mount import capabilities, confine, landlock, namespace, syscall_filter
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.operations import Operations
from puzzlefs.verity.kernel import FS_IOC_MEASURE_VERITY
from puzzlefs_cli.mount_log import SyslogHandler

pytestmark = pytest.mark.mount

_NOBODY = pwd.getpwnam("nobody").pw_uid
_CONTENT = b"content\n" * 1000

Result = str
"""``ok``, or the name of an errno."""


def _result(action: Callable[[], object]) -> Result:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


@dataclass
class Surroundings:
    """What a server could reach for.

    Attributes:
        layout: an image layout that everybody can read.
        reference: its image, with a file (inode 2), a link (3), and a file whose chunk is damaged (4).
        open: a directory where everybody may do everything, with a file ``there``.
        port: something listens there.
        path: something listens there.
        abstract: something listens there.
    """

    layout: Path
    reference: str
    open: Path
    port: int
    path: str
    abstract: str


@pytest.fixture
def surroundings(open_directory: Path, tmp_path: Path) -> Iterator[Surroundings]:
    base = open_directory / tmp_path.name
    base.mkdir()
    forge = Forge(base / "layout")
    good, bad = forge.chunk(_CONTENT), forge.chunk(b"damaged\n" * 1000)
    names = {b"file": 2, b"link": 3, b"bad": 4}
    reference = forge.image([f.directory(1, names), f.regular(2, good), f.symlink(3, b"file"), f.regular(4, bad)])
    forge.blob_path(bad.blob.digest).write_bytes(b"x" * 8000)
    free = base / "open"
    free.mkdir()
    (free / "there").write_bytes(b"there")
    for path in (free, free / "there"):
        path.chmod(0o777)
    path, abstract = str(free / "socket"), f"\0puzzlefs-test-{os.getpid()}-{tmp_path.name}"
    with closing(socket.create_server(("127.0.0.1", 0))) as tcp, closing(socket.socket(socket.AF_UNIX)) as named:
        named.bind(path)
        named.listen()
        os.chmod(path, 0o777)
        with closing(socket.socket(socket.AF_UNIX)) as nameless:
            nameless.bind(abstract)
            nameless.listen()
            yield Surroundings(forge.path, reference, free, tcp.getsockname()[1], path, abstract)


def _reach(around: Surroundings, wall: Callable[[int], object]) -> dict[str, Result]:
    """What of all this works behind ``wall``, which gets a descriptor of the blobs."""
    there = str(around.open / "there")
    new = str(around.open / f"new-{os.getpid()}")
    mine = f"{new}.m"
    os.close(os.open(mine, os.O_WRONLY | os.O_CREAT))
    blobs = os.open(around.layout / "blobs" / "sha256", os.O_RDONLY | os.O_DIRECTORY)
    blob = os.listdir(blobs)[0]
    tcp, named, nameless = socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    libc = ctypes.CDLL(None, use_errno=True)

    def trace() -> None:
        if libc.ptrace(0, 0, None, None) != 0:  # PTRACE_TRACEME
            raise OSError(ctypes.get_errno(), "ptrace")

    wall(blobs)
    actions: dict[str, Callable[[], object]] = {
        "read a blob": lambda: os.read(os.open(blob, os.O_RDONLY, dir_fd=blobs), 1),
        "read ahead": lambda: os.posix_fadvise(os.open(blob, os.O_RDONLY, dir_fd=blobs), 0, 0, os.POSIX_FADV_WILLNEED),
        "stat a blob": lambda: os.lstat(blob, dir_fd=blobs),
        "pair of sockets": socket.socketpair,
        "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "read the index": lambda: os.open("../../index.json", os.O_RDONLY, dir_fd=blobs),
        "read a process": lambda: os.open("/proc/self/mountinfo", os.O_RDONLY),
        "list a directory": lambda: os.listdir("/"),
        "write a file": lambda: os.open(there, os.O_WRONLY),
        "make a file": lambda: os.open(new, os.O_WRONLY | os.O_CREAT),
        "truncate a file": lambda: os.truncate(there, 1),
        "write a device": lambda: os.open("/dev/null", os.O_RDWR),
        "change a mode": lambda: os.chmod(mine, 0o600),
        "make a directory": lambda: os.mkdir(new + ".d"),
        "make a link": lambda: os.symlink("there", new + ".l"),
        "make a hard link": lambda: os.link(there, new + ".h"),
        "rename": lambda: os.rename(there, there),
        "unlink": lambda: os.unlink(new),
        "execute": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "be traced": trace,
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "make a socket": socket.socket,
        "TCP": lambda: tcp.connect(("127.0.0.1", around.port)),
        "a socket with a path": lambda: named.connect(around.path),
        "an abstract socket": lambda: nameless.connect(around.abstract),
        "new namespace": lambda: namespace.unshare(namespace.CLONE_NEWNS),
        "mount": lambda: namespace.mount("none", around.open, "tmpfs"),
        "unmount": lambda: namespace.unmount(around.open),
        "change the root": lambda: os.chroot(around.open),
    }
    return {what: _result(action) for what, action in actions.items()}


_READS = {"read a blob", "read ahead", "stat a blob", "pair of sockets"}
_ROOTS = {"new namespace", "mount", "unmount", "change the root", "signal the parent"}
"""What an ordinary user cannot do anyway, to processes of others and to the system."""


def _nothing(blobs: int) -> None:
    pass


def _everything(blobs: int) -> None:
    confine.prepare()
    confine.confine([blobs])


def _only_landlock(blobs: int) -> None:
    confine._no_new_privileges()
    landlock.restrict([blobs])


def _only_filter(blobs: int) -> None:
    confine._no_new_privileges()
    syscall_filter.install()


def _become(uid: int) -> None:
    if uid != 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def _landlock_abi() -> int:
    try:
        return landlock.abi()
    except OSError:
        return 0


_needs_landlock = pytest.mark.skipif(_landlock_abi() == 0, reason="this kernel has no Landlock")


@pytest.mark.parametrize("uid", [0, _NOBODY], ids=["root", "user"])
def test_a_server_reaches_its_blobs_and_nothing_else(surroundings: Surroundings, uid: int) -> None:
    def run(wall: Callable[[int], object]) -> dict[str, Result]:
        confine.prepare()  # as root: the interpreter may be out of a user's reach
        _become(uid)
        return _reach(surroundings, wall)

    outside = limited(lambda: run(_nothing))
    assert {what for what, result in outside.items() if result != "ok"} == (_ROOTS if uid else set())
    inside = limited(lambda: run(_everything))
    assert {what for what, result in inside.items() if result == "ok"} == _READS, inside


@_needs_landlock
def test_landlock_alone(surroundings: Surroundings) -> None:
    inside = limited(lambda: _reach(surroundings, _only_landlock))
    version = landlock.abi()
    open_still = {"stat a blob", "change a mode", "be traced", "make a socket", "new namespace", "change the root"}
    since = {"truncate a file": 3, "TCP": 4, "an abstract socket": 6, "signal the parent": 6, "a socket with a path": 9}
    open_still |= {what for what, first in since.items() if version < first}
    assert {what for what, result in inside.items() if result == "ok"} == _READS | open_still, inside


def test_the_filter_alone(surroundings: Surroundings) -> None:
    inside = limited(lambda: _reach(surroundings, _only_filter))
    reading = {"read a file", "read the index", "read a process", "list a directory", "signal the parent"}
    assert {what for what, result in inside.items() if result == "ok"} == _READS | reading, inside
    assert {result for result in inside.values() if result != "ok"} == {"EPERM"}


def test_threads_are_confined_as_well(surroundings: Surroundings) -> None:
    def run() -> list[Result]:
        blobs = os.open(surroundings.layout / "blobs" / "sha256", os.O_RDONLY | os.O_DIRECTORY)
        _everything(blobs)
        results: list[Result] = []

        def look() -> None:
            results.append(_result(lambda: os.open("/etc/passwd", os.O_RDONLY)))
            results.append(_result(lambda: os.open(os.listdir(blobs)[0], os.O_RDONLY, dir_fd=blobs)))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return results

    assert limited(run) == ["EACCES" if _landlock_abi() else "ok", "ok"]


def test_every_call_of_the_list_is_refused() -> None:
    """With arguments that none of them takes, so nothing would happen if one was not."""
    column = syscall_filter._ARCHITECTURES[os.uname().machine][1]
    numbers = {name: row[column] for name, row in syscall_filter.REFUSED.items() if row[column] is not None}
    libc = ctypes.CDLL(None, use_errno=True)

    def run(wall: Callable[[int], object]) -> dict[str, int]:
        wall(-1)
        results = {}
        for name, number in numbers.items():
            assert libc.syscall(ctypes.c_long(number or 0), *[ctypes.c_long(-1)] * 6) == -1, name
            results[name] = ctypes.get_errno()
        return results

    assert set(limited(lambda: run(_only_filter)).values()) == {errno.EPERM}
    outside = limited(lambda: run(_nothing))
    assert {name for name, number in outside.items() if number == errno.EPERM} <= {"kexec_load", "kexec_file_load"}


_HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")


@pytest.mark.parametrize("column", [0, 1], ids=["x86-64", "generic"])
def test_numbers_of_system_calls(column: int) -> None:
    header = Path(_HEADERS[column])
    if not header.exists():
        pytest.skip(f"the kernel's headers are not installed ({header})")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    rows = {**syscall_filter.REFUSED, "open": syscall_filter._OPEN, "openat": syscall_filter._OPENAT}
    ours = {name: row[column] for name, row in rows.items()}
    newer = {"fchmodat2"} - found.keys()
    assert {name: number for name, number in ours.items() if name not in newer} == {
        name: int(found[name]) if name in found else None for name in ours.keys() - newer
    }


# ---- what is left


def _status(file: int) -> dict[str, str]:
    os.lseek(file, 0, os.SEEK_SET)
    return dict(line.split(":\t", 1) for line in os.read(file, 1 << 14).decode().splitlines())


def _process(pid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return _status(file.fileno())


@pytest.mark.parametrize("uid", [0, _NOBODY], ids=["root", "user"])
def test_what_the_kernel_says_about_it(surroundings: Surroundings, uid: int) -> None:
    def run() -> tuple[confine.Confinement, dict[str, str]]:
        confine.prepare()
        _become(uid)
        status = os.open("/proc/self/status", os.O_RDONLY)
        blobs = os.open(surroundings.layout / "blobs" / "sha256", os.O_RDONLY | os.O_DIRECTORY)
        return confine.confine([blobs]), _status(status)

    result, status = limited(run)
    assert result.landlock_abi == (min(_landlock_abi(), landlock.NEWEST_ABI) or None)
    assert result.no_new_privileges
    assert result.filters_calls
    assert result.capabilities == (() if uid else ("CAP_DAC_READ_SEARCH",))
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    left = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}
    kept = 0 if uid else 1 << capabilities.CAP_DAC_READ_SEARCH
    assert left == {"CapInh": 0, "CapPrm": kept, "CapEff": kept, "CapAmb": 0}
    if uid == 0:
        assert int(status["CapBnd"], 16) == 0


def test_root_reads_blobs_of_others(surroundings: Surroundings) -> None:
    """That is what the one capability is kept for."""
    directory = surroundings.layout / "blobs" / "sha256"
    for path in (*directory.iterdir(), directory):
        os.chown(path, _NOBODY, _NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)

    def run(kept: tuple[int, ...]) -> Result:
        blobs = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        name = os.listdir(blobs)[0]
        if kept:
            _everything(blobs)
        else:
            capabilities.keep_only(kept)
        return _result(lambda: os.read(os.open(name, os.O_RDONLY, dir_fd=blobs), 1))

    assert limited(lambda: run((capabilities.CAP_DAC_READ_SEARCH,))) == "ok"
    assert limited(lambda: run(())) == "EACCES"


def test_measuring_says_the_same_inside(surroundings: Surroundings) -> None:
    def run(wall: Callable[[int], object]) -> Result:
        blobs = os.open(surroundings.layout / "blobs" / "sha256", os.O_RDONLY | os.O_DIRECTORY)
        wall(blobs)
        fd = os.open(os.listdir(blobs)[0], os.O_RDONLY, dir_fd=blobs)
        return _result(lambda: fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, bytearray(68)))

    assert limited(lambda: run(_everything)) == limited(lambda: run(_nothing))


def test_whoever_connects_is_answered(surroundings: Surroundings) -> None:
    name = f"{surroundings.abstract}-status"
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(name)
        server.listen()

        def serve() -> bytes:
            _everything(os.open(surroundings.layout / "blobs" / "sha256", os.O_RDONLY | os.O_DIRECTORY))
            connection, _ = server.accept()
            with connection:
                asked = connection.recv(100)
                connection.sendall(b"answer")
            return asked

        answers: list[bytes] = []

        def ask() -> None:
            with closing(socket.socket(socket.AF_UNIX)) as client:
                client.settimeout(60)
                client.connect(name)
                client.sendall(b"question")
                answers.append(client.recv(100))

        asker = threading.Thread(target=ask)
        asker.start()
        assert limited(serve) == b"question"
        asker.join()
        assert answers == [b"answer"]


def test_the_system_log_is_written_to(surroundings: Surroundings) -> None:
    """Over the connection that was made when the log was set up; where it is gone, lines are dropped without harm."""
    path = surroundings.open / "log"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as system_log:
        system_log.bind(str(path))
        system_log.settimeout(60)
        heard, told = os.pipe()

        def run() -> None:
            handler = SyslogHandler(path)
            _everything(os.open(surroundings.layout / "blobs" / "sha256", os.O_RDONLY | os.O_DIRECTORY))
            handler.emit(logging.LogRecord("puzzlefs", logging.ERROR, "", 0, "something is wrong", None, None))
            os.read(heard, 1)
            handler.emit(logging.LogRecord("puzzlefs", logging.ERROR, "", 0, "nobody hears", None, None))

        def hear() -> None:
            lines.append(system_log.recv(1000))
            system_log.close()
            os.write(told, b"x")

        lines: list[bytes] = []
        hearer = threading.Thread(target=hear)
        hearer.start()
        limited(run)
        hearer.join()
        for end in (heard, told):
            os.close(end)
    assert len(lines) == 1
    assert lines[0].endswith(b": something is wrong")


# ---- nothing is loaded late


def _use(operations: Operations) -> list[Result]:
    """Requests of every kind, among them such that fail, one of them in a way that nobody has foreseen."""
    results: list[Result] = []

    def request(action: Callable[[], object]) -> None:
        try:
            action()
        except RequestError as error:
            results.append(errno.errorcode[error.errno])
        else:
            results.append("ok")

    for name in (b"file", b"link", b"bad", b"missing", b"x" * 300):
        request(partial(operations.lookup, 1, name))
    for ino in (1, 2, 3, 4, 99):
        for action in (operations.getattr, operations.entries, operations.readlink):
            request(partial(action, ino))
        request(partial(operations.listxattr, ino, privileged=True))
    request(operations.totals)

    def read(ino: int) -> bytes:
        return operations.fetch(ino, operations.plan(ino, 0, 4096))

    for ino in (2, 4):
        request(partial(read, ino))
    operations._tree.readlink = lambda ino: 1 // 0  # type: ignore[method-assign]
    request(lambda: operations.readlink(3))
    return results


def test_nothing_is_loaded_late(surroundings: Surroundings, tmp_path: Path) -> None:
    log_file = tmp_path / "log"

    def run(wall: Callable[[int], object]) -> tuple[list[Result], list[str]]:
        events: list[str] = []

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            late = event in ("import", "ctypes.dlopen", "socket.connect", "subprocess.Popen")
            if late or (event == "open" and not re.fullmatch("[0-9a-f]{64}|[0-9]+", str(arguments[0]))):
                events.append(f"{event} {arguments[0]!r}")

        log = logging.getLogger("puzzlefs")
        handler = logging.FileHandler(log_file)
        handler.setFormatter(logging.Formatter("%(asctime)s puzzlefs[%(process)d]: %(levelname)s %(message)s"))
        log.addHandler(handler)
        with open_image(surroundings.reference) as image:
            operations = Operations(image)
            before = set(sys.modules)
            wall(image.layout.blobs_fd)
            loaded = set(sys.modules)
            sys.addaudithook(hook)
            results = _use(operations)
            assert set(sys.modules) == loaded >= before
            return results, events

    results, events = limited(lambda: run(_everything))
    assert {"ok", "EIO", "ENAMETOOLONG"} <= set(results)
    assert results == limited(lambda: run(_nothing))[0]
    # What a traceback would show of the source is the one thing that is looked for, and left out if it is not found.
    assert [event for event in events if not re.fullmatch(r"open '.*\.py'", event)] == []
    logged = log_file.read_text()
    assert "ZeroDivisionError" in logged
    assert re.search(r"read of '/bad' \(inode 4\): blob \S+ is corrupt", logged), logged


@pytest.mark.skipif(not Path("/proc/self/maps").read_text().count("libc.so.6"), reason="the C library is not glibc")
def test_what_ends_threads_is_loaded() -> None:
    def run() -> str:
        confine.prepare()
        return Path("/proc/self/maps").read_text()

    assert "libgcc_s.so.1" in limited(run)


# ---- through the real command


@pytest.mark.parametrize("engine", ["kernel"], indirect=True)
def test_the_server_of_a_mount_is_confined_and_its_guardian_is_not(surroundings: Surroundings, mounted: Mount) -> None:
    with mounted(surroundings.reference, bad_lines=True) as mount:
        assert (mount.path / "file").read_bytes() == _CONTENT
        with pytest.raises(OSError, match="Input/output error"):
            (mount.path / "bad").read_bytes()
        status = json.loads(run_puzzlefs("status", "--json", mount.path).stdout)
        server, guardian = _process(status["server_pid"]), _process(status["guardian_pid"])
    assert status["confinement"]["landlock_abi"] == (min(_landlock_abi(), landlock.NEWEST_ABI) or None)
    assert status["confinement"]["capabilities"] == ["CAP_DAC_READ_SEARCH"]
    assert (server["NoNewPrivs"], server["Seccomp"], int(server["CapEff"], 16)) == ("1", "2", 4)
    assert all(guardian[key] == _process(os.getpid())[key] for key in ("NoNewPrivs", "Seccomp", "CapEff", "CapBnd"))
    assert [line for line in mount.bad_lines() if "blob" not in line or "is corrupt" not in line] == []


# ---- where something is missing


@pytest.mark.parametrize("uid", [0, _NOBODY], ids=["root", "user"])
def test_no_landlock_and_no_filter_is_no_failure(
    surroundings: Surroundings, uid: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(landlock, "_CREATE_RULESET", 1 << 12)  # a system call that no kernel has
    monkeypatch.setattr(syscall_filter, "_ARCHITECTURES", {})

    def run() -> tuple[confine.Confinement, Result, list[str]]:
        _become(uid)
        blobs = os.open(surroundings.layout / "blobs" / "sha256", os.O_RDONLY | os.O_DIRECTORY)
        result = confine.confine([blobs])
        read = _result(lambda: os.open(os.listdir(blobs)[0], os.O_RDONLY, dir_fd=blobs))
        return result, read, [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]

    with caplog.at_level(logging.DEBUG):
        result, read, messages = limited(run)
    assert (result.landlock_abi, result.filters_calls, result.no_new_privileges) == (None, False, True)
    assert [reason.partition(":")[0] for reason in result.reasons] == ["Landlock", "seccomp"]
    assert read == "ok"
    assert messages == [f"The server is confined: {result}"]
    assert "no Landlock; no new privileges; system calls not filtered" in messages[0]


@_needs_landlock
def test_a_kernel_that_promises_too_much(surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = landlock.NEWEST_ABI
    monkeypatch.setattr(landlock, "abi", lambda: newest + 5)
    monkeypatch.setattr(landlock, "_FS_RIGHTS", (*landlock._FS_RIGHTS, (newest, 1 << 60)))

    def run() -> tuple[int, Result]:
        blobs = os.open(surroundings.layout / "blobs" / "sha256", os.O_RDONLY | os.O_DIRECTORY)
        confine._no_new_privileges()
        return landlock.restrict([blobs]), _result(lambda: os.open("/etc/passwd", os.O_RDONLY))

    assert limited(run) == (newest - 1, "EACCES")


@_needs_landlock
def test_blobs_that_cannot_be_allowed_are_not_cut_off(surroundings: Surroundings) -> None:
    """Something that is no directory of a file system: a rule for it is refused, and so nothing is restricted."""

    def run() -> tuple[confine.Confinement, Result]:
        read_end, _ = os.pipe()
        result = confine.confine([read_end])
        return result, _result(lambda: os.open("/etc/passwd", os.O_RDONLY))

    result, read = limited(run)
    assert (result.landlock_abi, read) == (None, "ok")
    assert any(reason.startswith("Landlock") for reason in result.reasons)
