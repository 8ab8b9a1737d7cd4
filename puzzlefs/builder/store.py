"""What becomes of a chunk: hashed, made smaller if asked for, measured, written.

A ``ChunkStore`` is the part of a build that workers share. What it does depends on the bytes of a chunk alone, so it
does not matter which worker a chunk comes to, or whether two of them do the same work.

Thread safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puzzlefs.blobs import BlobWriter
from puzzlefs.builder.storage import Storage
from puzzlefs.compression import compress_chunk
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image_commit import StoredChunk
from puzzlefs.verity import verity_digest


@dataclass(frozen=True, slots=True)
class Stored:
    """The chunks of one buffer.

    Attributes:
        chunks: in the order of the stream.
        verity: the fs-verity digests of their stored bytes, where this buffer is the first to have them.
    """

    chunks: Sequence[StoredChunk]
    verity: dict[Digest, VerityDigest]


class ChunkStore:
    """Stores chunks through one writer.

    Within a build a blob is known by its digest, so each is measured and written once (by two workers that meet it at
    once, twice, to the same result; the writer takes it once). A chunk that is compressed is not hashed before: among
    all chunks of a tree few are there twice, and compressing those again costs less than hashing every chunk twice.
    """

    def __init__(self, writer: BlobWriter, *, version: int, storage: Storage) -> None:
        """A store for images of format ``version``, which says how chunks are compressed."""
        self._writer = writer
        self._version = version
        self._storage = storage
        self._known: dict[tuple[Digest, bool], StoredChunk] = {}

    def store(self, buffer: bytes | bytearray | memoryview, lengths: Sequence[int]) -> Stored:
        """Store the chunks that ``buffer`` begins with.

        Raises:
            StorageError: if one cannot be written.
        """
        chunks: list[StoredChunk] = []
        verity: dict[Digest, VerityDigest] = {}
        start = 0
        with memoryview(buffer) as view:
            for length in lengths:
                with view[start : start + length] as data:
                    chunk = self._store(data, verity)
                chunks.append(chunk)
                start += length
        return Stored(chunks, verity)

    def _store(self, data: memoryview, verity: dict[Digest, VerityDigest]) -> StoredChunk:
        if self._storage.compression:
            smaller = compress_chunk(data, self._version, self._storage.level)
            if len(smaller) < len(data):
                return self._put(smaller, verity, compressed=True)
        return self._put(data, verity, compressed=False)

    def _put(self, data: bytes | memoryview, verity: dict[Digest, VerityDigest], *, compressed: bool) -> StoredChunk:
        digest = Digest.of(data)
        chunk = self._known.get((digest, compressed))
        if chunk is None:
            verity[digest] = verity_digest(data)
            self._writer.put(data, digest)
            chunk = self._known[digest, compressed] = StoredChunk(digest, len(data), compressed)
        return chunk
