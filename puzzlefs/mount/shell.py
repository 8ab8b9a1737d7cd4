"""Running a command with an image as its writable root, without being root.

Three processes; each is killed, or told, when the one before it ends, so that no mount, directory or process is left::

    caller    where it was; maps ids, passes signals on, waits
      server  in a user and a mount namespace: mounts the image and the overlay, serves the image, commits
        keeper → process 1 → the command: see ``shell_processes``

The image is mounted inside, because a FUSE mount knows the owners of the user namespace that it was made in. What is
written goes to memory (or to a directory that was named), and is gone with the namespace unless somebody takes it from
there: ``on_success`` is called in the server when the command has ended, in the user namespace, where ``stat`` shows
the owners that the command saw.

The server is in a process group of its own: what a terminal sends, and ``kill`` for a group, are not for it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from puzzlefs.errors import InvalidArgumentError, MountError, StorageError, UnsupportedError
from puzzlefs.image import Image
from puzzlefs.mount import namespace
from puzzlefs.mount.serve import EngineName, mount
from puzzlefs.mount.shell_ids import map_ids
from puzzlefs.mount.shell_processes import (
    INTERRUPTED,
    KILL,
    WATCHED,
    Command,
    exit_status,
    is_from_terminal,
    keep,
    wait_and_forward,
)
from puzzlefs.mount.shell_report import NotRun, read_report, report
from puzzlefs.mount.shell_stage import OVERLAYS, OverlayName, Stage
from puzzlefs.mount.shell_upper import hidden_xattrs

_PREFIX: Final = "puzzlefs-shell-"
_BLOCKED: Final = frozenset({*WATCHED, signal.SIGTTOU})
_ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, INTERRUPTED})
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
        job = _Job(
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


@dataclass(frozen=True, slots=True)
class _Job:
    image: Image
    words: Sequence[str]
    environment: Mapping[str, str]
    engine: EngineName
    overlay: OverlayName
    stage: Stage
    signal_mask: frozenset[int]
    on_remark: Callable[[str], None]
    on_success: Callable[[Path], None] | None


# ---- the caller


def _make_stage(scratch: Path | None) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=scratch)).resolve()
    except OSError as error:
        place = tempfile.gettempdir() if scratch is None else scratch
        raise StorageError(
            f"a directory for what is written cannot be made in {place}: {error.strerror}",
            hint="name another one with --scratch DIR",
        ) from error


def _run(job: _Job) -> ShellOutcome:
    reports, report_fd = os.pipe()
    its_end, our_end = socket.socketpair()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    pid = os.fork()
    if pid == 0:
        our_end.close()
        os.close(reports)
        _be_server(job, its_end, report_fd)
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


# ---- the server


def _be_server(job: _Job, caller: socket.socket, report_fd: int) -> NoReturn:
    status = 1
    try:
        parent = os.getppid()
        _enter_namespaces()
        caller.send(b"\0")
        namespace.die_with_parent(signal.SIGTERM)
        told = caller.recv(1)
        caller.close()
        if told:  # else the caller has given up, or is gone
            status = _Server(job, parent, report_fd).run()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException as error:  # noqa: BLE001  it comes out in the caller
        report(report_fd, error)
    finally:
        os._exit(status)


def _enter_namespaces() -> None:
    try:
        namespace.unshare(namespace.CLONE_NEWUSER | namespace.CLONE_NEWNS)
    except OSError as error:
        raise _refused("have a user namespace", error) from error


def _refused(what: str, error: OSError) -> UnsupportedError:
    return UnsupportedError(
        f"this user may not {what}: {error.strerror}",
        hint="see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and "
        "kernel.apparmor_restrict_unprivileged_userns",
    )


class _Server:
    """What happens in the user namespace, around the command."""

    def __init__(self, job: _Job, parent: int, report_fd: int) -> None:
        self._job = job
        self._parent = parent
        self._report_fd = report_fd
        self._failure: BaseException | None = None
        self._settled = threading.Event()

    def run(self) -> int:
        """Run the command; its exit status."""
        try:
            namespace.mount("", "/", "", namespace.MS_REC | namespace.MS_SLAVE)
        except OSError as error:
            raise _refused("mount anything in a user namespace", error) from error
        go, ours = os.pipe()
        keeper = os.fork()  # now, while there is one thread
        if keeper == 0:
            os.close(ours)
            keep(self._command, go, self._report_fd)
        os.close(go)
        os.setpgid(0, 0)
        stage = self._job.stage
        try:
            return self._run(keeper, ours)
        finally:
            with contextlib.suppress(OSError):
                namespace.detach(stage.image_point)
            stage.remove()

    def _run(self, keeper: int, go: int) -> int:
        job, stage = self._job, self._job.stage
        started = False
        try:
            stage.prepare()
            thread = threading.Thread(target=self._serve, name="mount", daemon=True)
            thread.start()
            self._settled.wait()
            if self._failure is None:
                stage.mount_overlay(job.overlay)
                os.write(go, b"\0")
                started = True
        finally:
            os.close(go)
            status = exit_status(wait_and_forward(keeper, self._on_signal(keeper)))
        stage.unmount_overlay()
        if self._failure is not None:
            raise self._failure
        if started and status == 0 and job.on_success is not None and not self._is_orphan():
            with _interruptible():
                lost = hidden_xattrs(stage.upper, job.image.tree, stage.hides_xattr)
                if lost:
                    job.on_remark(_lost(lost))
                job.on_success(stage.upper)
        return status

    def _serve(self) -> None:
        job = self._job
        try:
            mount(
                job.image,
                job.stage.image_point,
                on_ready=self._settled.set,
                engine=job.engine,
                hides_xattr=job.stage.hides_xattr,
            )
        except BaseException as error:  # noqa: BLE001  it must come out of the thread that everybody looks at
            self._failure = error
        self._settled.set()

    def _command(self) -> Command:
        job, stage = self._job, self._job.stage
        return Command(
            words=job.words,
            environment=job.environment,
            signal_mask=job.signal_mask,
            root=stage.root,
            places=stage.places,
            resolv_conf=stage.resolv_conf,
            report_fd=self._report_fd,
        )

    def _on_signal(self, keeper: int) -> Callable[[signal.struct_siginfo], bool]:
        def on_signal(info: signal.struct_siginfo) -> bool:
            if self._is_orphan():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(keeper, KILL)
                return True
            return info.si_signo == INTERRUPTED

        return on_signal

    def _is_orphan(self) -> bool:
        return os.getppid() != self._parent


def _lost(paths: Sequence[bytes]) -> str:
    from puzzlefs.builder.source import printable  # noqa: PLC0415  loaded with what commits

    others = f" and {len(paths) - 1} others" if len(paths) > 1 else ""
    return (
        f"/{printable(paths[0])}{others}: extended attributes that only the host's root may set are not in the commit"
    )


def _nothing(_text: str) -> None:
    pass


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, the signals that end a program raise KeyboardInterrupt."""
    for number in _ENDING:
        signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
