"""Paths inside an image: from a path to what it leads to, and from a directory to all that is below it.

Symbolic links are followed as Linux follows them (path_resolution(7)), with the root of the image as the root: an
absolute target begins there, ``..`` at the root stays there, and so no path leads anywhere else, least of all to the
host. A path that does not begin with ``/`` begins at the root too. After 40 links a path is given up (``ELOOP``), so
resolving ends, whatever the image says.

Paths are bytes; only messages show them as text. Nothing is kept; thread safe, as the tree is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from puzzlefs.errors import (
    FormatError,
    InvalidArgumentError,
    NotFoundError,
    PathError,
    PathNotDirectoryError,
    PathNotFoundError,
    PuzzlefsError,
)
from puzzlefs.model import ROOT_INO, Kind
from puzzlefs.vfs.tree import Entry, Tree

MAX_LINKS: Final = 40
"""Symbolic links that one path may go through (Linux MAXSYMLINKS)."""

MAX_PATH: Final = 1 << 14
"""Bytes of the longest path of a directory that a walk enters: four times what Linux takes (PATH_MAX). Deeper trees can
be built, but to name all that is in them takes time and room that grow with the square of the depth."""

_MAX_SHOWN: Final = 200


class Place(NamedTuple):
    """What a path leads to.

    Attributes:
        path: where that is, from the root on, through directories only: ``b"/"``, ``b"/usr/bin"``.
        parent: the directory that it is in; the root is in itself.
        ino: its inode.
        kind: the kind of that.
    """

    path: bytes
    parent: int
    ino: int
    kind: Kind


ROOT: Final = Place(b"/", ROOT_INO, ROOT_INO, Kind.DIRECTORY)
"""The root directory of any image."""


class Visit(NamedTuple):
    """An entry that a walk met.

    Attributes:
        depth: how many directories below the top its directory is.
        path: the path of that directory, with a slash at its end.
        parent: the directory.
        entry: the entry.
    """

    depth: int
    path: bytes
    parent: int
    entry: Entry


def resolve(tree: Tree, path: bytes, *, follow: bool = True) -> Place:
    """What a path leads to.

    Args:
        tree: the image.
        path: the path; it begins at the root of the image, with or without a slash, and the empty one is the root.
        follow: whether a symbolic link at the end of the path is followed too. It always is where a slash comes after.

    Raises:
        PathNotFoundError: if something on the way is missing.
        PathNotDirectoryError: if something on the way is no directory, or the path ends with a slash and leads to none.
        PathError: if the path goes through too many symbolic links.
        InvalidArgumentError: if ``path`` has a NUL in it.
        FormatError: if the image is malformed on the way.
    """
    if b"\0" in path:
        raise InvalidArgumentError(f"{shown(path)} cannot be a path: there is a NUL in it")
    way: list[tuple[bytes, int]] = []  # the directories from the root to where we are, each with the name of the next
    todo = _components(path)
    links = 0
    here = ROOT
    while todo:
        name = todo.pop()
        if here.kind is not Kind.DIRECTORY:
            raise PathNotDirectoryError(f"{_way_to(path, here.path)} is not a directory", os.fsdecode(path))
        if name == b".":
            continue
        if name == b"..":
            if way:
                del way[-1]
            here = _directory(way)
            continue
        entry = _lookup(tree, here, name, path)
        if entry.kind is Kind.SYMLINK and (follow or todo):
            links += 1
            if links > MAX_LINKS:
                raise PathError(
                    f"{shown(path)} leads through more than {MAX_LINKS} symbolic links",
                    os.fsdecode(path),
                    hint="look at the links on the way: ls -l shows where each leads",
                )
            target = tree.readlink(entry.ino)
            todo += _components(target)
            if target.startswith(b"/"):
                way.clear()
                here = ROOT
            continue
        here = Place(join(here.path, name), here.ino, entry.ino, entry.kind)
        if entry.kind is Kind.DIRECTORY:
            way.append((here.path, entry.ino))
    return here


def entries_of(tree: Tree, place: Place) -> Sequence[Entry]:
    """The entries of the directory at ``place``, sorted by name.

    Raises:
        PathNotDirectoryError: if it is none.
        FormatError: if it is malformed.
    """
    if place.kind is not Kind.DIRECTORY:
        raise PathNotDirectoryError(f"{shown(place.path)} is not a directory", os.fsdecode(place.path))
    return tree.entries(place.ino)


def walk_below(
    tree: Tree,
    top: Place,
    path: bytes,
    *,
    max_depth: int | None = None,
    failed: Callable[[bytes, PuzzlefsError], None] | None = None,
) -> Iterator[Visit]:
    """Every entry below a directory, depth first, each directory's entries in the order of their names.

    Symbolic links are not followed, so it ends; a directory has one place, so each is met once.

    Args:
        tree: the image.
        top: the directory; anything else has nothing below it.
        path: what the paths of the entries are to begin with.
        max_depth: how many directories below ``top`` are entered.
        failed: told the path of an entry or a directory that is malformed and the error; the walk goes on without it.

    Raises:
        FormatError: at the first entry or directory that is malformed, if there is no ``failed``; in any case where
            there are more entries than the image can hold.
    """
    if top.kind is not Kind.DIRECTORY:
        return
    count = 0
    levels: list[tuple[int, bytes, Iterator[Entry]]] = []

    def enter(ino: int, path: bytes) -> None:
        try:
            if len(path) > MAX_PATH:
                raise FormatError(f"{shown(path)} is too deep: its path has more than {MAX_PATH} bytes")
            levels.append((ino, path if path.endswith(b"/") else path + b"/", iter(tree.entries(ino))))
        except PuzzlefsError as error:
            if failed is None:
                raise
            failed(path, error)

    enter(top.ino, path)
    while levels:
        parent, path, entries = levels[-1]
        for entry in entries:
            count += 1
            if count > tree.max_entries:
                raise FormatError(f"there are more than {tree.max_entries} entries, which this image cannot hold")
            if entry.kind is Kind.DIRECTORY or entry.kind is Kind.UNKNOWN:
                try:
                    tree.check_entry(parent, entry)
                except PuzzlefsError as error:
                    if failed is None:
                        raise
                    failed(path + entry.name, error)
                    continue
            yield Visit(len(levels) - 1, path, parent, entry)
            if entry.kind is Kind.DIRECTORY and (max_depth is None or len(levels) <= max_depth):
                enter(entry.ino, path + entry.name)
                break
        else:
            levels.pop()


def join(directory: bytes, name: bytes) -> bytes:
    """The path of the entry ``name`` of a directory."""
    return directory + name if directory.endswith(b"/") else directory + b"/" + name


def shown(path: bytes) -> str:
    """A path as part of a message: what could confuse a terminal, or is too long, becomes a literal."""
    text = os.fsdecode(path[:_MAX_SHOWN]) + ("…" if len(path) > _MAX_SHOWN else "")
    return text if text and text.isprintable() and not text.isspace() else ascii(text)


def _components(path: bytes) -> list[bytes]:
    """The names in a path, last first; a slash at the end is one more component, ``.``."""
    names = [name for name in path.split(b"/") if name]
    if path.endswith(b"/"):
        names.append(b".")
    names.reverse()
    return names


def _directory(way: Sequence[tuple[bytes, int]]) -> Place:
    if not way:
        return ROOT
    path, ino = way[-1]
    return Place(path, way[-2][1] if len(way) > 1 else ROOT_INO, ino, Kind.DIRECTORY)


def _lookup(tree: Tree, directory: Place, name: bytes, path: bytes) -> Entry:
    try:
        return tree.lookup(directory.ino, name)
    except FormatError as error:
        error.message = f"{shown(join(directory.path, name))}: {error.message}"
        raise
    except NotFoundError as error:
        missing = _way_to(path, join(directory.path, name))
        raise PathNotFoundError(f"{missing} does not exist in the image", os.fsdecode(path)) from error


def _way_to(path: bytes, actual: bytes) -> str:
    """``actual``, and which path led there, where that is not to be seen."""
    asked = b"/" + path.strip(b"/")
    if asked == actual or asked.startswith(actual + b"/"):
        return shown(actual)
    return f"{shown(path)} leads to {shown(actual)}, which"
