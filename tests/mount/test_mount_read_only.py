"""Every way of changing something in a mount ends in EROFS: by the kernel, and by the server should the kernel let it
pass."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import Built

pytestmark = pytest.mark.mount

_MS_REMOUNT = 32


def _open(flags: int, name: str = "bin/script") -> Callable[[Path], object]:
    return lambda root: os.close(os.open(root / name, flags, 0o600))


def _bind(root: Path) -> None:
    here = os.getcwd()
    os.chdir(root)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("new-socket")
    finally:
        os.chdir(here)


CHANGES: dict[str, Callable[[Path], object]] = {
    "open for writing": _open(os.O_WRONLY),
    "open for reading and writing": _open(os.O_RDWR),
    "open for appending": _open(os.O_WRONLY | os.O_APPEND),
    "open and truncate": _open(os.O_WRONLY | os.O_TRUNC),
    "open for reading and truncate": _open(os.O_RDONLY | os.O_TRUNC),
    "create": _open(os.O_WRONLY | os.O_CREAT | os.O_EXCL, "new-file"),
    "create for reading": _open(os.O_RDONLY | os.O_CREAT, "new-file"),
    "mkdir": lambda root: os.mkdir(root / "new-directory"),
    "rmdir": lambda root: os.rmdir(root / "empty"),
    "unlink": lambda root: os.unlink(root / "bin" / "script"),
    "symlink": lambda root: os.symlink("target", root / "new-link"),
    "link": lambda root: os.link(root / "bin" / "script", root / "new-name"),
    "rename a file": lambda root: os.rename(root / "bin" / "script", root / "bin" / "renamed"),
    "rename a directory": lambda root: os.rename(root / "empty", root / "renamed"),
    "rename over a file": lambda root: os.rename(root / "bin" / "script", root / "bin" / "program"),
    "mknod a file": lambda root: os.mknod(root / "new-node", stat.S_IFREG | 0o600),
    "mknod a device": lambda root: os.mknod(root / "new-node", stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "mkfifo": lambda root: os.mkfifo(root / "new-fifo"),
    "bind a socket": _bind,
    "chmod": lambda root: os.chmod(root / "bin" / "script", 0o777),
    "chmod a directory": lambda root: os.chmod(root / "empty", 0o700),
    "chown": lambda root: os.chown(root / "bin" / "script", 1, 1),
    "chown a link": lambda root: os.lchown(root / "links" / "relative", 1, 1),
    "utime": lambda root: os.utime(root / "bin" / "script", (1, 1)),
    "utime now": lambda root: os.utime(root / "bin" / "script"),
    "truncate": lambda root: os.truncate(root / "bin" / "script", 0),
    "truncate to a larger size": lambda root: os.truncate(root / "bin" / "script", 1 << 20),
    "setxattr": lambda root: os.setxattr(root / "bin" / "script", "user.new", b"value"),
    "replace an xattr": lambda root: os.setxattr(root / "xattrs" / "file", "user.empty", b"x", os.XATTR_REPLACE),
    "removexattr": lambda root: os.removexattr(root / "xattrs" / "file", "user.empty"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_kernel_refuses(odd: Built, read_only: Path, change: str) -> None:
    with pytest.raises(OSError) as caught:
        CHANGES[change](read_only)
    assert errno.errorcode[caught.value.errno or 0] == "EROFS"


@pytest.mark.parametrize("change", CHANGES)
def test_server_refuses_where_the_kernel_does_not(writable: Path, change: str) -> None:
    with pytest.raises(OSError) as caught:
        CHANGES[change](writable)
    assert errno.errorcode[caught.value.errno or 0] == "EROFS"


def test_errors_of_names_come_first(read_only: Path) -> None:
    with pytest.raises(FileExistsError):
        os.mkdir(read_only / "bin")
    with pytest.raises(FileNotFoundError):
        os.open(read_only / "nothing", os.O_WRONLY)
    assert not os.access(read_only / "bin" / "script", os.W_OK)
    assert os.access(read_only / "bin" / "script", os.R_OK | os.X_OK)
    assert not os.access(read_only / "big" / "text", os.X_OK)


def test_open_files_cannot_be_changed(read_only: Path) -> None:
    fd = os.open(read_only / "big" / "text", os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            os.write(fd, b"x")
        assert caught.value.errno == errno.EBADF
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
        with mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as private:
            private[0:4] = b"mine"
        assert os.pread(fd, 4, 0) == b"line"
        os.fsync(fd)  # there is nothing to do, which is not an error
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def read_only(odd: Built, shared_mount: Callable[[str], Path]) -> Path:
    return shared_mount(odd.image("v3"))


@pytest.fixture(scope="module")
def writable(odd: Built, shared_mount: Callable[[str], Path]) -> Path:
    """A mount that root has told the kernel to treat as writable."""
    path = shared_mount(odd.image("v3"))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(None, os.fsencode(path), None, _MS_REMOUNT, None) == 0, os.strerror(ctypes.get_errno())
    assert not os.statvfs(path).f_flag & os.ST_RDONLY
    return path
