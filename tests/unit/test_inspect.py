"""``inspect``: the numbers of an image, and its decoded objects."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.forge import Forge

from puzzlefs.builder import StorageOptions, build
from puzzlefs.compression import compress_chunk
from puzzlefs.digest import Digest
from puzzlefs.errors import IntegrityError, NotFoundError
from puzzlefs.image import open_image
from puzzlefs.model import BlobRef, Fifo, FileChunk, Inode, Whiteout
from puzzlefs.usage import inode_in_layers, inspect_image, manifest_text, rootfs_text
from puzzlefs.usage.inspection import SizeClass

pytestmark = pytest.mark.unit

DATA = random.Random(5).randbytes(200_000)
VERSIONS = ("v1", "v2", "v3", "v1-zstd", "v2-zstd", "v3-zstd")
TAGS = ("base", "fresh", "second")
_KINDS = {"file": "regular", "dir": "directory", "char": "char-device", "block": "block-device"}


@pytest.fixture(params=[1, 2, 3])
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Forge:
    return Forge(tmp_path / "layout", request.param)


def small(forge: Forge) -> list[Inode]:
    """A tree with two files that share a chunk, and one whose chunk is compressed."""
    whole = forge.chunk(DATA[:5000])
    return [
        f.directory(1, {b"a": 2, b"b": 3, b"c": 4, b"pipe": 5, b"again": 4, b"l\xff": 6}),
        f.regular(2, whole),
        f.regular(3, whole._replace(length=1000)),
        f.regular(4, forge.chunk(b"text" * 1000, compressed=True), xattrs={b"user.\xfe": b"\x00\xff"}),
        f.inode(5, Fifo()),
        f.symlink(6, b"\xff/a"),
    ]


@pytest.mark.parametrize("layout", VERSIONS)
@pytest.mark.parametrize("tag", TAGS)
def test_images_of_the_original(vectors: Path, expected: dict[str, Any], layout: str, tag: str) -> None:
    report = inspect_image(f"{vectors / layout}:{tag}")
    tree = expected["trees"][tag].values()
    assert report.digest == expected["digests"][layout][tag]
    assert report.format_version == int(layout[1])
    assert report.names == len(tree) - 1
    assert report.malformed == 0
    kinds: Counter[str] = Counter()
    size = 0.0
    for node in tree:  # a name of a file with n names is the n-th part of it
        kinds[_KINDS.get(node["type"], node["type"])] += 1 / node.get("nlink", 1) if node["type"] != "dir" else 1
        size += node.get("size", 0) / node.get("nlink", 1)
    assert {kind: round(count) for kind, count in kinds.items()} == report.kinds
    assert report.inodes == sum(report.kinds.values())
    assert report.apparent_bytes == round(size)
    assert report.timestamps == "none"
    assert len(report.metadata_layers) == (2 if tag == "second" else 1)
    assert (report.chunks.compressed > 0) is ("zstd" in layout)
    assert (report.stored_bytes < report.unique_bytes) is ("zstd" in layout)
    assert report.annotations == {"org.opencontainers.image.ref.name": tag}


def test_chunks_are_counted_and_sized(forge: Forge) -> None:
    report = inspect_image(forge.image(small(forge)))
    compressed = forge.blob_path(forge.chunk(b"text" * 1000, compressed=True).blob.digest).stat().st_size
    assert compressed < 4000
    assert (report.apparent_bytes, report.unique_bytes) == (10_000, 9000)
    assert report.stored_bytes == 5000 + compressed
    chunks = report.chunks
    assert (chunks.number, chunks.compressed, chunks.missing, chunks.hidden) == (2, 1, 0, 0)
    assert (chunks.smallest_bytes, chunks.largest_bytes, chunks.mean_bytes) == (4000, 5000, 4500)
    assert chunks.sizes == (SizeClass(None, 4096, 1, 4000), SizeClass(4096, 8192, 1, 5000))
    assert report.kinds == {"fifo": 1, "directory": 1, "regular": 3, "symlink": 1}
    assert (report.inodes, report.names) == (6, 6)


def test_sizes_of_chunks_by_powers_of_two(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    sizes = (1, 4096, 4097, 8192, 32769, 1 << 20, (1 << 20) + 1)
    files = [f.regular(ino, forge.chunk(bytes([ino]) * size)) for ino, size in enumerate(sizes, 2)]
    report = inspect_image(forge.image([f.directory(1, {b"%d" % file.ino: file.ino for file in files}), *files]))
    assert [(size.over_bytes, size.upto_bytes, size.chunks, size.bytes) for size in report.chunks.sizes] == [
        (None, 4096, 2, 4097),
        (4096, 8192, 2, 4097 + 8192),
        (8192, 16384, 0, 0),
        (16384, 32768, 0, 0),
        (32768, 65536, 1, 32769),
        (65536, 131072, 0, 0),
        (131072, 262144, 0, 0),
        (262144, 524288, 0, 0),
        (524288, 1048576, 1, 1 << 20),
        (1048576, None, 1, (1 << 20) + 1),
    ]


def test_an_image_without_content(forge: Forge) -> None:
    report = inspect_image(forge.image([f.directory(1)]))
    assert (report.inodes, report.names, report.apparent_bytes, report.chunks.number) == (1, 0, 0, 0)
    assert report.chunks.sizes == ()
    assert report.frames is None


def test_timestamps(forge: Forge) -> None:
    without, with_times = [f.directory(1)], [f.directory(1, mtime_ns=5)]
    assert inspect_image(forge.image(without, tag="a")).timestamps == "none"
    assert inspect_image(forge.image(with_times, tag="b")).timestamps == "all"
    report = inspect_image(forge.image(with_times, without, tag="c"))
    assert report.timestamps == "some"
    assert [layer.has_timestamps for layer in report.metadata_layers] == [True, False]


def test_frames_are_told_from_the_seek_tables(tmp_path: Path, vectors: Path) -> None:
    original = inspect_image(f"{vectors / 'v3-zstd'}:base").frames
    assert original is not None
    assert original.seekable_chunks == original.examined_chunks
    assert original.largest_bytes == 4096  # of every 4 KiB of input the original makes a frame
    older = inspect_image(f"{vectors / 'v1-zstd'}:base").frames
    assert older is not None
    assert (older.seekable_chunks, older.frames) == (0, 0)
    forge = Forge(tmp_path / "layout")
    stored = compress_chunk(b"text" * 1000, 3)
    chunk = FileChunk(BlobRef(forge.blob(stored), 0, True), 4000)
    ours = inspect_image(forge.image([f.directory(1, {b"a": 2}), f.regular(2, chunk)])).frames
    assert ours is not None
    assert (ours.examined_chunks, ours.seekable_chunks, ours.frames) == (1, 1, 1)
    assert (ours.smallest_bytes, ours.mean_bytes, ours.largest_bytes) == (4000, 4000, 4000)


@pytest.mark.parametrize("tail", [b"", b"\xff" * 17, b"\x00" * 4 + b"\xff" * 4 + b"\x00" + b"\xb1\xea\x92\x8f"])
def test_what_is_no_seek_table_is_passed_over(tmp_path: Path, tail: bytes) -> None:
    forge = Forge(tmp_path / "layout")
    chunk = FileChunk(BlobRef(forge.blob(b"(" * 30 + tail), 0, True), 4000)
    report = inspect_image(forge.image([f.directory(1, {b"a": 2}), f.regular(2, chunk)]))
    assert report.frames is not None
    assert report.frames.frames == 0


def test_contents_are_not_read(forge: Forge) -> None:
    reference = forge.image(small(forge))
    before = inspect_image(reference)
    for inode in small(forge)[1:4]:
        path = forge.blob_path(inode.content.chunks[0].blob.digest)  # type: ignore[union-attr]
        size = path.stat().st_size
        path.unlink()
        path.touch()
        os.truncate(path, size)
    assert inspect_image(reference) == before


def test_missing_and_hidden_chunks(forge: Forge) -> None:
    below = small(forge)
    reference = forge.image([f.regular(2), f.inode(3, Whiteout())], below)
    report = inspect_image(reference)
    assert report.chunks.number == 1
    assert (report.chunks.hidden, report.chunks.hidden_bytes) == (1, 5000)
    forge.blob_path(below[3].content.chunks[0].blob.digest).unlink()  # type: ignore[union-attr]
    report = inspect_image(reference)
    assert (report.chunks.missing, report.stored_bytes, report.unique_bytes) == (1, 0, 4000)


@pytest.mark.parametrize("layout", VERSIONS)
def test_hidden_chunks_of_a_delta(vectors: Path, layout: str) -> None:
    """Also where the manifest does not list them, as in deltas of the original."""
    with open_image(f"{vectors / layout}:second") as image:
        visible = {
            chunk.blob.digest
            for ino in image.tree.links().visible
            for chunk in getattr(image.tree.inode(ino).content, "chunks", ())
        }
        referred = {
            chunk.blob.digest
            for table in image.rootfs.metadata_layers
            for inode in table
            for chunk in getattr(inode.content, "chunks", ())
        }
        sizes = [image.layout.blob_size(digest) or 0 for digest in referred - visible]
        report = inspect_image(image)
    assert report.chunks.number == len(visible)
    assert sizes
    assert (report.chunks.hidden, report.chunks.hidden_bytes) == (len(sizes), sum(sizes))


def test_malformed_inodes_are_counted(forge: Forge) -> None:
    inodes = [f.directory(1, {b"a": 2, b"gone": 77}), f.regular(2, forge.chunk(b"0123456789", length=0x1234567))]
    reference = forge.patched(inodes, lambda data: f.renumber(data, {0x1234567: 1 << 63}))
    report = inspect_image(reference)
    assert (report.malformed, report.apparent_bytes, report.chunks.number) == (2, 0, 0)


def test_the_digest_is_checked(forge: Forge) -> None:
    reference = forge.image([f.directory(1)])
    report = inspect_image(reference)
    assert inspect_image(reference, digest=report.digest) == report
    with pytest.raises(IntegrityError):
        inspect_image(reference, digest="0" * 64)


def test_annotations_and_compressed_metadata(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(200):
        (tmp_path / "tree" / f"a file of number {number}").write_text(str(number))
    build(
        tmp_path / "tree",
        f"{tmp_path / 'images'}:t",
        compression=True,
        storage=StorageOptions(compress_metadata=True),
        cache=None,
    )
    report = inspect_image(f"{tmp_path / 'images'}:t")
    assert report.metadata_is_compressed
    assert report.metadata_bytes < report.metadata_layers[0].bytes
    assert list(report.manifest_annotations) == ["io.puzzlefsoci.puzzlefs.puzzlefs_verity_root_hash"]


# ---- decoded objects


def test_an_inode_as_json(forge: Forge) -> None:
    with open_image(forge.image([f.inode(3, Whiteout())], small(forge))) as image:
        whole = inode_in_layers(image, 4)
        chunk = small(forge)[3].content.chunks[0]  # type: ignore[union-attr]
        assert whole == {
            "ino": 4,
            "kind": "regular",
            "permissions": "0644",
            "uid": 0,
            "gid": 0,
            "mtime_ns": None,
            "xattrs": [{"key": "user.\udcfe", "value": "00ff"}],
            "size": 4000,
            "chunks": [{"digest": chunk.blob.digest.oci, "offset": 0, "compressed": True, "length": 4000}],
            "layer": 1,
        }
        assert inode_in_layers(image, 3)["kind"] == "whiteout"
        assert inode_in_layers(image, 3)["layer"] == 2
        for ino in (0, 7, -1, 1 << 64):
            with pytest.raises(NotFoundError, match="up to 6"):
                inode_in_layers(image, ino)


def test_bytes_that_are_no_text_come_back(forge: Forge) -> None:
    with open_image(forge.image(small(forge))) as image:
        text = json.dumps(inode_in_layers(image, 1))
        names = [entry["name"].encode("utf-8", "surrogateescape") for entry in json.loads(text)["entries"]]
        assert names == [b"a", b"b", b"c", b"pipe", b"again", b"l\xff"]
        target = json.loads(json.dumps(inode_in_layers(image, 6)))["target"]
        assert target.encode("utf-8", "surrogateescape") == b"\xff/a"


@pytest.mark.parametrize("layout", VERSIONS)
def test_the_rootfs_as_json_has_everything(vectors: Path, layout: str) -> None:
    with open_image(f"{vectors / layout}:second") as image:
        document = json.loads("".join(rootfs_text(image)))
        assert document["format_version"] == image.version
        assert [len(layer["inodes"]) for layer in document["metadata_layers"]] == [
            len(table) for table in image.rootfs.metadata_layers
        ]
        top = document["metadata_layers"][0]["inodes"]
        assert [inode["ino"] for inode in top] == [inode.ino for inode in image.rootfs.metadata_layers[0]]
        assert "whiteout" in {inode["kind"] for inode in top}
        assert document["fs_verity"] == {blob.oci: str(verity) for blob, verity in image.rootfs.verity.items()}
        assert [ref["digest"] for ref in document.get("metadata_blobs", [])] == [
            ref.digest.oci for ref in image.metadata_refs
        ]


@pytest.mark.parametrize("layout", ["v1", "v3"])
def test_the_manifest_as_json(vectors: Path, layout: str) -> None:
    with open_image(f"{vectors / layout}:base") as image:
        document = json.loads("".join(manifest_text(image)))
        if layout == "v3":
            stored = image.layout.blob_path(image.manifest_digest).read_bytes()
            assert document == json.loads(stored)
            assert Digest.of(stored) == image.manifest_digest
        else:
            assert document == json.loads("".join(rootfs_text(image)))
