"""Chunks → stored blobs: hashed, made smaller if asked for, measured and written by a few threads, in order.

The thread that owns a ``ChunkPipeline`` reads and cuts; it hands over whole buffers with the lengths of the
chunks in them. Workers take buffers, and everything slow that they do (sha256, zstd, fs-verity, writing)
drops the interpreter's lock. Results are taken in the order of submission, so the image is the same with any
number of workers, and what becomes of a chunk depends on its bytes alone.

Memory is bounded by the number of buffers: there are so many and no more, and who wants one more waits for
the oldest. Within a build a chunk is known by the sha256 of its raw bytes, so each distinct chunk is
compressed and written once.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from puzzlefs.blobs import BlobWriter
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.reuse import ReusedChunks
from puzzlefs.compression import compress_chunk
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image import StoredChunk
from puzzlefs.verity import verity_digest

BUFFER_SIZE: Final = 2 << 20
"""Bytes of a buffer: enough chunks for a wake-up to cost nothing, few enough for a small tree to keep two
threads busy."""

_MAX_BUFFERS: Final = 24


@dataclass(frozen=True, slots=True)
class _Batch:
    """Chunks that were handed over: their fate, their lengths, how often they follow one another in the
    stream."""

    result: Future[Sequence[StoredChunk]]
    lengths: Sequence[int]
    repeat: int
    buffer: bytearray | None


class ChunkPipeline:
    """Stores the chunks of one stream. A context manager; leaving it stops the workers.

    Attributes:
        verity: the fs-verity digest of every distinct chunk as it is stored.
        bytes_done: bytes of the stream that are dealt with.
    """

    def __init__(
        self,
        stream: FileStream,
        writer: BlobWriter,
        *,
        version: int,
        compression: bool,
        workers: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """A pipeline that appends to ``stream`` and writes to ``writer``.

        Args:
            version: the format version, which says how chunks are compressed.
            workers: threads, at least 1.
            progress: called in the owner's thread with ``bytes_done``.
        """
        self.verity: dict[Digest, VerityDigest] = {}
        self.bytes_done = 0
        self._stream = stream
        self._writer = writer
        self._version = version
        self._compression = compression
        self._progress = progress
        self._known: dict[bytes, StoredChunk] = {}
        self._pool = _started_pool(workers)
        self._batches: deque[_Batch] = deque()
        self._free: list[bytearray] = []
        self._buffers_left = min(2 * workers + 2, _MAX_BUFFERS)
        self._zeros: tuple[int, Future[Sequence[StoredChunk]]] | None = None

    def buffer(self) -> bytearray:
        """A buffer of ``BUFFER_SIZE`` bytes with anything in it; waits if all of them are in use.

        Raises:
            StorageError: if a chunk that was submitted before could not be stored.
        """
        while not self._free and not self._buffers_left:
            self._collect()
        if self._free:
            return self._free.pop()
        self._buffers_left -= 1
        return bytearray(BUFFER_SIZE)

    def submit(self, buffer: bytearray, lengths: Sequence[int]) -> None:
        """Store the chunks at the beginning of ``buffer``, which belongs to the pipeline from now on."""
        result = self._pool.submit(self._store, buffer, lengths)
        self._batches.append(_Batch(result, lengths, 1, buffer))
        self._collect_finished()

    def submit_zeros(self, length: int, count: int) -> None:
        """Store ``count`` chunks of ``length`` zeros each; that is work only the first time."""
        if self._zeros is None or self._zeros[0] != length:
            self._zeros = (length, self._pool.submit(self._store, bytes(length), [length]))
        self._batches.append(_Batch(self._zeros[1], [length], count, None))
        self._collect_finished()

    def submit_known(self, known: ReusedChunks) -> None:
        """Append chunks that the writer has adopted already."""
        self.verity.update(known.verity)
        result: Future[Sequence[StoredChunk]] = Future()
        result.set_result(known.chunks)
        self._batches.append(_Batch(result, known.lengths, 1, None))
        self._collect_finished()

    def finish(self) -> None:
        """Wait until everything that was submitted is stored.

        Raises:
            StorageError: if something could not be stored.
        """
        while self._batches:
            self._collect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ---- the owner's thread

    def _collect_finished(self) -> None:
        while self._batches and self._batches[0].result.done():
            self._collect()

    def _collect(self) -> None:
        batch = self._batches.popleft()
        chunks = batch.result.result()
        if batch.repeat == 1:
            self._stream.extend(chunks, batch.lengths)
        else:
            for chunk, length in zip(chunks, batch.lengths, strict=True):
                self._stream.append(chunk, length, batch.repeat)
        if batch.buffer is not None:
            self._free.append(batch.buffer)
        self.bytes_done += sum(batch.lengths) * batch.repeat
        if self._progress is not None:
            self._progress(self.bytes_done)

    # ---- the workers' threads

    def _store(self, buffer: bytearray | bytes, lengths: Sequence[int]) -> Sequence[StoredChunk]:
        stored: list[StoredChunk] = []
        start = 0
        with memoryview(buffer) as view:
            for length in lengths:
                with view[start : start + length] as data:
                    key = hashlib.sha256(data).digest()
                    chunk = self._known.get(key)
                    if chunk is None:
                        # Two workers may meet the same new chunk at once. They come to the same result, and
                        # the writer takes it once.
                        chunk = self._known[key] = self._store_new(data, key)
                stored.append(chunk)
                start += length
        return stored

    def _store_new(self, data: memoryview, key: bytes) -> StoredChunk:
        if self._compression:
            smaller = compress_chunk(data, self._version)
            if len(smaller) < len(data):
                return self._put(smaller, Digest.of(smaller), compressed=True)
        return self._put(data, Digest(key), compressed=False)

    def _put(self, data: bytes | memoryview, digest: Digest, *, compressed: bool) -> StoredChunk:
        self.verity[digest] = verity_digest(data)
        self._writer.put(data, digest)
        return StoredChunk(digest, len(data), compressed)


def _started_pool(workers: int) -> ThreadPoolExecutor:
    """A pool whose threads run already.

    A pool starts threads when it is handed work, and one that is starting when Ctrl-C or SIGTERM becomes an exception
    is a thread that nobody waits for: it would go on writing while the build cleans up. So all start here, unharmed.
    """
    pool = ThreadPoolExecutor(workers, "puzzlefs-chunks")
    running = threading.Barrier(workers + 1)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        for _ in range(workers):
            pool.submit(running.wait)
        running.wait()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pool
