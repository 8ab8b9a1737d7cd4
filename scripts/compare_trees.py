#!/usr/bin/env python3
"""Compares two directory trees entry by entry: is B what A says it should be?

A is the reference (the source of an image), B the tree under test (a mount, an extracted image). All that an
image carries is compared: names, types, permission bits, owners, sizes, contents, symlink targets, device
numbers, extended attributes, which names are one file, link counts; modification times on request.

Rules that are less obvious:
- Names are bytes from end to end; nothing is decoded except to be printed.
- A link count is what the tree itself contains: B must report as many links as A *has names* for that file.
  A's own count may be larger (names outside of the tree), never smaller.
- Contents are compared byte by byte, not by hash, so that a difference can be located.
- With ``one_file_system`` a directory of A on another device is a mount point: it must be an empty directory
  in B. Only directories are asked for their device: on an overlay, files and directories of one tree differ.
- An error while reading either side is a difference like any other; the comparison goes on.

Standard library only. Run as ``compare_trees.py A B``: exit code 0 when equal, 1 when not, 2 for wrong usage.
"""

import argparse
import errno
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

ASPECTS = ("mode", "owner", "size", "content", "target", "device", "xattrs", "links")
"""What ``Options.ignore`` may name. Names and types are always compared."""

_READ_SIZE = 1 << 20
_SHOWN_VALUE_SIZE = 64


@dataclass(frozen=True, slots=True)
class Options:
    """What to compare.

    Attributes:
        mtime: Compare modification times (ns). Off by default: images carry them only when asked to.
        one_file_system: Do not look into directories of A that lie on another device than A itself.
        ignore: Aspects to leave out, of ``ASPECTS``.
        ignore_xattrs: Names of extended attributes to leave out.
    """

    mtime: bool = False
    one_file_system: bool = False
    ignore: frozenset[str] = frozenset()
    ignore_xattrs: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which B is not what A says."""

    path: bytes
    aspect: str
    detail: str

    def __str__(self) -> str:
        return f"{show(self.path)}: {self.aspect}: {self.detail}"


@dataclass(slots=True)
class Statistics:
    """How much was compared; filled while ``compare`` is iterated."""

    entries: int = 0
    content_bytes: int = 0
    by_type: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _File:
    """A non-directory of A: the links B reports for it and the names found so far."""

    first_path: bytes
    links_a: int
    links_b: int
    names: int = 1


def compare(
    a: str | bytes | os.PathLike[str],
    b: str | bytes | os.PathLike[str],
    options: Options | None = None,
    statistics: Statistics | None = None,
) -> Iterator[Difference]:
    """Yields every difference between the trees ``a`` (the reference) and ``b``.

    Args:
        a: Root directory of the reference tree.
        b: Root directory of the tree under test.
        options: What to compare; by default all but modification times.
        statistics: Counted up on the way, so that a caller can see that something was compared.

    Raises:
        OSError: One of the two roots cannot be examined at all.
    """
    return _Comparison(os.fsencode(a), os.fsencode(b), options or Options(), statistics or Statistics()).differences()


class _Comparison:
    def __init__(self, root_a: bytes, root_b: bytes, options: Options, statistics: Statistics) -> None:
        self._root_a = root_a
        self._root_b = root_b
        self._options = options
        self._statistics = statistics
        self._device_a = os.lstat(root_a).st_dev
        os.lstat(root_b)
        # Which names are one file: per side, the path under which (device, inode) was seen first.
        self._first_a: dict[tuple[int, int], bytes] = {}
        self._first_b: dict[tuple[int, int], bytes] = {}
        self._files: dict[tuple[int, int], _File] = {}

    def differences(self) -> Iterator[Difference]:
        pending = [b""]
        while pending:
            path = pending.pop()
            try:
                stat_a, stat_b = os.lstat(self._path_a(path)), os.lstat(self._path_b(path))
            except OSError as error:
                yield Difference(path, "stat", str(error))
                continue
            yield from self._entry(path, stat_a, stat_b)
            if stat.S_ISDIR(stat_a.st_mode) and stat.S_ISDIR(stat_b.st_mode):
                names: list[bytes] = []
                yield from self._names(path, stat_a, names)
                pending.extend(os.path.join(path, name) for name in reversed(names))
        if self._compares("links"):
            yield from self._link_counts()

    def _compares(self, aspect: str) -> bool:
        return aspect not in self._options.ignore

    def _path_a(self, path: bytes) -> bytes:
        return os.path.join(self._root_a, path)

    def _path_b(self, path: bytes) -> bytes:
        return os.path.join(self._root_b, path)

    def _names(self, path: bytes, stat_a: os.stat_result, common: list[bytes]) -> Iterator[Difference]:
        """Compares two directory listings; puts the names both have into ``common``, sorted."""
        try:
            list_a, list_b = os.listdir(self._path_a(path)), os.listdir(self._path_b(path))
        except OSError as error:
            yield Difference(path, "listing", str(error))
            return
        if self._options.one_file_system and stat_a.st_dev != self._device_a:
            list_a = []
        set_a, set_b = set(list_a), set(list_b)
        if len(set_b) != len(list_b):
            yield Difference(path, "listing", f"{len(list_b) - len(set_b)} names more than once in B")
        for name in sorted(set_a - set_b):
            yield Difference(os.path.join(path, name), "name", "only in A")
        for name in sorted(set_b - set_a):
            yield Difference(os.path.join(path, name), "name", "only in B")
        common.extend(sorted(set_a & set_b))

    def _entry(self, path: bytes, a: os.stat_result, b: os.stat_result) -> Iterator[Difference]:
        self._statistics.entries += 1
        kind_a, kind_b = _kind(a.st_mode), _kind(b.st_mode)
        self._statistics.by_type[kind_a] = self._statistics.by_type.get(kind_a, 0) + 1
        if kind_a != kind_b:
            yield Difference(path, "type", f"{kind_a} in A, {kind_b} in B")
            return
        if self._compares("mode") and stat.S_IMODE(a.st_mode) != stat.S_IMODE(b.st_mode):
            yield Difference(path, "mode", f"{stat.S_IMODE(a.st_mode):04o} in A, {stat.S_IMODE(b.st_mode):04o} in B")
        if self._compares("owner") and (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
            yield Difference(path, "owner", f"{a.st_uid}:{a.st_gid} in A, {b.st_uid}:{b.st_gid} in B")
        if self._options.mtime and a.st_mtime_ns != b.st_mtime_ns:
            yield Difference(path, "mtime", f"{a.st_mtime_ns} ns in A, {b.st_mtime_ns} ns in B")
        if self._compares("xattrs"):
            yield from self._xattrs(path)
        first_name = True
        if self._compares("links"):
            first_name = self._note_links(path, a, b)
            first_a = self._first_a.setdefault((a.st_dev, a.st_ino), path)
            first_b = self._first_b.setdefault((b.st_dev, b.st_ino), path)
            if first_a != first_b:
                yield Difference(path, "links", f"{_same_as(path, first_a)} in A, {_same_as(path, first_b)} in B")
        match kind_a:
            case "regular file":
                if self._compares("size") and a.st_size != b.st_size:
                    yield Difference(path, "size", f"{a.st_size} bytes in A, {b.st_size} bytes in B")
                # A further name of one file has the content of the first, provided that B sees one file too.
                elif self._compares("content") and (first_name or not self._one_file_in_b(path, b)):
                    yield from self._content(path)
            case "symlink":
                if self._compares("target"):
                    yield from self._target(path, b)
            case "character device" | "block device":
                if self._compares("device") and a.st_rdev != b.st_rdev:
                    yield Difference(path, "device", f"{_device(a.st_rdev)} in A, {_device(b.st_rdev)} in B")

    def _note_links(self, path: bytes, a: os.stat_result, b: os.stat_result) -> bool:
        """Counts a name of a non-directory; returns whether it is the first one."""
        if stat.S_ISDIR(a.st_mode):
            return True
        known = self._files.get((a.st_dev, a.st_ino))
        if known is None:
            self._files[a.st_dev, a.st_ino] = _File(path, a.st_nlink, b.st_nlink)
            return True
        known.names += 1
        return False

    def _one_file_in_b(self, path: bytes, b: os.stat_result) -> bool:
        return self._first_b.get((b.st_dev, b.st_ino), path) != path

    def _link_counts(self) -> Iterator[Difference]:
        for file in self._files.values():
            if file.links_b != file.names or file.links_a < file.names:
                yield Difference(
                    file.first_path,
                    "links",
                    f"{file.names} names in A, which reports {file.links_a} links; B reports {file.links_b}",
                )

    def _target(self, path: bytes, b: os.stat_result) -> Iterator[Difference]:
        try:
            target_a, target_b = os.readlink(self._path_a(path)), os.readlink(self._path_b(path))
        except OSError as error:
            yield Difference(path, "target", str(error))
            return
        if target_a != target_b:
            yield Difference(path, "target", f"{show(target_a)} in A, {show(target_b)} in B")
        elif b.st_size != len(target_b):
            yield Difference(path, "size", f"a target of {len(target_b)} bytes, size {b.st_size} in B")

    def _xattrs(self, path: bytes) -> Iterator[Difference]:
        try:
            a, b = _read_xattrs(self._path_a(path)), _read_xattrs(self._path_b(path))
        except OSError as error:
            yield Difference(path, "xattrs", str(error))
            return
        for name in sorted((a.keys() | b.keys()) - self._options.ignore_xattrs):
            value_a, value_b = a.get(name), b.get(name)
            if value_a != value_b:
                yield Difference(path, "xattrs", f"{show(name)} is {_value(value_a)} in A, {_value(value_b)} in B")

    def _content(self, path: bytes) -> Iterator[Difference]:
        offset = 0
        try:
            with _open(self._path_a(path)) as a, _open(self._path_b(path)) as b:
                while True:
                    block_a, block_b = a.read(_READ_SIZE), b.read(_READ_SIZE)
                    if block_a != block_b:
                        yield Difference(path, "content", _first_difference(block_a, block_b, offset))
                        return
                    if not block_a:
                        return
                    offset += len(block_a)
                    self._statistics.content_bytes += len(block_a)
        except OSError as error:
            yield Difference(path, "content", f"{error} (at byte {offset} or after)")


def _open(path: bytes) -> BinaryIO:
    # Buffered, so that read(n) gives n bytes where there are n. O_NOFOLLOW: lstat has checked the type.
    return open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")


def _read_xattrs(path: bytes) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}


def _first_difference(a: bytes, b: bytes, offset: int) -> str:
    for index, (byte_a, byte_b) in enumerate(zip(a, b, strict=False)):
        if byte_a != byte_b:
            return f"byte {offset + index} is 0x{byte_a:02x} in A, 0x{byte_b:02x} in B"
    shorter = "A" if len(a) < len(b) else "B"
    return f"{shorter} ends at byte {offset + min(len(a), len(b))}, the other does not"


def _same_as(path: bytes, first: bytes) -> str:
    return "a file of its own" if path == first else f"the same file as {show(first)}"


def _device(rdev: int) -> str:
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def _value(value: bytes | None) -> str:
    if value is None:
        return "absent"
    shown = value[:_SHOWN_VALUE_SIZE].hex()
    return f"0x{shown}{'' if len(value) <= _SHOWN_VALUE_SIZE else '…'} ({len(value)} bytes)"


def show(path: bytes) -> str:
    """Text for a name of any bytes; what cannot be printed as it is becomes an escape sequence."""
    text = os.fsdecode(path or b".")
    return text if text.isprintable() else ascii(path)[2:-1]


def _kind(mode: int) -> str:
    return {
        stat.S_IFREG: "regular file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "symlink",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
    }.get(stat.S_IFMT(mode), f"type {stat.S_IFMT(mode):o}")


def main() -> int:
    """Command line: prints differences and a summary; returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Compare two directory trees entry by entry; A is the reference.",
        epilog="Exit code: 0 equal, 1 different, 2 wrong usage or a root that cannot be examined.",
    )
    parser.add_argument("a", type=Path, metavar="A", help="the tree as it should be")
    parser.add_argument("b", type=Path, metavar="B", help="the tree under test")
    parser.add_argument("--mtime", action="store_true", help="compare modification times (nanoseconds)")
    parser.add_argument(
        "-x",
        "--one-file-system",
        action="store_true",
        help="a mount point in A must be an empty directory in B",
    )
    parser.add_argument(
        "--ignore", action="append", default=[], choices=ASPECTS, metavar="ASPECT", help=", ".join(ASPECTS)
    )
    parser.add_argument("--ignore-xattr", action="append", default=[], metavar="NAME", help="leave this one out")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="print at most N differences (50)")
    words = parser.parse_args()
    options = Options(
        mtime=words.mtime,
        one_file_system=words.one_file_system,
        ignore=frozenset(words.ignore),
        ignore_xattrs=frozenset(os.fsencode(name) for name in words.ignore_xattr),
    )
    statistics = Statistics()
    found = 0
    try:
        for difference in compare(words.a, words.b, options, statistics):
            found += 1
            if found <= words.limit:
                print(difference)
    except OSError as error:
        parser.error(str(error))
    if found > words.limit:
        print(f"… and {found - words.limit} more")
    print(f"{statistics.entries} entries, {statistics.content_bytes} bytes: {found or 'no'} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
