"""Who reads and hashes blobs: a few processes, while their owner goes on, or threads where a fork would not be whole.

Hashing a small blob is so many short calls that threads spend most of their time on the interpreter's lock. A process
that is forked knows the questions, and all that it has to be told is where to go on: the numbers of the batches are in
a file in memory, and whoever is free reads the next one, at a position that all of them share. Answers are written into
memory that is shared as well, a record for each question. Only what is good is answered like that. Whatever is not, or
was not answered because a process was killed, the owner looks at: so nothing else has to be passed on, and a process
that fails costs time and nothing else.

A process leaves signals to its owner, holds nothing that would have to be cleaned up, and ends when there is no more to
do or the owner is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from mmap import mmap
from typing import Final, NoReturn

from puzzlefs.blobs import Layout
from puzzlefs.builder.processes import can_fork
from puzzlefs.builder.workers import ENDING, started_pool
from puzzlefs.digest import SHA256_SIZE, VerityDigest
from puzzlefs.fsck.hashing import BlobReader, Facts, Question

_BATCH: Final = 64
_AHEAD: Final = 4
"""Batches for each thread that are handed out before the first of them is taken back."""
_WORTH_PROCESSES: Final = 500
"""Blobs from which on processes read them; fewer are read as quickly by threads."""

_NUMBER: Final = struct.Struct("=I")
_RECORD: Final = struct.Struct("=?Qq32s")  # whether it is good; size; size of the content, or -1; fs-verity digest
_COUNT: Final = struct.Struct("=Q")
_NO_DIGEST: Final = bytes(SHA256_SIZE)
_TICK_MS: Final = 100


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
            processes.wait(progress)
            reader = BlobReader(layout)
            for question, facts in processes.facts():
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
        self._done = mmap(-1, workers * _COUNT.size)
        self._pids: list[int] = []
        batches = range(-(-len(questions) // _BATCH))
        with contextlib.ExitStack() as stack:
            queue = os.memfd_create("puzzlefs-batches")
            stack.callback(os.close, queue)
            os.pwrite(queue, b"".join(map(_NUMBER.pack, batches)), 0)
            self._ended, alive = os.pipe()
            stack.callback(os.close, alive)
            owner = os.getpid()
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            try:
                for number in range(workers):
                    pid = os.fork()
                    if pid == 0:
                        self._serve(queue, number, owner)
                    self._pids.append(pid)
            except BaseException:
                self.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def are_done(self, *, wait_ms: int = 0) -> bool:
        """Whether all of them have ended; waits so long for it."""
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        return bool(poll.poll(wait_ms))

    def wait(self, progress: Callable[[int], None]) -> None:
        """Wait until all questions are answered, and tell how many bytes have been read."""
        is_done = False
        while not is_done:
            is_done = self.are_done(wait_ms=_TICK_MS)
            progress(sum([count for (count,) in _COUNT.iter_unpack(self._done)]))

    def facts(self) -> Iterator[tuple[Question, Facts | None]]:
        """What was found out, after ``wait``; ``None`` where somebody has to look: what is not good, or not known."""
        records = _RECORD.iter_unpack(memoryview(self._records)[: len(self._questions) * _RECORD.size])
        for question, (is_good, size, content, verity) in zip(self._questions, records, strict=True):
            if is_good:
                known = VerityDigest(verity) if question.verity else None
                yield question, Facts(size, None, "", known, None if content < 0 else content)
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
        if self._ended >= 0:
            os.close(self._ended)
            self._ended = -1

    def _serve(self, queue: int, number: int, owner: int) -> NoReturn:
        """What a process does. The signals that end a check stay blocked in it."""
        try:
            reader = BlobReader(self._layout)
            done = 0
            while (data := os.read(queue, _NUMBER.size)) and os.getppid() == owner:
                (batch,) = _NUMBER.unpack(data)
                first = batch * _BATCH
                for index, question in enumerate(self._questions[first : first + _BATCH], first):
                    facts = reader.facts(question)
                    done += facts.size
                    if facts.fault is None and not facts.problem:
                        content = -1 if facts.content is None else facts.content
                        record = (True, facts.size, content, facts.verity or _NO_DIGEST)
                        _RECORD.pack_into(self._records, index * _RECORD.size, *record)
                _COUNT.pack_into(self._done, number * _COUNT.size, done)
        finally:
            os._exit(0)
