"""Two trees walked together, directory by directory.

What has one path in both is compared; what is in one of them only is listed with all that is below it. Nothing is
recursive, and what is kept is what differs, and those files that have several names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from puzzlefs.diff.content import ContentReader
from puzzlefs.diff.report import ASPECTS, Aspect, EntryState, Way
from puzzlefs.diff.side import Hints, Side
from puzzlefs.errors import PuzzlefsError
from puzzlefs.model import Kind
from puzzlefs.vfs.paths import shown

A = TypeVar("A")
B = TypeVar("B")

_Entry = tuple[bytes, A, Kind]


@dataclass(slots=True, eq=False)
class Half(Generic[A]):
    """An entry as one of the trees has it."""

    way: Way
    node: A
    kind: Kind


@dataclass(slots=True, eq=False)
class Found(Generic[A, B]):
    """An entry that differs, or may: it is in one tree only, in both and not the same, or has several names.

    Attributes:
        old: as the first tree has it, if it does.
        new: as the second one has it.
        aspects: in what these differ.
        span: how many of those that follow it in its list are below it, in the one tree in which it is a directory.
        is_dropped: it is not told: something else tells it.
        inner: what differs below a directory that was renamed.
    """

    old: Half[A] | None
    new: Half[B] | None
    aspects: list[Aspect] = field(default_factory=list)
    span: int = 0
    is_dropped: bool = False
    is_renamed: bool = False
    inner: list[Found[A, B]] = field(default_factory=list)


@dataclass(slots=True)
class _Level(Generic[A, B]):
    entries: Iterator[Found[A, B]]
    top: Found[A, B] | None
    start: int


class Walk(Generic[A, B]):
    """Compares two trees.

    Attributes:
        old: the first tree.
        new: the second one.
        entries: how many entries were compared or listed.
        linked: the entries of both trees that have several names in one of them.
    """

    def __init__(
        self,
        old: Side[A],
        new: Side[B],
        hints: Hints[A, B] | None,
        content: ContentReader,
        ignored: Collection[Aspect],
        told: Callable[[], None],
    ) -> None:
        """A comparison.

        Args:
            old: the first tree.
            new: the second one.
            hints: what is known of both beforehand.
            content: compares files.
            ignored: in what they may differ.
            told: called now and then.
        """
        self.old = old
        self.new = new
        self.entries = 0
        self.linked: list[Found[A, B]] = []
        self.content = content
        self._hints = hints
        self._ignored = ignored
        self._told = told
        self._has_links = "links" not in ignored and (old.may_have_links() or new.may_have_links())

    def run(self, old: Half[A] | None, new: Half[B] | None) -> list[Found[A, B]]:
        """Everything that differs in two entries and below them, in the order of the paths."""
        top: Found[A, B] = Found(old, new)
        if old is not None and new is not None:
            self.compare(top)
            self.note_links(top)
        self.entries += 1
        return self._run(iter([top]))

    def below(self, old: Half[A], new: Half[B]) -> list[Found[A, B]]:
        """Everything that differs below two directories."""
        return self._run(self._pairs(old, new))

    def compare(self, found: Found[A, B]) -> None:
        """See in what an entry of both trees differs, links aside.

        Raises:
            PuzzlefsError: if that cannot be told.
        """
        if found.old is None or found.new is None:
            return
        try:
            before, after = self.old.state(found.old.node), self.new.state(found.new.node)
            aspects = self._aspects(before, after)
            if (
                before.kind is Kind.REGULAR
                and after.kind is Kind.REGULAR
                and "content" not in self._ignored
                and (
                    before.size != after.size
                    or not self.content.is_same(self.old, found.old.node, self.new, found.new.node, after.size or 0)
                )
            ):
                aspects.add("content")
        except PuzzlefsError as error:
            error.message = f"{shown(found.new.way.path)}: {error.message}"
            raise
        found.aspects = [aspect for aspect in ASPECTS if aspect in aspects]

    def note_links(self, found: Found[A, B]) -> None:
        """Keep an entry of both trees that is no directory, if it has several names in one of them."""
        old, new = found.old, found.new
        if old is None or new is None or Kind.DIRECTORY in (old.kind, new.kind):
            return
        if self._is_linked(old.node, new.node):
            self.linked.append(found)

    # ---- inside

    def _run(self, entries: Iterator[Found[A, B]]) -> list[Found[A, B]]:
        result: list[Found[A, B]] = []
        levels: list[_Level[A, B]] = [_Level(entries, None, 0)]
        while levels:
            level = levels[-1]
            found = next(level.entries, None)
            if found is None:
                levels.pop()
                if level.top is not None:
                    level.top.span = len(result) - level.start
                continue
            old, new = found.old, found.new
            result.append(found)
            start = len(result)
            if old is not None and new is not None and old.kind is new.kind is Kind.DIRECTORY:
                if not found.aspects:
                    result.pop()
                levels.append(_Level(self._pairs(old, new), None, len(result)))
                continue
            if old is not None and old.kind is Kind.DIRECTORY:
                levels.append(_Level(self._only_old(old), found, start))
            if new is not None and new.kind is Kind.DIRECTORY:
                levels.append(_Level(self._only_new(new), found, start))
        return result

    def _only_old(self, directory: Half[A]) -> Iterator[Found[A, B]]:
        for name, node, kind in self.old.entries(directory.node):
            self.entries += 1
            yield Found(Half(Way(directory.way, name), node, kind), None)

    def _only_new(self, directory: Half[B]) -> Iterator[Found[A, B]]:
        for name, node, kind in self.new.entries(directory.node):
            self.entries += 1
            yield Found(None, Half(Way(directory.way, name), node, kind))

    def _pairs(self, old: Half[A], new: Half[B]) -> Iterator[Found[A, B]]:
        """The entries of two directories that differ, may be linked, or are directories in both."""
        pairs = self._merged(old, new)
        self.entries += len(pairs)
        self._told()
        suspects = self._suspects([(one, other) for one, other in pairs if one is not None and other is not None])
        position = -1
        for one, other in pairs:
            if one is None:
                if other is not None:
                    yield Found(None, Half(Way(new.way, other[0]), other[1], other[2]))
                continue
            if other is None:
                yield Found(Half(Way(old.way, one[0]), one[1], one[2]), None)
                continue
            position += 1
            is_suspect = suspects is None or position in suspects
            is_directory = one[2] is Kind.DIRECTORY and other[2] is Kind.DIRECTORY
            is_linked = Kind.DIRECTORY not in (one[2], other[2]) and self._is_linked(one[1], other[1])
            if not (is_suspect or is_directory or is_linked):
                continue
            way = Way(new.way, other[0])
            old_way = way if old.way is new.way else Way(old.way, one[0])
            found: Found[A, B] = Found(Half(old_way, one[1], one[2]), Half(way, other[1], other[2]))
            if is_suspect:
                self.compare(found)
            if is_linked:
                self.linked.append(found)
            if found.aspects or is_directory or is_linked:
                yield found

    def _merged(self, old: Half[A], new: Half[B]) -> list[tuple[_Entry[A] | None, _Entry[B] | None]]:
        """The entries of two directories side by side, in the order of their names; without those that are known to be
        the same."""
        entries, others = self.old.entries(old.node), self.new.entries(new.node)
        if self._hints is not None:
            candidates = self._hints.candidates(old.node, new.node)
            if candidates is not None:
                entries = [entry for entry in entries if entry[1] in candidates]
                others = [entry for entry in others if entry[1] in candidates]
        if [entry[0] for entry in entries] == [entry[0] for entry in others]:
            return list(zip(entries, others, strict=True))
        by_name = {entry[0]: entry for entry in others}
        merged: list[tuple[_Entry[A] | None, _Entry[B] | None]] = []
        merged += [(entry, by_name.pop(entry[0], None)) for entry in entries]
        merged += [(None, entry) for entry in by_name.values()]
        merged.sort(key=lambda pair: pair[0][0] if pair[0] is not None else pair[1][0] if pair[1] is not None else b"")
        return merged

    def _suspects(self, pairs: Sequence[tuple[_Entry[A], _Entry[B]]]) -> Collection[int] | None:
        """The positions of the pairs that may differ; ``None``: all of them."""
        if self._hints is None:
            return None
        return frozenset(self._hints.unlike([one[1] for one, _ in pairs], [other[1] for _, other in pairs]))

    def _is_linked(self, old: A, new: B) -> bool:
        return self._has_links and (self.old.links(old) is not None or self.new.links(new) is not None)

    def _aspects(self, before: EntryState, after: EntryState) -> set[Aspect]:
        """In what two entries differ, content and links aside. Of different kinds nothing else can be compared."""
        if before.kind is not after.kind:
            return {"type"}
        differs: dict[Aspect, bool] = {
            "target": before.target != after.target,
            "device": before.device != after.device,
            "mode": before.permissions != after.permissions,
            "owner": (before.uid, before.gid) != (after.uid, after.gid),
            "xattrs": before.xattrs != after.xattrs,
            "mtime": None not in (before.mtime_ns, after.mtime_ns) and before.mtime_ns != after.mtime_ns,
        }
        return {aspect for aspect, is_other in differs.items() if is_other and aspect not in self._ignored}
