"""A metadata layer on top of an image, made from a whole tree: what is in it, and what the stack shows."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from support import trees

from puzzlefs.builder import StorageOptions, build
from puzzlefs.delta import build_from_tree, is_compressed
from puzzlefs.errors import InvalidArgumentError, SourceError
from puzzlefs.extract import extract
from puzzlefs.image import open_image
from puzzlefs.model import Directory, Inode, RegularFile, Whiteout

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes devices and gives files away, which takes root"),
]

_BIG = os.urandom(300_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for directory in ("etc", "usr/lib", "many"):
        (root / directory).mkdir(parents=True)
    (root / "etc/passwd").write_text("root")
    (root / "etc/Case").write_text("case")
    os.link(root / "etc/passwd", root / "etc/link")
    (root / "usr/lib/big").write_bytes(_BIG)
    (root / "usr/lib/empty").touch()
    (root / "usr/target").symlink_to("lib/big")
    os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(root / "usr/lib/big", "user.a", b"1")
    for number in range(50):
        (root / "many" / f"file{number}").write_bytes(bytes([number]) * 100)
    return root


def layer(reference: str) -> dict[int, Inode]:
    """The topmost metadata layer."""
    with open_image(reference) as image:
        return {inode.ino: inode for inode in image.rootfs.metadata_layers[0]}


def numbers(reference: str) -> dict[bytes, int]:
    """The inode number of each path."""
    found = {b".": 1}
    with open_image(reference) as image:
        stack = [(b"", 1)]
        while stack:
            path, ino = stack.pop()
            for entry in image.tree.entries(ino):
                found[path + entry.name] = entry.ino
                if isinstance(image.tree.inode(entry.ino).content, Directory):
                    stack.append((path + entry.name + b"/", entry.ino))
    return found


def check(root: Path, reference: str) -> None:
    """What the image shows, and what comes out of it, is the tree."""
    expected = trees.on_disk(root)
    with open_image(reference) as image:
        assert trees.in_image(image) == expected
        out = root.parent / f"out-{image.reference.tag}"
        extract(image, out)
    assert trees.on_disk(out) == expected


def on_top(root: Path, layout: Path, base: str, tag: str) -> int:
    """Build on top; how many inodes the layer has."""
    with open_image(f"{layout}:{base}") as image:
        return build_from_tree(root, image, tag).inodes


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "content": (lambda root: (root / "etc/passwd").write_text("ROOT"), {"etc/passwd"}),
    "length": (lambda root: (root / "usr/lib/big").write_bytes(_BIG + b"!"), {"usr/lib/big"}),
    "emptied": (lambda root: (root / "usr/lib/big").write_bytes(b""), {"usr/lib/big"}),
    "filled": (lambda root: (root / "usr/lib/empty").write_bytes(b"x"), {"usr/lib/empty"}),
    "mode": (lambda root: (root / "usr/lib/big").chmod(0o4711), {"usr/lib/big"}),
    "owner": (lambda root: os.chown(root / "usr", 5, 6), {"usr"}),
    "xattr": (lambda root: os.setxattr(root / "usr/lib/big", "user.a", b"2"), {"usr/lib/big"}),
    "no xattr": (lambda root: os.removexattr(root / "usr/lib/big", "user.a"), {"usr/lib/big"}),
    "root": (lambda root: root.chmod(0o700), {"."}),
    "deleted": (lambda root: (root / "many/file7").unlink(), {"many"}),
    "one link of two": (lambda root: (root / "etc/link").unlink(), {"etc"}),
    "a link more": (lambda root: os.link(root / "etc/passwd", root / "usr/zz"), {"usr"}),
    "a link more, met first": (lambda root: os.link(root / "usr/lib/big", root / "a"), {"."}),
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_only_what_changed_is_written(tmp_path: Path, root: Path, name: str, version: int) -> None:
    layout = tmp_path / "oci"
    build(root, f"{layout}:a", format_version=version)
    before = numbers(f"{layout}:a")
    change, expected = CHANGES[name]
    change(root)
    assert on_top(root, layout, "a", "b") == len(expected)
    check(root, f"{layout}:b")
    after = numbers(f"{layout}:b")
    assert set(layer(f"{layout}:b")) == {after[os.fsencode(path)] for path in expected}
    assert {path: ino for path, ino in after.items() if path in before} == {
        path: ino for path, ino in before.items() if path in after
    }
    with open_image(f"{layout}:b") as image:
        assert image.version == version
        assert len(image.rootfs.metadata_layers) == 2


def _replace(path: Path, make: Callable[[], object]) -> None:
    path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()
    make()


def _file_to_directory(root: Path) -> None:
    _replace(root / "etc/passwd", (root / "etc/passwd").mkdir)
    (root / "etc/passwd/new").write_text("new")


def _directory_to_symlink(root: Path) -> None:
    (root / "many").rename(root / "elsewhere")
    (root / "many").symlink_to("elsewhere")


def _rename_with_a_thousand(root: Path) -> None:
    for number in range(1000):
        (root / "many" / f"n{number:04}").write_bytes(b"%d" % number)
    (root / "many").rename(root / "usr/lib/moved")


def _split_a_link(root: Path) -> None:
    (root / "etc/link").unlink()
    (root / "etc/link").write_text("root")


def _join_two(root: Path) -> None:
    (root / "etc/Case").unlink()
    os.link(root / "usr/lib/big", root / "etc/Case")


def _device_numbers(root: Path) -> None:
    _replace(root / "device", lambda: os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 5)))


def _device_kind(root: Path) -> None:
    _replace(root / "device", lambda: os.mknod(root / "device", 0o600 | stat.S_IFBLK, os.makedev(1, 3)))


HARD: dict[str, Callable[[Path], object]] = {
    "file to directory": _file_to_directory,
    "directory to symlink": _directory_to_symlink,
    "rename of a thousand": _rename_with_a_thousand,
    "a link split": _split_a_link,
    "two files joined": _join_two,
    "device numbers": _device_numbers,
    "character to block device": _device_kind,
    "case": lambda root: (root / "etc/Case").rename(root / "etc/case"),
    "symlink target": lambda root: _replace(root / "usr/target", lambda: (root / "usr/target").symlink_to("nowhere")),
    "fifo": lambda root: _replace(root / "etc/Case", lambda: os.mkfifo(root / "etc/Case")),
    "swapped": lambda root: (
        (root / "etc/Case").rename(root / "x"),
        (root / "many/file1").rename(root / "etc/Case"),
        (root / "x").rename(root / "many/file1"),
    ),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("options", [{}, {"compression": True}, {"format_version": 1}], ids=["raw", "-c", "v1"])
def test_whatever_happened_the_stack_shows_the_tree(
    tmp_path: Path, root: Path, name: str, options: dict[str, int]
) -> None:
    layout = tmp_path / "oci"
    build(root, f"{layout}:a", **options)  # type: ignore[arg-type]
    HARD[name](root)
    on_top(root, layout, "a", "b")
    check(root, f"{layout}:b")
    (root / "etc/one-more").write_text("on top of that")
    assert on_top(root, layout, "b", "c") == 2
    check(root, f"{layout}:c")
    assert not any(isinstance(inode.content, Whiteout) for inode in layer(f"{layout}:b").values())
    assert not any(getattr(inode.content, "look_below", False) for inode in layer(f"{layout}:b").values())


def test_no_difference_is_no_layer(tmp_path: Path, root: Path) -> None:
    layout = tmp_path / "oci"
    first = build(root, f"{layout}:a")
    with open_image(f"{layout}:a") as base:
        report = build_from_tree(root, base, "b")
    assert (report.digest, report.inodes, report.stored_bytes) == (first.digest, 0, 0)
    with open_image(f"{layout}:b") as image, open_image(f"{layout}:a") as base:
        assert image.manifest_digest == base.manifest_digest


def test_new_numbers_follow_the_highest_of_all_layers(tmp_path: Path, root: Path) -> None:
    layout = tmp_path / "oci"
    build(root, f"{layout}:a")
    (root / "new1").touch()
    on_top(root, layout, "a", "b")
    (root / "new1").unlink()
    (root / "new2").touch()
    on_top(root, layout, "b", "c")
    found = numbers(f"{layout}:c")
    with open_image(f"{layout}:b") as image:
        hidden = image.rootfs.metadata_layers[0].max_ino()
    assert found[b"new2"] == hidden + 1


def test_where_only_attributes_differ_no_content_is_read_for_storing(tmp_path: Path, root: Path) -> None:
    layout = tmp_path / "oci"
    build(root, f"{layout}:a")
    (root / "usr/lib/big").chmod(0o600)
    with open_image(f"{layout}:a") as base:
        report = build_from_tree(root, base, "b")
        old = base.tree.inode(numbers(f"{layout}:a")[b"usr/lib/big"]).content
    assert (report.content_size, report.new_chunks) == (0, 0)
    (new,) = layer(f"{layout}:b").values()
    assert isinstance(old, RegularFile)
    assert isinstance(new.content, RegularFile)
    assert list(new.content.chunks) == list(old.chunks)


def test_timestamps_are_kept_where_the_base_has_them(tmp_path: Path, root: Path) -> None:
    layout = tmp_path / "oci"
    build(root, f"{layout}:a", timestamps="keep")
    build(root, f"{layout}:n")
    os.utime(root / "etc/Case", ns=(1, 12345))
    assert on_top(root, layout, "a", "b") == 1
    assert on_top(root, layout, "n", "m") == 0
    with open_image(f"{layout}:b") as image:
        assert trees.in_image(image, mtime=True) == trees.on_disk(root, mtime=True)


def test_compression_is_that_of_the_base(tmp_path: Path, root: Path) -> None:
    layout = tmp_path / "oci"
    (root / "text").write_bytes(b"squeeze me " * 5000)
    build(root, f"{layout}:raw")
    build(root, f"{layout}:small", compression=True, storage=StorageOptions(compress_metadata=True))
    (root / "text").write_bytes(b"squeeze me too " * 5000)
    for tag, expected in (("raw", False), ("small", True)):
        on_top(root, layout, tag, f"{tag}-2")
        with open_image(f"{layout}:{tag}-2") as image:
            assert is_compressed(image) is expected
            (inode,) = image.rootfs.metadata_layers[0]
            assert isinstance(inode.content, RegularFile)
            assert inode.content.chunks[0].blob.compressed is expected
        check(root, f"{layout}:{tag}-2")


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = tmp_path / "oci"
    build(root, f"{layout}:a")
    real = os.readv

    def grow(fd: int, buffers: list[memoryview]) -> int:
        count = real(fd, buffers)
        with open(root / "usr/lib/big", "ab") as file:
            file.write(b"!")
        return count

    with open_image(f"{layout}:a") as base:
        monkeypatch.setattr("puzzlefs.delta.whole_tree.os.readv", grow)
        with pytest.raises(SourceError, match="changed while it was read"):
            build_from_tree(root, base, "b")
    monkeypatch.undo()
    with pytest.raises(Exception, match="no tag"):
        open_image(f"{layout}:b")


def test_a_tree_that_holds_the_layout_is_refused(tmp_path: Path, root: Path) -> None:
    build(root, f"{tmp_path / 'oci'}:a")
    with open_image(f"{tmp_path / 'oci'}:a") as base, pytest.raises(InvalidArgumentError, match="inside of"):
        build_from_tree(tmp_path, base, "b")


def test_many_layers(tmp_path: Path, root: Path) -> None:
    layout = tmp_path / "oci"
    build(root, f"{layout}:l0")
    sizes = []
    for number in range(1, 30):
        (root / "many" / f"file{number}").write_bytes(os.urandom(50))
        with open_image(f"{layout}:l{number - 1}") as base:
            build_from_tree(root, base, f"l{number}")
            sizes.append(len(base.rootfs_data))
    check(root, f"{layout}:l29")
    growth = [after - before for before, after in pairwise(sizes)]
    # Nothing of what was there is written again but three words for each layer.
    assert all(size < 400 + 24 * number for number, size in enumerate(growth[1:]))
