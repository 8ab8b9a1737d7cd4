"""Who stores chunks while the thread that owns a build reads and cuts: a few threads.

Most of the work drops the interpreter's lock, so threads are enough for a build of a few files, and they are what there
is in a program that has threads of its own. For more see ``processes``, which does the same in processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import mmap
from typing import Final, Protocol

from puzzlefs.builder.store import ChunkStore, Stored
from puzzlefs.errors import InvalidArgumentError
from puzzlefs.signal_mask import blocked

Buffer = mmap
"""Bytes that the owner writes and workers read, in any process. Memory that nobody has written to yet costs nothing."""

_MAX_WORKERS: Final = 8


def worker_count(asked: int | None) -> int:
    """How many workers there are to be: as many as were asked for, else as there are CPUs, up to 8.

    Raises:
        InvalidArgumentError: if fewer than one was asked for.
    """
    if asked is None:
        return min(len(os.sched_getaffinity(0)), _MAX_WORKERS)
    if asked < 1:
        raise InvalidArgumentError(f"{asked} workers cannot do anything", hint="ask for at least one")
    return asked


class Outcome(Protocol):
    """What becomes of one buffer."""

    def done(self) -> bool:
        """Whether ``result`` would not wait."""
        ...

    def result(self) -> Stored:
        """The stored chunks; waits for them.

        Raises:
            StorageError: if one could not be stored.
        """
        ...


class Workers(Protocol):
    """Stores buffers of chunks. Everything is called by the owner's thread."""

    def new_buffer(self) -> Buffer:
        """One more buffer."""
        ...

    def submit(self, buffer: Buffer, lengths: Sequence[int]) -> Outcome:
        """Store the chunks at the beginning of ``buffer``, which must not change until the outcome is there."""
        ...

    def close(self) -> None:
        """Wait for what is being stored, and drop the rest."""
        ...


class ThreadWorkers:
    """Workers that are threads of this process."""

    def __init__(self, store: ChunkStore, count: int, buffer_size: int) -> None:
        """``count`` threads, which run already, for buffers of ``buffer_size`` bytes."""
        self._store = store
        self._buffer_size = buffer_size
        self._pool = started_pool(count)

    def new_buffer(self) -> Buffer:
        """See ``Workers``."""
        return mmap(-1, self._buffer_size)

    def submit(self, buffer: Buffer, lengths: Sequence[int]) -> Future[Stored]:
        """See ``Workers``."""
        return self._pool.submit(self._store.store, memoryview(buffer), lengths)

    def close(self) -> None:
        """See ``Workers``."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def started_pool(workers: int) -> ThreadPoolExecutor:
    """A pool of threads that run already.

    A pool starts threads when it is handed work, and one that is starting when Ctrl-C or SIGTERM becomes an exception
    is a thread that nobody waits for: it would go on writing while the build cleans up. So all start here, unharmed.

    Raises:
        RuntimeError: if the host does not give us so many.
    """
    pool = ThreadPoolExecutor(workers, "puzzlefs-chunks")
    running = threading.Barrier(workers + 1)
    with blocked():
        try:
            for _ in range(workers):
                pool.submit(running.wait)
            running.wait()
        except BaseException:
            running.abort()  # else those that run would wait for ever for those that could not be started
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return pool
