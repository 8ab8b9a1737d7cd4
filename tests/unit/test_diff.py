"""``puzzlefs diff``: what it says of images and directories, what it reads for that, and what the command prints."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support import trees
from support.differences import Expected, compared, told
from support.examine import limited
from support.forge import Forge

from puzzlefs.blobs import BlobWriter
from puzzlefs.builder import build
from puzzlefs.diff import DiffReport, diff
from puzzlefs.diff.host_side import HostSide
from puzzlefs.diff.relation import Relation
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    NotFoundError,
    SourceError,
)
from puzzlefs.image import open_image
from puzzlefs.image_commit import commit_on_top
from puzzlefs.model import BlockDevice, CharDevice, Fifo, Inode, Whiteout
from puzzlefs.vfs.paths import MAX_PATH
from puzzlefs.wire import Likeness
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit

DATA = random.Random(6).randbytes(9000)


@pytest.fixture(params=[1, 2, 3])
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Forge:
    return Forge(tmp_path / "layout", request.param)


def on_top(forge: Forge, base: str, tag: str, *inodes: Inode) -> str:
    """An image that consists of another one and one more metadata layer."""
    with open_image(base) as image, BlobWriter(image.layout) as writer:
        commit_on_top(image.layout, tag, image, inodes=inodes, chunks=(), verity={}, writer=writer)
    return forge.reference(tag)


def lines(report: DiffReport) -> list[tuple[str, bytes, bytes, tuple[str, ...]]]:
    return [(one.status, one.old_path, one.path, one.aspects) for one in report.differences]


# ---- what differs


def test_each_aspect(forge: Forge) -> None:
    one, other = forge.chunk(DATA), forge.chunk(DATA[::-1])
    plain = f.regular(3, one)
    variants: list[tuple[Inode, Inode, set[str]]] = [
        (plain, plain, set()),
        (plain, f.regular(3, other), {"content"}),
        (plain, f.regular(3, one, other), {"content"}),
        (plain, f.regular(3, one, permissions=0o4644), {"mode"}),
        (plain, f.regular(3, one, uid=7), {"owner"}),
        (plain, f.regular(3, one, gid=7), {"owner"}),
        (plain, f.regular(3, one, xattrs={b"user.x": b""}), {"xattrs"}),
        (f.regular(3, xattrs={b"a": b"1", b"b": b"2"}), f.regular(3, xattrs={b"b": b"2", b"a": b"1"}), set()),
        (f.regular(3, xattrs={b"a": b"1"}), f.regular(3, xattrs={b"a": b"2"}), {"xattrs"}),
        (f.regular(3, mtime_ns=5), f.regular(3, mtime_ns=6), {"mtime"}),
        (f.regular(3, mtime_ns=5), f.regular(3), set()),
        (plain, f.symlink(3, b"x"), {"type"}),
        (f.symlink(3, b"x"), f.symlink(3, b"y"), {"target"}),
        (f.symlink(3, b"x", xattrs={b"a": b"1"}), f.symlink(3, b"x"), {"xattrs"}),
        (f.inode(3, CharDevice(1, 3)), f.inode(3, CharDevice(1, 5)), {"device"}),
        (f.inode(3, CharDevice(1, 3)), f.inode(3, CharDevice(1, 3)), set()),
        (f.inode(3, CharDevice(1, 3)), f.inode(3, BlockDevice(1, 3)), {"type"}),
        (f.inode(3, Fifo(), uid=1, permissions=0), f.inode(3, Fifo()), {"mode", "owner"}),
        (f.directory(3), f.directory(3, permissions=0o700), {"mode"}),
    ]
    for old, new, aspects in variants:
        # with times or without, as all of a layer have
        images = [
            forge.image([f.directory(1, {b"x": 3}, mtime_ns=None if inode.mtime_ns is None else 1), inode], tag=tag)
            for tag, inode in (("old", old), ("new", new))
        ]
        report = diff(*images)
        assert told(report) == ({b"x": ("changed", frozenset(aspects))} if aspects else {}), (old, new)
        assert report.is_same == (not aspects)
        for aspect in aspects - {"type"}:
            left = diff(*images, ignore=(aspect,))  # type: ignore[arg-type]
            assert {name for one in left.differences for name in one.aspects} == aspects - {aspect}


def test_the_root_is_an_entry(forge: Forge) -> None:
    report = diff(forge.image([f.directory(1)], tag="old"), forge.image([f.directory(1, uid=3)], tag="new"))
    assert lines(report) == [("changed", b"", b"", ("owner",))]


def test_hard_links(forge: Forge) -> None:
    part = forge.chunk(DATA)
    files = [f.regular(2, part), f.regular(3, part)]
    apart = forge.image([f.directory(1, {b"a": 2, b"b": 3, b"c": 2}), *files], tag="apart")
    together = forge.image([f.directory(1, {b"a": 2, b"b": 2, b"c": 2}), *files], tag="together")
    others = forge.image([f.directory(1, {b"a": 3, b"b": 2, b"c": 3}), *files], tag="others")
    less = forge.image([f.directory(1, {b"a": 2, b"b": 3}), *files], tag="less")
    assert told(diff(apart, together)) == {name: ("changed", frozenset({"links"})) for name in (b"a", b"b", b"c")}
    assert diff(apart, others).is_same
    assert told(diff(apart, less)) == {b"c": ("removed", frozenset())}
    assert diff(apart, together, ignore=("links",)).is_same


def test_renames_of_inodes(forge: Forge) -> None:
    """A directory moves; in it a file changes, one goes, one comes; two entries move out of it."""
    part, other = forge.chunk(DATA), forge.chunk(DATA[:99])
    old = forge.image(
        [
            f.directory(1, {b"a": 2, b"z": 8}),
            f.directory(2, {b"one": 3, b"out": 5, b"sub": 7, b"two": 4}),
            f.regular(3, part),
            f.symlink(4, b"t"),
            f.inode(5, Fifo()),
            f.directory(7, {b"deep": 9}),
            f.inode(8, Fifo()),
            f.inode(9, Fifo()),
        ],
        tag="old",
    )
    new = on_top(
        forge,
        old,
        "new",
        f.directory(1, {b"b": 2, b"here": 5, b"up": 7, b"zz": 8}),
        f.directory(2, {b"one": 3, b"six": 10}),
        f.regular(3, other),
        f.inode(8, Fifo(), uid=5),
        f.inode(10, Fifo()),
    )
    assert lines(diff(old, new)) == [
        ("renamed", b"a", b"b", ()),
        ("changed", b"a/one", b"b/one", ("content",)),
        ("added", b"b/six", b"b/six", ()),
        ("removed", b"a/two", b"a/two", ()),
        ("renamed", b"a/out", b"here", ()),
        ("renamed", b"a/sub", b"up", ()),
        ("renamed", b"z", b"zz", ("owner",)),
    ]


def test_a_directory_that_moves_below_one_that_was_in_it(forge: Forge) -> None:
    """Both are renames, however they are nested before and after."""
    names = {b"file": 4}
    old = forge.image(
        [f.directory(1, {b"d": 2}), f.directory(2, {b"e": 3}), f.directory(3, names), f.inode(4, Fifo())], tag="old"
    )
    new = on_top(forge, old, "new", f.directory(1, {b"e": 3}), f.directory(2), f.directory(3, {b"d": 2, **names}))
    assert lines(diff(old, new)) == [("renamed", b"d/e", b"e", ()), ("renamed", b"d", b"e/d", ())]
    back = diff(new, old)
    assert lines(back) == [("renamed", b"e/d", b"d", ()), ("renamed", b"e", b"d/e", ())]


def test_renames_of_content(tmp_path: Path) -> None:
    """Independent builds have no inodes in common: only content tells, and one of the same name goes first."""
    old, new = tmp_path / "old", tmp_path / "new"
    for root, names in ((old, ("a/x", "a/y", "twin", "gone")), (new, ("b/y", "c", "sub/twin", "fresh"))):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(DATA)
    (old / "gone").write_bytes(DATA[:500])
    (new / "fresh").write_bytes(DATA[1:501])  # of the same size
    (old / "empty").touch()
    (new / "void").touch()
    (new / "c").chmod(0o600)
    images = [f"{tmp_path}/oci:{root.name}" for root in (old, new)]
    for root, image in zip((old, new), images, strict=True):
        build(root, image)
    found = {one.path: (one.status, one.old_path, one.aspects) for one in diff(*images).differences}
    assert found[b"b/y"] == ("renamed", b"a/y", ())
    assert found[b"sub/twin"] == ("renamed", b"twin", ())
    assert found[b"c"] == ("renamed", b"a/x", ("mode",))
    assert {found[name][0] for name in (b"gone", b"empty")} == {"removed"}
    assert {found[name][0] for name in (b"fresh", b"void")} == {"added"}
    again = diff(f"dir:{old}", images[1], ignore=["mtime"])
    assert {one.path: (one.status, one.old_path, one.aspects) for one in again.differences} == found


# ---- what is read


def test_equal_chunk_lists_are_not_read(forge: Forge) -> None:
    one, other = forge.chunk(DATA), forge.chunk(DATA[:700], compressed=True)
    files = [f.regular(3, one, other), f.regular(4, other)]
    old = forge.image([f.directory(1, {b"a": 3, b"b": 4}), *files], tag="old")
    new = forge.image([f.directory(1, {b"0": 2, b"a": 3, b"b": 4}), f.inode(2, Fifo()), *files], tag="new")
    for part in (one, other):
        forge.blob_path(part.blob.digest).unlink()
    report = diff(old, new)
    assert told(report) == {b"0": ("added", frozenset())}
    assert report.bytes_read == 0


def test_bytes_are_read_where_chunks_end_elsewhere(forge: Forge) -> None:
    whole, head, tail = forge.chunk(DATA), forge.chunk(DATA[:4000]), forge.chunk(DATA[4000:], compressed=True)
    shared = forge.chunk(b"s" * 3000)

    def image(tag: str, *parts: Any) -> str:
        return forge.image([f.directory(1, {b"a": 2}), f.regular(2, *parts)], tag=tag)

    old = image("old", shared, whole, shared)
    new = image("new", shared, head, tail, shared)
    report = diff(old, new)
    assert report.is_same
    assert report.bytes_read == 2 * len(DATA)
    other = image("other", shared, head, forge.chunk(DATA[4000:-1] + b"x"), shared)
    assert told(diff(old, other)) == {b"a": ("changed", frozenset({"content"}))}
    shifted = image("shifted", whole, shared, shared)
    assert told(diff(old, shifted)) == {b"a": ("changed", frozenset({"content"}))}


def test_parts_without_a_byte(forge: Forge) -> None:
    part, empty = forge.chunk(DATA), forge.chunk(DATA, length=0)
    old = forge.image([f.directory(1, {b"a": 2}), f.regular(2, empty, part, empty)], tag="old")
    new = forge.image([f.directory(1, {b"a": 2}), f.regular(2, part)], tag="new")
    report = diff(old, new)
    assert (report.is_same, report.bytes_read) == (True, 0)


def test_damage_is_told_with_the_file(forge: Forge) -> None:
    whole, head, tail = forge.chunk(DATA), forge.chunk(DATA[:4000]), forge.chunk(DATA[4000:])
    old = forge.image([f.directory(1, {b"a": 2}), f.regular(2, whole)], tag="old")
    new = forge.image([f.directory(1, {b"a": 2}), f.regular(2, head, tail)], tag="new")
    f.put_file(forge.blob_path(tail.blob.digest), DATA[4000:-1] + b"?")
    with pytest.raises(IntegrityError, match=f"^a: .*{tail.blob.digest.hex()}"):
        diff(old, new)
    forge.blob_path(tail.blob.digest).unlink()
    with pytest.raises(BlobNotFoundError, match=f"^a: .*{tail.blob.digest.hex()}"):
        diff(old, new)
    assert main(["diff", old, new]) == 3
    assert diff(old, new, ignore=("content",)).is_same


@pytest.mark.parametrize("version", [1, 2])
def test_shared_layers_are_not_walked(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer in the same blob, only what a layer above mentions is compared, and directories are followed."""
    forge = Forge(tmp_path / "layout", version)
    count = 300
    names = {b"%03d" % number: number + 10 for number in range(count)}
    base = forge.image(
        [
            f.directory(1, {b"d": 2, b"e": 3}),
            f.directory(2, names),
            f.directory(3, {b"link": 10}),
            *(f.inode(number, Fifo()) for number in names.values()),
        ],
        tag="base",
    )
    asked: list[int] = []
    real = Likeness.unlike
    monkeypatch.setattr(Likeness, "unlike", lambda self, a, b: (asked.extend(a), real(self, a, b))[1])
    new = on_top(forge, base, "new", f.inode(12, Fifo(), uid=1))
    report = diff(base, new)
    assert told(report) == {b"d/002": ("changed", frozenset({"owner"}))}
    assert report.entries < 10
    assert set(asked) == {12}
    gone = on_top(forge, base, "gone", f.inode(12, Whiteout()), f.inode(13, Fifo(), gid=1))
    assert told(diff(base, gone)) == {
        b"d/002": ("removed", frozenset()),
        b"d/003": ("changed", frozenset({"owner"})),
    }
    # a name of a file with several is looked at, mentioned or not
    relinked = on_top(forge, base, "relinked", f.directory(3, {b"link": 11}))
    assert told(diff(base, relinked)) == {
        name: ("changed", frozenset({"links"})) for name in (b"d/000", b"d/001", b"e/link")
    }


def test_no_layer_of_another_version_is_shared(tmp_path: Path) -> None:
    """One blob can be a metadata layer of versions 1 and 2, and mean something else."""
    forge = Forge(tmp_path / "layout", 1)
    one = forge.image([f.directory(1, {b"a": 2}), f.inode(2, Fifo())], tag="one")
    with open_image(one) as image:
        refs = image.metadata_refs
    forge.codec = Forge(tmp_path / "other", 2).codec
    rootfs = forge.codec.encode_rootfs(layers=(), metadata_refs=refs, verity={})
    two = forge.raw_rootfs(rootfs)
    with open_image(two) as new:
        forge = Forge(tmp_path / "third", 1)
        old = open_image(forge.image([f.directory(1, {b"a": 2}), f.inode(2, Fifo())]))
        with old:
            assert old.metadata_refs == new.metadata_refs
            assert Relation(old, new).shared_layers == 0
            assert Relation(old, old).shared_layers == 1


# ---- paths


def test_paths(forge: Forge) -> None:
    part, other = forge.chunk(DATA), forge.chunk(DATA[:99])
    old = forge.image(
        [
            f.directory(1, {b"d": 2, b"l": 4, b"x": 5}),
            f.directory(2, {b"f": 3, b"only": 6}),
            f.regular(3, part),
            f.symlink(4, b"d"),
            f.inode(5, Fifo()),
            f.inode(6, Fifo()),
        ],
        tag="old",
    )
    new = forge.image(
        [
            f.directory(1, {b"d": 2, b"l": 4, b"y": 5}),
            f.directory(2, {b"f": 3}),
            f.regular(3, other),
            f.symlink(4, b"d"),
            f.inode(5, Fifo(), uid=9),
        ],
        tag="new",
    )
    inside = {b"d/f": ("changed", frozenset({"content"})), b"d/only": ("removed", frozenset[str]())}
    assert told(diff(old, new, b"d")) == told(diff(old, new, "/d/")) == told(diff(old, new, "l/../d/.")) == inside
    assert told(diff(old, new, b"l/")) == inside  # through the link, which is the same by itself
    assert diff(old, new, b"l").is_same
    assert told(diff(old, new, b"l/f")) == {b"d/f": ("changed", frozenset({"content"}))}
    assert told(diff(old, new, b"x")) == {b"x": ("removed", frozenset())}
    assert told(diff(old, new, b"y")) == {b"y": ("added", frozenset())}
    for missing in (b"nothing", b"d/f/g", b"d/f/"):
        with pytest.raises(NotFoundError):
            diff(old, new, missing)
    everything = told(diff(old, new, renames=False))
    assert told(diff(old, new, b"/", renames=False)) == told(diff(old, new, b".", renames=False)) == everything
    assert len(everything) == 4


def test_paths_in_directories(tmp_path: Path) -> None:
    for name in ("one", "other"):
        root = tmp_path / name
        (root / "d").mkdir(parents=True)
        (root / "d" / "f").write_text(name)
        (root / "here").symlink_to("d")
        (root / "there").symlink_to("/d")
        (root / "loop").symlink_to("loop")
        (root / "out").symlink_to("../../../../d")
    sides = f"dir:{tmp_path}/one", tmp_path / "other"
    for path in ("d/f", "here/f", "there/f", "out/f", "/there/../d/./f"):
        assert lines(diff(*sides, path, ignore=["mtime"])) == [("changed", b"d/f", b"d/f", ("content",))]
    assert diff(*sides, "here", ignore=["mtime"]).is_same
    for missing in ("nothing", "d/f/x", "d/f/"):
        with pytest.raises(NotFoundError):
            diff(*sides, missing)
    with pytest.raises(InvalidArgumentError, match="40 symbolic links"):
        diff(*sides, "loop/x")
    with pytest.raises(InvalidArgumentError, match="NUL"):
        diff(*sides, b"a\0b")


# ---- directories of the host


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    with HostSide(tmp_path) as side:
        ((_, node, _),) = side.entries(side.root)
        with side.reading(node) as read:
            assert read(8000, 5000) == DATA[8000:]
        with pytest.raises(SourceError, match="changed while it was read"), side.reading(node):
            (tmp_path / "f").write_bytes(DATA[:-1])
        with pytest.raises(SourceError, match="changed while it was read"), side.reading(node):
            pytest.fail("it is another file")


def test_one_inode_of_the_host_is_not_read(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "a").write_bytes(DATA)
    os.link(tmp_path / "one" / "a", tmp_path / "other" / "a")
    report = diff(tmp_path / "one", tmp_path / "other", ignore=["mtime"])
    assert (report.is_same, report.bytes_read) == (True, 0)
    (tmp_path / "other" / "a").rename(tmp_path / "other" / "b")
    assert lines(diff(tmp_path / "one", tmp_path / "other", ignore=["mtime"])) == [("renamed", b"a", b"b", ())]


def test_arguments(tmp_path: Path, forge: Forge) -> None:
    image = forge.image([f.directory(1)])
    with pytest.raises(NotFoundError):
        diff(image, f"dir:{tmp_path}/nothing")
    with pytest.raises(InvalidArgumentError, match="names no directory"):
        diff("dir:", image)
    with pytest.raises(InvalidArgumentError, match="'size' is nothing that can be ignored"):
        diff(image, image, ignore=["size"])  # type: ignore[list-item]
    with open_image(image) as opened:
        assert diff(opened, opened).is_same
        assert opened.verity_digest()  # it is still open


# ---- what is needed


def test_what_the_second_needs(forge: Forge) -> None:
    one, two, three = (forge.chunk(DATA[start : start + 2000]) for start in (0, 2000, 4000))
    old = forge.image([f.directory(1, {b"a": 2, b"d": 4}), f.regular(2, one), f.directory(4)], tag="old")
    new = forge.image(
        [
            f.directory(1, {b"a": 2, b"b": 3, b"d": 4}),
            f.regular(2, one, two),
            f.regular(3, three),
            f.directory(4, {b"x": 5}),
            f.regular(5, two),
        ],
        tag="new",
    )
    needed = diff(old, new, stat=True).needed
    assert needed is not None
    assert (needed.chunks, needed.stored_bytes, needed.missing_chunks) == (2, 4000, 0)
    with open_image(new) as image:
        blobs = {image.manifest_digest, *(ref.digest for ref in image.metadata_refs)}
        if image.manifest is not None:
            blobs.add(image.manifest.rootfs().digest)
    assert needed.metadata_bytes == sum(forge.blob_path(digest).stat().st_size for digest in blobs)
    below = diff(old, new, b"d", stat=True).needed
    assert below is not None
    assert (below.chunks, below.stored_bytes, below.metadata_bytes) == (1, 2000, 0)
    forge.blob_path(three.blob.digest).unlink()
    gone = diff(old, new, stat=True, renames=False, ignore=["content"]).needed
    assert gone is not None
    assert (gone.chunks, gone.stored_bytes, gone.missing_chunks) == (2, 2000, 1)
    nothing = diff(new, new, stat=True).needed
    assert nothing is not None
    assert (nothing.chunks, nothing.metadata_bytes) == (0, 0)


def test_directories_have_no_chunks(forge: Forge, tmp_path: Path) -> None:
    image = forge.image([f.directory(1, {b"a": 2}), f.regular(2, forge.chunk(DATA))])
    (tmp_path / "empty").mkdir()
    assert diff(tmp_path / "empty", image, stat=True).needed is None
    assert diff(image, tmp_path / "empty", stat=True).needed is None


# ---- images of the original implementation


@pytest.mark.golden
@pytest.mark.parametrize("layout", ["v1", "v2", "v3", "v1-zstd", "v2-zstd", "v3-zstd"])
def test_vectors(vectors: Path, expected: dict[str, Any], layout: str) -> None:
    values = {tag: trees.in_json(expected["trees"][tag]) for tag in ("base", "second")}
    for path, node in values["base"].items():
        assert path == b"." or node
    image = f"{vectors}/{layout}"
    for tag in ("fresh", "second"):
        report = diff(f"{image}:base", f"{image}:{tag}", renames=False, ignore=["links"])
        assert report.differences
        assert told(report) == _of_json(values["base"], values["second"])
    assert diff(f"{image}:fresh", f"{image}:second").is_same
    assert diff(f"{image}:second", f"{vectors}/v3:fresh").is_same
    assert diff(f"{vectors}/v1-zstd:second", f"{image}:second").is_same


def _of_json(old: trees.Tree, new: trees.Tree) -> Expected:
    """The documents do not say which names are one file."""
    return compared(trees.without(old, "nlink"), trees.without(new, "nlink"))


# ---- images made to hurt


@pytest.mark.hostile
def test_malformed_trees(forge: Forge) -> None:
    honest = forge.image([f.directory(1, {b"a": 2}), f.directory(2)], tag="honest")
    bad = [
        [f.directory(1, {b"a": 2, b"b": 2}), f.directory(2)],
        [f.directory(1, {b"a": 2}), f.directory(2, {b"up": 1})],
        [f.directory(1, {b"a": 2}), f.directory(2, {b"round": 3}), f.directory(3, {b"and": 2})],
        [f.directory(1, {b"a": 99})],
        [f.directory(1, {b"..": 2}), f.directory(2)],
        [f.directory(1, {b"a/b": 2}), f.directory(2)],
    ]
    for inodes in bad:
        image = forge.image(inodes, tag="bad")
        for pair in ((image, honest), (honest, image), (image, image)):
            with pytest.raises(FormatError):
                diff(*pair)


@pytest.mark.hostile
def test_bombs_of_nesting(tmp_path: Path) -> None:
    """Paths grow with the depth; what is told of them must not grow with its square."""
    forge = Forge(tmp_path / "layout")
    empty = forge.image([f.directory(1)], tag="empty")

    def nested(depth: int) -> str:
        inodes = [f.directory(number, {b"d": number + 1}) for number in range(1, depth)]
        return forge.image([*inodes, f.directory(depth)], tag=f"n{depth}")

    depth = MAX_PATH // 2 - 1
    deep = nested(depth)
    count, last = limited(lambda: _count_and_last(diff(empty, deep)), memory=256 << 20, seconds=60)
    assert (count, last) == (depth - 1, 2 * (depth - 1) - 1)
    with pytest.raises(FormatError, match="too deep"):
        diff(empty, nested(MAX_PATH))


def _count_and_last(report: DiffReport) -> tuple[int, int]:
    return len(report.differences), len(report.differences[-1].path)


# ---- the command


def test_command(forge: Forge, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    part, other = forge.chunk(DATA), forge.chunk(DATA[:99])
    old = forge.image(
        [
            f.directory(1, {b"a": 2, b"gone\n": 3, b"k": 4, b"m": 5, b"\xff": 6}),
            f.regular(2, part),
            f.inode(3, Fifo()),
            f.inode(4, Fifo()),
            f.regular(5, other),
            f.symlink(6, b"x y"),
        ],
        tag="old",
    )
    new = forge.image(
        [
            f.directory(1, {b"a": 2, b"k": 4, b"new": 3, b"n": 5, b"\xff": 6}),
            f.regular(2, other, permissions=0o600, uid=5),
            f.inode(3, Fifo()),
            f.inode(4, CharDevice(1, 2)),
            f.regular(5, other),
            f.symlink(6, b"z"),
        ],
        tag="new",
    )

    def run(*options: str) -> bytes:
        assert main(["diff", *options]) == 1
        return capsysbinary.readouterr().out

    assert main(["diff", old, old]) == 0
    assert capsysbinary.readouterr().out == b""
    assert run(old, new).decode().splitlines() == [
        "changed  a (content 9000 → 99 B, mode 0644 → 0600, owner 0:0 → 5:0)",
        r"removed  'gone'$'\n'",
        "changed  k (fifo → char-device)",
        "renamed  m → n",
        "added    new",
        r"changed  ''$'\377' (target 'x y' → z)",
    ]
    assert run("--name-status", old, new) == (b"M\ta\nD\t'gone'$'\\n'\nT\tk\nR\tm\tn\nA\tnew\nM\t''$'\\377'\n")
    assert run("-0", "--name-status", old, new) == b"M\0a\0D\0gone\n\0T\0k\0R\0m\0n\0A\0new\0M\0\xff\0"
    assert run("-0", "--name-only", "--no-renames", old, new) == b"a\0gone\n\0k\0m\0n\0new\0\xff\0"
    assert run("--name-only", "--ignore", "content,mode", "--ignore", "owner", old, new, "/./k") == b"k\n"
    text = run("--stat", old, new).decode()
    assert text.startswith("1 added, 1 removed, 3 changed, 1 renamed; 8 entries compared\n")
    assert f"{new} needs 0 chunks more: 0 B stored; and " in text
    report = json.loads(run("--json", old, new))
    assert report["same"] is False
    assert report["counts"] == {"added": 1, "removed": 1, "changed": 3, "renamed": 1}
    assert [one["path"] for one in report["differences"]] == ["a", "gone\n", "k", "n", "new", "\udcff"]
    assert report["differences"][0]["aspects"] == ["content", "mode", "owner"]
    assert report["differences"][0]["before"] == {
        "type": "regular",
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "size": 9000,
        "target": None,
        "device": None,
        "xattrs": {},
        "mtime_ns": report["differences"][0]["before"]["mtime_ns"],
    }
    assert report["differences"][2]["after"]["device"] == [1, 2]
    assert report["differences"][4]["before"] is None
    assert report["differences"][3]["old_path"] == "m"


def test_command_errors(forge: Forge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = forge.image([f.directory(1)])
    assert main(["diff", image]) == 2
    assert main(["diff", image, image, "a", "b"]) == 2
    assert main(["diff", "-0", image, image]) == 2
    assert main(["diff", image, forge.reference("nope")]) == 3
    assert main(["diff", image, f"dir:{tmp_path}/nope"]) == 3
    assert main(["diff", image, image, "nope"]) == 3
    assert "nope does not exist in either of the two" in capsys.readouterr().err
    (tmp_path / "some").mkdir()
    assert main(["diff", "--ignore", "mtime,owner,mode", image, f"dir:{tmp_path}/some"]) == 0
