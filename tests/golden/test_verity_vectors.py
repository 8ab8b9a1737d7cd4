"""fs-verity digests of the pinned examples and of every image that the original implementation made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puzzlefs.digest import Digest
from puzzlefs.image import open_image
from puzzlefs.model import RegularFile
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.golden

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
DIGESTS: dict[str, dict[str, str]] = json.loads((VECTORS / "expected.json").read_bytes())["digests"]
IMAGES = [(layout, tag) for layout, tags in DIGESTS.items() for tag in tags]
VERITY_ROOT_HASH = "io.puzzlefsoci.puzzlefs.puzzlefs_verity_root_hash"
ROOTFS = "application/vnd.puzzlefs.image.rootfs.v1"


def blob(layout: str, digest: str) -> bytes:
    return (VECTORS / layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def manifest_of(layout: str, tag: str) -> bytes:
    index: dict[str, Any] = json.loads((VECTORS / layout / "index.json").read_bytes())
    (digest,) = [
        entry["digest"]
        for entry in index["manifests"]
        if entry["annotations"].get("org.opencontainers.image.ref.name") == tag
    ]
    return blob(layout, digest)


@pytest.mark.parametrize(("layout", "tag"), IMAGES)
def test_digest_of_the_manifest_is_what_the_original_printed(layout: str, tag: str) -> None:
    assert verity_digest(manifest_of(layout, tag)).hex() == DIGESTS[layout][tag]


@pytest.mark.parametrize(("layout", "tag"), [image for image in IMAGES if image[0].startswith("v3")])
def test_digest_of_the_rootfs_is_that_of_its_annotation(layout: str, tag: str) -> None:
    layers = json.loads(manifest_of(layout, tag))["layers"]
    (rootfs,) = [layer for layer in layers if layer["mediaType"] == ROOTFS]

    assert verity_digest(blob(layout, rootfs["digest"])).hex() == rootfs["annotations"][VERITY_ROOT_HASH]


@pytest.mark.parametrize(("layout", "tag"), IMAGES)
def test_recorded_digests_are_those_of_the_stored_bytes(layout: str, tag: str) -> None:
    """Except, on record, for the chunks of compressed images that did not shrink (README.md of the vectors)."""
    stored_raw: set[Digest] = set()
    with open_image(f"{VECTORS / layout}:{tag}", digest=DIGESTS[layout][tag], verity="user") as image:
        for table in image.rootfs.metadata_layers:
            for inode in table:
                if isinstance(inode.content, RegularFile):
                    stored_raw |= {chunk.blob.digest for chunk in inode.content.chunks if not chunk.blob.compressed}
        recorded = dict(image.rootfs.verity)
    wrong = {digest for digest, verity in recorded.items() if verity_digest(blob(layout, digest.hex())) != verity}

    assert len(recorded) >= 5
    if layout.endswith("-zstd"):
        assert wrong
        assert wrong <= stored_raw
    else:
        assert not wrong
