"""Trees that no file system has: an error at the place that is wrong and nowhere else; none is extracted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import forge as f
from support import trees
from support.examine import examine_limited
from support.forge import Forge

from puzzlefs.errors import FormatError
from puzzlefs.extract import extract
from puzzlefs.image import open_image
from puzzlefs.model import BlockDevice, CharDevice, Fifo, Inode, Socket, Whiteout

pytestmark = pytest.mark.hostile

MARK = 0xA5A5_A5A5_0000_0001
"""An inode number that stands nowhere else in a message, to be patched."""
GOOD = b"good"


def data(forge: Forge, ino: int) -> Inode:
    return f.regular(ino, forge.chunk(b"content\n" * 100))


@dataclass(frozen=True)
class Case:
    """An image, and what is wrong with it.

    Attributes:
        make: builds it; every image has a file ``good`` in its root, which must be readable if anything is.
        problems: by path, the error there.
        opening: the error of opening it, instead.
        extraction: the error of extracting it; a malformed tree leaves nothing behind.
    """

    make: Callable[[Forge], str]
    problems: Mapping[bytes, type[Exception]]
    opening: type[Exception] | None = None
    extraction: type[Exception] | None = FormatError


def tree_of(*inodes: Inode, root: Mapping[bytes, int]) -> Callable[[Forge], str]:
    """An image of these inodes, a root directory and the file ``good``."""

    def make(forge: Forge) -> str:
        layer = [f.directory(1, {**root, GOOD: 2}), data(forge, 2), *inodes]
        return forge.image(layer)

    return make


def patched(
    *inodes: Inode,
    root: Mapping[bytes, int],
    numbers: Mapping[int, int] | None = None,
    replace: tuple[bytes, bytes] = (b"", b""),
) -> Callable[[Forge], str]:
    """The same, its bytes patched after it was encoded."""

    def make(forge: Forge) -> str:
        def patch(message: bytes) -> bytes:
            message = f.renumber(message, numbers or {})
            return f.replace_once(message, *replace) if replace[0] else message

        return forge.patched([f.directory(1, {**root, GOOD: 2}), data(forge, 2), *inodes], patch)

    return make


def bad_name(name: bytes) -> Callable[[Forge], str]:
    return tree_of(f.directory(3, {name: 4}), f.symlink(4, b"/"), root={b"dir": 3})


def bad_xattr(key: bytes) -> Callable[[Forge], str]:
    return tree_of(f.directory(3, xattrs={key: b"value"}), root={b"dir": 3})


def bad_target(target: bytes) -> Callable[[Forge], str]:
    return tree_of(f.symlink(3, target), root={b"link": 3})


CASES = {
    # ---- directories have one place
    "directory with two names": Case(
        tree_of(f.directory(3), root={b"a": 3, b"b": 3}),
        {b"b": FormatError},
    ),
    "directory with two parents": Case(
        tree_of(f.directory(3, {b"y": 5}), f.directory(4, {b"z": 5}), f.directory(5), root={b"a": 3, b"b": 4}),
        {b"b/z": FormatError},
    ),
    "directory in itself": Case(
        tree_of(f.directory(3, {b"again": 3}), root={b"a": 3}),
        {b"a/again": FormatError},
    ),
    "cycle of two": Case(
        tree_of(f.directory(3, {b"down": 4}), f.directory(4, {b"up": 3}), root={b"a": 3}),
        {b"a/down/up": FormatError},
    ),
    "two names that start a cycle": Case(
        tree_of(f.directory(3, {b"x": 4}), f.directory(4, {b"x": 3}), root={b"a": 3, b"b": 4}),
        {b"a/x": FormatError, b"b/x": FormatError},
    ),
    "root in the root": Case(
        tree_of(root={b"self": 1}),
        {b"self": FormatError},
    ),
    "root below": Case(
        tree_of(f.directory(3, {b"up": 1}), root={b"a": 3}),
        {b"a/up": FormatError},
    ),
    # ---- inodes that are not there
    "entry without an inode": Case(
        tree_of(root={b"ghost": 99}),
        {b"ghost": FormatError},
    ),
    "entry for inode 0": Case(
        tree_of(root={b"zero": 0}),
        {b"zero": FormatError},
    ),
    "entry for the highest number": Case(
        tree_of(root={b"max": (1 << 64) - 1}),
        {b"max": FormatError},
    ),
    # ---- names
    **{
        f"name {label}": Case(bad_name(name), {b"dir": FormatError})
        for label, name in {
            "empty": b"",
            "dot": b".",
            "dot dot": b"..",
            "with a slash": b"a/b",
            "absolute": b"/etc",
            "climbing": b"../../../../tmp/x",
            "that is a slash": b"/",
            "with NUL": b"a\0b",
            "of 256 bytes": b"n" * 256,
            "of 70000 bytes": b"n" * 70_000,
        }.items()
    },
    "name twice, both alive": Case(
        tree_of(f.directory(3, [(b"x", 4), (b"x", 5)]), f.symlink(4, b"/"), f.directory(5), root={b"dir": 3}),
        {b"dir": FormatError},
    ),
    "symlink and directory of one name": Case(
        tree_of(f.directory(3, [(b"a", 4), (b"a", 5)]), f.symlink(4, b"/tmp"), f.directory(5), root={b"d": 3}),
        {b"d": FormatError},
    ),
    # ---- the root
    "no root": Case(
        lambda forge: forge.patched([f.directory(MARK, {GOOD: 2})], lambda data: f.renumber(data, {MARK: 7})),
        {},
        opening=FormatError,
    ),
    "no inode at all": Case(lambda forge: forge.image([]), {}, opening=FormatError),
    "no metadata layer at all": Case(lambda forge: forge.image(), {}, opening=FormatError),
    "root is a file": Case(lambda forge: forge.image([data(forge, 1)]), {}, opening=FormatError),
    "root is whited out": Case(
        lambda forge: forge.image([f.inode(1, Whiteout())], [f.directory(1, {GOOD: 2}), data(forge, 2)]),
        {},
        opening=FormatError,
    ),
    # ---- the order of inodes
    "inodes that are not sorted": Case(
        lambda forge: forge.patched(
            [f.directory(1, {b"a": 3, b"b": 2}), f.symlink(MARK, b"a"), f.symlink(MARK + 1, b"b")],
            lambda data: f.renumber(data, {MARK: 3, MARK + 1: 2}),
        ),
        {b"a": FormatError, b"b": FormatError},
    ),
    "one number twice, far apart": Case(
        lambda forge: forge.patched(
            [f.directory(1, {b"a": 2, b"b": 3}), f.symlink(2, b"a"), f.symlink(3, b"b"), f.directory(MARK)],
            lambda data: f.renumber(data, {MARK: 2}),
        ),
        {b"a": FormatError, b"b": FormatError},
    ),
    # ---- attributes
    "owner that cannot be": Case(tree_of(f.symlink(3, b"x", uid=0xFFFFFFFF), root={b"a": 3}), {b"a": FormatError}),
    "group that cannot be": Case(tree_of(f.directory(3, gid=0xFFFFFFFF), root={b"a": 3}), {b"a": FormatError}),
    "major number too large": Case(tree_of(f.inode(3, CharDevice(1 << 12, 0)), root={b"a": 3}), {b"a": FormatError}),
    "minor number too large": Case(tree_of(f.inode(3, BlockDevice(0, 1 << 20)), root={b"a": 3}), {b"a": FormatError}),
    "device numbers of 64 bits": Case(
        tree_of(f.inode(3, BlockDevice((1 << 64) - 1, (1 << 64) - 1)), root={b"a": 3}), {b"a": FormatError}
    ),
    "xattr without a name": Case(bad_xattr(b""), {b"dir": FormatError}),
    "xattr name with NUL": Case(bad_xattr(b"user.a\0b"), {b"dir": FormatError}),
    "xattr name of 256 bytes": Case(bad_xattr(b"user." + b"n" * 251), {b"dir": FormatError}),
    "symlink to nothing": Case(bad_target(b""), {b"link": FormatError}),
    "symlink with NUL": Case(bad_target(b"a\0b"), {b"link": FormatError}),
    "symlink of 4096 bytes": Case(bad_target(b"t" * 4096), {b"link": FormatError}),
    # ---- kinds
    "inode without a kind": Case(
        patched(
            f.inode(MARK, Fifo()),
            root={b"a": 3},
            replace=(MARK.to_bytes(8, "little") + b"\1\0", bytes.fromhex("03") + bytes(9)),
        ),
        {b"a": FormatError},
    ),
    "inode of an unknown kind": Case(
        patched(
            f.inode(MARK, Fifo()),
            root={b"a": 3},
            replace=(MARK.to_bytes(8, "little") + b"\1\0", bytes.fromhex("03") + bytes(7) + b"\x09\0"),
        ),
        {b"a": FormatError},
    ),
    # ---- content
    "part beyond the end of its chunk": Case(
        lambda forge: tree_of(f.regular(3, forge.chunk(b"abc", length=4)), root={b"a": 3})(forge), {b"a": FormatError}
    ),
    "part that begins beyond its chunk": Case(
        lambda forge: tree_of(f.regular(3, forge.chunk(b"abc", offset=1 << 63, length=1)), root={b"a": 3})(forge),
        {b"a": FormatError},
    ),
    "part that wraps around": Case(
        lambda forge: tree_of(f.regular(3, forge.chunk(b"abc", offset=(1 << 64) - 1, length=2)), root={b"a": 3})(forge),
        {b"a": FormatError},
    ),
    "file of 2^63 bytes": Case(
        lambda forge: tree_of(f.regular(3, forge.chunk(b"abc", length=1 << 63)), root={b"a": 3})(forge),
        {b"a": FormatError},
    ),
    "parts that add up to 2^64 + 3": Case(
        lambda forge: tree_of(
            f.regular(3, *[forge.chunk(b"abc", length=length) for length in (3, (1 << 64) - 1, 1)]), root={b"a": 3}
        )(forge),
        {b"a": FormatError},
    ),
    "compressed flag on raw data": Case(
        lambda forge: tree_of(f.regular(3, f.recompressed(forge.chunk(b"abc"), True)), root={b"a": 3})(forge),
        {b"a": FormatError},
    ),
    "longer than what a compressed chunk holds": Case(
        lambda forge: tree_of(f.regular(3, forge.chunk(b"abc", compressed=True, length=4)), root={b"a": 3})(forge),
        {b"a": FormatError},
    ),
}

NO_TREE = {  # found while the tree is checked, so nothing is written
    name
    for name in CASES
    if name.startswith(
        ("directory", "cycle", "two names", "root", "entry", "name", "symlink and", "no ", "inode", "one number")
    )
}


NO_GOOD = ("inodes that are not sorted", "one number twice, far apart")


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_an_error_there_and_nowhere_else(tmp_path: Path, name: str, version: int) -> None:
    case = CASES[name]
    target = tmp_path / "out"
    outcome = examine_limited(case.make(Forge(tmp_path / "layout", version)), target)
    assert outcome.opening == (None if case.opening is None else case.opening.__name__), outcome.messages
    assert outcome.problems == {path: error.__name__ for path, error in case.problems.items()}, outcome.messages
    if case.opening is None and name not in NO_GOOD:
        assert GOOD in outcome.paths
    assert outcome.extraction == (None if case.extraction is None else case.extraction.__name__), outcome.messages
    if name in NO_TREE:
        assert not target.exists()
    assert outcome.cpu_seconds < 2
    assert all("\n" not in message for message in outcome.messages)
    assert sorted(os.listdir(tmp_path)) == sorted({"layout", "out"} if target.exists() else {"layout"})


# ---- odd, but right


@dataclass(frozen=True)
class Odd:
    make: Callable[[Forge], str]
    names: Mapping[bytes, str]


ODD = {
    "white-out entry is dropped": Odd(
        tree_of(f.inode(3, Whiteout()), root={b"gone": 3}),
        {},
    ),
    "live entry beside a white-out of the same name": Odd(
        tree_of(f.directory(3, [(b"x", 4), (b"x", 5)]), f.inode(4, Whiteout()), f.symlink(5, b"t"), root={b"d": 3}),
        {b"d": "dir", b"d/x": "symlink"},
    ),
    "white-out beside a live entry of the same name": Odd(
        tree_of(f.directory(3, [(b"x", 5), (b"x", 4)]), f.inode(4, Whiteout()), f.symlink(5, b"t"), root={b"d": 3}),
        {b"d": "dir", b"d/x": "symlink"},
    ),
    "number that stands twice, dead and alive": Odd(
        tree_of(f.inode(3, Whiteout()), f.symlink(3, b"t"), root={b"x": 3}),
        {b"x": "symlink"},
    ),
    "number that stands twice, alive and dead": Odd(
        tree_of(f.symlink(3, b"t"), f.inode(3, Whiteout()), root={b"x": 3}),
        {b"x": "symlink"},
    ),
    "highest inode number": Odd(
        tree_of(f.symlink((1 << 64) - 1, b"t"), root={b"x": (1 << 64) - 1}),
        {b"x": "symlink"},
    ),
    "inode number 0": Odd(
        lambda forge: forge.image([f.symlink(0, b"t"), f.directory(1, {b"x": 0, GOOD: 2}), data(forge, 2)]),
        {b"x": "symlink"},
    ),
    "entries that are not sorted": Odd(
        tree_of(f.directory(3, [(b"z", 4), (b"a", 5)]), f.symlink(4, b"t"), f.inode(5, Fifo()), root={b"d": 3}),
        {b"d": "dir", b"d/a": "fifo", b"d/z": "symlink"},
    ),
    "hard links to a symlink, a socket and a device": Odd(
        tree_of(
            f.symlink(3, b"/etc/passwd"),
            f.inode(4, Socket()),
            f.inode(5, CharDevice(1, 3)),
            root={b"a": 3, b"b": 3, b"c": 4, b"d": 4, b"e": 5, b"f": 5},
        ),
        {b"a": "symlink", b"b": "symlink", b"c": "socket", b"d": "socket", b"e": "char", b"f": "char"},
    ),
    "names that look dangerous and are not": Odd(
        tree_of(
            *(f.symlink(number, b"../../../../../etc/passwd") for number in range(3, 8)),
            root={b"...": 3, b"..a": 4, b"-rf": 5, b"\xff\xfe": 6, b"new\nline\x1b[31m": 7},
        ),
        dict.fromkeys([b"...", b"..a", b"-rf", b"\xff\xfe", b"new\nline\x1b[31m"], "symlink"),
    ),
    "orphans and a cycle among them": Odd(
        tree_of(f.directory(3, {b"x": 4}), f.directory(4, {b"x": 3}), f.symlink(5, b"t"), root={}),
        {},
    ),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="devices need root")
@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_but_right_is_shown_and_extracted(tmp_path: Path, name: str, version: int) -> None:
    reference = ODD[name].make(Forge(tmp_path / "layout", version))
    outcome = examine_limited(reference)
    assert (outcome.opening, outcome.problems, outcome.walk) == (None, {}, None), outcome.messages
    assert outcome.totals is not None
    with open_image(reference) as image:
        shown = trees.in_image(image)
        extract(image, tmp_path / "out")
    assert {path: node["type"] for path, node in shown.items()} == {b".": "dir", GOOD: "file", **ODD[name].names}
    assert trees.on_disk(tmp_path / "out") == shown
    assert outcome.totals[0] == len(shown) - sum(node.get("same_as", path) != path for path, node in shown.items())


# ---- nothing outside of the target


def test_a_planted_symlink_is_not_followed(tmp_path: Path) -> None:
    """``a`` a symlink to elsewhere, ``a`` again as a directory with a file in it: the classic of archives."""
    outside = tmp_path / "outside"
    outside.mkdir()
    forge = Forge(tmp_path / "layout")
    link, below = f.symlink(3, os.fsencode(outside)), f.directory(4, {b"planted": 2})
    twice = forge.image([f.directory(1, [(b"a", 3), (b"a", 4)]), data(forge, 2), link, below], tag="twice")
    # The same through metadata layers: the lower one has the directory, the upper one the link.
    merged = forge.image(
        [f.directory(1, {b"a": 3}, look_below=True), link],
        [f.directory(1, {b"a": 4}), data(forge, 2), below],
        tag="merged",
    )
    with pytest.raises(FormatError, match="two entries"):
        extract(twice, tmp_path / "one")
    extract(merged, tmp_path / "two")
    assert os.readlink(tmp_path / "two" / "a") == str(outside)
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "one").exists()


def test_the_target_itself_may_be_named_through_a_symlink(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    reference = forge.image([f.directory(1, {GOOD: 2}), data(forge, 2)])
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    extract(reference, tmp_path / "link")
    assert os.listdir(tmp_path / "real") == ["good"]
    assert (tmp_path / "link").is_symlink()
