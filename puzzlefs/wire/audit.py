"""All inodes of a table looked at in one pass: what they take of which blobs, and which of them have to be decoded.

Who checks an image asks the same of every inode, so nothing is called for the one that looks as encoders lay it out,
and nothing is built. As in ``quick``, what is passed as ordinary is what the table's own methods would have decoded,
and what is not quite ordinary is left to them. What the pass visits is paid for from the message's ledger: a message
in which many inodes share a list is left to who says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import lt
from typing import Final

from puzzlefs.digest import Digest, as_digest
from puzzlefs.model import MAX_FILE_SIZE, NO_OWNER, InodeTable, Kind
from puzzlefs.wire.pointers import FAR, OFFSET_MASK
from puzzlefs.wire.quick import QuickLook
from puzzlefs.wire.shapes import (
    BLOB_REF_SHAPE,
    DIGEST_SHAPE,
    DIGEST_WORDS,
    FORWARD_MASK,
    ONE_CHUNK_SHAPE,
    ONE_CHUNK_TAG,
    ONE_CHUNK_WORDS,
)
from puzzlefs.wire.table import WireInodeTable

_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_EMPTY: Final = frozenset({int(Kind.FIFO), int(Kind.SOCKET)})
_MAX_CHUNKS: Final = 64


@dataclass(slots=True)
class Audit:
    """What one pass over a table has found.

    Attributes:
        raw_ends: by digest, up to which byte ordinary files take a blob as it is.
        content_ends: the same of the content of blobs that they take for compressed.
        unusual: positions in the table of the inodes that are not ordinary, and have to be decoded.
    """

    raw_ends: dict[Digest, int] = field(default_factory=dict)
    content_ends: dict[Digest, int] = field(default_factory=dict)
    unusual: Sequence[int] = ()


def audit(table: InodeTable) -> Audit:
    """Look at all inodes of a table.

    Ordinary are regular files, directories with names that can be, pipes and sockets, all without extended attributes,
    which decode, and whose attributes can be. Of a table that is not read from a message, nothing is.
    """
    if isinstance(table, WireInodeTable):
        auditor = _Auditor(table)
        if auditor.is_usable():
            return auditor.run()
    return Audit(unusual=range(len(table)))


class _Auditor(QuickLook):
    __slots__ = ("_ledger", "_table")

    def __init__(self, table: WireInodeTable) -> None:
        message, records = table.place()
        super().__init__(message, records, file_struct=table.has_file_struct)
        self._table = table
        self._ledger = message.ledger

    def is_usable(self) -> bool:
        numbers = self._numbers.tolist()
        return self._usable and all(map(lt, numbers, islice(numbers, 1, None)))

    def run(self) -> Audit:
        words, data, data_words, segment_end = self._words, self._data, self._data_words, self._end
        first, stride = self._first, self._stride
        end = first + self._count * stride
        raw: dict[Digest, int] = {}
        content: dict[Digest, int] = {}
        unusual: list[int] = []
        chunks = 0
        rows = zip(
            range(first + data_words, end, stride),
            words[first + 1 : end : stride],
            words[first + 2 : end : stride],
            words[first + data_words : end : stride],
            words[first + data_words + 1 : end : stride],
            strict=True,
        )
        for at, head, group, word, more in rows:
            kind = head & 0xFFFF
            try:
                if more or head >> 32 == NO_OWNER or group & NO_OWNER == NO_OWNER:
                    unusual.append(at)
                elif kind == _REGULAR:
                    chunks += 1
                    start, limit = at, segment_end
                    if word & 7 == FAR:
                        segment = word >> 32
                        start = self._starts[segment] + (word >> 3 & 0x1FFFFFFF)
                        limit = self._ends[segment]
                        word = words[start]
                    start += 1 + (word >> 2 & OFFSET_MASK)
                    if (
                        word & FORWARD_MASK == ONE_CHUNK_SHAPE
                        and start + ONE_CHUNK_WORDS + DIGEST_WORDS <= limit
                        and words[start] == ONE_CHUNK_TAG
                        and words[start + 2] == BLOB_REF_SHAPE
                        and (place := words[start + 5]) & FORWARD_MASK == DIGEST_SHAPE
                    ):
                        digest_at = start + ONE_CHUNK_WORDS + (place >> 2 & OFFSET_MASK)
                        if digest_at + DIGEST_WORDS > limit:
                            unusual.append(at)
                            continue
                        length = words[start + 1]
                        last = words[start + 3] + length
                        ends = content if words[start + 4] & 1 else raw
                        digest = as_digest(data[digest_at << 3 : digest_at + DIGEST_WORDS << 3])
                        if length > MAX_FILE_SIZE:
                            unusual.append(at)
                        elif ends.get(digest, -1) < last:
                            ends[digest] = last
                    else:
                        chunks += self._several(at, raw, content) - 1
                elif kind == _DIRECTORY:
                    if self._table.names(words[at - data_words]) is None:
                        unusual.append(at)
                elif kind not in _EMPTY:
                    unusual.append(at)
            except LookupError:
                unusual.append(at)
        if chunks > self._ledger.left:
            return Audit(unusual=range(self._count))
        self._ledger.left -= chunks
        base = first + data_words
        return Audit(raw, content, [(at - base) // stride for at in unusual])

    def _several(self, at: int, raw: dict[Digest, int], content: dict[Digest, int]) -> int:
        """How many parts a file has that is not laid out as one with a single chunk."""
        parts = self._parts(at, self._end, _MAX_CHUNKS)
        if sum([length for _, _, _, length in parts]) > MAX_FILE_SIZE:
            raise LookupError
        for raw_digest, offset, compressed, length in parts:
            digest = as_digest(raw_digest)
            ends = content if compressed else raw
            if ends.get(digest, -1) < offset + length:
                ends[digest] = offset + length
        return len(parts)
