"""Going into the background: what the foreground hears of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puzzlefs_cli.mount_daemon import daemon_for

pytestmark = pytest.mark.unit

_PROGRAM = """
import os, select, signal, sys
from puzzlefs import errors
from puzzlefs_cli.daemon import Daemon
from puzzlefs_cli.exit_codes import exit_code

def note(text):
    with open({notes!r}, "a") as file:
        file.write(text + "\\n")

class Job:
    def __init__(self, task):
        self.task = task

    def run(self, ready):
        task = self.task
{work}

    def failed(self):
        note("failed")

def load():
    {load}
    return Job

starter = os.getpid()
try:
    daemon = Daemon(load)
    {meanwhile}
    daemon.run(("task", 1, None, ("a", "b" * {size})), debug={debug})
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
    sys.exit(int(exit_code(error)))
print("ready")
"""


def _program(
    notes: Path, work: str, *, load: str = "pass", meanwhile: str = "pass", size: int = 1, debug: bool = False
) -> str:
    body = "\n".join("        " + line for line in work.splitlines())
    return _PROGRAM.format(notes=str(notes), work=body, load=load, meanwhile=meanwhile, size=size, debug=debug)


def _run(tmp_path: Path, work: str, **how: str | int) -> tuple[subprocess.CompletedProcess[str], str]:
    notes = tmp_path / "notes"
    notes.touch()
    program = _program(notes, work, **how)  # type: ignore[arg-type]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    return result, notes.read_text()


def test_ready(tmp_path: Path) -> None:
    result, notes = _run(tmp_path, 'note("working"); ready()')
    assert (result.returncode, result.stdout, result.stderr) == (0, "ready\n", "")
    assert notes == "working\n"


def test_it_returns_while_the_daemon_goes_on(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    result, notes = _run(
        tmp_path,
        f"os.mkfifo({str(fifo)!r}); ready(); note(open({str(fifo)!r}).read()); os.unlink({str(fifo)!r})",
    )
    assert result.stdout == "ready\n"
    assert notes == ""
    fifo.write_text("go on")  # returns when the daemon reads
    while fifo.exists():
        pass
    assert (tmp_path / "notes").read_text() == "go on\n"


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ('errors.NotFoundError("no tag", hint="look")', 3, "NotFoundError: no tag; look"),
        (
            'errors.TagNotFoundError("layout", "t", ["a"])',
            3,
            "TagNotFoundError: layout has no tag 't'; its tags are: a",
        ),
        (
            'errors.IntegrityError("blob", expected="a", actual="b")',
            5,
            "IntegrityError: blob is corrupt or was replaced",
        ),
        ('errors.InvalidArgumentError("word")', 2, "InvalidArgumentError: word"),
        ('FileNotFoundError(2, "No such file or directory", "/x")', 3, "FileNotFoundError: [Errno 2] No such file"),
        ('PermissionError(13, "Permission denied", b"/x")', 7, "PermissionError: [Errno 13] Permission denied: '/x'"),
        ("ZeroDivisionError('oops')", 70, "RuntimeError: ZeroDivisionError: oops"),
    ],
)
def test_errors_come_out_in_the_foreground(tmp_path: Path, raised: str, code: int, said: str) -> None:
    result, notes = _run(tmp_path, f"raise {raised}")
    assert notes in ("", "failed\n")  # told after the foreground has heard of it
    assert result.returncode == code
    assert result.stdout.startswith(said)
    assert "Traceback" not in result.stderr


def test_the_traceback_for_debugging(tmp_path: Path) -> None:
    result, _ = _run(tmp_path, "raise errors.FormatError('bad')", debug=True)
    assert "Traceback" in result.stderr
    assert "FormatError: bad" in result.stderr


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "os.abort()", "return"])
def test_a_daemon_that_dies_early(tmp_path: Path, end: str) -> None:
    result, _ = _run(tmp_path, end)
    assert result.returncode == 7
    assert result.stdout.startswith("MountError: the server in the background ended before the mount was ready")


def test_what_the_daemon_is(tmp_path: Path) -> None:
    result, notes = _run(
        tmp_path,
        "note(os.getcwd())\n"
        "note(str(os.getsid(0) != os.getpid()))\n"
        "note(' '.join(sorted(os.listdir('/proc/self/fd'))[:3]))\n"
        "note(str({os.readlink(f'/proc/self/fd/{n}') for n in range(3)}))\n"
        "ready()",
    )
    assert result.returncode == 0
    assert notes.splitlines() == ["/", "True", "0 1 2", "{'/dev/null'}"]


def test_closed_standard_streams(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    program = _program(notes, "note('working'); ready()")
    command = 'exec "$0" -c "$1" <&- >&- 2>&-'
    result = subprocess.run(["sh", "-c", command, sys.executable, program], timeout=30, check=False)
    assert notes.read_text() == "working\n"
    assert result.returncode in (0, 1)  # it cannot print that it is ready


def test_readiness_that_nobody_waits_for_is_an_error(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    work = f"""
fd = os.pidfd_open(starter)
os.kill(starter, signal.SIGKILL)
select.select([fd], [], [])
try:
    ready()
except OSError as error:
    open({str(fifo)!r}, "w").write(type(error).__name__)
"""
    result, _ = _run(tmp_path, work)
    assert result.returncode == -signal.SIGKILL
    assert fifo.read_text() == "BrokenPipeError"


def test_the_task_comes_as_it_was_given(tmp_path: Path) -> None:
    result, notes = _run(tmp_path, "note(f'{task[:3]} {task[3][0]} {len(task[3][1])}'); ready()", size=200_000)
    assert (result.returncode, result.stdout) == (0, "ready\n")
    assert notes == "('task', 1, None) a 200000\n"


def test_it_loads_before_it_has_a_task(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    result, notes = _run(
        tmp_path,
        "note('working'); ready()",
        load=f"note('loaded'); open({str(fifo)!r}, 'w').close()",
        meanwhile=f"open({str(fifo)!r}).read(); note('told')",
    )
    assert result.returncode == 0
    assert notes == "loaded\ntold\nworking\n"


def test_what_goes_wrong_while_it_loads_is_told(tmp_path: Path) -> None:
    result, notes = _run(tmp_path, "ready()", load="raise ImportError('no such thing')")
    assert result.returncode == 70
    assert result.stdout.startswith("RuntimeError: ImportError: no such thing")
    assert notes == ""  # there was no job that could fail


def test_a_daemon_that_dies_while_it_loads(tmp_path: Path) -> None:
    result, _ = _run(tmp_path, "ready()", load="os._exit(3)", size=200_000)
    assert result.returncode == 7
    assert result.stdout.startswith("MountError: the server in the background ended before the mount was ready")


@pytest.mark.parametrize(
    "end",
    ["sys.exit(0)", "os._exit(0)", "os.kill(starter, signal.SIGKILL)", "daemon.dismiss(); reader.read(); sys.exit(0)"],
)
def test_a_daemon_without_a_task_ends(tmp_path: Path, end: str) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    _, notes = _run(
        tmp_path,
        "note('working')",
        load=f"os.open({str(alive)!r}, os.O_WRONLY)",
        meanwhile=f"reader = open({str(alive)!r}); {end}",
    )
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    try:
        deadline = time.monotonic() + 10
        while _has_writer(reader):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.close(reader)
    assert notes == ""


def _has_writer(fifo: int) -> bool:
    try:
        return os.read(fifo, 1) != b""
    except BlockingIOError:
        return True


@pytest.mark.parametrize("descriptors", range(3, 12))
def test_where_no_daemon_can_be_started_nothing_is_left_of_it(descriptors: int) -> None:
    program = f"""
import os, resource
from puzzlefs_cli.mount_daemon import daemon_for
before = os.listdir("/proc/self/fd")
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, hard))
daemon = daemon_for(["mount", "image:tag", "point"])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
if daemon is None:
    assert os.listdir("/proc/self/fd") == before
print(daemon is not None)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (result.stdout, result.stderr) == (f"{descriptors >= 9}\n", "")


def test_a_daemon_that_cannot_be_forked_is_nothing_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "fork", refuse)
    assert daemon_for(["mount", "image:tag", "point"]) is None
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("words", [[], ["ls", "mount"], ["--debug"], ["mount", "-f", "a", "b"], ["mount", "--help"]])
def test_nothing_is_started_for_what_serves_nobody(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    assert daemon_for(words) is None
