"""The engine that speaks the kernel's protocol itself: a loop of one readv and one writev a request.

One thread serves. It answers each request where it reads it, because handing a request to another thread costs more
than most answers. A *watchman* thread looks every few milliseconds, while there is work, whether the serving thread is
stuck in one request (a host that does not answer, for example), and then lets another thread serve, so that one slow
blob does not stop everybody. A thread that was stuck finds that another one serves, and waits for its turn. This costs
the usual case nothing but a counter.

Waiting for a request begins with a busy-wait of ``_SPIN`` seconds, on machines with more than one processor: a
program that walks a tree sends its next request within microseconds, and to be woken costs more than that.
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
from collections.abc import Iterator
from types import FrameType
from typing import Final

from puzzlefs.errors import MountError
from puzzlefs.mount.engine import Mounting, probe
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.kernel_answers import WANTED_FLAGS, Answers
from puzzlefs.mount.kernel_mount import KernelMount, mount_kernel
from puzzlefs.mount.kernel_protocol import (
    BODY,
    IN_HEADER,
    MAJOR,
    MIN_READ_BUFFER,
    MINOR,
    OUT_HEADER,
    Opcode,
    error_reply,
    init_reply,
    parse_init,
)
from puzzlefs.mount.signals import ENDING, held_back, in_main_thread, let_through

log = logging.getLogger("puzzlefs.mount")

_SPIN: Final = 100e-6
_TICK: Final = 0.02
_IDLE_TICKS: Final = 50
_MAX_THREADS: Final = 8
_MAX_PAGES: Final = 256
_MAX_BACKGROUND: Final = 64
_NO_REPLY: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.NOTIFY_REPLY})


class KernelEngine:
    """Serves a mount through ``/dev/fuse``."""

    def serve(self, mounting: Mounting) -> None:
        """See ``Engine.serve``."""
        with held_back():
            mount = mount_kernel(mounting.mountpoint, mounting.options, mounting.fsname)
            try:
                _Session(mounting, mount).run()
            finally:
                mount.close()


class _Session:
    """One mount from INIT to the end."""

    def __init__(self, mounting: Mounting, mount: KernelMount) -> None:
        self._mounting = mounting
        self._mount = mount
        self._answers = Answers(mounting.operations)
        self._failure: BaseException | None = None
        self._ended = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        announcer = threading.Thread(target=self._announce, name="announcer", daemon=True)
        try:
            with self._signals_end_it():
                self._initialise()
                announcer.start()
                self._serve()
        finally:
            self.end()
            self._mount.close()
            if announcer.ident is not None:
                announcer.join()
            os.close(self._wake_read)
            os.close(self._wake_write)
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Make the serving thread return; from any thread, and from a signal handler."""
        self._ended = True
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"\0")

    # ---- beginning

    def _initialise(self) -> None:
        buffer = bytearray(MIN_READ_BUFFER)
        poll = self._poll()
        while not self._ended:
            poll.poll()
            try:
                size = os.readv(self._mount.fd, [buffer])
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
            self._send(OUT_HEADER.pack(16 + len(reply), 0, unique) + reply)
            return

    def _announce(self) -> None:
        try:
            probe(self._mount.point)
            self._mounting.on_ready()
            self._mounting.operations.prepare()
        except BaseException as error:  # noqa: BLE001  a caller's on_ready may fail in any way
            if not self._ended:
                self._failure = error
                self.end()

    @contextlib.contextmanager
    def _signals_end_it(self) -> Iterator[None]:
        if not in_main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            log.info("%s: unmounting %s", signal.Signals(number).name, self._mount.point)
            self.end()

        before = [(number, signal.signal(number, handle)) for number in ENDING]
        try:
            with let_through():
                yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    # ---- serving

    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._mount.fd, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        return poll

    def _serve(self) -> None:
        fd = self._mount.fd
        buffer = bytearray(1 << 16)
        buffers = [buffer]
        readv, writev, clock = os.readv, os.writev, time.perf_counter
        unpack, pack = IN_HEADER.unpack_from, OUT_HEADER.pack
        table = self._answers.table
        poll = self._poll()
        spin = _SPIN if len(os.sched_getaffinity(0)) > 1 else 0.0
        deadline = 0.0
        while not self._ended:
            try:
                size = readv(fd, buffers)
            except BlockingIOError:
                now = clock()
                if deadline == 0.0:
                    deadline = now + spin
                if now >= deadline:
                    poll.poll()
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:  # withdrawn before it was read
                    continue
                if error.errno not in (errno.ENODEV, errno.ECONNABORTED):
                    raise MountError(f"the session with the kernel broke: {error.strerror}") from error
                return
            deadline = 0.0
            _, opcode, unique, nodeid, _, _, _, _ = unpack(buffer)
            if opcode in _NO_REPLY:
                continue
            try:
                payload = table[opcode](nodeid, buffer, size)
                writev(fd, (pack(16 + len(payload), 0, unique), payload))
            except RequestError as error:
                self._send(error_reply(unique, error.errno))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise

    def _send(self, reply: bytes) -> None:
        try:
            os.write(self._mount.fd, reply)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
