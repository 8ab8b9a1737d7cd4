"""Metadata layers that contradict each other: what the rules say, or an error at the one place that is wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import forge as f
from support.examine import examine_limited, limited
from support.forge import Forge

from puzzlefs.errors import PuzzlefsError
from puzzlefs.history import HistoryReport, history
from puzzlefs.image import open_image
from puzzlefs.model import Fifo, Inode, Whiteout

pytestmark = pytest.mark.hostile

GOOD = b"good"
MARK = 0xA5A5_A5A5_0000_0001
"""An inode number that stands nowhere else in a message, to be patched."""
MANY = 4000

Layers = Sequence[Sequence[Inode]]


def base(*inodes: Inode, **names: int) -> list[Inode]:
    """A lowest layer: a root directory with these names, and the file ``good``, which every case must show."""
    root = {name.encode(): number for name, number in names.items()} | {GOOD: 2}
    return [f.directory(1, sorted(root.items())), f.symlink(2, b"good"), *inodes]


def root(*inodes: Inode, look_below: bool = False, **names: int) -> list[Inode]:
    """A layer with another root directory."""
    entries = {name.encode(): number for name, number in names.items()} | {GOOD: 2}
    return [f.directory(1, sorted(entries.items()), look_below=look_below), *inodes]


def dead(ino: int) -> Inode:
    return f.inode(ino, Whiteout())


def fifo(ino: int) -> Inode:
    return f.inode(ino, Fifo())


@dataclass(frozen=True)
class Case:
    """A stack of layers, topmost first.

    Attributes:
        layers: the layers.
        shown: the paths that can be seen besides the root and ``good``, those with a problem not among them.
        problems: the paths where there is an error.
        history: added, changed and removed of each layer, the lowest first; ``None`` if it is an error.
        opening: whether opening it is an error.
    """

    layers: Layers
    shown: Sequence[bytes] = ()
    problems: Sequence[bytes] = ()
    history: Sequence[tuple[int, int, int]] | None = None
    opening: bool = False
    patch: Mapping[int, int] = field(default_factory=dict)


CASES = {
    # ---- white-outs
    "white-out of what no layer has": Case([[dead(77)], base(fifo(3), a=3)], [b"a"], history=[(3, 0, 0), (0, 0, 0)]),
    "white-out of what no directory names": Case([[dead(3)], base(fifo(3))], history=[(2, 0, 0), (0, 0, 0)]),
    "white-out in the lowest layer": Case([[fifo(3)], base(dead(3), a=3)], [b"a"], history=[(2, 0, 0), (1, 0, 0)]),
    "white-outs of the highest number and of 0": Case(
        [[dead(0), dead((1 << 64) - 1)], base(fifo(3), a=3)], [b"a"], history=[(3, 0, 0), (0, 0, 0)]
    ),
    "white-out of what an upper layer has again": Case(
        [[f.symlink(3, b"new")], [dead(3)], base(fifo(3), a=3)], [b"a"], history=[(3, 0, 0), (0, 0, 1), (1, 0, 0)]
    ),
    "white-out of a file that a lower directory still names": Case(
        [[dead(3)], base(fifo(3), a=3, b=4)], problems=[b"b"], history=[(3, 0, 0), (0, 0, 1)]
    ),
    "white-out of a directory, and not of what is in it": Case(
        [[dead(3)], base(f.directory(3, {b"x": 4}), fifo(4), a=3)], history=[(4, 0, 0), (0, 0, 2)]
    ),
    "white-out of a directory whose file has another name": Case(
        [[dead(3)], base(f.directory(3, {b"x": 4}), fifo(4), a=3, b=4)], [b"b"], history=[(4, 0, 0), (0, 0, 1)]
    ),
    "white-out and alive in one upper layer": Case(
        [[dead(3), f.symlink(3, b"t")], base(fifo(3), a=3)], [b"a"], history=[(3, 0, 0), (0, 1, 0)]
    ),
    "white-out twice": Case([[dead(3), dead(3)], base(fifo(3), a=3)], history=[(3, 0, 0), (0, 0, 1)]),
    "root whited out on top": Case([[dead(1)], base()], opening=True),
    "root whited out in between": Case([root(), [dead(1)], base()], history=[(2, 0, 0), (0, 0, 2), (2, 0, 0)]),
    # ---- entries that point to white-outs
    "entry for a white-out of the same layer": Case(
        [root(dead(3), a=3), base(fifo(3), a=3)], history=[(3, 0, 0), (0, 1, 1)]
    ),
    "entry for a white-out of a lower layer": Case(
        [root(a=3, b=4), [dead(3)], base(fifo(3), fifo(4), a=3)], [b"b"], history=[(3, 0, 0), (0, 0, 1), (1, 1, 0)]
    ),
    "entry for a white-out hides a name below": Case(
        [root(dead(3), look_below=True, a=3), base(fifo(4), fifo(5), a=4, b=5)],
        [b"b"],
        history=[(4, 0, 0), (0, 1, 1)],
    ),
    "live entry and one for a white-out of one name": Case(
        [[f.directory(1, [(b"a", 3), (b"a", 4), (GOOD, 2)]), dead(3), fifo(4)], base(fifo(3), a=3)],
        [b"a"],
        history=[(3, 0, 0), (1, 1, 1)],
    ),
    "live entries of one name, when a white-out of one of them is lifted": Case(
        [
            [fifo(3)],
            [f.directory(1, {b"d": 5, GOOD: 2}), dead(3), fifo(4), f.directory(5, [(b"a", 3), (b"a", 4)])],
            base(),
        ],
        problems=[b"d"],
        history=[(2, 0, 0), (2, 1, 0), (1, 0, 0)],
    ),
    # ---- one number, several things
    "a file over a directory": Case(
        [[fifo(3)], base(f.directory(3, {b"x": 4}), fifo(4), a=3)], [b"a"], history=[(4, 0, 0), (0, 1, 1)]
    ),
    "a directory over a file with two names": Case(
        [[f.directory(3, {b"x": 4}), fifo(4)], base(fifo(3), a=3, b=3)], [b"a", b"a/x"], [b"b"]
    ),
    "a directory over a symlink over a directory": Case(
        [
            [f.directory(3, {b"y": 4}, look_below=True)],
            [f.symlink(3, b"a")],
            base(f.directory(3, {b"x": 4}), fifo(4), a=3),
        ],
        [b"a", b"a/y"],
        history=[(4, 0, 0), (0, 1, 1), (1, 1, 0)],
    ),
    "a merging directory that no lower layer has": Case(
        [root(f.directory(3, {b"x": 4}, look_below=True), fifo(4), a=3), base()],
        [b"a", b"a/x"],
        history=[(2, 0, 0), (2, 1, 0)],
    ),
    # ---- directories have one place
    "a second name for a directory of a lower layer": Case(
        [[f.directory(3, {b"again": 4})], base(f.directory(3), f.directory(4), a=3, b=4)], [b"a", b"b"], [b"a/again"]
    ),
    "a directory below itself": Case(
        [[f.directory(4, {b"up": 3})], base(f.directory(3, {b"down": 4}), f.directory(4), a=3)],
        [b"a", b"a/down"],
        [b"a/down/up"],
    ),
    "a directory that moves below itself": Case(
        [root(f.directory(4, {b"up": 3})), base(f.directory(3, {b"down": 4}), f.directory(4), a=3)],
        history=[(4, 0, 0), (0, 1, 2)],
    ),
    "two directories that change places": Case(
        [
            root(f.directory(3), f.directory(4, {b"down": 3}), b=4),
            base(f.directory(3, {b"down": 4}), f.directory(4), a=3),
        ],
        [b"b", b"b/down"],
        history=[(4, 0, 0), (0, 3, 0)],
    ),
    "the root in an upper layer's directory": Case(
        [[f.directory(3, {b"top": 1})], base(f.directory(3), a=3)], [b"a"], [b"a/top"]
    ),
    # ---- layers that say nothing, or nonsense
    "an empty layer on top": Case([[], base(fifo(3), a=3)], [b"a"], history=[(3, 0, 0), (0, 0, 0)]),
    "an empty layer below": Case([base(fifo(3), a=3), []], [b"a"], history=[(0, 0, 0), (3, 0, 0)]),
    "a directory that only names what is missing": Case(
        [root(a=8, b=9), base()], problems=[b"a", b"b"], history=[(2, 0, 0), (0, 0, 0)]
    ),
    "no root in the lowest layer": Case([base(a=3), [fifo(3)]], [b"a"], history=[(0, 0, 0), (3, 0, 0)]),
    "inodes of an upper layer that are not sorted": Case(
        [[*base(a=3, b=4), fifo(MARK), fifo(MARK + 1)], base(fifo(3), a=3)],
        problems=[b"a", b"b", GOOD],
        patch={MARK: 4, MARK + 1: 3},
    ),
}


def make(case: Case, forge: Forge) -> str:
    if not case.patch:
        return forge.image(*case.layers)
    if forge.version == 3:
        message = forge.codec.encode_rootfs(layers=case.layers, metadata_refs=(), verity={})
        return forge.raw_rootfs(f.renumber(message, case.patch))
    first, *others = [forge.codec.encode_inode_vector(layer) for layer in case.layers]
    return forge.raw_vectors(f.renumber(first, case.patch), *others)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_what_a_stack_shows(tmp_path: Path, name: str, version: int) -> None:
    case = CASES[name]
    reference = make(case, Forge(tmp_path / "layout", version))
    target = tmp_path / "out"
    outcome = examine_limited(reference, target)
    assert outcome.cpu_seconds < 1
    if case.opening:
        assert outcome.opening == "FormatError"
        return
    assert outcome.opening is None
    assert outcome.problems == dict.fromkeys(case.problems, "FormatError"), outcome.messages
    assert set(outcome.paths) - set(case.problems) == {b".", GOOD, *case.shown} - set(case.problems)
    if case.problems:
        assert outcome.extraction == "FormatError"
        assert not target.exists()
    else:
        assert outcome.extraction is None
        assert outcome.totals == (len(outcome.paths), 0)
        assert {os.fsencode(path.relative_to(target)) for path in target.rglob("*")} == {GOOD, *case.shown}


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.opening])
def test_the_history_of_a_stack(tmp_path: Path, name: str, version: int) -> None:
    case = CASES[name]
    reference = make(case, Forge(tmp_path / "layout", version))
    told = limited(lambda: told_or_error(reference))
    if case.history is None:
        assert isinstance(told, str)
        assert "\n" not in told
    else:
        assert not isinstance(told, str), told
        assert [(layer.added, layer.changed, layer.removed) for layer in reversed(told.layers)] == list(case.history)
        if not case.problems:
            with open_image(reference) as image:
                assert told.layers[0].visible == len({1, *(entry.ino for _, _, entry in image.tree.walk())})


def told_or_error(reference: str) -> HistoryReport | str:
    """The history, or the text of the error; what it costs is checked here."""
    start = time.process_time()
    try:
        return history(reference)
    except PuzzlefsError as error:
        return str(error)
    finally:
        assert time.process_time() - start < 1


# ---- what many layers can cost


def timed(action: Callable[[], object]) -> tuple[str, float]:
    """What an action ended in, and the seconds of CPU time that it took."""
    start = time.process_time()
    try:
        action()
    except PuzzlefsError as error:
        return str(error), time.process_time() - start
    return "", time.process_time() - start


def browse(reference: str) -> int:
    """Look at everything; how many entries there are."""
    with open_image(reference) as image:
        count = 0
        for _, _, entry in image.tree.walk():
            image.tree.attributes(entry.ino)
            image.tree.xattrs(entry.ino)
            count += 1
        return count


def test_thousands_of_layers_that_contradict_each_other(tmp_path: Path) -> None:
    """Each makes the same inodes something else."""
    kinds: list[Callable[[int], Inode]] = [fifo, f.directory, dead, lambda ino: f.symlink(ino, b"t")]
    layers = [[kinds[(number + ino) % 4](ino) for ino in range(3, 9)] for number in range(MANY)]
    names = {f"n{ino}": ino for ino in range(3, 9)}
    reference = Forge(tmp_path / "layout").image(*layers, base(**names))

    def run() -> tuple[int, float, str, float]:
        start = time.process_time()
        count = browse(reference)
        seconds = time.process_time() - start
        return count, seconds, *timed(lambda: history(reference))

    count, seconds, problem, history_seconds = limited(run, memory=256 << 20)
    assert count == 6
    assert seconds < 1
    assert problem == ""
    assert history_seconds < 2


def test_directories_that_merge_through_thousands_of_layers(tmp_path: Path) -> None:
    merging = [f.directory(ino, look_below=True) for ino in range(3, 103)]
    names = {f"n{ino}": ino for ino in range(3, 103)}
    fillers = [[fifo(1000 + number)] for number in range(MANY)]
    reference = Forge(tmp_path / "layout").image(
        merging, *fillers, base(*(f.directory(ino) for ino in range(3, 103)), **names)
    )

    def run() -> tuple[int, float, str, float]:
        start = time.process_time()
        count = browse(reference)
        return count, time.process_time() - start, *timed(lambda: history(reference))

    count, seconds, problem, history_seconds = limited(run, memory=256 << 20)
    assert count == 101
    assert seconds < 1
    assert problem == ""
    assert history_seconds < 1


def test_a_history_of_one_move_over_and_over_ends(tmp_path: Path) -> None:
    """Small layers, each of which moves a large directory; what that can cost is bounded by the size of the image."""
    files = range(10, 5010)
    lowest = base(
        f.directory(3, {b"big": 5}),
        f.directory(4),
        f.directory(5, [(b"f%04d" % ino, ino) for ino in files]),
        *map(fifo, files),
        a=3,
        b=4,
    )
    there = [f.directory(3), f.directory(4, {b"big": 5})]
    back = [f.directory(3, {b"big": 5}), f.directory(4)]
    reference = Forge(tmp_path / "layout").image(*[back, there] * (MANY // 2), lowest)
    problem, seconds = limited(lambda: timed(lambda: history(reference)), memory=256 << 20)
    assert "absurdly much work" in problem
    assert seconds < 3
    few = Forge(tmp_path / "layout").image(*[back, there] * 10, lowest, tag="few")
    report = limited(lambda: history(few))
    assert all((layer.added, layer.changed, layer.removed) == (0, 2, 0) for layer in report.layers[:-1])


def test_layers_that_share_their_bytes(tmp_path: Path) -> None:
    """Thousands of references to one inode vector, or to the same inodes in one message."""
    forge = Forge(tmp_path / "layout", 1)
    vector = forge.codec.encode_inode_vector(base(fifo(3), a=3))
    report = limited(lambda: history(forge.raw_vectors(*[vector] * MANY)), memory=256 << 20)
    assert [(layer.added, layer.changed, layer.removed) for layer in report.layers] == [(3, 0, 0)]
