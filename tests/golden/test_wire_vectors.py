"""Every metadata and rootfs blob of the original implementation: read, and written again to the same bytes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.model import ROOT_INO, Directory, Inode, InodeTable, RegularFile, Whiteout
from puzzlefs.wire import WireRootfs, codec_for, rootfs_version
from puzzlefs.wire.reference import decode_inode_vector, decode_rootfs

pytestmark = pytest.mark.golden

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
LAYOUTS = ["v1", "v2", "v3", "v1-zstd", "v2-zstd", "v3-zstd"]
TAGS = ["base", "fresh", "second"]
IMAGES = [(layout, tag) for layout in LAYOUTS for tag in TAGS]
ROOTFS = "application/vnd.puzzlefs.image.rootfs.v1"


def blob(layout: str, name: str) -> bytes:
    return (VECTORS / layout / "blobs" / "sha256" / name.removeprefix("sha256:")).read_bytes()


@cache
def rootfs_blob(layout: str, tag: str) -> tuple[int, bytes]:
    """The version and the rootfs blob of an image."""
    index: dict[str, Any] = json.loads((VECTORS / layout / "index.json").read_bytes())
    (digest,) = [
        entry["digest"]
        for entry in index["manifests"]
        if entry["annotations"].get("org.opencontainers.image.ref.name") == tag
    ]
    version = int(layout[1])
    if version == 3:
        layers = json.loads(blob(layout, digest))["layers"]
        (digest,) = [layer["digest"] for layer in layers if layer["mediaType"] == ROOTFS]
    return version, blob(layout, digest)


def tables_of(layout: str, version: int, rootfs: WireRootfs) -> list[InodeTable]:
    refs = [codec_for(version).decode_inode_vector(blob(layout, str(ref.digest))) for ref in rootfs.metadata_refs]
    return [*rootfs.tables, *refs]


def with_mtime(inodes: InodeTable) -> list[Inode]:
    return [inode._replace(mtime_ns=0) for inode in inodes]


@pytest.mark.parametrize(("layout", "tag"), IMAGES)
def test_rootfs_blobs_are_written_again_to_the_same_bytes(layout: str, tag: str) -> None:
    version, data = rootfs_blob(layout, tag)
    assert rootfs_version(data) == version
    rootfs = codec_for(version).decode_rootfs(data)
    layers = [list(table) for table in rootfs.tables]
    assert len(layers or rootfs.metadata_refs) == (2 if tag == "second" else 1)
    again = codec_for(version).encode_rootfs(layers=layers, metadata_refs=rootfs.metadata_refs, verity=rootfs.verity)
    assert again == data


@pytest.mark.parametrize(("layout", "tag"), [image for image in IMAGES if not image[0].startswith("v3")])
def test_metadata_blobs_are_written_again_to_the_same_bytes(layout: str, tag: str) -> None:
    version, data = rootfs_blob(layout, tag)
    codec = codec_for(version)
    for ref in codec.decode_rootfs(data).metadata_refs:
        vector = blob(layout, str(ref.digest))
        assert int.from_bytes(vector[:4], "little") + 1 >= 3, "of several segments"
        table = codec.decode_inode_vector(vector)
        assert len(table) > 300
        assert codec.encode_inode_vector(list(table)) == vector


@pytest.mark.parametrize(("layout", "tag"), IMAGES)
def test_our_decoder_says_what_pycapnp_says(layout: str, tag: str) -> None:
    version, data = rootfs_blob(layout, tag)
    rootfs = codec_for(version).decode_rootfs(data)
    reference = decode_rootfs(version, data)
    assert rootfs.metadata_refs == reference.metadata_refs
    assert dict(rootfs.verity) == reference.verity
    layers = reference.layers or [
        decode_inode_vector(version, blob(layout, str(ref.digest))) for ref in reference.metadata_refs
    ]
    tables = tables_of(layout, version, rootfs)
    assert [with_mtime(table) for table in tables] == [list(layer) for layer in layers]
    for table in tables:
        assert all(inode.mtime_ns is None for inode in table)


@pytest.mark.parametrize(("layout", "tag"), IMAGES)
def test_verity_digests_are_there_for_every_chunk(layout: str, tag: str) -> None:
    version, data = rootfs_blob(layout, tag)
    rootfs = codec_for(version).decode_rootfs(data)
    chunks: set[Digest] = set()
    for table in tables_of(layout, version, rootfs)[:1]:
        for inode in table:
            if isinstance(inode.content, RegularFile):
                chunks |= {chunk.blob.digest for chunk in inode.content.chunks}
    assert len(chunks) > 5
    assert chunks <= set(rootfs.verity)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deltas_of_the_original_keep_deleted_names(layout: str) -> None:
    """White-outs among the entries are what readers have to live with."""
    version, data = rootfs_blob(layout, "second")
    top, bottom = tables_of(layout, version, codec_for(version).decode_rootfs(data))
    root = top.find(ROOT_INO)
    assert root is not None
    assert isinstance(root.content, Directory)
    gone = next(entry.ino for entry in root.content.entries if entry.name == b"gone")
    assert top.find(gone) == Inode(gone, 0, 0, 0o644, Whiteout())
    found = bottom.find(gone)
    assert found is not None
    assert isinstance(found.content, Directory)


def test_one_version_read_as_another_is_refused() -> None:
    for version in (1, 2, 3):
        for other in {1, 2, 3} - {version}:
            with pytest.raises(FormatError, match=f"format version {version}, not {other}"):
                codec_for(other).decode_rootfs(rootfs_blob(f"v{version}", "base")[1])
