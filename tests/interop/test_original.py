"""The original implementation's own program: it writes what we write, reads what we write, and we read what it writes.

``make setup-original`` builds it; 0.1.0 knows format version 2 only, 0.2.0 version 3 only. What it cannot do is left
out of what is compared:

* Several extended attributes of a file it stores in the order that the host lists them in, and we by their names.
* Its mounts show no times, link counts or device numbers, and of a directory with a white-out only what is before it.
* Its layers give a new file the inode number of the one that had the name before, also where that one has another name.
* Its extraction loses set-user-ID bits, and ends at special files and at links whose targets are not there yet.
"""

from __future__ import annotations

import filecmp
import os
import random
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import trees
from support.archives import odd_tree
from support.edits import Editor
from support.layouts import blob_names, shown
from support.original_program import Original, each_original
from support.writable import digest_of, puzzlefs

from puzzlefs.image import open_image

pytestmark = pytest.mark.interop
mounts = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="mounting takes root and /dev/fuse"
)


@pytest.fixture
def made_tree(vectors: Path, tmp_path: Path) -> Path:
    """The tree that the original's images beside the project were made of."""
    if os.geteuid() != 0:
        pytest.skip("there are devices in that tree, which only root can make")
    root = tmp_path / "made"
    subprocess.run([sys.executable, vectors / "make_tree.py", root], check=True)
    return root


@pytest.fixture
def simple_tree(tmp_path: Path) -> Path:
    """A tree that the original can extract."""
    root = tmp_path / "simple"
    (root / "bin" / "deep" / "er").mkdir(parents=True)
    (root / "bin" / "program").write_bytes(os.urandom(900_000))
    (root / "bin" / "program").chmod(0o755)
    (root / "bin" / "deep" / "text").write_text("line\n" * 50_000)
    (root / "bin" / "deep" / "er" / "empty").touch(0o600)
    os.link(root / "bin" / "program", root / "bin" / "second-name")
    (root / "bin" / "deep").chmod(0o1777)
    return root


def ours(root: Path, layout: Path, tag: str, *options: str) -> str:
    """Build an image; its digest."""
    return digest_of(puzzlefs("build", "--quiet", "--no-cache", *options, root, f"{layout}:{tag}"))


def assert_same_layout(theirs: Original, root: Path, work: Path) -> None:
    """Both builds of a tree have the same digest, and the same files with the same bytes."""
    a, b = work / "theirs", work / "ours"
    assert theirs.build(root, a, "t") == ours(root, b, "t", f"--format-version={theirs.version}")
    names = {path.relative_to(a) for path in a.rglob("*") if path.is_file()}
    assert names == {path.relative_to(b) for path in b.rglob("*") if path.is_file()}
    assert [name for name in names if not filecmp.cmp(a / name, b / name, shallow=False)] == []


def theirs_show(tree: trees.Tree) -> trees.Tree:
    """A tree as a mount of the original shows it."""
    return trees.without(tree, "nlink", "same_as", "device")


def without_links(root: Path) -> Path:
    """The tree, with one name at most left of each file."""
    for path in root.rglob("*"):
        status = path.lstat()
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            path.unlink()
    return root


def with_single_xattrs(root: Path) -> Path:
    """The tree, with all but one of the extended attributes of each file removed."""
    for path in (root, *root.rglob("*")):
        for name in sorted(os.listxattr(path, follow_symlinks=False))[1:]:
            os.removexattr(path, name, follow_symlinks=False)
    return root


# ---- the same bytes


@each_original
@pytest.mark.parametrize("which", ["made", "odd"])
def test_both_write_the_same_layout(theirs: Original, tmp_path: Path, made_tree: Path, which: str) -> None:
    root = made_tree if which == "made" else with_single_xattrs(odd_tree(tmp_path / "odd", sockets=True))
    assert_same_layout(theirs, root, tmp_path)


@each_original
@pytest.mark.parametrize("seed", range(8))
def test_both_write_the_same_layout_of_any_tree(theirs: Original, tmp_path: Path, seed: int) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    Editor(root, random.Random(seed)).run(300)
    assert_same_layout(theirs, with_single_xattrs(root), tmp_path)


@each_original
def test_both_write_into_one_layout(theirs: Original, tmp_path: Path, made_tree: Path) -> None:
    """A layout that one of them began goes on with the other, and what is there is not stored twice."""
    layout = tmp_path / "images"
    version = f"--format-version={theirs.version}"
    theirs.build(made_tree, layout, "first")
    before = blob_names(layout)
    ours(made_tree, layout, "again", version)
    assert blob_names(layout) == before
    (made_tree / "etc" / "new").write_text("new\n")
    digest = ours(made_tree, layout, "second", version)
    assert theirs.build(made_tree, layout, "third") == digest
    for tag in ("second", "third"):
        assert shown(f"{layout}:{tag}") == trees.on_disk(made_tree)
    puzzlefs("fsck", layout)


# ---- they read ours

OPTIONS: Sequence[tuple[str, ...]] = (
    (),
    ("--compression",),
    ("--compression", "--compression-level=19", "--chunk-size=128K"),
    ("--timestamps=keep",),
)


@mounts
@each_original
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_the_original_mounts_what_we_build(
    theirs: Original, tmp_path: Path, made_tree: Path, options: Sequence[str]
) -> None:
    layout = tmp_path / "images"
    ours(made_tree, layout, "t", f"--format-version={theirs.version}", *options)
    with theirs.mounted(layout, "t", tmp_path / "mnt") as point:
        assert theirs_show(trees.on_disk(point)) == theirs_show(trees.on_disk(made_tree))


@each_original
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_the_original_extracts_what_we_build(
    theirs: Original, tmp_path: Path, simple_tree: Path, options: Sequence[str]
) -> None:
    layout = tmp_path / "images"
    ours(simple_tree, layout, "t", f"--format-version={theirs.version}", *options)
    theirs.extract(layout, "t", tmp_path / "out")
    assert trees.on_disk(tmp_path / "out") == trees.on_disk(simple_tree)


@mounts
@each_original
def test_the_original_mounts_layers_of_ours(theirs: Original, tmp_path: Path, made_tree: Path) -> None:
    """Three layers: what was added, changed and removed shows."""
    layout = tmp_path / "images"
    ours(made_tree, layout, "0", f"--format-version={theirs.version}")
    for number in range(1, 4):
        Editor(made_tree, random.Random(number)).run(60)
        ours(made_tree, layout, f"{number}", "--base-layer", f"{number - 1}")
    assert theirs_show(shown(f"{layout}:3")) == theirs_show(trees.on_disk(made_tree))
    with theirs.mounted(layout, "3", tmp_path / "mnt") as point:
        assert theirs_show(trees.on_disk(point)) == theirs_show(trees.on_disk(made_tree))


@mounts
@each_original
def test_the_original_mounts_what_we_made_of_its_image(theirs: Original, tmp_path: Path, made_tree: Path) -> None:
    """Copied, converted to the other version and back, folded: it is what it was."""
    layout = tmp_path / "images"
    theirs.build(made_tree, layout, "t", "-c")
    puzzlefs("copy", f"{layout}:t", f"{tmp_path / 'copy'}:t")
    other = tmp_path / "other"
    puzzlefs("convert", "--format-version", str(5 - theirs.version), f"{layout}:t", f"{other}:other")
    back = tmp_path / "back"
    puzzlefs("convert", "--format-version", str(theirs.version), f"{other}:other", f"{back}:t")
    puzzlefs("canonicalize", f"{layout}:t", "folded")
    for number, (where, tag) in enumerate(((tmp_path / "copy", "t"), (back, "t"), (layout, "folded"))):
        with theirs.mounted(where, tag, tmp_path / f"mnt{number}") as point:
            assert theirs_show(trees.on_disk(point)) == theirs_show(trees.on_disk(made_tree))


# ---- we read theirs


@each_original
@pytest.mark.parametrize("options", [(), ("-c",)], ids=["plain", "zstd"])
def test_we_show_what_the_original_builds(
    theirs: Original, tmp_path: Path, made_tree: Path, options: Sequence[str]
) -> None:
    layout = tmp_path / "images"
    digest = theirs.build(made_tree, layout, "t", *options)
    with open_image(f"{layout}:t", digest=digest) as image:
        assert image.version == theirs.version
        assert trees.in_image(image) == trees.on_disk(made_tree)
    puzzlefs("fsck", layout)
    puzzlefs("extract", f"{layout}:t", tmp_path / "out")
    assert trees.on_disk(tmp_path / "out") == trees.on_disk(made_tree)


@each_original
@pytest.mark.parametrize("seed", range(6))
def test_we_show_layers_of_the_original(theirs: Original, tmp_path: Path, seed: int) -> None:
    """On an image of ours, and ours again on top of that."""
    root, layout = tmp_path / "tree", tmp_path / "images"
    root.mkdir()
    editor = Editor(root, random.Random(seed))
    editor.run(150)
    ours(without_links(root), layout, "a", f"--format-version={theirs.version}")
    editor.run(50)
    theirs.build(without_links(root), layout, "b", "--base-layer", "a")
    assert shown(f"{layout}:b") == trees.on_disk(root)
    editor.run(50)
    ours(root, layout, "c", "--base-layer", "b")
    assert shown(f"{layout}:c") == trees.on_disk(root)
    puzzlefs("fsck", layout)
    puzzlefs("canonicalize", f"{layout}:c", "d")
    assert shown(f"{layout}:d") == trees.on_disk(root)
