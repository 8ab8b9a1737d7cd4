"""All 18 images of the original implementation, extracted as root, are the expected tree on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support import trees

from puzzlefs.extract import extract
from puzzlefs.image import open_image

pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and trusted xattrs need root"),
]

LAYOUTS = ["v1", "v1-zstd", "v2", "v2-zstd", "v3", "v3-zstd"]


@pytest.mark.parametrize("tag", ["base", "fresh", "second"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_extracted(vectors: Path, expected: dict[str, Any], tmp_path: Path, layout: str, tag: str) -> None:
    target = tmp_path / "out"
    reference = f"{vectors / layout}:{tag}"
    report = extract(reference, target, digest=expected["digests"][layout][tag])
    found = trees.on_disk(target, mtime=True)
    assert trees.without(found, "same_as", "mtime_ns") == trees.in_json(expected["trees"][tag])
    with open_image(reference) as image:
        assert found == trees.in_image(image, mtime=True)
        assert report.bytes == image.tree.totals().size
    assert report.entries == len(found) - 1
    assert report.not_restored == {}
    assert os.stat(target / "srv" / "zeros").st_blocks == 0
    assert os.stat(target / "srv" / "sparse").st_blocks <= 16
