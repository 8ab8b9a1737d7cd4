"""The ordinary inode, read in a few steps.

Nearly all inodes of nearly all images look alike: no xattrs, one chunk or a few, entries that are what they should be.
A file system is asked for thousands of those at a time, so ``QuickLook`` answers the questions that are asked most
without building an ``Inode``, and says ``None`` for whatever is not quite ordinary: malformed, long, or just rare. Then
the table's own methods decide. So an answer from here is always what they would have answered, and no error comes from
here; only that ``glance`` at a directory does not look at its entries, where something may be wrong.

Positions are words of the message, as everywhere in this room. What one answer can cost is bounded by itself
(``_MAX_CHUNKS`` chunks, ``_MAX_ENTRIES`` entries); the table charges names to the message's ledger.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from puzzlefs.digest import SHA256_SIZE, Digest
from puzzlefs.model import MAX_FILE_SIZE, NO_OWNER, BlobRef, FileChunk, Glance, Kind, Resident
from puzzlefs.wire.message import Message
from puzzlefs.wire.pointers import BYTES, COMPOSITE, FAR, LIST, OFFSET_MASK, OFFSET_SIGN
from puzzlefs.wire.shapes import FORWARD_MASK, ONE_CHUNK_SHAPE, ONE_CHUNK_TAG

_MAX_CHUNKS: Final = 64
_MAX_ENTRIES: Final = 1 << 16
_MAX_NAME: Final = 255
_PERMISSIONS: Final = 0o7777

# What tells a pointer forward to the wanted thing: its kind and the sign of its offset, and a list's element size.
STRUCT_MASK: Final = OFFSET_SIGN << 2 | 3
LIST_MASK: Final = 7 << 32 | STRUCT_MASK
RECORDS: Final = COMPOSITE << 32 | LIST
DATA: Final = BYTES << 32 | LIST

_LIVE_KINDS: Final = {int(kind): kind for kind in Kind if kind not in (Kind.UNKNOWN, Kind.WHITEOUT)}
_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_SYMLINK: Final = int(Kind.SYMLINK)
_PLAIN: Final = frozenset({int(Kind.FIFO), int(Kind.SOCKET), _DIRECTORY})

_glance: Callable[[Iterable[int]], Glance] = partial(tuple.__new__, Glance)
"""A ``Glance`` of six values; three times as quick as calling the class."""

Part = tuple[bytes, int, int, int]
"""A part of a file: digest, offset, whether it is compressed, length."""


class UnusualError(LookupError):
    """Somebody else has to look at this; like an ``IndexError``, which is a position outside of the message."""


class QuickLook:
    """Answers about the ordinary inodes of a list of inodes. Thread safe."""

    __slots__ = (
        "_count",
        "_data",
        "_data_words",
        "_delta",
        "_end",
        "_ends",
        "_first",
        "_numbers",
        "_starts",
        "_stride",
        "_usable",
        "_words",
    )

    def __init__(self, message: Message, records: tuple[int, int, int, int, int], *, file_struct: bool) -> None:
        """As the table: a list of inodes as ``Message.records_at`` returns it."""
        segment, self._first, self._count, self._data_words, pointer_words = records
        self._words = message.words
        self._data = message.data
        self._starts, self._ends = message.segments()
        self._end = self._ends[segment]
        self._stride = self._data_words + pointer_words
        # version 1 has one more struct between a file and its chunks, and tables of few words are not ordinary
        self._usable = bool(self._count) and self._data_words >= 3 and pointer_words >= 2 and not file_struct
        self._numbers = self._words[self._first : self._first + self._count * self._stride : self._stride or 1]
        self._delta = self._numbers[0] if self._count else 0

    def glance(self, ino: int) -> Glance | None:
        """What ``stat`` wants to know, but for the links."""
        words = self._words
        try:
            at = self._locate(ino)
            packed = words[at + 1]
            pointers = at + self._data_words
            kind = packed & 0xFFFF
            size = 0
            if kind == _SYMLINK:
                size = self._target_size(pointers + 1)
            elif words[pointers + 1]:
                return None
            elif kind == _REGULAR:
                # most files have one chunk, and a listing asks for all of them: that case without a call
                word, start, end = words[pointers], pointers, self._end
                if word & 7 == FAR:
                    start = self._starts[word >> 32] + (word >> 3 & 0x1FFFFFFF)  # an IndexError is a LookupError
                    end = self._ends[word >> 32]
                    word = words[start]
                start += 1 + (word >> 2 & OFFSET_MASK)
                if word & FORWARD_MASK == ONE_CHUNK_SHAPE and start + 2 < end and words[start] == ONE_CHUNK_TAG:
                    size = words[start + 1]
                else:
                    size = self._file_size(pointers)
            elif kind not in _PLAIN:
                return None
        except LookupError:
            return None
        uid, gid = packed >> 32, words[at + 2] & 0xFFFFFFFF
        if size > MAX_FILE_SIZE or NO_OWNER in (uid, gid):
            return None
        mtime_ns = 0
        if self._data_words > 3:
            mtime_ns = words[at + 3]
            if mtime_ns >> 63:
                mtime_ns -= 1 << 64
        return _glance((kind, packed >> 16 & _PERMISSIONS, uid, gid, size, mtime_ns))

    def live_kinds(self, numbers: list[int]) -> list[Kind] | None:
        """The kinds of inodes, if all of them exist and are no white-outs."""
        try:
            return self._kinds(numbers)
        except LookupError:
            return None

    def names(self, ino: int) -> tuple[list[bytes], list[int]] | None:
        """The names in a directory, each of them once, and their numbers."""
        words = self._words
        try:
            at = self._locate(ino)
            pointers = at + self._data_words
            if words[at + 1] & 0xFFFF != _DIRECTORY or words[pointers + 1]:
                return None
            start, word, end = self._follow(pointers, self._end)
            if word & STRUCT_MASK or not word >> 48:
                return None
            data_words = word >> 32 & 0xFFFF
            if start + data_words + (word >> 48) > end or (data_words and words[start] & 1):
                return None
            start, count, data_words, stride, end = self._records(start + data_words, end, _MAX_ENTRIES)
            numbers = words[start : start + count * stride : stride].tolist() if count else []
            names = self._names(range(start + data_words, start + data_words + count * stride, stride), end)
            return (names, numbers) if _are_names(names) else None
        except LookupError:
            return None

    def total_size(self, inos: Iterable[int]) -> tuple[int, list[int]]:
        """Bytes of the ordinary regular files among ``inos``, and the numbers of whatever is not ordinary."""
        others: list[int] = []
        positions: Iterable[int]
        if self._usable and sorted(inos) == self._numbers.tolist():  # all of them: nothing has to be looked for
            positions = range(self._first, self._first + self._count * self._stride, self._stride)
        else:
            positions = found = []
            for ino in inos:
                try:
                    found.append(self._locate(ino))
                except LookupError:
                    others.append(ino)
        words, data_words, file_size = self._words, self._data_words, self._file_size
        total = 0
        for at in positions:
            if words[at + 1] & 0xFFFF == _REGULAR:
                pointers = at + data_words
                try:
                    if words[pointers + 1]:
                        raise UnusualError
                    total += file_size(pointers)
                except LookupError:
                    others.append(words[at])
        return total, others

    def may_have_xattrs(self) -> bool:
        """Whether any inode has xattrs, or cannot be judged quickly."""
        if not self._usable:
            return self._count > 0
        words, first, stride = self._words, self._first, self._stride
        end = first + self._count * stride
        extras = first + self._data_words + 1
        try:
            for at, packed, extra in zip(
                range(extras, end, stride), words[first + 1 : end : stride], words[extras:end:stride], strict=True
            ):
                if extra:
                    if packed & 0xFFFF != _SYMLINK:
                        return True
                    self._target_size(at)
        except LookupError:
            return True
        return False

    def chunks(self, ino: int) -> list[FileChunk] | None:
        """The parts of a regular file that has few."""
        try:
            at = self._locate(ino)
            pointers = at + self._data_words
            if self._words[at + 1] & 0xFFFF != _REGULAR or self._words[pointers + 1]:
                return None
            parts = self._parts(pointers, self._end, _MAX_CHUNKS)
        except LookupError:
            return None
        return [
            FileChunk(BlobRef(Digest(digest), offset, bool(compressed)), length)
            for digest, offset, compressed, length in parts
        ]

    def files_in(self, blob: Digest, first: int, stop: int) -> tuple[list[Resident], int]:
        """The files from number ``first`` on (and before ``stop``) that begin in ``blob``, up to one that does not.

        Returns:
            The files; and the number of the one that does not, or of the last one if it ends elsewhere, or ``stop``.
        """
        words, data, numbers = self._words, self._data, self._numbers
        found: list[Resident] = []
        begin = self._behind(first) if self._usable else self._count
        for index in range(begin, min(begin + stop - first, self._count)):
            ino = numbers[index]
            if not first <= ino < stop:
                break
            if (index and numbers[index - 1] == ino) or (index + 1 < self._count and numbers[index + 1] == ino):
                continue  # twice: the table knows which one counts
            try:
                at = self._first + index * self._stride
                if words[at + 1] & 0xFFFF != _REGULAR:
                    continue
                start, count, data_words, _, end = self._records(at + self._data_words, self._end, _MAX_ENTRIES)
                if not count:
                    continue
                length = words[start]
                ref, word, end = self._follow(start + data_words, end)
                ref_words = word >> 32 & 0xFFFF
                if word & STRUCT_MASK or ref_words < 2 or not word >> 48 or ref + ref_words >= end:
                    break
                start, word, end = self._follow(ref + ref_words, end)
                start <<= 3
                if word & LIST_MASK != DATA or data[start : start + SHA256_SIZE] != blob:
                    return found, ino
                found.append(Resident(ino, words[ref], length, count == 1))
            except LookupError:
                continue
            if count > 1:
                return found, ino
        return found, stop

    def _behind(self, ino: int) -> int:
        """The index of the first inode whose number is not below ``ino``."""
        numbers = self._numbers
        index = ino - self._delta
        if 0 < index < self._count and numbers[index] == ino and numbers[index - 1] < ino:
            return index
        return bisect_left(numbers, ino)

    # ---- inside: each raises LookupError for what is not ordinary

    def _locate(self, ino: int) -> int:
        """Where the inode with this number begins."""
        if not self._usable:
            raise UnusualError
        numbers, count = self._numbers, self._count
        index = ino - self._delta  # between two gaps in the numbers the distance stays the same
        if not (0 <= index < count and numbers[index] == ino):
            index = bisect_left(numbers, ino)
            if index == count or numbers[index] != ino:
                raise UnusualError
            self._delta = ino - index
        if (index and numbers[index - 1] == ino) or (index + 1 < count and numbers[index + 1] == ino):
            raise UnusualError  # twice: the table knows which one counts
        return self._first + index * self._stride

    def _follow(self, at: int, end: int) -> tuple[int, int, int]:
        """Where the pointer at ``at`` leads, the pointer that says what is there, and the end of that segment.

        The caller checks the pointer's kind and sign, and that the thing ends in its segment.
        """
        word = self._words[at]
        if word & 3 == FAR:
            segment = word >> 32
            if word & 4 or segment >= len(self._ends):
                raise UnusualError
            at = self._starts[segment] + (word >> 3 & 0x1FFFFFFF)
            end = self._ends[segment]
            if at >= end:
                raise UnusualError
            word = self._words[at]
        return at + 1 + (word >> 2 & OFFSET_MASK), word, end

    def _records(self, pointer: int, end: int, limit: int) -> tuple[int, int, int, int, int]:
        """A list of at most ``limit`` structs: first element, count, data words, stride; and the end of its segment."""
        words = self._words
        if not words[pointer]:
            return pointer, 0, 0, 1, end
        start, word, end = self._follow(pointer, end)
        length = word >> 35
        if word & LIST_MASK != RECORDS or start + length >= end:
            raise UnusualError
        tag = words[start]
        count = tag >> 2 & OFFSET_MASK
        data_words = tag >> 32 & 0xFFFF
        stride = data_words + (tag >> 48)
        if tag & 3 or count > limit or not data_words or stride == data_words or count * stride > length:
            raise UnusualError
        return start + 1, count, data_words, stride, end

    def _parts(self, pointer: int, end: int, limit: int) -> list[Part]:
        """The chunks in a list of at most ``limit``."""
        words, data = self._words, self._data
        first, count, data_words, stride, end = self._records(pointer, end, limit)
        found: list[Part] = []
        for position in range(first, first + count * stride, stride):
            ref, word, ref_end = self._follow(position + data_words, end)
            ref_words, ref_pointers = word >> 32 & 0xFFFF, word >> 48
            if word & STRUCT_MASK or ref_words < 2 or not ref_pointers or ref + ref_words + ref_pointers > ref_end:
                raise UnusualError
            start, word, data_end = self._follow(ref + ref_words, ref_end)
            if word & LIST_MASK != DATA or word >> 35 != SHA256_SIZE or start + (SHA256_SIZE >> 3) > data_end:
                raise UnusualError
            digest = bytes(data[start << 3 : (start << 3) + SHA256_SIZE])
            found.append((digest, words[ref], words[ref + 1] & 1, words[position]))
        return found

    def _file_size(self, pointer: int) -> int:
        first, count, _, stride, _ = self._records(pointer, self._end, _MAX_CHUNKS)
        words = self._words
        return words[first] if count == 1 else sum(words[first : first + count * stride : stride]) if count else 0

    def _target_size(self, pointer: int) -> int:
        """Length of the target that hangs on an inode's additional data, which has no xattrs."""
        words = self._words
        start, word, end = self._follow(pointer, self._end)
        start += word >> 32 & 0xFFFF
        if word & STRUCT_MASK or word >> 48 < 2 or start + (word >> 48) > end:
            raise UnusualError
        if words[start]:  # a list of xattrs, which is there even if it is empty
            at, word, xattrs_end = self._follow(start, end)
            if word & LIST_MASK != RECORDS or at + (word >> 35) >= xattrs_end or words[at] & 0xFFFFFFFF:
                raise UnusualError
        start, word, end = self._follow(start + 1, end)
        size = word >> 35
        if word & LIST_MASK != DATA or start + (size + 7 >> 3) > end:
            raise UnusualError
        return size

    def _names(self, pointers: range, end: int) -> list[bytes]:
        words, data = self._words, self._data
        names: list[bytes] = []
        for at in pointers:
            word = words[at]
            if word & LIST_MASK == DATA:
                start = at + 1 + (word >> 2 & OFFSET_MASK)
                limit = end
            else:
                start, word, limit = self._follow(at, end)
                if word & LIST_MASK != DATA:
                    raise UnusualError
            size = word >> 35
            if size > _MAX_NAME or start + (size + 7 >> 3) > limit:
                raise UnusualError
            start <<= 3
            names.append(bytes(data[start : start + size]))
        return names

    def _kinds(self, numbers: list[int]) -> list[Kind]:
        """The kinds of inodes, which all exist and are no white-outs."""
        words, locate = self._words, self._locate
        if run := self._run(numbers):
            return [_LIVE_KINDS[word & 0xFFFF] for word in words[run.start + 1 : run.stop + 1 : run.step]]
        return [_LIVE_KINDS[words[locate(number) + 1] & 0xFFFF] for number in numbers]

    def _run(self, numbers: list[int]) -> range | None:
        """Where the inodes with these numbers begin, if they are one behind the other.

        Those in a directory mostly are.
        """
        count = len(numbers)
        if count < 2 or numbers[-1] - numbers[0] != count - 1:
            return None
        first, last = self._locate(numbers[0]), self._locate(numbers[-1])
        run = range(first, last + 1, self._stride)
        is_one = len(run) == count and self._words[first : last + 1 : self._stride].tolist() == numbers
        return run if is_one else None


def _are_names(names: list[bytes]) -> bool:
    """Whether these can be the names of a directory: none twice, none that means something else."""
    together = b"/".join(names)
    return (
        together.count(b"/") == max(len(names) - 1, 0)
        and b"\0" not in together
        and len({*names, b"", b".", b".."}) == len(names) + 3
    )
