"""What all pictures have in common: the file, the fonts and colours, numbers and names as text.

matplotlib is an optional extra, ``puzzlefs[plot]``; where it is missing, that is said before any work is done
(``check_plot``). No global state of matplotlib is used, so a program that draws for itself is not disturbed. Pictures
of the same numbers are the same bytes. The file gets its name when it is complete.
"""

from __future__ import annotations

import importlib.util
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlefs.blobs.host import storage_errors
from puzzlefs.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT_SIZE: Final = 8
"""Of all texts, in points."""

BLUE, ORANGE, GREY = "#3b75af", "#ef8636", "#8c8c8c"

_FORMATS: Final = ("svg", "png")
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MAX_LABEL: Final = 40


def check_plot(path: Path) -> None:
    """Say at once if no picture could be drawn.

    Raises:
        InvalidArgumentError: if the name of the file ends with neither ``.svg`` nor ``.png``.
        UnsupportedError: if matplotlib is not installed.
    """
    if path.suffix.lower().removeprefix(".") not in _FORMATS:
        raise InvalidArgumentError(f"{path} is no name for a picture", hint="let it end with .svg or .png")
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError(
            "drawing needs matplotlib, which is not installed", hint="install it with: pip install 'puzzlefs[plot]'"
        )


@contextmanager
def picture(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure to draw on, which is saved then."""
    check_plot(path)

    import matplotlib as mpl  # noqa: PLC0415  optional, and it takes a while to load
    from matplotlib.figure import Figure  # noqa: PLC0415

    kind = path.suffix.lower().removeprefix(".")
    metadata = {"Date": None, "Creator": "puzzlefs"} if kind == "svg" else {"Software": "puzzlefs"}
    with mpl.rc_context({"svg.hashsalt": "puzzlefs", "font.size": FONT_SIZE, "text.parse_math": False}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        data = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # names may have letters that no font has
            figure.savefig(data, format=kind, metadata=metadata, dpi=150)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with storage_errors("write", path):
        try:
            temporary.write_bytes(data.getvalue())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def short(text: str) -> str:
    """Text of an image, which may be long, or not printable."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= _MAX_LABEL else f"{shown[: _MAX_LABEL - 1]}…"


def scale_of(size: int) -> tuple[int, str]:
    """The unit in which a number of bytes is well read: its size and its name."""
    step = min(max(0, (size.bit_length() - 1) // 10), len(_UNITS) - 1)
    return 1 << 10 * step, _UNITS[step]


def readable(size: int) -> str:
    scale, unit = scale_of(size)
    return f"{size / scale:.3g} {unit}" if size / scale < 1000 else f"{size / scale:.0f} {unit}"
