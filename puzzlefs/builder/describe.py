"""One entry of a host's tree as the model has it: what kind of file it is, and its extended attributes.

Whoever numbers a tree does that with these; errors are ``SourceError`` and name the whole path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from puzzlefs.builder.source import SourceDirectory, SourceTree
from puzzlefs.errors import SourceError
from puzzlefs.model import (
    BlockDevice,
    CharDevice,
    Content,
    Directory,
    Fifo,
    RegularFile,
    Socket,
    Symlink,
    Xattr,
)

PERMISSIONS: Final = 0o7777

_UNREADABLE_XATTR: Final = {errno.ENODATA, errno.EACCES, errno.EPERM, errno.ENOTSUP}


def content_of(
    tree: SourceTree,
    fd: int,
    directory: SourceDirectory,
    name: bytes,
    status: os.stat_result,
    reserve: Callable[[int], RegularFile],
) -> Content:
    """What an entry is, and what only that kind of file has; a directory without its entries.

    Args:
        tree: where it is.
        fd: a descriptor of ``directory``.
        directory: the directory that it is in.
        name: its name there.
        status: what ``lstat`` says about it.
        reserve: gives a regular file of so many bytes its place in the stream.

    Raises:
        SourceError: if it is of a kind that no image can hold.
        OSError: if the target of a symlink cannot be read.
    """
    match stat.S_IFMT(status.st_mode):
        case stat.S_IFREG:
            return reserve(status.st_size)
        case stat.S_IFDIR:
            return Directory(())
        case stat.S_IFLNK:
            return Symlink(os.readlink(name, dir_fd=fd))
        case stat.S_IFCHR:
            return CharDevice(os.major(status.st_rdev), os.minor(status.st_rdev))
        case stat.S_IFBLK:
            return BlockDevice(os.major(status.st_rdev), os.minor(status.st_rdev))
        case stat.S_IFIFO:
            return Fifo()
        case stat.S_IFSOCK:
            return Socket()
        case kind:
            path = tree.shown(directory.path(name))
            raise SourceError(f"{path} is of a kind that no image can hold (mode {kind:#o})")


def xattrs_of(tree: SourceTree, where: bytes | int, directory: SourceDirectory, name: bytes) -> tuple[Xattr, ...]:
    """Every extended attribute that may be read, sorted by key.

    Args:
        tree: where the entry is.
        where: a path of it, of which links are not followed, or a descriptor.
        directory: the directory that it is in, for messages.
        name: its name there.

    Raises:
        SourceError: if they cannot be read for another reason than that this user may not.
    """
    follow = isinstance(where, int)
    try:
        keys = os.listxattr(where, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _UNREADABLE_XATTR:
            return ()
        raise tree.failure("list the xattrs of", directory, name, error) from error
    xattrs: list[Xattr] = []
    for key in keys:
        try:
            xattrs.append(Xattr(os.fsencode(key), os.getxattr(where, key, follow_symlinks=follow)))
        except OSError as error:
            if error.errno not in _UNREADABLE_XATTR:
                raise tree.failure(f"read the xattr {key!r} of", directory, name, error) from error
    xattrs.sort(key=lambda xattr: xattr.key)
    return tuple(xattrs)
