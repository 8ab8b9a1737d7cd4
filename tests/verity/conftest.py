"""The tests in this directory run inside an emulated machine whose kernel has fs-verity; see ``machine.py``.

Outside, pytest collects them as usual, but instead of running one it looks up what the machine said about it:
all that were selected run in one boot, when the first of them is due. Inside, they run like any other test;
the fixtures of this file make the disks there.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from machine import INSIDE, MachineUnavailableError, Outcome, inside_machine, run_in_machine

HERE = Path(__file__).parent

_selected: list[str] = []


class MachineItem(pytest.Item):
    """A test as it is seen from outside: its outcome comes from the machine."""

    def runtest(self) -> None:
        outcomes, console = _results(self.config)
        found = outcomes.get(self.nodeid)
        if found is None:
            pytest.fail(f"the machine did not report this test; it printed last:\n{console}", pytrace=False)
        if found.outcome == "skipped":
            pytest.skip(found.text)
        if found.outcome != "passed":
            pytest.fail(f"inside the machine:\n{found.text}", pytrace=False)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if inside_machine():
        return
    for position, item in enumerate(items):
        if item.path.is_relative_to(HERE) and item.parent is not None:
            stand_in = MachineItem.from_parent(item.parent, name=item.name)
            stand_in.own_markers = [*item.own_markers, pytest.mark.timeout(1500)]
            stand_in.keywords.update(item.keywords)
            items[position] = stand_in


def pytest_collection_finish(session: pytest.Session) -> None:
    _selected[:] = [item.nodeid for item in session.items if isinstance(item, MachineItem)]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Inside the machine: one line for each test that ran, written at once: a crash loses one test only."""
    if not inside_machine() or (report.when != "call" and report.passed):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    line = {
        "node_id": report.nodeid,
        "outcome": report.outcome,
        "text": f"{reason}\n{report.capstderr}".strip(),
    }
    with Path(os.environ[INSIDE]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def _results(config: pytest.Config) -> tuple[Mapping[str, Outcome], str]:
    """What the machine said, which is booted by whoever asks first, also among several workers of
    pytest-xdist."""
    factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
    base = factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "verity-machine"
    directory.mkdir(exist_ok=True)
    stored = directory / "results.json"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stored.exists():
            try:
                outcomes, console = run_in_machine(_selected, directory)
            except MachineUnavailableError as error:
                reason = f"no machine with fs-verity can be emulated here: {error}"
                if os.environ.get("CI"):
                    pytest.fail(reason, pytrace=False)
                pytest.skip(reason)
            plain = {node_id: [outcome.outcome, outcome.text] for node_id, outcome in outcomes.items()}
            stored.write_text(json.dumps([plain, console]))
    plain, console = json.loads(stored.read_text())
    return {node_id: Outcome(*fields) for node_id, fields in plain.items()}, console


# ---- fixtures, used inside only

MakeDisk = Callable[..., "Disk"]


class Disk:
    """A small ext4 file system on a loop device in the machine's memory."""

    def __init__(self, directory: Path, *, verity: bool, size: int) -> None:
        self.image = directory / "disk"
        self.root = directory / "mounted"
        directory.mkdir()
        self.root.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        features = "verity" if verity else "^verity"
        # Small disks get smaller blocks by default, and kernels before 6.3 have fs-verity for whole pages
        # only.
        _run("mkfs.ext4", "-q", "-b", "4096", "-O", features, self.image)
        self.device = ""
        self.mount()

    def mount(self, options: str = "rw") -> None:
        _run("mount", "-t", "ext4", "-o", f"loop,{options}", self.image, self.root)
        self.device = _run("findmnt", "-n", "-o", "SOURCE", self.root).strip()

    def unmount(self) -> None:
        _run("umount", self.root)

    def close(self) -> None:
        if self.root.is_mount():
            self.unmount()
        self.image.unlink()

    def corrupt(self, old: bytes, new: bytes) -> None:
        """Overwrites ``old``, which lies on the disk once, with ``new``, behind the file system's back."""
        if len(old) != len(new):
            raise ValueError("corruption keeps the length")
        path = self.image
        self.unmount()
        data = path.read_bytes()
        if data.count(old) != 1:
            raise ValueError(f"found {data.count(old)} times on the disk")
        with path.open("r+b") as file:
            file.seek(data.index(old))
            file.write(new)
        self.mount()


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    return done.stdout


@pytest.fixture
def make_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeDisk]:
    """Makes disks, which go away with the test."""
    disks: list[Disk] = []

    def make(*, verity: bool = True, size: int = 64 << 20) -> Disk:
        directory = tmp_path_factory.mktemp("disk") / "ext4"
        disks.append(Disk(directory, verity=verity, size=size))
        return disks[-1]

    yield make
    for disk in reversed(disks):
        disk.close()
