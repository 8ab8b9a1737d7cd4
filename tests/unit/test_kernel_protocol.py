"""The numbers and layouts of the kernel's protocol, against the header that the machine's kernel comes with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from struct import Struct

import pytest

from puzzlefs.mount import kernel_protocol as protocol
from puzzlefs.mount.kernel_protocol import InitFlag, Opcode
from puzzlefs.vfs import Attributes

pytestmark = pytest.mark.unit

HEADER = Path("/usr/include/linux/fuse.h")
ATTRIBUTES = Attributes(
    ino=7, mode=0o100644, nlink=2, uid=1000, gid=100, rdev=0, size=5000, blocks=10, mtime_ns=-1_500_000_000
)

# structure → (its size here, where members are that are easily confused)
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "fuse_in_header": (protocol.IN_HEADER.size, {"opcode": 4, "unique": 8, "nodeid": 16, "uid": 24, "pid": 32}),
    "fuse_out_header": (protocol.OUT_HEADER.size, {"error": 4, "unique": 8}),
    "fuse_init_out": (protocol.INIT_OUT.size, {"flags": 12, "max_write": 20, "time_gran": 24, "max_pages": 28}),
    "fuse_entry_out": (40 + 88, {"generation": 8, "attr_valid": 24, "entry_valid_nsec": 32, "attr": 40}),
    "fuse_attr_out": (16 + 88, {"attr": 16}),
    "fuse_attr": (88, {"mtime": 32, "mtimensec": 52, "mode": 60, "nlink": 64, "rdev": 76, "blksize": 80}),
    "fuse_direntplus": (protocol.DIRENTPLUS_SIZE, {"dirent": 128}),
    "fuse_dirent": (protocol.DIRENT_SIZE, {"off": 8, "namelen": 16, "type": 20, "name": 24}),
    "fuse_read_in": (40, {"offset": 8, "size": 16}),
    "fuse_open_in": (protocol.OPEN_IN.size, {"flags": 0}),
    "fuse_getxattr_in": (protocol.GETXATTR_IN.size, {"size": 0}),
    "fuse_getxattr_out": (protocol.GETXATTR_OUT.size, {"size": 0}),
    "fuse_statfs_out": (protocol.STATFS_OUT.size, {"st.files": 24, "st.bsize": 40, "st.namelen": 44, "st.frsize": 48}),
    "fuse_notify_store_out": (protocol.STORE.size - protocol.OUT_HEADER.size, {"offset": 8, "size": 16}),
}


def test_against_the_header(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not HEADER.exists():
        pytest.skip("needs a C compiler and the kernel's headers")
    wanted: dict[str, int] = {
        "FUSE_KERNEL_VERSION": protocol.MAJOR,
        "FUSE_MIN_READ_BUFFER": protocol.MIN_READ_BUFFER,
        "FUSE_NOTIFY_STORE": protocol.NOTIFY_STORE,
    }
    for name, (size, members) in LAYOUTS.items():
        wanted[f"sizeof(struct {name})"] = size
        wanted |= {f"offsetof(struct {name}, {member})": offset for member, offset in members.items()}
    text = HEADER.read_text()
    for opcode in Opcode:
        if f"FUSE_{opcode.name}\t" in text:  # a header can be older than the opcode
            wanted[f"FUSE_{opcode.name}"] = int(opcode)
    wanted |= {f"FUSE_{flag.name}": int(flag) for flag in InitFlag}
    assert len(wanted) > 100
    checks = "\n".join(f'_Static_assert({name} == {value}, "{name}");' for name, value in wanted.items())
    source = tmp_path / "check.c"
    source.write_text(f"#include <stddef.h>\n#include <linux/fuse.h>\n{checks}\n")
    result = subprocess.run([compiler, "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_attributes() -> None:
    data = protocol.encode_attributes(ATTRIBUTES)
    fields = Struct("=QQQqqqIIIIIIIIII").unpack(data)
    assert fields[:3] == (7, 5000, 10)
    assert fields[3:6] == (-2,) * 3  # a second and a half before 1970 is second -2 and half of the next one
    assert fields[6:9] == (500_000_000,) * 3
    assert fields[9:] == (0o100644, 2, 1000, 100, 0, 4096, 0)


def test_an_entry_of_a_listing_is_a_lookup_and_a_dirent() -> None:
    name = b"nine char"
    entry = protocol.direntplus(ATTRIBUTES, 60, 3, name)
    lookup = protocol.entry_reply(7, protocol.encode_attributes(ATTRIBUTES), 60)
    assert entry == lookup + protocol.dirent(7, 3, 8, name)
    assert len(entry) == protocol.DIRENTPLUS_SIZE + protocol.padded_name_size(len(name))
    bare = protocol.direntplus_without_lookup(7, 3, 8, name)
    assert bare == bytes(len(lookup)) + protocol.dirent(7, 3, 8, name)


@pytest.mark.parametrize("length", range(1, 18))
def test_names_are_padded(length: int) -> None:
    name = b"n" * length
    entry = protocol.dirent(1, 2, 4, name)
    assert len(entry) % 8 == 0
    assert len(entry) == protocol.DIRENT_SIZE + protocol.padded_name_size(length)
    assert entry[protocol.DIRENT_SIZE :].rstrip(b"\0") == name


def test_what_was_not_offered_is_not_asked_for() -> None:
    offered = int(InitFlag.ASYNC_READ | InitFlag.MAX_PAGES)
    request = protocol.parse_init(protocol.INIT_IN.pack(7, 45, 131072, offered))
    reply = protocol.init_reply(request, int(InitFlag.MAX_PAGES | InitFlag.POSIX_ACL), max_pages=256, max_background=64)
    major, minor, max_readahead, flags, background, congestion = Struct("=IIIIHH").unpack_from(reply)
    assert (major, minor, max_readahead) == (7, 31, 131072)
    assert flags == InitFlag.MAX_PAGES
    assert (background, congestion) == (64, 48)


def test_replies() -> None:
    assert protocol.error_reply(9, 2) == Struct("=IiQ").pack(16, -2, 9)
    assert protocol.reply_header(9, 100) == Struct("=IiQ").pack(116, 0, 9)
    header = protocol.store_header(5, 4096, 10)
    assert Struct("=IiQQQII").unpack(header) == (40 + 10, 4, 0, 5, 4096, 10, 0)
    absent = protocol.absent_reply(60)
    assert absent == Struct("=QQQ").pack(0, 0, 60) + bytes(104)
