"""Taking over a mount that another version of this program has begun: what ``successor`` told is read, and served.

The image is opened anew, from the directory of blobs that the other one had open and by the manifest that it served, so
it does not matter where the layout and the tag are by now; how it is verified stays as it was.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from puzzlefs.blobs import Layout
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.image import open_manifest
from puzzlefs.mount.confine import prepare
from puzzlefs.mount.control import load
from puzzlefs.mount.counters import RequestCounters
from puzzlefs.mount.engine import Mounting
from puzzlefs.mount.flight import Flight
from puzzlefs.mount.guarded import BROKEN, Custody, Messages, serve_guarded
from puzzlefs.mount.kernel_mount import KernelMount
from puzzlefs.mount.lease import leased
from puzzlefs.mount.operations import Operations
from puzzlefs.mount.options import MountOptions
from puzzlefs.mount.successor import STATE_VERSION
from puzzlefs.oci import Dialect, make_reference

log = logging.getLogger("puzzlefs.mount")


def take_over(state_fd: int, begin: Callable[[Mapping[str, Any]], None]) -> int:
    """Serve a mount that is there already, until it is gone or somebody else takes over; the exit code.

    Args:
        state_fd: a file that says what to take over (``successor``).
        begin: called with the settings of whoever mounted, before anything can be logged.
    """
    with open(state_fd, "rb") as file:
        file.seek(0)
        state = json.load(file)
    channel = socket.socket(fileno=state["channel_fd"])
    messages = Messages(channel)
    try:
        if state["version"] != STATE_VERSION:
            raise FormatError(f"version {state['version']!r} of what is to be taken over is not known")
        begin(state["settings"])
        return _serve(state, messages)
    except Exception as error:  # noqa: BLE001  the guardian says it, and goes on without this process
        messages.failed(error)
        return BROKEN


def _serve(state: Mapping[str, Any], messages: Messages) -> int:
    for key, fd in state.items():
        if key.endswith("_fd") and fd >= 0:
            os.set_inheritable(fd, False)
    prepare()
    load()
    reference = make_reference(state["layout"], state["tag"])
    layout = Layout(reference.layout, Dialect(state["dialect"]), state["layout_fd"], state["blobs_fd"])
    anchor = None if state["digest"] is None else VerityDigest.from_hex(state["digest"])
    image = open_manifest(layout, reference, Digest.from_hex(state["manifest"]), digest=anchor, verity=state["verity"])
    point = Path(state["mountpoint"])
    custody = Custody(
        state["mounted"],
        state["guardian_pid"],
        restarts=state["restarts"],
        listener=None if state["listener_fd"] < 0 else socket.socket(fileno=state["listener_fd"]),
        events=state["events"],
        event_count=state["event_count"],
        failed_requests=state["failed_requests"],
    )
    mounting = Mounting(
        Operations(image),
        point,
        MountOptions(),
        str(reference),
        _nothing,
        RequestCounters(state["counters_fd"]),
    )
    with leased(image):  # the guardian has one as well, and may be killed
        return serve_guarded(
            mounting,
            KernelMount(state["queue_fd"], point),
            custody,
            Flight(state["requests_fd"]),
            messages,
            is_adopted=True,
        )


def _nothing() -> None:
    pass
