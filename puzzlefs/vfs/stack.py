"""Metadata layers one above the other: which of them says what an inode is.

A typical stack is a large layer with small ones above it, each of which has the inodes that changed. So the numbers of
the small layers are put into one dictionary when something is first looked for, each with the topmost of them that has
it, and whatever is not there is asked of the large layer: a lookup costs the same through any number of small layers,
and making the dictionary costs what they hold, however large the layer below is.

Where several layers are large (deltas of the original implementation repeat every inode) they are asked one after the
other, as far as they lie above the answer of the dictionary. Who merges directories has to go on below the topmost
mention; no known writer makes such images, so that takes a second index, of all layers, which nobody else waits for.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from puzzlefs.errors import FormatError
from puzzlefs.model import InodeTable, Kind, MetadataLayer

_FEW: Final = 8
"""Layers that are asked one after the other."""

_INDEXED: Final = 1 << 16
"""So many inodes are put into the dictionary in any case: a few milliseconds. Else half as many as the largest layer
has, whose bytes were hashed before."""

_Place = tuple[int, InodeTable]


class LayerStack:
    """Metadata layers, topmost first. Thread safe.

    Attributes:
        layers: the layers.
    """

    def __init__(self, layers: Sequence[InodeTable]) -> None:
        self.layers = tuple(layers)
        self._lock = threading.Lock()
        self._owners: _Owners | None = None
        self._index: tuple[array[int], array[int]] | None = None

    def owner(self, ino: int) -> InodeTable:
        """The topmost layer that mentions an inode; if none does, some layer, which will say so."""
        return (self._owners or self._made_owners()).of(ino)

    def kinds(self, numbers: list[int]) -> list[Kind]:
        """The kinds of inodes, white-outs among them; ``UNKNOWN`` where no layer has one, or none that we know."""
        owners = self._owners or self._made_owners()
        return owners.live_kinds(numbers) or [owners.kind(ino) or Kind.UNKNOWN for ino in numbers]

    def mentioning(self, ino: int) -> Iterable[InodeTable]:
        """The layers that may mention an inode, topmost first; all that do are among them."""
        if len(self.layers) <= _FEW:
            return self.layers
        return self._indexed(ino)

    def _made_owners(self) -> _Owners:
        with self._lock:
            owners = self._owners = self._owners or _Owners(self.layers)
        return owners

    def _indexed(self, ino: int) -> Iterator[InodeTable]:
        index = self._index
        if index is None:
            with self._lock:
                index = self._index = self._index or _index_of(self.layers)
        numbers, owners = index
        position = bisect_left(numbers, ino)
        while position < len(numbers) and numbers[position] == ino:
            yield self.layers[owners[position]]
            position += 1


class _Owners:
    """Which layer has the topmost mention of an inode. Immutable.

    A place is the position of a layer in the stack, and the layer.
    """

    __slots__ = ("_asked", "_known", "_one_is_large", "_rest")

    def __init__(self, layers: Sequence[InodeTable]) -> None:
        large = _large_ones(layers)
        self._asked: list[_Place] = [(position, layers[position]) for position in sorted(large)]
        self._rest: _Place = self._asked[-1] if large else (0, MetadataLayer(()))
        self._one_is_large = len(large) <= 1
        self._known: dict[int, _Place] = {}
        for position in reversed(range(len(layers))):
            if position not in large:
                numbers = [ino for ino, _ in layers[position].kinds()]
                self._known.update(dict.fromkeys(numbers, (position, layers[position])))

    def of(self, ino: int) -> InodeTable:
        limit, table = self._known.get(ino, self._rest)
        for position, large in self._asked:
            if position >= limit:
                break
            if large.mentions(ino):
                return large
        return table

    def kind(self, ino: int) -> Kind | None:
        try:
            return self.of(ino).kind(ino)
        except FormatError:
            return Kind.UNKNOWN

    def live_kinds(self, numbers: list[int]) -> list[Kind] | None:
        """The kinds of inodes, most of which the large layer has; ``None`` where it takes ``kind`` to tell them."""
        if not self._one_is_large:
            return None
        known, large = self._known, self._rest[1]
        if known.keys().isdisjoint(numbers):
            return large.live_kinds(numbers)
        below = large.live_kinds([ino for ino in numbers if ino not in known])
        if below is None:
            return None
        rest = iter(below)
        return [(self.kind(ino) or Kind.UNKNOWN) if ino in known else next(rest) for ino in numbers]


def _large_ones(layers: Sequence[InodeTable]) -> frozenset[int]:
    """The positions of the layers that are not put into the dictionary: the largest one, and few others."""
    by_size = sorted(range(len(layers)), key=lambda position: (len(layers[position]), position))
    if not by_size:
        return frozenset()
    left = max(_INDEXED, len(layers[by_size[-1]]) // 2)
    small = 0
    for position in by_size[:-1]:
        left -= len(layers[position])
        if left < 0 and len(layers) - small <= _FEW:
            break
        small += 1
    return frozenset(by_size[small:])


def _index_of(layers: Sequence[InodeTable]) -> tuple[array[int], array[int]]:
    """Inode numbers, sorted, and beside each a layer that has it; each pair once."""
    count = len(layers)
    pairs = sorted([ino * count + number for number, layer in enumerate(layers) for ino, _ in layer.kinds()])
    numbers, owners = array("Q"), array("L")
    previous = -1
    for pair in pairs:
        if pair != previous:  # a number may stand twice in a layer
            numbers.append(pair // count)
            owners.append(pair % count)
            previous = pair
    return numbers, owners
