"""Reading blobs in processes: the same facts, whoever reads, and whatever happens to the processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from housekeeping import make_image

from puzzlefs.fsck import fsck, readers
from puzzlefs_cli.fsck import as_json

pytestmark = pytest.mark.unit

_BEGIN = """
import json, os, signal, sys, time
from pathlib import Path
from puzzlefs.blobs import Layout
from puzzlefs.blobs.inventory import blobs_in
from puzzlefs.digest import Digest
from puzzlefs.fsck import readers
from puzzlefs.fsck.hashing import BlobReader, Facts, Question

layout = Layout.open(Path(sys.argv[1]))
questions = [Question(digest, number % 2 == 0, number % 3 == 0) for number, digest in enumerate(blobs_in(layout))]
reader = BlobReader(layout)
expected = {question: reader.facts(question) for question in questions}
assert readers.can_read_in_processes(len(questions))
"""

_SAME = """
told = []
with_processes = dict(readers.read_facts(layout, questions, 3, told.append))
assert with_processes == expected
assert told[-1] >= sum(facts.size for facts in expected.values() if facts.fault is None)
assert dict(readers._in_threads(layout, questions, 3, told.append)) == expected
processes = readers.ReaderProcesses(layout, questions, 1)
processes.add(2)
for question, facts in processes.facts(told.append):
    known = expected[question]
    assert facts == (None if known.fault or known.problem else known)
processes.close()
"""

_KILLED = """
class Killed(readers.ReaderProcesses):
    def facts(self, progress):
        os.kill(self._pids[0], signal.SIGKILL)
        os.kill(self._pids[1], signal.SIGSTOP)
        os.kill(self._pids[1], signal.SIGKILL)
        return super().facts(progress)

readers.ReaderProcesses = Killed
assert dict(readers.read_facts(layout, questions, 2, lambda done: None)) == expected
"""

_TWO = """
first = readers.ReaderProcesses(layout, questions[:300], 1)
while not first.are_done():
    time.sleep(0.01)
second = readers.ReaderProcesses(layout, questions[300:], 1)
os.kill(second._pids[0], signal.SIGSTOP)
found = dict(first.facts(lambda done: None))
os.kill(second._pids[0], signal.SIGCONT)
found.update(second.facts(lambda done: None))
assert list(found) == questions
assert all(facts == expected[question] for question, facts in found.items() if facts is not None)
assert sum(facts is None for facts in found.values()) < len(questions) / 2
first.close()
second.close()
"""

_CLOSED = """
processes = readers.ReaderProcesses(layout, questions, 2)
for pid in processes._pids:
    os.kill(pid, signal.SIGSTOP)
assert not processes.are_done()
processes.close()
processes.close()
"""

_END = """
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("all is well")
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with 700 chunks, of which some are bad."""
    path = tmp_path_factory.mktemp("readers") / "oci"
    make_image(path, "a", 700, 900, 0, 3)
    make_image(path, "b", 700, 900, 10, 3)
    blobs = sorted(path.glob("blobs/sha256/*"), key=lambda blob: (blob.stat().st_size, blob.name))
    blobs[200].write_bytes(b"something else")
    blobs[300].write_bytes(bytes(300) + blobs[300].read_bytes()[300:])
    blobs[400].unlink()
    blobs[500].unlink()
    blobs[500].mkdir()
    return path


@pytest.mark.parametrize("script", [_SAME, _KILLED, _TWO, _CLOSED], ids=["same facts", "killed", "two", "closed"])
def test_processes(layout: Path, script: str) -> None:
    """In a program of its own, for only one without threads can be forked."""
    command = [sys.executable, "-c", _BEGIN + script + _END, str(layout)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("all is well\n", "")


@pytest.mark.parametrize("words", [(), ("--quick",)])
def test_the_command_finds_what_the_library_does(
    layout: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "puzzlefs_cli", "fsck", "--json", *words, str(layout)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    monkeypatch.setattr(readers, "can_fork", lambda: False)
    found: dict[str, Any] = json.loads(result.stdout)
    expected = as_json(fsck(layout, quick=bool(words)))
    assert found.pop("seconds") >= 0
    assert expected.pop("seconds") is not None
    assert found == json.loads(json.dumps(expected))
    assert (result.returncode, len(found["bad"])) == (5, 3 if words else 4)
