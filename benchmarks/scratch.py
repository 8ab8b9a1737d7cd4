"""A directory for what a benchmark writes, which goes when the benchmark ends.

Where a file system tells its disk of each file that goes (``discard``), removing tens of thousands of blobs one by one
takes longer than measuring; with many threads it takes a fifth of that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_THREADS = 32


@contextlib.contextmanager
def scratch_directory(parent: Path | None) -> Iterator[Path]:
    """A new directory in ``parent``, or where the system has temporary ones; it is removed in the end."""
    directory = Path(tempfile.mkdtemp(dir=parent, prefix="bench-"))
    try:
        yield directory
    finally:
        remove(directory)


def remove(directory: Path) -> None:
    """Remove a directory with everything in it."""
    files = [os.path.join(top, name) for top, _, names in os.walk(directory) for name in names]
    with ThreadPoolExecutor(_THREADS) as pool, contextlib.suppress(OSError):
        for _ in pool.map(os.unlink, files):
            pass
    shutil.rmtree(directory)
