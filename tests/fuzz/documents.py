"""Targets: the JSON documents of a layout, and what people name images with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from fuzz.asking import attempt
from fuzz.mutation import any_bytes, json_document
from fuzz.target import Target
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, InvalidArgumentError
from puzzlefs.oci import Descriptor, Index, Manifest, is_tag, make_reference, media_types, parse_reference

_VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
_BLOB = Digest.of(b"blob")
_MAX_SEED = 1 << 14


def documents(data: bytes) -> None:
    """An index and a manifest: read, asked, written, read again."""
    index = attempt(Index.parse, data)
    if index is not None:
        tags = index.tags()
        tagged = index.tagged()
        assert list(tagged) == tags
        assert all(index.find(tag) == tagged[tag] for tag in tags[:20])
        assert Index.parse(index.encode()).encode() == index.encode()
        for tag in [*tags[:3], "new"]:
            moved = index.with_tag(tag, Descriptor(media_types.MANIFEST, _BLOB, 1))
            found = Index.parse(moved.encode()).find(tag)
            assert found is not None
            assert found.digest == _BLOB
    manifest = Manifest.parse(data)
    written = Manifest.parse(manifest.encode())
    assert written.encode() == manifest.encode()
    attempt(manifest.rootfs)
    layers = attempt(lambda: list(manifest.layers()))
    assert layers is None or len(layers) == len(list(written.layers()))
    assert len(manifest.chunk_objects()) <= len(manifest.layer_objects)
    if layers is not None:
        for layer in layers[:20]:
            layer.annotation(media_types.VERITY_ROOT_HASH)


def _document_seeds() -> list[bytes]:
    digest = _BLOB.oci
    descriptor: dict[str, Any] = {
        "mediaType": media_types.MANIFEST,
        "digest": digest,
        "size": 100,
        "annotations": {media_types.REF_NAME: "tag"},
        "platform": {"architecture": "amd64", "os": "linux"},
    }
    old = {key: value for key, value in descriptor.items() if key != "mediaType"} | {"media_type": media_types.ROOTFS}
    rootfs = {
        "mediaType": media_types.ROOTFS,
        "digest": digest,
        "size": 5,
        "annotations": {media_types.VERITY_ROOT_HASH: "0" * 64},
    }
    chunk = {"mediaType": media_types.FILE_DATA, "digest": digest, "size": 7}
    empty = {"mediaType": media_types.EMPTY, "digest": digest, "size": 2, "data": "e30="}
    documents = [
        {"schemaVersion": 2, "manifests": [descriptor, descriptor]},
        {"schemaVersion": -1, "manifests": [old], "annotations": {}},
        {"schemaVersion": 2, "config": empty, "layers": [rootfs, chunk, chunk]},
    ]
    found = [json.dumps(document).encode() for document in documents]
    for path in sorted(_VECTORS.glob("v*/index.json")):
        found.append(path.read_bytes())
    for path in sorted(_VECTORS.glob("v3*/blobs/sha256/*")):
        if path.stat().st_size <= _MAX_SEED and path.read_bytes().startswith(b'{"config"'):
            found.append(path.read_bytes())
    return list(dict.fromkeys(found))


def references(data: bytes) -> None:
    """The name of an image, and digests in their spellings."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (Digest.parse, Digest.from_hex, VerityDigest.from_hex):
        try:
            digest = parse(text)
        except FormatError:
            continue
        assert digest.hex() == text.removeprefix("sha256:")
    reference = parse_reference(text)
    assert is_tag(reference.tag)
    assert str(text).endswith(":" + reference.tag)
    assert parse_reference(str(reference)) == reference
    assert make_reference(reference.layout, reference.tag) == reference
    try:
        make_reference("layout", text)
    except InvalidArgumentError:
        assert not is_tag(text)


def _reference_seeds() -> list[bytes]:
    return [
        b"/var/lib/images:debian", b"a:b:c", b"dir:a/b@1.2--x+y", b":tag", b"dir:", b"x" * 100 + b":" + b"y" * 255,
        ("sha256:" + "ab" * 32).encode(), ("ab" * 32).encode(), b"d:_tag..", b":" * (1 << 18),
        b"d:" + b"a-" * 100, b"d:" + b"--" * 60, "dir/ü:ü".encode(), b"\xff:a",
    ]  # fmt: skip


def _change_reference(data: bytes, rnd: random.Random) -> bytes:
    if rnd.random() < 0.5:
        return any_bytes(data, rnd)
    at = rnd.randrange(len(data) + 1)
    piece = rnd.choice((b":", b"--", b"/", b"a", b"_", b".", b"@", b"sha256:", "٣".encode(), b"\0", b"\n", b"::" * 50))
    return data[:at] + piece * rnd.choice((1, 1, 1, 3, 200)) + data[at + rnd.randrange(2) :]


TARGETS = (
    Target("documents", documents, _document_seeds, json_document),
    Target("references", references, _reference_seeds, _change_reference, max_size=1 << 17),
)
