"""Which metadata layer says what an inode is, and that many layers are not asked one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from support import forge as f

from puzzlefs.digest import Digest
from puzzlefs.model import BlobRef, Fifo, FileChunk, Inode, InodeTable, Kind, MetadataLayer, Resident, Whiteout
from puzzlefs.vfs import Tree, stack
from puzzlefs.vfs.stack import LayerStack
from puzzlefs.wire import codec_for

pytestmark = pytest.mark.unit

A, B, C = (Digest.of(letter) for letter in (b"a", b"b", b"c"))
LARGE = range(10, 5000)


class Asked(MetadataLayer):
    """A layer that counts what it is asked."""

    def __init__(self, inodes: Sequence[Inode]) -> None:
        super().__init__(inodes)
        self.asked: Counter[str] = Counter()

    def find(self, ino: int) -> Inode | None:
        self.asked["find"] += 1
        return super().find(ino)

    def kinds(self) -> Iterator[tuple[int, int]]:
        self.asked["kinds"] += 1
        return super().kinds()


def fifos(numbers: Sequence[int]) -> list[Inode]:
    return [f.inode(ino, Fifo()) for ino in numbers]


def tables_of(*layers: Sequence[Inode]) -> tuple[InodeTable, ...]:
    """Layers as they are read from an image."""
    return codec_for(3).decode_rootfs(codec_for(3).encode_rootfs(layers=layers, metadata_refs=(), verity={})).tables


def large_layer() -> list[Inode]:
    names = [(b"%05d" % ino, ino) for ino in LARGE]
    return [f.directory(1, [(b"dir", 2), (b"other", 3)]), f.directory(2, names), f.directory(3), *fifos(LARGE)]


@pytest.mark.parametrize("count", [1, 20, 300])
def test_a_lookup_asks_one_layer_however_many_there_are(count: int) -> None:
    small = [Asked([f.symlink(10 + number, b"t"), f.symlink(6000 + number, b"t")]) for number in range(count)]
    base = Asked(large_layer())
    layers = [*small, base]
    tree = Tree(layers)
    tree.kind(1)
    for layer in layers:
        layer.asked.clear()
    assert tree.kind(10 + count - 1) is Kind.SYMLINK
    assert tree.kind(10 + count) is Kind.FIFO
    assert tree.kind(7000) is None
    assert tree.inode(6000).ino == 6000
    assert sum((layer.asked for layer in layers), Counter()) == {"find": 4}


def test_opening_does_not_look_through_the_large_layer() -> None:
    base = Asked(large_layer())
    tree = Tree([MetadataLayer(fifos([4])), MetadataLayer([f.inode(10, Whiteout())]), base])
    assert tree.kind(1) is Kind.DIRECTORY
    assert tree.kind(10) is Kind.WHITEOUT
    assert [entry.ino for entry in tree.entries(1)] == [2, 3]
    assert len(tree.entries(2)) == len(LARGE) - 1
    assert base.asked["kinds"] == 0


@pytest.mark.parametrize("room", [0, 10, 1 << 16])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_the_topmost_mention_counts_whichever_layers_are_large(
    monkeypatch: pytest.MonkeyPatch, room: int, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(stack, "_INDEXED", room)
    sizes = [3, 40, 300, 301]
    layers = [
        MetadataLayer([f.symlink(ino, b"%d" % number) for ino in range(1, sizes[number] + 1)]) for number in order
    ]
    stacked = LayerStack(layers)
    for ino in range(1, 302):
        first = next(layer for layer in layers if layer.mentions(ino))
        assert stacked.owner(ino) is first
    assert stacked.owner(400).find(400) is None
    assert stacked.kinds([0, 1, 301, 302]) == [Kind.UNKNOWN, Kind.SYMLINK, Kind.SYMLINK, Kind.UNKNOWN]


def test_many_large_layers_are_not_asked_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "_INDEXED", 0)
    layers = [Asked(fifos(range(number, 200))) for number in range(100)]
    stacked = LayerStack(layers)
    assert stacked.owner(0) is layers[0]
    for layer in layers:
        layer.asked.clear()
    assert stacked.owner(199) is layers[0]
    assert stacked.owner(200).find(200) is None
    assert sum(layer.asked["find"] for layer in layers) <= 10
    assert sum(layer.asked["kinds"] for layer in layers) == 0


def test_a_stack_of_nothing() -> None:
    assert Tree([]).kind(1) is None
    assert LayerStack([]).kinds([1]) == [Kind.UNKNOWN]


# ---- what is asked in a hurry


def part(blob: Digest, offset: int, length: int = 10) -> FileChunk:
    return FileChunk(BlobRef(blob, offset, False), length)


def test_neighbours_in_a_chunk_are_those_of_the_same_layer() -> None:
    base = [
        f.directory(1, [(b"%d" % ino, ino) for ino in range(2, 9)]),
        *(f.regular(ino, part(A, 10 * ino)) for ino in range(2, 7)),
        f.regular(7, part(B, 0)),
        f.regular(8, part(B, 10)),
    ]
    upper = [
        f.regular(3, part(C, 0)),
        f.regular(5, part(C, 10)),
        f.regular(7, part(C, 20)),
        f.regular(2000, part(A, 0)),
    ]
    alone, layered = Tree(tables_of(base)), Tree(tables_of(upper, base))
    assert alone.files_in(A, 3, 1000) == ([Resident(ino, 10 * ino, 10, True) for ino in range(3, 7)], 7)
    # 3 and 5 are elsewhere now, and so is 7, with which the search in the base would have gone on
    assert layered.files_in(A, 3, 1000) == ([Resident(ino, 10 * ino, 10, True) for ino in (4, 6)], 8)
    assert layered.files_in(C, 4, 1000) == ([Resident(5, 10, 10, True), Resident(7, 20, 10, True)], 1000)
    assert layered.files_in(C, 4, 6) == ([Resident(5, 10, 10, True)], 6)
    assert layered.files_in(C, 4, 3000) == ([Resident(5, 10, 10, True), Resident(7, 20, 10, True)], 2000)


def test_the_numbers_of_a_sparse_layer_are_not_tried_one_after_the_other() -> None:
    far = 1 << 40
    tree = Tree(tables_of([f.directory(1), f.regular(2, part(A, 0)), f.regular(far, part(A, 10))]))
    assert tree.files_in(A, 3, far + 1) == ([Resident(far, 10, 10, True)], far + 1)


def test_quick_answers_through_layers_are_the_slow_ones() -> None:
    base = [
        f.directory(1, [(b"dir", 2), (b"gone", 3), (b"same", 4), (b"x", 5), (b"y", 9)]),
        f.directory(2, [(b"a", 6), (b"b", 7)]),
        f.regular(3, part(A, 0)),
        f.regular(4, part(A, 10)),
        f.symlink(5, b"target"),
        f.regular(6, part(A, 20), part(B, 0)),
        f.inode(7, Fifo()),
    ]
    upper = [
        f.inode(3, Whiteout()),
        f.regular(5, part(C, 0, 99), permissions=0o4755, xattrs={b"user.x": b"1"}),
        f.directory(7, [(b"deep", 8), (b"same", 4)]),
        f.regular(8, part(C, 99, 1)),
    ]
    quick, slow = Tree(tables_of(upper, base)), Tree([MetadataLayer(upper), MetadataLayer(base)])
    assert quick.links().shared == slow.links().shared == {4: 2}
    assert quick.totals() == slow.totals() == (8, 10 + 99 + 20 + 1)
    for ino in (1, 2, 4, 5, 6, 7, 8):
        assert quick.attributes(ino) == slow.attributes(ino)
        assert quick.xattrs(ino) == slow.xattrs(ino)
    for ino in (1, 2, 7):
        assert quick.entries(ino) == slow.entries(ino)
    for ino in (4, 5, 6, 8):
        assert quick.plan(ino, 0, 1000) == slow.plan(ino, 0, 1000)
    assert [(entry.name, entry.kind) for entry in quick.entries(1)] == [
        (b"dir", Kind.DIRECTORY),
        (b"same", Kind.REGULAR),
        (b"x", Kind.REGULAR),
        (b"y", Kind.UNKNOWN),
    ]
