"""The chunks of an image, in another layout and as another format version stores them.

Chunks are dealt with by a few threads, and taken in the order in which the image refers to them first. A chunk that
stays what it is keeps its blob: nothing is done in one directory, and between two it is linked, cloned or copied, and
hashed. Its fs-verity digest is the one that the image records; where that is missing, it is computed.

A chunk that only hidden inodes use may be missing, as it may be for every reader.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.blobs.host import storage_errors
from puzzlefs.blobs.verified import MAX_CHUNK_CONTENT
from puzzlefs.builder.workers import started_pool
from puzzlefs.compression.framing import has_same_framing, reframed
from puzzlefs.convert.stack import Key
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import BlobNotFoundError, FormatError, IntegrityError
from puzzlefs.image import Image
from puzzlefs.image_commit import StoredChunk
from puzzlefs.model import Inode, RegularFile
from puzzlefs.verity import VerityHasher, verity_digest

_BLOCK_SIZE: Final = 1 << 20
_AHEAD: Final = 64
"""Chunks that are under way at a time."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ConvertedChunk:
    """A chunk in the new layout: as it is stored there, and the fs-verity digest of the stored bytes."""

    chunk: StoredChunk
    verity: VerityDigest


class ChunkConverter:
    """Has the chunks of an image in a layout. A context manager; leaving it stops the workers.

    Attributes:
        sizes: the distinct chunks, in the order in which the metadata layers refer to them, and of each how many bytes
            of its content they use.
        changed: how many of them have other bytes now.
    """

    def __init__(
        self,
        image: Image,
        layers: Sequence[Sequence[Inode]],
        layout: Layout,
        writer: BlobWriter,
        *,
        version: int,
        workers: int,
    ) -> None:
        """A converter.

        Args:
            image: the image.
            layers: its metadata layers, decoded.
            layout: where its chunks are to be.
            writer: writes there.
            version: the format version that they are to be stored for.
            workers: how many threads.
        """
        self.changed = 0
        self.sizes: dict[Key, int] = {}
        for layer in layers:
            for inode in layer:
                for part in inode.content.chunks if isinstance(inode.content, RegularFile) else ():
                    blob = part.blob
                    key = (blob.digest, blob.compressed)
                    self.sizes[key] = max(self.sizes.get(key, 0), blob.offset + part.length)
        self._image = image
        self._layout = layout
        self._writer = writer
        self._version = version
        self._reframes = not has_same_framing(image.version, version)
        with storage_errors("look at", layout.path):
            self._is_here = os.path.sameopenfile(image.layout.blobs_fd, layout.blobs_fd)
        self._needed: frozenset[Key] | None = None
        self._lock = threading.Lock()
        self._pool = started_pool(workers)

    def convert_all(self, progress: Callable[[int], None]) -> dict[Key, ConvertedChunk]:
        """Have all chunks in the new layout, stored as its images store them.

        Args:
            progress: told how many bytes are done, of those that ``sizes`` says.

        Returns:
            What became of each, without those that are missing and not needed.

        Raises:
            BlobNotFoundError: if one is missing.
            FormatError: if one is malformed.
            IntegrityError: if one is not what its name says.
            StorageError: if one cannot be read or written.
        """
        converted: dict[Key, ConvertedChunk] = {}
        done = 0
        for key, found in self._in_order(self._convert, self.sizes):
            if found is not None:
                converted[key] = found
                self.changed += found.chunk.digest != key[0]
            done += self.sizes[key]
            progress(done)
        return converted

    def take_all(self, needed: Collection[Digest], others: Collection[Digest], progress: Callable[[int], None]) -> None:
        """Have all chunks, and more blobs, in the new layout as they are.

        Args:
            needed: blobs besides chunks that must be there.
            others: blobs that are taken if they are there.
            progress: told how many bytes are done, of those that ``sizes`` says.

        Raises:
            PuzzlefsError: as ``convert_all``.
        """
        sizes: dict[Digest, int] = dict.fromkeys((*needed, *others), 0)
        for (digest, _), size in self.sizes.items():
            sizes[digest] = sizes.get(digest, 0) + size

        def take(digest: Digest) -> None:
            try:
                self.take(digest)
            except BlobNotFoundError:
                if digest in needed or any((digest, way) in self._needed_chunks() for way in (False, True)):
                    raise

        done = 0
        for digest, _ in self._in_order(take, sizes):
            done += sizes[digest]
            progress(done)

    def take(self, digest: Digest) -> int:
        """Have a blob in the new layout as it is; its size.

        Raises:
            PuzzlefsError: as ``convert_all``.
        """
        if not self._is_here:
            return self._writer.put_from(self._image.layout, digest)
        size = self._layout.blob_size(digest)
        if size is None or not self._writer.adopt(digest, size):
            raise BlobNotFoundError(digest.hex(), str(self._layout.blob_path(digest)))
        return size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ---- inside

    def _in_order(self, action: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Each item with what ``action`` returns for it, a few at a time."""
        under_way: deque[tuple[T, Future[R]]] = deque()
        for item in items:
            under_way.append((item, self._pool.submit(action, item)))
            if len(under_way) >= _AHEAD:
                first, future = under_way.popleft()
                yield first, future.result()
        for item, future in under_way:
            yield item, future.result()

    def _convert(self, key: Key) -> ConvertedChunk | None:
        """Have a chunk in the new layout; ``None`` if it is missing and nobody needs it."""
        digest, compressed = key
        try:
            if compressed and self._reframes:
                return self._reframed(digest)
            return ConvertedChunk(StoredChunk(digest, self.take(digest), compressed), self._verity_of(digest))
        except BlobNotFoundError:
            if key in self._needed_chunks():
                raise
            return None

    def _reframed(self, digest: Digest) -> ConvertedChunk:
        stored = self._image.blobs.read(digest, limit=MAX_CHUNK_CONTENT)
        try:
            data = reframed(stored, self._version, limit=MAX_CHUNK_CONTENT)
        except FormatError as error:
            raise FormatError(f"chunk {digest.oci}: {error.message}", hint=error.hint) from error
        return ConvertedChunk(StoredChunk(self._writer.put(data), len(data), True), verity_digest(data))

    def _verity_of(self, digest: Digest) -> VerityDigest:
        recorded = self._image.rootfs.verity.get(digest)
        if recorded is not None:
            return recorded
        path = self._image.layout.blob_path(digest)
        hasher, verity = hashlib.sha256(), VerityHasher()
        with storage_errors("read", path), open(self._image.layout.open_blob(digest), "rb", buffering=0) as file:
            while block := file.read(_BLOCK_SIZE):
                hasher.update(block)
                verity.update(block)
        actual = Digest(hasher.digest())
        if actual != digest:
            raise IntegrityError(
                f"blob {path}", expected=digest.hex(), actual=actual.hex(), hint="restore it from a good copy"
            )
        return verity.digest()

    def _needed_chunks(self) -> frozenset[Key]:
        """The chunks that a reader of the image can come across."""
        with self._lock:
            if self._needed is None:
                tree = self._image.tree
                found: set[Key] = set()
                for ino in tree.links().visible:
                    content = tree.inode(ino).content
                    if isinstance(content, RegularFile):
                        found.update((part.blob.digest, part.blob.compressed) for part in content.chunks if part.length)
                self._needed = frozenset(found)
            return self._needed
