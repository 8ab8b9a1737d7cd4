"""The build cache: what a build remembers of its source, so that the next one need not read it again.

Of each regular file of the stream it holds the identity that the scan saw (device, inode, size, times of modification
and change) and whether it had extended attributes, and of the stream where it was cut and what each chunk was stored
as. Which chunks follow from that for another tree is worked out in ``reuse``. It also holds what became of all of it:
the fingerprint of the metadata and the blobs that they were stored as, which a tree without any change has again.

It is a hint, never a source of truth:

* A file of it is for one source directory and one way of making chunks, both named in its head. Another one, a torn or
  damaged one (there is a checksum), one that somebody else owns or may write to: no cache. Nothing of that is an error.
* A file that was changed in the clock tick in which the build began, or later, could change once more and look the
  same. Such a *racy* file is remembered without its identity, so the next build reads it again.
* Only file systems that the kernel stamps with the time of every change are remembered. On others, a read-only image
  for example, another file can have the same number, size and times tomorrow.
* It is kept apart from the layout: device and inode numbers mean nothing elsewhere, and what travels stays the same
  with and without it.

The file: head (magic, key, checksum of the rest, four counts), then columns in the machine's own byte order:
identities of the files, whether they have xattrs, the sequence of chunks as numbers of distinct ones, and of each
distinct chunk its length, its stored size, whether it is compressed, its digest, its fs-verity digest; then the
fingerprint, the image's digest, its format version, and digest and size of the manifest and of each blob of metadata.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import secrets
import stat
import struct
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

import zstandard

from puzzlefs._version import __version__
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.scan import IDENTITY_SIZE, ScannedTree, SourceFile, identity_parts
from puzzlefs.builder.source import SourceTree
from puzzlefs.builder.storage import Storage
from puzzlefs.chunking import LARGEST_AVERAGE, ChunkerName
from puzzlefs.compression.zstd import SEEKABLE_SINCE_VERSION
from puzzlefs.digest import SHA256_SIZE, Digest, VerityDigest
from puzzlefs.image_commit import CommittedImage, StoredChunk

log = logging.getLogger("puzzlefs.builder")

_MAGIC = b"PFSBC\x00\x00\x03"
"""The last byte is the version: a change of anything below, of ``identity_of``, or of how an image is encoded needs
another."""

_head = struct.Struct("=8s32s32sQQQQ")
_image = struct.Struct("=32s32sQ")
_blob = struct.Struct("=32sQ")
_MAX_COUNT: Final = 1 << 31
_MAX_SIZE: Final = 4 << 30
_SUFFIX: Final = ".cache"
_MAX_FILES: Final = 64
"""Caches in one directory; beyond that, those that were not used for the longest time are removed."""

_TICK_NS: Final = 20_000_000
"""Clocks of file systems stand still between two ticks of the kernel, 10 ms at most; twice that, to be safe."""
_COARSE_TICK_NS: Final = 3_000_000_000
"""The same for file systems that keep whole seconds, or two of them."""
_SECOND_NS: Final = 10**9


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a build remembers.

    Attributes:
        identities: of the files of the stream in its order, one after the other; of a racy one only the size.
        starts: where each file begins in the stream, and where the last one ends.
        sequence: the chunks of the stream, as numbers of distinct ones.
        ends: where each of them ends in the stream.
        lengths: of each distinct chunk, its bytes in the stream.
        sizes: its stored bytes.
        compressed: whether they are zstd, as 0 or 1.
        digests: their sha256, one after the other.
        verity: their fs-verity digests, likewise.
        xattrs: for each file 1 if it has extended attributes, else 0.
        fingerprint: that of the scan, together with which
        image: what was committed.
    """

    identities: bytes
    starts: Sequence[int]
    sequence: array[int]
    ends: array[int]
    lengths: array[int]
    sizes: array[int]
    compressed: bytes
    digests: bytes
    verity: bytes
    xattrs: bytes
    fingerprint: bytes
    image: CommittedImage

    def is_of(self, found: ScannedTree) -> bool:
        """Whether nothing has changed since: the tree has the same metadata, and none of its files another content."""
        return self.fingerprint == found.fingerprint and self.identities == identities_of(found.files)

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """Digest and size of each distinct chunk as it was stored."""
        for number, size in enumerate(self.sizes):
            yield Digest(self.digests[number * SHA256_SIZE : (number + 1) * SHA256_SIZE]), size

    def without_xattrs(self) -> frozenset[bytes]:
        """Identities of the files that had no extended attributes, and so have none as long as they have these."""
        borders = range(0, len(self.identities), IDENTITY_SIZE)
        return frozenset(
            self.identities[start : start + IDENTITY_SIZE]
            for start, has_xattrs in zip(borders, self.xattrs, strict=True)
            if not has_xattrs
        )

    @property
    def size(self) -> int:
        """Bytes of the stream."""
        return self.ends[-1] if self.ends else 0

    def chunk(self, number: int) -> StoredChunk:
        """What the distinct chunk of this number was stored as."""
        digest = Digest(self.digests[number * SHA256_SIZE : (number + 1) * SHA256_SIZE])
        return StoredChunk(digest, self.sizes[number], bool(self.compressed[number]))

    def verity_of(self, number: int) -> VerityDigest:
        """The fs-verity digest of the distinct chunk of this number."""
        return VerityDigest(self.verity[number * SHA256_SIZE : (number + 1) * SHA256_SIZE])


class BuildCache:
    """The file that remembers builds of one source directory in one way of making chunks.

    Attributes:
        path: where it is, or would be.
    """

    def __init__(
        self,
        directory: Path,
        tree: SourceTree,
        *,
        chunker: ChunkerName,
        format_version: int,
        storage: Storage,
        cross_mounts: bool,
    ) -> None:
        """The cache in ``directory`` for building from ``tree``; nothing is read or made yet."""
        way: tuple[object, ...] = (__version__, chunker, storage)
        if storage.compression:  # another library may compress the same bytes to others
            way += (format_version >= SEEKABLE_SINCE_VERSION, zstandard.ZSTD_VERSION)
        file_system = _type_of(tree.fd)
        place = (os.fsencode(os.path.realpath(tree.root)), file_system, os.fstatvfs(tree.fd).f_fsid, _privileges())
        self._key = hashlib.sha256(repr((way, place)).encode()).digest()
        self.path = directory / (self._key.hex()[:32] + _SUFFIX)
        self._loaded = b""
        self._is_trusted = file_system in _STAMPED
        # Files of an overlay report the devices below it. Otherwise another device is another mount.
        any_device = file_system == _OVERLAY and not cross_mounts
        self._device = None if any_device else os.fstat(tree.fd).st_dev

    def load(self) -> Remembered | None:
        """What the last build remembered; ``None`` if there is nothing, or nothing that can be relied on."""
        if not self._is_trusted:
            log.debug("there is no build cache for this kind of file system")
            return None
        try:
            self._loaded = _read_own(self.path)
            remembered = _parse(self._loaded, self._key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._loaded = b""
            log.debug("the build cache %s is not used: %s", self.path, error)
            return None
        return remembered

    def save(
        self,
        found: ScannedTree,
        stream: FileStream,
        verity: Mapping[Digest, VerityDigest],
        image: CommittedImage,
        began_ns: int,
    ) -> None:
        """Remember a build; where that cannot be done, there is no cache the next time.

        Args:
            found: what the scan found.
            stream: how it was cut and stored.
            verity: the fs-verity digests of its chunks.
            image: what was committed.
            began_ns: ``clock_ns`` before the first file was looked at.
        """
        if not self._is_trusted:
            return
        known = [_to_remember(file.identity, began_ns, self._device) for file in found.files]
        data = _encode(self._key, known, found, stream, verity, image)
        try:
            if data == self._loaded:
                self.keep()
                return
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self.path, data)
            _prune(self.path.parent)
        except OSError as error:
            log.debug("the build cache %s is not written: %s", self.path, error)

    def keep(self) -> None:
        """Say that what was loaded still holds, so that it is not taken for an old cache that nobody uses."""
        with contextlib.suppress(OSError):
            os.utime(self.path)


def identities_of(files: Sequence[SourceFile]) -> bytes:
    """The identities of files, one after the other."""
    return b"".join([file.identity for file in files])


def clock_ns() -> int:
    """Now, by the clock that the kernel stamps files with."""
    return time.clock_gettime_ns(_CLOCK)


_CLOCK: Final = 5
"""``CLOCK_REALTIME_COARSE`` of ``linux/time.h``, which Python does not name."""


_EXT, _XFS, _BTRFS, _F2FS, _TMPFS = 0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994
_OVERLAY, _ZFS, _BCACHEFS = 0x794C7630, 0x2FC12FC1, 0xCA451A4E
_STAMPED: Final = frozenset({_EXT, _XFS, _BTRFS, _F2FS, _TMPFS, _OVERLAY, _ZFS, _BCACHEFS})
"""File systems (``f_type`` of statfs(2)) that set the time of change themselves, whenever a file changes."""

_libc = ctypes.CDLL(None, use_errno=True)


def _privileges() -> tuple[bytes, bytes]:
    """What decides which extended attributes this process sees: its capabilities, and in which user namespace."""
    try:
        lines = Path("/proc/self/status").read_bytes().splitlines()
        effective = next((line for line in lines if line.startswith(b"CapEff:")), b"")
        return effective, os.fsencode(Path("/proc/self/ns/user").readlink())
    except OSError:
        return b"", b""


def _type_of(fd: int) -> int | None:
    """The ``f_type`` of the file system that holds ``fd``: the first word of ``struct statfs``."""
    status = (ctypes.c_long * 64)()
    return status[0] & 0xFFFFFFFF if _libc.fstatfs(fd, status) == 0 else None


def _to_remember(identity: bytes, began_ns: int, device: int | None) -> bytes:
    """``identity``, or, of a file that may change and look the same, its size alone."""
    its_device, mtime_ns, ctime_ns = identity_parts(identity)
    trusted = device is None or its_device == device
    for time_ns in (mtime_ns, ctime_ns):
        tick = _TICK_NS if time_ns % _SECOND_NS else _COARSE_TICK_NS
        trusted = trusted and time_ns < began_ns - tick
    return identity if trusted else bytes(16) + identity[16:24] + bytes(IDENTITY_SIZE - 24)


# ---- bytes


def _encode(
    key: bytes,
    identities: Sequence[bytes],
    found: ScannedTree,
    stream: FileStream,
    verity: Mapping[Digest, VerityDigest],
    image: CommittedImage,
) -> bytes:
    numbers: dict[tuple[Digest, bool], int] = {}
    distinct: list[StoredChunk] = []
    sequence, lengths = array("I"), array("I")
    for chunk, length in zip(stream.chunks, stream.lengths(), strict=True):
        number = numbers.setdefault((chunk.digest, chunk.compressed), len(distinct))
        if number == len(distinct):
            distinct.append(chunk)
            lengths.append(length)
        sequence.append(number)
    body = b"".join(
        (
            *identities,
            bytes([file.has_xattrs for file in found.files]),
            sequence.tobytes(),
            lengths.tobytes(),
            array("I", [chunk.size for chunk in distinct]).tobytes(),
            bytes([chunk.compressed for chunk in distinct]),
            *[chunk.digest for chunk in distinct],
            *[verity[chunk.digest] for chunk in distinct],
            _image.pack(found.fingerprint, image.verity, image.version),
            *[_blob.pack(*blob) for blob in (image.manifest, *image.metadata)],
        )
    )
    counts = (len(identities), len(sequence), len(distinct), 1 + len(image.metadata))
    return _head.pack(_MAGIC, key, hashlib.sha256(body).digest(), *counts) + body


def _parse(data: bytes, key: bytes) -> Remembered:
    """The content of a cache for ``key``.

    Raises:
        ValueError: if it is none.
    """
    if len(data) < _head.size:
        raise ValueError("it is too short")
    magic, its_key, checksum, *counts = _head.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("it is of another version")
    if its_key != key:
        raise ValueError("it is of another build")
    if max(counts) > _MAX_COUNT:
        raise ValueError("its counts are absurd")
    files, chunks, distinct, blobs = counts
    digests = distinct * SHA256_SIZE
    widths = (
        *(files * IDENTITY_SIZE, files, 4 * chunks, 4 * distinct, 4 * distinct, distinct, digests, digests),
        *(_image.size, blobs * _blob.size),
    )
    if len(data) != _head.size + sum(widths):
        raise ValueError("its size is not what its counts say")
    with memoryview(data) as view, view[_head.size :] as body:
        if hashlib.sha256(body).digest() != checksum:
            raise ValueError("its checksum is wrong")
    borders = list(accumulate(widths, initial=_head.size))
    columns = [data[start:end] for start, end in pairwise(borders)]
    identities, xattrs, *_, compressed, digest_column, verity_column, image_column, blob_column = columns
    sequence, lengths, sizes = (array("I", column) for column in columns[2:5])
    if chunks and max(sequence) >= distinct:
        raise ValueError("it names a chunk that it does not have")
    if distinct and not (min(lengths) > 0 and max(lengths) <= 2 * LARGEST_AVERAGE and max(compressed) <= 1):
        raise ValueError("it has an impossible chunk")
    starts = list(accumulate(array("Q", identities)[2 :: IDENTITY_SIZE // 8], initial=0))
    ends = array("Q", accumulate(map(lengths.__getitem__, sequence)))
    if starts[-1] != (ends[-1] if ends else 0):
        raise ValueError("its chunks are not as long as its files")
    if not blobs:
        raise ValueError("it has no manifest")
    fingerprint, verity, version = _image.unpack(image_column)
    manifest, *metadata = ((Digest(digest), size) for digest, size in _blob.iter_unpack(blob_column))
    image = CommittedImage(version, VerityDigest(verity), manifest, tuple(metadata))
    return Remembered(
        *(identities, starts, sequence, ends, lengths, sizes, compressed, digest_column, verity_column),
        xattrs=xattrs,
        fingerprint=fingerprint,
        image=image,
    )


# ---- files


def _read_own(path: Path) -> bytes:
    """The content of a file that nobody else can have written.

    Raises:
        OSError: as the host reports it.
        ValueError: if it is not such a file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("others may write to it")
        if status.st_size > _MAX_SIZE:
            raise ValueError("it is too large")
        return file.read(status.st_size)


def _replace(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path`` at once. It need not survive a power cut: what is left then fails its checksum."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _prune(directory: Path) -> None:
    caches = sorted(
        (path for path in directory.iterdir() if path.suffix == _SUFFIX), key=lambda path: path.lstat().st_mtime
    )
    for path in caches[:-_MAX_FILES]:
        path.unlink()
