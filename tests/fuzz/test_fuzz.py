"""Every target takes its seeds, mutations of them for ten seconds, and whatever once broke it.

No fuzzer is needed here, and chance has no part: the same inputs in the same order every time, as far as a machine
gets. ``make fuzz`` looks for new ones.
"""

from __future__ import annotations

import time
from bisect import bisect_right

import pytest

from fuzz.bounds import MEMORY, Verdict, judge
from fuzz.regressions import regressions
from fuzz.smoke import mutations
from fuzz.targets import TARGETS
from puzzlefs.errors import FormatError
from puzzlefs.vfs import plan

pytestmark = [pytest.mark.fuzz, pytest.mark.hostile]

_SMOKE_SECONDS = 10
"""Processor time for the mutations of one target."""


def smoke(name: str) -> tuple[int, Verdict | None]:
    """How many inputs were taken, and what the first one showed that was not."""
    started = time.process_time()
    target = TARGETS[name]
    taken = 0
    for data in mutations(target):
        verdict = judge(target.run, data)
        if verdict.violation:
            return taken, verdict
        taken += 1
        if time.process_time() - started > _SMOKE_SECONDS:
            break
    return taken, None


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_once_broke_a_target(name: str) -> None:
    verdicts = [judge(TARGETS[name].run, seed) for seed in TARGETS[name].seeds()]
    assert sum(not verdict.refused for verdict in verdicts) >= 3  # mutations of what is refused would show little
    verdicts += [judge(TARGETS[name].run, data) for data in regressions(name)]
    assert [verdict.violation for verdict in verdicts if verdict.violation] == []


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_of_the_seeds(name: str) -> None:
    taken, verdict = smoke(name)
    assert verdict is None or not verdict.violation, verdict.violation
    assert taken >= 50


def test_the_judge_notices() -> None:
    """Everything above relies on it."""

    def forever(_data: bytes) -> None:
        while True:
            pass

    def refused(_data: bytes) -> None:
        raise FormatError("no")

    verdict = judge(forever, b"", cpu_seconds=0.1)
    assert verdict.place.startswith("TooSlowError")
    assert "processor time" in judge(lambda _: sum(range(10**7)), b"", cpu_seconds=0.01).violation
    assert judge(lambda _: bytearray(MEMORY + (8 << 20)), b"").place.startswith("MemoryError")
    assert judge(lambda _: bytearray(MEMORY // 2), b"").violation == ""
    assert "ZeroDivisionError" in judge(lambda _: 1 // 0, b"").violation
    assert judge(refused, b"").refused


def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "bisect_right", lambda ends, offset, *rest: bisect_right(ends, offset - 1, *rest))
    _, verdict = smoke("plans")
    assert verdict is not None
    assert verdict.violation
