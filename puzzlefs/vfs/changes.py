"""What each metadata layer changed in what can be seen, told from the lowest layer up.

``Changes`` keeps what the layers so far show, and takes one more layer at a time. It follows only what that layer
mentions: a directory whose list is another one gives back what it had (and all that is below an entry that goes) and
takes what it has now. So a layer costs what it says and what moves with it, however large the layers below are.

Names are counted as they are written down, those of white-outs and of missing inodes too, since a layer above may bring
such an inode to life without touching the directory. An inode can be seen while it has a name in a directory that can
be seen, and is no white-out. That is only sound while each directory has one place, so anything else is an error here.

A stack of layers that move everything about over and over could make that take any time, so the steps are bounded.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from puzzlefs.errors import FormatError
from puzzlefs.model import ROOT_INO, Directory, Inode, InodeTable, Kind

_STEPS_PER_ENTRY: Final = 16
"""How often each directory entry that an image has room for may be looked at, on average."""

_DEAD: Final = (None, Kind.WHITEOUT)

_Pairs = list[tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class LayerChanges:
    """What a layer changed: how many inodes of each kind.

    Attributes:
        added: can be seen with the layer and not without it.
        changed: can be seen either way, and the layer says something else of them; what a directory says is its
            attributes and which inodes have which names. By the kind that they have now.
        removed: can be seen without the layer and not with it, by the kind that they had.
    """

    added: Counter[Kind]
    changed: Counter[Kind]
    removed: Counter[Kind]


def layer_changes(layers: Sequence[InodeTable], max_entries: int) -> Iterator[LayerChanges]:
    """What each of ``layers`` (topmost first) changed, beginning with the lowest.

    Args:
        layers: the metadata layers.
        max_entries: how many directory entries there can be at most in an honest image of this size.

    Raises:
        FormatError: if a layer is malformed, a directory has two places, or it takes absurdly much work.
    """
    return map(Changes(max_entries * _STEPS_PER_ENTRY).add, reversed(layers))


class Changes:
    """What some layers show; grows by one layer at a time. Not for several threads."""

    def __init__(self, max_steps: int) -> None:
        """Nothing yet.

        Args:
            max_steps: how many inodes and directory entries may be looked at, all in all.
        """
        self._left = max_steps
        self._layers: list[InodeTable] = []
        self._owners: dict[int, int] = {}  # numbers that not only the lowest layer has
        self._directories: set[int] = set()
        self._names: dict[int, int] = {}
        self._listed: set[int] = set()  # directories that can be seen, whose entries are counted in _names
        self._before: dict[int, Kind | None] = {}  # what was seen of the inodes that the new layer concerns

    def add(self, layer: InodeTable) -> LayerChanges:
        """Put a layer on top; what it changed.

        Raises:
            FormatError: if it is malformed, gives a directory a second place, or takes absurdly much work.
        """
        here = _kinds_in(layer)
        self._spend(len(here))
        self._before = {}
        for ino in here:
            self._note(ino)
        changed, other_lists = self._compare(layer, here)
        for ino in other_lists:
            if ino in self._listed:  # not if one of the others was above it
                self._unlist(ino)
        self._take(layer, here)
        for ino, kind in here.items():
            if kind == Kind.DIRECTORY and ino not in self._listed and (ino == ROOT_INO or ino in self._names):
                self._list(ino)
        result = LayerChanges(Counter(), Counter(), Counter())
        for ino, before in self._before.items():
            now = self._seen(ino)
            if before is None and now is not None:
                result.added[now] += 1
            elif before is not None and now is None:
                result.removed[before] += 1
        result.changed.update(now for ino in changed if (now := self._seen(ino)) is not None)
        return result

    # ---- what is seen

    def _kind(self, ino: int) -> Kind | None:
        try:
            return self._layers[self._owners.get(ino, 0)].kind(ino) if self._layers else None
        except FormatError:
            return Kind.UNKNOWN

    def _seen(self, ino: int) -> Kind | None:
        """The kind of an inode that can be seen, else ``None``."""
        kind = self._kind(ino) if ino in self._names or ino == ROOT_INO else None
        return None if kind in _DEAD else kind

    def _note(self, ino: int) -> None:
        if ino not in self._before:
            self._before[ino] = self._seen(ino)

    def _take(self, layer: InodeTable, here: dict[int, int]) -> None:
        if self._layers:
            self._owners.update(dict.fromkeys(here, len(self._layers)))
        self._layers.append(layer)
        self._directories.difference_update(here)
        self._directories.update(ino for ino, kind in here.items() if kind == Kind.DIRECTORY)

    # ---- directories

    def _list(self, top: int) -> None:
        """Count the entries of a directory that can be seen now, and of those below it."""
        if self._names.get(top, 0) > 1:
            raise self._second_place(top)
        queue = deque([top])
        self._listed.add(top)
        names = self._names
        while queue:
            numbers = self._numbers(queue.popleft())
            for ino in numbers:
                self._note(ino)
                names[ino] = count = names.get(ino, 0) + 1
                if ino in self._directories:
                    if count > 1 or ino == ROOT_INO:
                        raise self._second_place(ino)
                    self._listed.add(ino)
                    queue.append(ino)

    def _second_place(self, ino: int) -> FormatError:
        return FormatError(f"metadata layer {len(self._layers)}, counted from below, has directory {ino} in two places")

    def _unlist(self, top: int) -> None:
        """Take back what ``_list`` counted."""
        queue = deque([top])
        self._listed.remove(top)
        while queue:
            for ino in self._numbers(queue.popleft()):
                self._note(ino)
                left = self._names[ino] - 1
                if left:
                    self._names[ino] = left
                    continue
                del self._names[ino]
                if ino in self._listed:
                    self._listed.remove(ino)
                    queue.append(ino)

    def _numbers(self, ino: int) -> Sequence[int]:
        """The inode numbers in the list of a directory, as it is written down."""
        owner = self._owners.get(ino, 0)
        numbers, look_below = self._layers[owner].entry_numbers(ino) or ((), False)
        self._spend(len(numbers) + 1)
        return [number for _, number in self._pairs(ino)] if look_below else numbers

    def _pairs(self, ino: int, above: Iterable[InodeTable] = ()) -> _Pairs:
        """The list of a directory, with its names; ``above`` is a layer that is not on top yet."""
        taken: set[bytes] = set()
        pairs: _Pairs = []
        owner = self._owners.get(ino, 0)
        for layer in chain(above, islice(reversed(self._layers), len(self._layers) - 1 - owner, None)):
            complete = None if taken else layer.names(ino)
            if complete is not None:
                self._spend(len(complete[0]) + 1)
                return [*pairs, *zip(*complete, strict=True)]
            inode = layer.find(ino)
            self._spend(1)
            if inode is None:
                continue
            if not isinstance(inode.content, Directory):
                break
            entries = inode.content.entries
            self._spend(len(entries))
            pairs += [(entry.name, entry.ino) for entry in entries if entry.name not in taken]
            if not inode.content.look_below:
                break
            taken.update(entry.name for entry in entries)
        return pairs

    # ---- what the new layer says

    def _compare(self, layer: InodeTable, here: dict[int, int]) -> tuple[list[int], list[int]]:
        """The inodes that can be seen of which ``layer`` says something else, and the directories among them that it
        gives another list, or makes something else."""
        changed: list[int] = []
        other_lists: list[int] = []
        # numbers that are inodes with the layer and were none, or the other way round
        turned = {ino for ino, kind in here.items() if (self._kind(ino) in _DEAD) is not (kind in _DEAD)}
        for ino, kind in here.items():
            before = self._before[ino]
            if before is Kind.DIRECTORY and kind == Kind.DIRECTORY:
                old, new = self._pairs(ino), self._pairs(ino, (layer,))
                is_other = sorted(old) != sorted(new)
                if is_other:
                    other_lists.append(ino)
                if (
                    (is_other and self._living(old, {}) != self._living(new, here))
                    or (not is_other and not turned.isdisjoint(number for _, number in new))
                    or self._differs(ino, layer)
                ):
                    changed.append(ino)
            elif before is not None:
                if before is Kind.DIRECTORY:
                    other_lists.append(ino)
                if self._differs(ino, layer):
                    changed.append(ino)
        return changed, other_lists

    def _differs(self, ino: int, layer: InodeTable) -> bool:
        """Whether ``layer`` says something else of an inode than the layers so far, but for a directory's list."""
        below = self._layers[self._owners.get(ino, 0)]
        glance = below.glance(ino)
        if glance is not None and glance == layer.glance(ino):
            if glance.kind == Kind.DIRECTORY:
                return False
            chunks = below.chunks(ino)
            if chunks is not None and chunks == layer.chunks(ino):
                return False
        old, new = below.find(ino), layer.find(ino)
        if old is None or new is None or not (_is_directory(old) and _is_directory(new)):
            return old != new
        return old._replace(content=new.content) != new

    def _living(self, pairs: _Pairs, here: dict[int, int]) -> set[tuple[bytes, int]]:
        """What can be seen of a directory's list, ``here`` being the kinds in the layer that is not on top yet."""
        return {pair for pair in pairs if here.get(pair[1], self._kind(pair[1])) not in _DEAD}

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise FormatError(
                "telling what the metadata layers changed takes absurdly much work: they move the same things about "
                "over and over"
            )


def _is_directory(inode: Inode) -> bool:
    return isinstance(inode.content, Directory)


def _kinds_in(layer: InodeTable) -> dict[int, int]:
    """Numbers and kinds of a layer; where a number stands twice, the live one counts.

    Raises:
        FormatError: if they are not sorted.
    """
    kinds: dict[int, int] = {}
    previous = 0
    for ino, kind in layer.kinds():
        if ino < previous:
            raise FormatError("the inodes of a metadata layer are not sorted by their numbers")
        previous = ino
        if kinds.get(ino, Kind.WHITEOUT) == Kind.WHITEOUT:
            kinds[ino] = kind
    return kinds
