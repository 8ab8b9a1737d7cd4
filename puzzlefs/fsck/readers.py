"""Who reads and hashes blobs: a few processes, while their owner goes on, or threads where a fork would not be whole.

Hashing a small blob is so many short calls that threads spend most of their time on the interpreter's lock. A process
that is forked knows the questions, and all that it has to be told is where to go on: the numbers of the batches wait in
a pipe, and whoever is free reads the next one. Answers are written into memory that is shared, a record for each
question, and another pipe says which batches are answered. Only what is good is answered like that. Whatever is not, or
was not answered because a process was killed, the owner looks at: so nothing else has to be passed on, and a process
that fails costs time and nothing else.

A process leaves signals to its owner, holds nothing that would have to be cleaned up, and ends when there is no more to
do or the owner is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from mmap import mmap
from typing import Final, NoReturn

from puzzlefs.blobs import Layout
from puzzlefs.builder.processes import can_fork
from puzzlefs.builder.workers import started_pool
from puzzlefs.digest import SHA256_SIZE, as_verity_digest
from puzzlefs.fsck.hashing import BlobReader, Facts, Question
from puzzlefs.signal_mask import blocked

_BATCH: Final = 64
_MAX_BATCHES: Final = 1000
"""Their numbers are no more than a page, so that they fit into any pipe at once."""
_AHEAD: Final = 4
"""Batches for each thread that are handed out before the first of them is taken back."""
_WORTH_PROCESSES: Final = 500
"""Blobs from which on processes read them; fewer are read as quickly by threads."""

_NUMBER: Final = struct.Struct("=I")
_RECORD: Final = struct.Struct("=?Qq32s")  # whether it is good; size; size of the content, or -1; fs-verity digest
_ANSWERED: Final = struct.Struct("=QQ")  # number of a batch, bytes that were read for it
_AT_ONCE: Final = 256 * _ANSWERED.size
_NO_DIGEST: Final = bytes(SHA256_SIZE)

_facts: Callable[[Iterable[object]], Facts] = partial(tuple.__new__, Facts)
"""Three times as quick as calling the class."""


def can_read_in_processes(count: int) -> bool:
    """Whether so many blobs are better read by processes than by threads, and can be."""
    return count >= _WORTH_PROCESSES and can_fork()


def read_facts(
    layout: Layout, questions: Sequence[Question], workers: int, progress: Callable[[int], None]
) -> Iterator[tuple[Question, Facts]]:
    """The facts about blobs, in any order.

    Args:
        layout: where they are.
        questions: what is asked.
        workers: processes or threads.
        progress: told now and then how many bytes are done.
    """
    if can_read_in_processes(len(questions)):
        with contextlib.closing(ReaderProcesses(layout, questions, workers)) as processes:
            reader = BlobReader(layout)
            for question, facts in processes.facts(progress):
                yield question, facts if facts is not None else reader.facts(question)
        return
    yield from _in_threads(layout, questions, workers, progress)


def _in_threads(
    layout: Layout, questions: Sequence[Question], workers: int, progress: Callable[[int], None]
) -> Iterator[tuple[Question, Facts]]:
    left = iter(questions)
    idle = [BlobReader(layout) for _ in range(workers)]
    done = 0

    def batch(items: Sequence[Question]) -> list[tuple[Question, Facts]]:
        reader = idle.pop()  # there are as many as threads
        try:
            return [(question, reader.facts(question)) for question in items]
        finally:
            idle.append(reader)

    under_way: deque[Future[list[tuple[Question, Facts]]]] = deque()
    pool = started_pool(workers)
    try:
        while True:
            while len(under_way) < workers * _AHEAD and (items := list(islice(left, _BATCH))):
                under_way.append(pool.submit(batch, items))
            if not under_way:
                return
            found = under_way.popleft().result()
            done += sum(facts.size for _, facts in found)
            progress(done)
            yield from found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class ReaderProcesses:
    """Processes that have begun to answer questions about blobs. To be closed."""

    def __init__(self, layout: Layout, questions: Sequence[Question], workers: int) -> None:
        """Begin; this process must have no other threads (``can_read_in_processes``).

        Args:
            layout: where the blobs are.
            questions: what is asked.
            workers: how many processes.

        Raises:
            OSError: if the host has no memory for them.
        """
        self._layout = layout
        self._questions = questions
        self._records = mmap(-1, max(1, len(questions) * _RECORD.size))
        self._pids: list[int] = []
        self._batch = max(_BATCH, -(-len(questions) // _MAX_BATCHES))
        self._batches = range(-(-len(questions) // self._batch))
        self._queue = self._answers = self._answering = -1
        try:
            self._answers, self._answering = os.pipe()
            self._queue, numbers = os.pipe()
            try:
                os.write(numbers, b"".join(map(_NUMBER.pack, self._batches)))
            finally:
                os.close(numbers)
            self.add(workers)
        except BaseException:
            self.close()
            raise

    def add(self, workers: int) -> None:
        """Let more processes help, if some still run and ``facts`` has not been called.

        Raises:
            OSError: if the host has no memory for them.
        """
        owner = os.getpid()
        with blocked():
            for _ in range(workers):
                pid = os.fork()
                if pid == 0:
                    self._serve(owner)
                self._pids.append(pid)

    def are_done(self) -> bool:
        """Whether all of them have ended."""
        for pid in list(self._pids):
            with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
                if not os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            self._pids.remove(pid)
        if not self._pids:
            self._stop_answering()  # else whoever is forked next could answer, too
        return not self._pids

    def facts(self, progress: Callable[[int], None]) -> Iterator[tuple[Question, Facts | None]]:
        """What is found out, once, as soon as it is; ``None`` where somebody has to look: what is not good, or was not
        answered before all processes ended.

        Args:
            progress: told how many bytes have been read.
        """
        self._stop_answering()  # else the pipe would never end
        left = dict.fromkeys(self._batches)
        done = 0
        while said := os.read(self._answers, _AT_ONCE):
            for batch, size in _ANSWERED.iter_unpack(said):
                done += size
                progress(done)
                del left[batch]
                yield from self._facts_of(batch)
        for batch in left:
            for question in self._questions[batch * self._batch : (batch + 1) * self._batch]:
                yield question, None

    def _facts_of(self, batch: int) -> Iterator[tuple[Question, Facts | None]]:
        questions = self._questions[batch * self._batch : (batch + 1) * self._batch]
        first = batch * self._batch * _RECORD.size
        records = self._records[first : first + len(questions) * _RECORD.size]
        for question, (is_good, size, content, verity) in zip(questions, _RECORD.iter_unpack(records), strict=True):
            if is_good:
                known = as_verity_digest(verity) if question.verity else None
                yield question, _facts((size, None, "", known, None if content < 0 else content, ""))
            else:
                yield question, None

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._pids:
            with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
                os.waitpid(self._pids[-1], 0)
            self._pids.pop()
        self._stop_answering()
        for fd in (self._queue, self._answers):
            if fd >= 0:
                os.close(fd)
        self._queue = self._answers = -1

    def _stop_answering(self) -> None:
        """Leave answering to the processes."""
        if self._answering >= 0:
            os.close(self._answering)
            self._answering = -1

    def _serve(self, owner: int) -> NoReturn:
        """What a process does. The signals that end a check stay blocked in it."""
        try:
            os.close(self._answers)  # else nobody would notice that the owner is gone
            reader = BlobReader(self._layout)
            while (data := os.read(self._queue, _NUMBER.size)) and os.getppid() == owner:
                (batch,) = _NUMBER.unpack(data)
                first = batch * self._batch
                done = 0
                for index, question in enumerate(self._questions[first : first + self._batch], first):
                    facts = reader.facts(question)
                    done += facts.size
                    if facts.fault is None and not facts.problem:
                        content = -1 if facts.content is None else facts.content
                        record = (True, facts.size, content, facts.verity or _NO_DIGEST)
                        _RECORD.pack_into(self._records, index * _RECORD.size, *record)
                os.write(self._answering, _ANSWERED.pack(batch, done))
        finally:
            os._exit(0)
