"""The canonical form of any stack is what a build makes of the extracted tree, to the bit.

Trees change in random ways; each state is written as one more metadata layer, in one of the ways in which layers can
say it: directories whole, with entries that point to white-outs, or as additions to what is below. Contents are chunks
as a builder cuts them, or in any other pieces.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import forge as f
from support import trees

from puzzlefs.builder import build
from puzzlefs.builder.storage import COMPRESSED_LEVEL, StorageOptions, storage_of
from puzzlefs.canonicalize import canonicalize
from puzzlefs.chunking import chunker
from puzzlefs.compression import compress_chunk
from puzzlefs.compression.zstd import LEVEL
from puzzlefs.convert import convert
from puzzlefs.extract import extract
from puzzlefs.image import open_image
from puzzlefs.model import (
    CharDevice,
    Content,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
)

pytestmark = pytest.mark.property

IS_ROOT = os.geteuid() == 0
SIZES = [0, 1, 700, 5_000, 40_000, 60_000, 150_000, 400_000]
NAMES = [b"a", b"b", b"B", b"ab", b"a.b", b"zz", b"\xff\xfe", b"n" * 200]


@dataclass
class Node:
    """An inode of a tree that changes: a directory's ``names``, or a file's ``data``, or other ``content``."""

    inode: Inode
    names: dict[bytes, int] | None = None
    data: bytes | None = None


@dataclass
class Story:
    """A tree and the layers that tell how it came about."""

    forge: f.Forge
    generator: random.Random
    compression: bool
    with_times: bool
    nodes: dict[int, Node] = field(default_factory=dict)
    next_ino: int = 2
    layers: list[list[Inode]] = field(default_factory=list)

    # ---- what happens

    def attributes(self, ino: int, content: Content) -> Inode:
        pick = self.generator.choice
        owner = pick([0, 1000, 70_000]) if IS_ROOT else os.geteuid()
        group = pick([0, 1000]) if IS_ROOT else os.getegid()
        keys = [b"user.note", b"user.b", b"user.a"] + ([b"trusted.mark"] if IS_ROOT else [])
        plain = isinstance(content, Directory | RegularFile)
        count = pick([0, 0, 0, 1, 3]) if plain else 0
        xattrs = tuple(Xattr(key, self.generator.randbytes(pick([0, 5, 40]))) for key in sorted(keys[:count]))
        permissions = 0o777 if isinstance(content, Symlink) else pick([0o755, 0o644, 0o700, 0o4755, 0o1777])
        mtime_ns = self.generator.randrange(1 << 60) if self.with_times else None
        return Inode(ino, owner, group, permissions, content, xattrs, mtime_ns)

    def directories(self) -> list[int]:
        return [ino for ino, node in self.nodes.items() if node.names is not None]

    def create(self) -> None:
        kinds = ["file"] * 5 + ["directory", "directory", "symlink", "fifo", "socket"] + ["device"] * IS_ROOT
        kind = self.generator.choice(kinds)
        ino, self.next_ino = self.next_ino, self.next_ino + self.generator.choice([1, 1, 3])
        parent = self.generator.choice(self.directories())
        match kind:
            case "file":
                size = self.generator.choice(SIZES)
                zeros = self.generator.random() < 0.2
                data = bytes(size) if zeros else self.noise(size)
                node = Node(self.attributes(ino, RegularFile(0, ())), data=data)
            case "directory":
                node = Node(self.attributes(ino, Directory(())), names={})
            case "symlink":
                node = Node(self.attributes(ino, Symlink(self.generator.choice([b"../x", b"\xff", b"y" * 300]))))
            case "device":
                node = Node(self.attributes(ino, CharDevice(259, 1048575)))
            case _:
                node = Node(self.attributes(ino, Fifo() if kind == "fifo" else Socket()))
        names = self.nodes[parent].names
        assert names is not None
        self.nodes[ino] = node
        names[self.generator.choice(NAMES)] = ino

    def noise(self, size: int) -> bytes:
        """Content that does or does not shrink; often the same as other content."""
        seed = self.generator.randrange(40)
        data = random.Random(seed).randbytes(size)
        return data if seed % 2 else (b"line %d\n" % seed * size)[: size // 2] + data[size // 2 :]

    def link(self) -> None:
        targets = [ino for ino, node in self.nodes.items() if node.names is None]
        if targets:
            names = self.nodes[self.generator.choice(self.directories())].names
            assert names is not None
            names[self.generator.choice(NAMES)] = self.generator.choice(targets)

    def remove(self) -> None:
        names = self.nodes[self.generator.choice(self.directories())].names
        assert names is not None
        if names:
            del names[self.generator.choice(sorted(names))]

    def rename(self) -> None:
        places = [(ino, name) for ino in self.directories() for name in self.nodes[ino].names or {}]
        if not places:
            return
        parent, name = self.generator.choice(places)
        old = self.nodes[parent].names
        assert old is not None
        ino = old[name]
        target = self.generator.choice([one for one in self.directories() if not self.is_in(one, ino)])
        new = self.nodes[target].names
        assert new is not None
        del old[name]
        new[self.generator.choice(NAMES)] = ino

    def is_in(self, directory: int, other: int) -> bool:
        """Whether ``directory`` is ``other`` or below it."""
        below = self.nodes[other].names if other in self.nodes else None
        return directory == other or any(self.is_in(directory, ino) for ino in (below or {}).values())

    def change(self) -> None:
        ino = self.generator.choice(sorted(self.nodes))
        node = self.nodes[ino]
        if node.data is not None and self.generator.random() < 0.5:
            node.data = self.noise(self.generator.choice(SIZES))
        else:
            node.inode = self.attributes(ino, node.inode.content)

    def prune(self) -> None:
        """Forget what cannot be reached any more."""
        reached = {1}
        queue = [1]
        for ino in queue:
            for number in (self.nodes[ino].names or {}).values():
                if number not in reached:
                    reached.add(number)
                    queue.append(number)
        self.nodes = {ino: node for ino, node in self.nodes.items() if ino in reached}

    # ---- how it is told

    def tell(self, before: dict[int, Node]) -> None:
        """One more metadata layer: what is not as it was ``before``, and some of the rest."""
        self.prune()
        layer: list[Inode] = []
        contents: list[tuple[int, bytes]] = []
        hidden = [ino for ino in before if ino not in self.nodes and self.generator.random() < 0.7]
        layer += [f.inode(ino, Whiteout()) for ino in hidden]
        for ino in sorted(self.nodes):
            node = self.nodes[ino]
            if before.get(ino) == node and self.generator.random() < 0.8:
                continue
            content = node.inode.content
            if node.names is not None:
                content = self.told_directory(ino, node.names, before, hidden)
            elif node.data is not None:
                contents.append((ino, node.data))
            layer.append(node.inode._replace(content=content))
        stored = self.store(contents)
        layer = [one._replace(content=RegularFile.of(stored[one.ino])) if one.ino in stored else one for one in layer]
        self.layers.insert(0, sorted(layer, key=lambda inode: inode.ino))

    def told_directory(
        self, ino: int, names: dict[bytes, int], before: dict[int, Node], hidden: Sequence[int]
    ) -> Directory:
        old = before[ino].names if ino in before else None
        gone = [name for name in old or {} if name not in names]
        if old is not None and self.generator.random() < 0.5 and (hidden or not gone):
            entries = {name: number for name, number in names.items() if old.get(name) != number}
            entries.update((name, self.generator.choice(hidden)) for name in gone)
            return Directory(tuple(DirEntry(number, name) for name, number in sorted(entries.items())), look_below=True)
        listed = sorted(names.items())
        if hidden and self.generator.random() < 0.5:  # as the original does, before the others
            listed = [(name, self.generator.choice(hidden)) for name in gone] + listed
        return Directory(tuple(DirEntry(number, name) for name, number in listed))

    def store(self, contents: Sequence[tuple[int, bytes]]) -> dict[int, list[FileChunk]]:
        """Chunks for the files of a layer: one stream cut as a builder does, or pieces as they come."""
        storage = storage_of(self.forge.version, compression=self.compression, options=StorageOptions())
        if self.generator.random() < 0.3:
            return {ino: self.pieces(data) for ino, data in contents}
        stream = b"".join(data for _, data in contents)
        lengths = chunker("fastcdc2020", storage.sizes).cut(memoryview(stream), final=True)
        chunks: list[tuple[int, int, FileChunk]] = []
        position = 0
        for length in lengths:
            chunks.append((position, position + length, self.chunk(stream[position : position + length])))
            position += length
        found: dict[int, list[FileChunk]] = {}
        position = 0
        for ino, data in contents:
            end = position + len(data)
            found[ino] = [
                FileChunk(chunk.blob._replace(offset=max(position - start, 0)), min(end, stop) - max(position, start))
                for start, stop, chunk in chunks
                if start < end and stop > position
            ]
            position = end
        return found

    def pieces(self, data: bytes) -> list[FileChunk]:
        found: list[FileChunk] = []
        while data:
            length = self.generator.choice([len(data), len(data) // 2 + 1, 1 + self.generator.randrange(len(data))])
            chunk = self.chunk(b"before" + data[:length] + b"after")
            found.append(FileChunk(chunk.blob._replace(offset=6), length))
            data = data[length:]
        return found

    def chunk(self, data: bytes) -> FileChunk:
        if not self.compression:
            return self.forge.chunk(data)
        level = COMPRESSED_LEVEL if self.forge.version == 3 else LEVEL
        smaller = compress_chunk(data, self.forge.version, level)
        if len(smaller) >= len(data):
            return self.forge.chunk(data)
        whole = self.forge.chunk(smaller)
        return FileChunk(whole.blob._replace(compressed=True), len(data))


def stack_of(place: Path, seed: int, version: int, compression: bool, steps: int) -> Story:
    generator = random.Random(seed)
    story = Story(f.Forge(place / "oci", version), generator, compression, generator.random() < 0.5)
    story.nodes[1] = Node(story.attributes(1, Directory(())), names={})
    actions = [story.create] * 4 + [story.link, story.remove, story.rename, story.change]
    before: dict[int, Node] = {}
    for step in range(steps):
        for _ in range(generator.randrange(1, 12) if step else 30):
            (generator.choice(actions) if step else story.create)()
            story.prune()
        story.tell(before)
        before = {
            ino: Node(node.inode, None if node.names is None else dict(node.names), node.data)
            for ino, node in story.nodes.items()
        }
    return story


@pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("version", [1, 2, 3])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32), steps=st.integers(1, 5))
def test_the_canonical_form_is_a_fresh_build(version: int, compression: bool, seed: int, steps: int) -> None:
    place = Path(tempfile.mkdtemp())
    try:
        story = stack_of(place, seed, version, compression, steps)
        stack = story.forge.image(*story.layers, tag="stack")
        extract(stack, place / "tree")
        times = "keep" if story.with_times else "none"
        fresh = build(
            place / "tree",
            f"{place}/fresh:t",
            format_version=version,
            compression=compression,
            timestamps=times,
            workers=2,
        )
        canonical = canonicalize(stack, "canonical", compression=compression, workers=2)
        assert canonical.digest == fresh.digest
        assert canonicalize(f"{place}/oci:canonical", "again", workers=2).digest == fresh.digest
        with open_image(stack) as image, open_image(f"{place}/oci:canonical") as other:
            assert trees.in_image(image, mtime=True) == trees.in_image(other, mtime=True)
    finally:
        shutil.rmtree(place)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 1 << 32),
    steps=st.integers(1, 4),
    versions=st.permutations([1, 2, 3]),
    compression=st.booleans(),
)
def test_a_stack_in_another_version_is_the_same_stack(
    seed: int, steps: int, versions: list[int], compression: bool
) -> None:
    """And comes back with the digest that it had after the first conversion."""
    place = Path(tempfile.mkdtemp())
    try:
        first, second, third = versions
        story = stack_of(place, seed, first, compression, steps)
        stack = story.forge.image(*story.layers, tag="stack")
        there = convert(stack, f"{place}/there:t", format_version=second, workers=2)
        further = convert(f"{place}/there:t", f"{place}/further:t", format_version=third, workers=2)
        back = convert(f"{place}/further:t", f"{place}/back:t", format_version=second, workers=2)
        assert there.metadata_layers == further.metadata_layers == back.metadata_layers == steps
        assert there.digest == back.digest
        with open_image(stack) as image, open_image(f"{place}/further:t") as other:
            assert trees.in_image(image, mtime=True) == trees.in_image(other, mtime=True)
            for layer, same in zip(image.rootfs.metadata_layers, other.rootfs.metadata_layers, strict=True):
                assert list(layer.kinds()) == list(same.kinds())
    finally:
        shutil.rmtree(place)
