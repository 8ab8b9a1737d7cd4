"""Running a command with an image as its writable root, without being root.

Three processes; each is killed, or told, when the one before it ends, so that no mount, directory or process is left::

    caller    where it was; maps ids, passes signals on, waits
      server  in a user and a mount namespace: mounts the image and the overlay, serves the image: ``shell_server``
        keeper → process 1 → the command: see ``shell_processes``

The image is mounted inside, because a FUSE mount knows the owners of the user namespace that it was made in. What is
written goes to memory (or to a directory that was named), and is gone with the namespace unless somebody takes it from
there: ``on_success`` is called in the server when the command has ended, in the user namespace, where ``stat`` shows
the owners that the command saw.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puzzlefs.errors import InvalidArgumentError, MountError, StorageError
from puzzlefs.image import Image
from puzzlefs.mount import namespace
from puzzlefs.mount.process_report import NotRun, read_report
from puzzlefs.mount.serve import EngineName
from puzzlefs.mount.shell_ids import map_ids
from puzzlefs.mount.shell_processes import INTERRUPTED, WATCHED, exit_status, is_from_terminal, wait_and_forward
from puzzlefs.mount.shell_server import Job, be_server
from puzzlefs.mount.shell_stage import OVERLAYS, OverlayName, Stage

_PREFIX: Final = "puzzlefs-shell-"
_BLOCKED: Final = frozenset({*WATCHED, signal.SIGTTOU})
_ATTEMPTS: Final = 40
_PAUSE: Final = 0.05


@dataclass(frozen=True, slots=True)
class ShellOutcome:
    """How a command ended.

    Attributes:
        status: its exit status, as shells count: 128 + n for signal n, 127 if it was not found, 126 if it could not
            be executed.
        problem: why it could not be started, ``None`` if it was.
    """

    status: int
    problem: str | None


def run_in_image(
    image: Image,
    command: Sequence[str] = (),
    *,
    environment: Mapping[str, str],
    engine: EngineName = "auto",
    overlay: OverlayName = "auto",
    scratch: Path | None = None,
    on_remark: Callable[[str], None] | None = None,
    on_success: Callable[[Path], None] | None = None,
) -> ShellOutcome:
    """Run a command that has ``image`` as its root and may write to it.

    The image itself never changes: what is written lies above it, and goes away. The command has its own process
    numbers, all of its processes end with it, and it shares the network of the host. Must be called by the main thread
    while it is the only one.

    Args:
        image: an open image.
        command: the program, looked up in the usual directories of the image, and its arguments; none: the shell that
            ``environment`` names if the image has it, else ``/bin/sh``.
        environment: variables; those whose values are absolute paths of the host are left out.
        engine: who serves the image to the kernel.
        overlay: who puts the writable layer on it.
        scratch: a directory to keep what is written in, while the command runs; ``None``: memory, or where this kernel
            cannot have a writable layer in memory, the directory for temporary files.
        on_remark: called with one line, before the command starts if only some files can be written, and before
            ``on_success`` (in its process) if extended attributes of the image are missing in what was written.
        on_success: called if the command ends with 0, in another process that is root in the user namespace, with the
            upper directory of the overlay. What it raises comes out of ``run_in_image``.

    Returns:
        How the command ended.

    Raises:
        UnsupportedError: if this machine forbids user namespaces, or lacks what mounting needs.
        MountError: if mounting fails, or the server is killed.
        StorageError: if a directory for what is written cannot be made.
        InvalidArgumentError: for an unknown engine or overlay.
    """
    if overlay not in OVERLAYS:
        raise InvalidArgumentError(f"there is no overlay {overlay!r}", hint=f"there are: {', '.join(OVERLAYS)}")
    directory = _make_stage(scratch)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
    child_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever ignored it would make us wait in vain
    try:
        job = Job(
            image=image,
            words=command,
            environment=environment,
            engine=engine,
            overlay=overlay,
            stage=Stage(directory, image, in_memory=scratch is None),
            signal_mask=frozenset(map(int, before)),
            on_remark=on_remark or _nothing,
            on_success=on_success,
        )
        return _run(job)
    finally:
        _remove_stage(directory)
        signal.signal(signal.SIGCHLD, child_handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _make_stage(scratch: Path | None) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=scratch)).resolve()
    except OSError as error:
        place = tempfile.gettempdir() if scratch is None else scratch
        raise StorageError(
            f"a directory for what is written cannot be made in {place}: {error.strerror}",
            hint="name another one with --scratch DIR",
        ) from error


def _run(job: Job) -> ShellOutcome:
    reports, report_fd = os.pipe()
    its_end, our_end = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    pid = os.fork()
    if pid == 0:
        our_end.close()
        os.close(reports)
        be_server(job, its_end, report_fd)
    os.close(report_fd)
    its_end.close()
    try:
        with our_end:
            if our_end.recv(1):  # it has its namespaces
                remark = map_ids(pid)
                if remark is not None:
                    job.on_remark(remark)
                our_end.send(b"\0")
    finally:
        status = wait_and_forward(pid, _passed_on(pid))
        with open(reports, "rb") as pipe:
            said = read_report(pipe.read())
    if isinstance(said, BaseException):
        raise said
    if os.WIFSIGNALED(status):
        raise MountError(
            f"the server of the image was killed ({signal.Signals(os.WTERMSIG(status)).name}), and the command with it"
        )
    return ShellOutcome(exit_status(status), said.text if isinstance(said, NotRun) else None)


def _passed_on(pid: int) -> Callable[[signal.struct_siginfo], bool]:
    def on_signal(info: signal.struct_siginfo) -> bool:
        if is_from_terminal(info):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, INTERRUPTED)
            return True
        return False

    return on_signal


def _remove_stage(directory: Path) -> None:
    """Remove what the server could not, because it was killed. Files may belong to ids that exist only inside."""
    shutil.rmtree(directory, ignore_errors=True)
    if not directory.exists():
        return
    its_end, our_end = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            namespace.unshare(namespace.CLONE_NEWUSER)
            its_end.send(b"\0")
            our_end.close()
            if its_end.recv(1):
                _remove_patiently(directory)
        finally:
            os._exit(0)
    its_end.close()
    with our_end, contextlib.suppress(MountError):
        if our_end.recv(1):
            map_ids(pid)
            our_end.send(b"\0")
    os.waitpid(pid, 0)


def _remove_patiently(directory: Path) -> None:
    for _ in range(_ATTEMPTS):  # processes of the command may be about to end
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(_PAUSE)


def _nothing(_text: str) -> None:
    pass
