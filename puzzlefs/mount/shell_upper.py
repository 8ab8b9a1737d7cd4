"""What an upper directory says, where overlayfs was told less, or is another program.

``hidden_xattrs`` finds what copying up has lost because the image did not show it. ``translate_upper`` makes an upper
directory of fuse-overlayfs say the same in the words of the kernel's overlayfs:

fuse-overlayfs marks a directory of which nothing below is to be seen in three ways at once: the attribute
``user.fuseoverlayfs.opaque``, an empty file ``.wh..wh..opq`` and a character device ``.wh..opq``. Where it cannot make
devices, a file ``.wh.NAME`` stands for the white-out of ``NAME``. Whoever reads upper directories knows one language,
and these names, which nobody wrote, would become part of an image.

The times of directories stay what they were: what is removed here was never there for the command.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from puzzlefs.errors import PuzzlefsError
from puzzlefs.model import ROOT_INO, Kind
from puzzlefs.vfs import Tree, kind_to_file_type

_OPAQUE_NAMES: Final = (".wh..wh..opq", ".wh..opq")
_WHITEOUT_PREFIX: Final = ".wh."
_PRIVATE: Final = "user.fuseoverlayfs."
_PRIVATE_OPAQUE: Final = f"{_PRIVATE}opaque"
_OPAQUE: Final = "user.overlay.opaque"
_WHITEOUT_DEVICE: Final = os.makedev(0, 0)


def hidden_xattrs(upper: Path, tree: Tree, hides: Callable[[bytes], bool]) -> list[bytes]:
    """The paths in an upper directory whose inodes in the image have extended attributes that were hidden.

    Raises:
        OSError: if the host fails.
    """
    if not tree.may_have_xattrs():
        return []
    return sorted(_hidden_below(os.fsencode(upper), tree, ROOT_INO, b"", hides))


def _hidden_below(
    directory: bytes, tree: Tree, ino: int, path: bytes, hides: Callable[[bytes], bool]
) -> Iterator[bytes]:
    if any(map(hides, tree.xattrs(ino))):
        yield path
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                found = tree.lookup(ino, entry.name)
                xattrs = tree.xattrs(found.ino)
            except PuzzlefsError:
                continue  # new; or malformed, and then nobody could have copied it up
            below = path + b"/" + entry.name if path else entry.name
            if kind_to_file_type(found.kind) != stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode):
                continue
            if found.kind is not Kind.DIRECTORY:
                if any(map(hides, xattrs)):
                    yield below
            elif _OPAQUE not in os.listxattr(entry.path):
                yield from _hidden_below(entry.path, tree, found.ino, below, hides)


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
