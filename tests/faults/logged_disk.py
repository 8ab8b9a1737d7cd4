"""A disk that remembers what was written to it in which order, and can begin to fail.

It is a file of a FUSE file system of our own, with a loop device on it and a real file system on that. So everything
that the kernel writes, journals included, passes through here, and so do its flushes: what stands between two of them
may reach a real disk in any order, or not at all. ``states_after`` makes disks of it as a power cut may leave them.

Run as a program, this is the server: its arguments are a mount point and a directory for its files.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE = 20 << 20
"""Bytes of the disk."""
_ENTRY = struct.Struct("=QQ")
_FLUSH = (1 << 64) - 1
_LIMIT = struct.Struct("=Q")
_BLOCK = 4096
_MAKE = {"ext4": ["mkfs.ext4", "-q", "-b4096", "-m0", "-Jsize=4"], "btrfs": ["mkfs.btrfs", "-q", "-M"]}

_NEVER = 1 << 62


@dataclass(frozen=True)
class Write:
    """Bytes that were written; ``data`` is empty and ``offset`` -1 for a flush."""

    offset: int
    data: bytes

    @property
    def is_flush(self) -> bool:
        return self.offset < 0


class LoggedDisk:
    """A disk with a file system, mounted at ``root``. A context manager."""

    def __init__(self, directory: Path, kind: str = "ext4", options: str = "") -> None:
        """Make it.

        Args:
            directory: for its files, and the mount points.
            kind: the file system.
            options: for mount(8).
        """
        self._directory = directory
        self._kind, self._options = kind, options
        self.root = directory / "mounted"
        self._fuse = directory / "fuse"
        for path in (self.root, self._fuse):
            path.mkdir()
        (directory / "backing").touch()
        os.truncate(directory / "backing", SIZE)
        (directory / "log").touch()
        (directory / "limit").write_bytes(_LIMIT.pack(_NEVER))
        subprocess.run([*_MAKE[kind], directory / "backing"], check=True)
        self.first = (directory / "backing").read_bytes()
        self._server = subprocess.Popen([sys.executable, __file__, self._fuse, directory])

    def __enter__(self) -> Self:
        try:
            deadline = time.monotonic() + 60
            while not (self._fuse / "disk").exists():
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError("the disk is not served")
                time.sleep(0.01)
            self.mount()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def mount(self) -> None:
        """Mount the file system."""
        mount(self._fuse / "disk", self.root, self._kind, self._options)

    def unmount(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", self.root], check=True)

    def fail(self, after: int = 0) -> None:
        """Have writes and flushes fail with EIO once ``after`` more bytes of log have been written."""
        self._set_limit(self.position() + after)

    def heal(self) -> None:
        """Have them succeed again."""
        self._set_limit(_NEVER)

    def _set_limit(self, limit: int) -> None:
        with open(self._directory / "limit", "r+b") as file:
            file.write(_LIMIT.pack(limit))

    def position(self) -> int:
        """How long the log is by now."""
        return (self._directory / "log").stat().st_size

    def log(self) -> list[tuple[int, Write]]:
        """What was written, with the positions behind it in the log."""
        data = (self._directory / "log").read_bytes()
        found: list[tuple[int, Write]] = []
        place = 0
        while place < len(data):
            offset, length = _ENTRY.unpack_from(data, place)
            place += _ENTRY.size
            if offset == _FLUSH:
                found.append((place, Write(-1, b"")))
            else:
                found.append((place + length, Write(offset, data[place : place + length])))
                place += length
        return found

    def _end(self) -> None:
        if self.root.is_mount():
            self.heal()
            self.unmount()
        if self._fuse.is_mount():
            deadline = time.monotonic() + 30
            while subprocess.run(["fusermount3", "-q", "-u", self._fuse], check=False).returncode != 0:
                if time.monotonic() > deadline:  # the loop device has not let go of it
                    subprocess.run(["fusermount3", "-u", "-z", self._fuse], check=True)
                    break
                time.sleep(0.02)
        self._server.wait(timeout=60)


def mount(disk: Path, place: Path, kind: str, options: str) -> None:
    """Mount the file system on a disk."""
    if kind == "btrfs":  # it knows the disk by its number, and would not have an older state of it
        subprocess.run(["btrfs", "device", "scan", "--forget"], check=True)
    words = ["mount", "-t", kind, "-o", ",".join(filter(None, ("loop", options))), disk, place]
    subprocess.run(words, check=True)


@contextlib.contextmanager
def mounted(disk: Path, place: Path, kind: str, options: str) -> Iterator[Path]:
    """Mount it for a while."""
    mount(disk, place, kind, options)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


class Replay:
    """The disk as it may be after a power cut, for cuts that come one after the other."""

    def __init__(self, first: bytes, log: Sequence[tuple[int, Write]], seed: int) -> None:
        """Begin with the disk as it was ``first``."""
        self._durable = bytearray(first)
        self._waiting: list[Write] = []
        self._log = log
        self._next = 0
        self._random = random.Random(seed)

    def cut(self, count: int, how: str) -> bytes:
        """The disk if the power is cut when ``count`` entries have been written.

        Args:
            count: how many; no fewer than the last time.
            how: which of the writes since the last flush have reached the disk: ``none``, ``all``, or ``some`` of
                their blocks.
        """
        for _, write in self._log[self._next : count]:
            if write.is_flush:
                for waiting in self._waiting:
                    _apply(self._durable, waiting)
                self._waiting = []
            else:
                self._waiting.append(write)
        self._next = count
        disk = bytearray(self._durable)
        for write in self._waiting if how != "none" else ():
            for start in range(0, len(write.data), _BLOCK):
                if how == "all" or self._random.random() < 0.5:
                    _apply(disk, Write(write.offset + start, write.data[start : start + _BLOCK]))
        return bytes(disk)


def _apply(disk: bytearray, write: Write) -> None:
    disk[write.offset : write.offset + len(write.data)] = write.data


def serve() -> None:
    """Be the server."""
    import pyfuse3
    import trio

    point, directory = sys.argv[1], Path(sys.argv[2])
    backing = os.open(directory / "backing", os.O_RDWR)
    log = os.open(directory / "log", os.O_WRONLY | os.O_APPEND)
    limit_fd = os.open(directory / "limit", os.O_RDWR)
    limit = mmap.mmap(limit_fd, _LIMIT.size)
    ino = pyfuse3.InodeT(2)

    def note(entry: bytes) -> None:
        if os.fstat(log).st_size >= _LIMIT.unpack(limit)[0]:
            raise pyfuse3.FUSEError(errno.EIO)
        os.write(log, entry)

    class Disk(pyfuse3.Operations):
        async def getattr(
            self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
        ) -> pyfuse3.EntryAttributes:
            entry = pyfuse3.EntryAttributes()
            entry.st_ino = inode
            is_root = inode == pyfuse3.ROOT_INODE
            entry.st_mode = pyfuse3.ModeT(0o40755 if is_root else 0o100600)
            entry.st_size = 0 if is_root else SIZE
            entry.attr_timeout = entry.entry_timeout = 1000
            return entry

        async def lookup(
            self, parent: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
        ) -> pyfuse3.EntryAttributes:
            if name != b"disk":
                raise pyfuse3.FUSEError(errno.ENOENT)
            return await self.getattr(ino)

        async def setattr(
            self,
            inode: pyfuse3.InodeT,
            attr: pyfuse3.EntryAttributes,
            fields: pyfuse3.SetattrFields,
            fh: pyfuse3.FileHandleT | None,
            ctx: pyfuse3.RequestContext,
        ) -> pyfuse3.EntryAttributes:
            return await self.getattr(inode)

        async def open(
            self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
        ) -> pyfuse3.FileInfo:
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1), keep_cache=True)

        async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
            return os.pread(backing, size, off)

        async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
            note(_ENTRY.pack(off, len(buf)) + buf)
            return os.pwrite(backing, buf, off)

        async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
            note(_ENTRY.pack(_FLUSH, 0))

        async def flush(self, fh: pyfuse3.FileHandleT) -> None:
            pass

        async def release(self, fh: pyfuse3.FileHandleT) -> None:
            pass

    pyfuse3.init(Disk(), point, {*pyfuse3.default_options, "fsname=puzzlefs-test-disk"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    serve()
