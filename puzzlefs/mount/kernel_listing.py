"""Listings for the kernel, with as much about each entry as will be used.

A listing with attributes (READDIRPLUS) saves a program that looks at every file one request for each: a request costs
ten times what the attributes cost. A program that only wants names does not look at the files, and for it the
attributes are more than half of the work, here and in the kernel. The kernel does not say which it will be, but one can
see it afterwards: a file that was listed without attributes is looked up.

So listings are *lean* (names; attributes of directories only, because whoever walks a tree goes there) until a file of
one of the last ``_REMEMBERED`` lean listings is looked up. Then listings are *rich* for a while, then one is lean
again, to see; every time it shows that rich was right, it is for twice as long.

**Ahead of a walk.** Programs that walk a tree list a directory, then its first subdirectory, and so on, depth first in
the order in which they were told. While such a program is busy with one listing, the next one is made (``prepare``).

An offset is the position in a listing that cannot change: 0 is ``.``, 1 is ``..``, then the entries.

Methods fail with ``RequestError`` only. Thread safe: what a race can lose is a guess.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from puzzlefs.model import Kind
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.kernel_protocol import (
    BODY,
    DIRENT_SIZE,
    DIRENTPLUS_SIZE,
    READ_IN,
    dirent,
    direntplus,
    direntplus_without_lookup,
    padded_name_size,
)
from puzzlefs.mount.operations import Operations
from puzzlefs.vfs import Entry, kind_to_file_type

_REMEMBERED: Final = 64
_MAX_COMING: Final = 4096
"""Directories that a walk is expected to list, at most."""
_MAX_PASSED: Final = 64
"""Of those, how many a walk may leave out."""
_FIRST_SPAN: Final = 16
_LONGEST_SPAN: Final = 4096
_STEP: Final = 4
"""Entries of which a listing is made at a time."""
_FINISHED: Final = object()
_NO_INO: Final = (1 << 64) - 1
_DIRECTORY: Final = 4  # DT_DIR
_TYPES: Final = {kind: kind_to_file_type(kind) >> 12 for kind in Kind}
_DOTS: Final = 2


class _Making(NamedTuple):
    """A part of a listing that is being made.

    Attributes:
        directory: what is listed.
        room: bytes of its entries, at most.
        is_rich: whether all entries have attributes.
        parts: what there is of it.
        steps: makes the rest; raises ``RequestError``.
    """

    directory: int
    room: int
    is_rich: bool
    parts: list[bytes]
    steps: Iterator[None]

    def finished(self) -> list[bytes]:
        """All parts."""
        deque(self.steps, maxlen=0)
        return self.parts


class Listings:
    """Answers to READDIR and READDIRPLUS over one image."""

    def __init__(self, operations: Operations, valid: int) -> None:
        """Listings whose attributes are valid for ``valid`` seconds."""
        self._operations = operations
        self._valid = valid
        self._lean: OrderedDict[int, None] = OrderedDict()
        self._span = _FIRST_SPAN
        self._rich_left = 0
        self._begun: tuple[int, int] | None = None
        self._ahead: _Making | None = None
        self._coming: list[int] = []
        self._preparing = threading.Lock()

    def looked_up(self, parent: int) -> None:
        """Take note that a file in ``parent`` was looked up."""
        if parent in self._lean and not self._rich_left:
            self._lean.clear()
            self._rich_left = self._span
            self._span = min(2 * self._span, _LONGEST_SPAN)

    def readdir(self, nodeid: int, request: memoryview, size: int) -> bytes:
        """The answer to READDIR."""
        _, offset, room = READ_IN.unpack_from(request, BODY)
        parts = [dirent(ino, after, _DIRECTORY, name) for ino, after, name in self._dots(nodeid, offset)]
        room -= sum(map(len, parts))
        first = max(offset - _DOTS, 0)
        entries = _fitting(self._operations.entries(nodeid)[first:], room, DIRENT_SIZE)
        for after, entry in enumerate(entries, first + _DOTS + 1):
            parts.append(dirent(entry.ino or _NO_INO, after, _TYPES[entry.kind], entry.name))
        return b"".join(parts)

    def readdirplus(self, nodeid: int, request: memoryview, size: int) -> bytes:
        """The answer to READDIRPLUS."""
        _, offset, room = READ_IN.unpack_from(request, BODY)
        if offset > _DOTS and offset - _DOTS >= len(self._operations.entries(nodeid)):
            return b""  # every listing is asked for once more after its end
        is_rich = not self._is_lean(nodeid, offset)
        # not made ahead: what a directory is in may be known only now
        dots = [
            direntplus_without_lookup(ino, after, _DIRECTORY, name) for ino, after, name in self._dots(nodeid, offset)
        ]
        room -= sum(map(len, dots))
        if not offset:
            self._begun = nodeid, room
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[:3] == (nodeid, room, is_rich):
                with contextlib.suppress(RequestError):  # what is wrong is said below
                    return b"".join((*dots, *ahead.finished()))
        making = self._making(nodeid, max(offset - _DOTS, 0), room, is_rich, is_asked_for=True)
        return b"".join((*dots, *making.finished()))

    def prepare(self) -> bool:
        """Take a step towards the listing that a program which walks the tree will ask for next.

        For moments in which nobody waits for an answer. Never fails: what is wrong is for those who ask for it.

        Returns:
            Whether there is another step to take.
        """
        if (self._begun is None and self._ahead is None) or not self._preparing.acquire(False):
            return False
        try:
            begun, self._begun = self._begun, None
            if begun is not None:
                self._ahead = self._after(*begun)
                return self._ahead is not None
            ahead, self._ahead = self._ahead, None  # nobody else takes a step meanwhile
            if ahead is not None:
                is_unfinished = next(ahead.steps, _FINISHED) is not _FINISHED
                self._ahead = ahead
                return is_unfinished
        except Exception:  # noqa: BLE001  whatever it is, who asks for it is told
            return False
        finally:
            self._preparing.release()
        return False

    # ---- inside

    def _making(self, nodeid: int, first: int, room: int, is_rich: bool, *, is_asked_for: bool) -> _Making:
        parts: list[bytes] = []
        return _Making(nodeid, room, is_rich, parts, self._steps(nodeid, first, room, is_rich, is_asked_for, parts))

    def _steps(
        self, nodeid: int, first: int, room: int, is_rich: bool, is_asked_for: bool, parts: list[bytes]
    ) -> Iterator[None]:
        """Make a listing for READDIRPLUS from the entry with the number ``first`` on, a few entries at a time."""
        valid = self._valid
        found = self._operations.entries(nodeid, is_asked_for=is_asked_for)
        entries = _fitting(found[first:], room, DIRENTPLUS_SIZE)
        for begin in range(0, len(entries), _STEP):
            yield
            some = entries[begin : begin + _STEP]
            wanted = some if is_rich else [entry for entry in some if entry.kind is Kind.DIRECTORY]
            attributes = iter(self._operations.listed(nodeid, wanted, is_asked_for=is_asked_for))
            for after, (name, ino, kind) in enumerate(some, first + begin + _DOTS + 1):
                shown = next(attributes) if is_rich or kind is Kind.DIRECTORY else None
                if shown is None:  # the name is all that is shown; a bad entry's use says what is wrong with it
                    parts.append(direntplus_without_lookup(ino or _NO_INO, after, _TYPES[kind], name))
                else:
                    parts.append(direntplus(shown, valid, after, name))

    def _after(self, directory: int, room: int) -> _Making | None:
        """What will be listed after ``directory``, which was listed just now, if it was itself what came next."""
        coming = self._coming
        is_walk = directory in coming[-_MAX_PASSED:]
        if is_walk:
            while coming.pop() != directory:
                pass
        else:
            coming.clear()
        entries = self._operations.entries(directory, is_asked_for=False)
        coming += [entry.ino for entry in reversed(entries) if entry.kind is Kind.DIRECTORY]
        del coming[:-_MAX_COMING]
        if not is_walk or not coming:
            return None
        return self._making(coming[-1], 0, room, self._rich_left > 0, is_asked_for=False)

    def _is_lean(self, nodeid: int, offset: int) -> bool:
        lean = self._lean
        if offset:
            return nodeid in lean  # as it was begun
        if self._rich_left:
            self._rich_left -= 1
            lean.pop(nodeid, None)
            return False
        lean[nodeid] = None
        if len(lean) > _REMEMBERED:
            lean.popitem(last=False)
        return True

    def _dots(self, nodeid: int, offset: int) -> list[tuple[int, int, bytes]]:
        """Inode number, next offset and name of ``.`` and ``..`` as far as they are asked for."""
        if offset >= _DOTS:
            return []
        return [(nodeid, 1, b"."), (self._operations.parent(nodeid), 2, b"..")][offset:]


def _fitting(entries: Sequence[Entry], room: int, entry_size: int) -> Sequence[Entry]:
    """As many of ``entries`` as fit into ``room`` bytes."""
    for number, entry in enumerate(entries):
        room -= entry_size + padded_name_size(len(entry.name))
        if room < 0:
            return entries[:number]
    return entries
