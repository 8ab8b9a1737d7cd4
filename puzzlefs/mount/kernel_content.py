"""Content for the kernel: what was asked for, and what will be asked for next.

A chunk holds many small files, in the order of their inode numbers. Reading and checking a chunk costs far more than
handing its bytes over, and a request costs as much as copying 100 KiB. So when a chunk is in hand for one file, the
rest of it is put into the kernel's page cache too (``NOTIFY_STORE``): the files that follow, if the kernel knows them
by now (it answers ENOENT where it does not). And when chunks are wanted in the order in which they were stored,
another thread has the host read those that come next (``read_ahead``), so that the disk works while this program does.
When they are wanted in no order, those behind in the same file are likely to be wanted some time.

Nothing is put there that is not verified, and everything is a guess that may be wrong: what is not stored is asked for.

**Locked pages.** The kernel has a page locked from the moment when it wants to read it until the answer arrives, and
storing into a locked page waits, where no signal helps. If the request for that page lies unread in our own queue, the
wait ends only when the watchman lets another thread serve (see ``kernel_engine``), or when somebody says umount -f. So
things are stored only while one thread alone is reading, and *before* its answer goes out, while it waits; the queue is
emptied first, and files that somebody asks for are left out; one thread stores at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final

from puzzlefs.digest import Digest
from puzzlefs.errors import PuzzlefsError
from puzzlefs.lru import WeightedLru
from puzzlefs.model import Resident
from puzzlefs.mount.operations import Operations
from puzzlefs.mount.read_ahead import SHORT_WHILE, ReadAhead
from puzzlefs.vfs import Piece

Store = Callable[[int, int, memoryview], bool]
"""``store(ino, offset, content)`` puts content into the page cache; whether the kernel knew the inode."""

PAGE_SIZE: Final = 4096

_AHEAD: Final = 8
"""Chunks that the host reads ahead where they are wanted in their order; three times those of one read, or half of how
many were wanted so without a jump, if that is more."""
_MAX_AHEAD: Final = 96
_LOADED: Final = 4
"""Of those, how many are loaded and verified as soon as there is time, one time each."""
_MAX_LOADED: Final = 1 << 20
"""Bytes of content that so many chunks may have each; larger ones would push one another out of memory."""
_BEHIND: Final = 8
"""Chunks of the same file behind one that was wanted out of order that the host reads."""
_MAX_SKIPPED: Final = 64
_MAX_NEIGHBOURS: Final = 1024
_MAX_RESIDENTS: Final = 4096
_MAX_REMEMBERED: Final = 256
_MAX_UNKNOWN: Final = 2
_SMALL_READ: Final = 32 << 10
_MAX_REPEATED: Final = 64


class ContentServer:
    """Reads on behalf of the kernel. Thread safe."""

    def __init__(
        self, operations: Operations, store: Store, wanted: Callable[[], Collection[int]], ahead: ReadAhead
    ) -> None:
        """Reads over one image.

        Args:
            operations: what to read.
            store: puts content into the kernel's page cache.
            wanted: takes requests from the queue without answering them, and says whose content they want.
            ahead: has the host read what will be needed.
        """
        self._operations = operations
        self._tree = operations.image.tree
        self._blobs = operations.image.blobs
        self._store = store
        self._wanted = wanted
        self._ahead = ahead
        self._guessing = threading.Lock()
        self._pushed: OrderedDict[Digest, int] = OrderedDict()
        self._coming: deque[Digest] = deque()
        self._to_load: deque[Digest] = deque()
        self._unfollowed: tuple[int, int, Sequence[Piece]] | None = None
        self._is_compressed = False
        self._in_order = 0
        self._residents: WeightedLru[Digest, tuple[int, list[Resident], int]] = WeightedLru(_MAX_RESIDENTS)
        # a file, until when the host is trusted to remember, and the parts of it that it was told to read
        self._behind: tuple[int, float, set[int]] = 0, 0.0, set()
        self._expected: Digest | None = None
        self._stream: Iterator[Digest] = iter(())

    def read(self, ino: int, offset: int, size: int, *, may_guess: bool) -> list[memoryview]:
        """The content of a file from ``offset`` on, verified.

        Args:
            ino: a regular file.
            offset: in bytes.
            size: in bytes.
            may_guess: whether what may be asked for next can be stored now.

        Raises:
            RequestError: as ``Operations.fetch``.
        """
        operations = self._operations
        plan = operations.plan(ino, offset, size)
        if not plan.pieces:
            return []
        last = plan.pieces[-1]
        is_fresh = not self._blobs.is_cached(last.blob) or last.blob in self._coming
        guesses = (is_fresh or offset == 0 or ino > self._pushed.get(last.blob, ino)) and self._guessing.acquire(False)
        try:
            if guesses and is_fresh:
                with contextlib.suppress(MemoryError):
                    for piece in plan.pieces[1:]:
                        self._ahead.touch(piece.blob)
                    self._unfollowed = ino, offset + size, plan.pieces
            views = operations.views(ino, plan)
            if guesses and may_guess:
                with contextlib.suppress(MemoryError):
                    if size <= _SMALL_READ and len(views) == 1:
                        self._push_around(ino, offset, len(views[0]), last)
                    self._push(ino, last)
        finally:
            if guesses:
                self._guessing.release()
        return views

    def follow(self) -> None:
        """Have the host read what is likely to be needed after the last read, which is answered by now. Never fails."""
        read, self._unfollowed = self._unfollowed, None
        if read is not None and self._guessing.acquire(False):
            try:
                with contextlib.suppress(MemoryError):
                    self._look_ahead(*read)
            finally:
                self._guessing.release()

    def load_next(self) -> bool:
        """Load and verify a chunk that is wanted next, where chunks are wanted in their order.

        For moments in which nobody waits for an answer: a program that reads a tree is busy half of the time with what
        it got. Never fails: what is wrong with a chunk is for those who ask for it.

        Returns:
            Whether there may be more to load.
        """
        if not self._guessing.acquire(False):
            return False
        try:
            while self._to_load:
                blob = self._to_load.popleft()
                if not self._blobs.is_cached(blob):
                    content = self._blobs.load(blob, self._is_compressed)
                    if content is not None and len(content) <= _MAX_LOADED:
                        return True
                    self._to_load.clear()
        except (PuzzlefsError, MemoryError):
            self._to_load.clear()
        finally:
            self._guessing.release()
        return False

    # ---- the page cache

    def _push_around(self, ino: int, offset: int, size: int, piece: Piece) -> None:
        """Store what the chunk of ``piece`` holds of the file besides the bytes that are being answered."""
        content = self._blobs.cached(piece.blob, piece.compressed)
        if content is None:
            return
        begin, end, file_size = self._tree.file_map(ino).extent(offset)
        origin = piece.offset - offset  # where the file would begin in the content
        if end - begin <= size or origin + end > len(content) or ino in self._wanted():
            return
        view = memoryview(content)
        first, answered = -(-begin // PAGE_SIZE) * PAGE_SIZE, offset + size
        if first < offset:
            self._store(ino, first, view[origin + first : origin + offset])
        last = end if end == file_size else end & -PAGE_SIZE
        if answered < last:
            self._store(ino, answered, view[origin + answered : origin + last])

    def _push(self, ino: int, last: Piece) -> None:
        """Store the files that begin behind ``ino`` in the chunk with which a read of it ended."""
        content = self._blobs.cached(last.blob, last.compressed)
        if content is None:
            return
        files, _ = self._files_behind(last.blob, ino)
        if not files:
            return
        view = memoryview(content)
        wanted = self._wanted()
        pushed = ino
        unknown = 0
        for other, begin, length, is_whole in files:
            end = begin + length
            if not is_whole or end > len(view):
                end = begin + (min(end, len(view)) - begin & -PAGE_SIZE)  # whole pages, the rest is elsewhere
            if begin < end and other not in wanted:
                if self._store(other, 0, view[begin:end]):
                    pushed = other
                    unknown = 0
                else:
                    unknown += 1
                    if unknown == _MAX_UNKNOWN:
                        break
        self._pushed[last.blob] = pushed
        if len(self._pushed) > _MAX_REMEMBERED:
            self._pushed.popitem(last=False)

    # ---- what comes next

    def _look_ahead(self, ino: int, stop: int, pieces: Sequence[Piece]) -> None:
        """Have the host read what is likely to be needed after a read."""
        ahead, coming = self._ahead, self._coming
        last = pieces[-1].blob
        if any(piece.blob == self._expected or piece.blob in coming for piece in pieces):
            if not _skip_to(last, _drained(coming)):
                _skip_to(last, itertools.islice(self._stream, _MAX_SKIPPED))
            self._is_compressed = pieces[-1].compressed
            self._in_order += len(pieces)
            distance = min(max(_AHEAD, 3 * len(pieces), self._in_order // 2), _MAX_AHEAD)
            for blob in itertools.islice(self._stream, max(0, distance - len(coming))):
                ahead.touch(blob)
                coming.append(blob)
            self._to_load = deque(itertools.islice(coming, _LOADED))
            self._expected = None
        else:
            stream = self._blobs_after(ino, stop, last)
            self._expected = next(stream, None)
            self._in_order = 0
            self._stream = itertools.chain((self._expected,) if self._expected else (), stream)
            coming.clear()
            self._to_load.clear()
            self._touch_behind(ino, stop)

    def _touch_behind(self, ino: int, stop: int) -> None:
        """Have the host read the next chunks of the same file."""
        known, until, parts = self._behind
        now = time.monotonic()
        if known != ino or now > until:
            parts = set()
            self._behind = ino, now + SHORT_WHILE, parts
        with contextlib.suppress(PuzzlefsError):  # what is wrong further on is no matter of this read
            file = self._tree.file_map(ino)
            number = file.position(min(stop, file.size) - 1) + 1
            for part in range(number, min(number + _BEHIND, len(file))):
                if part not in parts and self._ahead.touch(file.blob(part)):
                    parts.add(part)

    def _blobs_after(self, ino: int, stop: int, blob: Digest) -> Iterator[Digest]:
        """The chunks behind the byte before ``stop`` of a file, which is in ``blob``, in the order of the stream."""
        with contextlib.suppress(PuzzlefsError):
            file = self._tree.file_map(ino)
            number = file.position(min(stop, file.size) - 1) + 1
            while True:
                repeated = 0
                for part in range(number, len(file)):
                    if file.blob(part) != blob:
                        repeated = 0
                        blob = file.blob(part)
                        yield blob
                    elif (repeated := repeated + 1) == _MAX_REPEATED:
                        return
                files, after = self._files_behind(blob, ino)
                ino, number = after, 1 if files and files[-1].ino == after else 0
                file = self._tree.file_map(ino)

    def _files_behind(self, blob: Digest, ino: int) -> tuple[list[Resident], int]:
        """The files behind ``ino`` that begin in a chunk, kept from looking ahead until they are stored."""
        known = self._residents.get(blob)
        if known is not None:
            first, files, after = known
            if first <= ino < after:
                return (files if first == ino else [file for file in files if file.ino > ino]), after
        files, after = self._tree.files_in(blob, ino + 1, ino + 1 + _MAX_NEIGHBOURS)
        self._residents.put(blob, (ino, files, after), len(files) + 1)
        return files, after


def _skip_to(blob: Digest, blobs: Iterator[Digest]) -> bool:
    """Consume ``blobs`` up to and with ``blob``; whether it was there."""
    return any(other == blob for other in blobs)


def _drained(blobs: deque[Digest]) -> Iterator[Digest]:
    while blobs:
        yield blobs.popleft()
