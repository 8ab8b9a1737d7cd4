"""What the project wants to reach, each a ratio to a peer in the same run, and whether it does.

A goal is data; ``judge`` compares one with figures. Nothing here measures anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from figures import Figures


@dataclass(frozen=True)
class Goal:
    """One line of the list of goals.

    Attributes:
        column: what is measured.
        mine: the contestant of this project.
        limit: the ratio to the peer, or the value where there is no peer.
        peer: with whom it is compared.
        peer_column: what of the peer, where that is another column than ``column``.
        at_least: more is better: the limit is a lower one.
        less: a column of ``mine`` that is taken off first.
        says: how the line is called in a table, where the column's name is not enough.
    """

    column: str
    mine: str
    limit: float
    peer: str | None = None
    peer_column: str | None = None
    at_least: bool = False
    less: str | None = None
    says: str | None = None

    @property
    def title(self) -> str:
        """What is judged."""
        suffix = self.mine.removeprefix("puzzlefs").lstrip(" ,")
        return self.says or (f"{self.column}, {suffix}" if suffix else self.column)

    @property
    def text(self) -> str:
        """The goal, for a table."""
        sign = "≥" if self.at_least else "≤"
        number = f"{self.limit:g}"
        if self.peer is None:
            return f"{sign} {number}"
        return f"{sign} {number} × {self.peer if self.peer != self.mine else self.peer_column}"


@dataclass(frozen=True)
class Verdict:
    """How a goal fared.

    Attributes:
        goal: the goal.
        measured: the ratio, or the value where the goal has no peer.
        mine: the median of ``goal.mine``.
        peer: that of the peer.
        is_met: whether that is good enough.
    """

    goal: Goal
    measured: float
    mine: float
    peer: float | None
    is_met: bool


def judge(goal: Goal, figures: Figures) -> Verdict | None:
    """The verdict, or None if one of the two sides was not measured."""
    mine = figures.median(goal.mine, goal.column)
    if mine is None:
        return None
    if goal.less is not None:
        mine -= figures.median(goal.mine, goal.less) or 0.0
    peer = None
    measured = mine
    if goal.peer is not None:
        peer = figures.median(goal.peer, goal.peer_column or goal.column)
        if not peer:
            return None
        measured = mine / peer
    is_met = measured >= goal.limit if goal.at_least else measured <= goal.limit
    return Verdict(goal, measured, mine, peer, is_met)


def judge_all(goals: Iterable[Goal], figures: Figures) -> tuple[list[Verdict], list[Goal]]:
    """The verdicts, and the goals that nothing is known about."""
    verdicts, unknown = [], []
    for goal in goals:
        verdict = judge(goal, figures)
        if verdict is None:
            unknown.append(goal)
        else:
            verdicts.append(verdict)
    return verdicts, unknown


def _reading(mine: str, fuse: str, kernel: str) -> list[Goal]:
    return [
        Goal("find cold", mine, 0.65, fuse),
        Goal("find warm", mine, 1.1, kernel),
        Goal("stat cold", mine, 0.35, fuse),
        Goal("stat warm", mine, 1.1, kernel),
        Goal("tar cold", mine, 1.0, kernel),
        Goal("tar warm", mine, 1.4, kernel),
        Goal("file cold", mine, 0.8, fuse),
        Goal("random", mine, 1.0, fuse, at_least=True),
        Goal("python cold", mine, 0.9, fuse),
        Goal("python warm", mine, 0.9, fuse),
        Goal("python warm", mine, 1.15, kernel),
        Goal("g++ cold", mine, 0.9, fuse),
        Goal("g++ warm", mine, 0.9, fuse),
        Goal("g++ warm", mine, 1.15, kernel),
    ]


READING = (
    *_reading("puzzlefs", "squashfuse_ll", "ext4"),
    Goal("ready", "puzzlefs", 0.120, less="hash", says="ready, less one hash of the metadata, s"),
    Goal("ready 10", "puzzlefs", 0.120, less="hash 10", says="the same with 10 inodes, s"),
    Goal("ready 1,000,000", "puzzlefs", 0.120, less="hash 1,000,000", says="the same with 1,000,000 inodes, s"),
    Goal("memory", "puzzlefs", 80, says="memory after find and tar, MiB"),
    Goal("memory 3", "puzzlefs", 1.05, "puzzlefs", "memory", says="memory after three passes"),
    *_reading("puzzlefs zstd", "squashfuse_ll zstd", "ext4"),
)

BUILDING = (
    Goal("seconds", "puzzlefs", 1.5, "write floor", says="first build"),
    Goal("seconds", "puzzlefs", 0.4, "the original", says="first build"),
    Goal("seconds", "puzzlefs", 0.25, "casync make", says="first build"),
    Goal("seconds", "puzzlefs", 2.0, "mkfs.erofs", says="first build"),
    Goal("seconds", "puzzlefs zstd", 1.5, "mksquashfs zstd-3", says="first build, zstd"),
    Goal("seconds", "puzzlefs zstd", 0.35, "the original -c", says="first build, zstd"),
    Goal("seconds", "puzzlefs zstd", 0.25, "casync make", says="first build, zstd"),
    Goal("seconds", "puzzlefs, nothing changed", 3.0, "find -ls", says="rebuild, nothing changed"),
    Goal("seconds", "puzzlefs, nothing changed", 0.5, "mksquashfs plain", says="rebuild, nothing changed"),
    Goal("% read", "puzzlefs, 1 % changed", 5.0, says="rebuild, 1 % of the files changed: % of the data read"),
    Goal("MiB", "puzzlefs", 300, says="peak memory of a build, MiB (a first build of this tree)"),
)
