"""Figures as Markdown: medians with ratios, goals with verdicts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from figures import Figures
from goals import Goal, Verdict, judge_all

UNITS = {"random": "reads/s", "% read": "%", "MiB": "MiB"}
"""The unit of a column that does not hold seconds."""


def unit_of(column: str) -> str:
    """What the numbers of a column are."""
    return "MiB" if column.startswith("memory") else UNITS.get(column, "s")


def shown(value: float, unit: str) -> str:
    """A number as it stands in a table: three digits, or as many as it has before the point."""
    if unit == "reads/s":
        return f"{value:,.0f}"
    if unit in ("MiB", "%"):
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    for digits, least in ((1, 10), (2, 1)):
        if value >= least:
            return f"{value:.{digits}f}"
    return f"{value:.3f}" if value >= 0.01 else f"{value:.4f}"


def ratio_table(figures: Figures, base: str, columns: Sequence[str] | None = None) -> str:
    """The medians of everybody; in brackets those of ``base`` divided by them."""
    wanted = figures.columns() if columns is None else columns
    columns = [column for column in wanted if any(column in values for values in figures.results.values())]
    rows = []
    for name in figures.results:
        cells = [name]
        for column in columns:
            value, mine = figures.median(name, column), figures.median(base, column)
            cell = "–" if value is None else shown(value, unit_of(column))
            if value and mine is not None and name != base:
                cell += f" ({mine / value:.2f})"
            cells.append(cell)
        if len(set(cells[1:]) - {"–"}):
            rows.append(cells)
    units = [
        "" if column in ("seconds", *UNITS) and column != "random" else f", {unit_of(column)}" for column in columns
    ]
    return table(["", *(f"{column}{unit}" for column, unit in zip(columns, units, strict=True))], rows)


def verdict_table(figures: Figures, goals: Iterable[Goal]) -> str:
    """Each goal, what was measured, and whether that is good enough."""
    verdicts, unknown = judge_all(goals, figures)
    rows = [_verdict_row(verdict) for verdict in verdicts]
    rows += [[goal.title, goal.text, "not measured", "", "?"] for goal in unknown]
    return table(["goal of puzzlefs", "at", "measured", "medians", "met"], rows)


def _verdict_row(verdict: Verdict) -> list[str]:
    goal = verdict.goal
    unit = unit_of(goal.column)
    medians = "" if verdict.peer is None else f"{shown(verdict.mine, unit)} : {shown(verdict.peer, unit)} {unit}"
    measured = f"{verdict.measured:.2f}" if verdict.peer is not None else shown(verdict.measured, unit)
    return [goal.title, goal.text, f"**{measured}**", medians, "yes" if verdict.is_met else "no"]


def tally(figures: Figures, goals: Iterable[Goal]) -> str:
    """How many goals are met, in words."""
    verdicts, unknown = judge_all(goals, figures)
    met = sum(verdict.is_met for verdict in verdicts)
    rest = f", {len(unknown)} not measured" if unknown else ""
    return f"{met} of {len(verdicts)} goals met{rest}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def about(figures: Figures) -> str:
    """One sentence: the tree, the machine, the day."""
    tree, on = figures.tree, figures.machine
    size = int(tree["bytes"]) / 1e9
    return (
        f"{tree['inodes']:,} inodes, {size:.2f} GB; {on['cpu']}, {on['memory']} of memory, Linux {on['kernel']}, "
        f"{on['file system']}, CPython {on['python']}; {figures.date}."
    )


def stored_table(stored: dict[str, list[float]], pick: Callable[[list[float]], list[float]] | None = None) -> str:
    """Megabytes that everybody holds after each version of a series."""
    chosen = {name: pick(values) if pick else values for name, values in stored.items()}
    length = max((len(values) for values in chosen.values()), default=0)
    rows = [
        [name, *(f"{value / 1e6:,.1f}" for value in values), *[""] * (length - len(values))]
        for name, values in chosen.items()
    ]
    return table(["MB stored after version", *(str(number) for number in range(1, length + 1))], rows)
