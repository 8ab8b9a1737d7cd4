"""The quick answers about ordinary inodes are those that decoding the inode gives, or none at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_models import changes_of_bytes, damaged_table, digests, layers

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.model import (
    BlobRef,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    InodeTable,
    Kind,
    RegularFile,
    Resident,
    Symlink,
    Xattr,
    kind_of,
)
from puzzlefs.wire import codec_for

pytestmark = pytest.mark.property

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
ONE, TWO, THREE = (Digest.of(word) for word in (b"one", b"two", b"three"))


def table_of(layer: tuple[Inode, ...], version: int) -> InodeTable:
    codec = codec_for(version)
    if version == 3:
        return codec.decode_rootfs(codec.encode_rootfs(layers=[layer], metadata_refs=[], verity={})).tables[0]
    return codec.decode_inode_vector(codec.encode_inode_vector(layer))


def check(table: InodeTable, ino: int) -> int:
    """Compare each quick answer about an inode with the slow one; how many there were."""
    answers = 0
    glance, found, chunks = table.glance(ino), table.names(ino), table.chunks(ino)
    try:
        inode = table.find(ino)
    except FormatError as error:
        # what a single visit may cost is bounded, what all may cost together only the slow way finds
        if "overlap" not in str(error):
            assert glance is None or glance.kind == Kind.DIRECTORY
            assert (found, chunks) == (None, None)
        return 0
    if glance is not None:
        answers += 1
        assert inode is not None
        content = inode.content
        size = content.size if isinstance(content, RegularFile) else 0
        size = len(content.target) if isinstance(content, Symlink) else size
        expected = (kind_of(content), inode.permissions, inode.uid, inode.gid, size, inode.mtime_ns or 0)
        assert tuple(glance) == expected
        assert not inode.xattrs
        assert kind_of(content) is not Kind.WHITEOUT
    assert table.mentions(ino) == (inode is not None)
    if found is not None:
        assert inode is not None
        assert isinstance(inode.content, Directory)
        assert not inode.content.look_below
        names, numbers = found
        assert names == [entry.name for entry in inode.content.entries]
        assert len(set(names)) == len(names)
        assert all(0 < len(name) < 256 and b"/" not in name and b"\0" not in name for name in names)
        assert not {b".", b".."} & set(names)
        assert numbers == [entry.ino for entry in inode.content.entries]
        kinds = table.live_kinds(numbers)
        if kinds is not None:
            answers += 1
            assert kinds == [table.kind(number) for number in numbers]
    if chunks is not None:
        answers += 1
        assert inode is not None
        assert isinstance(inode.content, RegularFile)
        assert chunks == list(inode.content.chunks)
    return answers


@pytest.mark.parametrize("version", [1, 2, 3])
@relaxed
@given(layer=layers())
def test_on_any_layer(version: int, layer: tuple[Inode, ...]) -> None:
    table = table_of(layer, version)
    for ino in {inode.ino + step for inode in layer for step in (-1, 0, 1)}:
        if ino >= 0:
            check(table, ino)
    sizes = {inode.ino: table.find(inode.ino) for inode in layer}
    size, others = table.total_size(list(sizes))
    assert set(others) <= sizes.keys()
    counted = [inode for ino, inode in sizes.items() if ino not in others]
    contents = [inode.content for inode in counted if inode is not None]
    assert size == sum(content.size for content in contents if isinstance(content, RegularFile))
    if any(inode.xattrs for inode in layer):
        assert table.may_have_xattrs()


@relaxed
@given(layer=layers(), changes=changes_of_bytes)
def test_on_a_damaged_layer(layer: tuple[Inode, ...], changes: list[tuple[int, int]]) -> None:
    table = damaged_table(layer, changes)
    if table is None:
        return
    for ino in {inode.ino for inode in layer}:
        check(table, ino)
        assert table.files_in(ONE, ino, ino + 3)[1] <= ino + 3
    table.may_have_xattrs()
    table.total_size([inode.ino for inode in layer])


def ordinary_layer() -> tuple[Inode, ...]:
    """Several segments of what images mostly consist of, numbers with gaps."""
    rnd = random.Random(5)
    inodes = []
    numbers = [ino for ino in range(2, 3000) if ino % 37]
    for ino in numbers:
        content: RegularFile | Symlink | Fifo = RegularFile.of(
            tuple(FileChunk(BlobRef(rnd.choice((ONE, TWO)), i, False), 100 + i) for i in range(rnd.randrange(4)))
        )
        if ino % 10 == 0:
            content = Symlink(b"t" * rnd.randrange(1, 90))
        elif ino % 101 == 0:
            content = Fifo()
        inodes.append(Inode(ino, ino, 5, 0o644, content, (), ino * 1_000_000_000))
    root = Directory(tuple(DirEntry(ino, b"entry %05d" % ino) for ino in numbers))
    return (Inode(1, 0, 0, 0o755, root, (), 0), *inodes)


def test_ordinary_inodes_are_answered() -> None:
    layer = ordinary_layer()
    table = table_of(layer, 3)
    answers = {inode.ino: check(table, inode.ino) for inode in layer}
    assert answers[1] == 2
    for inode in layer[1:]:
        assert answers[inode.ino] == (2 if isinstance(inode.content, RegularFile) else 1)
    size, others = table.total_size([inode.ino for inode in layer])
    assert others == []
    assert size == sum(inode.content.size for inode in layer if isinstance(inode.content, RegularFile))
    assert table.total_size([2, 3, 5])[1] == []
    assert not table.may_have_xattrs()


@pytest.mark.parametrize("content", [Symlink(b"target"), RegularFile(0, ()), Fifo()])
def test_one_xattr_is_enough(content: RegularFile | Symlink | Fifo) -> None:
    layer = (*ordinary_layer(), Inode(5000, 0, 0, 0o644, content, (Xattr(b"user.a", b""),), 0))
    table = table_of(layer, 3)
    assert table.may_have_xattrs()
    assert table.glance(5000) is None


@relaxed
@given(
    parts=st.lists(st.lists(st.sampled_from((ONE, TWO, THREE)), max_size=3), max_size=30),
    blob=digests,
    others=st.sets(st.integers(0, 29)),
)
def test_files_in_a_chunk(parts: list[list[Digest]], blob: Digest, others: set[int]) -> None:
    layer = []
    for number, blobs in enumerate(parts):
        chunks = tuple(FileChunk(BlobRef(digest, 10 * number + i, True), 5 + i) for i, digest in enumerate(blobs))
        content = Fifo() if number in others else RegularFile.of(chunks)
        layer.append(Inode(2 * number + 1, 0, 0, 0o644, content))
    table = table_of(tuple(layer), 3)
    for wanted in (ONE, blob):
        for first in range(0, 2 * len(parts), 5):
            stop = first + 40
            expected, after = [], stop
            for inode in layer:
                if not first <= inode.ino < stop or not isinstance(inode.content, RegularFile):
                    continue
                chunks = tuple(inode.content.chunks)
                if not chunks:
                    continue
                if chunks[0].blob.digest != wanted:
                    after = inode.ino
                    break
                expected.append(Resident(inode.ino, chunks[0].blob.offset, chunks[0].length, len(chunks) == 1))
                if len(chunks) > 1:
                    after = inode.ino
                    break
            assert table.files_in(wanted, first, stop) == (expected, after)
