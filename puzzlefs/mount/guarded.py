"""What a server does that has a guardian: it serves, confined to what it needs, and tells the guardian what happens.

``Messages`` is its end of the socket: one JSON object a message, and descriptors with it where it says so.

* ``{"ready": true}``: requests are answered.
* ``{"failed": {…}}``: it could not begin; the fields are those of ``process_report``.
* ``{"event": {…}, "count": N, "failed_requests": N}``: something is wrong with the image (``error_log``); the next
  server is told of it.
* ``{"restart": true}``: somebody wants another server. With the message come sockets of those who wait to hear how it
  went.

Guardian and server can be of different versions of this program, so messages may be added, and not changed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from puzzlefs.errors import FormatError
from puzzlefs.mount.confine import confine
from puzzlefs.mount.control import Control, ServerFacts
from puzzlefs.mount.engine import Mounting
from puzzlefs.mount.error_log import MountEvent
from puzzlefs.mount.flight import Flight
from puzzlefs.mount.kernel_engine import Session
from puzzlefs.mount.kernel_mount import KernelMount
from puzzlefs.mount.process_report import describe
from puzzlefs.mount.signals import STEP_ASIDE

log = logging.getLogger("puzzlefs.mount")

GONE: Final = 0
"""Exit code of a server whose mount is gone."""
BROKEN: Final = 1
"""Exit code of a server that cannot go on."""
ENDED: Final = 10
"""Exit code of a server that a signal told to end the mount."""
STEPPED_ASIDE: Final = 11
"""Exit code of a server that left the queue to another one, having answered all that it had begun."""

_BEGUN_IS_LEFT: Final = 12


class Custody:
    """What outlives servers, besides the mount itself.

    Attributes:
        mounted: when it was mounted, in seconds of ``time.monotonic``.
        guardian_pid: the process that keeps it.
        restarts: how many servers there were before this one.
        listener: where clients connect who ask for the status.
        events: what was wrong with the image, oldest first, as plain values.
        event_count: how much there was in all.
        failed_requests: how many requests failed.
    """

    def __init__(
        self,
        mounted: float,
        guardian_pid: int,
        *,
        restarts: int = 0,
        listener: socket.socket | None = None,
        events: Sequence[dict[str, Any]] = (),
        event_count: int = 0,
        failed_requests: int = 0,
    ) -> None:
        self.mounted: Final = mounted
        self.guardian_pid: Final = guardian_pid
        self.restarts = restarts
        self.listener: Final = listener
        self.events = list(events)
        self.event_count = event_count
        self.failed_requests = failed_requests


class Messages:
    """Speaks to the guardian. Never fails and waits for nobody: a guardian that is gone, or slow, misses something."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def ready(self) -> None:
        self._send({"ready": True})

    def failed(self, error: BaseException) -> None:
        self._send({"failed": describe(error)})

    def event(self, event: MountEvent, count: int, failed_requests: int) -> None:
        self._send({"event": event.to_json(), "count": count, "failed_requests": failed_requests})

    def restart(self, asking: socket.socket | None = None) -> None:
        self._send({"restart": True}, () if asking is None else (asking.fileno(),))

    def _send(self, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        data = json.dumps(message).encode()
        with contextlib.suppress(OSError):
            socket.send_fds(self._channel, [data], fds, socket.MSG_DONTWAIT)


def serve_guarded(
    mounting: Mounting,
    mount: KernelMount,
    custody: Custody,
    flight: Flight,
    messages: Messages,
    *,
    is_adopted: bool,
) -> int:
    """Serve a mount that somebody else keeps. The process has one thread when this is called; the exit code.

    Args:
        mounting: what is served.
        mount: the mount.
        custody: what there is besides.
        flight: where requests lie until they are answered.
        messages: leads to the guardian.
        is_adopted: whether another server has served it before.
    """
    started = time.monotonic()
    operations = mounting.operations
    try:
        confinement = confine((operations.image.layout.blobs_fd,))
        operations.errors.restore(_understood(custody.events), custody.event_count, custody.failed_requests)
        operations.errors.on_event = lambda event: messages.event(
            event, operations.errors.count, operations.errors.failed_requests
        )
        facts = ServerFacts(
            mounting.mountpoint,
            "kernel",
            custody.mounted,
            started,
            supervised=True,
            guardian_pid=custody.guardian_pid,
            restarts=custody.restarts,
            confinement=confinement._asdict(),
        )
        control = None
        if custody.listener is not None:
            control = Control(
                custody.listener,
                operations,
                mounting.requests,
                facts,
                {"restart": lambda connection, _: messages.restart(connection)},
            )

        def ready() -> None:
            if control is not None:
                control.start()  # first: who is told that it is ready may take away what a thread needs
            messages.ready()
            if not gc.isenabled():  # whoever mounts has put it off; what is alive now stays so
                gc.collect()
                gc.freeze()
                gc.enable()

        session = Session(
            mounting._replace(on_ready=ready),
            mount,
            flight,
            is_adopted=is_adopted,
            on_hangup=messages.restart,
        )
        session.run()
        is_clean = session.leave()
        if session.failure is not None:
            raise session.failure
    except Exception as error:  # noqa: BLE001  the guardian says it
        messages.failed(error)
        return BROKEN
    if session.signal == STEP_ASIDE:
        return STEPPED_ASIDE if is_clean else _BEGUN_IS_LEFT
    return GONE if session.signal is None else ENDED


def _understood(events: Iterable[Mapping[str, object]]) -> Iterator[MountEvent]:
    """The events that are some: an earlier server, which an image had taken over, may have said anything."""
    for event in events:
        with contextlib.suppress(FormatError):
            yield MountEvent.from_json(event)
