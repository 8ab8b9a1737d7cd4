"""The engine that speaks the kernel's protocol itself: one readv and one writev a request.

One thread serves. It answers each request where it reads it, because handing a request to another thread costs more
than most answers. A *watchman* looks every few milliseconds, while there is work, whether the serving thread is stuck
in one request (a host that does not answer, or a page that is locked, see ``kernel_content``), and then lets another
thread serve. A thread that was stuck finds that another one serves, and waits for its turn. So one slow blob does not
stop everybody, and the usual case pays a counter for that.

On machines with more than one processor, waiting for a request begins with work and with a busy-wait. While nobody
waits for an answer, chunks that are wanted next are loaded, one between two looks at the queue (``kernel_content``).
Then comes a busy-wait: a program that walks a tree sends its next request within microseconds, one that starts others
in half a millisecond, and to be woken costs 70 µs. Where requests come slowly, the busy-wait is short.

Requests lie in memory that outlives this process until they are answered (``flight``). So a session can also be taken
over (``is_adopted``) from a server that is gone, see ``guardian``.

A program that is killed while it waits cannot take its request back once it was read here; nothing here is long
enough for that to matter, so INTERRUPT is answered with ENOSYS, and the kernel asks no more.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from types import FrameType
from typing import Final

from puzzlefs.errors import MountError
from puzzlefs.mount.engine import Mounting, probe
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.flight import MAX_WORKERS, SLOT_SIZE, Flight, clear
from puzzlefs.mount.kernel_answers import WANTED_FLAGS, Answers
from puzzlefs.mount.kernel_content import ContentServer
from puzzlefs.mount.kernel_mount import KernelMount, mount_kernel
from puzzlefs.mount.kernel_protocol import (
    BODY,
    IN_HEADER,
    MAJOR,
    MIN_READ_BUFFER,
    MINOR,
    OUT_HEADER,
    READ_IN,
    Opcode,
    error_reply,
    init_reply,
    parse_init,
    store_header,
)
from puzzlefs.mount.read_ahead import ReadAhead
from puzzlefs.mount.signals import STEP_ASIDE, handled, held_back
from puzzlefs.signal_mask import ENDING

log = logging.getLogger("puzzlefs.mount")

_SPIN: Final = 100e-6
"""Seconds of busy-wait for the next request."""
_LONG_SPIN: Final = 500e-6
"""The same where the last request took less than that to come."""
_TICK: Final = 0.02
_QUIET_TICKS: Final = 50
_IDLE: Final = 0.1
_PATIENCE: Final = 1.0
"""Seconds that the end waits for threads that are stuck."""
_ALONE: Final = 0.01
"""Seconds without a read by another thread after which a reader counts as the only one."""

READ_AHEAD: Final = 512 << 10
"""Bytes that the kernel is to read ahead."""
_MAX_PAGES: Final = 256
_MAX_BACKGROUND: Final = 64
_MAX_IOV: Final = 512

_DRAINED: Final = 4096
_EVERYTHING: Final = range(1 << 64)
"""The inodes whose content is wanted if nobody knows of which it is."""
_READ: Final = int(Opcode.READ)
_OPCODES: Final = 0xFF
_NO_REPLY: Final = frozenset({int(Opcode.FORGET), int(Opcode.BATCH_FORGET), int(Opcode.NOTIFY_REPLY)})
_GONE: Final = (errno.ENODEV, errno.ECONNABORTED)
_NOBODY_WAITS: Final = (errno.ENOENT, *_GONE)


class KernelEngine:
    """Serves a mount through ``/dev/fuse``."""

    def serve(self, mounting: Mounting) -> None:
        """See ``Engine.serve``."""
        with held_back():
            mount = mount_kernel(mounting.mountpoint, mounting.options, mounting.fsname)

            def ready() -> None:
                mount.read_ahead(READ_AHEAD)
                mounting.on_ready()

            session = Session(mounting._replace(on_ready=ready), mount, Flight())
            try:
                session.run()
            finally:
                session.close()
        if session.failure is not None:
            raise session.failure


class _Worker:
    """A thread that can serve.

    Attributes:
        slot: where it reads requests into.
        serial: counts the requests that it has begun.
        is_busy: whether it is in one.
        turn: held; released to let the thread run.
    """

    __slots__ = ("is_busy", "serial", "slot", "thread", "turn")

    def __init__(self, slot: memoryview) -> None:
        self.slot = slot
        self.serial = 0
        self.is_busy = False
        self.turn = threading.Lock()
        self.turn.acquire()
        self.thread: threading.Thread | None = None


class Session:
    """One mount, from INIT or from where another server left it, to the end.

    Attributes:
        failure: what broke it, if anything did.
        signal: the signal that ended it, if one did.
    """

    def __init__(
        self,
        mounting: Mounting,
        mount: KernelMount,
        flight: Flight,
        *,
        is_adopted: bool = False,
        on_hangup: Callable[[], None] | None = None,
    ) -> None:
        """A session over a mount that exists.

        Args:
            mounting: what is served; its ``on_ready`` is called once, when requests are answered.
            mount: the mount.
            flight: where requests lie until they are answered. Those that are there are answered first.
            is_adopted: whether another server has answered INIT.
            on_hangup: what SIGHUP does instead of ending the session, where there is a guardian; SIGUSR1 then says that
                somebody else will serve.
        """
        self.failure: BaseException | None = None
        self.signal: signal.Signals | None = None
        self._is_adopted = is_adopted
        self._on_hangup = on_hangup
        self._mounting = mounting
        self._mount = mount
        self._fd = mount.fd
        answers = Answers(mounting.operations)
        self._answers = answers.table
        self._prepare = answers.prepare
        self._ahead = ReadAhead(mounting.operations.image.blobs)
        self._content = ContentServer(mounting.operations, self._store, self._take_ahead, self._ahead)
        self._slots = flight.workers
        self._ahead_slots = flight.ahead
        self._pending = deque(flight.taken_over())
        self._free = [number for number in range(len(flight.ahead)) if number not in self._pending]
        self._last_reader = 0
        self._last_read = 0.0
        self._alone_from = 0.0
        self._ended = False
        self._active = threading.Event()
        self._workers = [_Worker(self._slots[0])]
        self._spares: list[_Worker] = []
        self._serving = self._workers[0]
        self._threads: list[threading.Thread] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve until the end. Signals are held back when this is called, and so in every thread that it starts."""
        self._start(self._announce, "announcer")
        self._start(self._watch, "watchman")
        self._start(self._ahead.work, "read-ahead")
        numbers = ENDING if self._on_hangup is None else (*ENDING, STEP_ASIDE)
        with handled(numbers, self._signal, self._wake_write):
            if self._is_adopted or self._initialise():
                self._work(self._workers[0])

    def end(self) -> None:
        """Make every thread return. May be called from a signal handler: it takes no lock."""
        self._ended = True
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Unmount, and let go of the queue; whoever waits for an answer gets an error."""
        self._stop()
        self._mount.abort()
        self._join()

    def leave(self) -> bool:
        """End, but leave the mount and its queue to somebody else; whether everything that was begun is answered."""
        self._stop()
        return self._join()

    def _stop(self) -> None:
        self.end()
        self._active.set()
        self._ahead.end()

    def _join(self) -> bool:
        for worker in self._workers:
            with contextlib.suppress(RuntimeError):  # it was not waiting
                worker.turn.release()
        deadline = time.monotonic() + _PATIENCE
        for thread in [*self._threads, *(worker.thread for worker in self._workers if worker.thread)]:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                return False  # stuck in the host; its descriptors must not become somebody else's
        self._mount.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        return True

    # ---- beginning

    def _start(self, work: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _initialise(self) -> bool:
        """Answer INIT; whether there is something to serve."""
        buffer = bytearray(MIN_READ_BUFFER)
        poll = self._poll()
        while True:
            poll.poll()
            if self._ended:
                return False
            try:
                size = os.readv(self._fd, [buffer])
            except BlockingIOError:
                continue
            except OSError as error:
                raise MountError(f"{self._mount.point} was unmounted before it was ready") from error
            _, opcode, unique, *_ = IN_HEADER.unpack_from(buffer)
            if opcode != Opcode.INIT:
                self._send(error_reply(unique, errno.EIO))
                continue
            request = parse_init(memoryview(buffer)[BODY:size])
            if request.major != MAJOR or request.minor < MINOR:
                raise MountError(
                    f"this kernel speaks version {request.major}.{request.minor} of the FUSE protocol",
                    hint="use --engine pyfuse3",
                )
            reply = init_reply(request, WANTED_FLAGS, max_pages=_MAX_PAGES, max_background=_MAX_BACKGROUND)
            self._send(OUT_HEADER.pack(OUT_HEADER.size + len(reply), 0, unique) + reply)
            return True

    def _announce(self) -> None:
        try:
            if not self._is_adopted:
                probe(self._mount.point)
            if not self._ended:
                self._mounting.on_ready()
                self._mounting.operations.prepare()
                self._count_when_idle()
        except BaseException as error:  # noqa: BLE001  a caller's on_ready may fail in any way
            if not self._ended:
                self.failure = error
                self.end()

    def _count_when_idle(self) -> None:
        """Add up the totals that statfs tells before anybody asks, unless there is something else to do."""
        if self._mounting.operations.is_small():
            serial = -1
            while serial != self._serving.serial and not self._ended:
                serial = self._serving.serial
                time.sleep(_IDLE)
            if not self._ended:
                with contextlib.suppress(RequestError):
                    self._mounting.operations.totals()

    def _signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._on_hangup is not None:
            self._on_hangup()
            return
        self.signal = signal.Signals(number)
        if number != STEP_ASIDE:
            log.info("%s: unmounting %s", self.signal.name, self._mount.point)
        self.end()

    # ---- who serves

    def _work(self, worker: _Worker) -> None:
        """What a thread that can serve does until the end."""
        try:
            while not self._ended:
                if self._serving is worker:
                    self._serve(worker)
                else:
                    self._spares.append(worker)
                    worker.turn.acquire()
        except BaseException as error:  # noqa: BLE001  it must come out of the thread that the caller sees
            self.failure = self.failure or error
        self.end()
        for other in self._workers:
            with contextlib.suppress(RuntimeError):
                other.turn.release()

    def _watch(self) -> None:
        """What the watchman does: when the serving thread is stuck in one request, another one serves."""
        seen: tuple[_Worker, int] | None = None
        quiet = 0
        while not self._ended:
            worker = self._serving
            now = (worker, worker.serial)
            if now != seen:
                quiet = 0
            elif worker.is_busy:
                self._relieve()
            else:
                quiet += 1
                if quiet == _QUIET_TICKS:
                    self._active.clear()
                    self._active.wait()
                    quiet = 0
            seen = now
            time.sleep(_TICK)

    def _relieve(self) -> None:
        if self._spares:
            spare = self._spares.pop()
            self._serving = spare
            spare.turn.release()
        elif len(self._workers) < MAX_WORKERS:
            spare = _Worker(self._slots[len(self._workers)])
            spare.thread = threading.Thread(target=self._work, args=(spare,), name="server", daemon=True)
            with contextlib.suppress(RuntimeError, MemoryError):  # no room for a thread now: there is a next tick
                spare.thread.start()  # it waits among the spares for that tick
                self._workers.append(spare)

    # ---- serving

    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        return poll

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, _DRAINED)
        if self._ended:  # meanwhile: whoever polls has to see that
            self.end()

    def _serve(self, worker: _Worker) -> None:
        """Answer requests until the end, or until another worker does. What was taken ahead is answered in any case."""
        fd = self._fd
        buffer = worker.slot
        buffers = [buffer]
        pending, ahead, free = self._pending, self._ahead_slots, self._free
        counts = self._mounting.requests.counts
        readv, writev, clock = os.readv, os.writev, time.perf_counter
        unpack, pack, header_size = IN_HEADER.unpack_from, OUT_HEADER.pack, OUT_HEADER.size
        answers = self._answers
        poll = self._poll()
        may_spin = len(os.sched_getaffinity(0)) > 1
        spin = _SPIN if may_spin else 0.0
        idle_since = deadline = 0.0
        may_load = False
        prepare, load_next = self._prepare, self._content.load_next
        while (not self._ended or pending) and self._serving is worker:
            if pending:
                number = pending.popleft()
                size = min(IN_HEADER.unpack_from(ahead[number])[0], SLOT_SIZE)
                buffer[:size] = ahead[number][:size]  # what is begun is in the slot of who began it
                clear(ahead[number])
                free.append(number)
            else:
                try:
                    size = readv(fd, buffers)
                except BlockingIOError:
                    now = clock()
                    if deadline == 0.0:
                        idle_since = now
                        deadline = now + spin
                        may_load = may_spin
                    if may_load:
                        worker.serial += 1
                        worker.is_busy = True  # the host may not answer
                        may_load = prepare() or load_next()
                        worker.is_busy = False
                        deadline = clock() + spin
                        continue
                    os.sched_yield()
                    if now >= deadline:
                        if any(ready == self._wake_read for ready, _ in poll.poll()) and not self._ended:
                            self._drain()  # of what a signal left, whose handler has run by now
                        if not self._active.is_set():
                            self._active.set()
                    continue
                except OSError as error:
                    if error.errno == errno.ENOENT:
                        continue  # withdrawn before it was read
                    if error.errno in _GONE:
                        self._ended = True
                        return
                    raise MountError(f"the session with the kernel broke: {error.strerror}") from error
            if deadline != 0.0:
                deadline = 0.0
                if may_spin:
                    spin = _LONG_SPIN if clock() - idle_since < _LONG_SPIN else _SPIN
            worker.serial += 1
            worker.is_busy = True
            _, opcode, unique, nodeid, _, _, pid, _ = unpack(buffer)
            counts[opcode & _OPCODES] += 1
            try:
                if opcode == _READ:
                    self._read(unique, nodeid, pid, buffer)
                elif opcode not in _NO_REPLY:
                    answer = answers.get(opcode)
                    if answer is None:
                        raise RequestError(errno.ENOSYS)
                    payload = answer(nodeid, buffer, size)
                    writev(fd, (pack(header_size + len(payload), 0, unique), payload))
            except RequestError as error:
                self._send(error_reply(unique, error.errno))
            except OSError as error:
                if error.errno not in _NOBODY_WAITS:
                    log.error("a reply of %d failed: %s", opcode, error.strerror)
                    self._send(error_reply(unique, errno.EIO))
            except Exception:
                log.exception("request %d of inode %d", opcode, nodeid)
                self._send(error_reply(unique, errno.EIO))
            clear(buffer)
            worker.is_busy = False

    def _read(self, unique: int, nodeid: int, pid: int, buffer: memoryview) -> None:
        _, offset, length = READ_IN.unpack_from(buffer, BODY)
        now = time.perf_counter()
        if pid != self._last_reader:
            if now < self._last_read + _ALONE:
                self._alone_from = now + _ALONE
            self._last_reader = pid
        self._last_read = now
        views = self._content.read(nodeid, offset, length, may_guess=now >= self._alone_from)
        size = sum(map(len, views))
        header = OUT_HEADER.pack(OUT_HEADER.size + size, 0, unique)
        if len(views) < _MAX_IOV:
            os.writev(self._fd, [header, *views])
        else:
            os.writev(self._fd, [header, b"".join(views)])
        self._content.follow()

    def _send(self, reply: bytes) -> None:
        try:
            os.write(self._fd, reply)
        except OSError as error:
            if error.errno not in _NOBODY_WAITS:
                log.error("a reply failed: %s", error.strerror)

    # ---- what the content server needs

    def _store(self, ino: int, offset: int, content: memoryview) -> bool:
        try:
            os.writev(self._fd, (store_header(ino, offset, len(content)), content))
        except OSError:
            return False  # the kernel does not know the inode, most of the time
        return True

    def _take_ahead(self) -> Collection[int]:
        """Empty the queue into ``_pending``, and say whose content is wanted by what is there."""
        with contextlib.suppress(OSError):
            while self._free:
                os.readv(self._fd, [self._ahead_slots[self._free[-1]]])
                self._pending.append(self._free.pop())
        if not self._free:
            return _EVERYTHING
        wanted: set[int] = set()
        for number in self._pending:
            _, opcode, _, nodeid, *_ = IN_HEADER.unpack_from(self._ahead_slots[number])
            if opcode == _READ:
                wanted.add(nodeid)
        return wanted
