"""Going into the background: what the foreground hears of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

_PROGRAM = """
import os, select, signal, sys
from puzzlefs import errors
from puzzlefs_cli.daemon import in_background
from puzzlefs_cli.exit_codes import exit_code

def note(text):
    with open({notes!r}, "a") as file:
        file.write(text + "\\n")

def work(ready, told):
{work}

starter = os.getpid()
try:
    in_background(work, meanwhile={meanwhile}, on_failure=lambda: note("failed"), debug={debug})
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
    sys.exit(int(exit_code(error)))
print("ready")
"""


def _run(
    tmp_path: Path, work: str, *, meanwhile: str = "None", debug: bool = False
) -> tuple[subprocess.CompletedProcess[str], str]:
    notes = tmp_path / "notes"
    notes.touch()
    body = "\n".join("    " + line for line in work.splitlines())
    program = _PROGRAM.format(notes=str(notes), work=body, meanwhile=meanwhile, debug=debug)
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
    program = _PROGRAM.format(notes=str(notes), work="    note('working'); ready()", meanwhile="None", debug=False)
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


@pytest.mark.parametrize(("meanwhile", "size"), [("None", 0), ("lambda: b''", 0), ("lambda: bytes(200_000)", 200_000)])
def test_what_it_is_told(tmp_path: Path, meanwhile: str, size: int) -> None:
    result, notes = _run(tmp_path, "note(str(len(told()))); ready()", meanwhile=meanwhile)
    assert (result.returncode, result.stdout, notes) == (0, "ready\n", f"{size}\n")


def test_both_work_at_the_same_time(tmp_path: Path) -> None:
    for name in ("there", "back"):
        os.mkfifo(tmp_path / name)
    there, back = str(tmp_path / "there"), str(tmp_path / "back")
    result, notes = _run(
        tmp_path,
        f"open({there!r}, 'w').close(); open({back!r}).close(); note(told().decode()); ready()",
        meanwhile=f"lambda: (open({there!r}).close(), open({back!r}, 'w').close(), b'done')[2]",
    )
    assert (result.returncode, notes) == (0, "done\n")


@pytest.mark.parametrize("end", ["raise errors.NotFoundError('gone')", "os._exit(1)"])
def test_a_daemon_that_fails_without_listening(tmp_path: Path, end: str) -> None:
    result, _ = _run(tmp_path, end, meanwhile="lambda: bytes(200_000)")
    assert result.returncode == (3 if "raise" in end else 7)
    assert result.stderr == ""


def test_who_would_have_told_is_gone(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    result, _ = _run(
        tmp_path,
        f"data = told(); open({str(fifo)!r}, 'w').write(str(len(data)))",
        meanwhile="lambda: os.kill(starter, signal.SIGKILL)",
    )
    assert result.returncode == -signal.SIGKILL
    assert fifo.read_text() == "0"
