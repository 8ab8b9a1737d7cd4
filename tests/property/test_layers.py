"""Merging metadata layers: random stacks against an oracle that follows the rules word by word.

The rules: an inode is what the topmost layer that mentions it says, a live one before a white-out within one layer.
A directory's names are those of that layer; with ``look_below`` those of the next layer below that has the number as a
directory are added under names not yet taken, and so on; then names whose inode is a white-out go.
"""

from __future__ import annotations

from collections import Counter
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import forge as f

from puzzlefs.errors import FormatError
from puzzlefs.model import Directory, DirEntry, Fifo, Inode, Kind, MetadataLayer, Symlink, Whiteout, kind_of
from puzzlefs.vfs import Tree
from puzzlefs.vfs import stack as stack_module
from puzzlefs.vfs.changes import layer_changes
from puzzlefs.wire import codec_for

pytestmark = pytest.mark.property

NUMBERS = st.integers(1, 9)
NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
Layer = list[Inode]


@st.composite
def inodes(draw: st.DrawFn, ino: int) -> Inode:
    kind = draw(st.sampled_from(["directory", "directory", "symlink", "fifo", "white-out"])) if ino > 1 else "directory"
    if kind == "directory":
        entries = draw(st.dictionaries(NAMES, st.integers(2, 9), max_size=5))
        return f.directory(ino, sorted(entries.items()), look_below=draw(st.booleans()))
    if kind == "symlink":
        return f.symlink(ino, draw(NAMES))
    return f.inode(ino, Fifo() if kind == "fifo" else Whiteout())


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    layer: Layer = []
    for ino in sorted(draw(st.sets(NUMBERS, max_size=9))):
        made = draw(inodes(ino))
        if draw(st.integers(0, 5)) == 0 and ino > 1:  # the number stands twice, as in deltas of the original
            layer.append(f.inode(ino, Whiteout()))
        layer.append(made)
    return layer


@st.composite
def stacks(draw: st.DrawFn) -> list[Layer]:
    """Layers, topmost first; at least the lowest one has a root."""
    stack = draw(st.lists(layers(), min_size=1, max_size=12))
    if all(inode.ino != 1 for inode in stack[-1]):
        stack[-1].insert(0, draw(inodes(1)))
    return stack


# ---- the oracle


def said_by(layer: Layer, ino: int) -> Inode | None:
    here = [inode for inode in layer if inode.ino == ino]
    alive = [inode for inode in here if not isinstance(inode.content, Whiteout)]
    return next(iter([*alive, *here]), None)


def visible(stack: list[Layer], ino: int) -> Inode | None:
    """What the stack says of an inode; a white-out is an answer too."""
    return next((said for layer in stack if (said := said_by(layer, ino)) is not None), None)


def names_of(stack: list[Layer], ino: int) -> dict[bytes, int]:
    names: dict[bytes, int] = {}
    for layer in stack:
        said = said_by(layer, ino)
        if said is None:
            continue
        if not isinstance(said.content, Directory):
            break
        for entry in said.content.entries:
            names.setdefault(entry.name, entry.ino)
        if not said.content.look_below:
            break
    shown = {name: (number, visible(stack, number)) for name, number in names.items()}
    return {
        name: number
        for name, (number, inode) in sorted(shown.items())
        if inode is None or not isinstance(inode.content, Whiteout)
    }


# ---- the properties


def trees_of(stack: list[Layer]) -> list[Tree]:
    """The stack as the library keeps it: decoded, and read from the bytes of version 3; and that once more as if its
    layers were large."""
    message = codec_for(3).encode_rootfs(layers=stack, metadata_refs=(), verity={})
    read = codec_for(3).decode_rootfs(message)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_module, "_INDEXED", 0)
        large = Tree(read.tables)
        large.kind(1)
    return [Tree([MetadataLayer(layer) for layer in stack]), Tree(read.tables), large]


@given(stacks())
def test_every_directory_shows_what_the_rules_say(stack: list[Layer]) -> None:
    for tree in trees_of(stack):
        for ino in range(1, 10):
            said = visible(stack, ino)
            assert tree.kind(ino) == (None if said is None else kind_of(said.content))
            if said is None or isinstance(said.content, Whiteout):
                continue
            assert tree.inode(ino) == said
            if isinstance(said.content, Directory):
                shown = {entry.name: entry.ino for entry in tree.entries(ino)}
                assert shown == names_of(stack, ino)
                assert list(shown) == sorted(shown)
                for entry in tree.entries(ino):
                    inode = visible(stack, entry.ino)
                    assert entry.kind == (Kind.UNKNOWN if inode is None else kind_of(inode.content))
            elif isinstance(said.content, Symlink):
                assert tree.readlink(ino) == said.content.target


def reachable(stack: list[Layer]) -> tuple[dict[int, int], set[int]]:
    """Names of each inode that can be reached from the root, and the directories that have more than one."""
    names: dict[int, int] = {}
    queue = [1]
    for ino in queue:
        for number in names_of(stack, ino).values():
            names[number] = names.get(number, 0) + 1
            inode = visible(stack, number)
            if names[number] == 1 and number != 1 and inode is not None and isinstance(inode.content, Directory):
                queue.append(number)
    directories = {
        number
        for number, count in names.items()
        if (inode := visible(stack, number)) is not None and isinstance(inode.content, Directory)
        if count > 1 or number == 1
    }
    return names, directories


@given(stacks())
def test_link_counts_and_totals_are_those_of_what_can_be_seen(stack: list[Layer]) -> None:
    names, misplaced = reachable(stack)
    for tree in trees_of(stack):
        links = tree.links()
        assert links.misplaced == misplaced
        assert links.shared == {
            number: count for number, count in names.items() if count > 1 and tree.kind(number) is not Kind.DIRECTORY
        }
        assert sorted(links.visible) == sorted({1, *names})
        for number in names:
            if tree.kind(number) not in (None, Kind.DIRECTORY):
                assert tree.attributes(number).nlink == names[number]


@given(stacks(), st.booleans())
def test_link_counts_of_directories(stack: list[Layer], counted_before: bool) -> None:
    for tree in trees_of(stack):
        if counted_before:
            tree.links()
        for ino in range(1, 10):
            if tree.kind(ino) is Kind.DIRECTORY:
                below = [visible(stack, number) for number in names_of(stack, ino).values()]
                directories = sum(inode is not None and isinstance(inode.content, Directory) for inode in below)
                assert tree.attributes(ino).nlink == 2 + directories


@given(stacks())
@settings(max_examples=200)
def test_a_walk_ends_and_meets_every_name_once(stack: list[Layer]) -> None:
    names, misplaced = reachable(stack)
    broken = bool(misplaced) or any(visible(stack, number) is None for number in names)
    for tree in trees_of(stack):
        if broken:
            with pytest.raises(FormatError):
                list(tree.walk())
            continue
        walked = list(tree.walk())
        assert len(walked) == sum(names.values())
        assert len({(parent, entry.name) for _, parent, entry in walked}) == len(walked)
        assert {entry.ino for _, _, entry in walked} == set(names)


# ---- what each layer changed


def seen(stack: list[Layer]) -> dict[int, Inode]:
    """The inodes that a stack shows; a directory has the entries that can be seen in it."""
    shown: dict[int, Inode] = {}
    for ino in [1, *reachable(stack)[0]]:
        inode = visible(stack, ino)
        if inode is None or isinstance(inode.content, Whiteout):
            continue
        if isinstance(inode.content, Directory):
            entries = [
                DirEntry(number, name) for name, number in names_of(stack, ino).items() if visible(stack, number)
            ]
            inode = inode._replace(content=Directory(tuple(entries)))
        shown[ino] = inode
    return shown


@given(stacks())
@settings(max_examples=400)
def test_changes_are_what_is_seen_with_a_layer_and_without_it(stack: list[Layer]) -> None:
    stages = [stack[number:] for number in reversed(range(len(stack)))]
    sound = list(takewhile(lambda stage: not reachable(stage)[1], stages))
    message = codec_for(3).encode_rootfs(layers=stack, metadata_refs=(), verity={})
    for tables in ([MetadataLayer(layer) for layer in stack], codec_for(3).decode_rootfs(message).tables):
        found = layer_changes(tables, 10_000)
        before: dict[int, Inode] = {}
        for stage in sound:
            changes, now = next(found), seen(stage)
            mentioned = {inode.ino for inode in stage[0]}
            assert changes.added == Counter(kind_of(now[ino].content) for ino in now.keys() - before.keys())
            assert changes.removed == Counter(kind_of(before[ino].content) for ino in before.keys() - now.keys())
            assert changes.changed == Counter(
                kind_of(now[ino].content) for ino in now.keys() & before.keys() & mentioned if now[ino] != before[ino]
            )
            before = now
        if len(sound) < len(stages):
            with pytest.raises(FormatError, match=r"has directory \d in two places"):
                next(found)
