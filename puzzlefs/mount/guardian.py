"""A mount that outlives its server.

The process that mounts becomes the *guardian*: it keeps the kernel's queue of requests, starts a *server* on it by
``fork``, and waits. When the server dies (``kill -9``, out of memory, a defect), the kernel keeps all requests, because
the queue is still open here; the guardian has those sent again that the dead one had taken, starts another server, and
who was reading has seen a pause. The guardian parses nothing after the fork and serves nothing, so an image cannot hurt
it; the server gives up what it does not need (``confine``), so the guardian is also what unmounts in the end.

**SIGHUP** replaces the server by a new version of the program. That one is started beside the old one and serves on the
same queue; only then the old one is told to step aside. If it does not come up, the old one stays. From then on servers
are started by executing that program. What it is told is in ``takeover``.

**Requests in flight** lie in memory that the guardian shares with the server (``flight``). Linux 6.9 and later are told
to send them again (``RESEND``); for older ones they are put before the next server. A request at which several servers
in a row have died is answered with EIO: it is what kills them.

**Messages** come from a server over a ``SOCK_SEQPACKET`` pair (``guarded``). What a server says is not trusted: the
guardian restarts, unmounts, and passes texts on, nothing else. In particular no server says which program is executed.

If the guardian itself is killed, the server goes on until somebody unmounts; nobody replaces it then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final, NoReturn

from puzzlefs.errors import MountError, PuzzlefsError
from puzzlefs.mount.confine import prepare
from puzzlefs.mount.control import listen, load
from puzzlefs.mount.control_answers import error_fields, line_of
from puzzlefs.mount.counters import COUNTERS_SIZE, RequestCounters
from puzzlefs.mount.engine import Mounting
from puzzlefs.mount.flight import MAX_AHEAD, Flight, clear
from puzzlefs.mount.guarded import ENDED, GONE, STEPPED_ASIDE, Custody, Messages, serve_guarded
from puzzlefs.mount.kernel_engine import READ_AHEAD
from puzzlefs.mount.kernel_mount import KernelMount, mount_kernel
from puzzlefs.mount.kernel_protocol import IN_HEADER, RESENT_BIT, error_reply, resend_notification
from puzzlefs.mount.signals import STEP_ASIDE, handled, held_back, in_main_thread
from puzzlefs.mount.successor import Server, Successor
from puzzlefs.signal_mask import ENDING, blocked

log = logging.getLogger("puzzlefs.mount")

_TICK: Final = 5.0
"""Seconds between looks whether a server is dying without being dead, see ``_is_dying``."""
_PATIENCE: Final = 3.0
"""Seconds that a server which was told to end may take."""
_RETIREMENT: Final = 15.0
"""Seconds that a server which was told to step aside may take."""
_START_PATIENCE: Final = 60.0
"""Seconds that a new version of the program has until it serves."""
_QUICK: Final = 1.0
"""Seconds: a server that lived shorter, and answered nothing new, makes the next one wait."""
_FIRST_DELAY: Final = 0.05
_MAX_DELAY: Final = 5.0
_FATAL: Final = 5
"""Servers that die at the same request before it is refused."""
_MAX_EVENTS: Final = 200
_SIGKILL_BIT: Final = 1 << (signal.SIGKILL - 1)


class SupervisedEngine:
    """Serves a mount through ``/dev/fuse``, in other processes than this one. This one should have one thread."""

    def __init__(self, successor: Successor | None = None) -> None:
        """An engine.

        Args:
            successor: how a new version of this program is started; ``None``: SIGHUP starts the same one again.
        """
        self._successor = successor

    def serve(self, mounting: Mounting) -> None:
        """See ``Engine.serve``."""
        counters = os.memfd_create("puzzlefs-counters", os.MFD_CLOEXEC)
        os.ftruncate(counters, COUNTERS_SIZE)
        mounting = mounting._replace(requests=RequestCounters(counters))
        with held_back():
            mount = mount_kernel(mounting.mountpoint, mounting.options, mounting.fsname)
            guardian = _Guardian(mounting, mount, self._successor, counters)
            try:
                guardian.run()
            finally:
                guardian.close()
                os.close(counters)
        if guardian.failure is not None:
            raise guardian.failure


class _Guardian:
    """One mount.

    Attributes:
        failure: what broke it, if anything did.
    """

    def __init__(self, mounting: Mounting, mount: KernelMount, successor: Successor | None, counters: int) -> None:
        self.failure: BaseException | None = None
        self._mounting = mounting
        self._mount = mount
        self._successor = successor
        self._counters = counters
        self._custody = Custody(time.monotonic(), os.getpid(), listener=listen(mount.device) if mount.device else None)
        self._ended = False
        self._hangup = False
        self._is_ready = False
        self._server: Server | None = None
        self._candidate: Server | None = None
        self._retiring: list[Server] = []
        self._is_forking = True
        self._start_at = self._retired_at = 0.0
        self._leftover: list[bytes] = []
        self._futile = 0
        self._deaths: dict[int, int] = {}
        self._dying: int | None = None
        self._asking: list[socket.socket] = []
        self._watched: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._watch(self._wake_read, self._woken)

    def run(self) -> None:
        """Keep the mount alive until it is unmounted, or a signal ends it. Signals are held back when this begins."""
        prepare()
        load()
        with handled(ENDING, self._signal, self._wake_write):
            self._adopt(self._forked(is_adopted=False))
            while not self._ended:
                self._step()

    def close(self) -> None:
        """Unmount, and let servers end; whoever waits for an answer gets an error."""
        self._mount.unmount()
        servers = [server for server in (self._server, self._candidate, *self._retiring) if server is not None]
        for server in servers:
            server.send_signal(STEP_ASIDE)
        deadline = time.monotonic() + _PATIENCE
        for server in servers:
            if not server.wait(max(0.0, deadline - time.monotonic())):
                server.send_signal(signal.SIGKILL)
        self._mount.abort()
        for server in servers:
            server.wait(_PATIENCE)
            server.close()
        self._mount.close()
        if self._custody.listener is not None:
            self._custody.listener.close()
        self._answer_asking(MountError(f"{self._mount.point} was unmounted"))
        os.close(self._wake_read)
        os.close(self._wake_write)

    # ---- waiting

    def _watch(self, fd: int, then: Callable[[], None]) -> None:
        self._watched[fd] = then
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, server: Server) -> None:
        for fd in (server.pidfd, server.channel.fileno()):
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _step(self) -> None:
        """Wait for something, and deal with it."""
        timeout = _TICK if self._server is not None else max(0.0, self._start_at - time.monotonic())
        found = self._poll.poll(timeout * 1000)
        for fd, _ in found:
            then = self._watched.get(fd)
            if then is not None:
                then()
        if self._ended:
            return
        if self._hangup:
            self._hangup = False
            self._renew()
        if self._server is None and time.monotonic() >= self._start_at:
            self._start()
        if not found:
            self._look_around()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._hangup = True
        else:
            log.info("%s: unmounting %s", signal.Signals(number).name, self._mount.point)
            self._ended = True

    def _look_around(self) -> None:
        """What has to be looked at from time to time."""
        server, candidate = self._server, self._candidate
        if candidate is not None and time.monotonic() > candidate.started + _START_PATIENCE:
            candidate.send_signal(signal.SIGKILL)
        for retiring in self._retiring:
            if time.monotonic() > self._retired_at + _RETIREMENT:
                retiring.send_signal(signal.SIGKILL)
        if server is None or not _is_dying(server.pid):
            self._dying = None
        elif self._dying == server.pid:
            log.error("the server (process %d) was killed and cannot end; another one takes over", server.pid)
            self._retiring.append(server)
            self._succeed(server)
        else:
            self._dying = server.pid

    # ---- beginnings

    def _adopt(self, server: Server) -> None:
        self._server = server
        self._attend(server)

    def _attend(self, server: Server) -> None:
        self._watch(server.pidfd, lambda: self._died(server))
        self._watch(server.channel.fileno(), lambda: self._hear(server))

    def _start(self) -> None:
        """Start a server in the place of one that is gone."""
        self._custody.restarts += 1
        leftover, self._leftover = self._leftover, []
        if self._is_forking or self._successor is None:
            self._adopt(self._forked(is_adopted=True, leftover=leftover))
            return
        try:
            self._adopt(self._executed(self._successor, leftover))
        except OSError as error:
            log.error("the program cannot be executed any more (%s); the one that mounted serves", error)
            self._is_forking = True
            self._adopt(self._forked(is_adopted=True, leftover=leftover))

    def _forked(self, *, is_adopted: bool, leftover: list[bytes] | None = None) -> Server:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        flight = Flight()
        flight.hand_over(leftover or [])
        # until it has handlers of its own, a signal would run ours
        with blocked((*ENDING, STEP_ASIDE)):
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become_server(theirs, flight, is_adopted=is_adopted)
        theirs.close()
        return Server(pid, ours, flight, self._answered())

    def _executed(self, successor: Successor, leftover: list[bytes]) -> Server:
        return successor.start(self._mounting, self._mount, self._custody, self._counters, leftover)

    def _become_server(self, channel: socket.socket, flight: Flight, *, is_adopted: bool) -> NoReturn:
        """What the forked process does; it never returns into what its parent was doing."""
        code = 1
        try:
            if in_main_thread():
                signal.set_wakeup_fd(-1)
            for server in (self._server, self._candidate, *self._retiring):
                if server is not None:
                    server.close()
            for asking in self._asking:
                asking.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            code = serve_guarded(
                self._mounting, self._mount, self._custody, flight, Messages(channel), is_adopted=is_adopted
            )
        finally:
            logging.shutdown()
            os._exit(code)

    def _answered(self) -> int:
        return self._mounting.requests.total()

    # ---- what servers say

    def _hear(self, server: Server) -> None:
        for message, fds in server.messages():
            match message:
                case {"ready": True}:
                    self._ready(server)
                case {"failed": Mapping() as fields}:
                    server.note_failure(fields)
                case {"event": Mapping() as event, "count": int(count), "failed_requests": int(failed)}:
                    self._custody.events.append(dict(event))
                    del self._custody.events[:-_MAX_EVENTS]
                    self._custody.event_count, self._custody.failed_requests = count, failed
                case {"restart": True}:
                    self._asked(fds)
                    continue
            for fd in fds:
                os.close(fd)
        if server.is_silent:  # or there would be no end of looking
            self._forget(server.channel.fileno())

    def _ready(self, server: Server) -> None:
        server.is_ready = True
        if server is self._candidate:
            old, self._server, self._candidate = self._server, server, None
            self._is_forking = server.successor is None
            log.info("another server (process %d) has taken over", server.pid)
            if old is not None:
                self._retiring.append(old)
                old.send_signal(STEP_ASIDE)
                self._retired_at = time.monotonic()
            self._answer_if_over()
        elif not self._is_ready:
            self._is_ready = True
            self._mount.read_ahead(READ_AHEAD)
            try:
                self._mounting.on_ready()
            except BaseException as error:  # noqa: BLE001  a caller's on_ready may fail in any way
                self.failure = error
                self._ended = True

    # ---- ends

    def _died(self, server: Server) -> None:
        self._hear(server)
        self._unwatch(server)
        code = server.reap()
        if server is self._candidate:
            self._candidate = None
            self._custody.restarts -= 1
            reason = server.reason()
            log.error("the server was not replaced: the new one %s", reason)
            self._answer_asking(MountError(f"the server was not replaced: the new one {reason}"))
        elif server in self._retiring:
            self._retiring.remove(server)
            if code != STEPPED_ASIDE:
                self._recover(server)
                self._refuse(self._leftover)  # there is nobody to hand them to
            self._answer_if_over()
        elif code in (GONE, ENDED):
            self._server = None
            self._ended = True
        elif not self._is_ready:
            self.failure = server.failure or MountError(
                f"the server {server.reason()} before the mount was ready", hint="run it with -f to see why"
            )
            self._server = None
            self._ended = True
        elif self._mount.is_gone():
            log.error("the server (process %d) %s; it had nothing to serve any more", server.pid, server.reason())
            self._server = None
            self._ended = True
        else:
            log.error("the server (process %d) %s; another one takes over", server.pid, server.reason())
            if not server.is_ready:
                self._is_forking = True  # a program that cannot begin, because it needs more than the blobs
            self._succeed(server)
        server.close()

    def _succeed(self, server: Server) -> None:
        """Have another server take the place of one that is as good as dead."""
        self._server = None
        self._recover(server)
        is_quick = time.monotonic() < server.started + _QUICK
        is_futile = self._answered() == server.answered or any(number > 1 for number in self._deaths.values())
        self._futile = self._futile + 1 if is_quick and is_futile else 0
        delay = min(_FIRST_DELAY * 2 ** (self._futile - 1), _MAX_DELAY) if self._futile else 0.0
        self._start_at = time.monotonic() + delay

    def _recover(self, server: Server) -> None:
        """See to it that the requests that a server had taken are answered."""
        deaths: dict[int, int] = {}
        for slot in server.flight.begun():
            _, opcode, unique, nodeid, *_ = IN_HEADER.unpack_from(slot)
            number = unique & ~RESENT_BIT  # the same when the kernel sends it again
            deaths[number] = self._deaths.get(number, 0) + 1
            if deaths[number] >= _FATAL:
                log.error("request %d of inode %d has killed %d servers; it is refused", opcode, nodeid, deaths[number])
                self._tell_kernel(error_reply(unique, errno.EIO))
                clear(slot)
        self._deaths = deaths
        if not self._tell_kernel(resend_notification()):
            self._leftover += server.flight.unanswered()
            excess = self._leftover[MAX_AHEAD:]
            del self._leftover[MAX_AHEAD:]
            self._refuse(excess)  # the next server has no room for them

    def _refuse(self, requests: list[bytes]) -> None:
        for request in requests:
            self._tell_kernel(error_reply(IN_HEADER.unpack_from(request)[2], errno.EIO))
        requests.clear()

    def _tell_kernel(self, message: bytes) -> bool:
        try:
            os.write(self._mount.fd, message)
        except OSError as error:
            return error.errno != errno.EINVAL  # ENOENT: it was answered; ENODEV: there is nobody to tell any more
        return True

    # ---- a new version

    def _asked(self, fds: list[int]) -> None:
        """Somebody wants the server to be replaced, and an answer over the sockets that came along."""
        for fd in fds:
            asking = socket.socket(fileno=fd)
            asking.setblocking(False)
            self._asking.append(asking)
        self._renew()

    def _renew(self) -> None:
        """Start a new version of the program; it takes over when it serves."""
        if self._candidate is not None:
            return  # whoever asked is told about that one
        self._custody.restarts += 1
        try:
            if self._successor is None:
                self._candidate = self._forked(is_adopted=True)
            else:
                self._candidate = self._executed(self._successor, [])
        except OSError as error:
            log.error("the server was not replaced: %s", error)
            self._answer_asking(MountError(f"the server was not replaced: {error}"))
            self._custody.restarts -= 1
            return
        self._attend(self._candidate)

    def _answer_if_over(self) -> None:
        """Tell who asked for another server that it is there, and the former one, who answers clients too, is gone."""
        if self._candidate is None and self._server is not None and not self._retiring:
            self._answer_asking({"server_pid": self._server.pid})

    def _answer_asking(self, answer: Mapping[str, object] | PuzzlefsError) -> None:
        if not self._asking:
            return
        line = (
            line_of("error", error_fields(answer)) if isinstance(answer, PuzzlefsError) else line_of("result", answer)
        )
        for asking in self._asking:
            with contextlib.suppress(OSError):
                asking.send(line)
            asking.close()
        self._asking.clear()


def _is_dying(pid: int) -> bool:
    """Whether a process was killed and is not dead: a thread of it waits in the kernel where no signal reaches it.

    It can wait for a page that only an answer from this very mount unlocks (``kernel_content``), so another server has
    to start before it is dead.
    """
    with contextlib.suppress(OSError, ValueError):
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
        return bool((int(lines[b"SigPnd"], 16) | int(lines[b"ShdPnd"], 16)) & _SIGKILL_BIT)
    return False
