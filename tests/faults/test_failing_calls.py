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
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from commands import CASES, Stage, build_case
from faulty_calls import CHANGES, EVERYTHING, GROWS, Action, Fault, FaultyCommand, Kind, choose
from stage import Case
from support.writable import needs_root, writable

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


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_fails_in_a_worker(place: Path, command_with_processes: FaultyCommand, mode: str) -> None:
    """Or in the process that has workers."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        case = build_case(Stage(Path(directory)))
        case.name = "build with processes"
        case.prepare(command_with_processes)
        try_all(case, command_with_processes, mode)


@needs_root
@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_fails_while_a_mount_is_committed(place: Path, command: FaultyCommand, mode: str) -> None:
    with tempfile.TemporaryDirectory(dir=place) as directory:
        stage = Stage(Path(directory))
        with writable(f"{stage.layout}:old", stage.place / "mounted") as mount:
            (mount.path / "new").write_bytes(random.Random(9).randbytes(150_000))
            (mount.path / "file-1").unlink()
            case = Case("commit", ["commit", mount.path, "new"], stage.layout)
            case.prepare(command)
            try_all(case, command, mode)
