"""Saying what went wrong with a request, once, and naming the file.

A program sees an errno; whoever looks after the mount reads this log. One broken chunk makes the kernel ask again and
again (a failed read-ahead is followed by a read of the single page), and one broken image can fail a hundred thousand
times, so:

* the same failure of the same inode is one line, however often it happens;
* lines are limited in rate; what was left out is counted and said with the next line.

Lines are for people. What a program can ask for is a ``MountEvent`` for each different failure, also for those whose
line was left out: all are counted, the newest are kept, and whoever wants to keep them longer than this process lives
sets ``on_event``.

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
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Final, NamedTuple, Self

from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    PuzzlefsError,
    VerityNotEnabledError,
    VerityUnavailableError,
)
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
_MAX_EVENTS: Final = 256
_MAX_MESSAGE: Final = 1000


class EventKind(StrEnum):
    """What went wrong, as programs read it."""

    CORRUPT = "corrupt"
    MISSING = "missing"
    UNVERIFIED = "not verifiable"
    MALFORMED = "malformed"
    UNREADABLE = "unreadable"
    DEFECT = "defect"
    """In this program, not in the image."""


class MountEvent(NamedTuple):
    """A request that failed because of the image or the host.

    Attributes:
        time: when, in seconds since 1970.
        request: what failed, for example ``read of``.
        kind: what is wrong.
        inode: of the file, or of the directory that has ``entry``.
        entry: the name in that directory, where the failure is one of a name.
        path: the file that is hit, from the image's root on; ``None`` if it is not known.
        blob: sha256 of the bad blob in hex, where one is to blame.
        message: what is wrong, in one line.
    """

    time: float
    request: str
    kind: EventKind
    inode: int
    entry: str | None
    path: str | None
    blob: str | None
    message: str

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return self._asdict()

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Self:
        """The event that ``to_json`` made.

        Raises:
            FormatError: if it is none.
        """
        texts = [value.get(key) for key in ("entry", "path", "blob")]
        moment, inode, request, message = (value.get(key) for key in ("time", "inode", "request", "message"))
        if (
            not isinstance(moment, float | int)
            or not isinstance(inode, int)
            or not isinstance(request, str)
            or not isinstance(message, str)
        ):
            raise FormatError("an event of a mount is malformed")
        entry, path, blob = [text if isinstance(text, str) else None for text in texts]
        try:
            kind = EventKind(str(value.get("kind")))
        except ValueError as error:
            raise FormatError(f"an event of a mount is malformed: {error}") from error
        return cls(moment, request, kind, inode, entry, path, blob, message)


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
        path = self.path_at_hand(ino)
        if path is None and ino not in self._directories and ino not in self._files:
            self._recall(ino)
            path = self.path_at_hand(ino)
        return path if path is not None else self.paths({ino}).get(ino)

    def path_at_hand(self, ino: int) -> str | None:
        """As ``path``, but without looking into a directory."""
        parts: list[bytes] = []
        while ino != ROOT_INO:
            known = self._directories.get(ino) or (None if parts else self._files.get(ino))
            if known is None or len(parts) > _MAX_DEPTH:
                return None
            ino, name = known
            parts.append(name)
        return _text(b"/".join(reversed(parts)))

    def _recall(self, ino: int) -> None:
        """Look for ``ino`` in the directories that were listed lately."""
        for directory in self._listings.newest():
            with contextlib.suppress(PuzzlefsError):
                for entry in self._tree.entries(directory):
                    if entry.ino == ino:
                        self.remember(directory, entry)
                        return

    def paths(self, wanted: Collection[int]) -> dict[int, str]:
        """The paths of the first entries for some inodes, from the root downwards, past directories that are broken;
        those that are not found in bounded time are left out."""
        found = {ROOT_INO: "/"} if ROOT_INO in wanted else {}
        paths = {ROOT_INO: b""}
        queue = deque([ROOT_INO])
        searched = 0
        while queue and searched < _MAX_SEARCHED and len(found) < len(wanted):
            directory = queue.popleft()
            with suppress(PuzzlefsError):
                for entry in self._tree.entries(directory):
                    searched += 1
                    path = paths[directory] + entry.name
                    if entry.ino in wanted:
                        found.setdefault(entry.ino, _text(path))
                    if entry.kind is Kind.DIRECTORY and entry.ino not in paths:
                        paths[entry.ino] = path + b"/"
                        queue.append(entry.ino)
        return found


def _text(path: bytes) -> str:
    return "/" + path.decode("utf-8", "surrogateescape")


class ErrorLog:
    """Writes each failure once, not too many at a time, and remembers the newest.

    Attributes:
        on_event: called with each new event, by the thread that met it, whether or not there is a line in the log.
        count: how many different failures there were.
        failed_requests: how many requests failed, those that failed as before too.
    """

    def __init__(
        self,
        names: NameCache,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[MountEvent], None] | None = None,
    ) -> None:
        self.on_event = on_event
        self.count = 0
        self.failed_requests = 0
        self._names = names
        self._clock = clock
        self._lock = threading.Lock()
        self._events: deque[MountEvent] = deque(maxlen=_MAX_EVENTS)
        self._seen: OrderedDict[tuple[int, str, str], None] = OrderedDict()
        self._allowance = float(_BURST)
        self._last = clock()
        self._left_out = 0

    def restore(self, events: Iterable[MountEvent], count: int, failed_requests: int = 0) -> None:
        """Go on where another process ended: its newest events, oldest first, and how much there was in all."""
        with self._lock:
            for event in events:
                self._events.append(event)
                self._is_new((event.inode, event.entry or "", event.message))
            self.count = max(count, len(self._events))
            self.failed_requests = max(failed_requests, self.count)

    def events(self) -> list[MountEvent]:
        """The newest events, oldest first; paths are looked for where they were not known."""
        with self._lock:
            events = list(self._events)
        unknown = {event.inode for event in events if event.path is None}
        if not unknown:
            return events
        paths = self._names.paths(unknown)
        found = [
            event._replace(path=_joined(paths[event.inode], event.entry))
            if event.path is None and event.inode in paths
            else event
            for event in events
        ]
        known = {id(old): new for old, new in zip(events, found, strict=True)}
        with self._lock:
            self._events = deque([known.get(id(event), event) for event in self._events], maxlen=_MAX_EVENTS)
        return found

    def paths(self, inos: Collection[int]) -> dict[int, str]:
        """The paths of inodes, as far as they can be found in bounded time."""
        return self._names.paths(inos)

    def report(
        self, request: str, ino: int, error: BaseException, name: bytes | None = None, *, path: str | None = None
    ) -> None:
        """Log that ``request`` on ``ino`` failed (on the entry ``name`` of that directory, where one is given).

        ``path`` is that of ``ino``, if the caller knows it.
        """
        entry = None if name is None else name.decode("utf-8", "surrogateescape")
        message = " ".join(str(error).split())[:_MAX_MESSAGE] or type(error).__name__
        with self._lock:
            self.failed_requests += 1
            if not self._is_new((ino, entry or "", message)):
                return
            self.count += 1
            left_out = 0
            if may_write := self._may_write():
                left_out, self._left_out = self._left_out, 0
            else:
                self._left_out += 1
        if path is None:
            path = self._names.path(ino) if may_write else self._names.path_at_hand(ino)
        self._remember(request, ino, error, entry, None if path is None else _joined(path, entry), message)
        if not may_write:
            return
        if left_out:
            log.error("%d more errors were not logged", left_out)
        expected = isinstance(error, PuzzlefsError | OSError | MemoryError)
        text = str(error) or message
        log.error("%s %s: %s", request, _subject(ino, name, path), text, exc_info=None if expected else error)

    def _remember(
        self, request: str, ino: int, error: BaseException, entry: str | None, path: str | None, message: str
    ) -> None:
        blob = getattr(error, "blob", "") or None
        event = MountEvent(time.time(), request, kind_of_event(error), ino, entry, path, blob, message)
        with self._lock:
            self._events.append(event)
        if self.on_event is not None:
            try:
                self.on_event(event)
            except Exception:  # a request must be answered, whoever else wants to know of it
                log.exception("an event could not be handed on")

    def _is_new(self, key: tuple[int, str, str]) -> bool:
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _may_write(self) -> bool:
        now = self._clock()
        self._allowance = min(float(_BURST), self._allowance + (now - self._last) * _LINES_PER_SECOND)
        self._last = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


def kind_of_event(error: BaseException) -> EventKind:
    """What is wrong if a request fails with ``error``."""
    match error:
        case IntegrityError():
            return EventKind.CORRUPT
        case BlobNotFoundError():
            return EventKind.MISSING
        case VerityNotEnabledError() | VerityUnavailableError():
            return EventKind.UNVERIFIED
        case FormatError():
            return EventKind.MALFORMED
        case PuzzlefsError() | OSError() | MemoryError():
            return EventKind.UNREADABLE
        case _:
            return EventKind.DEFECT


def _joined(path: str, entry: str | None) -> str:
    return path if entry is None else path.rstrip("/") + "/" + entry


def _subject(ino: int, name: bytes | None, path: str | None) -> str:
    if path is None:
        return f"inode {ino}" if name is None else f"{name!r} in directory {ino}"
    if name is not None:
        return repr(_joined(path, name.decode("utf-8", "surrogateescape")))
    return f"{path!r} (inode {ino})"
