"""Power cuts, and a disk that begins to fail, below a real file system that holds the layout.

Whatever a cut leaves of the writes since the last flush, a tag that was reported is there and its image is sound; a tag
that was not is as before, or sound as well; the command that was interrupted can be run again.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import Stage
from faulty_calls import FaultyCommand
from logged_disk import LoggedDisk, Replay, mounted
from own_mounts import in_own_mounts
from stage import NOTHING, Case, make_tree, tags_of, tar_of
from support.writable import writable

from puzzlefs.builder import build
from puzzlefs.collect import collect_garbage
from puzzlefs.digest import Digest
from puzzlefs.fsck import fsck
from puzzlefs_cli.exit_codes import ExitCode

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(
        os.geteuid() != 0 or not Path("/dev/fuse").exists() or not Path("/dev/loop-control").exists(),
        reason="a disk of one's own needs root, /dev/fuse and loop devices",
    ),
]

CUTS = 600 if "PUZZLEFS_TEST_ALL_FAULTS" in os.environ else 20
"""Power cuts that are tried."""
FAILURES = 100 if "PUZZLEFS_TEST_ALL_FAULTS" in os.environ else 8
"""Moments from which on a disk fails that are tried."""


@dataclass
class Step:
    """A command of a session, and what was true when it had ended; ``again``: what does the same once more."""

    words: Sequence[object]
    stdin: Path | None = None
    again: Sequence[object] | None = None
    bad: frozenset[str] = frozenset()
    end: int = 0
    tags: dict[str, Digest] = field(default_factory=dict)


def _steps(stage: Path, layout: Path) -> Iterator[Step]:
    """One command after the other. What lies beside the layout survives the power cut: it is on another disk."""
    old, new = make_tree(stage / "old", 1), make_tree(stage / "new", 2)
    other, good = stage / "other", stage / "good"
    build(make_tree(stage / "third", 3), f"{other}:third", workers=1)
    build(old, f"{good}:old", workers=1)
    yield Step(["build", "--no-cache", old, f"{layout}:old"])
    yield Step(["build", "--no-cache", new, f"{layout}:new"])
    yield Step(["build", "--base-layer", "old", new, f"{layout}:on-top"])
    yield Step(["copy", f"{other}:third", layout])
    yield Step(["import", f"{layout}:imported"], tar_of(new, stage / "new.tar.gz", "-z"))
    with writable(f"{layout}:old", stage / "mounted", how=stage / "upper") as mount:
        (mount.path / "more").write_bytes(random.Random(9).randbytes(150_000))
        (mount.path / "file-1").unlink()
        yield Step(
            ["commit", mount.path, "committed"],
            # there is no mount after a power cut, but what was written to it: that is what commit makes the image of
            again=["build", "--base-layer", "old", "--upper", stage / "upper", f"{layout}:committed"],
        )
    yield Step(["untag", f"{layout}:new"])
    yield Step(["build", "--no-cache", "-c", new, f"{layout}:on-top"])  # a tag that moves
    yield Step(["gc", "--grace=0", layout])
    blobs = {path.name: path for path in (layout / "blobs" / "sha256").iterdir()}
    bad = sorted(name for name in os.listdir(good / "blobs" / "sha256") if blobs[name].stat().st_size > 1000)[:2]
    blobs[bad[0]].unlink()
    blobs[bad[1]].write_bytes(b"bad")
    os.sync()
    yield Step(["fsck", "--quiet", "--repair", "--from", good, layout], bad=frozenset(bad))


def _wrong(layout: Path, before: Step | None, during: Step | None, command: FaultyCommand) -> list[str]:
    """What is wrong after a power cut while ``during`` was running, after ``before`` had ended."""
    tags = tags_of(layout)
    expected = before.tags if before is not None else {}
    if tags != expected and (during is None or tags != during.tags):
        return [f"the tags are {sorted(tags)}, after {before}"]
    problems = []
    if tags:
        report = fsck(layout, workers=1)
        bad = {blob.digest.removeprefix("sha256:") for blob in report.bad}
        if not bad <= (during.bad if during is not None else frozenset()) or report.malformed:
            problems.append(f"{report.bad} {report.malformed}")
    if during is not None and (tags != during.tags or during.words[0] != "untag"):
        done = command.run(layout, NOTHING, *(during.again or during.words), stdin=during.stdin)
        if done.code != 0:
            problems.append(f"again: {done}")
        elif tags_of(layout) != during.tags:
            problems.append(f"again: the tags are {sorted(tags_of(layout))}")
        collect_garbage(layout, grace=0)
        if str(fsck(layout, workers=1).state) != "clean":
            problems.append("again: it is not clean")
        left = [name for name in os.listdir(layout / "blobs" / "sha256") if name.startswith(".")]
        problems += [f"again: {name} is left" for name in left]
    return problems


@pytest.mark.parametrize(
    ("kind", "options"), [("ext4", "data=ordered"), ("ext4", "data=writeback,nodelalloc"), ("btrfs", "")]
)
def test_power_cut(place: Path, tmp_path: Path, kind: str, options: str) -> None:
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    subprocess.run(["modprobe", "-q", kind], stderr=subprocess.DEVNULL, check=False)
    if kind not in Path("/proc/filesystems").read_text():
        pytest.skip(f"this kernel has no {kind}")
    in_own_mounts(lambda: with_command(tmp_path, lambda command: _cut_power(place, tmp_path, command, kind, options)))


def test_a_disk_that_begins_to_fail(tmp_path: Path) -> None:
    """Calls succeed, and what they wrote never reaches the disk: only a sync tells."""
    in_own_mounts(lambda: with_command(tmp_path, lambda command: _let_disk_fail(tmp_path, command)))


def with_command(directory: Path, run: Callable[[FaultyCommand], None]) -> None:
    with FaultyCommand(directory) as command:
        run(command)


def _cut_power(place: Path, tmp_path: Path, command: FaultyCommand, kind: str, options: str) -> None:
    stage, directory = tmp_path / "stage", tmp_path / "disk"
    stage.mkdir()
    directory.mkdir()
    steps: list[Step] = []
    with LoggedDisk(directory, kind, options) as disk:
        layout = disk.root / "images"
        for step in _steps(stage, layout):
            start = disk.position()
            done = command.run(layout, NOTHING, *step.words, stdin=step.stdin)
            assert done.code == 0, done
            step.end, step.tags = disk.position(), tags_of(layout)
            assert step.end >= start
            steps.append(step)
        root = disk.root
    log = disk.log()
    assert sum(write.is_flush for _, write in log) > len(steps)

    within = [number for number in range(len(log) + 1) if number == 0 or log[number - 1][0] <= steps[-1].end]
    generator = random.Random(options)
    cuts = sorted(generator.sample(within, min(CUTS, len(within))))
    replay = Replay(disk.first, log, 5)
    problems = []
    state = place / "state"
    interrupted = 0
    for number, cut in enumerate(cuts):
        position = log[cut - 1][0] if cut else 0
        ended = [step for step in steps if step.end <= position]
        during = steps[len(ended)] if len(ended) < len(steps) else None
        how = ("none", "some", "all", "some")[number % 4]
        state.write_bytes(replay.cut(cut, how))
        with mounted(state, root, kind, options):
            interrupted += during is not None
            found = _wrong(layout, ended[-1] if ended else None, during, command)
        problems += [f"after {cut} of {len(log)} writes, {how} of the last: {one}" for one in found]
    assert interrupted > CUTS // 2
    if problems:
        raise AssertionError("\n".join(problems))


def _let_disk_fail(tmp_path: Path, command: FaultyCommand) -> None:
    directory = tmp_path / "disk"
    directory.mkdir()
    problems = []
    failed = 0
    with LoggedDisk(directory) as disk:
        stage = Stage(tmp_path)
        layout = disk.root / "images"
        stage.with_build("old", stage.old, layout=layout)
        case = Case("build", ["build", "--no-cache", stage.new, f"{layout}:new"], layout)
        os.sync()
        start = disk.position()
        case.prepare(command)
        usual = (disk.position() - start) // 2
        generator = random.Random(6)
        for _ in range(FAILURES):
            os.sync()
            disk.fail(generator.randrange(usual))
            done = command.run(layout, NOTHING, *case.words)
            disk.unmount()  # what has not reached the disk is gone
            disk.heal()
            disk.mount()
            if done.code != 0:
                failed += 1
                if done.code != ExitCode.IO or str(layout) not in done.stderr or done.stdout:
                    problems.append(f"it ended with {done}")
                if "Input/output error" not in done.stderr and "Read-only file system" not in done.stderr:
                    problems.append(f"it does not say what failed: {done}")
            problems += case.check(command, done.code == 0)
            problems += case.check_again(command)
            case.restore()
    assert failed > FAILURES // 4
    if problems:
        raise AssertionError("\n".join(problems))
