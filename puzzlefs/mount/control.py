"""The control socket of a mount: how it is asked for its status, to verify itself, and for whatever else is registered.

Each mount has a Unix stream socket in the abstract namespace (unix(7)), named after its device number, which the
kernel lists in mountinfo: ``\\0puzzlefs/0:53``. Nothing lies in a file system, so nothing is left behind, and whoever
knows the mount point finds it. A client sends one line of JSON, ``{"request": "status"}``, and gets lines of JSON, each
an object with one key: ``progress`` and ``bad`` any number of times, then ``result`` or ``error``, which ends it.

Who may ask is decided by the kernel's word (``SO_PEERCRED``): root, and the user that mounted. Everybody can connect,
and a name in the abstract namespace can be taken by anybody who is first; so both sides look, and clients believe
nobody but root and the mount's owner.

Nothing here may disturb serving: one thread accepts, and each client has one of its own, ``_MAX_CLIENTS`` of them at
most; requests are bounded in size and time, a client that does not take its answer is dropped, and strangers are sent
away no faster than ``_STRANGER_PAUSE`` allows. The rest wait in the kernel's queue.

A supervised server accepts on the socket that its guardian made and keeps: between two servers clients wait in its
queue, and one whose server died in the middle of an answer asks again.

Everything that answering needs is loaded when ``load`` is called, at the latest when the first server thread begins:
starting must be quick, and a server that has confined itself can load nothing any more.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from puzzlefs.mount.counters import RequestCounters
from puzzlefs.mount.mountinfo import mounted_at
from puzzlefs.mount.operations import Operations
from puzzlefs.signal_mask import blocked

if TYPE_CHECKING:
    import socket

log = logging.getLogger("puzzlefs.mount")

Action = Callable[["socket.socket", Mapping[str, object]], Mapping[str, object] | None]
"""What answers a request of a client: called in its thread with the connection and the request, returns the result, or
``None`` if somebody else will answer on a copy of the connection. A ``PuzzlefsError`` becomes an ``error``."""

MAX_REQUEST: Final = 1 << 15
"""Bytes of the longest request."""

_MODULES: Final = ("json", "select", "socket", "struct", "puzzlefs.mount.control_answers", "puzzlefs.mount.soundness")
_BACKLOG: Final = 64
_MAX_CLIENTS: Final = 8
_STRANGER_PAUSE: Final = 0.01
_FORMER_MOUNT: Final = 3.0
"""Seconds that the server of a mount which is gone may need to notice."""
_POLL: Final = 0.005
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 60.0


class ServerFacts(NamedTuple):
    """What only whoever started a server knows of it.

    Attributes:
        point: where the image is mounted (of a writable mount: below the overlay).
        engine: who speaks to the kernel: ``kernel`` or ``pyfuse3``.
        mounted: when it was mounted, in seconds of ``time.monotonic``.
        started: when this server began, likewise.
        supervised: whether a guardian keeps the mount while servers come and go.
        guardian_pid: its process.
        restarts: how many servers there were before this one.
        confinement: what this server may not do any more, as plain values with stable names; ``None``: it may all.
    """

    point: Path
    engine: str
    mounted: float
    started: float
    supervised: bool = False
    guardian_pid: int | None = None
    restarts: int = 0
    confinement: Mapping[str, object] | None = None


def address_of(device: str) -> bytes:
    """The name of the control socket of the mount with this device number (``major:minor``, as in mountinfo).

    Clients of other versions look for this name; it must not change.
    """
    return b"\0puzzlefs/" + device.encode("ascii")


def listen(device: str) -> socket.socket | None:
    """A socket that listens for clients of the mount with this device number.

    ``None``, with a line in the log, if it cannot be had: the mount goes on without.
    """
    import socket  # noqa: PLC0415  see above

    listener = None
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        _bind(listener, address_of(device))
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        log.warning("this mount cannot be asked for its status: no control socket for %s: %s", device, error.strerror)
        return None
    return listener


def _bind(listener: socket.socket, address: bytes) -> None:
    """Take a name; wait for a mount of the same number that was here before us and is about to let go of it.

    Raises:
        OSError: if somebody has it.
    """
    deadline = time.monotonic() + _FORMER_MOUNT
    is_ours = False
    while True:
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise
            # asked once: who is about to let go accepts nobody, and there is room for few who wait for that
            is_ours = is_ours or _is_of_ours(address)
            if not is_ours:
                raise
            time.sleep(_POLL)
        else:
            return


def _is_of_ours(address: bytes) -> bool:
    """Whether root or this user listens there, or nobody any more."""
    import socket  # noqa: PLC0415

    from puzzlefs.mount.control_answers import peer_uid  # noqa: PLC0415

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as connection:
        try:
            connection.connect(address)
            return peer_uid(connection) in (0, os.geteuid())
        except ConnectionRefusedError:
            return True
        except OSError:
            return False


def load() -> None:
    """Load everything that answering will need."""
    for name in _MODULES:
        importlib.import_module(name)


class Control:
    """Answers clients of one mount, in threads of its own, while another thread serves."""

    def __init__(
        self,
        listener: socket.socket,
        operations: Operations,
        requests: RequestCounters,
        facts: ServerFacts,
        actions: Mapping[str, Action] | None = None,
    ) -> None:
        """Answers that begin with ``start``.

        Args:
            listener: what ``listen`` returned; it stays open.
            operations: what is served.
            requests: what the engine counts.
            facts: what else there is to say.
            actions: answers to more requests than ``status`` and ``verify``, by their names.
        """
        self._listener = listener
        self._operations = operations
        self._requests = requests
        self._facts = facts
        self._actions = dict(actions or {})
        self._ended = threading.Event()
        self._clients = threading.Semaphore(_MAX_CLIENTS)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def start(self) -> None:
        """Begin; returns at once. Where there is no room for a thread, the mount goes on without."""
        with blocked():  # signals are for the thread that serves
            try:
                self._thread.start()
            except (RuntimeError, MemoryError) as error:
                log.warning("this mount cannot be asked for its status: %s", error)

    def stop(self) -> None:
        """Accept nobody any more. Who is being answered is let go; returns without waiting for that."""
        self._ended.set()
        os.write(self._wake_write, b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    # ---- inside

    def _accept(self) -> None:
        pause = _FIRST_RETRY
        while not self._ended.is_set():
            try:
                load()
                self._answer_all()
            except Exception as error:  # the mount goes on; out of memory, most likely, which passes
                log.exception("the control socket of %s failed and will be tried again: %r", self._facts.point, error)
                self._ended.wait(pause)
                pause = min(2 * pause, _LAST_RETRY)

    def _answer_all(self) -> None:
        import select  # noqa: PLC0415

        from puzzlefs.mount.control_answers import Answers, is_stranger, refuse  # noqa: PLC0415

        answers = Answers(self._operations, self._requests, self._facts, self._actions, self._ended)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while not self._ended.is_set():
            poll.poll()
            if not self._clients.acquire(timeout=1.0):
                continue
            connection = None
            try:
                if not self._ended.is_set():
                    connection, _ = self._listener.accept()
            except BlockingIOError:
                pass
            except OSError as error:
                log.warning("a client of the control socket was not accepted: %s", error.strerror)
                time.sleep(1.0)  # out of descriptors, most likely: others need some, too
            if connection is None:
                self._clients.release()
            elif is_stranger(connection):
                self._clients.release()
                refuse(connection)
                time.sleep(_STRANGER_PAUSE)
            else:
                self._begin(answers.talk, connection)

    def _begin(self, talk: Callable[[socket.socket], None], connection: socket.socket) -> None:
        thread = threading.Thread(target=self._talk, args=(talk, connection), name="control-client", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            log.warning("a client of the control socket was sent away: %s", error)
            connection.close()
            self._clients.release()

    def _talk(self, talk: Callable[[socket.socket], None], connection: socket.socket) -> None:
        try:
            talk(connection)
        except Exception:
            log.exception("an answer through the control socket of %s failed", self._facts.point)
        finally:
            connection.close()
            self._clients.release()


@contextlib.contextmanager
def controlled(
    point: Path, engine: str, operations: Operations, requests: RequestCounters, on_ready: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Answer clients of a mount that nobody supervises, from when it is ready until the end of the block.

    Args:
        point: where it will be mounted.
        engine: who will serve it.
        operations: what is served.
        requests: what the engine counts.
        on_ready: what is to be called when it is ready.

    Yields:
        What the engine is to call when it is ready.
    """
    clients = _Unsupervised(point, engine, operations, requests, on_ready)
    try:
        yield clients.ready
    finally:
        clients.end()


class _Unsupervised:
    """Begins when an engine is ready and ends when it has returned, whichever thread says so first."""

    def __init__(
        self, point: Path, engine: str, operations: Operations, requests: RequestCounters, on_ready: Callable[[], None]
    ) -> None:
        self._point = point
        self._engine = engine
        self._operations = operations
        self._requests = requests
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._ended = False
        self._listener: socket.socket | None = None
        self._control: Control | None = None

    def ready(self) -> None:
        now = time.monotonic()
        with self._lock:
            mount = mounted_at(self._point)
            if mount is not None and not self._ended:
                self._listener = listen(mount.device)  # who was told that it is ready can ask
        self._on_ready()
        with self._lock:
            if self._listener is not None and not self._ended:
                facts = ServerFacts(self._point, self._engine, mounted=now, started=now)
                self._control = Control(self._listener, self._operations, self._requests, facts)
                self._control.start()

    def end(self) -> None:
        with self._lock:
            self._ended = True
            if self._control is not None:
                self._control.stop()
            if self._listener is not None:
                self._listener.close()
