"""Metadata layers one above the other: which of them say something about an inode.

A few layers are asked one after the other. For many, that would make every lookup in a large directory a walk over all
of them, so an index of who mentions which number is made when it is first needed: ten bytes for each inode.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from puzzlefs.model import InodeTable

_FEW: Final = 8
"""Layers that are asked one after the other."""


class LayerStack:
    """Metadata layers, topmost first. Thread safe."""

    def __init__(self, layers: Sequence[InodeTable]) -> None:
        self.layers = tuple(layers)
        self._lock = threading.Lock()
        self._index: tuple[array[int], array[int]] | None = None

    def mentioning(self, ino: int) -> Iterable[InodeTable]:
        """The layers that may mention an inode, topmost first; all that do are among them."""
        if len(self.layers) <= _FEW:
            return self.layers
        return self._indexed(ino)

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
