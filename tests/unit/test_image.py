"""Opening and committing images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support import forge as f
from support import trees
from support.forge import Forge

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import (
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
    TagNotFoundError,
)
from puzzlefs.image import Image, dialect_of, open_image
from puzzlefs.image_commit import StoredChunk, commit_again, commit_image
from puzzlefs.model import Inode
from puzzlefs.oci import Dialect, Index, make_reference, media_types
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.unit

VERSIONS = [1, 2, 3]
each_version = pytest.mark.parametrize("version", VERSIONS)


def simple(forge: Forge, text: bytes = b"text") -> list[Inode]:
    return [f.directory(1, {b"file": 2}), f.regular(2, forge.chunk(text))]


@each_version
def test_what_is_committed_comes_back(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    with Layout.open(forge.path) as layout, BlobWriter(layout) as writer:
        chunk = forge.chunk(b"content", compressed=True)
        committed = commit_image(
            layout,
            "tag",
            version=version,
            layers=[[f.directory(1, {b"a": 2}), f.regular(2, chunk)]],
            chunks=[StoredChunk(chunk.blob.digest, 99, True)] * 2 + [StoredChunk(Digest.of(b""), 0, False)],
            verity={chunk.blob.digest: verity_digest(b"whatever")},
            writer=writer,
        )
        digest = committed.verity
        size = layout.blob_size(chunk.blob.digest)
        assert size is not None
        assert commit_again(layout, "again", committed, [(chunk.blob.digest, size)], writer)
        assert not commit_again(layout, "never", committed, [(Digest.of(b"missing"), 7)], writer)
    with open_image(f"{forge.path}:again", digest=digest) as image:
        assert image.manifest_digest == committed.manifest[0]
    with open_image(f"{forge.path}:tag", digest=digest) as image:
        assert image.version == version
        assert image.verity_digest() == digest
        assert image.read(2, 0, 100) == b"content"
        assert image.rootfs.verity[chunk.blob.digest] == verity_digest(b"whatever")
        if version == 3:
            assert image.manifest is not None
            kinds = [(layer.media_type, layer.size) for layer in image.manifest.layers()]
            assert kinds[1:] == [(media_types.FILE_DATA_ZSTD, 99)] * 2 + [(media_types.FILE_DATA, 0)]
            rootfs = image.manifest.rootfs()
            data = image.blobs.read(rootfs.digest, limit=1 << 20)
            assert rootfs.annotation(media_types.VERITY_ROOT_HASH) == verity_digest(data).hex()
            assert rootfs.size == len(data)
            assert forge.blob_path(Digest.of(b"{}")).read_bytes() == b"{}"
        else:
            assert image.manifest is None
            vector = image.blobs.read(image.metadata_refs[0].digest, limit=1 << 20)
            assert image.rootfs.verity[image.metadata_refs[0].digest] == verity_digest(vector)
            assert len(image.rootfs.verity) == 2


@each_version
def test_what_a_commit_leaves_in_the_index(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    forge.image(simple(forge))
    document = json.loads((forge.path / "index.json").read_bytes())
    (descriptor,) = document["manifests"]
    assert descriptor["annotations"] == {media_types.REF_NAME: f.TAG}
    assert descriptor["size"] == os.stat(forge.path / "blobs" / "sha256" / descriptor["digest"][7:]).st_size
    if version == 3:
        assert descriptor["mediaType"] == media_types.MANIFEST
        assert descriptor["platform"]["os"] == "linux"
    else:
        assert list(descriptor) == ["digest", "size", "media_type", "annotations"]
        assert (document["schemaVersion"], document["annotations"]) == (-1, {})


@each_version
def test_using_a_tag_again_moves_it(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    reference = forge.image(simple(forge, b"old"))
    with open_image(reference) as old:
        forge.image(simple(forge, b"new"))
        assert old.read(2, 0, 9) == b"old"
        with open_image(reference) as new:
            assert new.read(2, 0, 9) == b"new"


@each_version
def test_what_fails_before_the_index_is_written_leaves_every_tag(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge = Forge(tmp_path / "layout", version)
    reference = forge.image(simple(forge, b"old"))
    real = Layout.update_index
    order: list[str] = []

    def failing(self: Layout, change: object) -> None:
        named = {path.name for path in (forge.path / "blobs" / "sha256").iterdir()}
        order.append("index")
        assert not any(name.startswith(".tmp") for name in named), "blobs are whole before the index names them"
        raise StorageError("the power went")

    monkeypatch.setattr(Layout, "update_index", failing)
    with pytest.raises(StorageError):
        forge.image(simple(forge, b"new"))
    assert order == ["index"]
    monkeypatch.setattr(Layout, "update_index", real)
    with open_image(reference) as image:
        assert image.read(2, 0, 9) == b"old"


@each_version
def test_two_images_share_what_is_equal(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    one = forge.image(simple(forge), tag="one")
    count = len(os.listdir(forge.path / "blobs" / "sha256"))
    two = forge.image(simple(forge), tag="two")
    assert len(os.listdir(forge.path / "blobs" / "sha256")) == count
    with open_image(one) as first, open_image(two) as second:
        assert first.manifest_digest == second.manifest_digest
        assert trees.in_image(first) == trees.in_image(second)


def test_which_layout_holds_which_version() -> None:
    assert [dialect_of(version) for version in VERSIONS] == [Dialect.PUZZLEFS_DEV, Dialect.PUZZLEFS_DEV, Dialect.OCI]


@each_version
def test_ways_to_write_a_digest(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    reference = forge.image(simple(forge))
    with open_image(reference) as image:
        digest = image.verity_digest()
    for text in (digest, digest.hex(), digest.hex().upper(), f" {digest.hex()}\n", f"sha256:{digest.hex()}"):
        open_image(reference, digest=text).close()
    for nonsense in ("", "x", digest.hex()[:-1], digest.hex() + "0", "g" * 64, "sha512:" + digest.hex()):
        with pytest.raises(InvalidArgumentError, match="build printed"):
            open_image(reference, digest=nonsense)
    with pytest.raises(IntegrityError) as caught:
        open_image(reference, digest=VerityDigest(bytes(32)))
    assert caught.value.actual == digest.hex()


def test_references(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "with:colon")
    forge.image(simple(forge), tag="a/b")
    for reference in (f"{forge.path}:a/b", make_reference(forge.path, "a/b")):
        with open_image(reference) as image:
            assert image.reference == make_reference(forge.path, "a/b")
    with pytest.raises(TagNotFoundError, match="its tags are: a/b") as caught:
        open_image(f"{forge.path}:c")
    assert (caught.value.tag, caught.value.available) == ("c", ("a/b",))
    with pytest.raises(NotFoundError, match="is not a directory"):
        open_image(f"{tmp_path}/missing:tag")
    with pytest.raises(InvalidArgumentError):
        open_image("nothing")


def test_a_layout_without_tags_says_so(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    with pytest.raises(TagNotFoundError, match="no tags at all"):
        open_image(forge.reference())


def test_kernel_mode_needs_something_to_compare_with(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    with pytest.raises(InvalidArgumentError, match="digest"):
        open_image(forge.image(simple(forge)), verity="kernel")


@each_version
def test_an_image_that_cannot_be_opened_leaves_no_descriptor(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    reference = forge.raw_rootfs(b"nonsense")
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(FormatError):
            open_image(reference)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_image_gives_its_descriptors_back(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    reference = forge.image(simple(forge))
    before = sorted(os.listdir("/proc/self/fd"))
    with open_image(reference) as image:
        image.read(2, 0, 4)
        image.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


@each_version
def test_reading_is_exact(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    whole = os.urandom(300_000)
    chunks = [
        forge.chunk(whole[:100_000]),
        forge.chunk(b"before" + whole[100_000:250_000] + b"after", compressed=True, offset=6, length=150_000),
        forge.chunk(whole[250_000:]),
    ]
    with open_image(forge.image([f.directory(1, {b"f": 2}), f.regular(2, *chunks)])) as image:
        for offset, size in ((0, 300_000), (0, 1), (99_999, 2), (99_999, 150_002), (299_999, 10), (300_000, 1), (5, 0)):
            assert image.read(2, offset, size) == whole[offset : offset + size]
        with pytest.raises(InvalidArgumentError):
            image.read(2, -1, 5)
        with pytest.raises(InvalidArgumentError):
            image.read(1, 0, 5)
        with pytest.raises(NotFoundError):
            image.read(3, 0, 5)


def test_the_index_may_change_while_an_image_is_open(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    with open_image(forge.image(simple(forge))) as image, Layout.open(forge.path) as layout:
        layout.update_index(lambda index: Index(index.dialect))
        assert image.read(2, 0, 4) == b"text"
        assert isinstance(image, Image)
