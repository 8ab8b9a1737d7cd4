"""A picture of an image: the sizes of its chunks, and as a treemap what takes the space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlefs.plots.figure import BLUE, FONT_SIZE, picture, readable, short
from puzzlefs.plots.treemap import Rectangle, squarify

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from puzzlefs.usage import Inspection, UsageReport
    from puzzlefs.usage.inspection import SizeClass

_COLOURS: Final = ("#3b75af", "#ef8636", "#519e3e", "#c53a32", "#8d69b8", "#84584e", "#d57dbe", "#7f7f7f", "#bcbd22")
_MIN_PART: Final = 1 / 2000
"""Folders with less than this part of the whole are not drawn; their room stays empty."""
_CHARACTER: Final = 0.62
"""Width of a character in units of its height, about."""
_INCH: Final = 72
_SIZE: Final = (12.0, 10.5)
_RATIO: Final = 2.4
"""How much higher the treemap is than the histogram."""


def plot_image(report: Inspection, usage: UsageReport, path: Path) -> None:
    """Draw the sizes of an image's chunks, and what takes the space in it.

    Args:
        report: the image in numbers.
        usage: what its folders weigh, some levels deep.
        path: the picture, ``.svg`` or ``.png``; replaced if it is there.

    Raises:
        InvalidArgumentError: as ``check_plot``.
        UnsupportedError: as ``check_plot``.
        StorageError: if it cannot be written.
    """
    with picture(path, _SIZE) as figure:
        chunks, space = figure.subplots(2, 1, height_ratios=(1, _RATIO))
        _draw_chunks(chunks, report.chunks.sizes, f"{short(report.image)}: {report.chunks.number} chunks")
        _draw_treemap(space, usage)


def _draw_chunks(axes: Axes, sizes: Sequence[SizeClass], title: str) -> None:
    axes.set_title(title)
    axes.set_ylabel("chunks")
    axes.spines[["top", "right"]].set_visible(False)
    if not sizes:
        axes.text(0.5, 0.5, "no chunks", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    labels = [
        f"≤ {readable(size.upto_bytes)}" if size.upto_bytes is not None else f"> {readable(size.over_bytes or 0)}"
        for size in sizes
    ]
    bars = axes.bar(range(len(sizes)), [size.chunks for size in sizes], color=BLUE)
    axes.bar_label(bars, [f"{size.chunks}\n{readable(size.bytes)}" if size.chunks else "" for size in sizes], padding=2)
    axes.set_xticks(range(len(sizes)), labels)
    axes.set_xlabel("content of a chunk, and of all of that size")
    axes.margins(y=0.22)


@dataclass(slots=True)
class _Node:
    """A folder on the treemap."""

    name: str
    size: int
    children: list[_Node] = field(default_factory=list)


def _folders(usage: UsageReport) -> _Node:
    """The rows of a report as a tree."""
    waiting: dict[int, list[_Node]] = {}
    node = _Node("/", 0)
    for row in usage.rows:
        if row.is_directory or not row.depth:
            name = row.path.rpartition(b"/")[2].decode("utf-8", "backslashreplace") or "/"
            node = _Node(name, row.stored_bytes, waiting.pop(row.depth + 1, []))
            waiting.setdefault(row.depth, []).append(node)
    return node


def _draw_treemap(axes: Axes, usage: UsageReport) -> None:
    top = _folders(usage)
    extra = usage.metadata_bytes + usage.hidden_bytes
    axes.set_title(f"what takes the {readable(top.size + extra)} that are stored")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_axis_off()
    axes.invert_yaxis()
    parts = [*top.children, _Node("(metadata)", usage.metadata_bytes), _Node("(not visible)", usage.hidden_bytes)]
    parts.append(_Node("(files in /)", top.size - sum(child.size for child in top.children)))
    height = _SIZE[1] * _RATIO / (1 + _RATIO)
    canvas = _Canvas(axes, _SIZE[0] * _INCH, height * _INCH, top.size + extra)
    canvas.fill(_Node("/", top.size + extra, parts), Rectangle(0, 0, 1, 1), 0, None)


@dataclass(slots=True)
class _Canvas:
    """Where folders are drawn: the axes, and how many points they are wide and high, about."""

    axes: Axes
    width: float
    height: float
    total: int

    def fill(self, folder: _Node, place: Rectangle, depth: int, colour: str | None) -> None:
        """Draw what is in a folder onto its place."""
        parts = sorted((part for part in folder.children if part.size > 0), key=lambda part: -part.size)
        large = [part for part in parts if part.size >= self.total * _MIN_PART]
        rest = folder.size - sum(part.size for part in large)
        weights = [float(part.size) for part in large] + ([float(rest)] if rest > 0 else [])
        # the rest is last, smaller or not: its place tells nothing, and the order of the others stays
        for number, (part, area) in enumerate(zip(large, self._places(weights, place), strict=False)):
            self._draw(part, area, depth, colour or _COLOURS[number % len(_COLOURS)])

    def _places(self, weights: list[float], place: Rectangle) -> list[Rectangle]:
        x, y, width, height = place
        wide = Rectangle(x * self.width, y * self.height, width * self.width, height * self.height)
        return [
            Rectangle(x / self.width, y / self.height, width / self.width, height / self.height)
            for x, y, width, height in squarify(weights, wide)
        ]

    def _draw(self, part: _Node, place: Rectangle, depth: int, colour: str) -> None:
        from matplotlib.patches import Rectangle as Patch  # noqa: PLC0415

        self.axes.add_patch(
            Patch(
                (place.x, place.y),
                place.width,
                place.height,
                facecolor=_lighter(colour, min(0.75, 0.4 * depth)),
                edgecolor="white",
                linewidth=max(0.4, 1.8 - 0.6 * depth),
            )
        )
        width, height = place.width * self.width, place.height * self.height
        line = FONT_SIZE * 1.5
        label = f"{short(part.name)}  {readable(part.size)}"
        fits = len(label) * FONT_SIZE * _CHARACTER + 8 < width and line + 2 < height
        if not fits:
            label = short(part.name)
            fits = len(label) * FONT_SIZE * _CHARACTER + 8 < width and line + 2 < height
        if fits:
            self.axes.text(
                place.x + 4 / self.width,
                place.y + 3 / self.height,
                label,
                ha="left",
                va="top",
                color="white" if depth == 0 else "black",
                fontweight="bold" if depth == 0 else "normal",
            )
        head = line if fits else 0.0
        if part.children and height > 3 * line and width > 3 * line:
            inner = Rectangle(
                place.x + 2 / self.width,
                place.y + (head + 2) / self.height,
                place.width - 4 / self.width,
                place.height - (head + 4) / self.height,
            )
            self.fill(part, inner, depth + 1, colour)


def _lighter(colour: str, part: float) -> str:
    """A colour, mixed with as much white."""
    levels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(level + (255 - level) * part):02x}" for level in levels)
