"""All 18 images of the original implementation show exactly what they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import trees

from puzzlefs.errors import IntegrityError
from puzzlefs.image import open_image
from puzzlefs.oci import Index, Manifest

pytestmark = pytest.mark.golden

LAYOUTS = ["v1", "v1-zstd", "v2", "v2-zstd", "v3", "v3-zstd"]
TAGS = ["base", "fresh", "second"]
VERSIONS = {layout: int(layout[1]) for layout in LAYOUTS}

each_image = pytest.mark.parametrize(("layout", "tag"), [(layout, tag) for layout in LAYOUTS for tag in TAGS])
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@each_image
def test_the_tree_is_the_expected_one(vectors: Path, expected: dict[str, Any], layout: str, tag: str) -> None:
    digest = expected["digests"][layout][tag]
    with open_image(f"{vectors / layout}:{tag}", digest=digest) as image:
        shown = trees.in_image(image)
        assert image.version == VERSIONS[layout]
        assert image.verity_digest().hex() == digest
        totals = image.tree.totals()
        walked = [entry.ino for _, _, entry in image.tree.walk()]
    assert trees.without(shown, "same_as") == trees.in_json(expected["trees"][tag])
    assert len(walked) == len(shown) - 1
    assert totals.inodes == len({1, *walked})
    assert totals.size == sum({node.get("same_as", path): node.get("size", 0) for path, node in shown.items()}.values())


@each_image
def test_names_of_one_file_are_the_same_in_all_versions(vectors: Path, layout: str, tag: str) -> None:
    with open_image(f"{vectors / layout}:{tag}") as image:
        same = {path: node["same_as"] for path, node in trees.in_image(image).items() if "same_as" in node}
    assert same == dict.fromkeys([b"etc/passwd", b"etc/passwd-hard", b"var/lib/passwd-hard"], b"etc/passwd")


@each_image
@pytest.mark.parametrize("which", ["another image's", "one bit off"])
def test_a_wrong_digest_is_refused(vectors: Path, expected: dict[str, Any], layout: str, tag: str, which: str) -> None:
    digests = expected["digests"][layout]
    right = digests[tag]
    wrong = digests[TAGS[TAGS.index(tag) - 1]] if which == "another image's" else f"{int(right, 16) ^ 1:064x}"
    with pytest.raises(IntegrityError) as caught:
        open_image(f"{vectors / layout}:{tag}", digest=wrong)
    assert (caught.value.expected, caught.value.actual) == (wrong, right)


@each_layout
def test_an_index_that_is_read_is_written_the_same(vectors: Path, layout: str) -> None:
    data = (vectors / layout / "index.json").read_bytes()
    index = Index.parse(data)
    assert index.encode() == data
    assert sorted(index.tags()) == sorted(TAGS)


@each_image
def test_a_manifest_that_is_read_is_written_the_same(vectors: Path, layout: str, tag: str) -> None:
    if VERSIONS[layout] != 3:
        with open_image(f"{vectors / layout}:{tag}") as image:
            assert image.manifest is None
        return
    with open_image(f"{vectors / layout}:{tag}") as image:
        data = image.blobs.read(image.manifest_digest, limit=1 << 20)
    manifest = Manifest.parse(data)
    assert manifest.encode() == data
    assert len(list(manifest.layers())) == len(manifest.layer_objects) > 10


@each_image
def test_metadata_layers(vectors: Path, layout: str, tag: str) -> None:
    with open_image(f"{vectors / layout}:{tag}") as image:
        assert len(image.rootfs.metadata_layers) == (2 if tag == "second" else 1)
        assert len(image.metadata_refs) == (0 if image.version == 3 else len(image.rootfs.metadata_layers))


@each_image
def test_reads_of_any_size_give_the_same_bytes(vectors: Path, layout: str, tag: str) -> None:
    with open_image(f"{vectors / layout}:{tag}") as image:
        srv = image.tree.lookup(1, b"srv").ino
        ino = image.tree.lookup(srv, b"700001").ino
        whole = image.read(ino, 0, 700_001)
        assert len(whole) == 700_001
        for step in (4096, 100_003, 262_144):
            parts = [image.read(ino, offset, step) for offset in range(0, 700_001, step)]
            assert b"".join(parts) == whole
        assert image.read(ino, 699_999, 100) == whole[-2:]
        assert image.read(ino, 700_001, 100) == b""
        assert image.read(ino, 1 << 40, 100) == b""
