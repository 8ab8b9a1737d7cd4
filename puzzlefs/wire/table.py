"""The inodes of one metadata layer, read from the words of a message when they are asked for.

Nothing is kept per inode but one byte, and nothing is walked before it is asked for: a table of a million inodes exists
at once. Inodes are found by their number with a guess (numbers mostly count up without gaps) and bisection.

``_visited`` remembers which inodes have been paid for from the message's ledger, so that repeated visits are free and
visiting each inode once cannot cost more than the message is long (see ``message``). Threads may share a table: a race
costs a second payment at most, for which the ledger has room.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.model import (
    BlockDevice,
    CharDevice,
    Content,
    Directory,
    Fifo,
    FileChunk,
    Glance,
    Inode,
    Kind,
    RegularFile,
    Resident,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
)
from puzzlefs.wire import contents
from puzzlefs.wire.message import LOW_HALF, Ledger, Message, OverdrawnError
from puzzlefs.wire.quick import QuickLook

_LAST_KIND = max(Kind)
_PERMISSIONS = 0o7777
_WHOLE = 1
_NUMBERS = 2


class WireInodeTable:
    """An ``InodeTable`` over the inode list of a message."""

    __slots__ = (
        "_count",
        "_data_words",
        "_file_struct",
        "_first",
        "_first_number",
        "_live",
        "_message",
        "_numbers",
        "_pointer_words",
        "_quick",
        "_segment",
        "_stride",
        "_visited",
    )

    def __init__(self, message: Message, records: tuple[int, int, int, int, int], *, file_struct: bool) -> None:
        """A table over a list of inodes.

        Args:
            records: the list, as ``Message.records_at`` returns it.
            file_struct: version 1, where the chunk list of a file hangs in a struct of its own.
        """
        self._message = message
        self._segment, first, count, self._data_words, self._pointer_words = records
        self._file_struct = file_struct
        self._first = first
        self._count = count
        self._stride = stride = self._data_words + self._pointer_words
        self._numbers: Sequence[int] = (
            message.words[first : first + count * stride : stride] if count and self._data_words else (0,) * count
        )
        self._first_number = self._numbers[0] if count else 0
        self._live: dict[int, int] = {}
        self._visited = bytearray(count)
        self._quick = QuickLook(message, records, file_struct=file_struct)

    def place(self) -> tuple[Message, tuple[int, int, int, int, int]]:
        """The message, and the list in it as ``Message.records_at`` returns it."""
        return self._message, (self._segment, self._first, self._count, self._data_words, self._pointer_words)

    @property
    def has_file_struct(self) -> bool:
        """Whether the chunk list of a file hangs in a struct of its own (version 1)."""
        return self._file_struct

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Inode]:
        return map(self.decode, range(self._count))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._count} inodes>"

    def find(self, ino: int) -> Inode | None:
        index = self._index(ino)
        return None if index < 0 else self.decode(index)

    def decode(self, index: int) -> Inode:
        """The inode at a position of the list.

        Raises:
            FormatError: if it is malformed.
        """
        words = self._message.words
        data_words = self._data_words
        at = self._first + index * self._stride
        owner = group = 0
        tag = permissions = 0
        mtime_ns: int | None = None
        if data_words > 1:
            packed = words[at + 1]
            tag = packed & 0xFFFF
            permissions = packed >> 16 & _PERMISSIONS
            owner = packed >> 32
            if data_words > 2:
                group = words[at + 2] & 0xFFFFFFFF
                if data_words > 3:
                    mtime_ns = words[at + 3]
                    if mtime_ns >> 63:
                        mtime_ns -= 1 << 64
        ledger, fresh = self._ledger(index, _WHOLE)
        try:
            target = b""
            xattrs: tuple[Xattr, ...] = ()
            if self._pointer_words > 1 and words[at + data_words + 1]:
                target, xattrs = self._additional(at + data_words + 1, ledger, has_target=tag == Kind.SYMLINK)
            content = self._content(tag, index, ledger, target)
        except FormatError as error:
            raise self._failure(index, fresh, _WHOLE, error) from error
        return Inode(self._numbers[index], owner, group, permissions, content, xattrs, mtime_ns)

    def mentions(self, ino: int) -> bool:
        return self._index(ino) >= 0

    def kind(self, ino: int) -> Kind | None:
        index = self._index(ino)
        if index < 0:
            return None
        tag = self._tag(index)
        if tag > _LAST_KIND:
            raise FormatError(f"inode {ino} is of an unknown kind: {tag}")
        return Kind(tag)

    def kinds(self) -> Iterator[tuple[int, int]]:
        if not self._count:
            return iter(())
        if self._data_words < 2:
            return zip(self._numbers, (0,) * self._count, strict=True)
        start = (self._first + 1) * 4 + LOW_HALF
        stride = self._stride * 4
        tags = self._message.quarters[start : start + (self._count - 1) * stride + 1 : stride]
        return zip(self._numbers, tags, strict=True)

    def entry_numbers(self, ino: int) -> tuple[Sequence[int], bool] | None:
        index = self._index(ino)
        if index < 0 or self._tag(index) != Kind.DIRECTORY:
            return None
        ledger, fresh = self._ledger(index, _NUMBERS)
        try:
            if not self._pointer_words:
                return (), False
            records, look_below = contents.directory_records(
                self._message, self._segment, self._pointers(index), ledger
            )
            return contents.entry_numbers(self._message, records), look_below
        except FormatError as error:
            raise self._failure(index, fresh, _NUMBERS, error) from error

    def max_ino(self) -> int:
        return max(self._numbers, default=0)

    def glance(self, ino: int) -> Glance | None:
        return self._quick.glance(ino)

    def total_size(self, inos: Iterable[int]) -> tuple[int, list[int]]:
        return self._quick.total_size(inos)

    def names(self, ino: int) -> tuple[list[bytes], list[int]] | None:
        found = self._quick.names(ino)
        return found if found is not None and self._is_paid(ino, found[0]) else None

    def live_kinds(self, numbers: list[int]) -> list[Kind] | None:
        return self._quick.live_kinds(numbers)

    def may_have_xattrs(self) -> bool:
        return self._quick.may_have_xattrs()

    def chunks(self, ino: int) -> list[FileChunk] | None:
        return self._quick.chunks(ino)

    def files_in(self, blob: Digest, first: int, stop: int) -> tuple[list[Resident], int]:
        return self._quick.files_in(blob, first, stop)

    def _is_paid(self, ino: int, names: list[bytes]) -> bool:
        """Pay for a visit to a directory with these names; if there is not enough left, ``find`` says why."""
        index = self._index(ino)
        if not self._visited[index] & _WHOLE:
            words = sum([len(name) + 15 >> 3 for name in names])
            if words > self._message.ledger.left:
                return False
            self._visited[index] |= _WHOLE
            self._message.ledger.left -= words
        return True

    def _index(self, ino: int) -> int:
        """Where the inode with this number is; -1 if nowhere."""
        numbers = self._numbers
        count = self._count
        # Without gaps and repetitions, the numbers count up; with gaps, an inode is nearer to the start.
        index = ino - self._first_number
        if not (0 <= index < count and numbers[index] == ino and (not index or numbers[index - 1] != ino)):
            index = bisect_left(numbers, ino)
            if index == count or numbers[index] != ino:
                return -1
        if index + 1 < count and numbers[index + 1] == ino:
            return self._live_one(index, ino)
        return index

    def _live_one(self, index: int, ino: int) -> int:
        """Of the inodes with this number, the first of which is at ``index``, the first that is not a white-out."""
        known = self._live.get(ino)
        if known is None:
            known = index
            while known < self._count and self._numbers[known] == ino and self._tag(known) == Kind.WHITEOUT:
                known += 1
            if known == self._count or self._numbers[known] != ino:
                known = index
            self._live[ino] = known
        return known

    def _pointers(self, index: int) -> int:
        return self._first + index * self._stride + self._data_words

    def _tag(self, index: int) -> int:
        if self._data_words < 2:
            return 0
        return self._message.words[self._first + index * self._stride + 1] & 0xFFFF

    def _ledger(self, index: int, visit: int) -> tuple[Ledger, bool]:
        """Who pays for a visit, and whether it is the first one."""
        if self._visited[index] & visit:
            return Ledger(len(self._message.words)), False
        self._visited[index] |= visit
        return self._message.ledger, True

    def _failure(self, index: int, fresh: bool, visit: int, error: FormatError) -> FormatError:
        if fresh and isinstance(error, OverdrawnError):
            self._visited[index] &= ~visit  # not paid: the next visit must not be free
        return FormatError(f"inode {self._numbers[index]}: {error.message}")

    def _content(self, tag: int, index: int, ledger: Ledger, target: bytes) -> Content:
        message = self._message
        segment, at = self._segment, self._pointers(index)
        match tag:
            case Kind.REGULAR:
                records = self._chunk_records(at)
                ledger.spend(records[2], "chunks")
                chunks = contents.ChunkList(message, records, self._numbers[index])
                return RegularFile(chunks.total_size(), chunks)
            case Kind.DIRECTORY:
                if not self._pointer_words:
                    return Directory(())
                records, look_below = contents.directory_records(message, segment, at, ledger)
                return Directory(contents.directory_entries(message, records, ledger), look_below)
            case Kind.SYMLINK:
                return Symlink(target)
            case Kind.CHAR_DEVICE:
                return CharDevice(*self._device(at))
            case Kind.BLOCK_DEVICE:
                return BlockDevice(*self._device(at))
            case Kind.FIFO:
                return Fifo()
            case Kind.SOCKET:
                return Socket()
            case Kind.WHITEOUT:
                return Whiteout()
            case Kind.UNKNOWN:
                raise FormatError("it has no kind")
            case _:
                raise FormatError(f"it is of an unknown kind: {tag}")

    def _chunk_records(self, at: int) -> tuple[int, int, int, int, int]:
        if not self._pointer_words:
            return self._segment, at, 0, 0, 0
        segment = self._segment
        if self._file_struct:
            segment, start, data_words, pointer_words = self._message.struct_at(segment, at, "file")
            if not pointer_words:
                return segment, start, 0, 0, 0
            at = start + data_words
        return self._message.records_at(segment, at, "chunks")

    def _device(self, at: int) -> tuple[int, int]:
        if not self._pointer_words:
            return 0, 0
        _segment, start, data_words, _pointer_words = self._message.struct_at(self._segment, at, "device")
        words = self._message.words
        return (words[start] if data_words else 0, words[start + 1] if data_words > 1 else 0)

    def _additional(self, at: int, ledger: Ledger, *, has_target: bool) -> tuple[bytes, tuple[Xattr, ...]]:
        message = self._message
        segment, start, data_words, pointer_words = message.struct_at(self._segment, at, "additional data")
        start += data_words
        xattrs = contents.xattrs_at(message, segment, start, ledger) if pointer_words else ()
        if not has_target or pointer_words < 2:
            return b"", xattrs
        return message.data_at(segment, start + 1, "symlink target", ledger), xattrs
