"""Whether blobs are what their names say: presence and size, or every byte, in a few threads.

Both digests of a blob are computed from one read. Hashing drops the interpreter's lock, so threads are enough.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Final

from puzzlefs.blobs import Layout
from puzzlefs.blobs.verified import MAX_CHUNK_CONTENT
from puzzlefs.builder.workers import started_pool
from puzzlefs.compression import decompress_chunk
from puzzlefs.compression.frames import frames_of, parse_seek_table
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import BlobNotFoundError, FormatError, PuzzlefsError
from puzzlefs.fsck.report import Fault
from puzzlefs.fsck.survey import Expected
from puzzlefs.verity import VerityHasher, verity_digest

_IN_MEMORY: Final = 8 << 20
_BLOCK: Final = 1 << 20
_BATCH: Final = 64
_AHEAD: Final = 4
"""Batches for each thread that are handed out before the first of them is taken back."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one blob.

    Attributes:
        fault: what is wrong with it, ``None`` if its bytes are those of its name.
        detail: more about that.
        size: its bytes.
        verity: its fs-verity digest, where one is recorded and it is another one.
        too_short: what to say if its content is shorter than what files take of it, else empty.
    """

    fault: Fault | None
    detail: str
    size: int
    verity: VerityDigest | None = None
    too_short: str = ""


def look_at_blobs(
    layout: Layout, there: Mapping[Digest, os.stat_result], expected: Mapping[Digest, Expected]
) -> Iterator[tuple[Digest, Finding]]:
    """What names and sizes say about blobs, and nothing else; those that are in order are left out.

    Args:
        layout: where they are.
        there: the regular files that were there a moment ago.
        expected: the blobs.
    """
    for digest, blob in expected.items():
        known = there.get(digest)
        if known is not None and not _wrong_size(known.st_size, blob):
            continue
        try:
            status = os.stat(digest.hex(), dir_fd=layout.blobs_fd, follow_symlinks=False)
        except FileNotFoundError:
            yield digest, Finding(Fault.MISSING, "", 0)
            continue
        except OSError as error:
            yield digest, Finding(Fault.UNREADABLE, error.strerror or str(error), 0)
            continue
        if not stat.S_ISREG(status.st_mode):
            yield digest, Finding(Fault.NO_FILE, "", 0)
            continue
        problem = _wrong_size(status.st_size, blob)
        if problem:
            yield digest, Finding(Fault.WRONG_SIZE, problem, status.st_size)


def hash_blobs(
    layout: Layout,
    expected: Mapping[Digest, Expected],
    workers: int,
    progress: Callable[[int], None],
) -> Iterator[tuple[Digest, Finding]]:
    """What the bytes of blobs say; one finding for each, in any order.

    Args:
        layout: where they are.
        expected: the blobs.
        workers: threads.
        progress: told now and then how many bytes are done.
    """
    # By name, as good as by chance: large and small blobs are spread over the batches.
    left = iter(expected.items())
    done = 0

    def batch(items: Sequence[tuple[Digest, Expected]]) -> list[tuple[Digest, Finding]]:
        return [(digest, _hash(layout, digest, blob)) for digest, blob in items]

    under_way: deque[Future[list[tuple[Digest, Finding]]]] = deque()
    pool = started_pool(workers)
    try:
        while True:
            while len(under_way) < workers * _AHEAD and (items := list(islice(left, _BATCH))):
                under_way.append(pool.submit(batch, items))
            if not under_way:
                return
            found = under_way.popleft().result()
            done += sum(finding.size for _, finding in found)
            progress(done)
            yield from found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _wrong_size(size: int, blob: Expected) -> str:
    """What is wrong with a file of this size, as far as that can be told; usually nothing."""
    if size < blob.raw_length:
        return f"{size} bytes, of which files take {blob.raw_length}"
    if blob.sizes and size not in blob.sizes and not (blob.content_length and blob.content_length in blob.sizes):
        # (Descriptors of release 0.2.0 of the original have the size of the content.)
        return f"{size} bytes instead of {' or '.join(map(str, sorted(blob.sizes)))}"
    return "0 bytes" if not size and blob.content_length else ""


def _hash(layout: Layout, digest: Digest, blob: Expected) -> Finding:
    size = 0
    try:
        fd = layout.open_blob(digest)
        try:
            size = os.fstat(fd).st_size
            if size > _IN_MEMORY:
                return _hash_large(fd, digest, blob, size)
            data = _read(fd, size)
        finally:
            os.close(fd)
    except BlobNotFoundError:
        return Finding(Fault.MISSING, "", 0)
    except FormatError:
        return Finding(Fault.NO_FILE, "", 0)
    except OSError as error:
        return Finding(Fault.UNREADABLE, error.strerror or str(error), size)
    actual = hashlib.sha256(data).digest()
    if actual != digest:
        return _corrupt(size, actual, blob)
    return Finding(None, "", size, _other(blob, verity_digest(data) if blob.verity else None), _shortage(data, blob))


def _hash_large(fd: int, digest: Digest, blob: Expected, size: int) -> Finding:
    sha256, verity = hashlib.sha256(), VerityHasher()
    offset = 0
    while block := os.pread(fd, _BLOCK, offset):
        sha256.update(block)
        if blob.verity:
            verity.update(block)
        offset += len(block)
    if sha256.digest() != digest:
        return _corrupt(size, sha256.digest(), blob)
    shortage = ""
    if blob.content_length:
        shortage = _shortage(_read(fd, size), blob) if size <= MAX_CHUNK_CONTENT else "it is larger than any chunk"
    elif size < blob.raw_length:
        shortage = _shortage_of(size, blob.raw_length)
    return Finding(None, "", size, _other(blob, verity.digest() if blob.verity else None), shortage)


def _corrupt(size: int, actual: bytes, blob: Expected) -> Finding:
    problem = _wrong_size(size, blob)
    return Finding(Fault.WRONG_SIZE if problem else Fault.CORRUPT, problem or f"sha256:{actual.hex()}", size)


def _other(blob: Expected, verity: VerityDigest | None) -> VerityDigest | None:
    return verity if verity is not None and blob.verity != {verity} else None


def _read(fd: int, size: int) -> bytes:
    data = os.pread(fd, size + 1, 0)
    if len(data) == size:
        return data
    parts, offset = [data], len(data)
    while offset <= size and (part := os.pread(fd, size + 1 - min(offset, size), offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)  # if it has grown, its digest will not agree


def _shortage(data: bytes, blob: Expected) -> str:
    """What to say if a good blob cannot be what inodes take it for."""
    if len(data) < blob.raw_length:
        return _shortage_of(len(data), blob.raw_length)
    if not blob.content_length:
        return ""
    try:
        size = _content_size(data)
    except PuzzlefsError as error:
        return error.message
    return _shortage_of(size, blob.content_length) if size < blob.content_length else ""


def _shortage_of(size: int, needed: int) -> str:
    return f"it has {size} bytes, but a file uses it up to byte {needed}"


def _content_size(data: bytes) -> int:
    """The size of the content of a compressed chunk: what its seek table says, or what comes out."""
    frames = frames_of(data)
    entries = parse_seek_table(data, frames[-1]) if frames[-1].skippable else None
    if entries is not None and [entry.compressed_size for entry in entries] == [
        frame.end - frame.start for frame in frames[:-1]
    ]:
        return sum(entry.decompressed_size for entry in entries)
    return len(decompress_chunk(data, limit=MAX_CHUNK_CONTENT))
