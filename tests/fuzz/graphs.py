"""Targets: file systems built of decisions: inodes that point to one another as they like, files of any parts."""

from __future__ import annotations

from itertools import pairwise

from fuzz.asking import answer, ask_tree
from fuzz.dice import Dice
from fuzz.mutation import any_bytes
from fuzz.target import Target
from puzzlefs.digest import Digest
from puzzlefs.model import (
    MAX_FILE_SIZE,
    BlobRef,
    BlockDevice,
    CharDevice,
    Content,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    InodeTable,
    MetadataLayer,
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
)
from puzzlefs.vfs import Piece, Tree
from puzzlefs.vfs.plan import FileMap
from puzzlefs.wire import codec_for

_NAMES = (
    b"a", b"b", b"c", b"d", b"e", b"long " * 20, b"\xff\xfe", b"x\ny", b"", b".", b"..", b"a/b", b"n\0", b"n" * 255,
    b"n" * 256,
)  # fmt: skip
_TARGETS = (b"a", b"../b", b"/", b"/c/d", b"c", b"./c", b"", b"a\0", b"t" * 5000)
_LENGTHS = (0, 1, 10, 4096, 1 << 20, 1 << 40, (1 << 63) - 1)  # decoding takes no larger ones
_DIGESTS = tuple(Digest.of(bytes([number])) for number in range(4))
_NUMBERS = (1 << 32, (1 << 63) - 1, (1 << 64) - 1, 0)
_KEYS = (b"user.a", b"security.capability", b"", b"k\0", b"k" * 256, b"trusted.x")


def _ino(dice: Dice) -> int:
    byte = dice.byte()
    return _NUMBERS[byte % 4] if byte > 250 else byte % 16


def _chunk(dice: Dice) -> FileChunk:
    return FileChunk(BlobRef(dice.one_of(_DIGESTS), dice.byte(), bool(dice.below(2))), dice.one_of(_LENGTHS))


def _content(dice: Dice) -> Content:
    match dice.below(12):
        case 0 | 1 | 2 | 3:
            entries = tuple(DirEntry(_ino(dice), dice.one_of(_NAMES)) for _ in range(dice.below(7)))
            return Directory(entries, look_below=dice.below(4) == 0)
        case 4:
            file = RegularFile.of(tuple(_chunk(dice) for _ in range(dice.below(5))))
            return file if file.size <= MAX_FILE_SIZE else RegularFile.of(file.chunks[:1])
        case 5:
            return Symlink(dice.one_of(_TARGETS))
        case 6:
            return CharDevice(dice.number(), dice.byte())
        case 7:
            return BlockDevice(dice.byte(), dice.number())
        case 8:
            return Socket()
        case 9 | 10:
            return Whiteout()
        case _:
            return Fifo()


def build_layers(data: bytes) -> list[list[Inode]]:
    """Metadata layers, topmost first, each sorted by number."""
    dice = Dice(data)
    count = 1 + dice.below(12)
    layers: list[list[Inode]] = []
    for number in range(count):
        layer = [Inode(1, 0, 0, 0o755, _content(dice))] if number == count - 1 or dice.below(2) else []
        for _ in range(dice.below(10)):
            flags = dice.byte()
            owner = 0xFFFFFFFF if flags & 1 and flags & 2 and flags & 4 else flags
            keys = {dice.one_of(_KEYS) for _ in range(dice.below(3))} if flags & 8 else set()
            xattrs = tuple(Xattr(key, b"value") for key in sorted(keys))
            layer.append(Inode(_ino(dice), owner, 0, 0o644, _content(dice), xattrs))
        if dice.below(8) == 0:
            layer = [inode._replace(mtime_ns=dice.number() - (1 << 63)) for inode in layer]
        layers.append(sorted(layer, key=lambda inode: inode.ino))
    return layers


def trees(data: bytes) -> None:
    """A tree over any graph of inodes: decoded layers and layers in a message must show the same."""
    layers = build_layers(data)
    numbers = range(17)
    limit = 4096
    plain = ask_tree(Tree([MetadataLayer(layer) for layer in layers], max_entries=limit), numbers)
    codec = codec_for(3)
    blob = codec.encode_rootfs(layers=layers, metadata_refs=(), verity={})
    tables: list[InodeTable] = list(codec.decode_rootfs(blob).tables)
    _same(plain, ask_tree(Tree(tables, max_entries=limit), numbers))
    if len(data) % 4:
        return
    older = codec_for(1 + len(data) // 4 % 2)
    tables = [older.decode_inode_vector(older.encode_inode_vector(layer)) for layer in layers]
    _same(plain, ask_tree(Tree(tables, max_entries=limit), numbers))


def _same(one: list[tuple[str, object]], other: list[tuple[str, object]]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert mine == theirs, (mine, theirs)


def plans(data: bytes) -> None:
    """Reading any range of a file of any parts: every byte once, in order, from where it lies."""
    dice = Dice(data)
    size = 10 * dice.byte()
    queries = [(dice.number(), dice.number()) for _ in range(1 + dice.below(8))]
    chunks: list[FileChunk] = []
    while not dice.is_empty and len(chunks) < size + 100:
        chunk = FileChunk(BlobRef(dice.one_of(_DIGESTS), dice.number(), bool(dice.below(2))), dice.number())
        chunks += [chunk] * (1 if dice.below(8) else 1 + dice.byte())
    file = RegularFile.of(tuple(chunks))
    codec = codec_for(2)
    table = codec.decode_inode_vector(codec.encode_inode_vector([Inode(1, 0, 0, 0, file)]))
    if file.size > MAX_FILE_SIZE:
        assert answer(FileMap, file) == answer(table.find, 1) == "FormatError"
        return
    plain = FileMap(file)
    inode = table.find(1)
    assert inode is not None
    assert isinstance(inode.content, RegularFile)
    lazy = FileMap(inode.content)
    edges = [sum(chunk.length for chunk in chunks[:number]) for number in range(min(len(chunks), 20))]
    for offset, length in [*queries, *((edge, 1) for edge in edges), *((max(edge - 1, 0), 3) for edge in edges)]:
        plan = plain.plan(offset, length)
        assert plan == lazy.plan(offset, length)
        assert plan.pieces == _naive(chunks, offset, length)
        if offset < file.size:
            begin, end, whole = plain.extent(offset)
            assert begin <= offset < end <= whole == file.size
            assert plain.blob(plain.position(offset)) == chunks[plain.position(offset)].blob.digest
    assert answer(plain.plan, -1, 1) == answer(plain.plan, 1, -1) == "InvalidArgumentError"


def _naive(chunks: list[FileChunk], offset: int, length: int) -> tuple[Piece, ...]:
    stop = offset + length
    ends = [0]
    for chunk in chunks:
        ends.append(ends[-1] + chunk.length)
    pieces = []
    for chunk, (begin, end) in zip(chunks, pairwise(ends), strict=True):
        first, last = max(begin, offset), min(end, stop)
        if first < last:
            ref = chunk.blob
            pieces.append(Piece(ref.digest, ref.compressed, ref.offset + first - begin, last - first))
    return tuple(pieces)


def _graph_seeds() -> list[bytes]:
    tree = bytes((0, 0, 3, 2, 0, 3, 1, 4, 2, 5, 0, 9, 3, 0, 4, 1, 1, 0, 0, 4, 0, 5, 2, 1, 1, 0, 1, 1, 2, 0, 6))
    return [tree, bytes(range(200)), bytes(200), bytes((11, *[1, 2, 3, 0, 4, 9, 1] * 40)), b"\xff" * 100]


def _plan_seeds() -> list[bytes]:
    return [bytes(50), bytes(range(256)), bytes((3, 0, 5, 0, 10, 2, *[0, 0, 7, 1, 0, 9, 1] * 20)), b"\x02" * 90]


TARGETS = (
    Target("trees", trees, _graph_seeds, any_bytes, max_size=4096),
    Target("plans", plans, _plan_seeds, any_bytes, max_size=4096),
)
