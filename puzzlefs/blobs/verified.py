"""Reading blobs so that no byte comes back unverified.

``BlobVerifier`` decides what "verified" means for one image; ``VerifiedBlobs`` reads through it.

* *user*: the bytes are hashed and must have the sha256 that names the blob. The name itself was read from a level above
  that has been verified before (manifest → rootfs → inode vectors → chunks).
* *kernel*: the file must have fs-verity enabled, and the kernel's measurement must equal the digest that the verified
  level above records. From then on the kernel checks each page that is read, and nobody can write to the file.
* *auto*: *kernel* where the file has fs-verity enabled and a digest is recorded, else *user*.

The bytes that are hashed are the bytes that are returned: a blob is read into memory, hashed there and served from
there, so replacing or changing the file meanwhile changes nothing. Blobs too large for that (no known writer makes
such chunks) are hashed once and read in pieces, as long as the file's identity and change time stay what they were.

Thread safe. The cache is bounded in bytes, whatever an image says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Final, Literal

from puzzlefs.blobs.host import storage_errors
from puzzlefs.blobs.layout import Layout
from puzzlefs.compression import decompress_chunk
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, IntegrityError, VerityNotEnabledError, VerityUnavailableError
from puzzlefs.lru import WeightedLru
from puzzlefs.verity import measure, verity_digest

VerityMode = Literal["auto", "kernel", "user"]
"""How an image is verified below its anchor."""

MAX_CHUNK_CONTENT: Final = 64 << 20
"""Bytes of the largest content that a compressed chunk may have; the builders' chunks have at most 256 KiB."""

_CACHE_SIZE: Final = 16 << 20
_IN_MEMORY_SIZE: Final = 4 << 20
_MAX_IDENTITIES: Final = 4096
_COPY_SIZE: Final = 1 << 20

_Identity = tuple[int, int, int, int, int]


class BlobVerifier:
    """What has to hold before a file counts as a blob. Immutable; thread safe."""

    def __init__(self, mode: VerityMode, recorded: Mapping[Digest, VerityDigest] | None = None) -> None:
        """A verifier in ``mode``; ``recorded`` maps blobs to the fs-verity digests that a verified level names."""
        self._mode = mode
        self._recorded = recorded

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
        if self._mode == "user":
            return False
        if expected is None:
            if self._mode == "kernel":
                raise IntegrityError(subject, expected="a recorded fs-verity digest", actual="none in the image")
            return False
        try:
            measured = measure(fd)
        except (VerityNotEnabledError, VerityUnavailableError) as error:
            if self._mode == "auto":
                return False
            raise type(error)(f"{subject}: {error.message}", hint=error.hint) from error
        if measured != expected:
            raise IntegrityError(f"{subject} (measured by the kernel)", expected=expected.hex(), actual=measured.hex())
        return True

    def recorded(self, digest: Digest) -> VerityDigest | None:
        """The fs-verity digest that the image records for a blob."""
        return None if self._recorded is None or self._mode == "user" else self._recorded.get(digest)

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


class VerifiedBlobs:
    """The blobs of one layout, each verified before its bytes are returned."""

    def __init__(self, layout: Layout, verifier: BlobVerifier) -> None:
        self._layout = layout
        self._verifier = verifier
        self._contents: WeightedLru[Digest, bytes] = WeightedLru(_CACHE_SIZE)
        self._identities: WeightedLru[Digest, _Identity] = WeightedLru(_MAX_IDENTITIES)

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
        with storage_errors("read", self._layout.blob_path(digest)):
            fd = self._layout.open_blob(digest)
            try:
                size = os.fstat(fd).st_size
                if size > limit:
                    raise FormatError(f"blob {digest.oci} has {size} bytes, more than the {limit} that are allowed")
                vouched = self._verifier.vouched_by_kernel(
                    fd, self._subject(digest), expected or self._verifier.recorded(digest)
                )
                data = _read_all(fd, size)
            finally:
                os.close(fd)
        if not vouched:
            self._compare(digest, Digest.of(data))
        return data

    def read_chunk(self, digest: Digest, compressed: bool, offset: int, length: int) -> bytes:
        """A part of a chunk's uncompressed content.

        Args:
            digest: the stored blob.
            compressed: whether it is zstd.
            offset: where the part begins, in bytes of the uncompressed content.
            length: how many bytes it has.

        Raises:
            BlobNotFoundError: if the blob is missing.
            FormatError: if the chunk is shorter than the part, or malformed.
            IntegrityError: if the blob is not what its name says.
            StorageError: if the host cannot read it.
        """
        content = self._contents.get(digest)
        if content is None:
            content = self._load(digest, compressed)
            if content is None:
                return self._read_in_place(digest, offset, length)
        if offset + length > len(content):
            raise _too_short(digest, len(content), offset + length)
        return content[offset : offset + length]

    def is_cached(self, digest: Digest) -> bool:
        """Whether ``read_chunk`` of this blob would need no I/O now."""
        return digest in self._contents

    @property
    def layout(self) -> Layout:
        """The layout that is read from."""
        return self._layout

    # ---- inside

    def _load(self, digest: Digest, compressed: bool) -> bytes | None:
        """The content of a chunk, kept in the cache; ``None`` for a raw blob that is too large for that."""
        if not compressed:
            size = self._layout.blob_size(digest)
            if size is not None and size > _IN_MEMORY_SIZE:
                return None
        content = self.read(digest, limit=MAX_CHUNK_CONTENT)
        if compressed:
            content = decompress_chunk(content, limit=MAX_CHUNK_CONTENT)
        self._contents.put(digest, content, len(content))
        return content

    def _read_in_place(self, digest: Digest, offset: int, length: int) -> bytes:
        with storage_errors("read", self._layout.blob_path(digest)):
            fd = self._layout.open_blob(digest)
            try:
                status = os.fstat(fd)
                if offset + length > status.st_size:
                    raise _too_short(digest, status.st_size, offset + length)
                recorded = self._verifier.recorded(digest)
                if not self._verifier.vouched_by_kernel(fd, self._subject(digest), recorded):
                    self._hash_once(fd, digest, _identity(status))
                data = os.pread(fd, length, offset)
                if _identity(os.fstat(fd)) != _identity(status) or len(data) != length:
                    raise IntegrityError(self._subject(digest), expected=digest.hex(), actual="a file that changes")
                return data
            finally:
                os.close(fd)

    def _hash_once(self, fd: int, digest: Digest, identity: _Identity) -> None:
        if self._identities.get(digest) == identity:
            return
        hasher = hashlib.sha256()
        offset = 0
        while block := os.pread(fd, _COPY_SIZE, offset):
            hasher.update(block)
            offset += len(block)
        self._compare(digest, Digest(hasher.digest()))
        self._identities.put(digest, identity, 1)

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


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_all(fd: int, size: int) -> bytes:
    data = os.read(fd, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    while block := os.read(fd, _COPY_SIZE):
        parts.append(block)
        if sum(map(len, parts)) > size:
            break  # it grew: the digest will not fit
    return b"".join(parts)


def _too_short(digest: Digest, size: int, needed: int) -> FormatError:
    return FormatError(f"chunk {digest.oci} has {size} bytes, but a file refers to {needed}")
