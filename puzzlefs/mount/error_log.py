"""Saying what went wrong with a request, once, and naming the file.

A program sees an errno; whoever looks after the mount reads this log. One broken chunk makes the kernel ask again and
again (a failed read-ahead is followed by a read of the single page), and one broken image can fail a hundred thousand
times, so:

* the same failure of the same inode is one line, however often it happens;
* lines are limited in rate; what was left out is counted and said with the next line.

The kernel names inodes by number. ``NameCache`` remembers the names under which they were looked up lately, so that a
line can say which file it is; where it has forgotten, the tree is searched, up to a bound. Both are bounded; both are
thread safe.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from puzzlefs.errors import PuzzlefsError
from puzzlefs.lru import WeightedLru
from puzzlefs.model import ROOT_INO, Kind
from puzzlefs.vfs import Entry, Tree

log = logging.getLogger("puzzlefs.mount")

_MAX_DIRECTORIES: Final = 16_384
_MAX_FILES: Final = 8_192
_MAX_LISTINGS: Final = 4_096
_MAX_DEPTH: Final = 4_096
_MAX_SEARCHED: Final = 500_000
_MAX_REMEMBERED: Final = 4_096
_BURST: Final = 50
_LINES_PER_SECOND: Final = 5.0


class NameCache:
    """The names under which inodes were looked up lately; directories are kept apart, so that files do not push them
    out."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._directories: WeightedLru[int, tuple[int, bytes]] = WeightedLru(_MAX_DIRECTORIES)
        self._files: WeightedLru[int, tuple[int, bytes]] = WeightedLru(_MAX_FILES)
        self._listings: WeightedLru[int, None] = WeightedLru(_MAX_LISTINGS)

    def remember(self, parent: int, entry: Entry) -> None:
        """Note that the directory ``parent`` has ``entry``."""
        names = self._directories if entry.kind is Kind.DIRECTORY else self._files
        names.put(entry.ino, (parent, entry.name), 1)

    def remember_listing(self, directory: int) -> None:
        """Note that ``directory`` was listed, and so its files became known; one by one would be too slow."""
        self._listings.put(directory, None, 1)

    def parent(self, directory: int) -> int | None:
        """The directory that a directory is in, if it was looked up lately."""
        known = self._directories.get(directory)
        return None if known is None else known[0]

    def path(self, ino: int) -> str | None:
        """A path of ``ino`` from the root of the image, for people to read; ``None`` if it cannot be found."""
        path = self._remembered(ino)
        if path is None:
            path = self._searched(ino)
        return None if path is None else "/" + path.decode("utf-8", "surrogateescape")

    def _remembered(self, ino: int) -> bytes | None:
        parts: list[bytes] = []
        if ino not in self._directories and ino not in self._files:
            self._recall(ino)
        while ino != ROOT_INO:
            known = self._directories.get(ino) or (None if parts else self._files.get(ino))
            if known is None or len(parts) > _MAX_DEPTH:
                return None
            ino, name = known
            parts.append(name)
        return b"/".join(reversed(parts))

    def _recall(self, ino: int) -> None:
        """Look for ``ino`` in the directories that were listed lately."""
        for directory in self._listings.newest():
            with contextlib.suppress(PuzzlefsError):
                for entry in self._tree.entries(directory):
                    if entry.ino == ino:
                        self.remember(directory, entry)
                        return

    def _searched(self, wanted: int) -> bytes | None:
        """The path of the first entry for an inode, from the root downwards, past directories that are broken."""
        paths = {ROOT_INO: b""}
        queue = deque([ROOT_INO])
        searched = 0
        while queue and searched < _MAX_SEARCHED:
            directory = queue.popleft()
            with suppress(PuzzlefsError):
                for entry in self._tree.entries(directory):
                    searched += 1
                    path = paths[directory] + entry.name
                    if entry.ino == wanted:
                        return path
                    if entry.kind is Kind.DIRECTORY and entry.ino not in paths:
                        paths[entry.ino] = path + b"/"
                        queue.append(entry.ino)
        return None


class ErrorLog:
    """Writes each failure once, not too many at a time."""

    def __init__(self, names: NameCache, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = names
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._allowance = float(_BURST)
        self._last = clock()
        self._left_out = 0

    def report(self, request: str, ino: int, error: BaseException, name: bytes | None = None) -> None:
        """Log that ``request`` on ``ino`` failed (on the entry ``name`` of that directory, where one is given)."""
        key = (ino if name is None else hash((ino, name)), str(error))
        with self._lock:
            if key in self._seen:
                return
            self._seen[key] = None
            if len(self._seen) > _MAX_REMEMBERED:
                self._seen.popitem(last=False)
            if not self._may_write():
                self._left_out += 1
                return
            left_out, self._left_out = self._left_out, 0
        if left_out:
            log.error("%d more errors were not logged", left_out)
        expected = isinstance(error, PuzzlefsError | OSError)
        log.error("%s %s: %s", request, self._subject(ino, name), error, exc_info=None if expected else error)

    def _may_write(self) -> bool:
        now = self._clock()
        self._allowance = min(float(_BURST), self._allowance + (now - self._last) * _LINES_PER_SECOND)
        self._last = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    def _subject(self, ino: int, name: bytes | None) -> str:
        path = self._names.path(ino)
        if path is None:
            return f"inode {ino}" if name is None else f"{name!r} in directory {ino}"
        if name is not None:
            path = path.rstrip("/") + "/" + name.decode("utf-8", "surrogateescape")
        return f"{path!r} (inode {ino})" if name is None else repr(path)
