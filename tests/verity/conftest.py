"""The tests in this directory run inside an emulated machine whose kernel has fs-verity; see ``machine.py``.

Outside, pytest collects them as usual, but instead of running one it looks up what the machine said about it:
all that were selected run in one boot, when the first of them is due. Inside, they run like any other test;
the fixtures of this file make the disks there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from disks import Disk, Kind, MakeDisk
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


def _make_disks(factory: pytest.TempPathFactory) -> Iterator[MakeDisk]:
    disks: list[Disk] = []

    def make(*, verity: bool = True, size: int = 64 << 20, kind: Kind = "ext4") -> Disk:
        disks.append(Disk(factory.mktemp("disk") / kind, verity=verity, size=size, kind=kind))
        return disks[-1]

    yield make
    for disk in reversed(disks):
        disk.close()


@pytest.fixture
def make_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeDisk]:
    """Makes disks, which go away with the test."""
    yield from _make_disks(tmp_path_factory)


@pytest.fixture(scope="module")
def make_module_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeDisk]:
    """Makes disks, which go away with the module."""
    yield from _make_disks(tmp_path_factory)
