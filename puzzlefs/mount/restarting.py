"""Having a live mount served by another version of the program, see ``guardian``."""

from __future__ import annotations

from pathlib import Path

from puzzlefs.errors import UnsupportedError
from puzzlefs.mount.control_client import ask, find_mount, not_understood
from puzzlefs.mount.status import mount_status


def restart_mount(mountpoint: str | Path) -> int:
    """Replace the server of a supervised mount; nobody who uses the mount notices more than a pause.

    Args:
        mountpoint: where it is mounted; a writable mount, too.

    Returns:
        The process that serves from now on: the program that mounted, as it is on disk by now.

    Raises:
        NotFoundError: if that is no mount point.
        UnsupportedError: if the mount is not supervised.
        MountError: if the new server does not come up, and the old one stays; or as ``mount_status``.
    """
    if not mount_status(mountpoint).is_supervised:
        raise UnsupportedError(
            f"the mount at {mountpoint} has no guardian that could replace its server",
            hint="unmount it, and mount it in the background or with --supervise",
        )
    pid = ask(find_mount(mountpoint), "restart", again=False).get("server_pid")
    if not isinstance(pid, int):
        raise not_understood()
    return pid
