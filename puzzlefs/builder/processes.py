"""Workers that are processes: no lock of an interpreter stands between them and the thread that reads and cuts.

fs-verity alone drops and takes that lock for each 4 KiB. The processes are forked from the one that builds, which must
have no other threads (``can_fork``), so they cost a few milliseconds and know what the writer knows. Buffers are shared
memory. One pair of sockets that keep messages apart is queue and answer at once: whoever is free takes the next
message, a buffer's number and the lengths in it; the answer has the same number, what was stored, and the temporary
files that were written, which the owner's writer takes over. In the end, while the owner encodes metadata, they give
those files their names.

A process leaves signals to the owner, ends when the owner closes its side or dies, and cleans up nothing: that is the
owner's work, who may not even have been told of a file. One that is killed (when memory runs out) ends the build.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterator, Sequence
from mmap import mmap
from typing import Final, NoReturn

from puzzlefs.blobs import BlobWriter
from puzzlefs.builder.store import ChunkStore, Stored
from puzzlefs.builder.workers import Buffer
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import PuzzlefsError, StorageError
from puzzlefs.image_commit import StoredChunk
from puzzlefs.signal_mask import blocked

_NUMBER: Final = struct.Struct("=I")
_COUNTS: Final = struct.Struct("=IIII")  # buffer, chunks, fs-verity digests, written files
_CHUNK: Final = struct.Struct("=32sI?")
_VERITY: Final = struct.Struct("=32s32s")
_FILE: Final = struct.Struct("=32sII")  # digest, size, number in its name
_FAILED: Final = 0xFFFFFFFF
"""Instead of a number of chunks: what follows is an error as JSON."""
_NAMES: Final = 0xFFFFFFFE
"""Instead of the number of a buffer: what follows are blobs that are to get their names."""
_WRITTEN: Final = struct.Struct("=32sI")  # digest, number in its name
_MAX_NAMES: Final = 4096
"""Blobs in such a message. As few messages as a socket takes: who waits for one waits for the interpreter, too."""

_MAX_MESSAGE: Final = 1 << 18
_PATIENCE_MS: Final = 1000
_PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>

_libc = ctypes.CDLL(None, use_errno=True)


WORTH_PROCESSES: Final = 64 << 20
"""Bytes to store from which on workers are processes."""


def is_worth_processes(size: int) -> bool:
    """Whether ``size`` bytes are better stored by processes than by threads, and can be."""
    return size >= WORTH_PROCESSES and can_fork()


def can_fork() -> bool:
    """Whether this process has one thread, so that a fork of it is whole."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


class ProcessWorkers:
    """Workers that are processes, forked from this one."""

    def __init__(
        self, writer: BlobWriter, make_store: Callable[[BlobWriter], ChunkStore], count: int, size: int
    ) -> None:
        """``count`` processes.

        Args:
            writer: takes over what they write.
            make_store: how a process stores, given the writer that it is to use.
            count: how many there are.
            size: bytes of a buffer.
        """
        self._writer = writer
        self._make_store = make_store
        self._count = count
        self._size = size
        self._buffers: list[mmap] = []
        self._numbers: dict[int, int] = {}
        self._outcomes: dict[int, Stored | Exception] = {}
        self._pids: list[int] = []
        self._socket: socket.socket | None = None
        self._poll = select.poll()

    def new_buffer(self) -> Buffer:
        """See ``Workers``. All buffers are made before the first is submitted: processes know those that there were."""
        if self._socket is not None:
            raise RuntimeError("the processes run already")
        buffer = mmap(-1, self._size)
        self._numbers[id(buffer)] = len(self._buffers)
        self._buffers.append(buffer)
        return buffer

    def submit(self, buffer: Buffer, lengths: Sequence[int]) -> _Outcome:
        """See ``Workers``."""
        if self._socket is None:
            self._socket = self._start()
        number = self._numbers[id(buffer)]
        with self._told_apart():
            self._socket.send(struct.pack(f"={1 + len(lengths)}I", number, *lengths))
        return _Outcome(self, number)

    def give_names(self, written: Sequence[tuple[Digest, int]]) -> None:
        """Have a process give blobs their names that these processes have written. Nothing else may be going on.

        One after the other: two that rename in one directory wait for each other.

        Raises:
            StorageError: if one cannot get it, or the process has ended.
        """
        for first in range(0, len(written), _MAX_NAMES):
            rows = written[first : first + _MAX_NAMES]
            if self._socket is None:
                raise RuntimeError("the processes have been stopped")
            with self._told_apart():
                self._socket.send(_NUMBER.pack(_NAMES) + b"".join([_WRITTEN.pack(*row) for row in rows]))
            self.receive(_NAMES, wait=True)
            self.pop(_NAMES)

    def close(self) -> None:
        """See ``Workers``."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        while self._pids:
            pid = self._pids[-1]
            with contextlib.suppress(ChildProcessError):  # somebody else has waited for it
                os.waitpid(pid, 0)
            self._pids.pop()

    # ---- answers, in the owner

    def receive(self, number: int, *, wait: bool) -> bool:
        """Take the answers that are there; with ``wait``, go on until the one for buffer ``number`` is.

        Raises:
            StorageError: if a process has ended.
        """
        while number not in self._outcomes:
            if self._socket is None:
                raise RuntimeError("the processes have been stopped")
            if self._poll.poll(_PATIENCE_MS if wait else 0):
                with self._told_apart():
                    message = self._socket.recv(_MAX_MESSAGE)
                self._take(message)
            elif wait:
                self._check_processes()
            else:
                return False
        return True

    def pop(self, number: int) -> Stored:
        """The answer for buffer ``number``, which has been received.

        Raises:
            StorageError: if that is what it says.
        """
        outcome = self._outcomes.pop(number)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _take(self, message: bytes) -> None:
        if not message:
            self._check_processes(wait=True)
        number, chunks, digests, files = _COUNTS.unpack_from(message)
        if chunks == _FAILED:
            self._outcomes[number] = _decode_error(message[_COUNTS.size :])
            return
        start = _COUNTS.size
        middle = start + chunks * _CHUNK.size
        end = middle + digests * _VERITY.size
        with memoryview(message) as view:
            for digest, size, name in _FILE.iter_unpack(view[end : end + files * _FILE.size]):
                self._writer.take_over(Digest(digest), size, name)
            self._outcomes[number] = Stored(
                [
                    StoredChunk(Digest(digest), size, compressed)
                    for digest, size, compressed in _CHUNK.iter_unpack(view[start:middle])
                ],
                {Digest(digest): VerityDigest(verity) for digest, verity in _VERITY.iter_unpack(view[middle:end])},
            )

    @contextlib.contextmanager
    def _told_apart(self) -> Iterator[None]:
        """An error of the socket means that nobody is at its other end; it is none of the file that is being read."""
        try:
            yield
        except OSError:
            self._check_processes(wait=True)

    def _check_processes(self, *, wait: bool = False) -> None:
        """Raise what is to be said of processes that have ended; with ``wait``, one must have."""
        for pid in self._pids:
            code = None
            with contextlib.suppress(ChildProcessError):
                ended, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
                if not ended:
                    continue
                code = os.waitstatus_to_exitcode(status)
            self._pids.remove(pid)
            raise _ended(code)
        if wait:
            raise _ended(None)

    # ---- processes

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        owner = os.getpid()
        with theirs, blocked():
            for index in range(self._count):
                writer = self._writer.delegate(index, self._count)
                pid = os.fork()
                if pid == 0:
                    ours.close()
                    self._serve(theirs, writer, owner)
                self._pids.append(pid)
        self._poll.register(ours, select.POLLIN)
        return ours

    def _serve(self, queue: socket.socket, writer: BlobWriter, owner: int) -> NoReturn:
        """What a process does. The signals that end a build stay blocked in it."""
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == owner:
                self._work(queue, writer)
        except OSError:
            pass  # the owner has gone
        finally:
            os._exit(0)

    def _work(self, queue: socket.socket, writer: BlobWriter) -> None:
        store = self._make_store(writer)
        while message := queue.recv(_MAX_MESSAGE):
            (number,) = _NUMBER.unpack_from(message)
            try:
                if number == _NAMES:
                    writer.give_names(
                        [(Digest(digest), name) for digest, name in _WRITTEN.iter_unpack(message[_NUMBER.size :])]
                    )
                    stored = Stored((), {})
                else:
                    lengths = struct.unpack_from(f"={len(message) // _NUMBER.size - 1}I", message, _NUMBER.size)
                    stored = store.store(memoryview(self._buffers[number]), lengths)
                answer = _encode(number, stored, writer.take_written())
            except BaseException as error:  # noqa: BLE001  whatever it is, the owner raises it
                answer = _COUNTS.pack(number, _FAILED, 0, 0) + _encode_error(error)
            queue.send(answer)


class _Outcome:
    """What becomes of a buffer that a process stores."""

    __slots__ = ("_number", "_workers")

    def __init__(self, workers: ProcessWorkers, number: int) -> None:
        self._workers = workers
        self._number = number

    def done(self) -> bool:
        return self._workers.receive(self._number, wait=False)

    def result(self) -> Stored:
        self._workers.receive(self._number, wait=True)
        return self._workers.pop(self._number)


def _ended(code: int | None) -> StorageError:
    how = "" if code is None else f" ({signal.Signals(-code).name})" if code < 0 else f" (exit code {code})"
    return StorageError(
        f"a process that stores chunks has ended{how}", hint="the machine may be out of memory; run the command again"
    )


def _encode(number: int, stored: Stored, files: Sequence[tuple[Digest, int, int]]) -> bytes:
    return b"".join(
        (
            _COUNTS.pack(number, len(stored.chunks), len(stored.verity), len(files)),
            *[_CHUNK.pack(chunk.digest, chunk.size, chunk.compressed) for chunk in stored.chunks],
            *[_VERITY.pack(digest, verity) for digest, verity in stored.verity.items()],
            *[_FILE.pack(*file) for file in files],
        )
    )


def _encode_error(error: BaseException) -> bytes:
    if isinstance(error, PuzzlefsError):
        return json.dumps({"message": error.message, "hint": error.hint}).encode()
    text = "".join(traceback.format_exception(error))
    return json.dumps({"defect": text[-(_MAX_MESSAGE >> 3) :]}).encode()


def _decode_error(data: bytes) -> Exception:
    said = json.loads(data)
    if "defect" in said:
        return RuntimeError(f"a process that stores chunks failed:\n{said['defect']}")
    return StorageError(said["message"], hint=said["hint"])
