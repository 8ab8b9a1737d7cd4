"""The process that serves what ``puzzlefs mount`` mounts in the background.

It is started before the command line is read: then it loads what a mount needs while the command line is read.
"""

from __future__ import annotations

from puzzlefs_cli.daemon import Daemon

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from puzzlefs_cli.daemon import Job, Task

_SERVES_NOBODY = ("-f", "--foreground", "-h", "--help")
"""Words with which ``mount`` has nothing to do in the background."""


def daemon_for(words: Sequence[str]) -> Daemon | None:
    """The process that will serve what a command line mounts, if it looks like one that mounts something.

    A guess that is wrong does no harm: a daemon that is not told what to do ends, and ``mount`` starts one where there
    is none. So nothing is said here where none can be started.
    """
    first = next((word for word in words if word != "--debug"), None)
    if first != "mount" or any(word in _SERVES_NOBODY for word in words):
        return None
    try:
        return mount_daemon()
    except OSError:
        return None


def mount_daemon() -> Daemon:
    """A process that will serve a mount."""
    return Daemon(_load)


def _load() -> Callable[[Task], Job]:
    from puzzlefs_cli.mount_job import loaded  # noqa: PLC0415  here it is the daemon that waits for that

    return loaded()
