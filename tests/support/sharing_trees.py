"""Trees that have files in common."""

from __future__ import annotations

import random
from pathlib import Path


def write_tree(root: Path, seed: int, count: int = 8) -> Path:
    """Files of 180 KB in ``root``; those of the lower half of the numbers are the same with any ``seed``."""
    root.mkdir(exist_ok=True)
    for number in range(count):
        noise = random.Random(f"{seed if number > count // 2 else 0}/{number}").randbytes(140_000)
        (root / f"{number}").write_bytes(noise + bytes([number]) * 40_000)
    return root
