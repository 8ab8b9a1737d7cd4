"""Running something in the background so that its beginning is seen in the foreground.

``Daemon(load)`` forks a process that calls ``load``, to import what it will need, and waits for its task;
``run(task)`` gives it one and returns when it says that it is ready. If it fails before, its error comes out of
``run``, in the process that the user looks at, as if nothing had been forked. A daemon without a task ends with the
process that started it.

The daemon has a session of its own and no terminal, stands in ``/``, has ``/dev/null`` for standard streams, and has
inherited no other descriptor but two pipes: one brings the task, through the other it reports. It must be forked while
the process has one thread.

The task is a tuple of plain values as ``marshal`` writes them, from one process to its own fork. The report is one JSON
object: ``{}`` for ready, or what went wrong (``process_report``). No report at all means that the daemon died.

This module is imported before anything else, so it imports nothing that takes long.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, Protocol

    Task = tuple[Any, ...]
    """What a daemon is to do: strings, numbers, booleans, None, and tuples of such."""

    class Job(Protocol):
        """Doing one task."""

        def run(self, ready: Callable[[], None]) -> None:
            """Do it, and call ``ready`` once. If the foreground process is gone by then, that raises, so that what was
            begun is taken back."""

        def failed(self) -> None:
            """Called if ``run`` raised before it was ready, after the error was reported."""


_FIRST_FREE = 3
_MAX_FD = 1 << 30
_READ_SIZE = 1 << 16


class Daemon:
    """A process in the background that waits to be told what to do."""

    def __init__(self, load: Callable[[], Callable[[Task], Job]]) -> None:
        """Start it.

        Args:
            load: called in the daemon at once; what it returns is called with the task.

        Raises:
            OSError: if there can be no further process, or no further descriptor.
        """
        sys.path[:] = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100  the daemon stands in /
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed when the program began
                stream.flush()
        ends: list[int] = []
        try:
            ends += _pipe()
            ends += _pipe()
            self._child = os.fork()
        except OSError:
            for end in ends:
                os.close(end)
            raise
        task_out, task_in, report_out, report_in = ends
        if self._child == 0:
            # only who waits has the other ends: the daemon notices when that one is gone
            os.close(task_in)
            os.close(report_out)
            _leave(load, task_out, report_in)
        os.close(task_out)
        os.close(report_in)
        self._task = task_in
        self._report = report_out

    def run(self, task: Task, *, debug: bool = False) -> None:
        """Let the daemon do its task; return when it is ready. Once.

        Args:
            task: the task.
            debug: whether to show the daemon's traceback on stderr.

        Raises:
            PuzzlefsError: what went wrong before it was ready; ``MountError`` if the daemon died without a word.
            OSError: likewise.
            RuntimeError: for anything else that went wrong there: a defect.
        """
        try:
            with open(self._task, "wb") as pipe:
                marshal.dump(task, pipe)
        except BrokenPipeError:
            pass  # it is gone, and may have said why
        with open(self._report, "rb") as pipe:
            os.waitpid(self._child, 0)
            report = pipe.read()
        _raise_reported(report, debug)

    def dismiss(self) -> None:
        """Let it end without a task, instead of ``run``."""
        os.close(self._task)
        os.close(self._report)
        os.waitpid(self._child, 0)


def _leave(load: Callable[[], Callable[[Task], Job]], tasks: int, reports: int) -> NoReturn:
    """The forked process: detach, work, and never return into the caller's stack."""
    status = 1
    try:
        os.setsid()
        if os.fork():  # whoever leads a session can get a terminal again; its child cannot
            os._exit(0)
        _detach(tasks, reports)
        status = _work(load, tasks, reports)
    finally:
        if "logging" in sys.modules:
            sys.modules["logging"].shutdown()
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


def _work(load: Callable[[], Callable[[Task], Job]], tasks: int, reports: int) -> int:
    waiting = True

    def let_go() -> None:
        if waiting:
            os.close(reports)  # only the daemon itself reports, and its end is the end

    os.register_at_fork(after_in_child=let_go)

    def ready() -> None:
        nonlocal waiting
        waiting = False
        _report(reports, {})

    job: Job | None = None
    try:
        begin = load()
        task = _received(tasks)
        if task is None:
            return 0
        job = begin(task)
        job.run(ready)
    except BaseException as error:  # it is told to those who wait
        import logging  # noqa: PLC0415

        from puzzlefs.errors import PuzzlefsError  # noqa: PLC0415
        from puzzlefs.mount.process_report import describe  # noqa: PLC0415

        log = logging.getLogger("puzzlefs.mount")
        if not waiting:
            log.critical("the server of the mount failed: %s", error, exc_info=not isinstance(error, PuzzlefsError))
            return 1
        log.error("%s", error)
        _report(reports, describe(error))
        if job is not None:
            job.failed()
        return 1
    if waiting:
        os.close(reports)  # ended without having been ready: somebody unmounted it at once
    return 0


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not in the place of standard streams, should those be closed."""
    ends = os.pipe()
    try:
        reader = fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
        try:
            writer = fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
        except OSError:
            os.close(reader)
            raise
    finally:
        for end in ends:
            os.close(end)
    return reader, writer


def _received(pipe: int) -> Task | None:
    """The task; ``None`` if who would have given one is gone."""
    data = b""
    while part := os.read(pipe, _READ_SIZE):
        data += part
    os.close(pipe)
    try:
        task: Task = marshal.loads(data)  # noqa: S302  from the process that this one was forked from
    except (EOFError, ValueError):
        return None  # nothing, or only its beginning
    return task


def _report(pipe: int, report: dict[str, str | int | None]) -> None:
    import json  # noqa: PLC0415

    try:
        os.write(pipe, json.dumps(report).encode())
    finally:
        os.close(pipe)


def _raise_reported(report: bytes, debug: bool) -> None:
    """Raise the error that a daemon reported, as the class that it was."""
    if report == b"{}":
        return
    if not report:
        from puzzlefs.errors import MountError  # noqa: PLC0415

        raise MountError(
            "the server in the background ended before the mount was ready", hint="run it with -f to see why"
        )
    import json  # noqa: PLC0415

    from puzzlefs.mount.process_report import understand  # noqa: PLC0415

    fields = json.loads(report)
    if debug:
        print(fields["traceback"], end="", file=sys.stderr)
    error = understand(fields)
    if isinstance(error, BaseException):
        raise error
