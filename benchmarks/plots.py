"""Figures as pictures: time by peer, stored bytes by version. The same figures give the same SVG, to the byte.

``bars`` and ``lines`` are pure; only ``draw_bars`` and ``draw_lines`` load matplotlib (``make bench`` installs it).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import Figures

MINE, PEER, KERNEL = "#b3402e", "#7d93a8", "#b9bfc5"
"""Colours: this project, peers in user space, file systems of the kernel."""

_KERNEL_NAMES = ("squashfs", "ext4", "squashfs zstd")


@dataclass(frozen=True)
class Panel:
    """One small bar chart: who took how long for one thing.

    Attributes:
        title: what was measured, and its unit.
        names: from top to bottom.
        values: medians.
        low: the smallest value of each.
        high: the largest one.
    """

    title: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def bars(figures: Figures, columns: Mapping[str, str], names: Sequence[str] | None = None) -> list[Panel]:
    """A panel for each of the columns that was measured; ``columns`` gives them titles."""
    panels = []
    for column, title in columns.items():
        chosen = [
            name for name in (figures.results if names is None else names) if figures.results.get(name, {}).get(column)
        ]
        if chosen:
            values = [figures.results[name][column] for name in chosen]
            medians = tuple(figures.median(name, column) or 0.0 for name in chosen)
            panels.append(Panel(title, tuple(chosen), medians, tuple(map(min, values)), tuple(map(max, values))))
    return panels


def lines(stored: Mapping[str, Sequence[float]]) -> list[tuple[str, list[tuple[int, float]]]]:
    """For each contestant the points (version, MB), those that end highest first."""
    series = [(name, [(n, value / 1e6) for n, value in enumerate(values, 1)]) for name, values in stored.items()]
    return sorted((item for item in series if item[1]), key=lambda item: -item[1][-1][1])


def colour(name: str) -> str:
    """Of a contestant."""
    if name.startswith("puzzlefs"):
        return MINE
    return KERNEL if name in _KERNEL_NAMES else PEER


def draw_bars(panels: Sequence[Panel], title: str, path: Path, across: int = 3) -> None:
    """Small bar charts side by side; a thin line shows the range of all rounds."""
    down = -(-len(panels) // across)
    tallest = max(len(panel.names) for panel in panels)
    figure = _figure(4.6 * across, down * (0.9 + 0.26 * tallest))
    axes = figure.subplots(down, across, squeeze=False)
    for place, panel in zip(axes.flat, panels, strict=False):
        rows = range(len(panel.names))
        place.barh(rows, panel.values, color=[colour(name) for name in panel.names], height=0.72)
        place.hlines(rows, panel.low, panel.high, color="#222222", linewidth=0.8)
        reach = max(panel.high)
        for row, value, high in zip(rows, panel.values, panel.high, strict=True):
            place.text(max(value, high) + reach * 0.02, row, _label(value), va="center", fontsize=8)
        place.set_yticks(list(rows), panel.names, fontsize=8)
        place.invert_yaxis()
        place.set_xlim(0, reach * 1.22)
        place.set_title(panel.title, fontsize=9, loc="left")
        place.tick_params(axis="x", labelsize=7)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    for place in list(axes.flat)[len(panels) :]:
        place.set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.tight_layout()
    _save(figure, path)


def draw_lines(series: Sequence[tuple[str, list[tuple[int, float]]]], title: str, path: Path) -> None:
    """Stored bytes over the versions of a tree, each line named at its end."""
    figure = _figure(9, 5.5)
    place = figure.subplots()
    top = max(points[-1][1] for _, points in series)
    below = float("inf")
    for index, (name, points) in enumerate(series):
        mine = name.startswith("puzzlefs")
        x, y = [version for version, _ in points], [value for _, value in points]
        style = ("-", "--", "-.", ":")[index % 4] if not mine else "-"
        place.plot(x, y, style, color=MINE if mine else PEER, linewidth=2 if mine else 1.3, marker="o", markersize=2.5)
        below = min(y[-1], below - top * 0.035)  # names must not cover one another
        text = f"{name}  {y[-1]:,.0f}"
        place.annotate(
            text, (x[-1], y[-1]), xytext=(x[-1] + 0.35, below), fontsize=8, va="center",
            color=MINE if mine else "#333333", arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": "#999999"},
        )  # fmt: skip
    place.set_xlabel("versions stored", fontsize=9)
    place.set_ylabel("MB", fontsize=9)
    place.set_ylim(bottom=0)
    place.set_xlim(0.8, max(len(points) for _, points in series) * 1.38)
    place.set_xticks(range(1, max(len(points) for _, points in series) + 1))
    place.set_title(title, fontsize=10, loc="left")
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
    figure.tight_layout()
    _save(figure, path)


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _figure(width: float, height: float) -> Any:
    return importlib.import_module("matplotlib.figure").Figure(figsize=(width, height))


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib = importlib.import_module("matplotlib")
    # Text stays text; names of clip paths are the same every time.
    with matplotlib.rc_context({"svg.hashsalt": "puzzlefs", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
