"""Messages from anywhere: errors are fine, anything else is a defect.

Every question is asked of damaged and random messages. The answer is a value or a ``FormatError``, within a second, and
where pycapnp accepts the message too, it is the same value.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.model import (
    BlobRef,
    CharDevice,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    InodeTable,
    RegularFile,
    Symlink,
    Whiteout,
    Xattr,
)
from puzzlefs.wire import codec_for, rootfs_version
from puzzlefs.wire.reference import decode_inode_vector, decode_rootfs

pytestmark = [pytest.mark.property, pytest.mark.hostile]

DIGEST = Digest(bytes(range(32)))

# Bytes changed at positions modulo the length, words replaced at positions modulo the length in words.
byte_changes = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8)
word_changes = st.lists(
    st.tuples(
        st.integers(0, 1 << 20),
        st.one_of(
            st.just(0),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, (1 << 30) - 1).map(lambda offset: offset << 2 | 1 << 32 | 1 << 48),
            st.integers(0, (1 << 30) - 1).map(lambda offset: offset << 2 | 1 | 7 << 32 | 4 << 35),
            st.integers(0, (1 << 29) - 1).map(lambda size: 1 | 7 << 32 | size << 35),
            st.integers(0, (1 << 30) - 1).map(lambda count: count << 2),
            st.integers(0, 600).map(lambda word: word << 3 | 2),
            st.integers(0, 600).map(lambda word: word << 3 | 6 | 1 << 32),
        ),
    ),
    min_size=1,
    max_size=6,
)
relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
Result = TypeVar("Result")


def some_layer() -> list[Inode]:
    """Every kind of inode; enough for several segments."""
    rnd = random.Random(7)

    def chunks(count: int) -> RegularFile:
        return RegularFile.of(tuple(FileChunk(BlobRef(DIGEST, i, False), i) for i in range(count)))

    contents = [
        Directory(tuple(DirEntry(i, b"name %d" % i) for i in range(2, 40))),
        chunks(1),
        chunks(20),
        Symlink(b"../somewhere/else"),
        CharDevice(1, 3),
        Whiteout(),
        Directory((), look_below=True),
        chunks(0),
        Fifo(),
    ]
    xattrs = (Xattr(b"security.capability", bytes(20)), Xattr(b"user.x", b"value"))
    return [
        Inode(i, 1, 2, 0o644, contents[i % len(contents)], xattrs if rnd.random() < 0.3 else ()) for i in range(1, 41)
    ]


LAYER = some_layer()
VERITY = {Digest.of(bytes([i])): VerityDigest(bytes([i] * 32)) for i in range(20)}
REFS = [BlobRef(DIGEST, 0, False), BlobRef(Digest.of(b"x"), 1, True)]
VECTORS = {version: codec_for(version).encode_inode_vector(LAYER) for version in (1, 2)}
ROOTFS = {
    version: codec_for(version).encode_rootfs(
        layers=[LAYER, LAYER[::3]] if version == 3 else [], metadata_refs=[] if version == 3 else REFS, verity=VERITY
    )
    for version in (1, 2, 3)
}
MESSAGES = [*VECTORS.values(), *ROOTFS.values()]


def attempt(ask: Callable[..., Result], *arguments: object) -> Result | None:
    try:
        return ask(*arguments)
    except FormatError as error:
        assert error.message
        return None


def read_inode(table: InodeTable, ino: int) -> int:
    """Everything about one inode; how much there was."""
    found = table.find(ino)
    if found is None:
        return 0
    if isinstance(found.content, RegularFile):
        chunks = found.content.chunks
        return sum(1 for index in range(len(chunks)) if attempt(chunks.__getitem__, index) is not None)
    if isinstance(found.content, Directory):
        return len(found.content.entries)
    return 1


def read_table(table: InodeTable) -> None:
    attempt(list, table)
    numbers = [ino for ino, _kind in attempt(table.kinds) or ()]
    attempt(table.max_ino)
    for ino in {*numbers, *range(50)}:
        attempt(table.kind, ino)
        attempt(table.entry_numbers, ino)
        attempt(read_inode, table, ino)


def read_everything(data: bytes) -> None:
    """Every question, in every version, as a server does: one error does not end it."""
    start = time.process_time()
    attempt(rootfs_version, data)
    for version in (1, 2, 3):
        codec = codec_for(version)
        rootfs = attempt(codec.decode_rootfs, data)
        if rootfs is not None:
            for table in rootfs.tables:
                read_table(table)
            attempt(dict, rootfs.verity)
            attempt(list, rootfs.verity.items())
            attempt(rootfs.verity.get, DIGEST)
        if version < 3:
            vector = attempt(codec.decode_inode_vector, data)
            if vector is not None:
                read_table(vector)
    assert time.process_time() - start < 1


def test_the_undamaged_messages_are_read() -> None:
    """The questions do reach everything: otherwise the tests below would prove nothing."""
    for version, data in VECTORS.items():
        assert int.from_bytes(data[:4], "little") >= 1, "of several segments"
        table = codec_for(version).decode_inode_vector(data)
        assert list(table) == LAYER
        assert [read_inode(table, inode.ino) for inode in LAYER].count(0) == 8, "empty files and directories"
    for data in MESSAGES:
        read_everything(data)


@relaxed
@given(data=st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    read_everything(data)


@relaxed
@given(words=st.lists(st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 36)), max_size=60))
def test_random_words_in_a_frame(words: list[int]) -> None:
    read_everything(struct.pack(f"<II{len(words)}Q", 0, len(words), *words))


def with_bytes(message: bytes, changes: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(message)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    return bytes(damaged)


def with_words(message: bytes, changes: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(message)
    for position, word in changes:
        struct.pack_into("<Q", damaged, position % (len(damaged) // 8) * 8, word)
    return bytes(damaged)


@relaxed
@given(message=st.sampled_from(MESSAGES), changes=byte_changes, end=st.one_of(st.none(), st.integers(0, 1 << 20)))
def test_damaged_bytes(message: bytes, changes: list[tuple[int, int]], end: int | None) -> None:
    damaged = with_bytes(message, changes)
    read_everything(damaged[: None if end is None else end % len(damaged)])


@relaxed
@given(message=st.sampled_from(MESSAGES), changes=word_changes)
def test_replaced_words(message: bytes, changes: list[tuple[int, int]]) -> None:
    read_everything(with_words(message, changes))


@relaxed
@given(message=st.sampled_from(MESSAGES), moves=st.lists(st.tuples(*[st.integers(0, 1 << 20)] * 2), max_size=6))
def test_words_in_other_places(message: bytes, moves: list[tuple[int, int]]) -> None:
    """Pointers that are valid somewhere else: circles, overlaps, lists of the wrong things."""
    count = len(message) // 8
    words = list(struct.unpack(f"<{count}Q", message))
    for source, target in moves:
        words[target % count] = words[source % count]
    read_everything(struct.pack(f"<{count}Q", *words))


def everything(layer: Iterable[Inode]) -> list[Inode]:
    """The inodes with every chunk decoded, and as pycapnp sees their times."""
    found = [inode._replace(mtime_ns=inode.mtime_ns or 0) for inode in layer]
    for inode in found:
        if isinstance(inode.content, RegularFile):
            list(inode.content.chunks)
    return found


@relaxed
@given(
    version=st.sampled_from([1, 2]),
    bytes_changed=st.one_of(st.just([]), byte_changes),
    words_changed=st.one_of(st.just([]), word_changes),
)
def test_what_pycapnp_accepts_too_is_the_same(
    version: int, bytes_changed: list[tuple[int, int]], words_changed: list[tuple[int, int]]
) -> None:
    data = with_words(with_bytes(VECTORS[version], bytes_changed), words_changed)
    table = attempt(codec_for(version).decode_inode_vector, data)
    ours = attempt(everything, table) if table is not None else None
    start = time.process_time()
    theirs = attempt(decode_inode_vector, version, data)
    assert time.process_time() - start < 1
    if ours is not None and theirs is not None:
        assert ours == list(theirs)


@relaxed
@given(bytes_changed=st.one_of(st.just([]), byte_changes), words_changed=st.one_of(st.just([]), word_changes))
def test_rootfs_that_pycapnp_accepts_too_are_the_same(
    bytes_changed: list[tuple[int, int]], words_changed: list[tuple[int, int]]
) -> None:
    data = with_words(with_bytes(ROOTFS[3], bytes_changed), words_changed)
    ours = attempt(codec_for(3).decode_rootfs, data)
    theirs = attempt(decode_rootfs, 3, data)
    if ours is None or theirs is None:
        return
    verity = attempt(dict, ours.verity)
    assert verity is None or verity == theirs.verity
    for table, layer in zip(ours.tables, theirs.layers, strict=True):
        inodes = attempt(everything, table)
        assert inodes is None or inodes == list(layer)


@pytest.mark.parametrize("message", MESSAGES, ids=["vector1", "vector2", "rootfs1", "rootfs2", "rootfs3"])
def test_every_word_damaged_in_every_way(message: bytes) -> None:
    rnd = random.Random(len(message))
    for at in rnd.sample(range(0, len(message), 8), min(len(message) // 8, 150)):
        for word in (0, (1 << 64) - 1, 1 << 63, 3, 2, 6, 1 | 7 << 32 | ((1 << 29) - 1) << 35, rnd.getrandbits(64)):
            damaged = bytearray(message)
            struct.pack_into("<Q", damaged, at, word)
            start = time.process_time()
            for version in (1, 2, 3):
                codec = codec_for(version)
                rootfs = attempt(codec.decode_rootfs, bytes(damaged))
                vector = attempt(codec.decode_inode_vector, bytes(damaged)) if version < 3 else None
                for table in [*(rootfs.tables if rootfs else ()), *([vector] if vector else [])]:
                    attempt(list, table)
                    assert len(list(table.kinds())) == len(table)
            assert time.process_time() - start < 1
