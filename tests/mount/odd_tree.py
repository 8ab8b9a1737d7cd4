"""A source tree with everything that is odd about file systems. Needs root, and every kind of xattrs."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from pathlib import Path

BIG_FILE = b"big/file"
BIG_FILE_SIZE = 5_000_003
MANY = b"many"
MANY_COUNT = 10_000

_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
_EPOCH_NS = 1_500_000_000_123_456_789


def make_odd_tree(root: Path) -> None:
    """Fill the new directory ``root``."""
    top = os.fsencode(root)
    rnd = random.Random(7)

    def at(path: bytes) -> bytes:
        return os.path.join(top, path)

    def put(path: bytes, data: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        with open(at(path), "wb") as file:
            file.write(data)
        os.chown(at(path), uid, gid)
        os.chmod(at(path), mode)

    root.mkdir()
    os.chmod(top, 0o755)
    for path in (
        b"bin",
        b"big",
        b"many",
        b"dev",
        b"links",
        b"names",
        b"xattrs",
        b"acl",
        b"empty",
        b"sticky",
        b"setgid",
    ):
        os.mkdir(at(path), 0o755)
    # content
    put(BIG_FILE, rnd.randbytes(BIG_FILE_SIZE))
    put(b"big/text", b"".join(b"line %07d\n" % number for number in range(60_000)))
    for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, 65_536, 262_145):
        put(b"big/%d" % size, rnd.randbytes(size), 0o640, 1000, 1000)
    with open(at(b"big/sparse"), "wb") as file:
        file.seek(3_000_000)
        file.write(b"after the hole")
        file.truncate(6_000_000)
    # programs
    put(b"bin/script", b"#!/bin/sh\necho ran from the mount\n", 0o755)
    put(b"bin/program", Path("/bin/true").read_bytes(), 0o755)
    put(b"bin/setuid", b"#!/bin/sh\n", 0o4755)
    put(b"bin/setgid", b"#!/bin/sh\n", 0o2755, 0, 42)
    put(b"bin/capable", b"\x7fELF", 0o755)
    os.setxattr(at(b"bin/capable"), "security.capability", _CAPABILITY)
    put(b"bin/none", b"nobody may\n", 0o000, 4_294_967_294, 4_294_967_294)
    # names
    put(b"names/" + b"x" * 255, b"255 bytes")
    put(b"names/" + "ä".encode() * 127, b"254 bytes")
    put(b"names/\xff\xfe\x80 \n\t\\ \x01", b"no encoding")
    put(b"names/ leading and trailing ", b"")
    put(b"names/...", b"three dots")
    for number in range(MANY_COUNT):
        os.close(os.open(at(b"many/%05d-%s" % (number, b"n" * (number % 40))), os.O_CREAT | os.O_WRONLY, 0o644))
    deep = top
    for _ in range(60):
        deep = os.path.join(deep, b"deep")
        os.mkdir(deep, 0o755)
    with open(os.path.join(deep, b"bottom"), "wb") as file:
        file.write(b"down here")
    # links
    put(b"links/first", b"one content, four names")
    for name in (b"links/second", b"names/third", b"zz-last"):
        os.link(at(b"links/first"), at(name))
    os.symlink(b"../links/first", at(b"links/relative"))
    os.link(at(b"links/relative"), at(b"links/relative-hard"), follow_symlinks=False)
    os.symlink(b"/nowhere/\xff", at(b"links/dangling"))
    os.symlink(b"l" * 4095, at(b"links/longest"))
    os.lchown(at(b"links/dangling"), 12, 34)
    # special files
    os.mkfifo(at(b"dev/fifo"), 0o600)
    os.link(at(b"dev/fifo"), at(b"dev/fifo-hard"))
    for name, mode, major, minor in (
        (b"null", stat.S_IFCHR | 0o666, 1, 3),
        (b"sda17", stat.S_IFBLK | 0o660, 8, 17),
        (b"big", stat.S_IFCHR | 0o600, 4095, 1_048_575),
        (b"wide-minor", stat.S_IFBLK | 0o600, 259, 65_537),
    ):
        os.mknod(at(b"dev/" + name), mode, os.makedev(major, minor))
        os.chmod(at(b"dev/" + name), stat.S_IMODE(mode))
    os.link(at(b"dev/null"), at(b"dev/null-hard"))
    _bind_socket(at(b"dev"), "socket")
    # extended attributes
    put(b"xattrs/file", b"")
    os.setxattr(at(b"xattrs/file"), "user.empty", b"")
    os.setxattr(at(b"xattrs/file"), "user.binary", bytes(range(256)))
    os.setxattr(at(b"xattrs/file"), "user." + "n" * 250, b"longest name")
    os.setxattr(at(b"xattrs/file"), "trusted.secret", b"for root")
    os.setxattr(at(b"xattrs"), "user.directory", b"yes")
    os.setxattr(at(b"dev/null"), "trusted.device", b"xattr of a device")
    os.setxattr(at(b"links/dangling"), "trusted.link", b"xattr of a symlink", follow_symlinks=False)
    # access
    os.chmod(at(b"sticky"), 0o1777)
    os.chmod(at(b"setgid"), 0o2775)
    put(b"acl/granted", b"for one user\n", 0o640, 0, 0)
    put(b"acl/group-denied", b"not for this group\n", 0o640, 0, 0)
    put(b"acl/private", b"for root\n", 0o600, 0, 0)
    os.mkdir(at(b"acl/default"), 0o755)
    for path, *acl in (
        ("acl/granted", "-m", "u:4001:r--"),
        ("acl/group-denied", "-m", "g:4002:---,g::r--,o::r--"),
        ("acl/default", "-d", "-m", "u:4001:rwx"),
    ):
        subprocess.run(["setfacl", *acl, str(root / path)], check=True)
    for directory, names, files in os.walk(top, topdown=False):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            moment = _EPOCH_NS + len(path) * 1_000_000_007
            os.utime(path, ns=(moment, moment), follow_symlinks=False)
    os.utime(top, ns=(-1_000_000_001, -1_000_000_001))


def _bind_socket(directory: bytes, name: str) -> None:
    # in a process of its own, because the path of a socket is short and tests share one working directory
    program = f"import os, socket; os.chdir({directory!r}); socket.socket(socket.AF_UNIX).bind({name!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
