"""Servers as their guardian sees them, and how one of another version of the program is started.

A new version is a new program: it is executed, and told through a memory file what it takes over (``takeover`` reads
it). Descriptors keep their numbers over execve. The format of that file is spoken between versions, so fields may be
added, and not changed; ``version`` is there to refuse what cannot be understood.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from puzzlefs.mount.engine import Mounting
from puzzlefs.mount.flight import FLIGHT_SIZE, Flight
from puzzlefs.mount.guarded import Custody
from puzzlefs.mount.kernel_mount import KernelMount
from puzzlefs.mount.process_report import NotRun, understand

log = logging.getLogger("puzzlefs.mount")

STATE_VERSION: Final = 1
"""The version of what a successor is told."""

_MAX_MESSAGE: Final = 1 << 16
_MAX_MESSAGES: Final = 64
_MAX_DESCRIPTORS: Final = 4
_MAX_SAID: Final = 4096
_FIRST_FREE: Final = 3


class Server:
    """A process that serves.

    Attributes:
        pid: its number.
        channel: our end of the socket over which it speaks.
        flight: its requests.
        answered: how many requests the mount had answered when it started.
        successor: the program that it is, ``None`` for a fork of this one.
        said: a file with what it wrote to stderr, -1 for none.
        pidfd: readable when it is dead.
        started: when, in seconds of ``time.monotonic``.
        failure: what it says went wrong.
        is_ready: whether it has begun to answer.
        is_silent: whether it has closed its end of ``channel``.
    """

    def __init__(
        self,
        pid: int,
        channel: socket.socket,
        flight: Flight,
        answered: int,
        successor: Successor | None = None,
        said: int = -1,
    ) -> None:
        self.pid: Final = pid
        self.channel: Final = channel
        self.flight: Final = flight
        self.answered: Final = answered
        self.successor: Final = successor
        self.said: Final = said
        self.pidfd: Final = os.pidfd_open(pid)
        self.started: Final = time.monotonic()
        self.failure: BaseException | None = None
        self.is_ready = False
        self.is_silent = False
        self._code: int | None = None
        channel.setblocking(False)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, number)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it has ended."""
        if self._code is None and select.select([self.pidfd], [], [], seconds)[0]:
            self.reap()
        return self._code is not None

    def reap(self) -> int:
        """Its exit code, negative for the signal that killed it. It must be dead."""
        if self._code is None:
            _, status = os.waitpid(self.pid, 0)
            self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def messages(self) -> Iterator[tuple[Mapping[str, Any], list[int]]]:
        """What it has said since, each message with the descriptors that came along, which the caller closes.

        Not too many at once: there are others who have something to say.
        """
        for _ in range(_MAX_MESSAGES):
            try:
                data, fds, _, _ = socket.recv_fds(self.channel, _MAX_MESSAGE, _MAX_DESCRIPTORS)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self.is_silent = True
                return
            try:
                message = json.loads(data)
            except (ValueError, RecursionError):
                message = None
            yield (message if isinstance(message, dict) else {}), fds

    def note_failure(self, fields: Mapping[str, Any]) -> None:
        """Take note of what it says went wrong."""
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            failure = understand(fields)
            self.failure = None if isinstance(failure, NotRun) else failure

    def reason(self) -> str:
        """Why it is dead, as the end of a sentence."""
        code = self.reap()
        if self.failure is not None:
            return f"failed: {self.failure}"
        if code < 0:
            return f"was killed by {_signal_name(-code)}"
        said = ""
        if self.said >= 0:
            said = os.pread(self.said, _MAX_SAID, max(0, os.fstat(self.said).st_size - _MAX_SAID)).decode(
                errors="replace"
            )
        last = said.strip().splitlines()[-1:]
        return f"ended with exit code {code}{''.join(': ' + line for line in last)}"

    def close(self) -> None:
        """Let go of it."""
        self.channel.close()
        os.close(self.pidfd)
        if self.said >= 0:
            os.close(self.said)


class Successor(NamedTuple):
    """How a server of a new version of the program is started.

    Attributes:
        command: the words to execute; the number of the descriptor that says what to take over is added.
        settings: what whoever mounted has to tell whoever takes over, for example where the log goes; plain values.
    """

    command: tuple[str, ...]
    settings: Mapping[str, Any]

    def start(
        self, mounting: Mounting, mount: KernelMount, custody: Custody, counters: int, leftover: Sequence[bytes]
    ) -> Server:
        """Execute it.

        Args:
            mounting: what is served.
            mount: the mount.
            custody: what there is besides.
            counters: the memory of the request counters.
            leftover: requests that have to be answered first.

        Raises:
            OSError: if it cannot be executed.
        """
        import subprocess  # noqa: PLC0415  not on the way to the first server

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        memory = os.memfd_create("puzzlefs-requests", os.MFD_CLOEXEC)
        said = os.memfd_create("puzzlefs-said", os.MFD_CLOEXEC)
        state = stderr = -1
        try:
            with contextlib.suppress(OSError):  # there may be none
                stderr = os.dup(2)
            os.ftruncate(memory, FLIGHT_SIZE)
            flight = Flight(memory)
            flight.hand_over(leftover)
            image = mounting.operations.image
            listener = -1 if custody.listener is None else custody.listener.fileno()
            fields = {
                "version": STATE_VERSION,
                "layout": os.fspath(image.layout.path.absolute()),
                "tag": image.reference.tag,
                "dialect": str(image.layout.dialect.value),
                "manifest": image.manifest_digest.hex(),
                "digest": None if image.anchor is None else image.anchor.hex(),
                "verity": image.verity,
                "mountpoint": os.fspath(mounting.mountpoint),
                "queue_fd": mount.fd,
                "layout_fd": image.layout.fd,
                "blobs_fd": image.layout.blobs_fd,
                "channel_fd": theirs.fileno(),
                "listener_fd": listener,
                "requests_fd": memory,
                "counters_fd": counters,
                "mounted": custody.mounted,
                "guardian_pid": custody.guardian_pid,
                "restarts": custody.restarts,
                "events": custody.events,
                "event_count": custody.event_count,
                "failed_requests": custody.failed_requests,
                "settings": {**self.settings, "stderr_fd": stderr},
            }
            state = os.memfd_create("puzzlefs-takeover", os.MFD_CLOEXEC)
            os.write(state, json.dumps(fields).encode())
            kept = [stderr] if stderr >= 0 else []
            kept += [fd for key, fd in fields.items() if key.endswith("_fd") and isinstance(fd, int) and fd >= 0]
            process = subprocess.Popen(
                [*self.command, str(state)], pass_fds=[*kept, state], stdin=subprocess.DEVNULL, stderr=said, cwd="/"
            )
            process.returncode = 0  # it is waited for by its number
            return Server(process.pid, ours, flight, mounting.requests.total(), self, said)
        except BaseException:
            ours.close()
            os.close(said)
            raise
        finally:
            theirs.close()
            os.close(memory)
            for fd in (state, stderr):
                if fd >= 0:
                    os.close(fd)


def command_of(module: str, paths: Sequence[str]) -> tuple[str, ...]:
    """The words that have this interpreter call ``main`` of ``module``, which is in one of ``paths``, with a number.

    What is executed is the program as it is on disk by then.
    """
    paths = list(paths)
    program = f"import sys; sys.path[:] = {paths!r}; from {module} import main; sys.exit(main(int(sys.argv[1])))"
    return (os.fspath(Path(sys.executable).absolute()), "-c", program)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
