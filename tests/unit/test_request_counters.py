"""Counts of requests outlive the process that counts."""

from __future__ import annotations

import os

import pytest

from puzzlefs.mount.counters import RequestCounters
from puzzlefs.mount.kernel_protocol import Opcode

pytestmark = pytest.mark.unit


def test_nothing_came_yet() -> None:
    counters = RequestCounters()
    assert counters.by_kind() == {}
    assert counters.total() == 0


def test_kinds_have_names() -> None:
    counters = RequestCounters()
    counters.counts[Opcode.LOOKUP] += 2
    counters.counts[Opcode.READ] += 1
    counters.counts[511] += 1  # of a kernel that is newer than this program
    assert counters.by_kind() == {"lookup": 2, "read": 1, "opcode 511": 1}
    assert counters.total() == 4


def test_what_a_child_counted_stays_when_it_is_gone() -> None:
    counters = RequestCounters()
    for _ in range(2):
        child = os.fork()
        if child == 0:
            counters.counts[Opcode.GETATTR] += 1
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert counters.by_kind() == {"getattr": 2}
