"""Whether what the metadata of an image say can be.

Everything a reader would look at is looked at: every inode of every layer is decoded, every directory is merged, every
visible entry followed to its inode, whose attributes, extended attributes and target must make sense. Numbers that are
not used, and inodes that layers above hide, are normal; an inode that nobody sees must still decode.

Of ordinary inodes all that is known beforehand (``puzzlefs.wire.audit``), so only the others are visited.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from puzzlefs.errors import FormatError, PuzzlefsError
from puzzlefs.fsck.uses import Places
from puzzlefs.image import Image
from puzzlefs.model import ROOT_INO, Inode, InodeTable, Kind, RegularFile
from puzzlefs.vfs import Tree
from puzzlefs.wire.table import WireInodeTable

_FILES = frozenset(Kind) - {Kind.DIRECTORY, Kind.UNKNOWN, Kind.WHITEOUT}


def check_image(image: Image, unusual: Sequence[Sequence[int]]) -> Iterator[tuple[bytes | None, str]]:
    """What is malformed in an image: where, if that is one place in its tree, and what.

    Args:
        image: the image.
        unusual: of each metadata layer, the positions of the inodes that are not known to be ordinary.
    """
    layers = image.rootfs.metadata_layers
    for number, (table, positions) in enumerate(zip(reversed(layers), reversed(unusual), strict=True), start=1):
        where = f"metadata layer {number}: " if len(layers) > 1 else ""
        inodes = _decoded(table, positions)
        while True:
            try:
                inode = next(inodes, None)
                if inode is None:
                    break
                if isinstance(inode.content, RegularFile):
                    deque(inode.content.chunks, 0)  # they are decoded one by one
            except FormatError as error:
                yield None, where + error.message
    to_check: set[int] = set()
    for table, positions in zip(layers, unusual, strict=True):
        if positions:
            numbers = [ino for ino, _ in table.kinds()]
            to_check.update([numbers[position] for position in positions])
    yield from _check_tree(image.tree, to_check)


def _decoded(table: InodeTable, positions: Sequence[int]) -> Iterator[Inode]:
    """The inodes at these positions; goes on after an error."""
    if isinstance(table, WireInodeTable):
        return map(table.decode, positions)
    return iter(table)


def _check_tree(tree: Tree, unusual: set[int]) -> Iterator[tuple[bytes | None, str]]:
    try:
        tree.links()
    except FormatError as error:
        yield None, error.message
        return
    places = Places()
    names: Counter[int] = Counter()
    subdirectories: dict[int, int] = {}
    looked_at: set[int] = set()
    stack = [ROOT_INO]
    yield from ((b"/", message) for message in _check_inode(tree, ROOT_INO, Kind.DIRECTORY))
    while stack:
        parent = stack.pop()
        try:
            entries = tree.entries(parent)
        except PuzzlefsError as error:
            yield places.of_directory(parent), error.message
            continue
        names.update([entry.ino for entry in entries if entry.kind in _FILES and entry.ino not in unusual])
        for entry in entries:
            if entry.kind in _FILES and entry.ino not in unusual:
                continue
            try:
                tree.check_entry(parent, entry)
            except PuzzlefsError as error:
                yield places.of(parent, entry.name), error.message
                continue
            if entry.kind is Kind.DIRECTORY:
                subdirectories[parent] = subdirectories.get(parent, 0) + 1
                places.add(entry.ino, parent, entry.name)
                stack.append(entry.ino)
            else:
                names[entry.ino] += 1
            if entry.ino not in looked_at:
                looked_at.add(entry.ino)
                for message in _check_inode(tree, entry.ino, entry.kind):
                    yield places.of(parent, entry.name), message
    yield from _check_link_counts(tree, names)


def _check_inode(tree: Tree, ino: int, kind: Kind) -> Iterator[str]:
    try:
        tree.attributes(ino)
        tree.xattrs(ino)
        if kind is Kind.SYMLINK:
            tree.readlink(ino)
    except PuzzlefsError as error:
        yield error.message


def _check_link_counts(tree: Tree, names: dict[int, int]) -> Iterator[tuple[bytes | None, str]]:
    """Compare what ``stat`` shows with what was met."""
    shared = tree.links().shared
    for ino, count in names.items():
        if shared.get(ino, 1) != count:
            yield None, f"inode {ino} has {count} names that can be reached, but its link count is {shared.get(ino, 1)}"
