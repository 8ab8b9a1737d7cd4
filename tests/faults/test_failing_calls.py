"""Every command that changes a layout, with each of its system calls failing once: EIO, a full disk, kill -9.

Whatever fails, wherever: tags are as before or as the command makes them, every blob is what its name says, the error
says what failed where and what to do, nothing is left behind unless the program was killed, and the same command, run
again, does what it would have done at first.

Of calls that are alike a few are worth a fault, and of those every commit tries some;
PUZZLEFS_TEST_ALL_FAULTS=1 tries all.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from commands import CASES, Stage, build_case
from faulty_calls import CHANGES, EVERYTHING, GROWS, READS, Action, Fault, FaultyCommand, Kind, choose
from own_mounts import in_own_mounts
from stage import NOTHING, Case
from support.writable import needs_root, writable

from puzzlefs_cli.exit_codes import ExitCode

pytestmark = pytest.mark.crash

EVERY = 1 if "PUZZLEFS_TEST_ALL_FAULTS" in os.environ else 5
"""Of the faults that are worth trying, the share that is tried."""

MODES = {
    "eio": (EVERYTHING, [Fault(EVERYTHING, number=errno.EIO)]),
    "dead": (EVERYTHING, [Fault(EVERYTHING, number=errno.EIO, stays=True)]),
    "full": (GROWS, [Fault(GROWS, number=errno.ENOSPC, stays=True), Fault(GROWS, number=errno.ENOSPC)]),
    "kill": (CHANGES, [Fault(CHANGES, action=Action.KILL_BEFORE), Fault(CHANGES, action=Action.KILL_AFTER)]),
    "short": (Kind.WRITE, [Fault(Kind.WRITE, action=Action.SHORTEN, stays=True)]),
}


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest, place: Path, command: FaultyCommand) -> Iterator[Case]:
    """A command and a layout for it, each in a directory of its own."""
    directory = place / str(request.param)
    directory.mkdir()
    made = CASES[request.param](Stage(directory))
    made.prepare(command)
    yield made
    shutil.rmtree(directory)


def try_all(case: Case, command: FaultyCommand, mode: str) -> None:
    """Have the command meet with every fault of a mode, and check everything each time."""
    kinds, faults = MODES[mode]
    calls = command.calls(case.layout, kinds, *case.words, stdin=case.stdin)
    case.restore()
    chosen = [fault.on(number) for number in choose(calls) for fault in faults]
    problems: list[str] = []
    for fault in chosen[crc32(f"{case.name} {mode}".encode()) % EVERY :: EVERY]:
        problems += case.attempt(command, fault)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("case", CASES, indirect=True)
@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_fails(case: Case, command: FaultyCommand, mode: str) -> None:
    try_all(case, command, mode)


@pytest.mark.parametrize("words", [["export", "-o"], ["extract"], ["cat"]])
def test_a_layout_that_cannot_be_read(place: Path, command: FaultyCommand, words: list[str]) -> None:
    """The error is about the layout, whatever is done with what should have been read."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        stage = Stage(Path(name))
        target = stage.place / "target"
        image = f"{stage.layout}:old"
        more: dict[str, list[object]] = {
            "export": [target, image],
            "extract": [image, target],
            "cat": [image, "/file-0"],
        }
        whole = [*words, *more[words[0]]]
        calls = command.calls(stage.layout, READS, *whole)
        ended = set()
        for number in choose(calls):
            for stays in (False, True):
                subprocess.run(["rm", "-rf", target], check=True)
                fault = Fault(READS, at=number, number=errno.EIO, stays=stays)
                done = command.run(stage.layout, fault, *whole)
                ended.add(done.code)
                if done.code != 0:
                    assert done.code == ExitCode.IO, done
                    assert str(stage.layout) in done.stderr, done
                    assert "Input/output error; " in done.stderr, done
        assert ExitCode.IO in ended


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_fails_in_a_worker(place: Path, command_with_processes: FaultyCommand, mode: str) -> None:
    """Or in the process that has workers."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        case = build_case(Stage(Path(directory)))
        case.name = "build with processes"
        case.prepare(command_with_processes)
        try_all(case, command_with_processes, mode)


@needs_root
def test_a_call_that_fails_while_a_mount_is_committed(place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place) as directory:
        in_own_mounts(lambda: _commit_with_faults(Path(directory)))


def _commit_with_faults(directory: Path) -> None:
    stage = Stage(directory)
    with (
        FaultyCommand(directory) as command,
        writable(f"{stage.layout}:old", stage.place / "mounted") as mount,
    ):
        (mount.path / "new").write_bytes(random.Random(9).randbytes(150_000))
        (mount.path / "file-1").unlink()
        case = Case("commit", ["commit", mount.path, "new"], stage.layout)
        case.prepare(command)
        for mode in MODES:
            try_all(case, command, mode)


def test_what_a_repair_moves_aside_comes_back(place: Path, command: FaultyCommand) -> None:
    """A directory has a blob's name, with somebody's files in it, and what is good cannot take its place."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        case = CASES["repair-from"](Stage(Path(name)))
        blob = case.layout / "blobs" / "sha256" / min(case.bad)
        blob.unlink(missing_ok=True)
        blob.mkdir()
        (blob / "file").write_text("somebody's")
        done = command.run(case.layout, Fault(Kind.SYNC, at=1, number=errno.EIO), *case.words)
        assert done.hit
        assert done.code == ExitCode.IO
        assert (blob / "file").read_text() == "somebody's"
        done = command.run(case.layout, NOTHING, *case.words)
        assert done.code == 0
        assert blob.is_file()
