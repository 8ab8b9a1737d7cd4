"""Fixtures for all tiers. Its place makes ``support`` (``tests/support``) importable."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The directory of images that the original implementation made, beside the project."""
    if not (VECTORS / "expected.json").is_file():
        message = f"the original implementation's images are not at {VECTORS}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return VECTORS


@pytest.fixture(scope="session")
def expected(vectors: Path) -> dict[str, Any]:
    """What those images show: ``digests`` by layout and tag, ``trees`` by tag."""
    document: dict[str, Any] = json.loads((vectors / "expected.json").read_bytes())
    document["trees"]["fresh"] = document["trees"]["second"]
    return document
