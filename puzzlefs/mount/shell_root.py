"""Going into the root of a command, with what Linux programs expect to be mounted there.

``/proc`` shows the command's own processes; ``/dev`` has the devices that carry no data of the host, and terminals of
its own; ``/sys`` is the host's, read-only; ``/etc/resolv.conf`` is a copy of the host's. The host's root keeps his
rights to files even in a user namespace, so what could change the host through them is read-only.

Mounting happens at descriptors that were opened without following links, and each step opens its own: what was mounted
by the step before lies on top of what an older descriptor shows.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from puzzlefs.errors import MountError
from puzzlefs.mount import namespace
from puzzlefs.mount.namespace import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC, fd_path
from puzzlefs.mount.shell_places import Places

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_DEV_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_TTY_GROUP: Final = 5
_READ_ONLY_IN_PROC: Final = (b"bus", b"fs", b"irq", b"sys", b"sysrq-trigger")


def enter(root: Path, places: Places, resolv_conf: Path | None) -> None:
    """Make ``root`` the root of this process's mount namespace, with everything mounted in it, and go to its ``/``.

    For process 1 of a PID namespace, in a mount namespace of its own and of processes that may lose their root.

    Args:
        root: the overlay.
        places: where to mount.
        resolv_conf: the file to show as ``/etc/resolv.conf``; ``None``: the image's.

    Raises:
        MountError: if something fails that programs cannot do without.
    """
    try:
        namespace.mount("", "/", "", MS_REC | MS_PRIVATE)
        if places.sys is not None:
            _mount_sys(root, places.sys.parts)
        if places.dev is not None:
            _mount_dev(root, places.dev.parts)
        if places.resolv_conf is not None and resolv_conf is not None:
            with _opened(root, places.resolv_conf.parts) as fd:
                namespace.bind(resolv_conf, fd_path(fd))
        if places.proc is not None:
            _mount_proc(root, places.proc.parts)
        namespace.change_root(root)
    except OSError as error:
        raise MountError(f"the root of the command cannot be made: {error}") from error


@contextlib.contextmanager
def _opened(root: Path, parts: Sequence[bytes]) -> Iterator[int]:
    fd = namespace.open_beneath(root, parts)
    try:
        yield fd
    finally:
        os.close(fd)


def _mount_proc(root: Path, parts: tuple[bytes, ...]) -> None:
    with _opened(root, parts) as fd:
        try:
            namespace.mount("proc", fd_path(fd), "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        except PermissionError:
            # in a container that hides parts of its /proc nobody may make a new one: its numbers are the outer ones
            namespace.bind("/proc", fd_path(fd), recursive=True)
    for name in _READ_ONLY_IN_PROC:
        with contextlib.suppress(OSError):  # not there, or read-only already
            with _opened(root, (*parts, name)) as fd:
                namespace.bind(fd_path(fd), fd_path(fd), recursive=True)
            with _opened(root, (*parts, name)) as fd:
                namespace.make_read_only(fd, recursive=True)


def _mount_sys(root: Path, parts: tuple[bytes, ...]) -> None:
    try:
        with _opened(root, parts) as fd:
            namespace.bind("/sys", fd_path(fd), recursive=True)
    except OSError:
        return  # programs can do without
    with _opened(root, parts) as fd:
        try:
            namespace.make_read_only(fd, recursive=True)
        except OSError:
            namespace.detach(fd_path(fd))


def _mount_dev(root: Path, parts: tuple[bytes, ...]) -> None:
    with _opened(root, parts) as fd:
        namespace.mount("puzzlefs", fd_path(fd), "tmpfs", MS_NOSUID, "mode=755")
    with _opened(root, parts) as fd:
        dev = fd_path(fd)
        for name in _DEVICES:
            with contextlib.suppress(FileNotFoundError):
                _bind_file(f"/dev/{name}", f"{dev}/{name}")
        for name in ("pts", "shm"):
            Path(dev, name).mkdir(0o755)
        for name, target in _DEV_LINKS.items():
            Path(dev, name).symlink_to(target)
        namespace.mount("puzzlefs", f"{dev}/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
        _mount_terminals(f"{dev}/pts")
        # a terminal is not found under its name in another instance of devpts; programs then look for it in /dev
        with contextlib.suppress(OSError):
            _bind_file(os.ttyname(0), f"{dev}/console")


def _mount_terminals(target: str) -> None:
    words = "newinstance,ptmxmode=0666,mode=0620"
    for more in (f",gid={_TTY_GROUP}", ""):  # the group need not exist in this user namespace
        try:
            namespace.mount("devpts", target, "devpts", MS_NOSUID | MS_NOEXEC, words + more)
        except OSError:
            continue
        return


def _bind_file(source: str, target: str) -> None:
    if not stat.S_ISCHR(Path(source).stat().st_mode):
        return
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    namespace.bind(source, target)
