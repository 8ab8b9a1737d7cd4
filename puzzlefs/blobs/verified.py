"""Reading blobs so that no byte comes back unverified.

``BlobVerifier`` decides what "verified" means for one image; ``VerifiedBlobs`` reads through it.

* *user*: the bytes are hashed and must have the sha256 that names the blob. The name itself was read from a level above
  that has been verified before (manifest → rootfs → inode vectors → chunks).
* *kernel*: the file must have fs-verity enabled, and the kernel's measurement must equal the digest that the verified
  level above records. From then on the kernel checks each page that is read, and nobody can write to the file.
* *auto*: *kernel* where the file has fs-verity enabled and a digest is recorded, else *user*.

The bytes that are hashed are the bytes that are returned: a blob is read into memory, hashed there and served from
there, so replacing or changing the file meanwhile changes nothing. Raw blobs too large for that (no known writer makes
such chunks) are hashed once as a whole and block by block in the same pass; later each block that is read must have the
hash that it had then.

Thread safe. Memory is bounded, whatever an image says: caches by bytes, contents by their size. So is time: a chunk of
a few bytes can stand for megabytes, and a file can consist of thousands of those, so a caller who reads for somebody
else passes a ``LoadBudget``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple, Self, TypeVar

from puzzlefs.blobs.host import read_bounded, storage_errors
from puzzlefs.blobs.layout import Layout
from puzzlefs.blobs.overlapped import Content, read_and_hash, read_then_hash
from puzzlefs.compression import decompress_chunk
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, IntegrityError, PuzzlefsError, VerityNotEnabledError, VerityUnavailableError
from puzzlefs.lru import WeightedLru
from puzzlefs.verity import find_measurement, is_available, measure, verity_digest

_T = TypeVar("_T")
_Way = Callable[[int, str, int], tuple[_T, Digest]]
"""Reads an open file, given what to call it and the bytes that it may have; gives the content, and its digest."""

VerityMode = Literal["auto", "kernel", "user"]
"""How an image is verified below its anchor."""

MAX_CHUNK_CONTENT: Final = 64 << 20
"""Bytes of the largest content that a compressed chunk may have; the builders' chunks have at most 256 KiB."""

MAX_RAW_SIZE: Final = 1 << 30
"""Bytes of the largest chunk that is stored raw."""

_CACHE_SIZE: Final = 8 << 20
_ITEM_SIZE: Final = 256
"""About what a cached item takes besides its bytes."""
_IN_MEMORY_SIZE: Final = 4 << 20
_USUAL_SIZE: Final = 256 << 10
"""Bytes of the largest chunk that builders make."""
_BLOCK_SIZE: Final = 1 << 20
_MAX_BLOCKS: Final = 1 << 14
_HASH_SIZE: Final = 72
"""About what a digest takes in memory."""
_UNBOUNDED: Final = 1 << 62
_FREE_LOAD: Final = 512 << 20
_LOAD_FACTOR: Final = 8


class LoadBudget:
    """How many bytes of chunks one request may still load. For one thread."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        """A budget of ``size`` bytes."""
        self._left = size

    @classmethod
    def for_reading(cls, size: int) -> Self:
        """What a read of ``size`` bytes may load: so many bytes, and a few times ``size``.

        It takes what it asked for and the rest of the first and the last chunk where chunks are cut out of a stream of
        files.
        """
        return cls(_FREE_LOAD + _LOAD_FACTOR * size)

    def spend(self, size: int) -> None:
        """Take note that ``size`` bytes have been loaded.

        Raises:
            FormatError: if that is more than was left.
        """
        self._left -= size
        if self._left < 0:
            raise FormatError("the parts of a file are absurdly small compared with the chunks that they are in")


class BlobVerifier:
    """What has to hold before a file counts as a blob. Thread safe."""

    def __init__(self, mode: VerityMode, recorded: Mapping[Digest, VerityDigest] | None = None) -> None:
        """A verifier in ``mode``; ``recorded`` maps blobs to the fs-verity digests that a verified level names."""
        self._mode = mode
        self._recorded = recorded
        self._asks_kernel = mode != "user"
        self._knows_host = False

    @property
    def asks_kernel(self) -> bool:
        """Whether the kernel is asked about a blob: never in *user*, and in *auto* until it has been found that it has
        no fs-verity there."""
        return self._asks_kernel

    def vouched_by_kernel(self, fd: int, subject: str, expected: VerityDigest | None) -> bool:
        """Whether the kernel vouches for the open file, so that nothing needs hashing here.

        Args:
            fd: the open file.
            subject: what it is, for messages.
            expected: the fs-verity digest that it must have, ``None`` where none is recorded.

        Raises:
            IntegrityError: if the measurement differs, or the mode is *kernel* and nothing is recorded.
            VerityNotEnabledError: if the mode is *kernel* and the file has no fs-verity.
            VerityUnavailableError: if the mode is *kernel* and the kernel or the file system cannot do fs-verity.
        """
        if not self._asks_kernel:
            return False
        if expected is None:
            if self._mode == "kernel":
                raise IntegrityError(subject, expected="a recorded fs-verity digest", actual="none in the image")
            return False
        measured = self._measured(fd, subject)
        if measured is None:
            return False
        if measured != expected:
            raise IntegrityError(f"{subject} (measured by the kernel)", expected=expected.hex(), actual=measured.hex())
        return True

    def _measured(self, fd: int, subject: str) -> VerityDigest | None:
        if self._mode == "auto":
            measured = find_measurement(fd)
            if measured is None and not self._knows_host:
                self._asks_kernel = is_available(fd)
                self._knows_host = True
            return measured
        try:
            return measure(fd)
        except (VerityNotEnabledError, VerityUnavailableError) as error:
            raise type(error)(f"{subject}: {error.message}", hint=error.hint) from error

    def recorded(self, digest: Digest) -> VerityDigest | None:
        """The fs-verity digest that the image records for a blob."""
        return self._recorded.get(digest) if self._recorded is not None and self._asks_kernel else None

    def check_anchor(self, fd: int, data: bytes, subject: str, expected: VerityDigest) -> None:
        """Check the manifest, whose fs-verity digest the user named: the kernel's word, or the digest of ``data``.

        Raises:
            IntegrityError: if it is another manifest.
            VerityNotEnabledError: as ``vouched_by_kernel``.
            VerityUnavailableError: as ``vouched_by_kernel``.
        """
        if not self.vouched_by_kernel(fd, subject, expected):
            actual = verity_digest(data)
            if actual != expected:
                raise IntegrityError(subject, expected=expected.hex(), actual=actual.hex())


class CacheSize(NamedTuple):
    """What a cache holds.

    Attributes:
        items: how many things.
        size: their bytes, about.
        max_size: the bound on that.
    """

    items: int
    size: int
    max_size: int


class VerifiedBlobs:
    """The blobs of one layout, each verified before its bytes are returned.

    Attributes:
        on_verified: called with each chunk that was verified, by the thread that read it; it must be quick.
    """

    def __init__(self, layout: Layout, verifier: BlobVerifier) -> None:
        self._layout = layout
        self._verifier = verifier
        self.on_verified: Callable[[Digest], object] | None = None
        # With each content, whether it was decompressed: nothing forbids an image to use a blob both ways.
        self._contents: WeightedLru[Digest, tuple[bool, bytes]] = WeightedLru(_CACHE_SIZE)
        self._blocks: WeightedLru[Digest, tuple[bytes, ...]] = WeightedLru(_MAX_BLOCKS)

    def read(self, digest: Digest, *, limit: int, expected: VerityDigest | None = None) -> bytes:
        """The stored bytes of a blob, whole.

        Args:
            digest: the blob.
            limit: bytes that the caller is prepared to hold.
            expected: its fs-verity digest, where the caller knows it from elsewhere than the verifier's record.

        Raises:
            BlobNotFoundError: if it is missing.
            FormatError: if it has more than ``limit`` bytes.
            IntegrityError: if it is not what its name says.
            StorageError: if the host cannot read it.
        """
        return self._read(digest, limit, expected, read_then_hash)

    def read_large(self, digest: Digest, *, limit: int, expected: VerityDigest | None = None) -> Content:
        """As ``read``, for what is likely to be large: read and hashed at the same time, into memory of its own."""
        return self._read(digest, limit, expected, read_and_hash)

    def read_chunk(
        self, digest: Digest, compressed: bool, offset: int, length: int, budget: LoadBudget | None = None
    ) -> bytes:
        """A part of a chunk's uncompressed content, as bytes of its own; otherwise as ``view_chunk``."""
        return bytes(self.view_chunk(digest, compressed, offset, length, budget))

    def view_chunk(
        self, digest: Digest, compressed: bool, offset: int, length: int, budget: LoadBudget | None = None
    ) -> memoryview:
        """A part of a chunk's uncompressed content, without copying it. The view keeps the whole content in memory.

        Args:
            digest: the stored blob.
            compressed: whether it is zstd.
            offset: where the part begins, in bytes of the uncompressed content.
            length: how many bytes it has.
            budget: pays for what has to be loaded.

        Raises:
            BlobNotFoundError: if the blob is missing.
            FormatError: if the chunk is shorter than the part, or malformed, or the budget is used up.
            IntegrityError: if the blob is not what its name says.
            StorageError: if the host cannot read it.
        """
        cached = self._contents.get(digest)
        try:
            if cached is not None and cached[0] == compressed:
                content = cached[1]
            else:
                loaded = self.load(digest, compressed)
                if loaded is None:
                    return memoryview(self._read_in_place(digest, offset, length, budget or LoadBudget(_UNBOUNDED)))
                content = loaded
                if budget is not None:
                    budget.spend(len(content))
            if offset + length > len(content):
                raise _too_short(digest, len(content), offset + length)
        except PuzzlefsError as error:
            error.blob = digest.hex()
            raise
        return memoryview(content)[offset : offset + length]

    def check(self, digest: Digest, *, expected: VerityDigest | None = None, by_name: bool = False) -> int:
        """Read all of a blob and verify it, without keeping any of it; how many bytes it has.

        Where the kernel vouches for it, it checks every page that is read here.

        Args:
            digest: the blob.
            expected: as in ``read``.
            by_name: hash it in any case: no fs-verity digest is recorded for it, and none has to be.

        Raises:
            BlobNotFoundError: if it is missing.
            FormatError: if it is no regular file, or larger than any blob.
            IntegrityError: if it is not what its name says.
            StorageError: if the host cannot read it.
            VerityNotEnabledError: if the kernel has to vouch for it, and it has no fs-verity.
            VerityUnavailableError: if the kernel has to vouch for it, and cannot do that.
        """
        subject = self._subject(digest)
        try:
            with storage_errors("read", self._layout.blob_path(digest)):
                fd = self._layout.open_blob(digest)
                try:
                    vouched = not by_name and self._verifier.vouched_by_kernel(
                        fd, subject, expected or self._verifier.recorded(digest)
                    )
                    size, actual = _hash_all(fd, subject)
                finally:
                    os.close(fd)
            if not vouched:
                self._compare(digest, actual)
        except PuzzlefsError as error:
            error.blob = digest.hex()
            raise
        if self.on_verified is not None:
            self.on_verified(digest)
        return size

    def cache_sizes(self) -> dict[str, CacheSize]:
        """What is in memory: the ``contents`` of chunks, and digests of the ``blocks`` of large ones."""
        contents, blocks = self._contents, self._blocks
        return {
            "contents": CacheSize(len(contents), contents.weight, contents.max_weight),
            "blocks": CacheSize(len(blocks), blocks.weight * _HASH_SIZE, blocks.max_weight * _HASH_SIZE),
        }

    def cached(self, digest: Digest, compressed: bool) -> bytes | None:
        """The content of a chunk if it is in memory."""
        found = self._contents.get(digest)
        return found[1] if found is not None and found[0] == compressed else None

    def will_need(self, digest: Digest) -> None:
        """Have the host read a blob ahead, if it can. Never fails and never waits for the content."""
        with contextlib.suppress(OSError):
            self._layout.advise(digest)

    def is_cached(self, digest: Digest) -> bool:
        """Whether ``read_chunk`` of this blob would need no I/O now (if it is read as zstd or raw as before)."""
        return digest in self._contents

    @property
    def layout(self) -> Layout:
        """The layout that is read from."""
        return self._layout

    def load(self, digest: Digest, compressed: bool) -> bytes | None:
        """The content of a chunk, read and verified now and kept in memory for a while; raises as ``view_chunk``.

        Returns:
            ``None`` for a raw blob that is too large to be in memory; that has not been read.
        """
        content = self._read_quickly(digest)
        if content is None:
            if not compressed:
                with storage_errors("read", self._layout.blob_path(digest)):
                    size = self._layout.blob_size(digest)
                if size is not None and size > _IN_MEMORY_SIZE:
                    return None
            content = self.read(digest, limit=MAX_CHUNK_CONTENT)
        if compressed:
            content = decompress_chunk(content, limit=MAX_CHUNK_CONTENT)
        self._contents.put(digest, (compressed, content), len(content) + _ITEM_SIZE)
        if self.on_verified is not None:
            self.on_verified(digest)
        return content

    # ---- inside

    def _read(self, digest: Digest, limit: int, expected: VerityDigest | None, way: _Way[_T]) -> _T | bytes:
        subject = self._subject(digest)
        with storage_errors("read", self._layout.blob_path(digest)):
            fd = self._layout.open_blob(digest)
            try:
                if self._verifier.vouched_by_kernel(fd, subject, expected or self._verifier.recorded(digest)):
                    return read_bounded(fd, subject, limit)
                data, actual = way(fd, subject, limit)
            finally:
                os.close(fd)
        self._compare(digest, actual)
        return data

    def _read_quickly(self, digest: Digest) -> bytes | None:
        """A blob of the usual kind in as few system calls as can be; ``None`` if ``read`` has to look into it."""
        verifier = self._verifier
        try:
            fd = self._layout.open_blob(digest)
            try:
                vouched = verifier.asks_kernel and verifier.vouched_by_kernel(fd, "", verifier.recorded(digest))
                data = os.read(fd, _USUAL_SIZE)
                is_whole = not vouched or len(data) == os.fstat(fd).st_size
            finally:
                os.close(fd)
        except (PuzzlefsError, OSError):
            return None
        return data if is_whole and (vouched or hashlib.sha256(data).digest() == digest) else None

    def _read_in_place(self, digest: Digest, offset: int, length: int, budget: LoadBudget) -> bytes:
        subject = self._subject(digest)
        with storage_errors("read", self._layout.blob_path(digest)):
            fd = self._layout.open_blob(digest)
            try:
                size = os.fstat(fd).st_size
                if size > MAX_RAW_SIZE:
                    raise FormatError(f"{subject} has {size} bytes, more than the {MAX_RAW_SIZE} that are allowed")
                if self._verifier.vouched_by_kernel(fd, subject, self._verifier.recorded(digest)):
                    data = os.pread(fd, length, offset)
                else:
                    data = self._read_blocks(fd, digest, offset, length, budget)
                if len(data) != length:
                    raise _too_short(digest, size, offset + length)
                if self.on_verified is not None:
                    self.on_verified(digest)
                return data
            finally:
                os.close(fd)

    def _read_blocks(self, fd: int, digest: Digest, offset: int, length: int, budget: LoadBudget) -> bytes:
        known = self._blocks.get(digest)
        if known is None:
            known = self._hash_blocks(fd, digest)
            self._blocks.put(digest, known, len(known))
            budget.spend(len(known) * _BLOCK_SIZE)
        first = offset // _BLOCK_SIZE
        blocks: list[bytes] = []
        for number in range(first, min(-(-(offset + length) // _BLOCK_SIZE), len(known))):
            block = os.pread(fd, _BLOCK_SIZE, number * _BLOCK_SIZE)
            if hashlib.sha256(block).digest() != known[number]:
                raise IntegrityError(self._subject(digest), expected=digest.hex(), actual="a file that changes")
            blocks.append(block)
        budget.spend(len(blocks) * _BLOCK_SIZE)
        start = offset - first * _BLOCK_SIZE
        return b"".join(blocks)[start : start + length]

    def _hash_blocks(self, fd: int, digest: Digest) -> tuple[bytes, ...]:
        whole = hashlib.sha256()
        blocks: list[bytes] = []
        while len(blocks) * _BLOCK_SIZE <= MAX_RAW_SIZE:
            block = os.pread(fd, _BLOCK_SIZE, len(blocks) * _BLOCK_SIZE)
            whole.update(block)
            blocks.append(hashlib.sha256(block).digest())
            if len(block) < _BLOCK_SIZE:
                break
        self._compare(digest, Digest(whole.digest()))
        return tuple(blocks)

    def _compare(self, digest: Digest, actual: Digest) -> None:
        if actual != digest:
            raise IntegrityError(
                self._subject(digest),
                expected=digest.hex(),
                actual=actual.hex(),
                hint="restore it from a good copy",
            )

    def _subject(self, digest: Digest) -> str:
        return f"blob {self._layout.blob_path(digest)}"


def _hash_all(fd: int, subject: str) -> tuple[int, Digest]:
    """How many bytes a file has, and their digest."""
    whole = hashlib.sha256()
    size = 0
    while block := os.pread(fd, _BLOCK_SIZE, size):
        size += len(block)
        if size > MAX_RAW_SIZE:
            raise FormatError(f"{subject} has more than the {MAX_RAW_SIZE} bytes that are allowed")
        whole.update(block)
    return size, Digest(whole.digest())


def _too_short(digest: Digest, size: int, needed: int) -> FormatError:
    return FormatError(f"chunk {digest.oci} has {size} bytes, but a file uses it up to byte {needed}")
