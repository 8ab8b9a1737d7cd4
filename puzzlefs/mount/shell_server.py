"""The server of a shell: what happens in the user namespace, around the command.

It mounts the image, serves it from a thread of its own, puts the writable layer on it, lets the keeper run the command,
and takes what was written to whoever wants it. It is in a process group of its own: what a terminal sends, and ``kill``
for a group, are not for it. If the caller is gone, it ends everything and removes the stage.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from puzzlefs.errors import UnsupportedError
from puzzlefs.image import Image
from puzzlefs.mount import namespace
from puzzlefs.mount.process_report import report
from puzzlefs.mount.serve import EngineName, mount
from puzzlefs.mount.shell_processes import INTERRUPTED, KILL, Command, exit_status, keep, wait_and_forward
from puzzlefs.mount.shell_stage import OverlayName, Stage
from puzzlefs.mount.shell_upper import hidden_xattrs

_ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, INTERRUPTED})


@dataclass(frozen=True, slots=True)
class Job:
    """What the caller wants; see ``run_in_image``.

    Attributes:
        image: an open image.
        words: the command.
        environment: its variables.
        engine: who serves the image.
        overlay: who makes it writable.
        stage: where its root is to be put together.
        signal_mask: the signals that the command has blocked.
        on_remark: who is told what a user should know.
        on_success: who takes what was written, if the command ends with 0.
    """

    image: Image
    words: Sequence[str]
    environment: Mapping[str, str]
    engine: EngineName
    overlay: OverlayName
    stage: Stage
    signal_mask: frozenset[int]
    on_remark: Callable[[str], None]
    on_success: Callable[[Path], None] | None


def be_server(job: Job, caller: socket.socket, report_fd: int) -> NoReturn:
    """Be the server, in a process that was forked for it with the signals of ``WATCHED`` blocked.

    Says through ``caller`` when it has its namespaces, and goes on when it is told that ids are mapped.
    """
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

    def __init__(self, job: Job, parent: int, report_fd: int) -> None:
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
