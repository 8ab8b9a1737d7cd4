"""Trees that have files in common, and the kinds of images that are made of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final

KINDS: Final[dict[str, dict[str, Any]]] = {
    "v1": {"format_version": 1},
    "v2-zstd": {"format_version": 2, "compression": True},
    "v3": {},
    "v3-zstd": {"compression": True},
}
"""Options of ``build``."""


def write_tree(root: Path, seed: int, count: int = 8) -> Path:
    """Files of 180 KB in ``root``; those of the lower half of the numbers are the same with any ``seed``."""
    root.mkdir(exist_ok=True)
    for number in range(count):
        noise = random.Random(f"{seed if number > count // 2 else 0}/{number}").randbytes(140_000)
        (root / f"{number}").write_bytes(noise + bytes([number]) * 40_000)
    return root
