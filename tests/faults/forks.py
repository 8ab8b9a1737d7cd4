"""The server of ``faulty_calls.FaultyCommand``: runs command lines, each in a fork of this process.

A request is a line of JSON, ``words``, ``stdin`` and ``limit``; so is the answer, ``code``, ``stdout``, ``stderr``. Its
own arguments: the library that was loaded, a directory for files, Python to be run once.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from puzzlefs_cli.main import main

_NEEDED = ("builder", "delta", "copy_image", "collect", "fsck", "tar", "convert", "canonicalize", "mount.committing")


def run(words: list[str], stdin: str, limit: float, directory: Path, library: ctypes.CDLL) -> dict[str, object]:
    """Run a command line in a fork."""
    outputs = [directory / "stdout", directory / "stderr"]
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setsid()
            os.dup2(os.open(stdin, os.O_RDONLY), 0)  # nothing was read through sys.stdin
            for fd, path in enumerate(outputs, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
            with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
                library.faults_arm()
                status = main(words)
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:  # noqa: BLE001  the fork must not go on as a second server
            traceback.print_exc()
        finally:
            os._exit(status)
    pid, status = os.waitpid(child, os.WNOHANG) if limit else os.waitpid(child, 0)
    end = time.monotonic() + limit
    while pid == 0 and time.monotonic() < end:
        time.sleep(0.0005)
        pid, status = os.waitpid(child, os.WNOHANG)
    if pid == 0:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    stdout, stderr = (path.read_text(errors="replace") for path in outputs)
    return {"code": code, "stdout": stdout, "stderr": stderr}


def serve() -> None:
    """Answer requests until there are no more."""
    library, directory, prepare = sys.argv[1:]
    for name in _NEEDED:
        importlib.import_module(f"puzzlefs.{name}")
    exec(prepare)
    loaded = ctypes.CDLL(library)
    requests = os.fdopen(os.dup(0))
    for line in requests:
        request = json.loads(line)
        print(json.dumps(run(directory=Path(directory), library=loaded, **request)), flush=True)


if __name__ == "__main__":
    serve()
