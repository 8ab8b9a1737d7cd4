"""The tree that metadata layers show: lookups, attributes, link counts, plans. Over decoded layers, without a file."""

from __future__ import annotations

import os
import stat
import threading

import pytest
from support import forge as f

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, InvalidArgumentError, NotFoundError
from puzzlefs.model import (
    BlobRef,
    BlockDevice,
    CharDevice,
    Fifo,
    FileChunk,
    Inode,
    Kind,
    MetadataLayer,
    RegularFile,
    Socket,
    Whiteout,
)
from puzzlefs.vfs import Entry, Piece, Tree, kind_to_file_type
from puzzlefs.vfs.plan import FileMap
from puzzlefs.vfs.stack import LayerStack

pytestmark = pytest.mark.unit

A, B = Digest.of(b"a"), Digest.of(b"b")


def tree(*layers: list[Inode]) -> Tree:
    return Tree([MetadataLayer(layer) for layer in layers])


def chunk(blob: Digest, length: int, *, offset: int = 0, compressed: bool = False) -> FileChunk:
    return FileChunk(BlobRef(blob, offset, compressed), length)


SMALL = [
    f.directory(1, {b"dir": 2, b"file": 3, b"link": 4}),
    f.directory(2, {b"again": 3, b"sub": 5}),
    f.regular(3, chunk(A, 700)),
    f.symlink(4, b"dir/sub"),
    f.directory(5),
]


# ---- names


def test_lookup() -> None:
    small = tree(SMALL)
    assert small.lookup(1, b"dir") == Entry(b"dir", 2, Kind.DIRECTORY)
    assert small.lookup(2, b"again") == Entry(b"again", 3, Kind.REGULAR)
    for name in (b"", b"di", b"dirx", b".", b"..", b"zzz", b"a"):
        with pytest.raises(NotFoundError):
            small.lookup(1, name)
    with pytest.raises(NotFoundError):
        small.lookup(5, b"any")


def test_entries_are_sorted_by_their_bytes() -> None:
    names = [b"z", b"a", b"\xff", b"A", b"a.b", b"a0", b"\x01", "ä".encode()]
    shown = tree([f.directory(1, [(name, 2) for name in names]), f.inode(2, Fifo())]).entries(1)
    assert [entry.name for entry in shown] == sorted(names)


def test_what_is_no_directory() -> None:
    small = tree(SMALL)
    for ask in (small.entries, lambda ino: small.lookup(ino, b"x")):
        for ino in (3, 4):
            with pytest.raises(InvalidArgumentError):
                ask(ino)
        for ino in (0, 6, 1 << 63, (1 << 64) - 1):
            with pytest.raises(NotFoundError):
                ask(ino)


def test_walk_goes_down_before_it_goes_on() -> None:
    assert [(depth, parent, entry.name) for depth, parent, entry in tree(SMALL).walk()] == [
        (0, 1, b"dir"),
        (1, 2, b"again"),
        (1, 2, b"sub"),
        (0, 1, b"file"),
        (0, 1, b"link"),
    ]


def test_an_image_cannot_have_more_entries_than_bytes() -> None:
    layers = [MetadataLayer(SMALL)]
    assert len(list(Tree(layers, max_entries=5).walk())) == 5
    with pytest.raises(FormatError, match="more than 4 entries"):
        list(Tree(layers, max_entries=4).walk())


# ---- attributes


def test_attributes_of_every_kind() -> None:
    inodes = [
        f.directory(1, {b"%d" % number: number for number in range(2, 9)}, permissions=0o1777),
        f.regular(2, chunk(A, 1000), chunk(B, 25), permissions=0o4755, uid=7, gid=8),
        f.symlink(3, b"target"),
        f.inode(4, CharDevice(259, 1048575), permissions=0o600),
        f.inode(5, BlockDevice(8, 17), permissions=0o660),
        f.inode(6, Fifo()),
        f.inode(7, Socket()),
        f.directory(8, uid=0xFFFFFFFE, gid=0xFFFFFFFE, mtime_ns=-5),
    ]
    shown = {number: tree(inodes).attributes(number) for number in range(1, 9)}
    assert [oct(shown[number].mode) for number in shown] == [
        oct(mode)
        for mode in (
            stat.S_IFDIR | 0o1777,
            stat.S_IFREG | 0o4755,
            stat.S_IFLNK | 0o777,
            stat.S_IFCHR | 0o600,
            stat.S_IFBLK | 0o660,
            stat.S_IFIFO | 0o644,
            stat.S_IFSOCK | 0o644,
            stat.S_IFDIR | 0o755,
        )
    ]
    assert [shown[number].size for number in shown] == [0, 1025, 6, 0, 0, 0, 0, 0]
    assert [shown[number].blocks for number in shown] == [0, 3, 1, 0, 0, 0, 0, 0]
    assert [shown[number].rdev for number in (3, 4, 5)] == [0, os.makedev(259, 1048575), os.makedev(8, 17)]
    assert (shown[2].uid, shown[2].gid, shown[2].ino) == (7, 8, 2)
    assert (shown[8].uid, shown[8].mtime_ns, shown[1].mtime_ns) == (0xFFFFFFFE, -5, 0)


def test_file_types() -> None:
    assert kind_to_file_type(Kind.SOCKET) == stat.S_IFSOCK
    assert kind_to_file_type(Kind.WHITEOUT) == kind_to_file_type(Kind.UNKNOWN) == 0


@pytest.mark.parametrize("counted_before", [False, True])
def test_link_counts(counted_before: bool) -> None:
    small = tree(SMALL)
    if counted_before:
        small.links()
    assert [small.attributes(ino).nlink for ino in range(1, 6)] == [3, 3, 2, 1, 2]


def test_links_in_what_is_not_visible_do_not_count() -> None:
    lower = [f.directory(1, {b"a": 2, b"b": 3}), f.regular(2, chunk(A, 1)), f.directory(3, {b"c": 2})]
    upper = [f.directory(1, {b"a": 2, b"b": 3}), f.inode(3, Whiteout())]
    assert tree(lower).attributes(2).nlink == 2
    assert tree(upper, lower).attributes(2).nlink == 1
    assert tree(upper, lower).totals() == (2, 1)


def test_a_replaced_directory_is_not_followed() -> None:
    lower = [f.directory(1, {b"a": 2}), f.directory(2, {b"b": 3}), f.inode(3, Fifo())]
    upper = [f.symlink(2, b"x")]
    assert [entry.name for _, _, entry in tree(upper, lower).walk()] == [b"a"]
    assert tree(upper, lower).attributes(1).nlink == 2
    assert tree(upper, lower).totals() == (2, 0)


def test_totals() -> None:
    assert tree(SMALL).totals() == (5, 700)
    hidden = [*SMALL, f.regular(9, chunk(A, 1 << 40))]
    assert tree(hidden).totals() == (5, 700)


def test_totals_end_with_what_a_host_can_tell() -> None:
    """Files that share a chunk cost nothing, and statfs has 64 bits: a server that overflowed them would end."""
    huge = chunk(A, (1 << 63) - 1)
    files = [f.regular(ino, huge) for ino in (2, 3)]
    assert tree([f.directory(1, {b"a": 2, b"b": 3}), *files]).totals() == (3, (1 << 63) - 1)


def test_links_are_counted_once_by_many_threads() -> None:
    small = tree(SMALL)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(small.links())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(links is found[0] for links in found)


def test_xattrs_and_targets() -> None:
    one = tree([f.directory(1, {b"l": 2}, xattrs={b"user.a": b"", b"user.b": b"\0x"}), f.symlink(2, b"a/../b")])
    assert one.xattrs(1) == {b"user.a": b"", b"user.b": b"\0x"}
    assert one.xattrs(2) == {}
    assert one.readlink(2) == b"a/../b"
    with pytest.raises(InvalidArgumentError):
        one.readlink(1)
    with pytest.raises(NotFoundError):
        one.readlink(3)


# ---- layers


def test_the_topmost_layer_that_mentions_an_inode_counts() -> None:
    layers = [
        [f.symlink(2, b"top")],
        [f.directory(1, {b"a": 2, b"b": 3}), f.symlink(2, b"middle"), f.symlink(3, b"middle")],
        [f.directory(1, {b"c": 2}), f.symlink(3, b"bottom")],
    ]
    stack = tree(*layers)
    assert [entry.name for entry in stack.entries(1)] == [b"a", b"b"]
    assert (stack.readlink(2), stack.readlink(3)) == (b"top", b"middle")


@pytest.mark.parametrize("layers_between", [0, 20])
def test_look_below_goes_on_until_a_complete_list(layers_between: int) -> None:
    between: list[list[Inode]] = [[f.symlink(99, b"x")] for _ in range(layers_between)]
    layers = [
        [f.directory(1, {b"a": 2, b"gone": 4}, look_below=True), f.symlink(2, b"top"), f.inode(4, Whiteout())],
        *between,
        [f.directory(1, {b"a": 3, b"b": 3}, look_below=True), f.symlink(3, b"middle")],
        [f.directory(1, {b"c": 3, b"gone": 3, b"white": 4})],
        [f.directory(1, {b"hidden": 3})],
    ]
    stack = tree(*layers)
    assert stack.entries(1) == (
        Entry(b"a", 2, Kind.SYMLINK),
        Entry(b"b", 3, Kind.SYMLINK),
        Entry(b"c", 3, Kind.SYMLINK),
    )
    assert stack.attributes(3).nlink == 2
    assert stack.totals() == (3, 0)


@pytest.mark.parametrize("count", [1, 8, 9, 300])
def test_which_layers_mention_an_inode(count: int) -> None:
    """All that do, topmost first, none of them twice; with many layers, no others."""
    layers = [MetadataLayer([f.symlink(7, b"x"), *[f.symlink(number + 10, b"y")] * 3]) for number in range(count)]
    stack = LayerStack(layers)
    assert list(stack.mentioning(7)) == layers
    for number, layer in enumerate(layers):
        mentioning = list(stack.mentioning(number + 10))
        assert mentioning == ([layer] if count > 8 else layers)
    assert list(stack.mentioning(8)) == ([] if count > 8 else layers)


def test_below_a_directory_that_was_something_else_nothing_is_looked_for() -> None:
    layers = [
        [f.directory(1, {b"a": 2}, look_below=True), f.directory(2, {b"x": 3}, look_below=True), f.inode(3, Fifo())],
        [f.symlink(2, b"was a link")],
        [f.directory(2, {b"y": 3})],
    ]
    assert [entry.name for entry in tree(*layers).entries(2)] == [b"x"]


def test_a_whited_out_inode_does_not_exist() -> None:
    stack = tree([f.inode(2, Whiteout())], [f.directory(1, {b"a": 2, b"b": 3}), f.symlink(2, b"x"), f.symlink(3, b"y")])
    assert stack.kind(2) is Kind.WHITEOUT
    for ask in (stack.inode, stack.attributes, stack.readlink, stack.entries, stack.xattrs):
        with pytest.raises(NotFoundError):
            ask(2)
    with pytest.raises(NotFoundError):
        stack.lookup(1, b"a")


# ---- directories have one place


def test_the_first_place_of_a_directory_counts() -> None:
    """First in the order in which the whole tree is passed: level by level, names in order."""
    twice = tree(
        [
            f.directory(1, {b"a": 2, b"z": 3}),
            f.directory(2, {b"deep": 3}),
            f.directory(3, {b"x": 4}),
            f.inode(4, Fifo()),
        ]
    )
    assert twice.lookup(1, b"z").ino == 3
    with pytest.raises(FormatError, match=r"b'deep' of directory 2 is a second name of directory 3"):
        twice.lookup(2, b"deep")
    assert [entry.name for entry in twice.entries(2)] == [b"deep"]
    with pytest.raises(FormatError):
        list(twice.walk())


def test_entries_that_point_to_the_root_or_to_nothing() -> None:
    bad = tree([f.directory(1, {b"ghost": 7, b"root": 1})])
    with pytest.raises(FormatError, match="points to the root"):
        bad.lookup(1, b"root")
    with pytest.raises(FormatError, match="inode 7, which is missing"):
        bad.lookup(1, b"ghost")


# ---- plans


def file_map(*chunks: FileChunk) -> FileMap:
    return FileMap(RegularFile.of(chunks))


def test_plans() -> None:
    three = file_map(chunk(A, 10, offset=5), chunk(B, 20, compressed=True), chunk(A, 1))
    assert three.plan(0, 31).pieces == (Piece(A, False, 5, 10), Piece(B, True, 0, 20), Piece(A, False, 0, 1))
    assert three.plan(9, 2).pieces == (Piece(A, False, 14, 1), Piece(B, True, 0, 1))
    assert three.plan(10, 5).pieces == (Piece(B, True, 0, 5),)
    assert three.plan(30, 1 << 40).pieces == (Piece(A, False, 0, 1),)
    assert three.plan(31, 10).pieces == three.plan(1 << 62, 1).pieces == three.plan(5, 0).pieces == ()
    assert (three.size, len(three)) == (31, 3)


@pytest.mark.parametrize(("offset", "size"), [(-1, 5), (0, -1), (-5, 5)])
def test_plans_of_nonsense(offset: int, size: int) -> None:
    with pytest.raises(InvalidArgumentError):
        file_map(chunk(A, 10)).plan(offset, size)


def test_parts_without_a_byte_are_passed_over() -> None:
    empty = chunk(B, 0)
    pieces = file_map(empty, empty, chunk(A, 2), empty, chunk(A, 3), empty).plan(0, 10).pieces
    assert pieces == (Piece(A, False, 0, 2), Piece(A, False, 0, 3))
    assert file_map(empty).plan(0, 10).pieces == file_map().plan(0, 10).pieces == ()


def test_files_larger_than_a_file_can_be() -> None:
    assert file_map(chunk(A, (1 << 63) - 1)).plan((1 << 63) - 2, 10).pieces == (Piece(A, False, (1 << 63) - 2, 1),)
    with pytest.raises(FormatError):
        file_map(chunk(A, 1 << 62), chunk(A, 1 << 62))


def test_only_files_have_plans() -> None:
    small = tree(SMALL)
    assert small.plan(3, 0, 1000).pieces == (Piece(A, False, 0, 700),)
    for ino in (1, 4):
        with pytest.raises(InvalidArgumentError):
            small.plan(ino, 0, 1)
    with pytest.raises(NotFoundError):
        small.plan(77, 0, 1)
