"""Inputs that once broke a target: ``found/TARGET/NAME``. They stay, and the test suite gives them to their targets."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DIRECTORY: Final = Path(__file__).resolve().parent / "found"


def regressions(target: str) -> list[bytes]:
    """Those of one target."""
    return [path.read_bytes() for path in sorted((DIRECTORY / target).glob("*"))]
