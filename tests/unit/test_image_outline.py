"""A look at an image by a process that does not open it, for one that does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support import forge as f
from support.forge import Forge

from puzzlefs.digest import Digest
from puzzlefs.errors import IntegrityError
from puzzlefs.image import open_image
from puzzlefs.image_outline import outline_ahead
from puzzlefs.oci import Descriptor, Index, Manifest, ManifestOutline, media_types, parse_reference
from puzzlefs_cli import mount

pytestmark = pytest.mark.unit


def _forge(path: Path, text: bytes = b"text", version: int = 3) -> Forge:
    forge = Forge(path, version)
    forge.image([f.directory(1, {b"file": 2}), f.regular(2, forge.chunk(text))], tag="tag")
    return forge


def _outline(forge: Forge, tag: str = "tag") -> ManifestOutline | None:
    return outline_ahead(parse_reference(f"{forge.path}:{tag}"))


def test_an_image_is_the_same_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge = _forge(tmp_path / "layout")
    with open_image(f"{forge.path}:tag") as image:
        manifest, digest = image.manifest, image.manifest_digest
    outline = _outline(forge)
    assert outline is not None
    assert outline.digest == digest
    monkeypatch.setattr(Manifest, "skim", None)  # nobody parses it again
    with open_image(f"{forge.path}:tag", outline=outline) as image:
        assert manifest is not None
        assert image.manifest is not None
        assert list(image.manifest.layers()) == list(manifest.layers())
        assert image.manifest.rootfs() == manifest.rootfs()
        assert image.manifest.config == manifest.config
        assert image.read(2, 0, 10) == b"text"


def test_that_of_another_image_does_not_count(tmp_path: Path) -> None:
    forge, other = _forge(tmp_path / "layout"), _forge(tmp_path / "other", b"other text")
    outline = _outline(other)
    assert outline is not None
    with open_image(f"{forge.path}:tag", outline=outline) as image:
        assert image.read(2, 0, 10) == b"text"


def test_the_manifest_is_checked_in_any_case(tmp_path: Path) -> None:
    forge = _forge(tmp_path / "layout")
    outline = _outline(forge)
    assert outline is not None
    path = forge.blob_path(Digest(outline.digest))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError):
        open_image(f"{forge.path}:tag", outline=outline)


def _nested(forge: Forge) -> None:
    index = Index.parse((forge.path / "index.json").read_bytes())
    inner = Index(index.dialect, (*index.manifests,)).encode()
    digest = Digest.of(inner)
    forge.blob_path(digest).write_bytes(inner)
    outer = index.with_tag("tag", Descriptor(media_types.INDEX, digest, len(inner)))
    (forge.path / "index.json").write_bytes(outer.encode())


def _malformed(forge: Forge) -> None:
    data = b'{"layers":[{}]'
    forge.blob_path(Digest.of(data)).write_bytes(data)
    index = Index.parse((forge.path / "index.json").read_bytes())
    moved = index.with_tag("tag", Descriptor(media_types.MANIFEST, Digest.of(data), len(data)))
    (forge.path / "index.json").write_bytes(moved.encode())


def _without_rootfs_blob(forge: Forge) -> None:
    outline = _outline(forge)
    assert outline is not None
    rootfs = json.loads(outline.document)["layers"][0]
    forge.blob_path(Digest.parse(rootfs["digest"])).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        _nested,
        _malformed,
        _without_rootfs_blob,
        lambda forge: (forge.path / "index.json").unlink(),
        lambda forge: (forge.path / "index.json").write_bytes(b"[" * 100_000),
        lambda forge: (forge.path / "oci-layout").unlink(),
    ],
)
def test_what_is_unusual_is_left_to_those_who_open_it(tmp_path: Path, damage: Callable[[Forge], None]) -> None:
    forge = _forge(tmp_path / "layout")
    damage(forge)
    before = len(os.listdir("/proc/self/fd"))
    assert _outline(forge) is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_there_is_none_of_what_is_not_there(tmp_path: Path) -> None:
    assert outline_ahead(parse_reference(f"{tmp_path}/nothing:tag")) is None
    assert _outline(_forge(tmp_path / "layout"), "another") is None
    assert _outline(_forge(tmp_path / "old", version=2)) is None


def test_a_mount_command_tells_its_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forge = _forge(tmp_path / "layout")
    reference = parse_reference(f"{forge.path}:tag")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert mount._outline(reference) == b""  # not worth it
    monkeypatch.setattr(mount, "_LARGE", 0)
    told = mount._outline(reference)
    assert mount._understood(told) == outline_ahead(reference)
    assert all(mount._understood(told[:size]) is None for size in range(len(told)))
    assert mount._outline(parse_reference(f"{tmp_path}/none:tag")) == b""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert mount._outline(reference) == b""
