"""A cache that is bounded by weight (bytes, entries, whatever its owner counts) and forgets what was used longest ago.

An image must not be able to make a reader grow, so every cache of the library has a bound that does not depend on the
image. The newest item always stays, even if it is heavier than the bound, so that work on it makes progress.
Thread safe.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class WeightedLru(Generic[K, V]):
    """Least-recently-used cache with a bound on the sum of its items' weights."""

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._weight = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The item, which counts as used now; ``None`` if it is not here."""
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep an item, and forget the ones used longest ago as far as the bound demands."""
        with self._lock:
            old = self._items.pop(key, None)
            if old is not None:
                self._weight -= old[1]
            self._items[key] = (value, weight)
            self._weight += weight
            while self._weight > self._max_weight and len(self._items) > 1:
                _, (_, dropped) = self._items.popitem(last=False)
                self._weight -= dropped

    def newest(self) -> list[K]:
        """The keys, the one that was used last in front."""
        with self._lock:
            return list(reversed(self._items))

    @property
    def weight(self) -> int:
        """The sum of the weights of all items."""
        return self._weight

    @property
    def max_weight(self) -> int:
        """The bound on it."""
        return self._max_weight

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)
