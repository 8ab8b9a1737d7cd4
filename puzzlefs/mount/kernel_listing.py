"""Listings for the kernel, with as much about each entry as will be used.

A listing with attributes (READDIRPLUS) saves a program that looks at every file one request for each: a request costs
ten times what the attributes cost. A program that only wants names does not look at the files, and for it the
attributes are more than half of the work, here and in the kernel. The kernel does not say which it will be, but one can
see it afterwards: a file that was listed without attributes is looked up.

So listings are *lean* (names; attributes of directories only, because whoever walks a tree goes there) until a file of
one of the last ``_REMEMBERED`` lean listings is looked up. Then listings are *rich* for a while, then one is lean
again, to see; every time it shows that rich was right, it is for twice as long.

An offset is the position in a listing that cannot change: 0 is ``.``, 1 is ``..``, then the entries.

Methods fail with ``RequestError`` only. Thread safe: what a race can lose is a guess.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from puzzlefs.model import Kind
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
_FIRST_SPAN: Final = 16
_LONGEST_SPAN: Final = 4096
_NO_INO: Final = (1 << 64) - 1
_DIRECTORY: Final = 4  # DT_DIR
_TYPES: Final = {kind: kind_to_file_type(kind) >> 12 for kind in Kind}
_DOTS: Final = 2


class Listings:
    """Answers to READDIR and READDIRPLUS over one image."""

    def __init__(self, operations: Operations, valid: int) -> None:
        """Listings whose attributes are valid for ``valid`` seconds."""
        self._operations = operations
        self._valid = valid
        self._lean: OrderedDict[int, None] = OrderedDict()
        self._span = _FIRST_SPAN
        self._rich_left = 0

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
        valid = self._valid
        parts = [
            direntplus_without_lookup(ino, after, _DIRECTORY, name) for ino, after, name in self._dots(nodeid, offset)
        ]
        room -= sum(map(len, parts))
        first = max(offset - _DOTS, 0)
        entries = _fitting(self._operations.entries(nodeid)[first:], room, DIRENTPLUS_SIZE)
        is_rich = not self._is_lean(nodeid, offset)
        wanted = entries if is_rich else [entry for entry in entries if entry.kind is Kind.DIRECTORY]
        attributes = iter(self._operations.listed(nodeid, wanted))
        for after, (name, ino, kind) in enumerate(entries, first + _DOTS + 1):
            found = next(attributes) if is_rich or kind is Kind.DIRECTORY else None
            if found is None:  # the name is all that is shown; what is wrong with a bad entry is said when it is used
                parts.append(direntplus_without_lookup(ino or _NO_INO, after, _TYPES[kind], name))
            else:
                parts.append(direntplus(found, valid, after, name))
        return b"".join(parts)

    # ---- inside

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
