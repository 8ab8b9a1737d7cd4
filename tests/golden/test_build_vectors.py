"""Building what the original built gives what the original wrote: digests, blobs, index, in all versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import trees

from puzzlefs.builder import StorageOptions, build
from puzzlefs.image import open_image

pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(
        os.geteuid() != 0, reason="the vectors' tree has devices and trusted xattrs: only root makes it"
    ),
]

VERSIONS = [1, 2, 3]
TAGS = ["base", "fresh"]
PLACES = ["source", "at/another, much longer \udcff path/to the same"]

each_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module", params=PLACES, ids=["short-path", "long-path"])
def sources(request: pytest.FixtureRequest, vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the trees ``base`` and ``fresh``, made by the vectors' own script."""
    place = tmp_path_factory.mktemp("vectors") / request.param
    place.mkdir(parents=True)
    for tag, variant in (("base", []), ("fresh", ["second"])):
        subprocess.run([sys.executable, vectors / "make_tree.py", place / tag, *variant], check=True)
    yield place
    subprocess.run(["rm", "-rf", place], check=True)


@each_version
@pytest.mark.parametrize("workers", [1, 4])
def test_digests_are_the_originals(
    sources: Path, expected: dict[str, Any], tmp_path: Path, version: int, workers: int
) -> None:
    digests = {
        tag: str(build(sources / tag, f"{tmp_path}/oci:{tag}", format_version=version, workers=workers).digest)
        for tag in TAGS
    }
    assert digests == {tag: expected["digests"][f"v{version}"][tag] for tag in TAGS}


@each_version
def test_the_layout_is_the_originals(sources: Path, vectors: Path, tmp_path: Path, version: int) -> None:
    for tag in TAGS:
        build(sources / tag, f"{tmp_path}/oci:{tag}", format_version=version)
    theirs, ours = vectors / f"v{version}", tmp_path / "oci"
    assert (ours / "oci-layout").read_bytes() == (theirs / "oci-layout").read_bytes()
    their_index, our_index = (json.loads((place / "index.json").read_bytes()) for place in (theirs, ours))
    their_index["manifests"] = [
        entry for entry in their_index["manifests"] if entry["annotations"]["org.opencontainers.image.ref.name"] in TAGS
    ]
    assert our_index == their_index
    blobs = list((ours / "blobs" / "sha256").iterdir())
    assert len(blobs) > 30
    for blob in blobs:
        assert blob.read_bytes() == (theirs / "blobs" / "sha256" / blob.name).read_bytes()


@each_version
@pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
def test_what_was_built_shows_the_tree(
    sources: Path, expected: dict[str, Any], tmp_path: Path, version: int, compression: bool
) -> None:
    for tag in TAGS:
        report = build(sources / tag, f"{tmp_path}/oci:{tag}", format_version=version, compression=compression)
        with open_image(f"{tmp_path}/oci:{tag}", digest=report.digest) as image:
            shown = trees.in_image(image)
        assert trees.without(shown, "same_as") == trees.in_json(expected["trees"][tag])


@each_version
def test_compressed_blobs_of_versions_1_and_2_are_the_originals(
    sources: Path, vectors: Path, tmp_path: Path, version: int
) -> None:
    """Metadata differs on purpose (``vectors/README.md``), the chunks do not; version 3 makes larger frames."""
    cut_alike = StorageOptions(level=3, chunk_size=64 << 10, cut_at_files=0)  # what versions 1 and 2 do by default
    storage = cut_alike if version == 3 else None
    build(sources / "base", f"{tmp_path}/oci:base", format_version=version, compression=True, storage=storage)
    zstd = {
        blob.name
        for blob in (tmp_path / "oci" / "blobs" / "sha256").iterdir()
        if blob.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    }
    assert len(zstd) == 11
    theirs = {blob.name for blob in (vectors / f"v{version}-zstd" / "blobs" / "sha256").iterdir()}
    assert len(zstd & theirs) == (11 if version < 3 else 0)
