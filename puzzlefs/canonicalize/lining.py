"""Taking over stored chunks where the new stream is cut like the old one.

A chunk of the old image *lines up* if the new stream has all of its content in one piece, and is cut where that begins
and where it ends. The reader of the old files says of every chunk that it comes across whole where that is
(``expect``); the pipeline compares that with the cuts as they arrive. What lines up is neither hashed nor compressed
nor written again, since its blob was read, and so verified, a moment ago.

So nothing is taken on trust: the cuts are those of the content, however the old image was cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from puzzlefs.blobs import BlobWriter
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.pipeline import ChunkPipeline
from puzzlefs.builder.storage import Storage
from puzzlefs.builder.workers import Buffer
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image_commit import StoredChunk


@dataclass(frozen=True, slots=True)
class WholeChunk:
    """A stored chunk whose content the stream has in one piece.

    Attributes:
        start: where in the stream.
        length: bytes of the content.
        chunk: as it is stored.
        verity: the fs-verity digest of the stored bytes.
    """

    start: int
    length: int
    chunk: StoredChunk
    verity: VerityDigest


class LiningPipeline(ChunkPipeline):
    """A pipeline that takes over what lines up.

    Attributes:
        reused: chunks of the stream that were taken over.
    """

    def __init__(
        self,
        stream: FileStream,
        writer: BlobWriter,
        *,
        version: int,
        storage: Storage,
        workers: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """As ``ChunkPipeline``, with threads."""
        super().__init__(stream, writer, version=version, storage=storage, workers=workers, progress=progress)
        self.reused = 0
        self._expected: deque[WholeChunk] = deque()
        self._position = 0

    def expect(self, whole: WholeChunk) -> None:
        """Say that the stream has a stored chunk whole; in the order of the stream, before its end is cut."""
        self._expected.append(whole)

    def submit(self, buffer: Buffer, lengths: Sequence[int]) -> None:
        """See ``ChunkPipeline``."""
        known: dict[int, StoredChunk] = {}
        verity: dict[Digest, VerityDigest] = {}
        for number, length in enumerate(lengths):
            whole = self._next(self._position)
            if (
                whole is not None
                and whole.length == length
                and self._writer.adopt(whole.chunk.digest, whole.chunk.size)
            ):
                known[number] = whole.chunk
                verity[whole.chunk.digest] = whole.verity
            self._position += length
        self.reused += len(known)
        if known:
            self.submit_partly_known(buffer, lengths, known, verity)
        else:
            super().submit(buffer, lengths)

    def submit_zeros(self, length: int, count: int) -> None:
        """See ``ChunkPipeline``."""
        self._position += length * count
        super().submit_zeros(length, count)

    def _next(self, position: int) -> WholeChunk | None:
        """The expected chunk that begins at ``position``, if there is one."""
        expected = self._expected
        while expected and expected[0].start < position:
            expected.popleft()
        return expected[0] if expected and expected[0].start == position else None
