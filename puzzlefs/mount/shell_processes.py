"""Running a command so that nothing of it survives: its own process numbers, and a process 1 that reaps.

Three processes take part in the waiting, and each passes on to the one below what it is sent::

    the caller → keeper → process 1 of a new PID namespace → the command

When process 1 ends, the kernel kills everything else in its namespace; when the keeper ends, process 1 is killed
(``PR_SET_PDEATHSIG``). So nothing is left whoever is killed, and by what.

Signals are passed on if a process sent them. Those that a terminal sends reach the command without our help, as it
stays in the caller's process group. All of this waits in ``sigwaitinfo`` with the signals blocked: no handlers, no
races.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from puzzlefs.errors import MountError
from puzzlefs.mount import namespace
from puzzlefs.mount.process_report import NotRun, report
from puzzlefs.mount.shell_places import Places
from puzzlefs.mount.shell_root import enter

FORWARDED: Final = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
)
"""The signals that are passed on."""

KILL: Final = signal.SIGRTMIN + 1
"""Tells the keeper to kill the command with all its processes, and to wait until they have ended."""

INTERRUPTED: Final = signal.SIGRTMIN + 2
"""Tells a process that is in no terminal's group that somebody pressed Ctrl-C; the command knows already."""

WATCHED: Final = frozenset({*FORWARDED, signal.SIGCHLD, KILL, INTERRUPTED})
"""The signals that whoever waits here must have blocked."""

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_SIGNALLED: Final = 128

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHELL: Final = "/bin/sh"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run.

    Attributes:
        words: the program and its arguments; none: a shell.
        environment: the variables it starts from; those that depend on the image are set inside.
        signal_mask: the signals it has blocked.
        root: its root.
        places: where things are to be mounted in there.
        resolv_conf: the file to show as ``/etc/resolv.conf``, if any.
        report_fd: the pipe for errors.
    """

    words: Sequence[str]
    environment: Mapping[str, str]
    signal_mask: frozenset[int]
    root: Path
    places: Places
    resolv_conf: Path | None
    report_fd: int


def exit_status(status: int) -> int:
    """What a shell makes of the status that ``waitpid`` returns: 128 and the number for a signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _SIGNALLED - code


def wait_and_forward(pid: int, on_signal: Callable[[signal.struct_siginfo], bool] | None = None) -> int:
    """Wait for the child ``pid``, passing on to it what this process is sent; reap other children.

    Args:
        pid: a child.
        on_signal: called with each signal but SIGCHLD; true: it has been dealt with.

    Returns:
        The status as ``waitpid`` returns it.
    """
    while True:
        info = signal.sigwaitinfo(WATCHED)
        if info.si_signo == signal.SIGCHLD:
            for child, status in _ended_children():
                if child == pid:
                    return status
        elif (on_signal is None or not on_signal(info)) and not is_from_terminal(info):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, info.si_signo)


def is_from_terminal(info: signal.struct_siginfo) -> bool:
    """Whether the kernel sent a signal, not a process: the whole group of the terminal has it then."""
    return info.si_code > 0


def keep(command: Callable[[], Command], go: int, report_fd: int) -> NoReturn:
    """Be the keeper: wait for a byte from ``go``, run the command in namespaces of its own, end with its exit status.

    For a process that was forked for this, with ``WATCHED`` blocked. Ends at once if ``go`` is closed.
    """
    status = 1
    namespace.die_with_parent(signal.SIGKILL)
    try:
        if os.read(go, 1):
            status = _keep(command())
    except BaseException as error:  # noqa: BLE001  it must not come out of the process that was forked
        report(report_fd, error)
    finally:
        os._exit(status)


def _keep(command: Command) -> int:
    try:
        namespace.unshare(namespace.CLONE_NEWNS | namespace.CLONE_NEWPID | namespace.CLONE_NEWIPC)
    except OSError as error:
        raise MountError(f"the command cannot have namespaces of its own: {error.strerror}") from error
    os.chdir("/")
    alive, here = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        _be_process_one(command, alive)
    os.write(here, b"\0")

    def kill(info: signal.struct_siginfo) -> bool:
        if info.si_signo == KILL:
            os.kill(child, signal.SIGKILL)
        return info.si_signo == KILL

    return exit_status(wait_and_forward(child, kill))


def _be_process_one(command: Command, alive: int) -> NoReturn:
    status = 1
    try:
        namespace.die_with_parent(signal.SIGKILL)
        if os.read(alive, 1):  # else the keeper was gone before that took effect
            _close_private_descriptors(except_for=command.report_fd)
            os.umask(0o022)
            enter(command.root, command.places, command.resolv_conf)
            child = os.fork()
            if child == 0:
                _be_command(command)
            os.close(command.report_fd)
            status = exit_status(wait_and_forward(child))
    except BaseException as error:  # noqa: BLE001  as above
        report(command.report_fd, error)
    finally:
        os._exit(status)


def _be_command(command: Command) -> NoReturn:
    status = NOT_EXECUTABLE
    words, environment = command.words, _environment(command.environment)
    try:
        with contextlib.suppress(OSError):  # those of the caller have no names here, where they may be dropped
            os.setgroups([])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, command.signal_mask)
        words = words or [environment["SHELL"]]
        os.execvpe(words[0], list(words), environment)  # noqa: S606  no shell is wanted
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            status = NOT_FOUND
        report(command.report_fd, NotRun(f"{words[0]} cannot be run in the image: {error.strerror}"))
    except BaseException as error:  # noqa: BLE001  as above
        report(command.report_fd, error)
    finally:
        os._exit(status)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables inside: those of the caller, but for paths, which mean something else here."""
    kept = {name: value for name, value in given.items() if not value.startswith("/")}
    shell = given.get("SHELL", "")
    return kept | {
        "PATH": _PATH,
        "HOME": "/root" if Path("/root").is_dir() else "/",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": shell if shell.startswith("/") and os.access(shell, os.X_OK) else _SHELL,
        "PWD": "/",
    }


def _close_private_descriptors(*, except_for: int) -> None:
    """Close what is open for us and not for the command, which could reach the host through ``/proc/1/fd``."""
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    for fd in numbers:
        with contextlib.suppress(OSError):  # that of the listing itself is gone
            if fd != except_for and not os.get_inheritable(fd):
                os.close(fd)


def _ended_children() -> list[tuple[int, int]]:
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(ended)
    return found
