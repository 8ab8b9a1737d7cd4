"""A metadata layer on top of an encoded rootfs: the same as if all layers were encoded, read by two decoders."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import InvalidArgumentError
from puzzlefs.model import (
    BlobRef,
    CharDevice,
    Directory,
    DirEntry,
    FileChunk,
    Inode,
    RegularFile,
    Symlink,
    Xattr,
)
from puzzlefs.wire import codec_for, encode_compact_rootfs, encode_on_top
from puzzlefs.wire.message import MAX_SEGMENTS, Message
from puzzlefs.wire.reference import decode_rootfs

pytestmark = pytest.mark.unit

Verity = dict[Digest, VerityDigest]


def layer(count: int, seed: int, *, mtime: bool = False) -> tuple[list[Inode], Verity]:
    """Inodes of several kinds, and the fs-verity digests of their chunks."""
    rnd = random.Random(seed)
    digests = [Digest(rnd.randbytes(32)) for _ in range(max(1, count // 3))]
    inodes = []
    for ino in range(1, count + 1):
        content: Directory | Symlink | CharDevice | RegularFile
        if ino == 1:
            content = Directory(tuple(DirEntry(other, b"name%05d" % other) for other in range(2, count + 1)))
        elif ino % 5 == 0:
            content = Symlink(b"t" * rnd.randrange(1, 60))
        elif ino % 7 == 0:
            content = CharDevice(1, ino)
        else:
            chunks = [
                FileChunk(BlobRef(rnd.choice(digests), rnd.randrange(100), False), rnd.randrange(1, 100))
                for _ in range(rnd.choice((1, 1, 3)))
            ]
            content = RegularFile.of(chunks)
        xattrs = (Xattr(b"user.a", b"v" * ino),) if ino % 11 == 0 else ()
        inodes.append(Inode(ino, 7, 8, 0o644, content, xattrs, ino if mtime else None))
    return inodes, {digest: VerityDigest(rnd.randbytes(32)) for digest in digests}


def plain(inodes: Sequence[Inode]) -> list[tuple[object, ...]]:
    """Inodes as values, with the chunks of files decoded."""
    return [
        (
            inode.ino,
            inode.uid,
            inode.gid,
            inode.permissions,
            tuple(inode.content.chunks) if isinstance(inode.content, RegularFile) else inode.content,
            inode.xattrs,
            inode.mtime_ns,
        )
        for inode in inodes
    ]


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("count", [1, 3, 30, 300, 3000])
def test_it_reads_as_all_layers_together(count: int, compact: bool) -> None:
    codec = codec_for(3)
    inodes, verity = layer(count, 1)
    layers = [inodes]
    if compact:
        data = encode_compact_rootfs(3, layers, verity)
    else:
        data = codec.encode_rootfs(layers=layers, metadata_refs=(), verity=verity)
    for number in range(2, 6):
        added, new = layer(max(1, count // 20), number, mtime=number == 4)
        verity |= new
        layers.insert(0, added)
        data = encode_on_top(data, added, verity if number == 3 else new)
        decoded = codec.decode_rootfs(data)
        assert [plain(list(table)) for table in decoded.tables] == [plain(one) for one in layers]
        assert dict(decoded.verity) == verity
        assert all(decoded.verity[digest] == verity[digest] for digest in verity)
    other = decode_rootfs(3, data)
    assert [[row[:-1] for row in plain(one)] for one in other.layers] == [
        [row[:-1] for row in plain(one)] for one in layers
    ]
    assert dict(other.verity) == verity


@pytest.mark.parametrize("compact", [False, True])
def test_it_grows_by_the_layer_alone(compact: bool) -> None:
    inodes, verity = layer(5000, 1)
    if compact:
        data = encode_compact_rootfs(3, [inodes], verity)
    else:
        data = codec_for(3).encode_rootfs(layers=[inodes], metadata_refs=(), verity=verity)
    added, new = layer(10, 2)
    sizes = [len(data)]
    for _ in range(5):
        data = encode_on_top(data, added, new)
        sizes.append(len(data))
    alone = len(codec_for(3).encode_rootfs(layers=[added], metadata_refs=(), verity=new))
    assert max(after - before for before, after in pairwise(sizes)) < alone + 200


def test_an_empty_layer_and_no_digests() -> None:
    data = codec_for(3).encode_rootfs(layers=[[]], metadata_refs=(), verity={})
    added, verity = layer(3, 1)
    data = encode_on_top(encode_on_top(data, added, {}), [], verity)
    decoded = codec_for(3).decode_rootfs(data)
    assert [len(table) for table in decoded.tables] == [0, 3, 0]
    assert dict(decoded.verity) == verity


def test_unsorted_inodes_are_refused() -> None:
    inodes, verity = layer(3, 1)
    data = codec_for(3).encode_rootfs(layers=[inodes], metadata_refs=(), verity=verity)
    with pytest.raises(InvalidArgumentError, match="sorted"):
        encode_on_top(data, inodes[::-1], {})


def test_when_a_reader_would_not_take_more_it_says_what_helps() -> None:
    inodes, verity = layer(3000, 1)
    data = codec_for(3).encode_rootfs(layers=[inodes], metadata_refs=(), verity=verity)
    added, new = layer(1, 2)
    with pytest.raises(InvalidArgumentError, match="canonicalize"):
        for _ in range(MAX_SEGMENTS):
            data = encode_on_top(data, added, new)
    starts, _ = Message(data).segments()
    assert len(starts) == MAX_SEGMENTS
    assert len(codec_for(3).decode_rootfs(data).tables) > MAX_SEGMENTS - 30
