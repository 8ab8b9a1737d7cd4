"""Container tools take our layouts for what they are: skopeo copies an image, umoci lists the tags, runc runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import trees
from support.layouts import blob_names, shown

from puzzlefs.image import open_image

pytestmark = pytest.mark.interop

PUZZLEFS = [sys.executable, "-m", "puzzlefs_cli"]
IN_CI = bool(os.environ.get("CI"))


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not IN_CI and shutil.which(tool) is None, reason=f"{tool} is not installed")


def run(*words: str | Path) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "etc").mkdir(parents=True)
    (path / "etc" / "hostname").write_text("puzzle\n")
    (path / "large").write_bytes(os.urandom(900_000))
    (path / "text").write_text("line\n" * 100_000)
    (path / "link").symlink_to("etc/hostname")
    os.link(path / "text", path / "text-again")
    return path


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if os.path.ismount(path):
        run(*PUZZLEFS, "umount", path)


@needs("skopeo")
@pytest.mark.mount
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse")
@pytest.mark.parametrize("option", ["--quiet", "--compression"])
def test_a_copy_by_skopeo_can_be_mounted(tmp_path: Path, source: Path, mountpoint: Path, option: str) -> None:
    printed = run(*PUZZLEFS, "build", option, source, f"{tmp_path}/images:app")
    digest = printed.split()[-1]
    run("skopeo", "copy", "--quiet", f"oci:{tmp_path}/images:app", f"oci:{tmp_path}/copy:app")
    copied = {path.name for path in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
    assert copied == {path.name for path in (tmp_path / "images" / "blobs" / "sha256").iterdir()}
    run(*PUZZLEFS, "mount", "--digest", digest, f"{tmp_path}/copy:app", mountpoint)
    try:
        assert trees.on_disk(mountpoint) == trees.on_disk(source)
    finally:
        run(*PUZZLEFS, "umount", mountpoint)


@needs("umoci")
@pytest.mark.mount
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse")
def test_umoci_refuses_to_collect_beside_a_live_mount(tmp_path: Path, source: Path, mountpoint: Path) -> None:
    """It knows nothing of leases, and would remove what the mount serves: but it stumbles over the lease first."""
    layout = tmp_path / "images"
    run(*PUZZLEFS, "build", "--quiet", source, f"{layout}:one")
    (source / "large").unlink()
    run(*PUZZLEFS, "build", "--quiet", source, f"{layout}:two")
    run(*PUZZLEFS, "mount", f"{layout}:one", mountpoint)
    run(*PUZZLEFS, "untag", f"{layout}:one")
    before = blob_names(layout)
    refusal = subprocess.run(["umoci", "gc", "--layout", layout], capture_output=True, timeout=120, check=False)
    assert refusal.returncode != 0
    assert blob_names(layout) == before
    run(*PUZZLEFS, "umount", mountpoint)
    deadline = time.monotonic() + 60
    while any((layout / "blobs" / "sha256").glob(".lease-*")):  # its servers end by themselves
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run("umoci", "gc", "--layout", layout)
    assert blob_names(layout) < before
    assert trees.on_disk(source) == shown(f"{layout}:two")


@needs("umoci")
def test_umoci_lists_the_tags(tmp_path: Path, source: Path) -> None:
    for tag in ("one", "two"):
        run(*PUZZLEFS, "build", source, f"{tmp_path}/images:{tag}")
    assert run("umoci", "ls", "--layout", tmp_path / "images").split() == ["one", "two"]


@needs("umoci")
@needs("skopeo")
def test_tags_that_others_make_are_kept_and_read(tmp_path: Path, source: Path) -> None:
    run(*PUZZLEFS, "build", source, f"{tmp_path}/images:one")
    run("umoci", "tag", "--image", f"{tmp_path}/images:one", "two")
    run("skopeo", "copy", "--quiet", f"oci:{tmp_path}/images:one", f"oci:{tmp_path}/images:three")
    (source / "new").write_text("more")
    run(*PUZZLEFS, "build", source, f"{tmp_path}/images:four")
    tags = {}
    for tag in ("one", "two", "three", "four"):
        with open_image(f"{tmp_path}/images:{tag}") as image:
            tags[tag] = str(image.verity_digest())
    assert tags["one"] == tags["two"] == tags["three"] != tags["four"]


@needs("skopeo")
def test_skopeo_reads_the_manifest(tmp_path: Path, source: Path) -> None:
    run(*PUZZLEFS, "build", source, f"{tmp_path}/images:app")
    manifest = json.loads(run("skopeo", "inspect", "--raw", f"oci:{tmp_path}/images:app"))
    assert sorted(manifest) == ["config", "layers", "schemaVersion"]
    assert manifest["layers"][0]["mediaType"] == "application/vnd.puzzlefs.image.rootfs.v1"
