#!/usr/bin/env python3
"""Writes the blobs of an image as files, from memory: a temporary name, then a rename.

    python benchmarks/write_floor.py BLOBS OUT

Prints the seconds that took, reading them not included. It does not sync.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def write_all(blobs: list[bytes], out: Path) -> float:
    """Write each as a file in ``out``; the seconds."""
    start = time.perf_counter()
    for number, blob in enumerate(blobs):
        temporary = out / f".tmp-{number}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, blob)
        os.close(fd)
        temporary.rename(out / f"{number:064x}")
    return time.perf_counter() - start


if __name__ == "__main__":
    print(write_all([path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())], Path(sys.argv[2])))
