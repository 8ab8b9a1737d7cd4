"""Trees with everything that an archive can hold, and archives made by hand."""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
from pathlib import Path
from typing import Any

from puzzlefs.digest import VerityDigest
from puzzlefs.image import open_image
from puzzlefs.tar import ImportReport, export_tar, import_tar

IS_ROOT = os.geteuid() == 0


def odd_tree(root: Path, *, sockets: bool = False) -> Path:
    """A tree of all kinds of files with odd names and attributes; as much of it as this user may make."""
    root.mkdir()
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("puzzle\n")
    (root / "empty").touch()
    (root / "large").write_bytes(os.urandom(700_000))
    os.link(root / "large", root / "etc/large-again")
    (root / "link").symlink_to("etc/hostname")
    os.link(root / "link", root / "link-again", follow_symlinks=False)
    (root / "long-link").symlink_to("t" * 300)
    (root / "outside").symlink_to("../../../etc/passwd")
    os.mkfifo(root / "fifo", 0o640)
    deep = root / ("d" * 90) / ("e" * 90) / ("f" * 90)
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("deep")
    (root / ("n" * 255)).write_text("longest name")
    (root / "Grüße").write_text("utf-8")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe odd\n")).write_bytes(b"not utf-8")
    os.symlink(b"\xff\xfe", os.fsencode(root) + b"/odd-target")
    holes = root / "holes"
    with open(holes, "wb") as file:
        file.truncate(20 << 20)
        file.seek(6 << 20)
        file.write(os.urandom(5000))
    with open(root / "all-hole", "wb") as file:
        file.truncate(9 << 20)
    (root / "etc").chmod(0o2755)
    (root / "empty").chmod(0o4711)
    if sockets:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(root / "socket"))
    if IS_ROOT:
        os.mknod(root / "char", 0o620 | stat.S_IFCHR, os.makedev(5, 1))
        os.mknod(root / "block", 0o660 | stat.S_IFBLK, os.makedev(259, 70000))
        os.chown(root / "etc/hostname", 1000, 100)
        os.chown(root / "large", 3_000_000, 4_294_967_294)
        os.chown(root / "link", 7, 8, follow_symlinks=False)
        (root / "empty").chmod(0o4711)
    for key, value in (("user.a", b"1"), ("user.p%3Dq=r", b"2"), ("user.binary", b"\0\n=\xff"), ("user.empty", b"")):
        os.setxattr(root / "etc/hostname", key, value)
    os.setxattr(root / "etc", "user.on-a-directory", b"x")
    os.utime(root / "empty", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "etc/hostname", ns=(0, 5 * 10**9))
    os.utime(root / "link", ns=(0, 17), follow_symlinks=False)
    os.utime(root / "large", ns=(0, -1_500_000_000))
    return root


def exported(reference: str, path: str = "/", **options: Any) -> bytes:
    """The archive of an image."""
    output = io.BytesIO()
    report = export_tar(reference, output, path, **options)
    assert report.bytes == len(output.getvalue())
    return output.getvalue()


def imported(data: bytes, reference: str, **options: Any) -> ImportReport:
    """Import an archive that is in memory, as one comes through a pipe."""
    return import_tar(io.BytesIO(data), reference, **options)


def digest_of(reference: str) -> VerityDigest:
    """The digest of an image."""
    with open_image(reference) as image:
        return image.verity_digest()


def member(name: bytes, kind: bytes = b"0", **fields: Any) -> bytes:
    """One member in the format of V7 and ustar, with the fields that are given and a checksum that is right.

    Fields are ``data`` and the fields of the header, as their bytes.
    """
    data = fields.get("data", b"")
    size = fields.get("size", b"%011o\0" % len(data))
    block = bytearray(512)
    block[0:100] = name.ljust(100, b"\0")
    for start, length, value in (
        (100, 8, fields.get("mode", b"0000644\0")),
        (108, 8, fields.get("uid", b"0000000\0")),
        (116, 8, fields.get("gid", b"0000000\0")),
        (124, 12, size),
        (136, 12, fields.get("mtime", b"00000000000\0")),
        (156, 1, kind),
        (157, 100, fields.get("target", b"")),
        (257, 8, fields.get("magic", b"ustar\x0000")),
        (329, 8, fields.get("major", b"")),
        (337, 8, fields.get("minor", b"")),
    ):
        block[start : start + length] = value.ljust(length, b"\0")
    return summed(block) + data + bytes(-len(data) % 512)


def summed(block: bytes) -> bytes:
    """A header block with a checksum that is right."""
    return b"%b%06o\0 %b" % (block[:148], sum(block[:148]) + 8 * 0x20 + sum(block[156:]), block[156:])


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extended header."""
    data = b""
    for key, value in records:
        rest = len(key) + len(value) + 3
        length = rest + len(str(rest + len(str(rest))))
        data += b"%d %b=%b\n" % (length, key, value)
    return member(b"pax", kind, data=data)


def archive(*members: bytes) -> bytes:
    """Members as an archive."""
    return b"".join(members) + bytes(1024)


def listed(data: bytes) -> dict[str, tarfile.TarInfo]:
    """The members of an archive by name, as Python reads them."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as file:
        return {info.name: info for info in file}


def content_of(data: bytes, name: str) -> bytes:
    """The content of a member, as Python reads it."""
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as file:
        content = file.extractfile(name)
        assert content is not None
        return content.read()
