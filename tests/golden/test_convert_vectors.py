"""The original's images: converted they are what it wrote in the other version, and their canonical form is its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import trees

from puzzlefs.builder import build
from puzzlefs.canonicalize import canonicalize
from puzzlefs.convert import convert
from puzzlefs.image import open_image

pytestmark = pytest.mark.golden

VERSIONS = [1, 2, 3]
TAGS = ["base", "fresh", "second"]

each_version = pytest.mark.parametrize("version", VERSIONS)
each_target = pytest.mark.parametrize("target", VERSIONS)
each_tag = pytest.mark.parametrize("tag", TAGS)
each_form = pytest.mark.parametrize("form", ["", "-zstd"], ids=["plain", "compressed"])


@each_version
@each_target
@each_tag
@each_form
def test_converted_it_shows_the_same_and_comes_back_the_same(
    vectors: Path, expected: dict[str, Any], tmp_path: Path, version: int, target: int, tag: str, form: str
) -> None:
    source = f"{vectors}/v{version}{form}:{tag}"
    there, back = f"{tmp_path}/there:{tag}", f"{tmp_path}/back:{tag}"
    digest = convert(source, there, format_version=target).digest
    with open_image(source) as image, open_image(there, digest=digest) as other:
        assert other.version == target
        assert trees.without(trees.in_image(other), "same_as") == trees.in_json(expected["trees"][tag])
        assert len(other.rootfs.metadata_layers) == len(image.rootfs.metadata_layers)
    returned = str(convert(there, back, format_version=version).digest)
    if version == 3 and target != 3 and (form or tag == "second"):
        # The original's frames and media types, and the list of chunks of its deltas, are its own.
        assert returned != expected["digests"]["v3" + form][tag]
    else:
        assert returned == expected["digests"][f"v{version}{form}"][tag]


@each_version
@each_target
@each_tag
def test_converted_it_is_what_the_original_wrote_in_that_version(
    vectors: Path, expected: dict[str, Any], tmp_path: Path, version: int, target: int, tag: str
) -> None:
    digest = str(convert(f"{vectors}/v{version}:{tag}", f"{tmp_path}/oci:{tag}", format_version=target).digest)
    if tag == "second" and target == 3 and version != 3:
        assert digest != expected["digests"]["v3"][tag]  # our list of chunks names those of the base, too
    else:
        assert digest == expected["digests"][f"v{target}"][tag]


@pytest.mark.parametrize(("version", "target"), [(1, 2), (2, 1)])
@each_tag
def test_compressed_images_of_versions_1_and_2_are_each_others(
    vectors: Path, expected: dict[str, Any], tmp_path: Path, version: int, target: int, tag: str
) -> None:
    report = convert(f"{vectors}/v{version}-zstd:{tag}", f"{tmp_path}/oci:{tag}", format_version=target)
    assert str(report.digest) == expected["digests"][f"v{target}-zstd"][tag]
    assert report.changed_chunks == 0


@pytest.fixture
def copy(vectors: Path, tmp_path: Path) -> Path:
    """A copy of the vectors, in which tags can be made."""
    for layout in vectors.glob("v?*"):
        shutil.copytree(layout, tmp_path / layout.name)
    return tmp_path


@each_version
@each_tag
def test_the_canonical_form_is_the_originals_fresh_build(
    copy: Path, expected: dict[str, Any], version: int, tag: str
) -> None:
    report = canonicalize(f"{copy}/v{version}:{tag}", "canonical")
    assert str(report.digest) == expected["digests"][f"v{version}"]["base" if tag == "base" else "fresh"]
    assert report.reused_chunks > report.chunks - 6  # the others are zeros
    assert report.new_chunks == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="the vectors' tree has devices and trusted xattrs: only root makes it")
@each_version
def test_the_canonical_form_of_its_compressed_images_is_our_build(vectors: Path, copy: Path, version: int) -> None:
    """Its own fresh builds record fs-verity digests of bytes that are not stored; the canonical form does not."""
    subprocess.run([sys.executable, vectors / "make_tree.py", copy / "tree", "second"], check=True)
    built = build(copy / "tree", f"{copy}/built:t", format_version=version, compression=True)
    for tag in ("fresh", "second"):
        assert canonicalize(f"{copy}/v{version}-zstd:{tag}", f"canonical-{tag}").digest == built.digest
