"""Paths inside an image: what Linux itself makes of them, with another root, is what they must mean."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import forge as f
from support.forge import Forge

from puzzlefs.errors import (
    FormatError,
    InvalidArgumentError,
    PathError,
    PathNotDirectoryError,
    PathNotFoundError,
    PuzzlefsError,
)
from puzzlefs.image import open_image
from puzzlefs.model import Directory, Fifo, Inode, Kind, MetadataLayer, RegularFile, Whiteout
from puzzlefs.vfs import Tree
from puzzlefs.vfs.paths import MAX_LINKS, MAX_PATH, ROOT, entries_of, join, resolve, shown, walk_below

pytestmark = pytest.mark.unit

Shape = Mapping[bytes, "Shape | bytes | None"]
"""A directory: names → another, the target of a symlink, or ``None`` for an empty file."""


def tree_of(shape: Shape) -> Tree:
    """The image of a shape."""
    inodes: list[Inode] = []

    def add(node: Shape | bytes | None) -> int:
        ino = len(inodes) + 1
        inodes.append(f.regular(ino))
        if isinstance(node, bytes):
            inodes[ino - 1] = f.symlink(ino, node)
        elif node is not None:
            inodes[ino - 1] = f.directory(ino, sorted((name, add(child)) for name, child in node.items()))
        return ino

    add(shape)
    return Tree([MetadataLayer(inodes)])


def make(shape: Shape, top: bytes) -> None:
    """The same on the host."""
    for name, node in shape.items():
        path = os.path.join(top, name)
        if node is None:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        elif isinstance(node, bytes):
            os.symlink(node, path)
        else:
            os.mkdir(path)
            make(node, path)


SHAPE: Shape = {
    b"etc": {b"passwd": None, b"up": b"../..", b"self": b"."},
    b"bin": b"usr/bin",
    b"usr": {b"bin": {b"sh": b"dash", b"dash": None, b"X11": b"."}, b"home": b"/etc", b"slash": b"/etc/"},
    b"loop": b"loop",
    b"ring": {b"a": b"../ring/b", b"b": b"/ring/a"},
    b"dangling": b"/etc/nothing",
    b"file-slash": b"etc/passwd/",
    b"escape": b"../../../../etc/passwd",
    b"\xff\xfe": None,
}
TREE = tree_of(SHAPE)


@pytest.mark.parametrize(
    ("path", "place", "itself"),
    [
        (b"", b"/", b"/"),
        (b"/", b"/", b"/"),
        (b"//etc//passwd", b"/etc/passwd", b"/etc/passwd"),
        (b"etc/./passwd", b"/etc/passwd", b"/etc/passwd"),
        (b"..", b"/", b"/"),
        (b"/../../etc", b"/etc", b"/etc"),
        (b"etc/", b"/etc", b"/etc"),
        (b"bin", b"/usr/bin", b"/bin"),
        (b"bin/", b"/usr/bin", b"/usr/bin"),
        (b"bin/sh", b"/usr/bin/dash", b"/usr/bin/sh"),
        (b"bin/X11/X11/sh", b"/usr/bin/dash", b"/usr/bin/sh"),
        (b"bin/..", b"/usr", b"/usr"),
        (b"usr/home/passwd", b"/etc/passwd", b"/etc/passwd"),
        (b"usr/slash", b"/etc", b"/usr/slash"),
        (b"etc/up/etc/up/bin", b"/usr/bin", b"/bin"),
        (b"escape", b"/etc/passwd", b"/escape"),
        (b"\xff\xfe", b"/\xff\xfe", b"/\xff\xfe"),
    ],
)
def test_where_paths_lead(path: bytes, place: bytes, itself: bytes) -> None:
    assert resolve(TREE, path).path == place
    assert resolve(TREE, path, follow=False).path == itself
    found = resolve(TREE, path)
    assert found.kind is TREE.kind(found.ino)
    parent = resolve(TREE, found.path + b"/.." if found.kind is Kind.DIRECTORY else os.path.dirname(found.path))
    assert found.parent == parent.ino


@pytest.mark.parametrize(
    ("path", "kind", "number", "message"),
    [
        (b"nothing", PathNotFoundError, errno.ENOENT, "/nothing does not exist in the image"),
        (b"etc/no/thing", PathNotFoundError, errno.ENOENT, "/etc/no does not exist in the image"),
        (b"dangling", PathNotFoundError, errno.ENOENT, "dangling leads to /etc/nothing, which does not exist"),
        (b"etc/passwd/x", PathNotDirectoryError, errno.ENOTDIR, "/etc/passwd is not a directory"),
        (b"etc/passwd/", PathNotDirectoryError, errno.ENOTDIR, "/etc/passwd is not a directory"),
        (b"etc/passwd/..", PathNotDirectoryError, errno.ENOTDIR, "/etc/passwd is not a directory"),
        (b"file-slash", PathNotDirectoryError, errno.ENOTDIR, "file-slash leads to /etc/passwd, which is not a direc"),
        (b"loop", PathError, errno.ELOOP, "more than 40 symbolic links"),
        (b"ring/a/x", PathError, errno.ELOOP, "more than 40 symbolic links"),
        (b"\x1b[31m", PathNotFoundError, errno.ENOENT, r"'/\x1b[31m' does not exist"),
    ],
)
def test_paths_that_lead_nowhere_say_what_is_missing(
    path: bytes, kind: type[PuzzlefsError], number: int, message: str
) -> None:
    with pytest.raises(kind) as caught:
        resolve(TREE, path)
    assert type(caught.value) is kind
    assert isinstance(caught.value, OSError)
    assert (caught.value.errno, caught.value.filename) == (number, os.fsdecode(path))
    assert message in str(caught.value)


def test_errors_are_the_usual_ones_too() -> None:
    with pytest.raises(FileNotFoundError):
        resolve(TREE, b"nothing")
    with pytest.raises(NotADirectoryError):
        resolve(TREE, b"etc/passwd/x")
    with pytest.raises(InvalidArgumentError, match="NUL"):
        resolve(TREE, b"etc\0")


def test_so_many_links_and_no_more() -> None:
    shape = {b"0": None} | {b"%d" % number: b"%d" % (number - 1) for number in range(1, MAX_LINKS + 2)}
    tree = tree_of(shape)
    assert resolve(tree, b"%d" % MAX_LINKS).path == b"/0"
    with pytest.raises(PathError):
        resolve(tree, b"%d" % (MAX_LINKS + 1))


# ---- as Linux does it

_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_LIBC = ctypes.CDLL(None, use_errno=True)


def by_linux(root_fd: int, root: bytes, path: bytes, *, follow: bool) -> bytes | int:
    """Where ``path`` leads below ``root`` according to openat2(2), or the errno."""
    how = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), 0, _RESOLVE_IN_ROOT)
    fd = _LIBC.syscall(_OPENAT2, root_fd, path, how, len(how))
    if fd < 0:
        return ctypes.get_errno()
    try:
        return os.readlink(b"/proc/self/fd/%d" % fd)[len(root) :] or b"/"
    finally:
        os.close(fd)


_NAME = st.sampled_from([b"a", b"b", b"c", b"d"])
_STEP = st.one_of(_NAME, _NAME, st.sampled_from([b"..", b".", b""]))
_PATH = st.builds(
    lambda start, steps, end: start + b"/".join(steps) + end,
    st.sampled_from([b"", b"/"]),
    st.lists(_STEP, max_size=6),
    st.sampled_from([b"", b"/"]),
)
_LEAF = st.one_of(st.none(), _PATH.filter(bool))
_SHAPE = st.recursive(
    st.dictionaries(_NAME, _LEAF, max_size=4),
    lambda inner: st.dictionaries(_NAME, st.one_of(_LEAF, inner), max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(shape=_SHAPE, paths=st.lists(_PATH.filter(bool), min_size=1, max_size=8))
def test_linux_agrees(shape: Shape, paths: list[bytes]) -> None:
    tree = tree_of(shape)
    with tempfile.TemporaryDirectory() as directory:
        root = os.path.realpath(os.fsencode(directory))
        make(shape, root)
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        try:
            for path in paths:
                for follow in (True, False):
                    expected = by_linux(root_fd, root, path, follow=follow)
                    if expected == errno.ENOSYS:
                        pytest.skip("openat2 needs Linux 5.6")
                    try:
                        found: bytes | int = resolve(tree, path, follow=follow).path
                    except OSError as error:
                        assert error.errno is not None
                        found = error.errno
                    assert found == expected, (path, follow)
        finally:
            os.close(root_fd)


# ---- walking


def test_a_walk_meets_everything_once_and_in_order() -> None:
    visits = list(walk_below(TREE, ROOT, b"/"))
    paths = [visit.path + visit.entry.name for visit in visits]
    assert len(paths) == len(set(paths)) == 20
    assert paths == sorted(paths, key=lambda path: path.split(b"/"))
    for visit in visits:
        assert visit.depth == (visit.path + visit.entry.name).count(b"/") - 1
        assert resolve(TREE, visit.path).ino == visit.parent
        assert resolve(TREE, visit.path + visit.entry.name, follow=False).ino == visit.entry.ino


def test_a_walk_begins_anywhere_and_ends_where_it_is_told() -> None:
    usr = resolve(TREE, b"usr")
    assert [visit.path + visit.entry.name for visit in walk_below(TREE, usr, b"usr", max_depth=0)] == [
        b"usr/bin",
        b"usr/home",
        b"usr/slash",
    ]
    assert next(walk_below(TREE, usr, b"./usr/")).path == b"./usr/"
    assert list(walk_below(TREE, resolve(TREE, b"etc/passwd"), b"etc/passwd")) == []
    with pytest.raises(PathNotDirectoryError, match="/etc/passwd is not a directory"):
        entries_of(TREE, resolve(TREE, b"etc/passwd"))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_bad_entries_do_not_hide_their_neighbours(tmp_path: Path, version: int) -> None:
    """An entry that points to nothing, a directory with two places, one whose list is broken; and the rest is there."""
    forge = Forge(tmp_path / "layout", version)
    image = open_image(
        forge.image(
            [
                f.directory(1, {b"a": 2, b"again": 2, b"bad": 3, b"gone": 99, b"root": 1, b"z": 4}),
                f.directory(2, {b"inner": 5}),
                f.directory(3, [(b"x", 5), (b"x", 4)]),
                f.regular(4),
                f.regular(5),
            ]
        )
    )
    failed: dict[bytes, PuzzlefsError] = {}
    visits = list(walk_below(image.tree, ROOT, b"/", failed=failed.__setitem__))
    assert [visit.path + visit.entry.name for visit in visits] == [b"/a", b"/a/inner", b"/bad", b"/z"]
    assert set(failed) == {b"/again", b"/bad", b"/gone", b"/root"}
    assert all(isinstance(error, FormatError) for error in failed.values())
    with pytest.raises(FormatError, match="second name"):
        list(walk_below(image.tree, ROOT, b"/"))
    with pytest.raises(FormatError, match=r"/again: entry .* is a second name"):
        resolve(image.tree, b"/again/inner")
    image.close()


def test_a_bomb_of_nesting_ends_at_a_depth() -> None:
    count = 2 * MAX_PATH // 250
    inodes = [f.directory(ino, {b"n" * 250: ino + 1}) for ino in range(1, count)]
    tree = Tree([MetadataLayer([*inodes, f.directory(count)])])
    failed: list[tuple[bytes, PuzzlefsError]] = []
    visits = list(walk_below(tree, ROOT, b"/", failed=lambda path, error: failed.append((path, error))))
    assert len(visits) == MAX_PATH // 251 + 1
    assert [type(error) for _, error in failed] == [FormatError]
    assert "too deep" in str(failed[0][1])
    assert len(str(failed[0][1])) < 400


def test_more_entries_than_the_image_can_hold_are_refused() -> None:
    tree = Tree([MetadataLayer([f.directory(1, {b"%d" % n: n for n in range(2, 12)}), *map(f.regular, range(2, 12))])])
    assert len(list(walk_below(tree, ROOT, b"/"))) == 10
    tree.max_entries = 9
    with pytest.raises(FormatError, match="more than 9 entries"):
        list(walk_below(tree, ROOT, b"/", failed=lambda path, error: pytest.fail(f"{path!r}: {error}")))


def test_layers_are_seen_as_the_tree_shows_them() -> None:
    below = [f.directory(1, {b"a": 2, b"b": 3}), f.directory(2, {b"x": 4}), f.symlink(3, b"a"), f.inode(4, Fifo())]
    above = [
        f.directory(1, {b"a": 2, b"b": 3}),
        f.inode(4, Whiteout()),
        f.directory(2, {b"x": 4, b"y": 5}),
        f.regular(5),
    ]
    tree = Tree([MetadataLayer(above), MetadataLayer(below)])
    assert resolve(tree, b"b/y").path == b"/a/y"
    with pytest.raises(PathNotFoundError):
        resolve(tree, b"b/x")
    assert isinstance(tree.inode(resolve(tree, b"b/y").ino).content, RegularFile)
    assert isinstance(tree.inode(resolve(tree, b"b").ino).content, Directory)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (b"/etc", "/etc"),
        (b"/a b", "/a b"),
        (b"/\xff", "'/\\udcff'"),
        (b"/a\nb", "'/a\\nb'"),
        (b" ", "' '"),
        (b"", "''"),
        (b"/" + b"x" * 300, "/" + "x" * 199 + "…"),
    ],
)
def test_paths_in_messages(path: bytes, text: str) -> None:
    assert shown(path) == text


def test_join() -> None:
    assert (join(b"/", b"a"), join(b"/a", b"b"), join(b"a/", b"b")) == (b"/a", b"/a/b", b"a/b")
