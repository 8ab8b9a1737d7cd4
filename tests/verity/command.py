"""The ``puzzlefs`` command, run in a fork of this process.

Starting Python and importing what the command needs takes many seconds in an emulated machine; a fork has both behind
it. Otherwise it is the real thing: the command line's entry point in a process of its own, with its exit code, its
output and, for ``mount``, the daemon that stays behind.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Output:
    """What a command printed."""

    stdout: str
    stderr: str


def puzzlefs(*words: object, code: int = 0) -> Output:
    """Runs the command, which has to end with the exit code given."""
    for needed in ("puzzlefs.builder", "puzzlefs.extract", "puzzlefs.mount", "pyfuse3", "trio"):
        importlib.import_module(needed)  # here, so that no fork has to do it
    from puzzlefs_cli.main import main

    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        child = os.fork()
        if child == 0:
            status = 99
            try:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
                    status = main([str(word) for word in words])
            except SystemExit as error:
                status = int(error.code or 0)
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        stdout.seek(0)
        stderr.seek(0)
        output = Output(stdout.read(), stderr.read())
    ended = os.waitstatus_to_exitcode(status)
    if ended != code:
        raise AssertionError(f"{words} ended with {ended}, not {code}: {output}")
    return output
