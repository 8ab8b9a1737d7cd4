"""Extracting: what comes out is what went in. What can be in the way is in tests/hostile."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from support import forge as f
from support import trees
from support.forge import Forge

from puzzlefs.errors import InvalidArgumentError, NotFoundError
from puzzlefs.extract import extract
from puzzlefs.image import open_image
from puzzlefs.model import Fifo, Inode
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gets into directories of mode 0")
KIBI = 1024
MEBI = KIBI * KIBI


def me(inode: Inode) -> Inode:
    """The inode as one of this user's, so that no privilege is needed."""
    return Inode(inode.ino, os.getuid(), os.getgid(), inode.permissions, inode.content, inode.xattrs, inode.mtime_ns)


def test_a_tree_comes_out(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    inodes = [
        f.directory(1, {b"a": 2, b"b": 3, b"\xff\n": 4, b"same": 3}, permissions=0o750, mtime_ns=10**18 + 1),
        f.directory(2, {b"fifo": 5, b"again": 5}, mtime_ns=2),
        f.regular(3, forge.chunk(b"content"), permissions=0o640, mtime_ns=3),
        f.symlink(4, b"a/nowhere", mtime_ns=4),
        f.inode(5, Fifo(), mtime_ns=5),
    ]
    reference = forge.image([me(inode) for inode in inodes])
    seen: list[tuple[int, int]] = []
    report = extract(reference, tmp_path / "out", progress=lambda *state: seen.append(state))
    assert (report.entries, report.bytes, report.not_restored) == (6, 7, {})
    assert seen == sorted(seen)
    assert seen[-1] == (6, 7)
    with open_image(reference) as image:
        assert trees.on_disk(tmp_path / "out", mtime=True) == trees.in_image(image, mtime=True)
        assert extract(image, tmp_path / "open").entries == 6
    assert trees.on_disk(tmp_path / "open", mtime=True) == trees.on_disk(tmp_path / "out", mtime=True)


def test_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge = Forge(tmp_path / "layout")
    inodes = [f.directory(1, {b"a": 2, b"b": 3}), f.regular(2, forge.chunk(b"abc")), f.regular(3, forge.chunk(b"defg"))]
    reference = str(forge.image([me(inode) for inode in inodes]))
    assert main(["extract", "--progress=json", reference, str(tmp_path / "a")]) == 0
    out, err = capsys.readouterr()
    last = json.loads(err.splitlines()[-1])
    assert out == ""
    assert (last["stage"], last["inodes"], last["bytes_done"], last["bytes_total"]) == ("chunks", 2, 7, 7)
    assert main(["extract", "--progress=json", "--quiet", "--json", reference, str(tmp_path / "b")]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"entries": 2, "bytes": 7, "not_restored": {}}, "")


def test_an_empty_directory_that_exists_becomes_the_root(tmp_path: Path) -> None:
    reference = Forge(tmp_path / "layout").image([me(f.directory(1, permissions=0o511))])
    (tmp_path / "out").mkdir(mode=0o777)
    extract(str(reference), str(tmp_path / "out"))
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o511


@pytest.mark.parametrize("umask", [0, 0o077, pytest.param(0o777, marks=needs_root)])
def test_the_umask_does_not_matter(tmp_path: Path, umask: int) -> None:
    forge = Forge(tmp_path / "layout")
    reference = forge.image(
        [me(i) for i in (f.directory(1, {b"d": 2}), f.directory(2, {b"f": 3}), f.regular(3, permissions=0o666))]
    )
    old = os.umask(umask)
    try:
        extract(reference, tmp_path / "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out" / "d" / "f").stat().st_mode) == 0o666
    assert stat.S_IMODE((tmp_path / "out" / "d").stat().st_mode) == 0o755


def test_the_digest_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    reference = Forge(tmp_path / "layout").image([f.directory(1)])
    with pytest.raises(InvalidArgumentError):
        extract(reference, tmp_path / "out", digest="nonsense")
    with pytest.raises(NotFoundError):
        extract(f"{tmp_path}/layout:missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


HOLES = {
    "nothing": [],
    "one byte": [(0, b"x")],
    "zeros in between": [(0, b"begin"), (100_000, b"end")],
    "data at a block's edges": [(4095, b"ab"), (8192, b"c"), (3 * MEBI - 1, b"d")],
    "zeros to the end": [(0, b"x"), (2 * MEBI, b"")],
    "zeros from the start": [(2 * MEBI + 5, b"x")],
    "zero bytes that are data": [(0, b"\0" * 4096 + b"x" * 4096 + b"\0" * 4095 + b"y")],
    "a window of data, one of zeros": [(0, b"x" * MEBI), (2 * MEBI, b"y" * MEBI)],
    "blocks of data and zeros in turn": [(number * 8192, b"x" * 4096) for number in range(300)],
}


@pytest.mark.parametrize("name", HOLES)
@pytest.mark.parametrize("chunk_size", [65_536, 100_003, 4 * MEBI])
def test_holes_are_made_again(tmp_path: Path, name: str, chunk_size: int) -> None:
    content = bytearray()
    for offset, data in HOLES[name]:
        content.extend(bytes(offset - len(content)) + data)
    forge = Forge(tmp_path / "layout")
    chunks = [forge.chunk(bytes(content[at : at + chunk_size])) for at in range(0, len(content), chunk_size)]
    extract(forge.image([f.directory(1, {b"f": 2}), f.regular(2, *chunks)]), tmp_path / "out")
    path = tmp_path / "out" / "f"
    assert path.read_bytes() == content
    blocks_with_data = sum(any(content[at : at + 4096]) for at in range(0, len(content), 4096))
    assert path.stat().st_blocks * 512 <= blocks_with_data * 4096 + 64 * KIBI
    assert path.stat().st_size == len(content)


def test_parts_of_a_chunk_that_are_zeros_do_not_stand_for_the_rest(tmp_path: Path) -> None:
    """What is known of one part of a chunk says nothing of another: windows of zeros, then data of the same chunk."""
    forge = Forge(tmp_path / "layout")
    content = bytes(2 * MEBI) + b"data" * MEBI
    whole = forge.chunk(content)
    inodes = [
        f.directory(1, {b"%d" % number: number for number in range(2, 6)}),
        f.regular(2, forge.chunk(content, length=2 * MEBI)),
        f.regular(3, whole),
        f.regular(4, forge.chunk(content, offset=MEBI, length=2 * MEBI)),
        f.regular(5, *[forge.chunk(content, offset=2 * MEBI - 8, length=16)] * 3),
    ]
    extract(forge.image(inodes), tmp_path / "out")
    expected = [content[: 2 * MEBI], content, content[MEBI : 3 * MEBI], (bytes(8) + b"datadata") * 3]
    for number, data in enumerate(expected, 2):
        assert (tmp_path / "out" / str(number)).read_bytes() == data


def test_what_lies_between_zeros_of_one_chunk_is_not_taken_for_zeros(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    content = bytes(MEBI) + b"data" * (MEBI // 4) + bytes(MEBI)
    inodes = [
        f.directory(1, {b"%d" % number: number for number in range(2, 6)}),
        f.regular(2, forge.chunk(content, length=MEBI)),
        f.regular(3, forge.chunk(content, offset=2 * MEBI, length=MEBI)),
        f.regular(4, forge.chunk(content, offset=MEBI, length=MEBI)),
        f.regular(5, forge.chunk(content)),
    ]
    extract(forge.image(inodes), tmp_path / "out")
    assert (tmp_path / "out" / "4").read_bytes() == content[MEBI : 2 * MEBI]
    assert (tmp_path / "out" / "5").read_bytes() == content


def test_nothing_but_the_tree_is_left_in_the_target(tmp_path: Path) -> None:
    names = {b"%d" % number: 2 for number in range(50)}
    reference = Forge(tmp_path / "layout").image([f.directory(1, names, mtime_ns=77), f.inode(2, Fifo())])
    extract(reference, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.fsdecode(name) for name in names)
    assert (tmp_path / "out").stat().st_mtime_ns == 77
    assert (tmp_path / "out" / "0").stat().st_nlink == 50
