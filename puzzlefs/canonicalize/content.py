"""The files of an image → ONE stream of bytes, in a new order.

Chunks are loaded by a few threads ahead of the one that cuts: read, hashed against the name, measured, decompressed.
Which come next is known from the metadata, so the order of the files is what bounds the work, not the host's latency.
Memory is bounded by the number of chunks under way and a small cache of those just used (small files are neighbours in
their chunk in the old order as well as, mostly, in the new one).

A chunk of zeros is not copied and cut again: ``StreamCutter.zeros`` knows where zeros are cut. So a hole of an image
costs a look at its references. Chunks that are larger than any builder's are read in place, part by part.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from puzzlefs.blobs import LoadBudget
from puzzlefs.builder.stream import StreamCutter
from puzzlefs.builder.workers import started_pool
from puzzlefs.canonicalize.lining import LiningPipeline, WholeChunk
from puzzlefs.canonicalize.renumber import ImageFile
from puzzlefs.compression import decompress_chunk
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, InvalidArgumentError, PuzzlefsError
from puzzlefs.image import Image
from puzzlefs.image_commit import StoredChunk
from puzzlefs.lru import WeightedLru
from puzzlefs.model import FileChunk, RegularFile
from puzzlefs.verity import verity_digest

USUAL_CONTENT: Final = 4 << 20
"""Bytes of the largest chunk that is held in memory as a whole; builders make them of 1 MiB at most."""

_CACHE_SIZE: Final = 16 << 20
_CHUNKS_AHEAD: Final = 8
_PARTS_AHEAD: Final = 4096
_WINDOW: Final = 1 << 20
_ZEROS: Final = bytes(USUAL_CONTENT)

Key = tuple[Digest, bool]
"""A chunk: its blob, and whether that is compressed."""


@dataclass(frozen=True, slots=True)
class LoadedChunk:
    """A chunk of usual size, verified.

    Attributes:
        content: uncompressed.
        stored_size: bytes of the blob.
        verity: the fs-verity digest of the stored bytes.
        is_zeros: whether the content is nothing but zeros.
    """

    content: bytes
    stored_size: int
    verity: VerityDigest
    is_zeros: bool


def load_chunk(image: Image, key: Key) -> tuple[LoadedChunk, bytes] | None:
    """A chunk, and its stored bytes; ``None`` if it is so large, or so malformed, that it takes ``view_chunk``.

    Raises:
        BlobNotFoundError: if the blob is missing.
        IntegrityError: if it is not what its name says.
        StorageError: if the host cannot read it.
    """
    digest, compressed = key
    try:
        stored = image.blobs.read(digest, limit=USUAL_CONTENT)
        content = decompress_chunk(stored, limit=USUAL_CONTENT) if compressed else stored
    except FormatError:
        return None
    return LoadedChunk(content, len(stored), verity_digest(stored), _ZEROS.startswith(content)), stored


class _Loader:
    """Loads chunks ahead. A context manager; for one thread."""

    def __init__(self, image: Image, workers: int) -> None:
        self._image = image
        self._pool = started_pool(workers)
        self._under_way: dict[Key, Future[LoadedChunk | None]] = {}
        self._recent: WeightedLru[Key, LoadedChunk] = WeightedLru(_CACHE_SIZE)
        self._unusual: set[Key] = set()

    def has_room(self) -> bool:
        return len(self._under_way) < _CHUNKS_AHEAD

    def want(self, key: Key) -> None:
        """Begin to load a chunk that will be asked for."""
        if key not in self._under_way and key not in self._unusual and self._recent.get(key) is None:
            self._under_way[key] = self._pool.submit(self._load, key)

    def take(self, key: Key, budget: LoadBudget) -> LoadedChunk | None:
        """The chunk; ``None`` for one of unusual size."""
        loaded = self._recent.get(key)
        if loaded is not None or key in self._unusual:
            return loaded
        future = self._under_way.pop(key, None)
        loaded = self._load(key) if future is None else future.result()
        if loaded is None:
            self._unusual.add(key)
        else:
            budget.spend(len(loaded.content))
            self._recent.put(key, loaded, len(loaded.content))
        return loaded

    def _load(self, key: Key) -> LoadedChunk | None:
        found = load_chunk(self._image, key)
        return None if found is None else found[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class ContentReader:
    """Appends the files of an image to a stream."""

    def __init__(
        self,
        image: Image,
        files: Sequence[ImageFile],
        cutter: StreamCutter,
        pipeline: LiningPipeline,
        *,
        takes_over: bool | None,
        cut_at_files: int = 0,
        workers: int,
    ) -> None:
        """A reader of ``files``, in their order.

        Args:
            image: the image that they are in.
            files: the files.
            cutter: takes the stream.
            pipeline: the one behind the cutter, which is told of stored chunks that can line up.
            takes_over: which chunks those are: the compressed ones (``True``), the raw ones (``False``), or none.
            cut_at_files: files of so many bytes or more, if it is not 0, have borders.
            workers: threads that load.
        """
        self._image = image
        self._files = files
        self._cutter = cutter
        self._pipeline = pipeline
        self._takes_over = takes_over
        self._cut_at_files = cut_at_files
        self._workers = workers
        self._position = 0
        self._zeros = 0  # bytes at the end of the stream that the cutter has not been given yet
        # The stored chunk that the stream has had from its first byte on, where that was, and how far it got.
        self._current: tuple[Key, int, int] | None = None

    def run(self) -> None:
        """Append the content of all files to the stream, and end it.

        Raises:
            NotFoundError: if a blob is missing; this and the following name the file.
            FormatError: if the image is malformed there.
            IntegrityError: if a blob is not what its name says.
            StorageError: if the host cannot read a blob, or a chunk cannot be stored.
        """
        last: ImageFile | None = None
        budget = LoadBudget(0)
        with _Loader(self._image, self._workers) as loader:
            for file, part in self._parts(loader):
                if file is not last:
                    self._border(last)
                    self._border(file)
                    last = file
                    budget = LoadBudget.for_reading(file.size)
                self._append(file, part, loader, budget)
        self._border(last)
        self._append_zeros()
        self._cutter.finish()

    def _parts(self, loader: _Loader) -> Iterator[tuple[ImageFile, FileChunk]]:
        """Every part of every file, in order; the chunks of those that follow are on their way."""
        source = parts_of(self._image, self._files)
        ahead: deque[tuple[ImageFile, FileChunk]] = deque()
        while True:
            while not ahead or (len(ahead) < _PARTS_AHEAD and loader.has_room()):
                item = next(source, None)
                if item is None:
                    break
                loader.want((item[1].blob.digest, item[1].blob.compressed))
                ahead.append(item)
            if not ahead:
                return
            yield ahead.popleft()

    def _border(self, file: ImageFile | None) -> None:
        if file is not None and 0 < self._cut_at_files <= file.size:
            self._append_zeros()
            self._cutter.border()

    def _append(self, file: ImageFile, part: FileChunk, loader: _Loader, budget: LoadBudget) -> None:
        blob, length = part.blob, part.length
        key = (blob.digest, blob.compressed)
        with self._naming(file):
            loaded = loader.take(key, budget)
        end = blob.offset + length
        if loaded is None or end > len(loaded.content):
            self._append_in_place(file, part, budget)
        elif loaded.is_zeros:
            self._current = None
            self._zeros += length
        else:
            self._look_for_whole(key, loaded, blob.offset, length)
            with memoryview(loaded.content) as view:
                self._append_bytes(view[blob.offset : end])
        self._position += length

    @contextlib.contextmanager
    def _naming(self, file: ImageFile) -> Iterator[None]:
        """Say in errors which file cannot be read."""
        try:
            yield
        except PuzzlefsError as error:
            error.message = f"cannot read {file.shown()} of {self._image.reference}: {error.message}"
            raise

    def _append_in_place(self, file: ImageFile, part: FileChunk, budget: LoadBudget) -> None:
        """Append a part of a chunk that is too large to be held, or too short for its part."""
        self._current = None
        blob = part.blob
        for start in range(0, part.length, _WINDOW):
            size = min(_WINDOW, part.length - start)
            with self._naming(file):
                view = self._image.blobs.view_chunk(blob.digest, blob.compressed, blob.offset + start, size, budget)
            self._append_bytes(view)

    def _append_zeros(self) -> None:
        """Append the zeros that have come together: all at once, or each chunk of them would be cut again."""
        zeros, self._zeros = self._zeros, 0
        self._cutter.zeros(zeros)

    def _append_bytes(self, data: memoryview) -> None:
        self._append_zeros()
        start = 0
        while start < len(data):
            with self._cutter.space() as space:
                step = min(len(space), len(data) - start)
                space[:step] = data[start : start + step]
            self._cutter.advance(step)
            start += step

    def _look_for_whole(self, key: Key, loaded: LoadedChunk, offset: int, length: int) -> None:
        """Tell the pipeline when a stored chunk has come by from its first byte to its last."""
        if not offset:
            self._current = (key, self._position, 0)
        if self._current is None or self._current[0] != key or self._current[2] != offset:
            self._current = None
            return
        start, reached = self._current[1], offset + length
        self._current = (key, start, reached)
        digest, compressed = key
        if reached == len(loaded.content) and compressed is self._takes_over:
            chunk = StoredChunk(digest, loaded.stored_size, compressed)
            self._pipeline.expect(WholeChunk(start, reached, chunk, loaded.verity))


def parts_of(image: Image, files: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, FileChunk]]:
    """Every part of ``files`` that has a byte, in order.

    Raises:
        FormatError: at a malformed one.
    """
    for file in files:
        content = image.tree.inode(file.ino).content
        if not isinstance(content, RegularFile):
            raise InvalidArgumentError(f"{file.shown()} of {image.reference} is not a regular file")
        for part in content.chunks:
            if part.length:
                yield file, part
