"""A filter of system calls (seccomp(2)) for a process that only reads files and answers on what is open already.

It closes what Landlock leaves open: new sockets (whoever talks to the system bus or to a container engine as root need
not open a file), executing, io_uring (whose requests no filter sees), handles of files instead of names, namespaces and
mounts; and, as a second wall and where there is no Landlock, everything that changes files by name, or opens one for
writing. What is refused fails with EPERM. It lists what is refused and not what is allowed, because the interpreter and
the C library of tomorrow may need calls that nobody here has heard of.

The kernel finds out by itself that most calls are allowed whatever their arguments, and does not run the filter for
them (Linux 5.11), so reading requests and answering them costs what it did.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

REFUSED: Final[Mapping[str, tuple[int | None, int | None]]] = MappingProxyType(
    {
        # talking to others
        "socket": (41, 198),
        "connect": (42, 203),
        "bind": (49, 200),
        # becoming or touching another program
        "execve": (59, 221),
        "execveat": (322, 281),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "pidfd_getfd": (438, 438),
        # ways around: of names, of this filter, into the kernel
        "open_by_handle_at": (304, 265),
        "openat2": (437, 437),
        "io_uring_setup": (425, 425),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        # mounts and namespaces
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "move_mount": (429, 429),
        "open_tree": (428, 428),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "unshare": (272, 97),
        "setns": (308, 268),
        # changing files by name
        "creat": (85, None),
        "truncate": (76, 45),
        "mknod": (133, None),
        "mknodat": (259, 33),
        "mkdir": (83, None),
        "mkdirat": (258, 34),
        "rmdir": (84, None),
        "unlink": (87, None),
        "unlinkat": (263, 35),
        "rename": (82, None),
        "renameat": (264, 38),
        "renameat2": (316, 276),
        "link": (86, None),
        "linkat": (265, 37),
        "symlink": (88, None),
        "symlinkat": (266, 36),
        "chmod": (90, None),
        "fchmodat": (268, 53),
        "fchmodat2": (452, 452),
        "chown": (92, None),
        "lchown": (94, None),
        "fchownat": (260, 54),
        "utime": (132, None),
        "utimes": (235, None),
        "futimesat": (261, None),
        "utimensat": (280, 88),
        "setxattr": (188, 5),
        "lsetxattr": (189, 6),
        "removexattr": (197, 14),
        "lremovexattr": (198, 15),
    }
)
"""System calls and their numbers: on x86-64, and on the architectures that use the generic table (arm64, RISC-V)."""

_OPEN: Final = (2, None)  # flags are its second argument
_OPENAT: Final = (257, 56)  # its third
_SECCOMP: Final = (317, 277)
_CHANGING: Final = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC

_X86_64: Final = 0
_GENERIC: Final = 1
_ARCHITECTURES: Final[Mapping[str, tuple[int, int]]] = MappingProxyType(
    {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _GENERIC), "riscv64": (0xC00000F3, _GENERIC)}
)
"""The AUDIT_ARCH_… of <linux/audit.h>, and the column of the table."""
_X32_BIT: Final = 0x40000000

_SECCOMP_SET_MODE_FILTER: Final = 1  # <linux/seccomp.h>
_SECCOMP_FILTER_FLAG_SPEC_ALLOW: Final = 1 << 2  # before Linux 5.16 a filter would slow the processor down otherwise
_SECCOMP_RET_ERRNO: Final = 0x00050000
_SECCOMP_RET_ALLOW: Final = 0x7FFF0000
_NUMBER: Final = 0  # offsets in struct seccomp_data
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16

_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K


class _Step(NamedTuple):
    """An instruction; where a comparison that holds goes on to a label."""

    code: int
    operand: int
    label: str = ""
    otherwise: str = ""


def install() -> None:
    """Refuse the system calls of ``REFUSED``, and opening for writing, to this thread and to all that it starts.

    The process must have ``no_new_privs`` or CAP_SYS_ADMIN.

    Raises:
        OSError: ``ENOSYS`` on an architecture whose numbers are not known here; what the kernel says.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES or sys.maxsize < 1 << 32 or sys.byteorder != "little":
        raise OSError(errno.ENOSYS, f"no filter of system calls is known for {machine}")
    program = _program(*_ARCHITECTURES[machine])
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a short, which is padded to a pointer
    description = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    number = _SECCOMP[_ARCHITECTURES[machine][1]]
    for flags in (_SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0):  # it came with Linux 4.17
        result = ctypes.CDLL(None, use_errno=True).syscall(
            ctypes.c_long(number), ctypes.c_long(_SECCOMP_SET_MODE_FILTER), ctypes.c_long(flags), description
        )
        if result == 0:
            return
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _program(architecture: int, column: int) -> bytes:
    steps = [
        _Step(_LOAD, _ARCHITECTURE),
        _Step(_EQUAL, architecture, otherwise="refuse"),  # the calls of 32-bit programs have other numbers
        _Step(_LOAD, _NUMBER),
    ]
    if column == _X86_64:
        steps.append(_Step(_AT_LEAST, _X32_BIT, "refuse"))
    openers = ((_OPENAT[column], "openat", 2), (_OPEN[column], "open", 1))
    known = [(number, label, argument) for number, label, argument in openers if number is not None]
    steps += [_Step(_EQUAL, number, label) for number, label, _ in known]  # first: the others are hardly ever called
    steps += [_Step(_EQUAL, row[column] or 0, "refuse") for row in REFUSED.values() if row[column] is not None]
    labels = {"allow": len(steps), "refuse": len(steps) + 1}
    steps += [_Step(_RETURN, _SECCOMP_RET_ALLOW), _Step(_RETURN, _SECCOMP_RET_ERRNO | errno.EPERM)]
    for _, label, argument in known:
        labels[label] = len(steps)
        steps += [
            _Step(_LOAD, _ARGUMENTS + 8 * argument),  # the lower half, which is all there is to flags
            _Step(_ANY_BIT, _CHANGING, "changes"),
            _Step(_RETURN, _SECCOMP_RET_ALLOW),
        ]
    labels["changes"] = len(steps)
    steps.append(_Step(_RETURN, _SECCOMP_RET_ERRNO | errno.EPERM))
    return b"".join(
        _INSTRUCTION.pack(
            step.code,
            labels[step.label] - place - 1 if step.label else 0,
            labels[step.otherwise] - place - 1 if step.otherwise else 0,
            step.operand,
        )
        for place, step in enumerate(steps)
    )
