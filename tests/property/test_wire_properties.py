"""Encoder, decoder, pycapnp and a plain encoder agree on every model, in every version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import capnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_models import (
    as_written,
    blob_refs,
    fill_ref,
    fill_vector,
    fill_verity,
    find_in,
    layers,
    plain_rootfs,
    plain_vector,
    verities,
    with_mtime,
)

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.model import (
    BlobRef,
    Directory,
    DirEntry,
    FileChunk,
    Inode,
    InodeTable,
    RegularFile,
    Symlink,
    Whiteout,
    Xattr,
    kind_of,
)
from puzzlefs.wire import codec_for, rootfs_version
from puzzlefs.wire.reference import decode_inode_vector, decode_rootfs, schema_directory

pytestmark = pytest.mark.property

VERSIONS = [1, 2, 3]
relaxed = settings(deadline=None, max_examples=70, suppress_health_check=list(HealthCheck))


def check_table(table: InodeTable, layer: Sequence[Inode]) -> None:
    """Every question that a table answers, against the plain answer from the model."""
    assert len(table) == len(layer)
    assert list(table) == list(layer)
    assert list(table.kinds()) == [(inode.ino, kind_of(inode.content)) for inode in layer]
    assert table.max_ino() == max((inode.ino for inode in layer), default=0)
    numbers = {inode.ino for inode in layer}
    for ino in numbers | {number + 1 for number in numbers} | {0, 1, (1 << 64) - 1}:
        expected = find_in(layer, ino)
        assert table.find(ino) == expected
        assert table.kind(ino) == (None if expected is None else kind_of(expected.content))
        if expected is not None and isinstance(expected.content, Directory):
            entry_numbers = [entry.ino for entry in expected.content.entries]
            assert table.entry_numbers(ino) == (entry_numbers, expected.content.look_below)
        else:
            assert table.entry_numbers(ino) is None


def vector(version: int, layer: Sequence[Inode]) -> tuple[bytes, InodeTable, tuple[Inode, ...]]:
    """A layer encoded, and decoded twice: by us and by pycapnp."""
    codec = codec_for(version)
    if version == 3:
        data = codec.encode_rootfs(layers=[layer], metadata_refs=[], verity={})
        (table,) = codec.decode_rootfs(data).tables
        return data, table, decode_rootfs(3, data).layers[0]
    data = codec.encode_inode_vector(layer)
    return data, codec.decode_inode_vector(data), decode_inode_vector(version, data)


@pytest.mark.parametrize("version", VERSIONS)
@relaxed
@given(layer=layers())
def test_a_layer_comes_back(version: int, layer: tuple[Inode, ...]) -> None:
    _data, table, reference = vector(version, layer)
    check_table(table, as_written(layer))
    assert list(reference) == with_mtime(layer)


@pytest.mark.parametrize("version", VERSIONS)
@relaxed
@given(layer=layers(), others=st.lists(layers(max_size=6), max_size=3), refs=blob_refs, verity=verities)
def test_the_bytes_are_those_of_a_plain_encoder(
    version: int,
    layer: tuple[Inode, ...],
    others: list[tuple[Inode, ...]],
    refs: list[BlobRef],
    verity: dict[Digest, VerityDigest],
) -> None:
    codec = codec_for(version)
    stack = [layer, *others] if version == 3 else []
    if version == 3:
        refs = []
    else:
        assert codec.encode_inode_vector(layer) == plain_vector(layer, version)
    encoded = codec.encode_rootfs(layers=stack, metadata_refs=refs, verity=verity)
    assert encoded == plain_rootfs(stack, refs, verity, version)


@pytest.mark.parametrize("version", VERSIONS)
@relaxed
@given(stack=st.lists(layers(max_size=8), max_size=4), refs=blob_refs, verity=verities)
def test_a_rootfs_comes_back(
    version: int, stack: list[tuple[Inode, ...]], refs: list[BlobRef], verity: dict[Digest, VerityDigest]
) -> None:
    if version == 3:
        refs = []
    else:
        stack = []
    codec = codec_for(version)
    data = codec.encode_rootfs(layers=stack, metadata_refs=refs, verity=verity)
    assert rootfs_version(data) == version
    rootfs = codec.decode_rootfs(data)
    reference = decode_rootfs(version, data)
    assert rootfs.version == reference.version == version
    assert rootfs.metadata_refs == reference.metadata_refs == tuple(refs)
    assert len(rootfs.tables) == len(reference.layers) == len(stack)
    for table, theirs, layer in zip(rootfs.tables, reference.layers, stack, strict=True):
        assert list(table) == as_written(layer)
        assert list(theirs) == with_mtime(layer)
    assert dict(rootfs.verity) == reference.verity == verity
    assert list(rootfs.verity) == sorted(verity)
    for digest, value in verity.items():
        assert rootfs.verity[digest] == value
    assert Digest.of(b"absent") not in rootfs.verity


def schemas(version: int, directory: Path) -> tuple[Any, Any]:
    """The modules of Rootfs and InodeVector below ``directory``."""
    base = directory / (f"v{version}" if version > 1 else ".")
    parser = capnp.SchemaParser()
    metadata = base / "metadata.capnp"
    manifest = base / "manifest.capnp"
    rootfs = parser.load(str(manifest if version < 3 else metadata))
    return rootfs, parser.load(str(metadata)) if version < 3 else rootfs


SCHEMAS = {version: schemas(version, schema_directory()) for version in VERSIONS}


def newer_schemas(directory: Path) -> dict[int, tuple[Any, Any]]:
    """The schemas with a number and bytes added at the end of every struct, as a later version could."""
    for path in schema_directory().rglob("*.capnp"):
        lines = []
        fields = 0
        for line in path.read_text().splitlines():
            if line.startswith("struct "):
                fields = 0
            fields += line.count(" @")
            if line == "}":
                lines += [f"  laterNumber @{fields} :UInt64;", f"  laterBytes @{fields + 1} :Data;"]
            lines.append(line)
        copy = directory / path.relative_to(schema_directory())
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("\n".join(lines))
    return {version: schemas(version, directory) for version in VERSIONS}


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Any, Any]]:
    return newer_schemas(tmp_path_factory.mktemp("newer"))


first_segments = st.sampled_from([1, 2, 7, 64, 1024, 100_000])


def foreign_message(
    schema: tuple[Any, Any],
    version: int,
    layer: Sequence[Inode],
    verity: dict[Digest, VerityDigest],
    words: int,
) -> InodeTable:
    """A layer that pycapnp's builder has written, as our decoder sees it; verity checked on the way."""
    codec = codec_for(version)
    rootfs = schema[0].Rootfs.new_message(num_first_segment_words=words)
    rootfs.manifestVersion = version
    if hasattr(rootfs, "laterNumber"):
        rootfs.laterNumber, rootfs.laterBytes = 7, b"later"
    fill_verity(rootfs, verity)
    ref = BlobRef(Digest.of(b"layer"), 5, True)
    metadatas = rootfs.init("metadatas", 1)
    if version == 3:
        fill_vector(version, metadatas[0], layer)
    else:
        fill_ref(metadatas[0], ref)
    decoded = codec.decode_rootfs(rootfs.to_bytes())
    assert dict(decoded.verity) == verity
    if version == 3:
        return decoded.tables[0]
    assert decoded.metadata_refs == (ref,)
    message = schema[1].InodeVector.new_message(num_first_segment_words=words)
    fill_vector(version, message, layer)
    return codec.decode_inode_vector(message.to_bytes())


@pytest.mark.parametrize("version", VERSIONS)
@relaxed
@given(layer=layers(max_size=12), verity=verities, words=first_segments)
def test_messages_of_another_builder_are_read(
    version: int, layer: tuple[Inode, ...], verity: dict[Digest, VerityDigest], words: int
) -> None:
    check_table(foreign_message(SCHEMAS[version], version, layer, verity, words), with_mtime(layer))


@pytest.mark.parametrize("version", VERSIONS)
@relaxed
@given(layer=layers(max_size=12), verity=verities, words=first_segments)
def test_unknown_later_fields_are_ignored(
    newer: dict[int, tuple[Any, Any]],
    version: int,
    layer: tuple[Inode, ...],
    verity: dict[Digest, VerityDigest],
    words: int,
) -> None:
    check_table(foreign_message(newer[version], version, layer, verity, words), with_mtime(layer))


def large_layer(count: int) -> list[Inode]:
    """A layer that fills several segments."""
    rnd = random.Random(count)
    digests = [Digest.of(rnd.randbytes(8)) for _ in range(500)]

    def chunk() -> FileChunk:
        return FileChunk(
            BlobRef(rnd.choice(digests), rnd.randrange(1 << 18), rnd.random() < 0.5), rnd.randrange(1 << 18)
        )

    found = []
    for ino in range(1, count):
        kind = rnd.random()
        xattrs: tuple[Xattr, ...] = ()
        if kind < 0.05:
            names = [rnd.randbytes(rnd.randrange(1, 100)) for _ in range(rnd.randrange(40))]
            content: Any = Directory(tuple(DirEntry(rnd.randrange(count), name) for name in names))
        elif kind < 0.15:
            content = Symlink(rnd.randbytes(rnd.randrange(1, 60)))
        elif kind < 0.17:
            content = Whiteout()
        elif kind < 0.18:
            content = RegularFile.of(tuple(chunk() for _ in range(rnd.randrange(2000))))
        else:
            content = RegularFile.of(tuple(chunk() for _ in range(rnd.randrange(4))))
        if rnd.random() < 0.02:
            xattrs = (Xattr(b"user.a", rnd.randbytes(rnd.randrange(3000))), Xattr(b"user.b", b""))
        found.append(Inode(ino, 0, 0, 0o644, content, xattrs))
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_many_segments(version: int) -> None:
    layer = large_layer(4000)
    verity = {Digest.of(bytes([i, j])): VerityDigest(bytes([i] * 32)) for i in range(100) for j in range(50)}
    codec = codec_for(version)
    data, table, reference = vector(version, layer)
    assert int.from_bytes(data[:4], "little") + 1 >= 7
    assert list(table) == layer
    assert list(reference) == with_mtime(layer)
    if version == 3:
        data = codec.encode_rootfs(layers=[layer, layer[::7]], metadata_refs=[], verity=verity)
        assert data == plain_rootfs([layer, layer[::7]], [], verity, 3)
    else:
        assert data == plain_vector(layer, version)
