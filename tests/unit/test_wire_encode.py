"""What the encoder refuses, and how the arena fills its segments."""

from __future__ import annotations

import struct
import sys
from typing import Any

import pytest

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, InvalidArgumentError, UnsupportedVersionError
from puzzlefs.model import (
    BlobRef,
    CharDevice,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    RegularFile,
    Symlink,
    Xattr,
)
from puzzlefs.wire import VERSIONS, codec_for, rootfs_version
from puzzlefs.wire.arena import Arena
from puzzlefs.wire.pointers import data_shape, records_shape

pytestmark = pytest.mark.unit

DIGEST = Digest(bytes(range(32)))


def encode(*inodes: Inode) -> bytes:
    return codec_for(3).encode_rootfs(layers=[inodes], metadata_refs=[], verity={})


def inode(ino: int = 17, content: Any = None, **more: Any) -> Inode:
    values = {"uid": 0, "gid": 0, "permissions": 0, **more}
    return Inode(ino, content=content or Fifo(), **values)


def file(offset: int, length: int) -> RegularFile:
    return RegularFile.of((FileChunk(BlobRef(DIGEST, offset, False), length),))


@pytest.mark.parametrize(
    "bad",
    [
        inode(uid=1 << 32),
        inode(gid=1 << 32),
        inode(uid=-1),
        inode(mtime_ns=1 << 63),
        inode(mtime_ns=-(1 << 63) - 1),
        inode(content=CharDevice(1 << 64, 0)),
        inode(content=CharDevice(0, -1)),
        inode(content=file(1 << 64, 0)),
        inode(content=file(0, 1 << 64)),
        inode(content=file(-1, 0)),
        inode(content=RegularFile.of((*file(0, 1).chunks, *file(0, 1 << 64).chunks))),
        inode(content=Directory((DirEntry(1 << 64, b"x"),))),
        inode(content=Directory((DirEntry(-1, b"x"),))),
        inode(permissions=0o10000),
        inode(permissions=-1),
    ],
)
def test_numbers_that_do_not_fit_are_refused(bad: Inode) -> None:
    with pytest.raises(FormatError, match="inode 17: "):
        encode(inode(1), bad)


def test_inode_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(FormatError, match=f"inode {1 << 64}: "):
        encode(inode(1 << 64))


def test_inodes_must_be_sorted() -> None:
    assert encode(inode(1), inode(1), inode(2))
    with pytest.raises(InvalidArgumentError, match="inode 1 comes after inode 2"):
        encode(inode(2), inode(1))


def test_xattrs_are_stored_sorted_by_key() -> None:
    keys = (b"user.b", b"user.a", b"security.x", b"user.aa")
    found = codec_for(3).decode_rootfs(encode(inode(xattrs=tuple(Xattr(key, key) for key in keys)))).tables[0].find(17)
    assert found is not None
    assert [xattr.key for xattr in found.xattrs] == sorted(keys)
    assert [xattr.value for xattr in found.xattrs] == sorted(keys)


def test_versions_have_their_own_place_for_layers() -> None:
    ref = BlobRef(DIGEST, 0, False)
    for version in (1, 2):
        with pytest.raises(InvalidArgumentError, match="blobs of their own"):
            codec_for(version).encode_rootfs(layers=[[]], metadata_refs=[ref], verity={})
    codec = codec_for(3)
    with pytest.raises(InvalidArgumentError, match="in the rootfs blob"):
        codec.encode_rootfs(layers=[[]], metadata_refs=[ref], verity={})
    with pytest.raises(InvalidArgumentError, match="in the rootfs blob"):
        codec.encode_inode_vector([])
    with pytest.raises(InvalidArgumentError, match="in the rootfs blob"):
        codec.decode_inode_vector(encode())


def test_unknown_versions() -> None:
    assert VERSIONS == (1, 2, 3)
    for version in (0, 4, (1 << 64) - 1):
        with pytest.raises(UnsupportedVersionError, match=str(version)):
            codec_for(version)
        # The version is readable whatever it is: that is how one gets to know it.
        words = (0, 5 << 32, 0 << 2 | 1 << 32 | 2 << 48, version, 0, 0)
        assert rootfs_version(struct.pack("<IIQQQQ", 0, 4, *words[2:])) == version


def test_the_codecs_do_not_load_pycapnp() -> None:
    import subprocess

    code = "import sys, puzzlefs.wire; sys.exit('capnp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- arena ---


def sizes(message: bytes) -> list[int]:
    count = int.from_bytes(message[:4], "little") + 1
    return list(struct.unpack_from(f"<{count}I", message, 4))


def test_segments_grow_by_what_was_made() -> None:
    arena = Arena()
    for _ in range(8):
        arena.reserve(0, 0, data_shape(8), 900)
    # 1024 (root pointer and one object), 2048 and 4096 (landing pad and object each), 8192
    assert sizes(arena.message()) == [901, 2 * 901, 4 * 901, 901]


def test_an_object_larger_than_the_next_segment_gets_one_of_its_size() -> None:
    arena = Arena()
    arena.reserve(0, 0, data_shape(8), 5000)
    segment, start = arena.reserve(0, 0, data_shape(8), 7000)
    assert (segment, start) == (2, 1)
    arena.reserve(0, 0, data_shape(8), 20)  # fits beside the root pointer
    # 1024 + 1024 + 5001 is less than 7001; the next one has 1024 + 1024 + 5001 + 7050, as what is left in it shows
    arena.reserve(0, 0, data_shape(8), 1024)
    assert sizes(arena.message()) == [21, 5001, 7001, 1025]


def test_the_first_segment_with_room_takes_an_object() -> None:
    arena = Arena()
    arena.reserve(0, 0, data_shape(8), 1000)  # 23 words left in segment 0
    other, _start = arena.reserve(0, 0, data_shape(8), 2000)  # 47 left in segment 1, landing pad deducted
    assert other == 1
    assert arena.reserve(1, 1, data_shape(8), 40) == (1, 2001)  # in the segment of the pointer
    assert arena.reserve(1, 1, data_shape(8), 22) == (0, 1002)  # 22 and a landing pad fill segment 0
    assert arena.reserve(1, 1, data_shape(8), 7) == (1, 2041)
    assert arena.reserve(0, 0, data_shape(8), 0) == (0, 1024)  # nothing always fits
    assert arena.reserve(0, 0, data_shape(8), 1)[0] == 2


def test_what_no_message_can_hold_is_refused() -> None:
    with pytest.raises(FormatError, match="more than a Cap'n Proto"):
        records_shape(1 << 28, 1, 1)
    with pytest.raises(FormatError, match="more than a Cap'n Proto"):
        data_shape(1 << 29)
    with pytest.raises(FormatError, match="more than a Cap'n Proto"):
        Arena().reserve(0, 0, 0, 1 << 29)


def test_symlinks_devices_and_empty_files_take_what_the_format_says() -> None:
    """Words behind an inode: additional 2 + tag 1 + target 1; device 2; tag of no chunks 1."""
    base = len(encode(inode()))
    assert len(encode(inode(content=Symlink(b"x")))) - base == 8 * 4
    assert len(encode(inode(content=CharDevice(1, 2)))) - base == 8 * 2
    assert len(encode(inode(content=RegularFile.of(())))) - base == 8
    assert len(encode(inode(content=Directory(())))) - base == 8 * 3
