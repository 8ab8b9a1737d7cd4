"""``enable_fs_verity`` where nothing can be enabled; ``tests/verity`` has the rest, in a kernel that can."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from puzzlefs import (
    IntegrityError,
    InvalidArgumentError,
    TagNotFoundError,
    VerityUnavailableError,
    enable_fs_verity,
)
from puzzlefs.verity import verity_digest_of_file
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
DIGESTS = json.loads((VECTORS / "expected.json").read_bytes())["digests"]


@pytest.fixture
def on_tmpfs() -> Iterator[Path]:
    """Copies of the layouts on a file system that has no fs-verity on any kernel."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no tmpfs at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        shutil.copytree(VECTORS, directory, dirs_exist_ok=True, copy_function=shutil.copyfile)
        for path in Path(directory).rglob("*"):
            path.chmod(0o755)
        yield Path(directory)


@pytest.mark.parametrize("layout", ["v1", "v2", "v3", "v3-zstd"])
def test_the_digest_comes_first_then_what_the_file_system_can_do(on_tmpfs: Path, layout: str) -> None:
    reference = f"{on_tmpfs / layout}:base"
    with pytest.raises(IntegrityError, match=r"^manifest ") as wrong:
        enable_fs_verity(reference, DIGESTS[layout]["fresh"])
    assert (wrong.value.expected, wrong.value.actual) == (DIGESTS[layout]["fresh"], DIGESTS[layout]["base"])

    with pytest.raises(VerityUnavailableError, match=r"^the tmpfs file system at /dev/shm has no fs-verity"):
        enable_fs_verity(reference, DIGESTS[layout]["base"])


def test_how_far_it_is(on_tmpfs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every byte is gone through twice: to check it, and by the kernel, in whose place stands what it would say."""
    enabled: list[int] = []
    monkeypatch.setattr("puzzlefs.enable_verity.measure", verity_digest_of_file)
    monkeypatch.setattr("puzzlefs.enable_verity.find_measurement", lambda _fd: None)
    monkeypatch.setattr("puzzlefs.enable_verity.enable", enabled.append)
    layout = on_tmpfs / "v3"
    steps: list[tuple[int, int]] = []
    report = enable_fs_verity(f"{layout}:base", DIGESTS["v3"]["base"], progress=lambda *step: steps.append(step))
    assert (report.enabled, report.already_enabled) == (len(enabled), 0)
    assert len(steps) == 2 * len(enabled)
    assert steps == sorted(steps)
    assert steps[-1] == (2 * report.size, 2 * report.size)

    words = ["enable-fs-verity", "--progress=json", f"{layout}:base", DIGESTS["v3"]["base"]]
    assert main(words) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert {line["stage"] for line in lines} == {"enabling"}
    assert (lines[-1]["done"], lines[-1]["total"]) == (2 * report.size, 2 * report.size)
    assert main([*words, "--quiet", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["size"], err) == (report.size, "")


def test_malformed_and_missing_things() -> None:
    with pytest.raises(InvalidArgumentError, match="'12' is not a sha256 digest"):
        enable_fs_verity(f"{VECTORS / 'v3'}:base", "12")
    with pytest.raises(TagNotFoundError):
        enable_fs_verity(f"{VECTORS / 'v3'}:other", DIGESTS["v3"]["base"])
