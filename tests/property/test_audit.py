"""What the audit of a table passes as ordinary decodes, and takes of blobs what decoding it says."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_quick_look import ordinary_layer, table_of
from wire_models import changes_of_bytes, damaged_table, digests, layers

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.model import Directory, Fifo, Inode, InodeTable, MetadataLayer, RegularFile, Socket
from puzzlefs.vfs import Tree
from puzzlefs.wire import codec_for, encode_compact_rootfs
from puzzlefs.wire.audit import audit
from puzzlefs.wire.table import WireInodeTable
from puzzlefs.wire.verity_table import VerityTable

pytestmark = pytest.mark.property

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))


def check(table: InodeTable) -> int:
    """Compare with the slow way; how many inodes were ordinary."""
    assert isinstance(table, WireInodeTable)
    found = audit(table)
    ordinary = sorted(set(range(len(table))) - set(found.unusual))
    raw: dict[Digest, int] = {}
    content: dict[Digest, int] = {}
    for position in ordinary:
        try:
            inode = table.decode(position)
        except FormatError as error:
            assert "overlap" in str(error)  # the audit has paid for it; who comes second may find nothing left
            continue
        assert not inode.xattrs
        assert isinstance(inode.content, RegularFile | Directory | Fifo | Socket)
        glance = table.glance(inode.ino)
        assert glance is not None
        assert (glance.uid, glance.gid) == (inode.uid, inode.gid)
        if isinstance(inode.content, RegularFile):
            for chunk in inode.content.chunks:
                ends = content if chunk.blob.compressed else raw
                ends[chunk.blob.digest] = max(ends.get(chunk.blob.digest, 0), chunk.blob.offset + chunk.length)
        elif isinstance(inode.content, Directory):
            assert table.names(inode.ino) is not None
    assert found.raw_ends == raw
    assert found.content_ends == content
    return len(ordinary)


@pytest.mark.parametrize("version", [1, 2, 3])
@relaxed
@given(layer=layers())
def test_on_any_layer(version: int, layer: tuple[Inode, ...]) -> None:
    check(table_of(layer, version))


@relaxed
@given(layer=layers(), changes=changes_of_bytes)
def test_on_a_damaged_layer(layer: tuple[Inode, ...], changes: list[tuple[int, int]]) -> None:
    table = damaged_table(layer, changes)
    if table is None:
        return
    check(table)


@pytest.mark.parametrize("compact", [False, True])
def test_files_and_directories_are_ordinary(compact: bool) -> None:
    layer = ordinary_layer()
    table = table_of(layer, 3)
    if compact:
        table = codec_for(3).decode_rootfs(encode_compact_rootfs(3, [layer], {})).tables[0]
    ordinary = sum(1 for inode in layer if isinstance(inode.content, RegularFile | Directory | Fifo))
    assert check(table) == ordinary > 2000
    assert Tree([table]).attributes(1).nlink == 2


def test_what_is_not_read_from_a_message_is_not_ordinary() -> None:
    layer = ordinary_layer()
    found = audit(MetadataLayer(layer))
    assert list(found.unusual) == list(range(len(layer)))
    assert (found.raw_ends, found.content_ends) == ({}, {})


@relaxed
@given(
    pairs=st.dictionaries(digests, digests.map(VerityDigest), max_size=6),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3),
    compact=st.booleans(),
    missing=digests,
)
def test_all_verity_digests_at_once(
    pairs: dict[Digest, VerityDigest], changes: list[tuple[int, int]], compact: bool, missing: Digest
) -> None:
    codec = codec_for(3)
    encoded = codec.encode_rootfs(layers=[()], metadata_refs=[], verity=pairs)
    data = bytearray(encode_compact_rootfs(3, [()], pairs) if compact else encoded)
    for position, value in changes:
        data[position % len(data)] = value
    try:
        table = codec.decode_rootfs(bytes(data)).verity
    except FormatError:
        return
    assert isinstance(table, VerityTable)
    if (found := table.ordinary_pairs()) is not None:
        assert found == [table.pair(index) for index in range(len(table))]
        assert [digest for digest, _ in found] == sorted({digest for digest, _ in found})
    assert changes or (found is not None and dict(found) == pairs == dict(table.items()))
    for digest in (*pairs, missing):
        try:
            value = table.get(digest)
        except FormatError:
            assert changes
        else:
            assert changes or value == pairs.get(digest)
