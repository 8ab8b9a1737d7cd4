"""Mutations of a target's seeds without a fuzzer: the same ones every time."""

from __future__ import annotations

import random
from collections.abc import Iterator

from fuzz.target import Target

_KEPT = 200
_CHAIN = 4


def mutations(target: Target, seed: int = 0) -> Iterator[bytes]:
    """Inputs without end, each a seed or an earlier one after a few changes."""
    rnd = random.Random(f"{target.name} {seed}")
    pool = list(target.seeds())
    first = len(pool)
    while True:
        data = rnd.choice(pool)
        for _ in range(rnd.randrange(1, _CHAIN)):
            data = target.mutate(data, rnd)[: target.max_size]
        yield data
        if rnd.random() < 0.3:
            if len(pool) < first + _KEPT:
                pool.append(data)
            else:
                pool[rnd.randrange(first, len(pool))] = data
