"""Mounting from a program: ``puzzlefs.mount`` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mounting import Built, is_mounted

pytestmark = pytest.mark.mount

_HEAD = """
import os, signal, sys, threading
from pathlib import Path
import puzzlefs
image, point, engine = sys.argv[1:]
"""


def _run(program: str, odd: Built, point: Path, engine: str) -> list[str]:
    command = [sys.executable, "-c", _HEAD + program, odd.image("v3"), str(point), engine]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert not is_mounted(point)
    return result.stdout.splitlines()


def test_in_the_main_thread(odd: Built, point: Path, engine: str) -> None:
    program = """
def ready():
    print("ready", os.path.ismount(point))
    os.kill(os.getpid(), signal.SIGTERM)
puzzlefs.mount(image, point, ["noexec"], on_ready=ready, engine=engine)
print("returned", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    assert _run(program, odd, point, engine) == ["ready True", "returned True set()"]


def test_in_another_thread(odd: Built, point: Path, engine: str) -> None:
    program = """
ready = threading.Event()
def serve():
    with puzzlefs.open_image(image) as opened:
        puzzlefs.mount(opened, Path(point), on_ready=ready.set, engine=engine)
        print("returned", opened.tree.kind(1).name)
server = threading.Thread(target=serve)
server.start()
assert ready.wait(30)
print(os.stat(point).st_ino, Path(point, "bin/script").read_text().splitlines()[0])
puzzlefs.unmount(Path(point))
server.join(30)
print(server.is_alive())
"""
    assert _run(program, odd, point, engine) == ["1 #!/bin/sh", "returned DIRECTORY", "False"]


def test_an_error_of_the_caller_comes_out(odd: Built, point: Path, engine: str) -> None:
    program = """
def ready():
    raise ZeroDivisionError("mine")
try:
    puzzlefs.mount(image, point, on_ready=ready, engine=engine)
except ZeroDivisionError as error:
    print(error, os.path.ismount(point))
"""
    assert _run(program, odd, point, engine) == ["mine False"]


def test_one_after_the_other(odd: Built, point: Path, engine: str) -> None:
    program = """
for _ in range(3):
    puzzlefs.mount(image, point, on_ready=lambda: puzzlefs.unmount(point), engine=engine)
    print(os.path.ismount(point), len(os.listdir("/proc/self/fd")))
"""
    lines = _run(program, odd, point, engine)
    assert len(lines) == 3
    assert len(set(lines[1:])) == 1, "descriptors leak"
    assert all(line.startswith("False ") for line in lines)


@pytest.mark.parametrize("name", ["", "libfuse", "PYFUSE3"])
def test_engines_that_do_not_exist(odd: Built, point: Path, name: str) -> None:
    program = """
try:
    puzzlefs.mount(image, point, engine=engine)
except puzzlefs.InvalidArgumentError as error:
    print(error)
"""
    (line,) = _run(program, odd, point, name)
    assert repr(name) in line
    assert "pyfuse3" in line
