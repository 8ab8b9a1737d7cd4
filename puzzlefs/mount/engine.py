"""What serves a mount: the seam between the operations and whoever speaks to the kernel.

An engine mounts, answers requests by calling ``Operations`` until somebody unmounts, and leaves nothing mounted.
There are two, which pass the same tests: one on pyfuse3 and trio, and one that speaks the kernel's protocol itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from puzzlefs.errors import InvalidArgumentError, MountError, NotFoundError
from puzzlefs.model import ROOT_INO
from puzzlefs.mount.counters import RequestCounters
from puzzlefs.mount.operations import Operations
from puzzlefs.mount.options import MountOptions

FOREVER: Final = float(1 << 31)
"""Seconds for which the kernel may keep names and attributes, because an image cannot change: 68 years.

Not infinity: the kernel adds it to its clock.
"""


class Mounting(NamedTuple):
    """What an engine is given.

    Attributes:
        operations: what requests mean.
        mountpoint: an existing directory, absolute.
        options: how to mount.
        fsname: what ``mount`` shows as the source, where the options name nothing.
        on_ready: called once, when the mount point answers.
        requests: where the engine counts what it is asked for.
    """

    operations: Operations
    mountpoint: Path
    options: MountOptions
    fsname: str
    on_ready: Callable[[], None]
    requests: RequestCounters


class Engine(Protocol):
    """Something that can serve a mount."""

    def serve(self, mounting: Mounting) -> None:
        """Mount, serve until unmounted (or until SIGINT, SIGTERM or SIGHUP, if this is the main thread), and clean up.

        Raises:
            MountError: if mounting fails or the session with the kernel breaks.
            UnsupportedError: if this machine or this user lacks what the engine needs.
        """
        ...


def checked_mountpoint(path: Path) -> Path:
    """``path`` without links, if something can be mounted there.

    Raises:
        NotFoundError: if it does not exist.
        InvalidArgumentError: if it is not a directory.
        MountError: if a mount whose server is dead is in the way, or it cannot be reached.
    """
    try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
        os.statvfs(resolved)  # of a mount whose server is dead the kernel still knows the attributes
    except FileNotFoundError as error:
        raise NotFoundError(f"mount point {path} does not exist", hint=f"make it first: mkdir {path}") from error
    except NotADirectoryError as error:
        raise NotFoundError(f"mount point {path} does not exist: a part of it is not a directory") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        if isinstance(error, OSError) and error.errno == errno.ENOTCONN:
            raise MountError(
                f"a mount whose server has died is in the way at {path}",
                hint=f"remove it first: puzzlefs umount {path}",
            ) from error
        raise MountError(f"mount point {path} cannot be used: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISDIR(mode):
        raise InvalidArgumentError(f"mount point {path} is not a directory")
    return resolved


def probe(mountpoint: Path) -> None:
    """Ask the new mount for its root directory; returns when it has answered. Blocks: not for the thread that serves.

    Raises:
        MountError: if the answer is not that of an image.
    """
    try:
        # not statvfs: its totals come from a walk over all metadata, which nobody has asked for yet
        number = mountpoint.stat().st_ino
    except OSError as error:
        raise MountError(f"{mountpoint} was mounted but does not answer: {error.strerror}") from error
    if number != ROOT_INO:
        raise MountError(f"{mountpoint} was mounted, but something else answers there")
