"""A set of digests in shared memory is a set."""

from __future__ import annotations

import os
import threading

import pytest

from puzzlefs.digest import Digest
from puzzlefs.mount.digest_set import DigestSet

pytestmark = pytest.mark.unit


def _digests(count: int) -> list[Digest]:
    return [Digest.of(b"%d" % number) for number in range(count)]


def test_what_was_put_in_is_in_it_once() -> None:
    found = DigestSet()
    digests = _digests(5000)  # grows several times
    assert all(found.add(digest) for digest in digests)
    assert not any(found.add(digest) for digest in digests)
    assert len(found) == 5000
    assert all(digest in found for digest in digests)
    assert Digest.of(b"another") not in found


def test_a_child_that_is_gone_left_what_it_put_in() -> None:
    digests = _digests(2000)
    found = DigestSet(room=len(digests))
    child = os.fork()
    if child == 0:
        for digest in digests:
            found.add(digest)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(found) == 2000
    assert all(digest in found for digest in digests)


def test_no_image_can_ask_for_absurd_room() -> None:
    found = DigestSet(room=1 << 40)
    assert found.add(Digest.of(b"one"))
    assert len(found) == 1


def test_threads_count_each_digest_once() -> None:
    found = DigestSet()
    digests = _digests(3000)
    threads = [threading.Thread(target=lambda: [found.add(digest) for digest in digests]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3000
