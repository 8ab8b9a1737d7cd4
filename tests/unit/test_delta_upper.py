"""A metadata layer from an upper directory: every mark of overlayfs, and upper directories that do not fit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support import trees
from support.trees import Tree

from puzzlefs.builder import BuildReport, build
from puzzlefs.delta import build_from_upper
from puzzlefs.errors import PuzzlefsError, SourceError
from puzzlefs.image import open_image
from puzzlefs.model import Directory

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes white-outs and trusted attributes, which takes root"),
]


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout with an image ``base`` of ``tmp_path / lower``."""
    lower = tmp_path / "lower"
    for directory in ("d/sub", "e", "deep/er/still"):
        (lower / directory).mkdir(parents=True)
    for name in ("a", "b", "d/f", "d/sub/g", "e/h", "deep/er/still/x"):
        (lower / name).write_text(f"lower {name}" * 100)
    os.link(lower / "a", lower / "e/a-too")
    build(lower, f"{tmp_path / 'oci'}:base")
    return tmp_path / "oci"


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    upper = tmp_path / "upper"
    upper.mkdir()
    return upper


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def commit(layout: Path, upper: Path, tag: str = "new") -> BuildReport:
    with open_image(f"{layout}:base") as base:
        return build_from_upper(upper, base, tag)


def shown(layout: Path, tag: str = "new") -> Tree:
    with open_image(f"{layout}:{tag}") as image:
        return trees.in_image(image)


def contents(layout: Path, tag: str = "new") -> dict[str, str]:
    """Path → content, or the type of file."""
    found = {}
    with open_image(f"{layout}:{tag}") as image:
        for path, node in trees.in_image(image).items():
            ino = image.tree.root
            for name in path.split(b"/") if path != b"." else []:
                ino = image.tree.lookup(ino, name).ino
            found[path.decode()] = image.read(ino, 0, 20).decode() if node["type"] == "file" else node["type"]
    return found


def test_nothing_written(layout: Path, upper: Path) -> None:
    (upper / "deep/er").mkdir(parents=True)  # copied up, and as they were
    report = commit(layout, upper)
    assert report.inodes == 0
    assert shown(layout) == shown(layout, "base")


def test_a_file_is_new_and_one_is_replaced(layout: Path, upper: Path) -> None:
    (upper / "a").write_text("upper a")
    (upper / "d/sub").mkdir(parents=True)
    (upper / "d/sub/n").write_text("upper n")
    assert commit(layout, upper).inodes == 4  # both files, the root and d/sub; d is as it was
    now = contents(layout)
    assert (now["a"], now["d/sub/n"], now["d/sub/g"][:7]) == ("upper a", "upper n", "lower d")
    assert now["e/a-too"].startswith("lower a")  # copy-up has cut the link
    assert shown(layout)[b"e/a-too"]["nlink"] == 1


def _xattr_whiteout(path: Path) -> None:
    path.touch()
    os.setxattr(path, "user.overlay.whiteout", b"")
    os.setxattr(path.parent, "user.overlay.opaque", b"x")


@pytest.mark.parametrize("make", [whiteout, _xattr_whiteout])
def test_whiteouts(layout: Path, upper: Path, make: Callable[[Path], None]) -> None:
    (upper / "d").mkdir()
    make(upper / "d/f")
    make(upper / "d/sub")
    make(upper / "b")
    make(upper / "never-was-there")
    commit(layout, upper)
    assert set(shown(layout)) == {
        path.encode()
        for path in (".", "a", "d", "e", "e/h", "e/a-too", "deep", "deep/er", "deep/er/still", "deep/er/still/x")
    }
    with open_image(f"{layout}:new") as image:
        for inode in image.rootfs.metadata_layers[0]:
            assert isinstance(inode.content, Directory)
            assert not inode.content.look_below


@pytest.mark.parametrize("prefix", ["trusted", "user"])
def test_opaque_directories(layout: Path, upper: Path, prefix: str) -> None:
    for name, value in (("d", b"y"), ("e", b"x"), ("deep", b"n")):
        (upper / name).mkdir()
        (upper / name / "new").touch()
        os.setxattr(upper / name, f"{prefix}.overlay.opaque", value)
    commit(layout, upper)
    now = set(contents(layout))
    assert {path for path in now if path.startswith("d/")} == {"d/new"}
    assert {path for path in now if path.startswith("e/")} == {"e/new", "e/h", "e/a-too"}
    assert "deep/er/still/x" in now


def test_private_attributes_stay_out_and_escaped_ones_come_back(layout: Path, upper: Path) -> None:
    (upper / "d").mkdir()
    (upper / "b").write_text("b")
    for path in (upper, upper / "d", upper / "b"):
        for prefix in ("trusted", "user"):
            for name in ("origin", "impure", "nlink", "upper", "uuid", "protattr", "something.new"):
                os.setxattr(path, f"{prefix}.overlay.{name}", b"x")
            os.setxattr(path, f"{prefix}.overlay.overlay.opaque", b"mine")
        os.setxattr(path, "user.own", b"1")
    commit(layout, upper)
    expected = {b"trusted.overlay.opaque": b"mine", b"user.overlay.opaque": b"mine", b"user.own": b"1"}
    now = shown(layout)
    assert [now[path]["xattrs"] for path in (b".", b"d", b"b")] == [expected] * 3


@pytest.mark.parametrize(("userxattr", "private", "ordinary"), [(False, "trusted", "user"), (True, "user", "trusted")])
def test_attributes_of_the_other_kind_of_mount_are_ordinary(
    layout: Path, upper: Path, userxattr: bool, private: str, ordinary: str
) -> None:
    for name, prefix in (("d", private), ("e", ordinary)):
        (upper / name).mkdir()
        os.setxattr(upper / name, f"{prefix}.overlay.opaque", b"y")
    with open_image(f"{layout}:base") as base:
        build_from_upper(upper, base, "new", userxattr=userxattr)
    now = shown(layout)
    assert not any(path.startswith(b"d/") for path in now)
    assert b"e/h" in now
    assert now[b"e"]["xattrs"] == {f"{ordinary}.overlay.opaque".encode(): b"y"}
    assert "xattrs" not in now[b"d"]


def test_links_within_the_upper_directory_stay_links(layout: Path, upper: Path) -> None:
    (upper / "d").mkdir()
    (upper / "d/f").write_text("f")
    os.link(upper / "d/f", upper / "link1")
    os.mkfifo(upper / "pipe")
    os.link(upper / "pipe", upper / "d/pipe2")
    commit(layout, upper)
    now = shown(layout)
    assert (now[b"link1"]["nlink"], now[b"link1"]["same_as"]) == (2, now[b"d/f"]["same_as"])
    assert now[b"pipe"]["same_as"] == now[b"d/pipe2"]["same_as"]


def test_a_directory_that_moved(layout: Path, upper: Path) -> None:
    for name, redirect in (("moved", b"/deep/er"), ("beside", b"e")):
        (upper / name).mkdir()
        os.setxattr(upper / name, "trusted.overlay.redirect", redirect)
    (upper / "moved/still").mkdir()
    (upper / "moved/still/y").write_text("new")
    (upper / "deep").mkdir()
    whiteout(upper / "deep/er")
    whiteout(upper / "e")
    commit(layout, upper)
    now = contents(layout)
    assert "deep/er" not in now
    assert "e" not in now
    assert now["beside/h"].startswith("lower e/h")
    assert (now["moved/still/y"], now["moved/still/x"][:10]) == ("new", "lower deep")


def test_only_attributes_copied_up(layout: Path, upper: Path) -> None:
    (upper / "e").mkdir()
    for name, redirect in (("b", None), ("e/moved", b"/d/sub/g")):
        os.truncate(_touched(upper / name), 5)
        (upper / name).chmod(0o600)
        os.setxattr(upper / name, "trusted.overlay.metacopy", b"")
        if redirect is not None:
            os.setxattr(upper / name, "trusted.overlay.redirect", redirect)
    report = commit(layout, upper)
    assert report.content_size == 0
    now, before = shown(layout), shown(layout, "base")
    assert now[b"b"] == before[b"b"] | {"permissions": 0o600}
    assert now[b"e/moved"] == before[b"d/sub/g"] | {"permissions": 0o600}


def _touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("redirect", [b"/not/there", b"gone", b"/a", b"../d", b"/d/../e", b"/"])
def test_references_to_what_is_not_there(layout: Path, upper: Path, redirect: bytes) -> None:
    (upper / "x").mkdir()
    os.setxattr(upper / "x", "trusted.overlay.redirect", redirect)
    with pytest.raises(SourceError, match="which the image does not have"):
        commit(layout, upper)


def test_a_copied_up_attribute_of_nothing(layout: Path, upper: Path) -> None:
    os.setxattr(_touched(upper / "not-below"), "trusted.overlay.metacopy", b"")
    with pytest.raises(SourceError, match=r"not-below.*which the image does not have"):
        commit(layout, upper)


def test_two_directories_over_one(layout: Path, upper: Path) -> None:
    for name in ("e", "e2"):
        (upper / name).mkdir()
    os.setxattr(upper / "e2", "trusted.overlay.redirect", b"e")
    with pytest.raises(SourceError, match="another one lies over"):
        commit(layout, upper)


def test_kinds_change(layout: Path, upper: Path) -> None:
    (upper / "a").mkdir()
    (upper / "a/in").write_text("in")
    (upper / "d").symlink_to("e")
    whiteout(upper / "b")
    os.mknod(upper / "e", stat.S_IFBLK | 0o600, os.makedev(7, 1))
    commit(layout, upper)
    now = contents(layout)
    assert (now["a"], now["a/in"], now["d"], now["e"]) == ("dir", "in", "symlink", "block")
    assert "b" not in now
    assert not any(path.startswith(("d/", "e/")) for path in now)


def test_a_failed_commit_leaves_no_tag(layout: Path, upper: Path) -> None:
    (upper / "f").write_bytes(os.urandom(100_000))
    (upper / "x").mkdir()
    os.setxattr(upper / "x", "trusted.overlay.redirect", b"/nowhere")
    before = {path: path.stat().st_size for path in layout.rglob("*") if path.is_file()}
    with pytest.raises(PuzzlefsError):
        commit(layout, upper)
    assert {path: path.stat().st_size for path in layout.rglob("*") if path.is_file()} == before
