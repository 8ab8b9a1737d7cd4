"""Which users and groups exist inside of a user namespace (user_namespaces(7), subuid(5)).

Root gets all ids that it has itself, as they are. Anybody else is 0 inside, and from 1 on come the ids that
``/etc/subuid`` and ``/etc/subgid`` hold for them, which only ``newuidmap`` and ``newgidmap`` may map. Where those are
missing, 0 is all there is: files of other owners show as nobody's, and the kernel refuses to write to them.

The maps are written by a process outside, once, when the namespace is new.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puzzlefs.errors import MountError


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids from ``inside`` on, which are the ids from ``outside`` on for everybody else."""

    inside: int
    outside: int
    count: int

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.count}"


@dataclass(frozen=True, slots=True)
class _Kind:
    word: str
    map_file: str
    subordinate: Path
    program: str


_USERS: Final = _Kind("uid", "uid_map", Path("/etc/subuid"), "newuidmap")
_GROUPS: Final = _Kind("gid", "gid_map", Path("/etc/subgid"), "newgidmap")


def map_ids(pid: int) -> str | None:
    """Give the new user namespace of the process ``pid``, a child, its ids.

    Returns:
        ``None`` if files of many owners can be written; else one line that says which cannot, why, and what to do.

    Raises:
        MountError: if the kernel refuses even this user's own id.
    """
    reasons = []
    for kind in (_GROUPS, _USERS):
        count = _map_all(pid, kind) if os.geteuid() == 0 else 0
        if count == 1:
            reasons.append(f"root has no further {kind.word}s in the user namespace in which this runs")
        elif not count and (reason := _map(pid, kind)) is not None:
            reasons.append(reason)
    if not reasons:
        return None
    return f"only files of uid 0 and gid 0 can be written, the others show as nobody's: {reasons[-1]}"


def subordinate_ranges(lines: Iterable[str], names: Sequence[str]) -> list[tuple[int, int]]:
    """The ranges ``(start, count)`` that lines ``name:start:count`` hold for any of these names, in their order."""
    found = []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in names and fields[1].isdecimal() and fields[2].isdecimal():
            start, count = int(fields[1]), int(fields[2])
            if count:
                found.append((start, count))
    return found


def ranges_from_one(own: int, subordinate: Iterable[tuple[int, int]]) -> list[IdRange]:
    """``own`` as 0, and the subordinate ranges one behind the other from 1 on."""
    ranges = [IdRange(0, own, 1)]
    for start, count in subordinate:
        ranges.append(IdRange(ranges[-1].inside + ranges[-1].count, start, count))
    return ranges


def _map_all(pid: int, kind: _Kind) -> int:
    """Map every id that there is out here to itself; how many that are, 0 if this root may not."""
    ranges = []
    for line in Path(f"/proc/self/{kind.map_file}").read_text().splitlines():
        inside, _, count = map(int, line.split())
        ranges.append(IdRange(inside, inside, count))
    try:
        _write(pid, kind, ranges)
    except OSError:
        return 0
    return sum(part.count for part in ranges)


def _map(pid: int, kind: _Kind) -> str | None:
    """Map what this user has of one kind; why that is only the own id, if it is."""
    own = os.geteuid() if kind is _USERS else os.getegid()
    reason = _map_subordinate(pid, kind, own, [_user_name(), str(os.geteuid())])
    if reason is None:
        return None
    try:
        if kind is _GROUPS:
            Path(f"/proc/{pid}/setgroups").write_text("deny")
        _write(pid, kind, [IdRange(0, own, 1)])
    except OSError as error:
        raise MountError(f"the kernel maps no {kind.word} in a user namespace: {error.strerror}") from error
    return reason


def _map_subordinate(pid: int, kind: _Kind, own: int, names: Sequence[str]) -> str | None:
    try:
        ranges = subordinate_ranges(kind.subordinate.read_text(errors="replace").splitlines(), names)
    except OSError:
        ranges = []
    if not ranges:
        grant = f"usermod --add-sub{kind.word}s 100000-165535 {names[0]}"
        return f"{kind.subordinate} has no line for {names[0]}; as root: {grant}"
    program = shutil.which(kind.program)
    if program is None:
        return f"{kind.program} is not installed (Debian: package uidmap)"
    words = [word for part in ranges_from_one(own, ranges) for word in str(part).split()]
    result = subprocess.run([program, str(pid), *words], capture_output=True, text=True, errors="replace", check=False)
    if result.returncode:
        return f"{kind.program} failed: {' '.join(result.stderr.split())}"
    return None


def _write(pid: int, kind: _Kind, ranges: Iterable[IdRange]) -> None:
    # one write: the kernel takes a map as a whole, and only once
    with open(f"/proc/{pid}/{kind.map_file}", "wb", buffering=0) as file:
        file.write("".join(f"{part}\n" for part in ranges).encode())


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
