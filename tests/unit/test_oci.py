"""The image-spec's documents as types, and how images are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, InvalidArgumentError
from puzzlefs.oci import (
    EMPTY_CONFIG,
    Descriptor,
    Dialect,
    Index,
    Manifest,
    is_tag,
    make_reference,
    media_types,
    parse_reference,
)

pytestmark = pytest.mark.unit

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")


# ---- references


@pytest.mark.parametrize(
    "tag",
    [
        "a",
        "A1",
        "latest",
        "v1.2.3",
        "1.0_rc-1",
        "a--b",
        "a@b",
        "a+b",
        "debian/12",
        "a:b",
        "_x",
        "x..y",
        "x-",
        "t" * 128,
    ],
)
def test_tags(tag: str) -> None:
    assert is_tag(tag)
    assert parse_reference(f"dir:{tag}").tag == tag.rpartition(":")[2]


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "-a",
        ".a",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "a---b/c",
        "../x",
        "a@",
        "+",
        "t" * 256,
        "a/-b",
    ],
)
def test_what_is_no_tag(tag: str) -> None:
    assert not is_tag(tag)
    with pytest.raises(InvalidArgumentError):
        make_reference("dir", tag)


@pytest.mark.parametrize(
    ("text", "layout", "tag"),
    [
        ("images:debian", "images", "debian"),
        ("/var/lib/images:debian", "/var/lib/images", "debian"),
        ("/with:colon/images:debian", "/with:colon/images", "debian"),
        ("/with:colon/images:debian/12", "/with:colon/images", "debian/12"),
        ("a:b:c", "a:b", "c"),
        ("::x", ":", "x"),
        ("dir: x:y", "dir: x", "y"),
        ("/a:b/c", "/a", "b/c"),
        ("dir:not-a-tag-/x:", "dir", "not-a-tag-/x:"),
    ],
)
def test_references(text: str, layout: str, tag: str) -> None:
    if not is_tag(tag):
        with pytest.raises(InvalidArgumentError):
            parse_reference(text)
        return
    reference = parse_reference(text)
    assert (reference.layout, reference.tag) == (Path(layout), tag)
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize("text", ["", "images", "images:", ":tag", "/a/b", "dir:-", "a" * 100_000 + ":", ":" * 1000])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_reference(text)
    assert "OCI_DIR:TAG" in str(caught.value)


# ---- descriptors


def test_a_descriptor_keeps_what_it_does_not_know() -> None:
    text = {
        "mediaType": "x/y",
        "digest": ONE.oci,
        "size": 3,
        "urls": ["https://example.org/"],
        "annotations": {"key": "value"},
        "platform": {"os": "linux", "os.features": [1.5, None, True]},
        "data": "e30=",
    }
    descriptor = Descriptor.from_json(text, "it")
    assert (descriptor.media_type, descriptor.digest, descriptor.size) == ("x/y", ONE, 3)
    assert descriptor.annotation("key") == "value"
    assert descriptor.annotation("other") is None
    assert descriptor.to_json() == text


def test_the_dialects_differ_in_one_key() -> None:
    text = {"media_type": "x/y", "digest": ONE.oci, "size": 3, "annotations": {}}
    descriptor = Descriptor.from_json(text, "it", Dialect.PUZZLEFS_DEV)
    assert list(descriptor.to_json(Dialect.PUZZLEFS_DEV)) == ["digest", "size", "media_type", "annotations"]
    assert "mediaType" in descriptor.to_json()
    with pytest.raises(FormatError, match="it: mediaType"):
        Descriptor.from_json(text, "it")


@pytest.mark.parametrize("size", [0, 1, (1 << 63) - 1])
def test_sizes(size: int) -> None:
    assert Descriptor.from_json({"mediaType": "x", "digest": ONE.oci, "size": size}, "it").size == size


# ---- index


def descriptor(digest: Digest = ONE, size: int = 1) -> Descriptor:
    return Descriptor(media_types.MANIFEST, digest, size)


@pytest.mark.parametrize("dialect", Dialect)
def test_tags_of_an_index(dialect: Dialect) -> None:
    index = Index(dialect).with_tag("one", descriptor()).with_tag("two", descriptor(TWO, 2))
    assert index.tags() == ["one", "two"]
    found = index.find("two")
    assert found is not None
    assert (found.digest, found.size) == (TWO, 2)
    assert index.find("three") is None
    assert Index.parse(index.encode()).tags() == ["one", "two"]


def test_a_tag_that_moves_leaves_nothing_behind() -> None:
    index = (
        Index(Dialect.OCI).with_tag("one", descriptor()).with_tag("two", descriptor()).with_tag("one", descriptor(TWO))
    )
    assert index.tags() == ["two", "one"]
    assert [entry.digest for entry in index.manifests] == [ONE, TWO]


def test_a_tag_that_moves_leaves_its_old_descriptor_in_versions_1_and_2() -> None:
    index = Index(Dialect.PUZZLEFS_DEV).with_tag("one", descriptor()).with_tag("one", descriptor(TWO))
    assert [entry.digest for entry in index.manifests] == [ONE, TWO]
    assert index.manifests[0].annotations == {}
    assert index.tags() == ["one"]
    found = index.find("one")
    assert found is not None
    assert found.digest == TWO


@pytest.mark.parametrize("dialect", list(Dialect))
def test_many_tags_at_once(dialect: Dialect) -> None:
    index = Index(dialect).with_tag("one", descriptor()).with_tag("two", descriptor()).with_tag("three", descriptor())
    moved = index.with_tags({"two": descriptor(TWO), "new": descriptor(TWO)})
    assert moved == index.with_tag("two", descriptor(TWO)).with_tag("new", descriptor(TWO))
    assert moved.tagged() == {tag: moved.find(tag) for tag in ("one", "three", "two", "new")}
    assert index.with_tags({}) == index


def test_of_a_tag_that_stands_twice_the_last_counts() -> None:
    entry = '{"mediaType":"x","digest":"%s","size":1,"annotations":{"org.opencontainers.image.ref.name":"t"}}'
    index = Index.parse(f'{{"schemaVersion":2,"manifests":[{entry % ONE.oci},{entry % TWO.oci}]}}'.encode())
    found = index.find("t")
    assert found is not None
    assert found.digest == TWO
    assert index.tags() == ["t"]
    assert len(index.with_tag("t", descriptor()).manifests) == 1


def test_an_index_is_written_as_the_formats_say() -> None:
    oci = Index(Dialect.OCI).with_tag("t", descriptor())
    assert (
        oci.encode()
        == (
            b'{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"t"},"digest":"%s",'
            b'"mediaType":"application/vnd.oci.image.manifest.v1+json","size":1}],"schemaVersion":2}'
        )
        % ONE.oci.encode()
    )
    dev = Index(Dialect.PUZZLEFS_DEV).with_tag("t", Descriptor(media_types.ROOTFS, ONE, 1))
    assert (
        dev.encode()
        == (
            b'{"schemaVersion":-1,"manifests":[{"digest":"%s","size":1,'
            b'"media_type":"application/vnd.puzzlefs.image.rootfs.v1",'
            b'"annotations":{"org.opencontainers.image.ref.name":"t"}}],"annotations":{}}'
        )
        % ONE.oci.encode()
    )


def test_what_an_index_holds_besides_is_kept() -> None:
    data = (
        b'{"annotations":{"a":"b"},"artifactType":"x","manifests":[{"digest":"%s","mediaType":"x","size":1,"zzz":[{}]}],'
        b'"mediaType":"application/vnd.oci.image.index.v1+json","schemaVersion":2,"subject":{"\xc3\xa4":null}}'
    ) % ONE.oci.encode()
    index = Index.parse(data)
    assert index.encode() == data
    moved = json.loads(index.with_tag("t", descriptor()).encode())
    assert moved["subject"] == {"ä": None}
    assert moved["manifests"][0]["zzz"] == [{}]


# ---- manifest


def test_an_empty_manifest_is_written_as_the_format_says() -> None:
    assert Manifest.of([]).encode() == (
        b'{"config":{"data":"e30=","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",'
        b'"mediaType":"application/vnd.oci.empty.v1+json","size":2},"layers":[],"schemaVersion":2}'
    )


def test_layers_come_back() -> None:
    rootfs = Descriptor(media_types.ROOTFS, ONE, 5, {media_types.VERITY_ROOT_HASH: "0" * 64})
    chunks = [Descriptor(media_types.FILE_DATA_ZSTD, TWO, 7), Descriptor(media_types.FILE_DATA, ONE, 9)]
    manifest = Manifest.parse(Manifest.of([*chunks, rootfs]).encode())
    assert manifest.rootfs() == rootfs
    assert list(manifest.layers()) == [*chunks, rootfs]
    assert manifest.config == EMPTY_CONFIG


def test_a_malformed_layer_that_is_not_the_rootfs_does_not_matter_for_finding_it() -> None:
    rootfs = Descriptor(media_types.ROOTFS, ONE, 5)
    document = json.loads(Manifest.of([rootfs]).encode())
    document["layers"].insert(0, {"mediaType": "x", "digest": "sha512:0", "size": -1})
    manifest = Manifest.parse(json.dumps(document).encode())
    assert manifest.rootfs() == rootfs
    with pytest.raises(FormatError, match="layer 0"):
        list(manifest.layers())
