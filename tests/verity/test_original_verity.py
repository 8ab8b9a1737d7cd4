"""The original implementation's program where the kernel vouches for blobs: only there does it mount by digest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import puzzlefs
from disks import Disk, MakeDisk
from support import trees
from support.original_program import Original, each_original

pytestmark = pytest.mark.verity


@pytest.fixture(scope="module")
def disk(make_module_disk: MakeDisk) -> Disk:
    return make_module_disk()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree of several chunks."""
    root = tmp_path_factory.mktemp("source")
    (root / "directory").mkdir()
    (root / "directory" / "text").write_bytes(b"all work and no play " * 10_000)
    (root / "plain").write_bytes(os.urandom(400_000))
    (root / "link").symlink_to("directory/text")
    return root


@each_original
def test_the_original_mounts_what_we_sealed(theirs: Original, disk: Disk, tmp_path: Path, source: Path) -> None:
    layout = disk.root / f"ours-{theirs.version}"
    printed = puzzlefs("build", f"--format-version={theirs.version}", source, f"{layout}:tag").stdout
    digest = printed.split()[-1]
    puzzlefs("enable-fs-verity", f"{layout}:tag", digest)
    with theirs.mounted(layout, "tag", tmp_path / "mounted", "--digest", digest) as point:
        # it counts one name for each file
        assert trees.without(trees.on_disk(point), "nlink") == trees.without(trees.on_disk(source), "nlink")


@each_original
def test_we_mount_what_the_original_sealed(theirs: Original, disk: Disk, tmp_path: Path, source: Path) -> None:
    layout = disk.root / f"theirs-{theirs.version}"
    digest = theirs.build(source, layout, "tag")
    theirs.enable_verity(layout, "tag", digest)
    point = tmp_path / "mounted"
    point.mkdir()
    puzzlefs("mount", "--digest", digest, "--verity", "kernel", f"{layout}:tag", point)
    try:
        assert trees.on_disk(point) == trees.on_disk(source)
    finally:
        puzzlefs("umount", point)
    # What it left out for us to seal: nothing that a mount needs.
    puzzlefs("enable-fs-verity", f"{layout}:tag", digest)
