"""What ls(1) prints of a directory: rows of attributes, columns of names. Nothing here knows images or options.

The rows are those of GNU ls: each column as wide as its widest cell in this directory, device numbers in the place of
the size, ``+`` behind the mode of a file with an ACL, times that are older than half a year (or in the future) with the
year. A listing can have a hundred thousand rows, so what repeats (modes, owners, times) is written once and looked up.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from puzzlefs.vfs import Attributes

_NS: Final = 1_000_000_000
_RECENT: Final = 31_556_952 // 2
"""Seconds of half a Gregorian year, on average, as GNU ls counts it."""

_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MIN_GAP: Final = 2
_MIN_COLUMN: Final = 3
_TYPE_LETTERS: Final = {1: "p", 2: "c", 3: "d", 4: "b", 5: "-", 6: "l", 7: "s"}


class Row(NamedTuple):
    """A file to be listed.

    Attributes:
        name: as it is to be printed, in bytes.
        kind: its ``Kind``, for one whose attributes are unknown.
        attributes: ``None`` where the image is malformed there.
        access: what stands behind the mode: ``+`` for an ACL, ``.`` for a security context, else a space.
    """

    name: bytes
    kind: int
    attributes: Attributes | None
    access: str = " "


@dataclass(slots=True)
class LongFormat:
    """Writes rows of attributes.

    Attributes:
        user: what stands for an owner.
        group: what stands for a group.
        numeric: whether these are numbers, which are aligned to the right.
        full_time: whether times are written with nanoseconds and zone.
        inodes: whether inode numbers come first.
    """

    user: Callable[[int], str]
    group: Callable[[int], str]
    numeric: bool
    full_time: bool
    inodes: bool
    _now: float
    _modes: dict[int, str]
    _times: dict[int, str]

    def __init__(
        self,
        *,
        user: Callable[[int], str] = str,
        group: Callable[[int], str] = str,
        numeric: bool = True,
        full_time: bool = False,
        inodes: bool = False,
    ) -> None:
        self.user = user
        self.group = group
        self.numeric = numeric
        self.full_time = full_time
        self.inodes = inodes
        self._now = time.time()
        self._modes = {}
        self._times = {}

    def lines(self, rows: Sequence[Row]) -> list[bytes]:
        """The rows, aligned with each other, without ends of lines."""
        known = [row.attributes for row in rows if row.attributes is not None]
        # columns instead of attributes of each row: there can be very many
        inos, bits_of_all, link_counts, uids, gids, _, sizes, _, _ = zip(*known, strict=True) if known else [()] * 9
        links = _width(max(link_counts, default=0))
        users = {uid: self.user(uid) for uid in set(uids)}
        groups = {gid: self.group(gid) for gid in set(gids)}
        user_width, group_width = _widest(users.values()), _widest(groups.values())
        size = _width(max(sizes, default=0))
        has_devices = any(map(_is_device, set(bits_of_all)))
        major = minor = 0
        if has_devices:
            devices = [item.rdev for item in known if _is_device(item.mode)]
            major = _width(max(map(os.major, devices)))
            minor = _width(max(map(os.minor, devices)))
            size = max(size, major + 2 + minor)
            minor = size - major - 2
        align = ">" if self.numeric else "<"
        users = {uid: f"{text:{align}{user_width}}" for uid, text in users.items()}
        groups = {gid: f"{text:{align}{group_width}}" for gid, text in groups.items()}
        has_access = any(access != " " for access in {row.access for row in rows})
        number = _width(max(inos, default=0)) if self.inodes else 0
        modes, times, shown_time = self._modes, self._times, self._time
        heads: dict[tuple[int, int, int, int, str], str] = {}
        found: list[bytes] = []
        time_width = 0
        for name, kind, item, access in rows:
            if item is None:
                time_width = time_width or max((len(shown_time(other.mtime_ns)) for other in known), default=1)
                mode = f"{_TYPE_LETTERS.get(kind, '?')}?????????{' ' if has_access else ''}"
                cells = f"{mode} {'?':>{links}} {'?':{align}{user_width}} {'?':{align}{group_width}} {'?':>{size}}"
                text = f"{'?':>{number}} {cells}" if number else cells
                found.append(f"{text} {'?':>{time_width}} ".encode() + name)
                continue
            ino, bits, nlink, uid, gid, rdev, file_size, _, mtime_ns = item
            head = heads.get(key := (bits, nlink, uid, gid, access))
            if head is None:
                mode = modes.get(bits) or modes.setdefault(bits, stat.filemode(bits))
                if has_access:
                    mode += access
                head = heads[key] = f"{mode} {nlink:>{links}} {users[uid]} {groups[gid]} "
            when = times.get(mtime_ns) or shown_time(mtime_ns)
            if has_devices and _is_device(bits):
                shown = f"{os.major(rdev):>{major}}, {os.minor(rdev):>{minor}}"
            else:
                shown = f"{file_size:>{size}}"
            text = f"{ino:>{number}} {head}{shown} {when} " if number else f"{head}{shown} {when} "
            found.append(text.encode("utf-8", "surrogateescape") + name)
        return found

    def _time(self, mtime_ns: int) -> str:
        seconds, rest = divmod(mtime_ns, _NS)
        local = time.localtime(seconds)
        if self.full_time:
            text = full_time(mtime_ns)
        else:
            day = f"{_MONTHS[local.tm_mon - 1]} {local.tm_mday:>2}"
            is_recent = self._now - _RECENT < seconds + rest / _NS <= self._now
            text = f"{day} {local.tm_hour:02}:{local.tm_min:02}" if is_recent else f"{day} {local.tm_year:>5}"
        self._times[mtime_ns] = text
        return text


def full_time(mtime_ns: int) -> str:
    """A time as ``ls --full-time`` and stat(1) write it: ``2026-11-24 21:14:45.714914971 +0000``."""
    seconds, rest = divmod(mtime_ns, _NS)
    local = time.localtime(seconds)
    return f"{local.tm_year:04}-{time.strftime('%m-%d %H:%M:%S', local)}.{rest:09} {time.strftime('%z', local)}"


def total(rows: Sequence[Row]) -> int:
    """What the line ``total`` says: the room that the files take, in kibibytes."""
    return (sum(row.attributes.blocks for row in rows if row.attributes is not None) + 1) // 2


def columns(names: Sequence[str], widths: Sequence[int], line_width: int) -> list[str]:
    """Names in as many columns as fit into a line, each column from top to bottom, as ``ls -C``.

    Args:
        names: the names.
        widths: how wide each is on a terminal.
        line_width: columns of the terminal.
    """
    count = len(names)
    for number in range(min(count, max(1, -(-line_width // _MIN_COLUMN))), 0, -1):
        rows = -(-count // number)
        tops = range(0, count, rows)
        gaps = [_MIN_GAP if index < number - 1 else 0 for index in range(len(tops))]
        wide = [max(_MIN_COLUMN, max(widths[top : top + rows]) + gap) for top, gap in zip(tops, gaps, strict=True)]
        room = sum(wide) + _MIN_COLUMN * (number - len(wide))  # as GNU ls counts: also columns that stay empty
        if number == 1 or room < line_width or room == _MIN_COLUMN * number:
            break
    else:
        return []
    lines = []
    for row in range(rows):
        cells = [
            names[at] + " " * (wide[column] - widths[at] if at + rows < count else 0)
            for column, at in enumerate(range(row, count, rows))
        ]
        lines.append("".join(cells))
    return lines


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _width(number: int) -> int:
    return len(str(number))


def _widest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=1)
