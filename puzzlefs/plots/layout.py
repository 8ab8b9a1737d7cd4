"""A picture of a layout: what its tags share, as a heat map, and how it grew tag by tag."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlefs.plots.figure import BLUE, GREY, ORANGE, picture, readable, scale_of, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from puzzlefs.usage import EntryStatistics, LayoutStatistics

_MAX_ENTRIES: Final = 60
"""More tags cannot be told apart on a picture; then it shows the last ones."""
_MAX_LABELLED: Final = 16
"""Up to so many tags there is room for numbers in the heat map."""


def plot_layout(report: LayoutStatistics, path: Path) -> None:
    """Draw what the tags of a layout share, and how it grew tag by tag.

    Args:
        report: the layout in numbers.
        path: the picture, ``.svg`` or ``.png``; replaced if it is there.

    Raises:
        InvalidArgumentError: as ``check_plot``.
        UnsupportedError: as ``check_plot``.
        StorageError: if it cannot be written.
    """
    shown = min(len(report.entries), _MAX_ENTRIES)
    side = max(5.0, 2.0 + 0.32 * shown)
    with picture(path, (2 * side + 2, side + 1)) as figure:
        sharing, growth = figure.subplots(1, 2)
        _draw_sharing(sharing, report)
        _draw_growth(growth, report)


def _draw_sharing(axes: Axes, report: LayoutStatistics) -> None:
    axes.set_title("what of an image (row) another one (column) has, too")
    entries = report.entries[-_MAX_ENTRIES:]
    if not entries or not report.shared_bytes:
        axes.text(0.5, 0.5, "nothing to compare" if not entries else "too many images to compare", ha="center")
        axes.set_axis_off()
        return
    first = len(report.entries) - len(entries)
    rows = [row[first:] for row in report.shared_bytes[first:]]
    parts = [
        [shared / entry.stored_bytes if entry.stored_bytes else 0.0 for shared in row]
        for entry, row in zip(entries, rows, strict=True)
    ]
    image = axes.imshow(parts, vmin=0, vmax=1, cmap="Blues")
    names = [_name(entry) for entry in entries]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    if len(entries) <= _MAX_LABELLED:
        for y, (row, part_row) in enumerate(zip(rows, parts, strict=True)):
            for x, (shared, part) in enumerate(zip(row, part_row, strict=True)):
                text = f"{part:.0%}\n{readable(shared)}" if len(entries) <= _MAX_LABELLED // 2 else f"{part:.0%}"
                axes.text(x, y, text, ha="center", va="center", color="white" if part > 0.55 else "black")
    figure = axes.get_figure()
    if figure is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.7)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _draw_growth(axes: Axes, report: LayoutStatistics) -> None:
    entries = report.entries
    axes.set_title("how the layout grew, tag by tag")
    axes.spines[["top", "right"]].set_visible(False)
    before, alone = 0, 0
    below: list[int] = []
    sums: list[int] = []
    for entry in entries:
        below.append(before)
        before += entry.added_bytes
        alone += entry.stored_bytes
        sums.append(alone)
    first = max(0, len(entries) - _MAX_ENTRIES)
    scale, unit = scale_of(max(sums, default=0))
    places = range(len(entries) - first)
    added = [entry.added_bytes / scale for entry in entries[first:]]
    lower = [size / scale for size in below[first:]]
    axes.bar(places, lower, color=GREY, alpha=0.5, label="was there already")
    axes.bar(places, added, bottom=lower, color=BLUE, label="added")
    axes.plot(places, [size / scale for size in sums[first:]], color=ORANGE, marker="o", ms=3, label="without sharing")
    axes.set_xticks(
        places, [_name(entry) for entry in entries[first:]], rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.set_ylabel(f"stored, {unit}")
    axes.set_ylim(bottom=0)
    if entries:
        axes.legend(loc="upper left", frameon=False)


def _name(entry: EntryStatistics) -> str:
    return short(entry.tag) if entry.tag is not None else f"({entry.manifest.removeprefix('sha256:')[:8]})"
