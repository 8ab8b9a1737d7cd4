"""Asking a live mount, from outside: finding its control socket, and talking to the server behind it.

What an answer says is believed as far as its sender could be trusted anyway: the kernel tells who listens, and that
must be root or the user that mounted. To root, another user's server is still a stranger: its answers are bounded in
size, and whoever shows them has to keep control characters away from a terminal.

A server may die, or be replaced, in the middle of an answer; then the request is made once more, if it may be.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puzzlefs import errors
from puzzlefs.errors import (
    FormatError,
    InvalidArgumentError,
    MountError,
    NotFoundError,
    PuzzlefsError,
    UnsupportedError,
)
from puzzlefs.mount.control import address_of
from puzzlefs.mount.control_answers import peer_uid
from puzzlefs.mount.mountinfo import IMAGE_FS_TYPE, Mount, all_mounts, on_top, writable_mount
from puzzlefs.oci.json_text import JsonObject, parse_object

_MAX_LINE: Final = 8 << 20
_SILENCE: Final = 60.0
"""Seconds without a word from the server after which nothing more is expected."""
_NOBODY: Final = 2.0
"""Seconds that a mount may take to have a server that listens."""
_PROBE: Final = 5.0
_POLL: Final = 0.05
_ATTEMPTS: Final = 25
_NEW_SERVER: Final = 0.2
"""Seconds before a request is made again."""
_FUSE: Final = "fuse"
_KINDS: Final = (InvalidArgumentError, MountError, NotFoundError, UnsupportedError)


@dataclass(frozen=True, slots=True)
class LiveMount:
    """A mount that can be asked.

    Attributes:
        point: where the user sees it.
        image: the mount of the image: at ``point``, or below the overlay of a writable mount.
        is_writable: whether it is a writable mount.
    """

    point: Path
    image: Mount
    is_writable: bool

    @property
    def owner(self) -> int:
        """The user that mounted it."""
        number = self.image.super_option(b"user_id") or b""
        return int(number) if number.isdigit() else 0


def find_mount(mountpoint: str | Path) -> LiveMount:
    """The mount of an image at ``mountpoint``, which may be written in any way, and be that of a writable mount.

    Raises:
        NotFoundError: if that is no mount point.
        MountError: if something else is mounted there, or the image was unmounted from below an overlay.
    """
    # not strict: a dead server must not keep us from looking into the kernel's table
    point = Path(os.path.realpath(mountpoint))
    mounts = all_mounts()
    writable = writable_mount(mounts, point)
    if writable is not None:
        image = writable[1]
        if image is None:
            raise MountError(
                f"the image below the overlay at {point} is not mounted any more",
                hint=f"clear it away: puzzlefs umount {point}",
            )
        return LiveMount(point, image, True)
    mount = on_top(mounts, point)
    if mount is None:
        raise _no_mount_point(mountpoint, point, mounts)
    if mount.fs_type.split(".")[0] != _FUSE:
        raise _another(mountpoint, mount)
    return LiveMount(point, mount, False)


def ask(
    mount: LiveMount,
    request: str,
    on_line: Callable[[str, JsonObject], None] | None = None,
    *,
    parameters: Mapping[str, object] | None = None,
    again: bool = True,
) -> JsonObject:
    """Make a request of the server of a mount, and wait for the result.

    Args:
        mount: from ``find_mount``.
        request: its name.
        on_line: called with the key and the value of each line before the result: ``progress``, ``bad``.
        parameters: what else the request has to say.
        again: whether the request may be made once more if the server dies before the result.

    Raises:
        MountError: if the mount has no server any more, or one that cannot be asked or does not answer, or it fails.
        PuzzlefsError: another one that the server answers with.
    """
    for _ in range(_ATTEMPTS if again else 1):
        with _connected(mount) as connection:
            try:
                connection.sendall(json.dumps({**(parameters or {}), "request": request}).encode() + b"\n")
                for key, value in _lines(connection):
                    if key == "result":
                        return value
                    if key == "error":
                        raise _error(value)
                    if on_line is not None:
                        on_line(key, value)
            except TimeoutError as error:
                raise _silent(mount) from error
            except OSError:
                pass  # it died
        time.sleep(_NEW_SERVER)
    raise MountError(f"the server of {mount.point} ended before it had answered")


def _connected(mount: LiveMount) -> socket.socket:
    """A connection to the server, or to the queue of clients that the next server will find."""
    deadline = time.monotonic() + _NOBODY
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(_SILENCE)
            connection.connect(address_of(mount.image.device))
            uid = peer_uid(connection)
        except OSError as error:
            connection.close()
            if error.errno == errno.ECONNREFUSED and not _is_alive(mount.point):
                raise MountError(
                    f"the server of {mount.point} is dead", hint=f"remove the mount: puzzlefs umount {mount.point}"
                ) from error
            if time.monotonic() >= deadline or error.errno not in (errno.ECONNREFUSED, errno.EAGAIN):
                raise _no_answer(mount, error) from error
            time.sleep(_POLL)
            continue
        if uid not in (0, mount.owner):
            connection.close()
            raise MountError(
                f"somebody else answers for {mount.point}: user {uid}, who has not mounted it",
                hint="the name of its control socket was taken; find the process with: ss -xlp | grep puzzlefs",
            )
        return connection


def _is_alive(point: Path) -> bool:
    """Whether there is a server behind a mount point; one that does not answer is taken for one."""
    dead = threading.Event()

    def look() -> None:
        try:
            os.getxattr(point, b"user.puzzlefs")  # attributes are known to the kernel without a server, this is not
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                dead.set()

    thread = threading.Thread(target=look, name="probe", daemon=True)
    thread.start()
    thread.join(_PROBE)
    return not dead.is_set()


def _lines(connection: socket.socket) -> Iterator[tuple[str, JsonObject]]:
    """The key and the value of each line that the server sends."""
    with connection.makefile("rb") as file:
        while line := file.readline(_MAX_LINE):
            if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                return  # it died while it wrote
            try:
                document = parse_object(line, "an answer")
            except FormatError as error:
                raise not_understood() from error
            for key, value in document.items():
                if not isinstance(value, Mapping):
                    raise not_understood()
                yield key, value


def not_understood() -> MountError:
    """The error of an answer that makes no sense."""
    return MountError("the server answers in a way that is not understood", hint="it may be of another version")


def _error(fields: Mapping[str, object]) -> PuzzlefsError:
    kind = getattr(errors, str(fields.get("kind")), MountError)
    message, hint = str(fields.get("message")), str(fields.get("hint") or "")
    return (kind if kind in _KINDS else MountError)(message, hint=hint)


def _silent(mount: LiveMount) -> MountError:
    return MountError(
        f"the server of {mount.point} does not answer",
        hint="it may be stopped (look at it with ps), or its host too busy",
    )


def _no_answer(mount: LiveMount, error: OSError) -> PuzzlefsError:
    if error.errno == errno.EAGAIN:  # others wait for an answer, as many as may
        return _silent(mount)
    if error.errno != errno.ECONNREFUSED:
        return MountError(f"the server of {mount.point} cannot be asked: {error.strerror or error}")
    if mount.image.fs_type != IMAGE_FS_TYPE:
        return _another(mount.point, mount.image)
    return MountError(
        f"the server of {mount.point} cannot be asked: it does not listen here",
        hint="it was started by another version, or runs in another network namespace: ask there",
    )


def _another(mountpoint: str | Path, mount: Mount) -> MountError:
    return MountError(f"{mountpoint} is a mount of type {mount.fs_type}, not one of PuzzleFS")


def _no_mount_point(mountpoint: str | Path, point: Path, mounts: list[Mount]) -> NotFoundError:
    hint = "list mounts of images with: findmnt -t fuse.puzzlefs"
    for above in point.parents:
        found = on_top(mounts, above)
        if found is not None and (found.fs_type == IMAGE_FS_TYPE or writable_mount(mounts, above) is not None):
            hint = f"it lies in the mount at {above}: name that"
            break
    return NotFoundError(f"{mountpoint} is not a mount point", hint=hint)
