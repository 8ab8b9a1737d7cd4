"""Output that cannot be written: what is said, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import forge as f
from support.forge import Forge

pytestmark = pytest.mark.cli

_WORDS = [
    ["ls", "{image}"],
    ["ls", "-l", "{image}"],
    ["cat", "{image}", "/small"],
    ["cat", "{image}", "/large"],
    ["tree", "{image}"],
    ["find", "{image}"],
    ["du", "{image}"],
    ["stat", "{image}", "/small"],
    ["inspect", "{image}"],
    ["inspect", "--json", "{image}"],
    ["stats", "{layout}"],
    ["tags", "{layout}"],
    ["history", "{image}"],
    ["fsck", "{layout}"],
    ["export", "{image}"],
    ["completion", "bash"],
]


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    forge = Forge(tmp_path / "layout")
    forge.image(
        [
            f.directory(1, {b"small": 2, b"large": 3}),
            f.regular(2, forge.chunk(b"small")),
            f.regular(3, forge.chunk(bytes(100_000))),
        ]
    )
    return forge


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", _WORDS, ids=" ".join)
def test_a_full_device(forge: Forge, words: list[str], unbuffered: str) -> None:
    command = [word.format(image=forge.reference(), layout=forge.path) for word in words]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "puzzlefs_cli", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
            check=False,
        )
    assert result.stderr == b"puzzlefs: the output cannot be written: No space left on device\n"
    assert result.returncode == 7
