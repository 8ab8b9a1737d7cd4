"""Where in an image things are mounted for a command that has it as its root.

An image may be hostile, and any part of these paths may be a link: links are followed here, in the image's own tree, so
that nobody has to follow one on a host. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from puzzlefs.errors import NotFoundError, PuzzlefsError
from puzzlefs.model import ROOT_INO, Kind
from puzzlefs.vfs import Tree

_RESOLV_CONF: Final = (b"etc", b"resolv.conf")
_MAX_LINKS: Final = 40  # path_resolution(7)


@dataclass(frozen=True, slots=True)
class Place:
    """Something to mount on.

    Attributes:
        parts: the way to it from the root, without links.
        is_missing: whether the image lacks it, so that a stub is needed.
    """

    parts: tuple[bytes, ...]
    is_missing: bool


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are mounted in the root of the command; ``None``: nowhere, since something else is there."""

    proc: Place | None
    dev: Place | None
    sys: Place | None
    resolv_conf: Place | None


def find_places(tree: Tree) -> Places:
    """Where in an image ``/proc``, ``/dev``, ``/sys`` and ``/etc/resolv.conf`` are, or would be."""
    proc, dev, sys = (_place(tree, (name,), Kind.DIRECTORY) for name in (b"proc", b"dev", b"sys"))
    resolv_conf = _place(tree, _RESOLV_CONF, Kind.REGULAR)
    covered = {place.parts for place in (proc, dev, sys) if place is not None}
    if resolv_conf is not None and any(resolv_conf.parts[: len(parts)] == parts for parts in covered):
        resolv_conf = None
    return Places(proc, dev, sys, resolv_conf)


def _place(tree: Tree, parts: tuple[bytes, ...], wanted: Kind) -> Place | None:
    """Where ``parts`` lead in an image; ``None`` if something of another kind than ``wanted`` is in the way."""
    try:
        return _resolve(tree, parts, wanted)
    except PuzzlefsError:
        return None  # that part of the image is malformed: whoever uses it is told


def _resolve(tree: Tree, parts: tuple[bytes, ...], wanted: Kind) -> Place | None:
    way: list[bytes] = []
    inodes = [ROOT_INO]
    left = list(parts)
    links = 0
    while left:
        part = left.pop(0)
        if part in (b"", b"."):
            continue
        if part == b"..":
            if way:
                way.pop()
                inodes.pop()
            continue
        if tree.kind(inodes[-1]) is not Kind.DIRECTORY:
            return None
        try:
            entry = tree.lookup(inodes[-1], part)
        except NotFoundError:
            rest = (part, *left)
            if b".." in rest:
                return None
            return Place((*way, *(word for word in rest if word not in (b"", b"."))), is_missing=True)
        if entry.kind is Kind.SYMLINK:
            links += 1
            if links > _MAX_LINKS:
                return None
            target = tree.readlink(entry.ino)
            if target.startswith(b"/"):
                way, inodes = [], [ROOT_INO]
            left = [*target.split(b"/"), *left]
            continue
        way.append(part)
        inodes.append(entry.ino)
    return Place(tuple(way), is_missing=False) if way and tree.kind(inodes[-1]) is wanted else None
