"""An image as a mounted file system, through FUSE.

``operations`` says what a request means, an *engine* speaks to the kernel, ``serve`` puts them together. The names
below are loaded when they are first used, because a command that mounts forks before it loads them; and nothing is
imported from pyfuse3 or trio until something is mounted. Writable mounts (``writable``, ``committing``) are imported
by those who want one: they need more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from puzzlefs.callable_module import make_callable
from puzzlefs.late import late

if TYPE_CHECKING:
    from puzzlefs.mount.options import MountOptions, parse_options
    from puzzlefs.mount.readiness import ReadinessFifo
    from puzzlefs.mount.serve import ENGINES, EngineName, can_supervise, mount
    from puzzlefs.mount.unmounting import unmount
else:
    __getattr__ = late(
        __name__,
        {
            "ENGINES": "serve",
            "EngineName": "serve",
            "MountOptions": "options",
            "ReadinessFifo": "readiness",
            "can_supervise": "serve",
            "mount": "serve",
            "parse_options": "options",
            "unmount": "unmounting",
        },
    )

__all__ = [
    "ENGINES",
    "EngineName",
    "MountOptions",
    "ReadinessFifo",
    "can_supervise",
    "mount",
    "parse_options",
    "unmount",
]


def _mount(*arguments: Any, **named: Any) -> None:
    from puzzlefs.mount import serve  # noqa: PLC0415

    serve.mount(*arguments, **named)


make_callable(__name__, _mount)
