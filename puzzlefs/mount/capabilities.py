"""Capabilities (capabilities(7)): what of root's power a process has, and giving it up.

They belong to a thread: whoever drops them does so before it starts others. Raising them again is not offered.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection
from typing import Final

CAP_DAC_READ_SEARCH: Final = 2  # <linux/capability.h>

_NAMES: Final = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)

_VERSION_3: Final = 0x20080522
_HEADER: Final = struct.Struct("=Ii")  # version, pid
_DATA: Final = struct.Struct("=6I")  # effective, permitted, inheritable; again for the upper halves
_MASK: Final = 0xFFFFFFFF
_BITS: Final = 64

_PR_CAPBSET_READ: Final = 23  # <linux/prctl.h>
_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_libc: Final = ctypes.CDLL(None, use_errno=True)


def effective() -> frozenset[int]:
    """The capabilities that this thread can use now.

    Raises:
        OSError: as the kernel reports it.
    """
    data = ctypes.create_string_buffer(_DATA.size)
    _check(_libc.capget(_HEADER.pack(_VERSION_3, 0), data))
    low, _, _, high, _, _ = _DATA.unpack(data.raw)
    return frozenset(number for number in range(_BITS) if (low | high << 32) >> number & 1)


def keep_only(wanted: Collection[int]) -> None:
    """Drop every capability but those of ``wanted`` that are effective; nothing that is executed later gets any.

    Raises:
        OSError: as the kernel reports it. What could be dropped before is dropped.
    """
    kept = effective().intersection(wanted)
    _clear_bounding_set()
    _libc.prctl(_PR_CAP_AMBIENT, *_words(_PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))  # capset clears them anyway
    bits = sum(1 << number for number in kept)
    low, high = bits & _MASK, bits >> 32
    _check(_libc.capset(_HEADER.pack(_VERSION_3, 0), _DATA.pack(low, low, 0, high, high, 0)))


def _clear_bounding_set() -> None:
    """As far as this thread may, which without CAP_SETPCAP is not at all; ``no_new_privs`` stands before it anyway."""
    for number in range(_BITS):
        present = _libc.prctl(_PR_CAPBSET_READ, *_words(number, 0, 0, 0))
        if present < 0:
            return  # this kernel has no more
        if present:
            _libc.prctl(_PR_CAPBSET_DROP, *_words(number, 0, 0, 0))


def name(number: int) -> str:
    """What capabilities(7) calls it."""
    return f"CAP_{_NAMES[number]}" if number < len(_NAMES) else f"CAP_{number}"


def _words(*numbers: int) -> list[ctypes.c_ulong]:
    return [ctypes.c_ulong(number) for number in numbers]


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
