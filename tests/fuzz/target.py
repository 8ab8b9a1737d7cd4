"""What a target is."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """Something that takes bytes.

    Attributes:
        name: what it is called.
        run: gives it an input. It returns, or raises a ``PuzzlefsError``; anything else is a defect.
        seeds: inputs to begin with.
        mutate: changes an input in a way that keeps some of its structure.
        max_size: bytes of the largest input that is tried: what an input may cost is bounded for those.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutate
    max_size: int = 1 << 16
