"""Chunks → stored blobs: hashed, made smaller if asked for, measured and written by a few workers, in order.

The thread that owns a ``ChunkPipeline`` reads and cuts; it hands over whole buffers with the lengths of the
chunks in them. Workers (``workers``, ``processes``) take buffers and do everything slow (``store``). Results are
taken in the order of submission, so the image is the same with any number and any kind of workers, and what
becomes of a chunk depends on its bytes alone.

Memory is bounded by the number of buffers: there are so many and no more, and who wants one more waits for
the oldest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final, Self

from puzzlefs.blobs import BlobWriter
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.processes import ProcessWorkers
from puzzlefs.builder.reuse import ReusedChunks
from puzzlefs.builder.storage import Storage
from puzzlefs.builder.store import ChunkStore, Stored
from puzzlefs.builder.workers import Buffer, Outcome, ThreadWorkers, Workers
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image_commit import StoredChunk

BUFFER_SIZE: Final = 2 << 20
"""Bytes of a buffer: enough chunks for a wake-up to cost nothing, few enough for a small tree to keep two
threads busy."""

_MAX_BUFFERS: Final = 24


@dataclass(frozen=True, slots=True)
class _Batch:
    """Chunks that were handed over: their fate, their lengths, how often they follow one another in the
    stream."""

    outcome: Outcome
    lengths: Sequence[int]
    repeat: int
    buffer: Buffer | None


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
        storage: Storage,
        workers: int,
        processes: bool = False,
        progress: Callable[[int], None] | None = None,
        meanwhile: Callable[[], bool] | None = None,
    ) -> None:
        """A pipeline that appends to ``stream`` and writes to ``writer``.

        Args:
            version: the format version, which says how chunks are compressed.
            storage: whether they are, and how well.
            workers: how many, at least 1.
            processes: whether they are processes, which ``can_fork`` must allow, or threads.
            progress: called in the owner's thread with ``bytes_done``.
            meanwhile: a bit of other work that the owner has, done while a chunk is waited for; whether there is more.
        """
        self.verity: dict[Digest, VerityDigest] = {}
        self.bytes_done = 0
        self._stream = stream
        self._writer = writer
        self._progress = progress
        self._meanwhile = meanwhile
        make_store = partial(ChunkStore, version=version, storage=storage)
        self._store = make_store(writer)
        self._workers: Workers
        self._processes: ProcessWorkers | None = None
        if processes:
            self._workers = self._processes = ProcessWorkers(writer, make_store, workers, BUFFER_SIZE)
        else:
            self._workers = ThreadWorkers(self._store, workers, BUFFER_SIZE)
        self._batches: deque[_Batch] = deque()
        self._free = [self._workers.new_buffer() for _ in range(min(2 * workers + 2, _MAX_BUFFERS))]
        self._zeros: tuple[int, Outcome] | None = None

    def buffer(self) -> Buffer:
        """A buffer of ``BUFFER_SIZE`` bytes with anything in it; waits if all of them are in use.

        Raises:
            StorageError: if a chunk that was submitted before could not be stored.
        """
        while not self._free:
            self._collect()
        return self._free.pop()

    def submit(self, buffer: Buffer, lengths: Sequence[int]) -> None:
        """Store the chunks at the beginning of ``buffer``, which belongs to the pipeline from now on."""
        self._batches.append(_Batch(self._workers.submit(buffer, lengths), lengths, 1, buffer))
        self._collect_finished()

    def submit_partly_known(
        self,
        buffer: Buffer,
        lengths: Sequence[int],
        known: Mapping[int, StoredChunk],
        verity: Mapping[Digest, VerityDigest],
    ) -> None:
        """As ``submit``, but some of the chunks are stored, and adopted by the writer, already.

        Args:
            buffer: begins with the chunks; what it holds for known ones is not looked at.
            lengths: of all chunks, the known ones included.
            known: by their numbers in ``lengths``, those that are stored.
            verity: their fs-verity digests.
        """
        unknown: list[int] = []
        with memoryview(buffer) as view:
            start = end = 0
            for number, length in enumerate(lengths):
                if number not in known:
                    if start != end:
                        view[end : end + length] = view[start : start + length]
                    unknown.append(length)
                    end += length
                start += length
        if unknown:
            outcome: Outcome = _Interleaved(self._workers.submit(buffer, unknown), len(lengths), known, verity)
        else:
            outcome = _known(Stored([known[number] for number in range(len(lengths))], dict(verity)))
        self._batches.append(_Batch(outcome, lengths, 1, buffer))
        self._collect_finished()

    def submit_zeros(self, length: int, count: int) -> None:
        """Store ``count`` chunks of ``length`` zeros each; that is work only the first time."""
        if self._zeros is None or self._zeros[0] != length:
            self._zeros = (length, _known(self._store.store(bytes(length), [length])))
        self._batches.append(_Batch(self._zeros[1], [length], count, None))
        self._collect_finished()

    def submit_known(self, known: ReusedChunks) -> None:
        """Append chunks that the writer has adopted already."""
        outcome = _known(Stored(known.chunks, dict(known.verity)))
        self._batches.append(_Batch(outcome, known.lengths, 1, None))
        self._collect_finished()

    def finish(self) -> None:
        """Wait until everything that was submitted is stored.

        Raises:
            StorageError: if something could not be stored.
        """
        while self._batches:
            self._collect()

    def begin_commit(self) -> None:
        """Begin to commit what is stored, for an owner who has other work to do before: with ``finish``, all of it.

        Processes that wrote blobs also give them their names, if this is still entered as a context.

        Raises:
            StorageError: if the layout cannot be written.
        """
        if self._processes is None:
            self._writer.begin_write_out()
        else:
            self._writer.begin_commit(self._processes.give_names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.end_naming()
        self._processes = None
        self._workers.close()

    # ---- the owner's thread

    def _collect_finished(self) -> None:
        while self._batches and self._batches[0].outcome.done():
            self._collect()

    def _collect(self) -> None:
        while self._meanwhile is not None and not self._batches[0].outcome.done():
            if not self._meanwhile():
                self._meanwhile = None
        batch = self._batches.popleft()
        stored = batch.outcome.result()
        chunks = stored.chunks
        self.verity.update(stored.verity)
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


class _Interleaved:
    """The outcome of chunks some of which were stored before, in the order of the stream."""

    def __init__(
        self,
        outcome: Outcome,
        count: int,
        known: Mapping[int, StoredChunk],
        verity: Mapping[Digest, VerityDigest],
    ) -> None:
        self._outcome = outcome
        self._count = count
        self._known = known
        self._verity = verity

    def done(self) -> bool:
        return self._outcome.done()

    def result(self) -> Stored:
        stored = self._outcome.result()
        others = iter(stored.chunks)
        chunks = [self._known[number] if number in self._known else next(others) for number in range(self._count)]
        return Stored(chunks, {**self._verity, **stored.verity})


def _known(stored: Stored) -> Future[Stored]:
    """The outcome of what is done."""
    outcome: Future[Stored] = Future()
    outcome.set_result(stored)
    return outcome
