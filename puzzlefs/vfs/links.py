"""Link counts and the shape of the tree, from one pass over the numbers in the directories.

The pass starts at the root and follows directories, so it counts what is visible: inodes that only lower metadata
layers know do not matter. It reads numbers, never names (but for directories that merge with the layers below, where a
name can hide another). It finds what no tree has: a directory with two places, and an entry that points to the root.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from operator import gt
from typing import NamedTuple

from puzzlefs.errors import FormatError
from puzzlefs.model import ROOT_INO, InodeTable, Kind


class Links(NamedTuple):
    """The result of the pass.

    Attributes:
        directories: the numbers of all directories, in any layer's topmost version; visible or not.
        visible: the numbers of all inodes that can be reached from the root (in a malformed image also of such that
            are missing).
        shared: number of names of each visible non-directory that has more than one.
        misplaced: directories that more than one entry points to, and the root if any entry points to it.
    """

    directories: Collection[int]
    visible: Sequence[int]
    shared: dict[int, int]
    misplaced: frozenset[int]


def count_links(tables: Sequence[InodeTable], numbers_of: Callable[[int], Iterable[int]], max_entries: int) -> Links:
    """Follow every directory from the root and count.

    Args:
        tables: the metadata layers, topmost first.
        numbers_of: the inode numbers in the entries of a directory, as the whole stack of layers shows it.
        max_entries: how many entries there can be at most; honest images stay far below, and an image in which many
            directories share one list cannot take longer than that.

    Raises:
        FormatError: if a layer is malformed, or has more entries than it can.
    """
    directories, whiteouts = _directories(tables)
    names: dict[int, int] = {}
    misplaced: set[int] = set()
    queue = deque([ROOT_INO])
    entries = 0
    while queue:
        try:
            numbers = numbers_of(queue.popleft())
        except FormatError:
            continue  # whoever reads that directory gets the error; the others are not to blame
        for ino in numbers:
            entries += 1
            if ino in whiteouts:
                continue
            count = names.get(ino, 0) + 1
            names[ino] = count
            if ino in directories:
                if count == 1 and ino != ROOT_INO:
                    queue.append(ino)
                else:
                    misplaced.add(ino)
        if entries > max_entries:
            raise FormatError(f"the directories have more than {max_entries} entries, which this image cannot hold")
    shared = {ino: count for ino, count in names.items() if count > 1 and ino not in directories}
    names[ROOT_INO] = 1
    return Links(directories, array("Q", names), shared, frozenset(misplaced))


def _directories(tables: Sequence[InodeTable]) -> tuple[set[int], set[int]]:
    """The numbers that are directories, and those that are white-outs, in the topmost layer that mentions them."""
    directory, whiteout = int(Kind.DIRECTORY), int(Kind.WHITEOUT)
    directories: set[int] = set()
    whiteouts: set[int] = set()
    for table in reversed(tables):
        numbers = [ino for ino, _ in table.kinds()]
        if any(map(gt, numbers, islice(numbers, 1, None))):  # lookups would see this inode or that, as it happens
            raise FormatError("the inodes of a metadata layer are not sorted by their numbers")
        here = {ino for ino, kind in table.kinds() if kind == directory}
        dead = {ino for ino, kind in table.kinds() if kind == whiteout}
        others = {  # only those that matter: most inodes are neither
            ino
            for ino, kind in table.kinds()
            if kind not in (directory, whiteout) and (ino in dead or ino in directories or ino in whiteouts)
        }
        dead -= here  # a number that stands twice: the live one counts
        dead -= others
        directories -= dead
        directories -= others
        directories |= here
        whiteouts -= here
        whiteouts -= others
        whiteouts |= dead
    return directories, whiteouts
