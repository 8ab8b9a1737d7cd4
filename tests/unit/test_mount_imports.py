"""What using the library costs: FUSE is not loaded before something is mounted."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "statement", ["import puzzlefs.mount", "from puzzlefs import mount, unmount", "import puzzlefs_cli.mount"]
)
def test_fuse_is_loaded_late(statement: str) -> None:
    program = f"import sys; {statement}; print(sorted({{'pyfuse3', 'trio', 'capnp'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_little_is_loaded_before_a_mount() -> None:
    """What takes long to load, and what only builders need, is not on the way (docs/adr/0018)."""
    late = ("ast", "dataclasses", "dis", "inspect", "random", "shutil", "subprocess", "puzzlefs.blobs.writer")
    program = (
        "import sys, puzzlefs.mount.guardian, puzzlefs_cli.main as main; main.parse(['mount', 'layout:tag', 'point']); "
        f"print(sorted(set({late!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
