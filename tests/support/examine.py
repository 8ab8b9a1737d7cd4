"""Looking at an image as every adapter would, in a process of its own with limits on time and memory.

What must not happen (a crash, a hang, memory without bound, anything outside of the error tree) is an
``AssertionError`` here; what the image is guilty of is in the ``Outcome``.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from puzzlefs.errors import PuzzlefsError
from puzzlefs.extract import extract
from puzzlefs.image import Image, open_image
from puzzlefs.model import ROOT_INO, Kind

T = TypeVar("T")

_READ_SIZE = 128 << 10
_MAX_READ = 8 << 20
_HANG_SECONDS = 60


@dataclass
class Outcome:
    """What examining an image showed; errors as the names of their classes.

    Attributes:
        opening: the error of ``open_image``.
        paths: what can be seen, root included.
        problems: by path, the first error there.
        walk: the error of walking the whole tree.
        totals: inodes and bytes; ``None`` where they cannot be had.
        extraction: the error of extracting.
        messages: the texts of all errors.
        cpu_seconds: what all of it took.
    """

    opening: str | None = None
    paths: list[bytes] = field(default_factory=list)
    problems: dict[bytes, str] = field(default_factory=dict)
    walk: str | None = None
    totals: tuple[int, int] | None = None
    extraction: str | None = None
    messages: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def note(self, error: PuzzlefsError) -> str:
        """Keep the text of an error; its name."""
        self.messages.append(str(error))
        return type(error).__name__


def examine(reference: str, target: Path | None = None, *, digest: str | None = None, read: bool = True) -> Outcome:
    """Look at everything in an image, and extract it to ``target`` if that is given. No limits."""
    outcome = Outcome()
    try:
        image = open_image(reference, digest=digest)
    except PuzzlefsError as error:
        outcome.opening = outcome.note(error)
        if target is not None:
            try:
                extract(reference, target)
            except PuzzlefsError as extract_error:
                outcome.extraction = outcome.note(extract_error)
        return outcome
    with image:
        _browse(image, outcome, read)
        try:
            for _ in image.tree.walk():
                pass
        except PuzzlefsError as error:
            outcome.walk = outcome.note(error)
        try:
            totals = image.tree.totals()
            outcome.totals = totals.inodes, totals.size
        except PuzzlefsError as error:
            outcome.note(error)
        if target is not None:
            try:
                extract(image, target)
            except PuzzlefsError as error:
                outcome.extraction = outcome.note(error)
    return outcome


def examine_limited(
    reference: str, target: Path | None = None, *, memory: int = 768 << 20, digest: str | None = None
) -> Outcome:
    """``examine`` in a process that may take ``memory`` bytes more than this one."""

    def run() -> Outcome:
        started = time.process_time()
        outcome = examine(reference, target, digest=digest)
        outcome.cpu_seconds = time.process_time() - started
        return outcome

    return limited(run, memory=memory)


def limited(action: Callable[[], T], *, memory: int = 768 << 20, seconds: float = _HANG_SECONDS) -> T:
    """The result of ``action``, run in a child process with limits.

    Raises:
        AssertionError: if it raised, crashed, hung, or ran out of memory.
    """
    return together([action], memory=memory, seconds=seconds)[0]


def together(actions: Sequence[Callable[[], T]], *, memory: int = 768 << 20, seconds: float = _HANG_SECONDS) -> list[T]:
    """The results of all ``actions``, each in a child process of its own, at the same time.

    Raises:
        AssertionError: as ``limited``.
    """
    children = [_start(action, memory) for action in actions]
    statuses: list[int] = []
    answers: list[bytes | None] = []
    try:
        answers.extend(_read_answer(reader, seconds) for _, reader in children)
    finally:
        for child, reader in children:
            os.close(reader)
            os.kill(child, signal.SIGKILL)
            statuses.append(os.waitpid(child, 0)[1])
    results: list[T] = []
    for data, status in zip(answers, statuses, strict=True):
        assert data is not None, f"no answer after {seconds} seconds"
        assert data, f"the process died (wait status {status})"
        failure, result = pickle.loads(data)
        assert failure is None, failure
        results.append(result)
    return results


def _start(action: Callable[[], T], memory: int) -> tuple[int, int]:
    """A child that runs ``action``, and the pipe that its answer will come through."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork beside the threads of pytest's plugins
        child = os.fork()
    if child == 0:
        _run_child(writer, action, memory)
    os.close(writer)
    return child, reader


def _run_child(writer: int, action: Callable[[], T], memory: int) -> None:
    try:
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            answer: tuple[str | None, T | None] = (None, action())
        except BaseException:  # noqa: BLE001
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
            answer = (traceback.format_exc(), None)
        with open(writer, "wb") as file:
            pickle.dump(answer, file)
    finally:
        os._exit(0)


def _read_answer(reader: int, seconds: float) -> bytes | None:
    deadline = time.monotonic() + seconds
    parts: list[bytes] = []
    while True:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        part = os.read(reader, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _browse(image: Image, outcome: Outcome, read: bool) -> None:
    """Look at every name, and go on after each error, as a file system does."""
    tree = image.tree
    stack = [(ROOT_INO, b".")]
    while stack:
        ino, path = stack.pop()
        try:
            outcome.paths.append(path)
            _look_at(image, ino, read)
            if tree.kind(ino) is not Kind.DIRECTORY:
                continue
            entries = tree.entries(ino)
        except PuzzlefsError as error:
            outcome.problems[path] = outcome.note(error)
            continue
        for entry in entries:
            below = entry.name if path == b"." else path + b"/" + entry.name
            try:
                assert tree.lookup(ino, entry.name) == entry
            except PuzzlefsError as error:
                outcome.problems[below] = outcome.note(error)
            else:
                stack.append((entry.ino, below))


def _look_at(image: Image, ino: int, read: bool) -> None:
    tree = image.tree
    attributes = tree.attributes(ino)
    tree.xattrs(ino)
    kind = tree.kind(ino)
    if kind is Kind.SYMLINK:
        tree.readlink(ino)
    elif kind is Kind.REGULAR and read:
        for offset in range(0, min(attributes.size, _MAX_READ), _READ_SIZE):
            size = min(_READ_SIZE, attributes.size - offset)
            assert len(image.read(ino, offset, size)) == size
        if attributes.size:
            assert len(image.read(ino, attributes.size - 1, _READ_SIZE)) == 1
