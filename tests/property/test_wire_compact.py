"""The compact rootfs blob says what the other one says, to every reader, in fewer bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_models import as_written, layers, verities, with_mtime

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, InvalidArgumentError
from puzzlefs.model import (
    BlobRef,
    CharDevice,
    Directory,
    DirEntry,
    FileChunk,
    Inode,
    InodeTable,
    Kind,
    RegularFile,
    Symlink,
    Xattr,
)
from puzzlefs.wire import codec_for, encode_compact_rootfs, rootfs_version
from puzzlefs.wire.compact import SHARED_NAME_SIZE
from puzzlefs.wire.reference import decode_rootfs

pytestmark = pytest.mark.property

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


def usual(stack: Sequence[Sequence[Inode]], verity: dict[Digest, VerityDigest]) -> bytes:
    return codec_for(3).encode_rootfs(layers=stack, metadata_refs=(), verity=verity)


@relaxed
@given(stack=st.lists(layers(max_size=8), max_size=4), verity=verities)
def test_a_rootfs_comes_back(stack: list[tuple[Inode, ...]], verity: dict[Digest, VerityDigest]) -> None:
    data = encode_compact_rootfs(3, stack, verity)
    assert data[:4] == bytes(4)  # one segment
    assert len(data) == 8 + 8 * int.from_bytes(data[4:8], "little") <= len(usual(stack, verity))
    assert rootfs_version(data) == 3
    rootfs = codec_for(3).decode_rootfs(data)
    reference = decode_rootfs(3, data)
    for table, theirs, layer in zip(rootfs.tables, reference.layers, stack, strict=True):
        assert list(table) == as_written(layer)
        assert list(theirs) == with_mtime(layer)
    assert dict(rootfs.verity) == reference.verity == verity


def listing(table: InodeTable, ino: int) -> tuple[list[bytes], list[int], list[Kind]] | None:
    """The names in a directory, their numbers and kinds, where all of them can be told quickly."""
    found = table.names(ino)
    kinds = None if found is None else table.live_kinds(found[1])
    return None if found is None or kinds is None else (*found, kinds)


@relaxed
@given(layer=layers(), verity=verities)
def test_quick_answers_are_as_many(layer: tuple[Inode, ...], verity: dict[Digest, VerityDigest]) -> None:
    """All pointers lead forward, so nothing looks unusual."""

    def answers(table: InodeTable) -> list[object]:
        numbers = [inode.ino for inode in layer]
        return [(table.glance(ino), listing(table, ino), table.chunks(ino)) for ino in numbers] + [
            table.may_have_xattrs(),
            table.total_size(numbers),
        ]

    (compact,) = codec_for(3).decode_rootfs(encode_compact_rootfs(3, [layer], verity)).tables
    (plain,) = codec_for(3).decode_rootfs(usual([layer], verity)).tables
    assert answers(compact) == answers(plain)


def tree(files: int, name_size: int) -> tuple[tuple[Inode, ...], dict[Digest, VerityDigest]]:
    """A directory of directories that all hold a file of one name, in a few chunks."""
    digests = [Digest.of(bytes([number])) for number in range(5)]
    inodes = [Inode(1, 0, 0, 0o755, Directory(tuple(DirEntry(2 + i, b"d%d" % i) for i in range(files))))]
    inodes += [Inode(2 + i, 0, 0, 0o755, Directory((DirEntry(2 + files + i, b"n" * name_size),))) for i in range(files)]
    inodes += [
        Inode(2 + files + i, 0, 0, 0o644, RegularFile.of((FileChunk(BlobRef(digests[i % 5], i, True), 1),)))
        for i in range(files)
    ]
    return tuple(inodes), {digest: VerityDigest(digest) for digest in digests}


@pytest.mark.parametrize("name_size", [9, SHARED_NAME_SIZE, SHARED_NAME_SIZE + 1, 255])
def test_what_repeats_is_stored_once(name_size: int) -> None:
    layer, verity = tree(1000, name_size)
    data = encode_compact_rootfs(3, [layer], verity)
    assert all(data.count(digest) == 1 + (digest == verity[digest]) for digest in verity)
    assert (data.count(b"n" * name_size) == 1) is (name_size <= SHARED_NAME_SIZE)
    table = codec_for(3).decode_rootfs(data).tables[0]
    for _ in range(3):  # what readers may visit is bounded by the size of the message, and this is little
        assert list(table) == list(layer)
        assert all(listing(table, inode.ino) is not None for inode in layer[:1001])


def test_a_large_one() -> None:
    generator = random.Random(1)
    layer, verity = tree(20_000, 9)
    extra = [
        Inode(100_000 + i, i, i, 0o777, Symlink(generator.randbytes(i % 300 + 1).replace(b"\0", b"-")))
        for i in range(500)
    ]
    stack = [(*layer, *extra), layer[:7]]
    data = encode_compact_rootfs(3, stack, verity)
    decoded = codec_for(3).decode_rootfs(data)
    assert [list(table) for table in decoded.tables] == [list(one) for one in stack]
    assert len(data) < 0.75 * len(usual(stack, verity))


@pytest.mark.parametrize(
    ("inodes", "error", "message"),
    [
        ([Inode(2, 0, 0, 0, CharDevice(1, 1)), Inode(1, 0, 0, 0, CharDevice(1, 1))], InvalidArgumentError, "sorted"),
        ([Inode(5, 0, 0, 0o10000, CharDevice(1, 1))], FormatError, "inode 5: permissions"),
        ([Inode(5, 1 << 32, 0, 0, CharDevice(1, 1))], FormatError, "inode 5: a number"),
        ([Inode(5, 0, 0, 0, CharDevice(1 << 64, 1))], FormatError, "inode 5: a number"),
        ([Inode(5, 0, 0, 0, CharDevice(1, 1), (), 1 << 63)], FormatError, "inode 5: a number"),
    ],
)
def test_what_cannot_be_written(inodes: list[Inode], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_compact_rootfs(3, [inodes], {})


def test_xattrs_are_sorted() -> None:
    inode = Inode(1, 0, 0, 0o644, RegularFile.of(()), (Xattr(b"user.b", b"2"), Xattr(b"user.a", b"1")))
    (table,) = codec_for(3).decode_rootfs(encode_compact_rootfs(3, [[inode]], {})).tables
    found = table.find(1)
    assert found is not None
    assert found.xattrs == (Xattr(b"user.a", b"1"), Xattr(b"user.b", b"2"))
