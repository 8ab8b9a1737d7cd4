"""Targets: rootfs blobs, inode vectors, and what is made of them again (one more layer, compact, any version)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

from fuzz.asking import ask_table, ask_tree, attempt
from fuzz.mutation import words_of_message
from fuzz.target import Target
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import InvalidArgumentError
from puzzlefs.model import (
    BlobRef,
    BlockDevice,
    CharDevice,
    Content,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    InodeTable,
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
)
from puzzlefs.vfs import Tree
from puzzlefs.wire import codec_for, embedded_sizes, encode_compact_rootfs, encode_on_top, rootfs_version
from puzzlefs.wire.message import Message
from puzzlefs.wire.rootfs import RootfsReader
from puzzlefs.wire.table import WireInodeTable

_VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
_DIGEST = Digest.of(b"some chunk")
_MIN_ENTRY_SIZE = 16
_MAX_SEED = 1 << 15


def some_layer(count: int, *, mtime: bool = False) -> list[Inode]:
    """A root directory with inodes of every kind."""
    rnd = random.Random(count)
    far = BlobRef(Digest.of(b"another"), 7, True)
    kinds: list[Content] = [
        RegularFile.of((FileChunk(BlobRef(_DIGEST, 0, False), 100),)),
        RegularFile.of(tuple(FileChunk(far, 1 << number) for number in range(5))),
        Symlink(b"../a/b"),
        Directory((DirEntry(3, b"a"), DirEntry(4, b"hard link"))),
        CharDevice(1, 3),
        RegularFile.of(()),
        Fifo(),
        Directory((DirEntry(2, b"c"),), look_below=True),
        BlockDevice(8, 1),
        Socket(),
        Whiteout(),
    ]
    found = [Inode(1, 0, 0, 0o755, Directory(tuple(DirEntry(ino, b"%c" % (95 + ino)) for ino in range(2, count + 1))))]
    for ino in range(2, count + 1):
        xattrs = (Xattr(b"security.capability", bytes(20)), Xattr(b"user.x", b"v")) if rnd.random() < 0.3 else ()
        found.append(Inode(ino, ino, 0, 0o644, kinds[(ino - 2) % len(kinds)], xattrs, ino * 10**9 if mtime else None))
    return found


_VERITY = {Digest.of(bytes([number])): VerityDigest(bytes([number] * 32)) for number in range(5)}


def rootfs_blobs(version: int) -> list[bytes]:
    """Rootfs blobs of a version, small ones first: ours and those of the original implementation."""
    codec = codec_for(version)
    found = []
    if version == 3:
        for layers in ([some_layer(4)], [some_layer(14)], [some_layer(3), some_layer(12, mtime=True)], []):
            found.append(codec.encode_rootfs(layers=layers, metadata_refs=(), verity=_VERITY))
            found.append(encode_compact_rootfs(3, layers, _VERITY))
        found.append(encode_on_top(found[2], some_layer(3), _VERITY))
        found.append(encode_on_top(codec.encode_rootfs(layers=[big_layer()], metadata_refs=(), verity={}), [], _VERITY))
    else:
        refs = [BlobRef(_DIGEST, 0, False), BlobRef(Digest.of(b"x"), 1, True)]
        found.append(codec.encode_rootfs(layers=(), metadata_refs=refs, verity=_VERITY))
    return found + _original(version, "rootfs")


def inode_vectors(version: int) -> list[bytes]:
    """Inode vectors of version 1 or 2."""
    codec = codec_for(version)
    ours = [codec.encode_inode_vector(layer) for layer in (some_layer(4), some_layer(14, mtime=True), big_layer())]
    return ours + _original(version, "vectors")


def big_layer() -> list[Inode]:
    """Enough for several segments."""
    return some_layer(60)


@cache
def _original(version: int, what: str) -> list[bytes]:
    """Metadata in the images of the original implementation, where these are at hand."""
    found: list[bytes] = []
    for path in sorted(_VECTORS.glob(f"v{version}*/blobs/sha256/*")):
        if path.stat().st_size > _MAX_SEED:
            continue
        data = path.read_bytes()
        if attempt(rootfs_version, data) == version:
            if what == "rootfs":
                found.append(data)
            elif version < 3:
                for ref in codec_for(version).decode_rootfs(data).metadata_refs:
                    blob = path.parent / ref.digest.hex()
                    if blob.is_file() and blob.stat().st_size <= _MAX_SEED:
                        found.append(blob.read_bytes())
    return sorted(set(found), key=lambda blob: (len(blob), blob))


def decode_rootfs(data: bytes) -> None:
    """A rootfs blob of whatever version it says, and as the others."""
    attempt(rootfs_version, data)
    for version in (1, 2, 3):
        rootfs = attempt(codec_for(version).decode_rootfs, data)
        if rootfs is None:
            continue
        attempt(dict, rootfs.verity)
        for digest, verity in (attempt(lambda rootfs=rootfs: list(rootfs.verity.items())) or [])[:50]:
            assert rootfs.verity[digest] == verity
        attempt(rootfs.verity.get, _DIGEST)
        for table in rootfs.tables[:20]:
            ask_table(table)
        attempt(embedded_sizes, rootfs.tables)
    rootfs = codec_for(3).decode_rootfs(data)  # anew: what was asked until now may have used up the ledger
    ask_tree(Tree(rootfs.tables, max_entries=len(data) // _MIN_ENTRY_SIZE))


def decode_vector(data: bytes) -> None:
    """An inode vector, as versions 1 and 2 have it."""
    for version in (1, 2):
        table = attempt(codec_for(version).decode_inode_vector, data)
        if table is not None:
            ask_table(table)
    codec = codec_for(1 + crc32(data) % 2)
    ask_tree(Tree([codec.decode_inode_vector(data)], max_entries=len(data) // _MIN_ENTRY_SIZE))


def write_again(data: bytes) -> None:
    """What is made of a rootfs blob: a layer on top, compact, older versions; it must say the same."""
    top = some_layer(4)
    try:
        more = encode_on_top(data, top, {_DIGEST: VerityDigest(bytes(32))})
    except InvalidArgumentError:
        more = b""
    codec = codec_for(3)
    rootfs = codec.decode_rootfs(data)
    before = [_whole(table) for table in rootfs.tables]
    verity = attempt(lambda: dict(rootfs.verity))
    if more:
        after = codec.decode_rootfs(more)
        assert list(after.tables[0]) == _as_read(top)
        is_apart = _is_apart(data)
        for old, table in zip(before, after.tables[1:], strict=True):
            assert old is None or not is_apart or old == _whole(table) or _overlap(table)
        if verity is not None:
            assert dict(after.verity) == {_DIGEST: VerityDigest(bytes(32)), **verity}
    layers = [layer for layer in before if layer is not None and _is_sorted(layer)]
    if len(layers) < len(before):
        return
    _compare(encode_compact_rootfs(3, layers, verity or {}), layers)
    _compare(codec.encode_rootfs(layers=layers, metadata_refs=(), verity=verity or {}), layers)
    for version, layer in ((1, layers[0]), (2, layers[-1])) if layers else ():
        blob = codec_for(version).encode_inode_vector(layer)
        assert list(codec_for(version).decode_inode_vector(blob)) == _as_read(layer)


def _is_apart(data: bytes) -> bool:
    """Whether no inode has its parts where the root pointer or the verity digests are, which ``encode_on_top`` moves.

    Asked by decoding the inodes from a message in which something else is there.
    """
    reader = RootfsReader(data)
    message = reader.message
    segment, first, count, data_words, pointer_words = reader.verity_records()
    stride = data_words + pointer_words
    other = bytearray(data)
    at = message.root()[1]
    other[at << 3 : at + 1 << 3] = b"\xff" * 8
    if count:
        other[first - 1 << 3 : first + count * stride << 3] = b"\xff" * (1 + count * stride << 3)
        if len(message.segments()[0]) > 1:
            for entry in range(first + data_words, first + count * stride, stride):
                for pointer in (entry, entry + 1):
                    start, size = message.extent_at(segment, pointer, "digest")
                    other[start : start + size] = b"\xff" * size
    changed = Message(bytes(other))
    for table in codec_for(3).decode_rootfs(data).tables:
        assert isinstance(table, WireInodeTable)
        if _whole(WireInodeTable(changed, table.place()[1], file_struct=False)) != _whole(table):
            return False
    return True


def _whole(table: InodeTable) -> list[Inode] | None:
    def decode() -> list[Inode]:
        found = list(table)
        for inode in found:
            if isinstance(inode.content, RegularFile):
                list(inode.content.chunks)
        return found

    return attempt(decode)


def _overlap(table: InodeTable) -> bool:
    """Whether what the new message is too short for, the old one, with its garbage, was long enough for."""
    try:
        list(table)
    except Exception as error:  # noqa: BLE001
        return "overlap" in str(error)
    return False


def _is_sorted(layer: Sequence[Inode]) -> bool:
    return all(one.ino <= other.ino for one, other in pairwise(layer))


def _as_read(layer: Sequence[Inode]) -> list[Inode]:
    """What reading a layer back gives: where one inode has a time, all have one; attributes are sorted."""
    timed = any(inode.mtime_ns is not None for inode in layer)
    found = []
    for inode in layer:
        xattrs = tuple(sorted(inode.xattrs, key=lambda xattr: xattr.key))
        mtime_ns = (inode.mtime_ns or 0) if timed else None
        found.append(Inode(inode.ino, inode.uid, inode.gid, inode.permissions, inode.content, xattrs, mtime_ns))
    return found


def _compare(blob: bytes, layers: Sequence[Sequence[Inode]]) -> None:
    for table, layer in zip(codec_for(3).decode_rootfs(blob).tables, layers, strict=True):
        assert _whole(table) in (None, _as_read(layer))
        if _whole(table) is None:
            assert _overlap(table)


def _all(blobs: Mapping[int, Sequence[bytes]]) -> list[bytes]:
    return [blob for version in blobs for blob in blobs[version]]


def _target(name: str, run: Any, seeds: Any) -> Target:
    return Target(name, run, seeds, words_of_message, max_size=1 << 16)


TARGETS = (
    _target("rootfs", decode_rootfs, lambda: _all({version: rootfs_blobs(version) for version in (1, 2, 3)})),
    _target("vectors", decode_vector, lambda: _all({version: inode_vectors(version) for version in (1, 2)})),
    _target("rewrite", write_again, lambda: rootfs_blobs(3)),
)
