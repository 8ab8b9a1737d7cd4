"""``import puzzlefs``: every public name is there, light to load, and means the same in any order of imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import puzzlefs
from puzzlefs.errors import InvalidArgumentError, NotFoundError

pytestmark = pytest.mark.unit


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_every_public_name_is_there_and_documented() -> None:
    for name in puzzlefs.__all__:
        assert hasattr(puzzlefs, name), name
        assert name == "__version__" or getattr(puzzlefs, name).__doc__, name
    assert set(puzzlefs.__all__) <= set(dir(puzzlefs))
    with pytest.raises(AttributeError):
        _ = puzzlefs.nothing  # type: ignore[attr-defined]


def test_importing_it_loads_neither_fuse_nor_capnp() -> None:
    loaded = set(run("import puzzlefs, puzzlefs.image, sys; print(*sys.modules)").split())
    assert "puzzlefs.image" in loaded
    assert not {"trio", "pyfuse3", "capnp", "rich", "fastcdc"} & loaded


@pytest.mark.parametrize("first", ["", "import puzzlefs.mount", "from puzzlefs.mount import MountOptions"])
def test_mount_is_the_function_in_any_order_of_imports(first: str) -> None:
    code = f"""
{first}
import puzzlefs
try:
    puzzlefs.mount("nowhere:t", "/")
except puzzlefs.NotFoundError as error:
    print("refused:", error)
from puzzlefs.mount import parse_options
parse_options(["ro"])
"""
    assert run(code).startswith("refused: nowhere")


@pytest.mark.parametrize("first", ["", "import puzzlefs.extract", "from puzzlefs.extract import ExtractReport"])
def test_extract_is_the_function_in_any_order_of_imports(first: str) -> None:
    code = f"""
{first}
import puzzlefs
try:
    puzzlefs.extract("nowhere:t", "/nowhere")
except puzzlefs.NotFoundError as error:
    print("refused:", error)
"""
    assert run(code).startswith("refused: nowhere")


def test_names_of_images_are_checked() -> None:
    with pytest.raises(InvalidArgumentError):
        puzzlefs.open_image("no image")
    with pytest.raises(NotFoundError):
        puzzlefs.open_image("/nowhere:t")
