"""A mount holds a lease on what it serves: ``gc`` leaves that alone, whatever becomes of the tag."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from mounting import Built, Mount, run_puzzlefs
from support import trees
from support.layouts import copy_layout

pytestmark = pytest.mark.mount


@pytest.fixture(params=["v1", "v2-zstd", "v3", "v3-zstd"])
def image(request: pytest.FixtureRequest, odd: Built, tmp_path: Path) -> str:
    """An image that a test may take to pieces."""
    source, _, tag = odd.image(request.param).rpartition(":")
    copy_layout(source, tmp_path / "oci")
    return f"{tmp_path}/oci:{tag}"


def untag_all(layout: Path) -> None:
    path = layout / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "manifests": []}))


def collect(layout: Path) -> dict[str, int]:
    report: dict[str, int] = json.loads(run_puzzlefs("gc", "--grace=0", "--json", layout).stdout)
    return report


def blobs_of(layout: Path) -> list[str]:
    return [name for name in os.listdir(layout / "blobs" / "sha256") if not name.startswith(".")]


def test_what_is_mounted_stays(image: str, odd: Built, tmp_path: Path, mounted: Mount) -> None:
    layout = tmp_path / "oci"
    with mounted(image, "-o", "dev,suid") as mount:
        untag_all(layout)
        report = collect(layout)
        assert report["leases"] == 1
        assert report["removed_blobs"] > 0  # what the other images had alone
        assert trees.on_disk(mount.path) == trees.on_disk(odd.source)
    report = collect(layout)
    assert (report["leases"], report["kept_blobs"]) == (0, 0)
    assert os.listdir(layout / "blobs" / "sha256") == []


def test_the_lease_of_a_server_that_was_killed_counts_for_nothing(image: str, tmp_path: Path, mounted: Mount) -> None:
    layout = tmp_path / "oci"
    with mounted(image) as mount:
        mount.kill()
        untag_all(layout)
        report = collect(layout)
        assert (report["leases"], report["kept_blobs"]) == (0, 0)


def test_several_mounts_of_one_layout(odd: Built, tmp_path: Path, mounted: Mount) -> None:
    layout = tmp_path / "oci"
    copy_layout(odd.layout / "new", layout)
    with mounted(f"{layout}:v3") as one:
        with mounted(f"{layout}:v3-zstd") as two:
            untag_all(layout)
            assert collect(layout)["leases"] == 2
            assert trees.on_disk(one.path) == trees.on_disk(two.path)
        report = collect(layout)
        assert report["leases"] == 1
        assert report["removed_blobs"] > 0
        assert trees.on_disk(one.path).keys() == trees.on_disk(odd.source).keys()


def test_a_layout_that_was_moved(image: str, odd: Built, tmp_path: Path, mounted: Mount) -> None:
    with mounted(image, "-o", "dev,suid") as mount:
        layout = (tmp_path / "oci").rename(tmp_path / "elsewhere")
        untag_all(layout)
        assert collect(layout)["leases"] == 1
        assert trees.on_disk(mount.path) == trees.on_disk(odd.source)
    assert [name for name in os.listdir(layout / "blobs" / "sha256") if name.startswith(".")] == []


def test_a_layout_that_is_not_writable(image: str, odd: Built, tmp_path: Path, mounted: Mount) -> None:
    """The mount goes on, with one line in its log that is no warning."""
    layout, _, tag = image.rpartition(":")
    place = tmp_path / "read-only"
    place.mkdir()
    subprocess.run(["mount", "--bind", layout, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        with mounted(f"{place}:{tag}", "-o", "dev,suid") as mount:
            lines = [line for line in mount.log_lines() if "lease" in line]
            assert len(lines) == 1
            assert "Read-only file system" in lines[0]
            assert "puzzlefs gc" in lines[0]
            assert trees.on_disk(mount.path) == trees.on_disk(odd.source)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_writable_mount(odd: Built, tmp_path: Path) -> None:
    layout, point = tmp_path / "oci", tmp_path / "mnt"
    copy_layout(odd.layout / "new", layout)
    point.mkdir()
    run_puzzlefs("mount", "--writable", f"{layout}:v3", point)
    try:
        untag_all(layout)
        assert collect(layout)["leases"] == 1
        (point / "written").write_bytes(b"x" * 100_000)
        run_puzzlefs("commit", point, "new")
        report = collect(layout)
        assert report["leases"] == 1
    finally:
        run_puzzlefs("umount", point)
    assert collect(layout)["leases"] == 0
    run_puzzlefs("extract", f"{layout}:new", tmp_path / "out")
    assert (tmp_path / "out" / "written").read_bytes() == b"x" * 100_000
    tree = trees.on_disk(tmp_path / "out")
    del tree[b"written"]
    assert tree == trees.on_disk(odd.source)
