"""Letting an upper directory forget the image that it was written over.

When overlayfs copies a file up, it notes in ``trusted.overlay.origin`` a handle of the lower file, and shows the copy
with the number of that inode. Over another image the handle leads to another file, and the kernel answers ESTALE for
both. Over the same image the inode is found or not, as the kernel happens to remember it, and two names of one file get
different numbers. Without the notes every file of the upper directory has its own number. Nothing else depends on them;
what is copied up after that gets new ones, which hold for the mount.
"""

from __future__ import annotations

import errno
import os
from typing import Final

_ORIGIN: Final = "trusted.overlay.origin"


def forget_origins(upper: int) -> None:
    """Remove the notes from everything in the upper directory whose descriptor is ``upper``.

    It must not be mounted.

    Raises:
        OSError: if the host refuses.
    """
    top = f"/proc/self/fd/{upper}"
    _forget(top, is_link=True)
    directories = [top]
    while directories:
        with os.scandir(directories.pop()) as entries:
            for entry in entries:
                _forget(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)


def _forget(path: str, *, is_link: bool = False) -> None:
    try:
        os.removexattr(path, _ORIGIN, follow_symlinks=is_link)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):  # the latter is for the overlay to complain about
            raise
