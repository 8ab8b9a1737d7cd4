"""Whether blobs are what their names say: presence and size, or every byte.

What the bytes of a blob say of themselves (``Facts``) is apart from what is expected of them: so hashing can begin
before all metadata have been looked at. Both digests of a blob are computed from one read. Who hashes: ``readers``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from puzzlefs.blobs import Layout
from puzzlefs.blobs.verified import MAX_CHUNK_CONTENT
from puzzlefs.compression import decompress_chunk
from puzzlefs.compression.frames import frames_of, parse_seek_table
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import BlobNotFoundError, FormatError, PuzzlefsError
from puzzlefs.fsck.report import Fault
from puzzlefs.fsck.survey import Expected
from puzzlefs.verity import VerityHasher, verity_digest

IN_MEMORY: Final = 8 << 20
"""Bytes of the largest blob that is read as a whole."""
_BLOCK: Final = 1 << 20


class Question(NamedTuple):
    """What is to be found out about a blob, besides whether its bytes are those of its name.

    Attributes:
        digest: the blob.
        verity: whether its fs-verity digest is wanted.
        content: whether the size of its content is, which is compressed.
    """

    digest: Digest
    verity: bool
    content: bool


class Facts(NamedTuple):
    """What the bytes of a blob say of themselves.

    Attributes:
        size: its bytes.
        fault: what is wrong with it, ``None`` if its bytes are those of its name.
        detail: more about that; of corrupt bytes, what their digest is.
        verity: its fs-verity digest, if that was asked for.
        content: the size of its content, likewise, ``None`` if it cannot be told.
        problem: why not; empty if it can, or was not asked for.
    """

    size: int
    fault: Fault | None = None
    detail: str = ""
    verity: VerityDigest | None = None
    content: int | None = None
    problem: str = ""


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
    layout: Layout, there: Mapping[Digest, int], expected: Mapping[Digest, Expected]
) -> Iterator[tuple[Digest, Finding]]:
    """What names and sizes say about blobs, and nothing else; those that are in order are left out.

    Args:
        layout: where they are.
        there: the sizes of the regular files that were there a moment ago.
        expected: the blobs.
    """
    for digest, blob in expected.items():
        known = there.get(digest)
        if known is not None and not _wrong_size(known, blob):
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


def finding_of(facts: Facts, blob: Expected) -> Finding | None:
    """What facts mean where ``blob`` was expected, ``None`` if all is as it should be."""
    size, fault, detail, verity, content, problem = facts
    if fault is not None:
        if fault is Fault.CORRUPT and (wrong := _wrong_size(size, blob)):
            return Finding(Fault.WRONG_SIZE, wrong, size)
        return Finding(fault, detail, size)
    other = verity if verity is not None and blob.verity and blob.verity != (verity,) else None
    shortage = ""
    if size < blob.raw_length:
        shortage = _shortage_of(size, blob.raw_length)
    elif blob.content_length:
        shortage = problem
        if content is not None and content < blob.content_length:
            shortage = _shortage_of(content, blob.content_length)
    if other is None and not shortage and (not blob.sizes or size in blob.sizes):
        return None
    return Finding(None, "", size, other, shortage)


class BlobReader:
    """Finds facts out, one blob after the other. Not for several threads."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._buffer = memoryview(bytearray(IN_MEMORY + 1))  # takes as much memory as has been written to it

    def facts(self, question: Question) -> Facts:
        """The facts about a blob."""
        size = 0
        try:
            fd = self._layout.open_blob(question.digest)
            try:
                size = os.preadv(fd, [self._buffer], 0)
                if size > IN_MEMORY:
                    return _facts_of_large(fd, question, os.fstat(fd).st_size)
            finally:
                os.close(fd)
        except BlobNotFoundError:
            return Facts(0, Fault.MISSING)
        except FormatError:
            return Facts(0, Fault.NO_FILE)
        except OSError as error:
            return Facts(size, Fault.UNREADABLE, error.strerror or str(error))
        data = self._buffer[:size]
        actual = hashlib.sha256(data).digest()
        if actual != question.digest:
            return Facts(size, Fault.CORRUPT, f"sha256:{actual.hex()}")
        verity = verity_digest(data) if question.verity else None
        if not question.content:
            return Facts(size, None, "", verity)
        return Facts(size, None, "", verity, *_content(bytes(data)))


def _facts_of_large(fd: int, question: Question, size: int) -> Facts:
    sha256, verity = hashlib.sha256(), VerityHasher()
    offset = 0
    while block := os.pread(fd, _BLOCK, offset):
        sha256.update(block)
        if question.verity:
            verity.update(block)
        offset += len(block)
    if sha256.digest() != question.digest:
        return Facts(size, Fault.CORRUPT, f"sha256:{sha256.hexdigest()}")
    facts = Facts(offset, None, "", verity.digest() if question.verity else None)
    if not question.content:
        return facts
    if offset > MAX_CHUNK_CONTENT:
        return facts._replace(problem="it is larger than any chunk")
    content, problem = _content(_read(fd, offset))
    return facts._replace(content=content, problem=problem)


def _wrong_size(size: int, blob: Expected) -> str:
    """What is wrong with a file of this size, as far as that can be told; usually nothing."""
    if size < blob.raw_length:
        return f"{size} bytes, of which files take {blob.raw_length}"
    if blob.sizes and size not in blob.sizes and not (blob.content_length and blob.content_length in blob.sizes):
        # (Descriptors of release 0.2.0 of the original have the size of the content.)
        return f"{size} bytes instead of {' or '.join(map(str, sorted(blob.sizes)))}"
    return "0 bytes" if not size and blob.content_length else ""


def _read(fd: int, size: int) -> bytes:
    parts: list[bytes] = []
    offset = 0
    while offset < size and (part := os.pread(fd, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _shortage_of(size: int, needed: int) -> str:
    return f"it has {size} bytes, but a file uses it up to byte {needed}"


def _content(data: bytes) -> tuple[int | None, str]:
    """The size of the content of a good blob that is taken for a compressed chunk, or why it has none."""
    try:
        return _content_size(data), ""
    except PuzzlefsError as error:
        return None, error.message


def _content_size(data: bytes) -> int:
    """The size of the content of a compressed chunk: what its seek table says, or what comes out."""
    frames = frames_of(data)
    entries = parse_seek_table(data, frames[-1]) if frames[-1].skippable else None
    if entries is not None and [entry.compressed_size for entry in entries] == [
        frame.end - frame.start for frame in frames[:-1]
    ]:
        return sum(entry.decompressed_size for entry in entries)
    return len(decompress_chunk(data, limit=MAX_CHUNK_CONTENT))
