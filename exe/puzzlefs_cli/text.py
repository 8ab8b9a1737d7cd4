"""How reports lay out numbers and names for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from puzzlefs_cli.quoting import shell_escape

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")

UNKNOWN = "?"
"""What cannot be told."""


def readable(size: int) -> str:
    """A number of bytes as people read it: ``817 B``, ``1.4 MiB``."""
    value = float(size)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things: ``1 blob``, ``2 blobs``; ``many`` where that is not ``one`` and an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def aligned(rows: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """Rows as lines in which the columns stand below each other.

    Args:
        rows: the cells.
        left: how many of the first columns begin at their left; the others end at their right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def bytes_or_unknown(size: int | None) -> str:
    """A number of bytes as people read it."""
    return UNKNOWN if size is None else readable(size)


def times(ratio: float | None) -> str:
    """A ratio: ``1.98×``."""
    return UNKNOWN if ratio is None else f"{ratio:.2f}×"


def write_bytes(data: bytes) -> None:
    """Bytes of an image on stdout, as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def name_for_stdout(name: bytes) -> bytes:
    """A name as ``du`` prints it: raw, but quoted on a terminal, which it could confuse otherwise."""
    if not sys.stdout.isatty():
        return name
    return shell_escape(name).encode("utf-8", "surrogateescape")
