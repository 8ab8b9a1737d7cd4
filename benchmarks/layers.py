#!/usr/bin/env python3
"""What reading through many metadata layers costs, beside the same tree in one layer.

    python benchmarks/layers.py [--inodes 100000] [--layers 20] [--changes 60] [--rounds 9] [--mount DIR] [--json]

The base has about ``--inodes`` inodes, twenty files to a directory. Each metadata layer above it is as a delta is
written: ``--changes`` files are changed, five are removed, five added, and the directories of those are there again as
complete lists. Beside it stand the tree that results, in one layer, and the same in two layers as large as each other,
as deltas of the original implementation are. All are made through the library's encoder and read from the bytes of
version 3.

Each measure runs on a tree that was just opened, so nothing is in its caches, but for the warm one. Every round runs
all contestants, in turn; the first round is thrown away; medians count. With ``--mount`` (as root) all are also mounted
below DIR, and ``find`` and ``tar`` read them.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.digest import Digest
from puzzlefs.image import dialect_of
from puzzlefs.image_commit import StoredChunk, commit_image
from puzzlefs.model import ROOT_INO, BlobRef, Directory, DirEntry, FileChunk, Inode, InodeTable, Kind, RegularFile
from puzzlefs.verity import verity_digest
from puzzlefs.vfs import Tree
from puzzlefs.wire import codec_for

_VERSION: Final = 3
_FILES: Final = 20
"""Files of a directory."""
_DIRECTORIES: Final = 40
"""Directories of a directory above those."""
_FILE_SIZE: Final = 512
_CHUNK_SIZE: Final = 65536
_MOVED: Final = 5
"""Files that a layer adds, and as many that it removes."""
_SAMPLE: Final = 5000
_SEED: Final = 20

Layer = list[Inode]
Measure = Callable[[Sequence[InodeTable]], float]
Paths = list[tuple[int, list[bytes]]]


class Maker:
    """A tree and the layers that change it; every layer has chunks of its own."""

    def __init__(self) -> None:
        self.chunks: dict[StoredChunk, bytes] = {}
        self._random = random.Random(_SEED)
        self._place = 0

    def base(self, number: int) -> Layer:
        """A tree of about ``number`` inodes: directories of directories of files, numbered level by level."""
        leaves = max(1, number // (_FILES + 1))
        tops = max(1, leaves // _DIRECTORIES)
        first_leaf, first_file = 2 + tops, 2 + tops + leaves
        layer = [_directory(ROOT_INO, "top", range(2, first_leaf))]
        layer += [_directory(2 + top, "dir", range(first_leaf + top, first_file, tops)) for top in range(tops)]
        files = [range(first_file + leaf * _FILES, first_file + (leaf + 1) * _FILES) for leaf in range(leaves)]
        layer += [_directory(first_leaf + leaf, "file", files[leaf]) for leaf in range(leaves)]
        return layer + [self._file(ino) for numbers in files for ino in numbers]

    def delta(self, tree: dict[int, Inode], changes: int) -> Layer:
        """What a layer above ``tree`` says after some changes."""
        self._place = -(-self._place // _CHUNK_SIZE) * _CHUNK_SIZE
        files = [ino for ino, inode in tree.items() if isinstance(inode.content, RegularFile)]
        layer = {ino: self._file(ino)._replace(permissions=0o600) for ino in self._random.sample(files, changes)}
        leaves = [inode for inode in tree.values() if inode.ino != ROOT_INO and _holds_files(inode, tree)]
        fresh = max(tree) + 1
        for leaf in self._random.sample(leaves, min(_MOVED, len(leaves))):
            kept = _entries(leaf)[1:]
            content = Directory((*kept, DirEntry(fresh, b"new%09d" % fresh)))
            layer[leaf.ino] = leaf._replace(content=content)
            layer[fresh] = self._file(fresh)
            fresh += 1
        return [inode for _, inode in sorted(layer.items())]

    def commit(self, reference: Path, layers: Sequence[Layer]) -> str:
        """Make an image of ``layers`` (topmost first); what it is to be opened as."""
        with Layout.open_or_create(reference, dialect_of(_VERSION)) as layout, BlobWriter(layout) as writer:
            for data in self.chunks.values():
                writer.put(data)
            commit_image(
                layout,
                "bench",
                version=_VERSION,
                layers=layers,
                chunks=list(self.chunks),
                verity={chunk.digest: verity_digest(data) for chunk, data in self.chunks.items()},
                writer=writer,
            )
        return f"{reference}:bench"

    def _file(self, ino: int) -> Inode:
        number, offset = divmod(self._place, _CHUNK_SIZE)
        self._place += _FILE_SIZE
        data = random.Random(number).randbytes(_CHUNK_SIZE) if not offset or not self.chunks else b""
        if data:
            self.chunks[StoredChunk(Digest.of(data), len(data), False)] = data
        digest = next(reversed(self.chunks)).digest
        chunk = FileChunk(BlobRef(digest, offset, False), _FILE_SIZE)
        return Inode(ino, 0, 0, 0o644, RegularFile(_FILE_SIZE, (chunk,)))


def _directory(ino: int, name: str, numbers: range) -> Inode:
    return Inode(
        ino, 0, 0, 0o755, Directory(tuple(DirEntry(number, b"%s%09d" % (name.encode(), number)) for number in numbers))
    )


def _entries(inode: Inode) -> Sequence[DirEntry]:
    return inode.content.entries if isinstance(inode.content, Directory) else ()


def _holds_files(inode: Inode, tree: dict[int, Inode]) -> bool:
    entries = _entries(inode)
    return bool(entries) and isinstance(tree[entries[0].ino].content, RegularFile)


def visible(tree: dict[int, Inode]) -> Layer:
    """The inodes of ``tree`` that can be reached from the root, sorted."""
    found = [ROOT_INO]
    for ino in found:
        found.extend(entry.ino for entry in _entries(tree[ino]))
    return [tree[ino] for ino in sorted(found)]


def make_contestants(inodes: int, count: int, changes: int) -> tuple[Maker, dict[str, list[Layer]]]:
    """The metadata layers (topmost first) of each contestant; all show one tree."""
    maker = Maker()
    base = maker.base(inodes)
    tree = {inode.ino: inode for inode in base}
    layers = [base]
    for _ in range(count - 1):
        layer = maker.delta(tree, changes)
        tree.update((inode.ino, inode) for inode in layer)
        layers.insert(0, layer)
    whole = visible(tree)
    return maker, {"1 layer": [whole], f"{count} layers": layers, "2 whole layers": [whole, base]}


def tables_of(layers: Sequence[Layer]) -> Sequence[InodeTable]:
    """The layers as they are read from an image."""
    codec = codec_for(_VERSION)
    return codec.decode_rootfs(codec.encode_rootfs(layers=layers, metadata_refs=(), verity={})).tables


# ---- measures: each takes tables that nothing was asked of yet


def _timed(action: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    finally:
        gc.enable()


def _look_up(tree: Tree, paths: Paths) -> None:
    for _, names in paths:
        ino = ROOT_INO
        for name in names:
            ino = tree.lookup(ino, name).ino


def _touch_all(ask: Callable[[int], object], numbers: Sequence[int]) -> None:
    for ino in numbers:
        ask(ino)


def make_measures(tables: Sequence[InodeTable]) -> dict[str, Measure]:
    """The measures, over a tree that ``tables`` show."""
    tree = Tree(tables)
    paths: Paths = []
    names: list[bytes] = []
    numbers: dict[bool, list[int]] = defaultdict(list)
    for depth, _, entry in tree.walk():
        names[depth:] = [entry.name]
        paths.append((entry.ino, list(names)))
        numbers[entry.kind is Kind.DIRECTORY].append(entry.ino)
    sample = random.Random(_SEED).sample(paths, min(_SAMPLE, len(paths)))
    near = paths[: min(_SAMPLE, len(paths))]

    def warm(tables: Sequence[InodeTable]) -> float:
        tree = Tree(tables)
        _look_up(tree, near)
        return _timed(lambda: _look_up(tree, near))

    def attributes(tables: Sequence[InodeTable]) -> float:
        tree = Tree(tables)
        tree.links()
        return _timed(lambda: _touch_all(tree.attributes, numbers[False]))

    def fresh(action: Callable[[Tree], object]) -> Measure:
        return lambda tables: _timed(lambda: action(Tree(tables)))

    return {
        "open, and the root": fresh(lambda tree: tree.kind(ROOT_INO)),
        f"lookup of {len(sample)} paths": fresh(lambda tree: _look_up(tree, sample)),
        "the same, warm": warm,
        f"entries of {len(numbers[True])} directories": fresh(lambda tree: _touch_all(tree.entries, numbers[True])),
        f"attributes of {len(numbers[False])} files": attributes,
        f"xattrs of {len(numbers[False])} files": fresh(lambda tree: _touch_all(tree.xattrs, numbers[False])),
        f"plans of {len(numbers[False])} files": fresh(
            lambda tree: _touch_all(lambda ino: tree.plan(ino, 0, 4096), numbers[False])
        ),
        "link counts": fresh(lambda tree: tree.links()),
        "totals": fresh(lambda tree: tree.totals()),
    }


def mounted_measures(directory: Path, references: dict[str, str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of ``find`` and ``tar`` over fresh mounts."""
    command = [sys.executable, "-m", "puzzlefs_cli"]
    point = directory / "mnt"
    point.mkdir(exist_ok=True)
    actions = {
        "mount": [*command, "mount"],
        "find -printf %s, mounted": ["find", str(point), "-printf", "%s"],
        "tar, mounted": ["sh", "-c", 'tar cf - "$1" | cat >/dev/null', "-", str(point)],
    }
    values: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in actions}
    for number in range(rounds):
        for contestant, reference in references.items():
            for name, words in actions.items():
                words = [*words, reference, str(point)] if name == "mount" else words
                seconds = _timed(partial(subprocess.run, words, check=True, capture_output=True))
                if number:
                    values[name][contestant].append(seconds)
            subprocess.run([*command, "umount", str(point)], check=True)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inodes", type=int, default=100_000)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--changes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mount", type=Path, metavar="DIR", help="an empty directory for images and a mount point")
    parser.add_argument("--json", action="store_true", help="print every value")
    args = parser.parse_args()
    maker, contestants = make_contestants(args.inodes, args.layers, args.changes)
    messages = {name: tables_of(layers) for name, layers in contestants.items()}
    measures = make_measures(messages["1 layer"])
    values: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in measures}
    for number in range(args.rounds):
        for contestant, tables in messages.items():
            for name, measure in measures.items():
                seconds = measure(tables)
                if number:
                    values[name][contestant].append(seconds)
    if args.mount is not None:
        args.mount.mkdir(parents=True, exist_ok=True)
        references = {
            name: maker.commit(args.mount / f"layout-{number}", layers)
            for number, (name, layers) in enumerate(contestants.items())
        }
        values |= mounted_measures(args.mount, references, args.rounds)
    if args.json:
        print(json.dumps(values, indent=1))
        return
    print(f"{'median, ms (ratio)':<36}" + "".join(f"{name:>20}" for name in contestants))
    for measure_name, found in values.items():
        one = median(found["1 layer"])
        cells = (f"{median(found[name]) * 1000:.2f} ({median(found[name]) / one:.2f})" for name in contestants)
        print(f"{measure_name:<36}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
