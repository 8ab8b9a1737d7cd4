"""Telling that a mount is ready, or why it is not: through the FIFO, on the terminal, by the exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from mounting import COMMAND, Built, Mount, is_mounted, read_fifo, run_puzzlefs

pytestmark = pytest.mark.mount

_PROMPTLY = 4.0  # seconds; well below the 5 that a failure may wait for a reader
_NO_DIGEST = "0" * 64


@pytest.fixture
def large_layout(odd: Built, tmp_path: Path) -> Path:
    """A layout with so many blobs that the command looks at the manifest while the daemon gets ready."""
    layout = Path(shutil.copytree(odd.layout / "new", tmp_path / "large", symlinks=True))
    for number in range(7000):
        (layout / "blobs" / "sha256" / f"{number:064x}").touch()
    return layout


# ---- images with many chunks


def test_a_large_layout(odd: Built, mounted: Mount, large_layout: Path) -> None:
    with mounted(f"{large_layout}:v3") as mount:
        assert (mount.path / "big" / "text").read_bytes() == (odd.source / "big" / "text").read_bytes()


def test_what_is_wrong_in_a_large_layout(odd: Built, point: Path, large_layout: Path) -> None:
    for tag, words, code in (("none", (), 3), ("v3", ("-d", _NO_DIGEST), 5), ("v3", ("-o", "nonsense"), 2)):
        result = run_puzzlefs("mount", *words, f"{large_layout}:{tag}", point, check=False)
        assert result.returncode == code
        assert result.stderr.count("\n") == 1
        assert not is_mounted(point)
    index = json.loads((large_layout / "index.json").read_text())
    (found,) = (
        entry["digest"]
        for entry in index["manifests"]
        if entry["annotations"]["org.opencontainers.image.ref.name"] == "v3"
    )
    manifest = large_layout / "blobs" / "sha256" / found.removeprefix("sha256:")
    manifest.write_bytes(manifest.read_bytes().replace(b'"size"', b'"siez"'))
    result = run_puzzlefs("mount", f"{large_layout}:v3", point, check=False)
    assert result.returncode == 5
    assert not is_mounted(point)


# ---- the FIFO


@pytest.mark.parametrize("where", [["-f"], []])
def test_failure_is_told_to_a_waiting_reader(odd: Built, point: Path, fifo: Path, where: list[str]) -> None:
    with subprocess.Popen(["head", "-c1", fifo], stdout=subprocess.PIPE) as reader:
        result = run_puzzlefs("mount", *where, "-i", fifo, f"{odd.layout / 'new'}:none", point, check=False)
        assert reader.communicate(timeout=20)[0] == b"f"
    assert result.returncode == 3


def test_failure_is_told_to_a_reader_that_comes_after_the_command(odd: Built, point: Path, fifo: Path) -> None:
    began = time.monotonic()
    result = run_puzzlefs("mount", "-i", fifo, "-d", _NO_DIGEST, odd.image("v3"), point, check=False)
    assert result.returncode == 5
    assert time.monotonic() - began < _PROMPTLY
    assert read_fifo(fifo) == b"f"


def test_failure_without_a_reader_ends_in_time(odd: Built, point: Path, fifo: Path) -> None:
    began = time.monotonic()
    result = run_puzzlefs("mount", "-f", "-i", fifo, "-d", _NO_DIGEST, odd.image("v3"), point, check=False)
    assert result.returncode == 5
    assert 5 <= time.monotonic() - began < 15


def test_nobody_reads_that_it_is_ready(odd: Built, mounted: Mount, fifo: Path) -> None:
    with mounted(odd.image("v3"), "-i", str(fifo)) as mount:
        assert (mount.path / "big" / "1").stat().st_size == 1


def test_a_reader_that_comes_late(odd: Built, mounted: Mount, fifo: Path) -> None:
    with mounted(odd.image("v3"), "-i", str(fifo)) as mount:
        assert (mount.path / "big" / "1").stat().st_size == 1
        assert read_fifo(fifo) == b"s"


@pytest.mark.parametrize("where", [["-f"], []])
def test_something_that_is_no_fifo(odd: Built, point: Path, tmp_path: Path, where: list[str]) -> None:
    file, directory, missing = tmp_path / "file", tmp_path / "directory", tmp_path / "missing"
    file.write_bytes(b"untouched")
    directory.mkdir()
    for path, code in ((file, 2), (directory, 2), (missing, 3)):
        result = run_puzzlefs("mount", *where, "-i", path, odd.image("v3"), point, check=False)
        assert result.returncode == code
        assert str(path) in result.stderr
        assert not is_mounted(point)
    assert file.read_bytes() == b"untouched"
    assert not missing.exists()


SCRIPT = """\
set -e
mkfifo "$1/fifo"
{puzzlefs} mount -f -i "$1/fifo" "$2" "$1/mnt" 2> "$1/log" &
status="$(head -c1 "$1/fifo")"
if [ "$status" = s ]; then
    ls "$1/mnt"
    {puzzlefs} umount "$1/mnt"
fi
wait $!
echo "status $status, exit code $?"
"""


def test_the_wait_for_ready_script(odd: Built, point: Path, tmp_path: Path) -> None:
    script = SCRIPT.format(puzzlefs=" ".join(COMMAND))
    command = ["sh", "-c", script, "sh", str(tmp_path)]
    good = subprocess.run([*command, odd.image("v3")], capture_output=True, text=True, check=False, timeout=60)
    assert good.stdout.splitlines() == [*sorted(os.listdir(odd.source)), "status s, exit code 0"], good.stderr
    (tmp_path / "fifo").unlink()
    script = script.replace("wait $!\n", "wait $! || true\n")
    bad = subprocess.run(
        ["sh", "-c", script, "sh", str(tmp_path), odd.image("none")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert bad.stdout == "status f, exit code 0\n"
    assert "its tags are" in (tmp_path / "log").read_text()


# ---- what fails


@pytest.mark.parametrize("where", [["-f"], []])
@pytest.mark.parametrize(
    "failure",
    [
        ("{new}:none", [], 3, "has no tag 'none'; its tags are: v3, v3-zstd"),
        ("{base}/nowhere:v3", [], 3, "nowhere is not a directory"),
        ("{new}:v3", ["-d", _NO_DIGEST], 5, "corrupt or was replaced"),
        ("{new}:v3", ["-d", "123"], 2, "64"),
        ("{new}:v3", ["-o", "bogus"], 2, "bogus"),
        ("{new}:v3", ["--verity", "kernel"], 2, "digest"),
    ],
)
def test_reasons_reach_the_terminal(
    odd: Built, point: Path, where: list[str], failure: tuple[str, list[str], int, str]
) -> None:
    image, words, code, reason = failure
    named = image.format(new=odd.layout / "new", base=odd.layout)
    result = run_puzzlefs("mount", *where, *words, named, point, check=False)
    assert result.returncode == code
    assert reason in result.stderr
    assert result.stderr.startswith("puzzlefs: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not is_mounted(point)


def test_debug_shows_where(odd: Built, point: Path) -> None:
    result = run_puzzlefs("mount", "--debug", f"{odd.layout / 'new'}:none", point, check=False)
    assert result.returncode == 3
    assert "Traceback" in result.stderr
    assert "TagNotFoundError" in result.stderr


@pytest.mark.parametrize("where", [["-f"], []])
def test_mount_points_that_cannot_be(odd: Built, tmp_path: Path, where: list[str]) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    for path, code, reason in (
        (missing, 3, "does not exist"),
        (file, 2, "not a directory"),
        (file / "below", 3, "does not exist"),
    ):
        result = run_puzzlefs("mount", *where, odd.image("v3"), path, check=False)
        assert result.returncode == code
        assert str(path) in result.stderr
        assert reason in result.stderr


def test_a_log_file_that_cannot_be(odd: Built, point: Path) -> None:
    result = run_puzzlefs("mount", "--log-file", "/nowhere/log", odd.image("v3"), point, check=False)
    assert result.returncode == 3
    assert "/nowhere/log" in result.stderr
    assert not is_mounted(point)


def test_a_server_that_died(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        mount.kill()
        assert mount.path.stat().st_ino == 1  # the kernel remembers
        with pytest.raises(OSError, match="not connected"):
            os.statvfs(mount.path)
        result = run_puzzlefs("mount", odd.image("v3"), mount.path, check=False)
        assert result.returncode == 7
        assert f"puzzlefs umount {mount.path}" in result.stderr
        run_puzzlefs("umount", mount.path)
        assert os.listdir(mount.path) == []
