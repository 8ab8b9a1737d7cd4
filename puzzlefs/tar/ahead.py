"""Chunks on their way: loaded and verified by a few threads ahead of the one that writes them out.

Which chunks come next is known from the metadata, so whoever writes says so early (``want``) and takes them later
(``take``). The verified blobs of an image do the work and keep what was used last; this only calls them in time. Memory
is bounded by the number of chunks under way: who wants more than there may be has to take some first.

What is larger than any builder's chunk is not loaded ahead, and taken in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from puzzlefs.blobs import LoadBudget
from puzzlefs.builder.workers import started_pool
from puzzlefs.digest import Digest
from puzzlefs.errors import PuzzlefsError
from puzzlefs.image import Image
from puzzlefs.model import FileChunk

_CHUNKS_AHEAD: Final = 32

_BATCH_SIZE: Final = 4
"""Chunks that a thread is told to load at once; to tell a thread costs as much as to load one."""

_USUAL_CONTENT: Final = 4 << 20
"""Bytes of the largest content that is held while it waits."""

_WINDOW: Final = 1 << 20

Key = tuple[Digest, bool]
Loaded = list[bytes | PuzzlefsError | None]
"""For each chunk its content, an error, or ``None`` if it is too large to be held."""


@dataclass(slots=True)
class _Batch:
    """Chunks that one thread loads one after the other.

    Attributes:
        keys: which.
        outcome: what becomes of them, once a thread has been told.
        loaded: that, once somebody has waited for it.
    """

    keys: list[Key]
    outcome: Future[Loaded] | None = None
    loaded: Loaded | None = None


@dataclass(slots=True)
class _Loading:
    """A chunk that somebody waits for.

    Attributes:
        batch: the batch that it is in.
        index: its place there.
        takers: parts of it that were announced and not taken.
    """

    batch: _Batch
    index: int
    takers: int = 1


class ChunksAhead:
    """Loads chunks of one image ahead. A context manager; for one thread."""

    def __init__(self, image: Image, workers: int) -> None:
        """Loads with so many threads."""
        self._image = image
        self._pool = started_pool(workers)
        self._loading: dict[Key, _Loading] = {}
        self._batch = _Batch([])

    def has_room(self) -> bool:
        """Whether one more part may be announced."""
        return len(self._loading) < _CHUNKS_AHEAD

    def want(self, part: FileChunk) -> None:
        """Announce that a part will be taken; parts are taken in the order in which they were announced."""
        blob = part.blob
        key = blob.digest, blob.compressed
        loading = self._loading.get(key)
        if loading is not None:
            loading.takers += 1
            return
        batch = self._batch
        self._loading[key] = _Loading(batch, len(batch.keys))
        batch.keys.append(key)
        if len(batch.keys) == _BATCH_SIZE:
            self._submit()

    def take(self, part: FileChunk, budget: LoadBudget | None) -> Sequence[memoryview] | Iterator[memoryview]:
        """The bytes of a part that was announced, in pieces.

        Args:
            part: the part.
            budget: pays for what had to be loaded.

        Raises:
            PuzzlefsError: as ``VerifiedBlobs.view_chunk``; also while pieces are taken.
        """
        blob, length = part.blob, part.length
        key = blob.digest, blob.compressed
        loading = self._loading[key]
        batch = loading.batch
        content = (batch.loaded or self._wait(batch))[loading.index]
        if isinstance(content, PuzzlefsError):
            raise content
        loading.takers -= 1
        if not loading.takers:
            del self._loading[key]
        end = blob.offset + length
        if content is None or end > len(content):
            return self._in_place(part, budget)
        if budget is not None and not loading.takers:
            budget.spend(len(content))
        return (memoryview(content)[blob.offset : end],)

    def _in_place(self, part: FileChunk, budget: LoadBudget | None) -> Iterator[memoryview]:
        """A part of what is too large to be held, or too short for it."""
        blob, view = part.blob, self._image.blobs.view_chunk
        step = part.length if blob.compressed else _WINDOW
        for start in range(0, part.length, step):
            size = min(step, part.length - start)
            yield view(blob.digest, blob.compressed, blob.offset + start, size, budget)

    def _submit(self) -> Future[Loaded]:
        """Have the batch loaded that was being put together, and begin another one."""
        batch, self._batch = self._batch, _Batch([])
        batch.outcome = self._pool.submit(self._load, batch.keys)
        return batch.outcome

    def _wait(self, batch: _Batch) -> Loaded:
        outcome = batch.outcome or self._submit()  # no thread was told: it is being put together
        batch.loaded = outcome.result()
        return batch.loaded

    def _load(self, keys: Sequence[Key]) -> Loaded:
        loaded: Loaded = []
        for key in keys:
            try:
                content = self._image.blobs.view_chunk(*key, 0, 0).obj
            except PuzzlefsError as error:
                loaded.append(error)
            else:
                loaded.append(content if isinstance(content, bytes) and 0 < len(content) <= _USUAL_CONTENT else None)
        return loaded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
