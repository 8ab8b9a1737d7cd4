"""Running something in the background so that its beginning is seen in the foreground.

``in_background(work)`` forks a daemon that calls ``work`` and returns when ``work`` says that it is ready. If
``work`` fails before, its error comes out of ``in_background``, in the process that the user looks at, as if nothing
had been forked. That process can do something for the daemon until then (``meanwhile``).

The daemon has a session of its own and no terminal, stands in ``/``, has ``/dev/null`` for standard streams, and has
inherited no other descriptors but two pipes: it reports through one, and is told something through the other. Must be
called while the process has one thread.

The report is one JSON object: ``{}`` for ready, or what went wrong (``process_report``). No report at all means that
the daemon died.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from puzzlefs.errors import MountError, PuzzlefsError
from puzzlefs.mount.process_report import describe, understand

_FIRST_FREE = 3
_MAX_FD = 1 << 30

Work = Callable[[Callable[[], None], Callable[[], bytes]], None]
"""What a daemon does, see ``in_background``."""

log = logging.getLogger("puzzlefs.mount")


def in_background(
    work: Work,
    *,
    meanwhile: Callable[[], bytes] | None = None,
    on_failure: Callable[[], object] | None = None,
    debug: bool = False,
) -> None:
    """Run ``work(ready, told)`` in a daemon; return when it has called ``ready()``.

    Args:
        work: what to do; it calls ``ready`` once. If the foreground process is gone by then, that call raises, so
            that what was begun is taken back. ``told()``, which it calls once, waits for what ``meanwhile`` returns;
            less than that, or nothing, comes if that process is gone.
        meanwhile: what this process does after the fork.
        on_failure: called in the daemon if ``work`` fails before it is ready, after the error was reported.
        debug: whether to show the daemon's traceback on stderr.

    Raises:
        PuzzlefsError: what ``work`` raised before it was ready; ``MountError`` if the daemon died without a word.
        OSError: likewise.
        RuntimeError: for anything else that ``work`` raised: a defect.
    """
    read_end, write_end = _pipe()
    told, tell = _pipe()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed when the program began
            stream.flush()
    child = os.fork()
    if child == 0:
        for fd in (read_end, tell):  # only who waits has them: the daemon notices when that one is gone
            os.close(fd)
        _leave(work, on_failure, write_end, told)
    os.close(write_end)
    os.close(told)
    with contextlib.suppress(BrokenPipeError), open(tell, "wb") as pipe:
        if meanwhile is not None:
            pipe.write(meanwhile())
    with open(read_end, "rb") as pipe:
        os.waitpid(child, 0)
        report = pipe.read()
    _raise_reported(report, debug)


def _leave(work: Work, on_failure: Callable[[], object] | None, pipe: int, told: int) -> NoReturn:
    """The forked process: detach, work, and never return into the caller's stack."""
    status = 1
    try:
        os.setsid()
        if os.fork():  # whoever leads a session can get a terminal again; its child cannot
            os._exit(0)
        _detach(pipe, told)
        status = _work(work, on_failure, pipe, told)
    finally:
        logging.shutdown()
        os._exit(status)


def _detach(*kept: int) -> None:
    """Stand in the root directory, with no descriptor of anybody but those that are kept."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(_FIRST_FREE):
        os.dup2(null, fd)
    first = _FIRST_FREE
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, _MAX_FD)


def _work(work: Work, on_failure: Callable[[], object] | None, pipe: int, told: int) -> int:
    waiting = True

    def let_go() -> None:
        if waiting:
            os.close(pipe)  # only the daemon itself reports, and its end is the end

    os.register_at_fork(after_in_child=let_go)

    def ready() -> None:
        nonlocal waiting
        waiting = False
        _report(pipe, {})

    try:
        work(ready, lambda: _read_all(told))
    except BaseException as error:
        if not waiting:
            log.critical("the server of the mount failed: %s", error, exc_info=not isinstance(error, PuzzlefsError))
            return 1
        log.error("%s", error)
        _report(pipe, describe(error))
        if on_failure is not None:
            on_failure()
        return 1
    if waiting:
        os.close(pipe)  # ended without having been ready: somebody unmounted it at once
    return 0


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not in the place of standard streams, should those be closed."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


def _read_all(pipe: int) -> bytes:
    with open(pipe, "rb") as file:
        return file.read()


def _report(pipe: int, report: dict[str, str | int | None]) -> None:
    try:
        os.write(pipe, json.dumps(report).encode())
    finally:
        os.close(pipe)


def _raise_reported(report: bytes, debug: bool) -> None:
    """Raise the error that a daemon reported, as the class that it was."""
    if not report:
        raise MountError(
            "the server in the background ended before the mount was ready", hint="run it with -f to see why"
        )
    fields = json.loads(report)
    if not fields:
        return
    if debug:
        print(fields["traceback"], end="", file=sys.stderr)
    error = understand(fields)
    if isinstance(error, BaseException):
        raise error
