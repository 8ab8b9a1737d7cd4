"""Which of the entries that are in one tree only are the same inode, or have the same content, under another path.

* *The same inode*, where that can be known (``Side.identity``), of any kind. A directory is told as one rename,
  and what differs below it is told behind it. One directory has one place, so this is decided for directories first;
  walking through a pair of them finds more of what is in one tree only, and again what was decided before.
* *The same content*: regular files that are not empty. Where two images agree in the list of chunks, nothing is read;
  else only files of one size are, and whole only those that begin alike.

Of several that fit, one of the same name is taken, else the first.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from puzzlefs.diff.side import Side
from puzzlefs.diff.walk import Found, Half, Walk
from puzzlefs.model import Kind

A = TypeVar("A")
B = TypeVar("B")
N = TypeVar("N")

_Keys = Callable[[Half[A]], Hashable | None]


def told(found: Iterable[Found[A, B]]) -> Iterator[Found[A, B]]:
    """What is to be told of ``found``, and of what is below renamed directories, in order."""
    levels = [iter(found)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif not entry.is_dropped:
            yield entry
            if entry.inner:
                levels.append(iter(entry.inner))


class Renames(Generic[A, B]):
    """Finds renames among what a walk found."""

    def __init__(self, walk: Walk[A, B], found: list[Found[A, B]]) -> None:
        """For ``found``, whose entries change."""
        self._walk = walk
        self._found = found
        self._places: dict[Found[A, B], tuple[list[Found[A, B]], int]] = {}
        self._removed: dict[Hashable, Found[A, B]] = {}
        self._added: deque[tuple[Hashable, Found[A, B]]] = deque()
        self._done: dict[Hashable, Found[A, B]] = {}

    def by_inode(self) -> None:
        """Find what is the same inode.

        Raises:
            PuzzlefsError: as the trees do.
        """
        self._collect(self._found)
        while self._added:
            identity, added = self._added.popleft()
            removed = self._removed.get(identity)
            if removed is None or removed.is_dropped or added.is_dropped:
                continue
            self._drop(removed)
            self._drop(added)
            self._done[identity] = added
            self._pair(removed, added)
            if added.old is not None and added.new is not None:
                added.inner = self._walk.below(added.old, added.new)
                self._collect(added.inner)
        old, new = self._walk.old, self._walk.new
        removed_files, added_files = self._files()
        self._match(removed_files, added_files, lambda half: _of_kind(old, half), lambda half: _of_kind(new, half))

    def by_content(self) -> None:
        """Find files that have the same content.

        Raises:
            PuzzlefsError: as the trees do.
        """
        old, new, content = self._walk.old, self._walk.new, self._walk.content
        removed, added = self._files(Kind.REGULAR)
        self._match(removed, added, lambda half: _parts(old, half), lambda half: _parts(new, half))
        removed, added = self._files(Kind.REGULAR)
        sizes = {_size(old, entry.old) for entry in removed} & {_size(new, entry.new) for entry in added} - {0}
        removed = [entry for entry in removed if _size(old, entry.old) in sizes]
        added = [entry for entry in added if _size(new, entry.new) in sizes]
        old_heads = {
            entry: (_size(old, entry.old), content.head(old, entry.old.node)) for entry in removed if entry.old
        }
        new_heads = {entry: (_size(new, entry.new), content.head(new, entry.new.node)) for entry in added if entry.new}
        heads = {*old_heads.values()} & {*new_heads.values()}
        self._match(
            [entry for entry in removed if old_heads[entry] in heads],
            [entry for entry in added if new_heads[entry] in heads],
            lambda half: content.digest(old, half.node, _size(old, half)),
            lambda half: content.digest(new, half.node, _size(new, half)),
        )

    # ---- inside

    def _collect(self, found: list[Found[A, B]]) -> None:
        """Take note of the directories that are in one tree only."""
        for index, entry in enumerate(found):
            self._places[entry] = found, index
            if entry.is_dropped:
                continue
            if entry.new is None and entry.old is not None and entry.old.kind is Kind.DIRECTORY:
                identity = self._walk.old.identity(entry.old.node)
                if identity in self._done:
                    self._drop(entry)
                    entry.is_dropped = True
                elif identity is not None:
                    self._removed[identity] = entry
            elif entry.old is None and entry.new is not None and entry.new.kind is Kind.DIRECTORY:
                identity = self._walk.new.identity(entry.new.node)
                if identity in self._done:
                    self._drop(entry)
                    self._move(self._done[identity], entry)
                elif identity is not None:
                    self._added.append((identity, entry))

    def _drop(self, directory: Found[A, B]) -> None:
        """What is below a directory is told otherwise."""
        found, index = self._places[directory]
        for entry in found[index + 1 : index + 1 + directory.span]:
            entry.is_dropped = True

    def _move(self, renamed: Found[A, B], to: Found[A, B]) -> None:
        """A renamed directory that is below one that was renamed later takes the place where it was met again."""
        found, index = self._places[renamed]
        found[index] = Found(None, None, is_dropped=True)
        found, index = self._places[renamed] = self._places[to]
        found[index] = renamed
        renamed.is_dropped = False

    def _pair(self, removed: Found[A, B], added: Found[A, B]) -> None:
        added.old = removed.old
        added.is_renamed = True
        removed.is_dropped = True
        self._walk.compare(added)
        self._walk.note_links(added)

    def _files(self, kind: Kind | None = None) -> tuple[list[Found[A, B]], list[Found[A, B]]]:
        """What is in one tree only, of one kind, or of all but directories."""
        removed: list[Found[A, B]] = []
        added: list[Found[A, B]] = []
        for entry in told(self._found):
            half = entry.old or entry.new
            if half is None or (entry.old is not None and entry.new is not None) or half.kind is Kind.DIRECTORY:
                continue
            if kind is None or half.kind is kind:
                (removed if entry.new is None else added).append(entry)
        return removed, added

    def _match(
        self, removed: list[Found[A, B]], added: list[Found[A, B]], old_key: _Keys[A], new_key: _Keys[B]
    ) -> None:
        """Pair entries of equal keys."""
        by_key: dict[Hashable, list[Found[A, B]]] = {}
        for entry in removed:
            key = None if entry.old is None else old_key(entry.old)
            if key is not None:
                by_key.setdefault(key, []).append(entry)
        waiting: list[tuple[Found[A, B], list[Found[A, B]]]] = []
        for entry in added if by_key else ():
            candidates = by_key.get(new_key(entry.new)) if entry.new is not None else None
            if candidates:
                waiting.append((entry, candidates))
        for is_last in (False, True):  # those that kept their names go first
            for entry, candidates in waiting:
                if entry.old is not None or entry.new is None:
                    continue
                name = entry.new.way.name
                left = [one for one in candidates if not one.is_dropped]
                fitting = left if is_last else [one for one in left if one.old is not None and one.old.way.name == name]
                if fitting:
                    self._pair(fitting[0], entry)


def _of_kind(side: Side[N], half: Half[N]) -> Hashable | None:
    identity = side.identity(half.node)
    return None if identity is None else (identity, half.kind)


def _parts(side: Side[N], half: Half[N]) -> bytes | None:
    """What stands for the list of chunks of a file; ``None`` if it has none."""
    hasher = hashlib.sha256()
    size = 0
    for part in side.parts(half.node) or ():
        if part.length:
            size += part.length
            hasher.update(b"%b%d %d %d " % (part.blob.digest, part.blob.offset, part.length, part.blob.compressed))
    return hasher.digest() if size else None


def _size(side: Side[N], half: Half[N] | None) -> int:
    return 0 if half is None else side.state(half.node).size or 0
