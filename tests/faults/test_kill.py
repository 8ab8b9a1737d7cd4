"""kill -9 at moments that nobody chose, and many commands at once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commands import CASES, Stage
from faulty_calls import FaultyCommand
from own_mounts import in_own_mounts
from stage import NOTHING, Case, left_behind, make_tree, tags_of
from support import trees
from support.writable import needs_root, writable

from puzzlefs.fsck import fsck
from puzzlefs.image import open_image

pytestmark = pytest.mark.crash

PUZZLEFS = str(Path(sys.executable).with_name("puzzlefs"))
MOMENTS = {"build": 50, "build-base-layer": 8, "copy-all": 8, "import-compressed": 8, "repair-from": 8, "gc": 8}
"""How often each is killed."""


def kill_at_random(case: Case, command: FaultyCommand, count: int) -> None:
    """Kill a command ``count`` times, and check everything each time."""
    case.prepare(command)
    started = time.monotonic()
    assert command.run(case.layout, NOTHING, *case.words, stdin=case.stdin).code == 0
    usual = time.monotonic() - started
    case.restore()
    generator = random.Random(case.name)
    problems: list[str] = []
    killed = attempts = 0
    while killed < count:
        attempts += 1
        assert attempts < 10 * count, f"only {killed} of {attempts} were killed"
        done = command.run(
            case.layout, NOTHING, *case.words, stdin=case.stdin, limit=generator.uniform(0.003, 0.95 * usual)
        )
        killed += done.code == -9
        found = case.check(command, done.code == 0) + case.check_again(command)
        problems += [f"{problem}: {done}" for problem in found]
        case.restore()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("name", MOMENTS)
def test_kill(place: Path, command: FaultyCommand, name: str) -> None:
    with tempfile.TemporaryDirectory(dir=place) as directory:
        stage = Stage(Path(directory))
        for number in range(3):
            (stage.new / f"more-{number}").write_bytes(random.Random(number).randbytes(500_000))
        kill_at_random(CASES[name](stage), command, MOMENTS[name])


@needs_root
def test_kill_of_a_commit(place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place) as directory:
        in_own_mounts(lambda: _kill_commits(Path(directory)))


def _kill_commits(directory: Path) -> None:
    stage = Stage(directory)
    with FaultyCommand(directory) as command, writable(f"{stage.layout}:old", stage.place / "mounted") as mount:
        (mount.path / "new").write_bytes(random.Random(9).randbytes(1_500_000))
        (mount.path / "file-1").unlink()
        kill_at_random(Case("commit", ["commit", mount.path, "new"], stage.layout), command, 8)


def test_kill_with_processes(place: Path, command_with_processes: FaultyCommand) -> None:
    with tempfile.TemporaryDirectory(dir=place) as directory:
        stage = Stage(Path(directory))
        for number in range(3):
            (stage.new / f"more-{number}").write_bytes(random.Random(number).randbytes(500_000))
        kill_at_random(CASES["build"](stage), command_with_processes, 10)


@pytest.mark.parametrize("version", [1, 3])
def test_ten_builds_at_once(place: Path, version: int) -> None:
    """Beside them, garbage is collected all the time."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        directory = Path(name)
        layout = directory / "images"
        sources = {f"tag-{number}": make_tree(directory / f"tree-{number}", number // 2) for number in range(10)}
        for number, tree in enumerate(sources.values()):
            (tree / "own").write_bytes(random.Random(number).randbytes(400_000))
        words = [PUZZLEFS, "build", "--no-cache", f"--format-version={version}"]
        builds = {
            tag: subprocess.Popen(
                [*words, tree, f"{layout}:{tag}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for tag, tree in sources.items()
        }
        while any(process.poll() is None for process in builds.values()):
            if (layout / "oci-layout").exists():
                subprocess.run([PUZZLEFS, "gc", "--grace=0", layout], check=True, stdout=subprocess.DEVNULL)
            time.sleep(0.05)
        for tag, process in builds.items():
            output, errors = process.communicate(timeout=120)
            assert (process.returncode, errors) == (0, "")
            with open_image(f"{layout}:{tag}", digest=output.split()[-1]) as image:
                assert trees.in_image(image) == trees.on_disk(sources[tag])
        assert set(tags_of(layout)) == set(sources)
        report = fsck(layout)
        assert str(report.state) == "clean"
        assert len(report.images) == 10
        assert left_behind(layout) == set()
        assert len(os.listdir(layout / "blobs" / "sha256")) >= report.blobs
