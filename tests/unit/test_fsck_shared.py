"""Images that share blobs: what is wrong with one of them is not said of the others."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from support import forge as f
from support.forge import Forge
from support.layouts import copy_layout

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.canonicalize import canonicalize
from puzzlefs.fsck import State, fsck
from puzzlefs.fsck.report import RemarkKind
from puzzlefs.image_commit import commit_image
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.unit

CONTENT = b"data" * 1000


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("order", list(itertools.permutations(["right", "wrong", "none", "right, too"])), ids=", ".join)
def test_a_wrong_fs_verity_digest_is_the_fault_of_who_records_it(
    tmp_path: Path, version: int, order: tuple[str, ...]
) -> None:
    forge = Forge(tmp_path / "oci", version)
    chunk = forge.chunk(CONTENT)
    recorded = {
        "right": {chunk.blob.digest: verity_digest(CONTENT)},
        "right, too": {chunk.blob.digest: verity_digest(CONTENT)},
        "wrong": {chunk.blob.digest: verity_digest(b"other")},
        "none": {},
    }
    with Layout.open(forge.path) as layout, BlobWriter(layout) as writer:
        for number, name in enumerate(order):
            layer = [f.directory(1, {b"f": 2, b"%d" % number: 2}), f.regular(2, chunk)]
            commit_image(
                layout, name.replace(", ", "-"), version=version, layers=[layer], chunks=(), verity=recorded[name],
                writer=writer,
            )  # fmt: skip
    report = fsck(forge.path)
    assert report.state is State.LOST
    (found,) = report.malformed
    assert found.image == "wrong"
    assert verity_digest(b"other").hex() in found.message


def test_what_the_original_records_is_not_said_of_our_images(vectors: Path, tmp_path: Path) -> None:
    layout = tmp_path / "images"
    copy_layout(vectors / "v3-zstd", layout)
    before = {remark.image for remark in fsck(layout).remarks}
    canonicalize(f"{layout}:base", "ours", compression=False)  # what did not shrink is in both of them
    report = fsck(layout)
    assert report.state is State.CLEAN
    assert {remark.image for remark in report.remarks if remark.kind is RemarkKind.VERITY_OF_OTHER_BYTES} == before
