"""Weights → rectangles that fill a rectangle: the squarified treemap (Bruls, Huizing, van Wijk: Squarified Treemaps).

Pure geometry. Rows are laid along the shorter side of what is left, each taking items as long as that makes the worst
of them more like a square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Rectangle(NamedTuple):
    """A place on the picture."""

    x: float
    y: float
    width: float
    height: float


def squarify(weights: Sequence[float], place: Rectangle) -> list[Rectangle]:
    """A rectangle for each weight, as large in proportion, that together fill ``place``.

    Args:
        weights: positive, largest first.
        place: what to fill; if it has no area, neither have the rectangles.
    """
    total = sum(weights)
    if not total:
        return []
    scale = place.width * place.height / total
    areas = [weight * scale for weight in weights]
    result: list[Rectangle] = []
    first = 0
    while first < len(areas):
        side = min(place.width, place.height)
        count = 1
        while first + count < len(areas) and _worst(areas[first : first + count + 1], side) <= _worst(
            areas[first : first + count], side
        ):
            count += 1
        row, place = _lay(areas[first : first + count], place)
        result.extend(row)
        first += count
    return result


def _worst(areas: Sequence[float], side: float) -> float:
    """How far from a square the worst rectangle of a row along ``side`` is: 1 is a square."""
    thickness = sum(areas) / side if side else 0.0
    if not thickness:
        return 0.0
    return max(max(thickness * thickness / area, area / (thickness * thickness)) for area in areas if area)


def _lay(areas: Sequence[float], place: Rectangle) -> tuple[list[Rectangle], Rectangle]:
    """A row along the shorter side of ``place``, and what is left of that."""
    x, y, width, height = place
    total = sum(areas)
    row: list[Rectangle] = []
    if width >= height:
        thickness = total / height if height else 0.0
        for area in areas:
            length = area / thickness if thickness else 0.0
            row.append(Rectangle(x, y, thickness, length))
            y += length
        return row, Rectangle(x + thickness, place.y, max(0.0, width - thickness), height)
    thickness = total / width if width else 0.0
    for area in areas:
        length = area / thickness if thickness else 0.0
        row.append(Rectangle(x, y, length, thickness))
        x += length
    return row, Rectangle(place.x, y + thickness, width, max(0.0, height - thickness))
