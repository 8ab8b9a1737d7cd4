"""What two images have in common, so that what is the same need not be looked at.

The metadata layers at the bottom of both stacks are *shared* where they are in the same blobs: then all that hangs on
their inodes is the same, and an inode that no layer above mentions cannot differ. In version 3 layers are parts of one
blob, so that holds for all layers or for none.

They are *related* where their lists of inodes have the same bytes, as they have when a layer is put on top of an image.
That does not prove that names and chunks are the same, but it says enough of numbers: one that both images have from a
related layer was given once, to one inode, which may have been renamed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile

from puzzlefs.image import Image
from puzzlefs.model import InodeTable
from puzzlefs.wire import Likeness, same_records


class Relation:
    """Two images, seen together. For one thread."""

    def __init__(self, old: Image, new: Image) -> None:
        """What ``old`` and ``new`` have in common."""
        self._owners = old.tree.owner, new.tree.owner
        self._likenesses: dict[tuple[int, int], Likeness] = {}
        shared = _count_shared(old, new)
        tables = old.rootfs.metadata_layers, new.rootfs.metadata_layers
        (largest, scattered), (other_largest, other_scattered) = map(_largest_and_rest, tables)
        self._largest, self._scattered = (largest, other_largest), (scattered, other_scattered)
        self.shared_layers = shared
        pairs = zip(*map(reversed, tables), strict=False)
        related = islice(pairs, shared) if shared else takewhile(lambda pair: same_records(*pair), pairs)
        self._related = [one for one, _ in related]
        self._mentioned: set[int] = set()
        self._followed: set[int] = set()
        if shared:
            for layers in tables:
                for table in layers[: len(layers) - shared]:
                    self._mentioned.update([ino for ino, _ in table.kinds()])
            links = old.tree.links(), new.tree.links()
            self._followed = {*self._mentioned, *links[0].directories, *links[1].directories}
            self._followed.update(links[0].shared, links[1].shared)

    def is_one_inode(self, ino: int) -> bool:
        """Whether a number that both images have means the same inode in both."""
        return any(table.mentions(ino) for table in self._related)

    def candidates(self, directory: int, other: int, /) -> frozenset[int] | None:
        """See ``Hints``.

        Names and numbers of all entries are the same then, but for those of inodes that are returned.
        """
        if not self.shared_layers or directory != other or directory in self._mentioned:
            return None
        found = self._owners[0](directory).entry_numbers(directory)
        if found is None or found[1]:
            return None
        return frozenset(self._followed.intersection(found[0]))

    def unlike(self, numbers: Sequence[int], others: Sequence[int], /) -> list[int]:
        """See ``Hints``."""
        scattered, other_scattered = self._scattered
        if not self.shared_layers and scattered.isdisjoint(numbers) and other_scattered.isdisjoint(others):
            return self._likeness(*self._largest).unlike(numbers, others)
        groups: dict[tuple[int, int], tuple[Likeness, list[int]]] = {}
        for position, (ino, other_ino) in enumerate(zip(numbers, others, strict=True)):
            if self.shared_layers and ino == other_ino and ino not in self._mentioned:
                continue
            one, other = self._owners[0](ino), self._owners[1](other_ino)
            key = id(one), id(other)
            if key not in groups:
                groups[key] = self._likeness(one, other), []
            groups[key][1].append(position)
        found: list[int] = []
        for likeness, positions in groups.values():
            unlike = likeness.unlike([numbers[at] for at in positions], [others[at] for at in positions])
            found += [positions[index] for index in unlike]
        return found

    def _likeness(self, one: InodeTable, other: InodeTable) -> Likeness:
        key = id(one), id(other)
        if key not in self._likenesses:
            self._likenesses[key] = Likeness(one, other)
        return self._likenesses[key]


def _largest_and_rest(layers: Sequence[InodeTable]) -> tuple[InodeTable, set[int]]:
    """The largest layer, and the inodes that any other mentions: the largest says what all others are."""
    largest = max(layers, key=len)
    return largest, {ino for layer in layers if layer is not largest for ino, _ in layer.kinds()}


def _count_shared(old: Image, new: Image) -> int:
    """How many metadata layers, from the lowest on, are in the same blobs."""
    if old.version != new.version:
        return 0
    if old.manifest is not None and new.manifest is not None:
        is_one = old.manifest.rootfs().digest == new.manifest.rootfs().digest
        return len(old.rootfs.metadata_layers) if is_one else 0
    refs = [list(dict.fromkeys(image.metadata_refs)) for image in (old, new)]  # as they were opened
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*map(reversed, refs), strict=False)))
