"""Images of several layers that other tools made, as sources: each layer on top of the one before."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import trees
from test_container_tools import PUZZLEFS, needs, run

from puzzlefs.image import open_image

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(os.geteuid() != 0, reason="these tools unpack as root here, so that owners are right"),
]


def shown(reference: str) -> trees.Tree:
    with open_image(reference) as image:
        return trees.in_image(image)


@needs("umoci")
def test_layers_that_umoci_unpacked(tmp_path: Path) -> None:
    """Each version of an image is unpacked, and built on top of the one before."""
    run("umoci", "init", "--layout", tmp_path / "theirs")
    run("umoci", "new", "--image", f"{tmp_path}/theirs:v")
    layout = tmp_path / "ours"
    for number in range(4):
        bundle = tmp_path / f"bundle{number}"
        run("umoci", "unpack", "--image", f"{tmp_path}/theirs:v", bundle)
        root = bundle / "rootfs"
        if number:
            base = [] if number == 1 else ["--base-layer", str(number - 1)]
            run(*PUZZLEFS, "build", "--no-cache" if not base else "--quiet", *base, root, f"{layout}:{number}")
            assert shown(f"{layout}:{number}") == trees.on_disk(root)
        edit(root, number)
        run("umoci", "repack", "--image", f"{tmp_path}/theirs:v", bundle)
    with open_image(f"{layout}:3") as image:
        assert len(image.rootfs.metadata_layers) == 3


def edit(root: Path, number: int) -> None:
    """What each layer does: everything that a layer of a container image can say."""
    match number:
        case 0:
            (root / "etc/conf.d").mkdir(parents=True)
            (root / "etc/conf.d/a").write_text("a")
            (root / "opt").mkdir()
            (root / "opt/program").write_bytes(os.urandom(300_000))
            os.link(root / "opt/program", root / "opt/alias")
        case 1:
            shutil.rmtree(root / "etc/conf.d")  # an opaque directory in the next layer
            (root / "etc/conf.d").mkdir()
            (root / "etc/conf.d/b").write_text("b")
            (root / "opt/alias").unlink()
        case 2:
            (root / "opt/program").rename(root / "opt/moved")
            (root / "etc/conf.d/b").unlink()
            (root / "etc/conf.d/b").symlink_to("a")
        case _:
            (root / "last").touch()


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[list[str]]:
    yield [
        "buildah",
        "--root", str(tmp_path / "store"),
        "--runroot", str(tmp_path / "run"),
        "--storage-driver", "overlay",
    ]  # fmt: skip
    mounts = sorted((tmp_path / "store/overlay").glob("*/merged"))
    subprocess.run(["umount", "-q", *mounts, tmp_path / "store/overlay"], check=False)


@needs("buildah")
def test_the_upper_directories_of_buildah(tmp_path: Path, buildah: list[str]) -> None:
    """A working container is an overlay: what was written to it becomes a layer without a look at the rest."""
    layout = tmp_path / "ours"
    first = run(*buildah, "from", "scratch").strip()
    root = Path(run(*buildah, "mount", first).strip())
    edit(root, 0)
    run(*PUZZLEFS, "build", "--no-cache", root, f"{layout}:0")
    run(*buildah, "umount", first)
    run(*buildah, "commit", "--quiet", first, "image0")
    for number in (1, 2):
        container = run(*buildah, "from", f"localhost/image{number - 1}").strip()
        merged = Path(run(*buildah, "mount", container).strip())
        edit(merged, number)
        os.sync()
        upper = merged.parent / "diff"
        run(*PUZZLEFS, "build", "--base-layer", str(number - 1), "--upper", upper, f"{layout}:{number}")
        # An overlay goes on to count names that were removed: what is left has one.
        expected = trees.without(trees.on_disk(merged), "nlink", "same_as")
        ours = shown(f"{layout}:{number}")
        assert trees.without(ours, "nlink", "same_as") == expected
        assert (ours.get(b"opt/program") or ours[b"opt/moved"])["nlink"] == 1
        run(*PUZZLEFS, "canonicalize", f"{layout}:{number}", "folded")
        assert shown(f"{layout}:folded") == ours
        run(*buildah, "umount", container)
        run(*buildah, "commit", "--quiet", container, f"image{number}")
