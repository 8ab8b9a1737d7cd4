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
