"""The built wheel, installed where nothing of the checkout can be seen, is a whole PuzzleFS.

The clean environment holds the wheel and links to exactly those distributions that the wheel's own metadata asks
for, directly and indirectly. So a module that the wheel forgets, a schema that lies only in the checkout and a
dependency that only the development environment has are all found here, without downloading anything twice.
"""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).resolve().parent.parent
MAN_PAGES = sorted((CHECKOUT / "docs" / "man").iterdir())

pytestmark = [pytest.mark.cli, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", out, CHECKOUT], check=True, stdout=subprocess.DEVNULL
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a clean environment with the wheel in it."""
    root = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(root, with_pip=False, symlinks=True)
    interpreter = root / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    answer = run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    site = Path(answer.stdout.strip())
    (metadata,) = site.glob("puzzlefs-*.dist-info")
    for needed in requirements(Distribution.at(metadata), set()):
        link_into(site, needed)
    return interpreter


def requirements(asking: Distribution, seen: set[str]) -> Iterator[Distribution]:
    """What a distribution requires here, directly and indirectly; extras are not asked for."""
    for text in asking.requires or ():
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        found = distribution(name)
        assert requirement.specifier.contains(found.version, prereleases=True), f"{text}, but {found.version} is here"
        yield found
        yield from requirements(found, seen)


def link_into(site: Path, needed: Distribution) -> None:
    """Links everything that a distribution put into its own site-packages."""
    for top in {file.parts[0] for file in needed.files or () if file.parts[0] not in ("..", "__pycache__")}:
        link = site / top
        if not link.exists():
            link.symlink_to(Path(str(needed.locate_file(top))))


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command without anything in the environment that could lead back to the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    return result


def test_wheel_holds_the_packages_and_the_schemas(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        schemas = sorted((CHECKOUT / "format").rglob("*.capnp"))
        assert len(schemas) == 5
        for schema in schemas:
            name = f"puzzlefs/format/{schema.relative_to(CHECKOUT / 'format')}"
            assert archive.read(name) == schema.read_bytes()
    modules = {f"puzzlefs/{path.relative_to(CHECKOUT / 'puzzlefs')}" for path in (CHECKOUT / "puzzlefs").rglob("*.py")}
    modules |= {f"puzzlefs_cli/{path.name}" for path in (CHECKOUT / "exe" / "puzzlefs_cli").glob("*.py")}
    assert modules <= names
    assert "puzzlefs/py.typed" in names
    tops = {name.split("/", 1)[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {"puzzlefs", "puzzlefs_cli"}
    version = wheel.name.split("-")[1]
    pages = {f"puzzlefs-{version}.data/data/share/man/man1/{page.name}" for page in MAN_PAGES}
    assert "puzzlefs.1" in {page.name for page in MAN_PAGES}
    assert {name for name in names if name.split("/", 1)[0].endswith(".data")} == pages


def test_man_pages_lie_where_man_looks(python: Path) -> None:
    directory = python.parent.parent / "share" / "man" / "man1"
    assert {page.name: page.read_bytes() for page in directory.iterdir()} == {
        page.name: page.read_bytes() for page in MAN_PAGES
    }


def test_clean_environment_sees_nothing_of_the_checkout(python: Path, tmp_path: Path) -> None:
    answer = run(
        python, "-c", "import sys, puzzlefs, puzzlefs_cli; print(*sys.path, puzzlefs.__file__, sep='\\n')", cwd=tmp_path
    )
    lines = answer.stdout.split("\n")
    assert not [line for line in lines if line.startswith(str(CHECKOUT))]
    assert sysconfig.get_path("purelib") not in lines
    assert str(python.parent.parent) in lines[-2]


def test_version(python: Path, wheel: Path, tmp_path: Path) -> None:
    version = wheel.name.split("-")[1]
    assert version in run(python.with_name("puzzlefs"), "--version", cwd=tmp_path).stdout
    assert version in run(python, "-m", "puzzlefs_cli", "--version", cwd=tmp_path).stdout


@pytest.mark.parametrize("format_version", ["1", "2", "3"])
def test_build_and_extract(python: Path, tmp_path: Path, format_version: str) -> None:
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc" / "motd").write_bytes(b"welcome\n" * 40_000)
    (source / "link").symlink_to("etc/motd")
    puzzlefs = python.with_name("puzzlefs")
    built = run(puzzlefs, "build", "--format-version", format_version, "-c", source, "oci:first", cwd=tmp_path)
    assert re.fullmatch(r"puzzlefs image manifest digest: [0-9a-f]{64}\n", built.stdout)
    run(puzzlefs, "extract", "oci:first", "copy", cwd=tmp_path)
    comparison = run(sys.executable, CHECKOUT / "scripts" / "compare_trees.py", source, tmp_path / "copy")
    assert "4 entries, 320000 bytes: no differences" in comparison.stdout
    blobs = list((tmp_path / "oci" / "blobs" / "sha256").iterdir())
    assert blobs
    assert sum(blob.stat().st_size for blob in blobs) < 100_000
