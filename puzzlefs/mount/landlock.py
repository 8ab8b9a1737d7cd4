"""Landlock (landlock(7)): a process that gives up rights to files, for good, and needs no privilege for it.

A *ruleset* says which rights it handles, and below which directories some of them remain; what is handled and not
allowed is refused from then on, to this thread and to all that it starts. What is open already stays usable as it was
opened. Each version of the interface (*ABI*) handles more; a kernel with a newer one than we know gets what we know,
which is what landlock(7) advises: a right that did not exist when this was written has not been tested against.

System calls by number, which is the same on every architecture (``include/uapi/asm-generic/unistd.h``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from typing import Final

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446

_CREATE_RULESET_VERSION: Final = 1  # <linux/landlock.h>
_RULE_PATH_BENEATH: Final = 1
_READ_FILE: Final = 1 << 2

_FS_RIGHTS: Final = ((1, 0x1FFF), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15), (9, 1 << 16))
"""The ABI from which on there are these rights: all of 1; REFER; TRUNCATE; IOCTL_DEV; RESOLVE_UNIX."""
_NET_RIGHTS: Final = ((4, 0b11),)
"""BIND_TCP and CONNECT_TCP."""
_SCOPES: Final = ((6, 0b11),)
"""ABSTRACT_UNIX_SOCKET and SIGNAL: towards processes outside."""

NEWEST_ABI: Final = 9
"""The newest version that is known here."""

_RULESET: Final = struct.Struct("=QQQ")  # handled_access_fs, handled_access_net, scoped
_RULESET_SIZES: Final = ((1, 8), (4, 16), (6, 24))
_PATH_BENEATH: Final = struct.Struct("=Qi")  # allowed_access, parent_fd; packed

_libc: Final = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The version of Landlock that this kernel has.

    Raises:
        OSError: ``ENOSYS`` if it has none, ``EOPNOTSUPP`` if it was switched off when it started; whatever a filter of
            system calls (of a container, for example) says.
    """
    return _syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)


def restrict(readable: Sequence[int]) -> int:
    """Leave this thread, and all that it starts, only the right to open files beneath some directories for reading.

    Refused are from then on: every other open; making, removing and renaming files; executing; mounting; ptrace of
    whoever is outside; and, as far as the kernel's ABI goes, truncating (3), TCP (4), ioctls of devices opened later
    (5), signals and abstract sockets towards processes outside (6) and sockets that have a path (9). Not refused are
    stat(2), readlink(2) and the like.

    The process must have ``no_new_privs`` or CAP_SYS_ADMIN.

    Args:
        readable: descriptors of directories.

    Returns:
        The ABI that is in force: the kernel's, or the newest that is known here.

    Raises:
        OSError: if that is not possible; nothing is restricted then.
    """
    version = min(abi(), NEWEST_ABI)
    while True:
        try:
            ruleset = _create(version)
            break
        except OSError as error:
            # a kernel that says more than it can: what is below is still worth having
            if error.errno not in (errno.EINVAL, errno.E2BIG) or version == 1:
                raise
            version -= 1
    try:
        for directory in readable:
            rule = _PATH_BENEATH.pack(_READ_FILE, directory)
            _syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _create(version: int) -> int:
    attributes = _RULESET.pack(*(_up_to(version, rights) for rights in (_FS_RIGHTS, _NET_RIGHTS, _SCOPES)))
    size = max(size for since, size in _RULESET_SIZES if since <= version)
    return _syscall(_CREATE_RULESET, attributes, size, 0)


def _up_to(version: int, rights: Sequence[tuple[int, int]]) -> int:
    result = 0
    for since, bits in rights:
        if since <= version:
            result |= bits
    return result


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    """Every argument takes a register, so ``long`` is right for the narrower ones, too."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result: int = _syscall_function(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


_syscall_function: Final = _libc.syscall
_syscall_function.restype = ctypes.c_long
