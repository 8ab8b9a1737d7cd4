"""Chunks on their way: loaded and verified by a few threads ahead of the one that writes them out.

Which chunks come next is known from the metadata, so whoever writes says so early (``want``) and takes them later
(``take``). The verified blobs of an image do the work and keep what was used last; this only calls them in time. Memory
is bounded by the number of chunks under way: who wants more than there may be has to take some first.

What is larger than any builder's chunk is not loaded ahead, and taken in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from puzzlefs.blobs import LoadBudget
from puzzlefs.builder.workers import started_pool
from puzzlefs.digest import Digest
from puzzlefs.image import Image
from puzzlefs.vfs import Piece

CHUNKS_AHEAD: Final = 16

_USUAL_CONTENT: Final = 4 << 20
"""Bytes of the largest content that is held while it waits."""

_WINDOW: Final = 1 << 20

Key = tuple[Digest, bool]


@dataclass(slots=True)
class _Loading:
    """A chunk that somebody waits for.

    Attributes:
        content: what becomes of it; ``None`` if it is too large to be held.
        takers: pieces of it that were announced and not taken.
    """

    content: Future[bytes | None]
    takers: int


class ChunksAhead:
    """Loads chunks of one image ahead. A context manager; for one thread."""

    def __init__(self, image: Image, workers: int) -> None:
        """Loads with so many threads."""
        self._image = image
        self._pool = started_pool(workers)
        self._loading: dict[Key, _Loading] = {}

    def has_room(self) -> bool:
        """Whether one more piece may be announced."""
        return len(self._loading) < CHUNKS_AHEAD

    def want(self, piece: Piece) -> None:
        """Announce that a piece will be taken; pieces are taken in the order in which they were announced."""
        key = piece.blob, piece.compressed
        loading = self._loading.get(key)
        if loading is None:
            self._loading[key] = _Loading(self._pool.submit(self._load, key), 1)
        else:
            loading.takers += 1

    def take(self, piece: Piece, budget: LoadBudget) -> Iterator[memoryview]:
        """The bytes of a piece that was announced.

        Args:
            piece: the piece.
            budget: pays for what had to be loaded.

        Raises:
            PuzzlefsError: as ``VerifiedBlobs.view_chunk``.
        """
        key = piece.blob, piece.compressed
        loading = self._loading[key]
        loading.takers -= 1
        if not loading.takers:
            del self._loading[key]
        content = loading.content.result()
        if content is not None and piece.offset + piece.length <= len(content):
            if not loading.takers:
                budget.spend(len(content))
            yield memoryview(content)[piece.offset : piece.offset + piece.length]
            return
        view = self._image.blobs.view_chunk
        step = piece.length if piece.compressed else _WINDOW
        for start in range(0, piece.length, step):
            yield view(*key, piece.offset + start, min(step, piece.length - start), budget)

    def _load(self, key: Key) -> bytes | None:
        content = self._image.blobs.view_chunk(*key, 0, 0).obj
        return content if isinstance(content, bytes) and 0 < len(content) <= _USUAL_CONTENT else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
