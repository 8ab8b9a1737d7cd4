"""Mounting without libfuse: getting a queue of requests from the kernel, and giving it back.

Root opens ``/dev/fuse`` and calls mount(2). Everybody else asks ``fusermount3``, which is set-user-ID: it mounts, and
hands the descriptor over through the socket that the variable ``_FUSE_COMMFD`` names. With ``auto_unmount`` it is asked
in both cases, because it is also the helper that stays behind and unmounts when the socket closes.

The queue does not block, is not inherited by other programs, and belongs to whoever got it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlefs.errors import MountError, UnsupportedError
from puzzlefs.mount.mountinfo import Mount, is_hidden, is_still_there, new_mount_at
from puzzlefs.mount.options import MountOptions, escape

if TYPE_CHECKING:
    import socket

_DEVICE: Final = "/dev/fuse"
_COMMFD: Final = "_FUSE_COMMFD"
_OLDEST_KERNEL: Final = (5, 4)

_MS_RDONLY: Final = 1 << 0  # <linux/mount.h>
_MS_NOSUID: Final = 1 << 1
_MS_NODEV: Final = 1 << 2
_MS_NOEXEC: Final = 1 << 3
_MNT_DETACH: Final = 1 << 1
_UMOUNT_NOFOLLOW: Final = 1 << 3


def is_supported() -> bool:
    """Whether this machine's kernel speaks the protocol, and this user can get at it."""
    numbers = os.uname().release.split(".")
    try:
        if (int(numbers[0]), int(numbers[1])) < _OLDEST_KERNEL:
            return False
    except (ValueError, IndexError):
        return False
    if os.geteuid() == 0:
        return os.access(_DEVICE, os.R_OK | os.W_OK)
    return _fusermount() is not None


class KernelMount:
    """A mount and its queue.

    Attributes:
        fd: the queue.
        point: where it is mounted.
    """

    __slots__ = ("_helper", "_mount", "fd", "point")

    def __init__(self, fd: int, point: Path, helper: socket.socket | None = None) -> None:
        """A queue that is open already; ``helper`` ends what unmounts for us when it is closed."""
        self.fd = fd
        self.point: Final = point
        self._mount: Mount | None = None
        self._helper = helper

    @property
    def device(self) -> str:
        """``major:minor`` of what is mounted; empty if it is not there any more, or was never."""
        return "" if self._mount is None else self._mount.device

    def is_gone(self) -> bool:
        """Whether the kernel has ended the session: it is unmounted everywhere, and will ask for nothing more."""
        if self.fd < 0:
            return True
        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))  # POLLERR, which is told in any case (fuse_dev_poll in fs/fuse/dev.c)

    def unmount(self) -> None:
        """Take the mount away if it is still there; programs that use it lose it. Calling it twice is fine.

        The session goes on until the queue is closed.
        """
        # by path alone, this could hit whatever took our place, had somebody else unmounted us before
        mount = self._mount
        if mount is None or not is_still_there(mount) or (not mount.unique_id and self.is_gone()) or is_hidden(mount):
            return  # one that is hidden is for whoever covered it: its path would be looked up in what we serve
        if os.geteuid() == 0:
            _libc().umount2(os.fsencode(self.point), _MNT_DETACH | _UMOUNT_NOFOLLOW)
            return
        program = _fusermount()
        if program is not None:
            pid = os.posix_spawn(
                program,
                [program, "-u", "-q", "-z", "--", os.fspath(self.point)],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)],
            )
            os.waitpid(pid, 0)

    def read_ahead(self, size: int) -> None:
        """Let the kernel read ``size`` bytes ahead, where this user may say that; INIT alone can only ask for less.

        The mount must answer.
        """
        if os.geteuid() == 0 and self._mount is not None:
            knob = Path("/sys/class/bdi", self._mount.device, "read_ahead_kb")
            with contextlib.suppress(OSError):
                knob.write_text(str(size >> 10))

    def abort(self) -> None:
        """Unmount and end the session: whoever still waits for an answer gets an error.

        The descriptor stays taken, by something that swallows answers that come too late, until ``close``.
        """
        self.unmount()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, self.fd, inheritable=False)
        os.close(null)

    def close(self) -> None:
        """Close what ``abort`` left. Calling it twice is fine."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._helper is not None:
            self._helper.close()
            self._helper = None


def mount_kernel(point: Path, options: MountOptions, fsname: str) -> KernelMount:
    """Mount at ``point``. Nothing can be read there before the first request, INIT, is answered.

    Args:
        point: an existing directory, without links.
        options: how to mount.
        fsname: what ``mount`` shows as the source, where the options name nothing.

    Raises:
        MountError: if the host refuses.
        UnsupportedError: if there is no FUSE here, or ``fusermount3`` is needed and missing.
    """
    fsname = options.fsname or fsname
    if os.geteuid() == 0 and not options.auto_unmount:
        mount = KernelMount(_mount_as_root(point, options, fsname), point)
    else:
        fd, helper = _mount_as_user(point, options, fsname)
        mount = KernelMount(fd, point, helper)
    mount._mount = new_mount_at(point)
    return mount


def _mount_as_root(point: Path, options: MountOptions, fsname: str) -> int:
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnsupportedError(
            f"{_DEVICE} cannot be opened: {error.strerror}", hint="load the kernel module: modprobe fuse"
        ) from error
    words = [f"fd={fd}", f"rootmode={stat.S_IFDIR:o}", "user_id=0", "group_id=0", "default_permissions"]
    if options.allow_other is not False:
        words.append("allow_other")
    flags = _MS_RDONLY
    flags |= 0 if options.suid else _MS_NOSUID
    flags |= 0 if options.dev else _MS_NODEV
    flags |= 0 if options.exec else _MS_NOEXEC
    result = _libc().mount(
        os.fsencode(fsname),
        os.fsencode(point),
        os.fsencode(f"fuse.{options.subtype}"),
        ctypes.c_ulong(flags),
        ",".join(words).encode(),
    )
    if result != 0:
        number = ctypes.get_errno()
        os.close(fd)
        raise _refused(point, number)
    return fd


def _refused(point: Path, number: int) -> MountError | UnsupportedError:
    if number == errno.ENODEV:
        return UnsupportedError("this kernel has no FUSE", hint="load the kernel module: modprobe fuse")
    return MountError(f"{point} cannot be mounted: {os.strerror(number)}")


def _mount_as_user(point: Path, options: MountOptions, fsname: str) -> tuple[int, socket.socket | None]:
    import socket  # noqa: PLC0415  root, who mounts most, does not need it
    import subprocess  # noqa: PLC0415

    program = _fusermount()
    if program is None:
        raise UnsupportedError("fusermount3 is not installed", hint="install the package fuse3, or mount as root")
    words = _fusermount_words(options, fsname)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        process = subprocess.Popen(
            [program, "-o", ",".join(words), "--", os.fspath(point)],
            env={**os.environ, _COMMFD: str(theirs.fileno()), "LC_ALL": "C"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    try:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    except OSError:
        descriptors = []
    if not descriptors:
        said = process.communicate()[1].decode(errors="replace")
        ours.close()
        reason = "; ".join(line.strip() for line in said.splitlines() if line.strip())
        raise MountError(f"{point} cannot be mounted: {reason or 'fusermount3 gave no reason'}")
    fd = descriptors[0]
    os.set_inheritable(fd, False)
    os.set_blocking(fd, False)
    if options.auto_unmount:
        if process.stderr is not None:
            process.stderr.close()  # it stays behind, and nobody listens
        return fd, ours
    process.communicate()
    ours.close()
    return fd, None


def _fusermount_words(options: MountOptions, fsname: str) -> list[str]:
    words = ["ro", "default_permissions", f"fsname={escape(fsname)}", f"subtype={escape(options.subtype)}"]
    if options.allow_other or (options.allow_other is None and os.geteuid() == 0):
        words.append("allow_other")
    words += [word for word, wanted in (("dev", options.dev), ("suid", options.suid)) if wanted]
    words += [word for word, wanted in (("noexec", not options.exec), ("auto_unmount", options.auto_unmount)) if wanted]
    return words


def _fusermount() -> str | None:
    import shutil  # noqa: PLC0415  as above

    return shutil.which("fusermount3") or shutil.which("fusermount")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
