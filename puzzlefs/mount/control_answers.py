"""What is said through a control socket: one request of one client, and the lines that answer it.

Loaded when it is needed (``puzzlefs.mount.control``). Nothing that a client sends is believed, but who is root or the
owner of the mount may make it work: a verification reads all blobs. One runs at a time, and ends when its client goes
away.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from puzzlefs._version import __version__
from puzzlefs.errors import InvalidArgumentError, MountError, PuzzlefsError
from puzzlefs.mount.control import MAX_REQUEST, Action, ServerFacts
from puzzlefs.mount.counters import RequestCounters
from puzzlefs.mount.operations import Operations
from puzzlefs.mount.soundness import BadBlob, Soundness

log = logging.getLogger("puzzlefs.mount")

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred of <sys/socket.h>: pid uid gid
_REQUEST_TIME: Final = 5.0
"""Seconds in which a request has to arrive."""
_SEND_TIME: Final = 10.0
"""Seconds for which a client may leave its answer lying."""
_INTERVAL: Final = 0.1
"""Seconds between two lines of progress."""
_HEARTBEAT: Final = 1.0


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a Unix socket: who connected, or who began to listen."""
    return int(_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1])


def is_stranger(connection: socket.socket) -> bool:
    """Whether a client may not ask."""
    owner = 0 if os.geteuid() == 0 else os.getuid()
    try:
        return peer_uid(connection) not in (0, owner)
    except OSError:
        return True


def refuse(connection: socket.socket) -> None:
    """Send a stranger away."""
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        error = MountError("only root and the user that mounted it may ask", hint="run it as one of them")
        connection.send(line_of("error", error_fields(error)))


class Answers:
    """Answers clients about one mount. Thread safe."""

    def __init__(
        self,
        operations: Operations,
        requests: RequestCounters,
        facts: ServerFacts,
        actions: Mapping[str, Action],
        ended: threading.Event,
    ) -> None:
        """As ``Control``; ``ended`` is set when there is nothing to answer any more."""
        image = operations.image
        self._operations = operations
        self._requests = requests
        self._facts = facts
        self._actions = actions
        self._ended = ended
        self._layout = image.reference.layout.absolute()
        self._digest = image.anchor
        self._soundness = Soundness(operations)
        self._counting = threading.Lock()
        self._verifying = threading.Lock()

    def talk(self, connection: socket.socket) -> None:
        """Answer the request of one client."""
        try:
            request = _read_request(connection)
            connection.settimeout(_SEND_TIME)
            result = self._answer(request, connection)
            if result is None:
                return
            line = line_of("result", result)
        except _GoneError:
            return
        except PuzzlefsError as error:
            line = line_of("error", error_fields(error))
        except OSError as error:
            line = line_of("error", error_fields(MountError(error.strerror or str(error))))
        with contextlib.suppress(OSError):
            connection.sendall(line)

    def _answer(self, request: Mapping[str, object], connection: socket.socket) -> Mapping[str, object] | None:
        name = str(request["request"])
        if name == "status":
            return self._status(connection)
        if name == "verify":
            return self._verify(connection)
        action = self._actions.get(name)
        if action is None:
            raise InvalidArgumentError(
                f"the server of this mount does not know the request {name[:80]!r}",
                hint="it may be of another version than this command",
            )
        return action(connection, request)

    # ---- status

    def _status(self, connection: socket.socket) -> dict[str, object]:
        operations, facts, image = self._operations, self._facts, self._operations.image
        errors, now = operations.errors, time.monotonic()
        return {
            "image": f"{self._layout}:{image.reference.tag}",
            "manifest": image.manifest_digest.oci,
            "digest": self._verity_digest(),
            "digest_required": image.anchor is not None,
            "verity": image.verity,
            "blobs_checked": self._soundness.checked(),
            "blobs_to_check": self._blobs_to_check(connection),
            "corruptions": errors.count,
            "failed_requests": errors.failed_requests,
            "events": [event.to_json() for event in errors.events()],
            "engine": facts.engine,
            "server_pid": os.getpid(),
            "supervised": facts.supervised,
            "guardian_pid": facts.guardian_pid,
            "restarts": facts.restarts,
            "uptime": round(now - facts.mounted, 3),
            "server_uptime": round(now - facts.started, 3),
            "requests": self._requests.by_kind(),
            "caches": {
                name: {"items": size.items, "bytes": size.size, "max_bytes": size.max_size}
                for name, size in image.blobs.cache_sizes().items()
            },
            "confinement": None if facts.confinement is None else dict(facts.confinement),
            "version": __version__,
        }

    def _verity_digest(self) -> str | None:
        if self._digest is None:
            with contextlib.suppress(PuzzlefsError):  # the manifest is gone, or bad: verifying says so
                self._digest = self._operations.image.verity_digest()
        return None if self._digest is None else self._digest.hex()

    def _blobs_to_check(self, connection: socket.socket) -> int | None:
        alive = self._heartbeat(connection)
        with _held(self._counting, alive):
            try:
                return self._soundness.total(alive)
            except PuzzlefsError:
                return None  # malformed as a whole

    # ---- long work

    def _heartbeat(self, connection: socket.socket) -> Callable[[], None]:
        """What is to be called now and then while nothing else is said, so that neither side waits for nobody."""
        last = time.monotonic()

        def beat() -> None:
            nonlocal last
            if self._ended.is_set():
                raise _GoneError
            now = time.monotonic()
            if now >= last + _HEARTBEAT:
                last = now
                _send(connection, "progress", {"done": 0, "total": 0})

        return beat

    def _verify(self, connection: socket.socket) -> dict[str, object]:
        began = time.monotonic()
        alive = self._heartbeat(connection)
        last = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal last
            if self._ended.is_set():
                raise _GoneError
            now = time.monotonic()
            if now >= last + _INTERVAL or done == total:
                last = now
                _send(connection, "progress", {"done": done, "total": total})

        def report(blob: BadBlob) -> None:
            _send(
                connection,
                "bad",
                {
                    "digest": f"sha256:{blob.digest}",
                    "role": blob.role,
                    "fault": str(blob.kind),
                    "detail": blob.message,
                    "files": list(blob.files),
                    "more_files": blob.more_files,
                },
            )

        with _held(self._verifying, alive):  # somebody else's may be going on
            found = self._soundness.verify(progress, report, alive)
        return {
            "blobs": found.blobs,
            "bytes": found.size,
            "bad": found.bad,
            "seconds": round(time.monotonic() - began, 3),
        }


class _GoneError(Exception):
    """The client is gone, or the mount is."""


@contextlib.contextmanager
def _held(lock: threading.Lock, alive: Callable[[], None]) -> Iterator[None]:
    while not lock.acquire(timeout=_HEARTBEAT):
        alive()
    try:
        yield
    finally:
        lock.release()


def _read_request(connection: socket.socket) -> dict[str, object]:
    """What a client asks for; ``request`` is its name.

    Raises:
        InvalidArgumentError: if it sends something else.
        _GoneError: if it sends nothing in time.
    """
    deadline = time.monotonic() + _REQUEST_TIME
    data = b""
    while b"\n" not in data:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            received = connection.recv(MAX_REQUEST)
        except OSError as error:
            raise _GoneError from error
        data += received
        if not received or len(data) > MAX_REQUEST:
            raise InvalidArgumentError("a request is one line of JSON")
    try:
        request = json.loads(data.partition(b"\n")[0])
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError("a request is one line of JSON") from error
    if not isinstance(request, dict) or not isinstance(request.get("request"), str):
        raise InvalidArgumentError('a request is an object with a text "request"')
    return request


def _send(connection: socket.socket, kind: str, value: Mapping[str, object]) -> None:
    try:
        connection.sendall(line_of(kind, value))
    except OSError as error:
        raise _GoneError from error


def error_fields(error: PuzzlefsError) -> dict[str, object]:
    """What the value of ``error`` is in an answer."""
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}


def line_of(kind: str, value: Mapping[str, object]) -> bytes:
    """A line of an answer."""
    return json.dumps({kind: value}).encode() + b"\n"
