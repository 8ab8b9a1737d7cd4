#!/usr/bin/env python3
"""The tree that benchmarks pack where nobody names one: a Debian with what developers install.

It is debootstrapped once and kept beside the demonstration's, by the same means (``scripts/rootfs.py``). Run as a
program this prints its path, making it first if need be.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from rootfs import DebootstrapUnavailableError, cache_dir, debootstrapped_tree

PACKAGES: Final = (
    "ca-certificates", "cmake", "curl", "g++", "git", "openjdk-17-jre-headless", "perl", "python3", "python3-numpy",
    "python3-pip", "vim-nox",
)  # fmt: skip
"""Some 30,000 inodes and 1.3 GB; large files, small files, compressed ones, and interpreters to start."""


def default_tree() -> Path:
    """The path of the tree; ends the program where it is not there and cannot be made."""
    try:
        return debootstrapped_tree(cache_dir(), "bench", PACKAGES)[0]
    except DebootstrapUnavailableError as error:
        sys.exit(f"{error}; a tree can be named with BENCH_ROOTFS")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(default_tree())
