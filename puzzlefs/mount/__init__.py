"""An image as a mounted file system, through FUSE.

``operations`` says what a request means, an *engine* speaks to the kernel, ``serve`` puts them together. Nothing here
is imported from pyfuse3 or trio until something is mounted. Writable mounts (``writable``, ``committing``) are imported
by those who want one: they need more.
"""

from puzzlefs.callable_module import make_callable
from puzzlefs.mount.options import MountOptions, parse_options
from puzzlefs.mount.readiness import ReadinessFifo
from puzzlefs.mount.serve import ENGINES, EngineName, can_supervise, mount
from puzzlefs.mount.unmount import unmount

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

make_callable(__name__, mount)
