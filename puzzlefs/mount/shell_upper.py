"""An upper directory of fuse-overlayfs, made to say the same in the words of the kernel's overlayfs.

fuse-overlayfs marks a directory of which nothing below is to be seen in three ways at once: the attribute
``user.fuseoverlayfs.opaque``, an empty file ``.wh..wh..opq`` and a character device ``.wh..opq``. Where it cannot make
devices, a file ``.wh.NAME`` stands for the white-out of ``NAME``. Whoever reads upper directories knows one language,
and these names, which nobody wrote, would become part of an image.

The times of directories stay what they were: what is removed here was never there for the command.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_OPAQUE_NAMES: Final = (".wh..wh..opq", ".wh..opq")
_WHITEOUT_PREFIX: Final = ".wh."
_PRIVATE: Final = "user.fuseoverlayfs."
_PRIVATE_OPAQUE: Final = f"{_PRIVATE}opaque"
_OPAQUE: Final = "user.overlay.opaque"
_WHITEOUT_DEVICE: Final = os.makedev(0, 0)


def translate_upper(upper: Path) -> None:
    """Rewrite an upper directory of fuse-overlayfs that nobody uses any more, in place.

    Raises:
        OSError: if the host fails.
    """
    for path, directories, files in os.walk(upper, topdown=False, onerror=_fail):
        for name in (*files, *directories):
            _drop_private(Path(path, name))
        _translate(Path(path), files)
    _drop_private(upper)


def _translate(directory: Path, files: Iterable[str]) -> None:
    marks = [name for name in files if name.startswith(_WHITEOUT_PREFIX)]
    if not marks:
        return
    before = directory.stat()
    for mark in marks:
        (directory / mark).unlink()
        if mark in _OPAQUE_NAMES:
            os.setxattr(directory, _OPAQUE, b"y")
        else:
            hidden = directory / mark.removeprefix(_WHITEOUT_PREFIX)
            if not os.path.lexists(hidden):
                os.mknod(hidden, stat.S_IFCHR, _WHITEOUT_DEVICE)
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


def _drop_private(path: Path) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        if name.startswith(_PRIVATE):
            if name == _PRIVATE_OPAQUE and os.getxattr(path, name, follow_symlinks=False) == b"y":
                os.setxattr(path, _OPAQUE, b"y", follow_symlinks=False)
            os.removexattr(path, name, follow_symlinks=False)


def _fail(error: OSError) -> None:
    raise error
