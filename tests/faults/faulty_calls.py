"""The ``puzzlefs`` command with system calls that fail.

``FaultyCommand`` is a server: one process with ``faulty_calls.c`` loaded that has imported what the command needs and
runs each command line in a fork. That is the real command, with its exit code and output, in a twentieth of the time
that starting Python takes, so that hundreds of faults can be tried.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

HERE = Path(__file__).parent
_NOTES = 1 << 20
_FOREVER = 1 << 62


class Kind(enum.IntFlag):
    """Kinds of calls: those of ``enum kind``."""

    WRITE = 1 << 0
    CREATE = 1 << 1
    SYNC = 1 << 2
    RENAME = 1 << 3
    LINK = 1 << 4
    UNLINK = 1 << 5
    MKDIR = 1 << 6
    OPEN = 1 << 7
    READ = 1 << 8
    STAT = 1 << 9
    CLOSE = 1 << 10
    LOCK = 1 << 11
    LIST = 1 << 12


CHANGES = Kind.WRITE | Kind.CREATE | Kind.SYNC | Kind.RENAME | Kind.LINK | Kind.UNLINK | Kind.MKDIR
"""What changes a layout."""
GROWS = Kind.WRITE | Kind.CREATE | Kind.SYNC | Kind.RENAME | Kind.LINK | Kind.MKDIR
"""What fails on a full disk."""
READS = Kind.OPEN | Kind.READ | Kind.STAT | Kind.LIST
"""What reads one."""
EVERYTHING = Kind(sum(Kind))


class Action(enum.IntEnum):
    """What becomes of a call: ``enum action``."""

    FAIL = 0
    KILL_BEFORE = 1
    KILL_AFTER = 2
    SHORTEN = 3


class _Control(ctypes.Structure):
    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("armed", "count", "first", "last", "number", "action", "kinds")],
        *[(name, ctypes.c_int64) for name in ("victim", "hits", "noted", "noting")],
        ("hit", ctypes.c_char * 512),
        ("below", ctypes.c_char * 3584),
        ("notes", ctypes.c_char * _NOTES),
    )


@dataclass(frozen=True)
class Fault:
    """Which calls, from the ``at``-th on (counted from 1), meet with what.

    Attributes:
        kinds: the calls that count.
        at: the number of the call among them; 0: none, they are only counted.
        number: the errno.
        action: what happens.
        stays: whether all later calls meet with it, too.
    """

    kinds: Kind
    at: int = 0
    number: int = 0
    action: Action = Action.FAIL
    stays: bool = False

    def on(self, call: int) -> Fault:
        """The same for another call."""
        return dataclasses.replace(self, at=call)


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        code: its exit code, negative for a signal.
        stdout: what it printed.
        stderr: what it printed.
        hit: the first call that met with the fault, and on which path below the directory; empty: none did.
        calls: how many calls counted.
    """

    code: int
    stdout: str
    stderr: str
    hit: str
    calls: int


class FaultyCommand:
    """Runs commands below whose one directory calls may fail. A context manager."""

    def __init__(self, directory: Path, prepare: str = "") -> None:
        """Start the server.

        Args:
            directory: for files of its own.
            prepare: Python that the server runs once.
        """
        library = directory / "faulty_calls.so"
        source = HERE / "faulty_calls.c"
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        path = directory / "control"
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._control = _Control.from_buffer(self._map)
        self._server = subprocess.Popen(
            [sys.executable, HERE / "forks.py", library, directory, prepare],
            env={**os.environ, "LD_PRELOAD": str(library), "PUZZLEFS_TEST_FAULTS": str(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, below: Path, fault: Fault, *words: object, stdin: Path | None = None, limit: float = 0) -> Done:
        """Run a command.

        Args:
            below: the directory that is meant; a path without links.
            fault: what is to happen there.
            words: the command line, without the program.
            stdin: what it reads.
            limit: seconds after which it is killed; 0: never.
        """
        self._begin(below, fault)
        return self._command(words, stdin, limit)

    def calls(self, below: Path, kinds: Kind, *words: object, stdin: Path | None = None) -> list[str]:
        """Run a command, which has to succeed; the calls that a ``Fault`` of these kinds would count, in order."""
        self._begin(below, Fault(kinds))
        self._control.noting = 1
        done = self._command(words, stdin, 0)
        if done.code != 0:
            raise AssertionError(f"{words}: {done}")
        length = self._control.noted
        if not 0 <= length < _NOTES:
            raise AssertionError(f"{length} bytes of notes")
        return self._control.notes[:length].decode(errors="replace").splitlines()

    def _begin(self, below: Path, fault: Fault) -> None:
        control = self._control
        control.armed = control.count = control.hits = control.noted = control.noting = 0
        control.first, control.last = fault.at, _FOREVER if fault.stays else fault.at
        control.number, control.action, control.kinds = fault.number, fault.action, fault.kinds
        control.hit, control.below = b"", os.fsencode(below)
        control.notes = b""

    def _command(self, words: Sequence[object], stdin: Path | None, limit: float) -> Done:
        request = {"words": [str(word) for word in words], "stdin": str(stdin or os.devnull), "limit": limit}
        if self._server.stdin is None or self._server.stdout is None:
            raise AssertionError("the server has no pipes")
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        self._control.armed = 0
        hit = self._control.hit.decode(errors="replace")
        return Done(answer["code"], answer["stdout"], answer["stderr"], hit, self._control.count)

    def close(self) -> None:
        """End the server."""
        del self._control
        self._map.close()
        if self._server.stdin is not None:
            self._server.stdin.close()
        self._server.wait(timeout=60)
        if self._server.stdout is not None:
            self._server.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_NAME = re.compile(r"[0-9a-f]{64}")
_NUMBERS = re.compile(r"[0-9a-f]{16}(-w?[0-9a-f]+)?|(?<=json-)[0-9]+")


def choose(calls: Sequence[str]) -> list[int]:
    """Of calls those that are worth a fault, as their numbers: of each kind on the like the first, one in the middle,
    and the last."""
    alike: dict[str, list[int]] = {}
    for number, call in enumerate(calls, 1):
        alike.setdefault(_NUMBERS.sub("#", _NAME.sub("BLOB", call)), []).append(number)
    return sorted({number for same in alike.values() for number in (same[0], same[len(same) // 2], same[-1])})
