"""What overlayfs writes into an upper directory to say what became of the lower one (kernel: overlayfs.rst).

Its private attributes are ``trusted.overlay.*``, or ``user.overlay.*`` in mounts with ``userxattr``. They say how an
entry is to be read and are no part of what a user sees:

* a *white-out*, which is a character device 0:0, or an empty regular file with ``overlay.whiteout``: there is no such
  name;
* ``overlay.opaque`` = ``y``: nothing of the lower directory is to be seen. (``x`` says something else: that white-outs
  of the second kind are in it.)
* ``overlay.redirect``: the lower directory, or the lower file whose content is meant, has another place: a path from
  the root where it begins with a slash, else another name in the same lower directory;
* ``overlay.metacopy``: only the attributes were copied up, and the content is the lower file's.

What a user sees as ``trusted.overlay.x`` on an overlay is stored as ``trusted.overlay.overlay.x``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from puzzlefs.model import Xattr

TRUSTED: Final = b"trusted.overlay."
USER: Final = b"user.overlay."
"""Where the private attributes are: of ordinary mounts, and of such with ``userxattr``."""

_ESCAPE: Final = b"overlay."


@dataclass(frozen=True, slots=True)
class OverlayEntry:
    """What the private attributes of one entry say, and the attributes that are not private.

    Attributes:
        xattrs: what a user sees, sorted by key.
        has_whiteout: whether there is ``overlay.whiteout``, whatever its value.
        is_opaque: whether nothing below is to be seen.
        redirect: where the lower directory or file is.
        is_metacopy: whether the content is the lower file's.
    """

    xattrs: tuple[Xattr, ...]
    has_whiteout: bool = False
    is_opaque: bool = False
    redirect: bytes | None = None
    is_metacopy: bool = False


def read_overlay_xattrs(xattrs: Iterable[Xattr], prefixes: Sequence[bytes] = (TRUSTED, USER)) -> OverlayEntry:
    """Tell what is private in the extended attributes of an upper entry from what is not.

    Args:
        xattrs: the attributes of the entry.
        prefixes: where the mount that wrote it has its private ones.
    """
    seen: list[Xattr] = []
    found = OverlayEntry(())
    for xattr in xattrs:
        prefix = next((prefix for prefix in prefixes if xattr.key.startswith(prefix)), None)
        if prefix is None:
            seen.append(xattr)
            continue
        name = xattr.key[len(prefix) :]
        if name.startswith(_ESCAPE):
            seen.append(Xattr(prefix + name[len(_ESCAPE) :], xattr.value))
            continue
        match name:
            case b"whiteout":
                found = replace(found, has_whiteout=True)
            case b"opaque":
                found = replace(found, is_opaque=found.is_opaque or xattr.value == b"y")
            case b"redirect":
                found = replace(found, redirect=xattr.value)
            case b"metacopy":
                found = replace(found, is_metacopy=True)
            case _:  # origin, impure, nlink, upper, uuid, protattr, …: matters of the mount
                pass
    return replace(found, xattrs=tuple(sorted(seen, key=lambda xattr: xattr.key)))


def is_whiteout(status: os.stat_result, entry: OverlayEntry) -> bool:
    """Whether an upper entry says that there is no such name."""
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    return stat.S_ISREG(status.st_mode) and not status.st_size and entry.has_whiteout
