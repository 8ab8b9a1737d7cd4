"""Fixtures for all tiers. Its place makes ``support`` (``tests/support``) importable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.original_program import Original, original_program

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"


@pytest.fixture(scope="session", autouse=True)
def _no_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Builds by the command remember what they read: not in the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache-home")))
        yield


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


@pytest.fixture
def theirs(request: pytest.FixtureRequest) -> Original:
    """The original's program that writes a format version (``each_original``)."""
    return original_program(request.param)
