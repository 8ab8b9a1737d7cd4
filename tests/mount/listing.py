"""What a directory tree shows, as values that can be compared."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Shown:
    """One entry, in everything that an image keeps."""

    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int | None
    content: str | None
    target: bytes | None
    xattrs: tuple[tuple[str, bytes], ...]
    names: tuple[bytes, ...]
    mtime_ns: int | None


def listing(root: Path, *, mtime: bool) -> dict[bytes, Shown]:
    """Every entry below ``root`` (which is ``b"."``) by its path.

    Of a directory, ``nlink`` is computed, because file systems count differently, and ``size`` is left out.
    """
    top = os.fsencode(root)
    status = {b".": os.lstat(top)}
    subdirectories: Counter[bytes] = Counter()
    for directory, names, files in os.walk(top):
        here = os.path.relpath(directory, top)
        for name in [*names, *files]:
            path = os.path.normpath(os.path.join(here, name))
            status[path] = os.lstat(os.path.join(directory, name))
            if stat.S_ISDIR(status[path].st_mode):
                subdirectories[here] += 1
    names_of: defaultdict[int, list[bytes]] = defaultdict(list)
    for path, found in status.items():
        names_of[found.st_ino].append(path)
    return {
        path: _shown(
            os.path.join(top, path),
            found,
            2 + subdirectories[path] if stat.S_ISDIR(found.st_mode) else found.st_nlink,
            tuple(sorted(names_of[found.st_ino])),
            mtime,
        )
        for path, found in status.items()
    }


def _shown(path: bytes, found: os.stat_result, nlink: int, names: tuple[bytes, ...], mtime: bool) -> Shown:
    regular = stat.S_ISREG(found.st_mode)
    return Shown(
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        nlink=nlink,
        rdev=found.st_rdev,
        size=None if stat.S_ISDIR(found.st_mode) else found.st_size,
        content=hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest() if regular else None,
        target=os.readlink(path) if stat.S_ISLNK(found.st_mode) else None,
        xattrs=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ),
        names=names,
        mtime_ns=found.st_mtime_ns if mtime else None,
    )
