"""The server of a mount gives up what it does not need: it parses what somebody else wrote, so it is what gets broken.

``puzzlefs mount`` has two processes in the background. The *guardian* opened the image, mounted, and stays outside: it
unmounts, and starts a server anew when that is needed. The *server*, forked by it, answers requests. Between the fork
and its first thread (Landlock and capabilities belong to threads, and are inherited) it calls ``prepare`` and then
``confine``. What is left to it afterwards:

* what is open: the queue of FUSE, the log, sockets and pipes; it can accept on a socket that listens, not make one;
* opening the blobs of its image for reading;
* no capability but CAP_DAC_READ_SEARCH, if it had that: root mounts images of which he owns nothing (mode 0600 after
  ``umask 077``, or unpacked with their owners), and without it each such blob is EIO; what kind the next blob is cannot
  be known beforehand. Below Landlock it reaches nothing but the blobs; ``open_by_handle_at``, the way around names that
  it opens, is refused by the filter;
* nothing that an execve could add (``no_new_privs``, an empty bounding set), if there were an execve.

Three walls, each for itself, and all of best effort: an old kernel, a container, or an architecture that lacks one of
them still gets the others and a mount that works. ``Confinement`` says what holds.

**What a server cannot do any more**, so it has to be done before, or by the guardian: mount and unmount (root by
CAP_SYS_ADMIN, others by the set-user-ID ``fusermount3``), ``read_ahead_kb`` in sysfs, opening ``/dev/null``, reading
``/proc/self/mountinfo``, connecting to ``/dev/log`` (Landlock forbids that from ABI 9 on, the filter always: a root
that can connect to the socket of systemd or of a container engine needs no other right). The log's socket is therefore
connected when the log is set up. Where the system log was restarted with a new socket (systemd keeps its own), a new
server (``puzzlefs restart``) finds it.

**Signals** reach it as ever; it can send none to processes outside (Landlock, ABI 6).

**Not done:** PR_SET_DUMPABLE 0. It would keep processes of the same user from looking into the server, who may do
anything to that user's other processes, too; it would cost core dumps, debuggers, profilers, and the user's own
``/proc/PID``. What matters is the other direction, in which Landlock and the filter forbid ptrace.

**A server in the foreground** (``mount -f``), one in a thread of a caller of the library, and the one of ``puzzlefs
shell`` are their own guardians: they unmount in the end, so they need what unmounting needs. Nothing is dropped there.
Not even ``no_new_privs``: an ordinary user's server executes ``fusermount3``, which is set-user-ID, and to root, who
has everything, it would be no loss. Whoever wants this in the foreground lets systemd do it, or uses the background.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from puzzlefs.compression import compress_chunk, decompress_chunk
from puzzlefs.image import DEFAULT_VERSION
from puzzlefs.mount import capabilities, landlock, syscall_filter
from puzzlefs.verity import verity_digest

log = logging.getLogger("puzzlefs.mount")

_PR_SET_NO_NEW_PRIVS: Final = 38  # <linux/prctl.h>

_LATE_MODULES: Final = ("json", "linecache", "select", "socket", "tokenize", "traceback", "warnings")
"""What logging, tracebacks and answers about the mount's state import when they are first needed."""

_SAMPLE: Final = bytes(4096)


class Confinement(NamedTuple):
    """What a server has given up.

    Attributes:
        landlock_abi: the version of Landlock that restricts it, ``None`` if none does.
        no_new_privileges: whether executing can give it anything.
        filters_calls: whether the system calls that it does not need are refused.
        capabilities: the names of those that it has left.
        reasons: why something is missing, one sentence each; empty if nothing is.
    """

    landlock_abi: int | None
    no_new_privileges: bool
    filters_calls: bool
    capabilities: tuple[str, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            "no Landlock" if self.landlock_abi is None else f"Landlock ABI {self.landlock_abi}",
            "no new privileges" if self.no_new_privileges else "new privileges possible",
            "system calls filtered" if self.filters_calls else "system calls not filtered",
            f"capabilities: {', '.join(self.capabilities) or 'none'}",
        ]
        return "; ".join((*parts, *self.reasons))


def prepare() -> None:
    """Load what would be loaded late, when nothing can be opened any more. Never fails.

    The modules of this program are loaded by whoever starts to serve; this is what they, the standard library and the C
    library put off. Source lines in tracebacks are left out afterwards: file, line and function still stand there.
    """
    for module in _LATE_MODULES:
        importlib.import_module(module)
    time.tzset()
    time.strftime("%c", time.localtime())
    hashlib.sha256(b"").digest()  # OpenSSL reads its configuration at first use
    verity_digest(b"")
    decompress_chunk(compress_chunk(_SAMPLE, DEFAULT_VERSION), limit=len(_SAMPLE))
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")  # glibc opens it when a thread is ended from outside, and aborts if it cannot


def confine(readable: Sequence[int]) -> Confinement:
    """Give up everything but reading files beneath some directories. For good.

    To be called while the process has one thread, after ``prepare``. Never fails: what this machine does not offer is
    left out, and said in the result and in one line of the log.

    Args:
        readable: descriptors of directories: the ``blobs_fd`` of the image's layout, wherever that leads.
    """
    reasons: list[str] = []

    def attempt(what: str, step: Callable[[], object]) -> bool:
        try:
            step()
        except OSError as error:
            reasons.append(f"{what}: {error.strerror}")
            return False
        return True

    versions: list[int] = []
    no_new_privileges = attempt("no_new_privs", _no_new_privileges)
    attempt("Landlock", lambda: versions.append(landlock.restrict(readable)))
    attempt("capabilities", lambda: capabilities.keep_only((capabilities.CAP_DAC_READ_SEARCH,)))
    filters_calls = attempt("seccomp", syscall_filter.install)
    left: list[int] = []
    attempt("capabilities", lambda: left.extend(sorted(capabilities.effective())))
    result = Confinement(
        landlock_abi=versions[0] if versions else None,
        no_new_privileges=no_new_privileges,
        filters_calls=filters_calls,
        capabilities=tuple(map(capabilities.name, left)),
        reasons=tuple(reasons),
    )
    log.log(logging.INFO if reasons else logging.DEBUG, "The server is confined: %s", result)
    return result


def _no_new_privileges() -> None:
    words = [ctypes.c_ulong(word) for word in (1, 0, 0, 0)]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, *words) != 0:
        raise OSError(ctypes.get_errno(), "not supported by this kernel")
