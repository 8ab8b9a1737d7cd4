"""Strategies for inodes and layers, and the same messages made by others: pycapnp's builder, a plain encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.model import (
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
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
)
from puzzlefs.wire import codec_for

U32 = (1 << 32) - 1
U64 = (1 << 64) - 1


def pattern(size: int, seed: int) -> bytes:
    """``size`` bytes that differ from those of another seed."""
    return (seed.to_bytes(3, "big") * (size // 3 + 1))[:size]


def patterns(sizes: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.builds(pattern, sizes, st.integers(0, 0xFFFFFF))


sizes = st.one_of(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3000), st.integers(8000, 9000))
u64 = st.one_of(st.integers(0, 1 << 40), st.integers(0, U64))
digests = st.builds(lambda seed: Digest.of(bytes([seed])), st.integers(0, 255))
chunks = st.builds(FileChunk, st.builds(BlobRef, digests, u64, st.booleans()), st.integers(0, 1 << 50))
chunk_lists = st.one_of(
    st.lists(chunks, max_size=3), st.builds(lambda chunk, n: [chunk] * n, chunks, st.integers(0, 300))
).map(tuple)
entries = st.one_of(
    st.lists(st.builds(DirEntry, u64, patterns(st.integers(1, 255))), max_size=40),
    st.builds(
        lambda first, count: [DirEntry(first + i, b"entry %d" % i) for i in range(count)],
        st.integers(0, 1 << 40),
        st.integers(0, 400),
    ),
).map(tuple)
contents: st.SearchStrategy[Content] = st.one_of(
    chunk_lists.map(RegularFile.of),
    st.builds(Directory, entries, st.booleans()),
    st.builds(Symlink, patterns(sizes)),
    st.builds(CharDevice, u64, u64),
    st.builds(BlockDevice, u64, u64),
    st.just(Fifo()),
    st.just(Socket()),
    st.just(Whiteout()),
)
xattr_lists = st.lists(st.builds(Xattr, patterns(st.integers(0, 255)), patterns(sizes)), max_size=4).map(
    lambda xattrs: tuple(sorted(xattrs, key=lambda xattr: xattr.key))
)
mtimes = st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1))
inodes = st.builds(
    Inode,
    u64,
    st.integers(0, U32),
    st.integers(0, U32),
    st.integers(0, 0o7777),
    contents,
    st.one_of(st.just(()), xattr_lists),
    mtimes,
)


@st.composite
def layers(draw: st.DrawFn, *, max_size: int = 25) -> tuple[Inode, ...]:
    """Inodes sorted by number; with an mtime everywhere or nowhere, numbers dense or sparse or repeated."""
    found = draw(st.lists(inodes, max_size=max_size))
    style = draw(st.sampled_from(["dense", "drawn"]))
    if style == "dense":
        first = draw(st.integers(0, 5))
        found = [inode._replace(ino=first + index) for index, inode in enumerate(found)]
    if not draw(st.booleans()):
        found = [inode._replace(mtime_ns=None) for inode in found]
    return tuple(sorted(found, key=lambda inode: inode.ino))


changes_of_bytes = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6)
"""What ``damaged_table`` does to a message: positions, counted round and round, and what to put there."""


def damaged_table(layer: Sequence[Inode], changes: Sequence[tuple[int, int]]) -> InodeTable | None:
    """A layer that was encoded and then changed here and there, ``None`` if nothing can be read of it any more."""
    codec = codec_for(2)
    data = bytearray(codec.encode_inode_vector(layer))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        return codec.decode_inode_vector(bytes(data))
    except FormatError:
        return None


verities = st.dictionaries(digests, st.builds(VerityDigest, patterns(st.just(32))), max_size=150)
blob_refs = st.lists(st.builds(BlobRef, digests, u64, st.booleans()), max_size=5)


def as_written(layer: Sequence[Inode]) -> list[Inode]:
    """What reading a layer back gives: where one inode has an mtime, all have one."""
    if all(inode.mtime_ns is None for inode in layer):
        return list(layer)
    return [inode._replace(mtime_ns=inode.mtime_ns or 0) for inode in layer]


def with_mtime(layer: Sequence[Inode]) -> list[Inode]:
    """What pycapnp says: it does not tell an absent field from a zero."""
    return [inode._replace(mtime_ns=inode.mtime_ns or 0) for inode in layer]


def find_in(layer: Sequence[Inode], ino: int) -> Inode | None:
    """The rule of lookups, plainly: the first live inode of that number, else its white-out."""
    found = [inode for inode in layer if inode.ino == ino]
    live = [inode for inode in found if not isinstance(inode.content, Whiteout)]
    return (live or found or [None])[0]


# --- pycapnp's builder ---


def fill_vector(version: int, vector: Any, layer: Sequence[Inode]) -> None:
    """Write ``layer`` through a pycapnp builder of an ``InodeVector``."""
    builders = vector.init("inodes", len(layer))
    for builder, inode in zip(builders, layer, strict=True):
        builder.ino, builder.uid, builder.gid = inode.ino, inode.uid, inode.gid
        builder.permissions = inode.permissions
        if inode.mtime_ns is not None:
            builder.mtimeNs = inode.mtime_ns
        # Not in the order of our encoder: readers must not depend on it.
        if inode.xattrs or isinstance(inode.content, Symlink):
            additional = builder.init("additional")
            if isinstance(inode.content, Symlink):
                additional.symlinkTarget = inode.content.target
            if inode.xattrs:
                for xattr, at in zip(inode.xattrs, additional.init("xattrs", len(inode.xattrs)), strict=True):
                    at.key, at.val = xattr.key, xattr.value
        _fill_mode(version, builder.mode, inode.content)


def _fill_mode(version: int, mode: Any, content: Content) -> None:
    match content:
        case RegularFile():
            owner, field = (mode.init("file"), "chunks") if version == 1 else (mode, "file")
            for chunk, at in zip(content.chunks, owner.init(field, len(content.chunks)), strict=True):
                at.len = chunk.length
                fill_ref(at.init("blob"), chunk.blob)
        case Directory():
            directory = mode.init("dir")
            directory.lookBelow = content.look_below
            for entry, at in zip(content.entries, directory.init("entries", len(content.entries)), strict=True):
                at.ino, at.name = entry.ino, entry.name
        case CharDevice():
            device = mode.init("chr")
            device.major, device.minor = content.major, content.minor
        case BlockDevice():
            device = mode.init("blk")
            device.major, device.minor = content.major, content.minor
        case Symlink():
            mode.lnk = None
        case Fifo():
            mode.fifo = None
        case Socket():
            mode.sock = None
        case Whiteout():
            mode.wht = None


def fill_ref(builder: Any, ref: BlobRef) -> None:
    builder.offset, builder.compressed, builder.digest = ref.offset, ref.compressed, bytes(ref.digest)


def fill_verity(rootfs: Any, verity: Mapping[Digest, VerityDigest]) -> None:
    found = sorted(verity.items())
    for (digest, value), at in zip(found, rootfs.init("fsVerityData", len(found)), strict=True):
        at.digest, at.verity = bytes(digest), bytes(value)


# --- a plain encoder: one object after the other, as FORMAT.md says it, without a thought about time ---


class PlainArena:
    """The arena's rules, read aloud."""

    def __init__(self) -> None:
        self.next = 1024
        self.capacity: list[int] = []
        self.words: list[list[int]] = []
        self._segment(0)
        self.words[0].append(0)

    def _segment(self, needed: int) -> None:
        size = max(needed, self.next)
        self.next += size
        self.capacity.append(size)
        self.words.append([])

    def new(self, at: tuple[int, int], shape: int, content: list[int]) -> tuple[int, int]:
        """Allocate an object, write the pointer to it at ``at``; segment and first word of the object."""
        segment, pointer_word = at
        need = len(content)
        if len(self.words[segment]) + need <= self.capacity[segment]:
            start = len(self.words[segment])
            self.words[segment] += content
            self.words[segment][pointer_word] = shape | (start - pointer_word - 1) << 2
            return segment, start
        for target in range(len(self.words)):
            if len(self.words[target]) + need + 1 <= self.capacity[target]:
                break
        else:
            self._segment(need + 1)
            target = len(self.words) - 1
        pad = len(self.words[target])
        self.words[target] += [shape, *content]
        self.words[segment][pointer_word] = 2 | pad << 3 | target << 32
        return target, pad + 1

    def struct(self, at: tuple[int, int], data: list[int], pointers: int) -> tuple[int, int]:
        return self.new(at, len(data) << 32 | pointers << 48, data + [0] * pointers)

    def structs(self, at: tuple[int, int], data: list[list[int]], data_words: int, pointers: int) -> tuple[int, int]:
        """A list of structs; segment and word of the first element."""
        stride = data_words + pointers
        words = [len(data) << 2 | data_words << 32 | pointers << 48]
        for element in data:
            words += element + [0] * pointers
        segment, start = self.new(at, 1 | 7 << 32 | len(data) * stride << 35, words)
        return segment, start + 1

    def data(self, at: tuple[int, int], data: bytes) -> None:
        padded = data + bytes(-len(data) % 8)
        words = [int.from_bytes(padded[i : i + 8], "little") for i in range(0, len(padded), 8)]
        self.new(at, 1 | 2 << 32 | len(data) << 35, words)

    def message(self) -> bytes:
        head = [len(self.words) - 1, *(len(words) for words in self.words)]
        head += [0] * (len(head) % 2)
        return b"".join(number.to_bytes(4, "little") for number in head) + b"".join(
            word.to_bytes(8, "little") for words in self.words for word in words
        )


def plain_inodes(arena: PlainArena, at: tuple[int, int], layer: Sequence[Inode], version: int) -> None:
    timed = any(inode.mtime_ns is not None for inode in layer)
    kinds = [None, Fifo, CharDevice, Directory, BlockDevice, RegularFile, Symlink, Socket, Whiteout]
    data = []
    for inode in layer:
        kind = kinds.index(type(inode.content))
        words = [inode.ino, kind | inode.permissions << 16 | inode.uid << 32, inode.gid]
        data.append(words + [(inode.mtime_ns or 0) & U64] * timed)
    width = 3 + timed
    segment, first = arena.structs(at, data, width, 2)
    for index, inode in enumerate(layer):
        pointer = first + index * (width + 2) + width
        _plain_content(arena, (segment, pointer), inode.content, version)
        target = inode.content.target if isinstance(inode.content, Symlink) else None
        if inode.xattrs or target is not None:
            owner, start = arena.struct((segment, pointer + 1), [], 2)
            place, element = arena.structs((owner, start), [[] for _ in inode.xattrs], 0, 2)
            for number, xattr in enumerate(inode.xattrs):
                arena.data((place, element + 2 * number + 1), xattr.value)
                arena.data((place, element + 2 * number), xattr.key)
            if target is not None:
                arena.data((owner, start + 1), target)


def _plain_content(arena: PlainArena, at: tuple[int, int], content: Content, version: int) -> None:
    match content:
        case Directory():
            segment, start = arena.struct(at, [int(content.look_below)], 1)
            segment, first = arena.structs((segment, start + 1), [[entry.ino] for entry in content.entries], 1, 1)
            for index, entry in enumerate(content.entries):
                arena.data((segment, first + 2 * index + 1), entry.name)
        case RegularFile():
            if version == 1:
                at = arena.struct(at, [], 1)
            segment, first = arena.structs(at, [[chunk.length] for chunk in content.chunks], 1, 1)
            for index, chunk in enumerate(content.chunks):
                ref = chunk.blob
                place, start = arena.struct((segment, first + 2 * index + 1), [ref.offset, int(ref.compressed)], 1)
                arena.data((place, start + 2), ref.digest)
        case CharDevice() | BlockDevice():
            arena.struct(at, [content.major, content.minor], 0)


def plain_vector(layer: Sequence[Inode], version: int) -> bytes:
    arena = PlainArena()
    plain_inodes(arena, arena.struct((0, 0), [], 1), layer, version)
    return arena.message()


def plain_rootfs(
    layers: Sequence[Sequence[Inode]],
    refs: Sequence[BlobRef],
    verity: Mapping[Digest, VerityDigest],
    version: int,
) -> bytes:
    arena = PlainArena()
    owner, start = arena.struct((0, 0), [version], 2)
    if version == 3:
        segment, first = arena.structs((owner, start + 1), [[] for _ in layers], 0, 1)
        for index, layer in enumerate(layers):
            plain_inodes(arena, (segment, first + index), layer, version)
    else:
        segment, first = arena.structs((owner, start + 1), [[ref.offset, int(ref.compressed)] for ref in refs], 2, 1)
        for index, ref in enumerate(refs):
            arena.data((segment, first + 3 * index + 2), ref.digest)
    segment, first = arena.structs((owner, start + 2), [[] for _ in verity], 0, 2)
    for index, (digest, value) in enumerate(sorted(verity.items())):
        arena.data((segment, first + 2 * index), digest)
        arena.data((segment, first + 2 * index + 1), value)
    return arena.message()
