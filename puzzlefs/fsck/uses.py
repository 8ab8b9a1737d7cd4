"""Which files have bytes in a chunk, where in the chunk and where in the file; and what their paths are.

Nothing fails here: what is malformed has been reported, and is passed over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from puzzlefs.digest import Digest
from puzzlefs.errors import PuzzlefsError
from puzzlefs.fsck.survey import parts_of
from puzzlefs.image import Image
from puzzlefs.model import ROOT_INO, FileChunk, InodeTable, Kind
from puzzlefs.vfs import Tree

_MAX_PATH: Final = 4096
"""Bytes of the longest path that is written out (Linux PATH_MAX); of longer ones the end is."""
_MAX_STACKS: Final = 64


@dataclass(frozen=True, slots=True)
class Use:
    """A run of a file's bytes that is in a chunk.

    Attributes:
        ino: the file.
        file_offset: where it begins in the file.
        chunk_offset: where it begins in the uncompressed content of the chunk.
        length: its bytes.
        compressed: whether the file takes the chunk for compressed.
    """

    ino: int
    file_offset: int
    chunk_offset: int
    length: int
    compressed: bool


class Places:
    """Where directories are in a tree; paths are made when they are asked for."""

    def __init__(self) -> None:
        self._parents: dict[int, tuple[int, bytes]] = {}

    def add(self, ino: int, parent: int, name: bytes) -> None:
        """Note that a directory is called ``name`` in another."""
        self._parents.setdefault(ino, (parent, name))

    def of_directory(self, ino: int) -> bytes:
        """The path of a directory, from the root on."""
        if ino == ROOT_INO:
            return b"/"
        parent, name = self._parents[ino]
        return self.of(parent, name)

    def of(self, parent: int, name: bytes) -> bytes:
        """The path of an entry."""
        parts = [name]
        size = len(name)
        while parent != ROOT_INO and size <= _MAX_PATH:
            parent, name = self._parents[parent]
            parts.append(name)
            size += len(name) + 1
        return (b"/" if parent == ROOT_INO else b".../") + b"/".join(reversed(parts))


def files_with(table: InodeTable, digests: Collection[Digest]) -> Iterator[tuple[Digest, Use]]:
    """Every use of these chunks by a file of one metadata layer."""
    for ino, parts in parts_of(table):
        yield from _uses_in(ino, parts, digests)


def paths_of(tree: Tree, inos: Collection[int]) -> dict[int, list[bytes]]:
    """All paths of some files, from the root on, in the order of the tree."""
    found: dict[int, list[bytes]] = {}
    places = Places()
    stack = [ROOT_INO]
    seen = {ROOT_INO}
    while stack and inos:
        parent = stack.pop()
        try:
            entries = tree.entries(parent)
        except PuzzlefsError:
            continue
        below: list[int] = []
        for entry in entries:
            if entry.kind is Kind.DIRECTORY:
                if entry.ino not in seen:
                    seen.add(entry.ino)
                    places.add(entry.ino, parent, entry.name)
                    below.append(entry.ino)
            elif entry.ino in inos:
                found.setdefault(entry.ino, []).append(places.of(parent, entry.name))
        stack.extend(reversed(below))
    return found


def visible_files(image: Image, digests: Collection[Digest]) -> dict[Digest, list[bytes]]:
    """The paths of all files of an image that have bytes in these chunks, sorted."""
    users = {use.ino for table in image.rootfs.metadata_layers for _, use in files_with(table, digests)}
    found: dict[Digest, list[bytes]] = {}
    for ino, paths in paths_of(image.tree, users).items():
        for digest in {digest for digest, _ in _uses_by(image.tree, ino, digests)}:  # lower layers may have had others
            found.setdefault(digest, []).extend(paths)
    return {digest: sorted(paths) for digest, paths in found.items()}


def places_of(image: Image, digests: Collection[Digest]) -> dict[Digest, list[tuple[bytes, Use]]]:
    """Where the bytes of chunks are in the tree that an image shows, and in those that it showed when it had fewer
    metadata layers: paths and uses, each once, those of the whole image first."""
    layers = image.rootfs.metadata_layers
    users = [{use.ino for _, use in files_with(table, digests)} for table in layers]
    found: dict[Digest, dict[tuple[bytes, Use], None]] = {}
    for number in range(min(len(layers), _MAX_STACKS)):
        inos = set().union(*users[number:])
        if not inos:
            break
        tree = image.tree if not number else Tree(layers[number:], max_entries=image.tree.max_entries)
        for ino, paths in paths_of(tree, inos).items():
            for digest, use in _uses_by(tree, ino, digests):
                found.setdefault(digest, {}).update(dict.fromkeys([(path, use) for path in paths]))
    return {digest: list(places) for digest, places in found.items()}


def _uses_by(tree: Tree, ino: int, digests: Collection[Digest]) -> Iterator[tuple[Digest, Use]]:
    """The uses of chunks by the visible form of a file."""
    with contextlib.suppress(PuzzlefsError):
        yield from _uses_in(ino, tree.parts(ino), digests)


def _uses_in(ino: int, parts: Iterable[FileChunk], digests: Collection[Digest]) -> Iterator[tuple[Digest, Use]]:
    offset = 0
    for part in parts:
        ref = part.blob
        if ref.digest in digests and part.length:
            yield ref.digest, Use(ino, offset, ref.offset, part.length, ref.compressed)
        offset += part.length
