"""Which chunks of the last build follow at a place of this build's stream, so that nothing need be read there.

Both streams are files one after the other. Where files follow one another in both, and none of them changed, both
streams hold the same bytes: a *run*. A cut depends only on the bytes from the last cut on, so from a place inside a run
where both streams have a cut, both are cut alike as far as the run goes. Two things bound it: a cut may depend on the
first bytes behind it (``LOOK_AHEAD``), so those must be of the run too; and the last chunk of a stream ends because the
stream does, so it counts only where both end. A run whose last file has borders (see ``stream``) ends with a cut
whatever follows, so neither bounds it.

A chunk is reused only if the layout has its blob. Where it has not, the files are read as if they had changed.

Nothing here reads files. A ``Reuse`` belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from puzzlefs.blobs import BlobWriter
from puzzlefs.builder.cache import Remembered, identities_of
from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.scan import IDENTITY_SIZE, SourceFile
from puzzlefs.builder.source import printable
from puzzlefs.chunking import LOOK_AHEAD
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import IntegrityError
from puzzlefs.image_commit import StoredChunk

_UNKNOWN, _THERE, _MISSING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Run:
    """Bytes that both streams hold.

    Attributes:
        start: where it begins in the new stream.
        end: where it ends there.
        shift: what is to be added to a place in the new stream for the same place in the old one.
        first: the first chunk of the old stream that begins in the run.
        last: the one behind the last chunk that may be reused in the run.
    """

    start: int
    end: int
    shift: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class ReusedChunks:
    """Chunks that follow in the stream, as they were stored.

    Attributes:
        chunks: in the order of the stream.
        lengths: bytes of the stream that each of them stands for.
        verity: their fs-verity digests.
    """

    chunks: Sequence[StoredChunk]
    lengths: Sequence[int]
    verity: Mapping[Digest, VerityDigest]


class Reuse:
    """What can be taken over from the last build into this one."""

    def __init__(
        self, old: Remembered, files: Sequence[SourceFile], writer: BlobWriter, *, cut_at_files: int = 0
    ) -> None:
        """Compare what ``old`` remembers with ``files``, which are those of the new stream, in its order.

        In both streams, files of ``cut_at_files`` bytes or more, if it is not 0, have borders.
        """
        self._old = old
        self._files = files
        self._writer = writer
        self._state = bytearray(len(old.lengths))
        self._chunks: dict[int, StoredChunk] = {}
        self._runs = _runs(old, files, cut_at_files)
        self._run_starts = [run.start for run in self._runs]

    def resumes_at(self, position: int) -> bool:
        """Whether, if the new stream is cut at ``position``, at least one chunk that follows is known."""
        expected = self._expected(position)
        return bool(expected) and self._is_there(self._old.sequence[expected.start])

    def next_after(self, position: int) -> int | None:
        """The first place behind ``position`` where it would resume, if there is a cut; ``None`` if there is none."""
        old = self._old
        for number in range(max(bisect_right(self._run_starts, position) - 1, 0), len(self._runs)):
            run = self._runs[number]
            first = run.first
            if run.start <= position:
                first = max(first, bisect_right(old.ends, position + run.shift) + 1)
            for index in range(first, run.last):
                if self._is_there(old.sequence[index]):
                    return (old.ends[index - 1] if index else 0) - run.shift
        return None

    def take(self, position: int) -> ReusedChunks:
        """The chunks that follow if the new stream is cut at ``position``; possibly none."""
        old = self._old
        expected = self._expected(position)
        numbers = old.sequence[expected.start : expected.stop]
        if not all(map(self._is_there, set(numbers))):
            missing = next(index for index, number in enumerate(numbers) if not self._is_there(number))
            numbers = numbers[:missing]
        distinct = set(numbers)
        for number in distinct:
            if number not in self._chunks:
                self._chunks[number] = old.chunk(number)
        return ReusedChunks(
            [self._chunks[number] for number in numbers],
            [old.lengths[number] for number in numbers],
            {self._chunks[number].digest: old.verity_of(number) for number in distinct},
        )

    def check(self, stream: FileStream, verity: Mapping[Digest, VerityDigest], subject: str) -> None:
        """Compare what could have been reused with what was read instead.

        Args:
            stream: the new stream, read from the first file to the last.
            verity: the fs-verity digests of its chunks.
            subject: what to call the cache in the error.

        Raises:
            IntegrityError: if they differ.
        """
        old = self._old
        position = 0
        for chunk, length in zip(stream.chunks, stream.lengths(), strict=True):
            expected = self._expected(position)
            if expected:
                number = old.sequence[expected.start]
                then = (old.chunk(number), old.lengths[number], old.verity_of(number))
                if then != (chunk, length, verity[chunk.digest]):
                    raise IntegrityError(
                        f"{subject}, in the chunk that begins in {self._path_at(position)},",
                        expected=f"{chunk.digest.oci} ({length} bytes)",
                        actual=f"{then[0].digest.oci} ({then[1]} bytes)",
                        hint="a file changed and kept its times, or the cache is wrong; remove it and build again",
                    )
            position += length

    def _path_at(self, position: int) -> str:
        starts = list(accumulate((file.size for file in self._files), initial=0))
        file = self._files[bisect_right(starts, position) - 1]
        return printable(file.directory.path(file.name))

    def _expected(self, position: int) -> range:
        """The chunks of the old stream that follow if the new one is cut at ``position``, there or not."""
        number = bisect_right(self._run_starts, position) - 1
        if number < 0 or position >= self._runs[number].end:
            return range(0)
        run = self._runs[number]
        old_position = position + run.shift
        index = bisect_right(self._old.ends, old_position)
        if old_position != (self._old.ends[index - 1] if index else 0):
            return range(0)
        return range(index, run.last)

    def _is_there(self, number: int) -> bool:
        state = self._state[number]
        if state == _UNKNOWN:
            chunk = self._chunks[number] = self._old.chunk(number)
            state = self._state[number] = _THERE if self._writer.adopt(chunk.digest, chunk.size) else _MISSING
        return state == _THERE


def _runs(old: Remembered, files: Sequence[SourceFile], cut_at_files: int) -> list[_Run]:
    """The runs that chunks can be reused in, in the order of the new stream."""
    runs: list[_Run] = []
    new_size = sum(file.size for file in files)

    def add(start: int, end: int, old_start: int, last_size: int) -> None:
        shift = old_start - start
        first = bisect_left(old.ends, old_start) + 1 if old_start else 0
        if end == new_size and end + shift == old.size:
            last = len(old.ends)
        elif 0 < cut_at_files <= last_size:
            last = bisect_right(old.ends, end + shift)
        else:
            last = bisect_right(old.ends, end + shift - LOOK_AHEAD)
        if first < last:
            runs.append(_Run(start, end, shift, first, last))

    if identities_of(files) == old.identities:
        add(0, new_size, 0, 0)
        return runs
    borders = range(0, len(old.identities) + 1, IDENTITY_SIZE)
    where = {old.identities[start:end]: index for index, (start, end) in enumerate(pairwise(borders))}
    position = run_start = run_old_start = last_size = 0
    follows: int | None = None  # the index of the old file that would continue the run
    for file in files:
        index = where.get(file.identity)
        if index is None or index != follows:
            if follows is not None:
                add(run_start, position, run_old_start, last_size)
            run_start = position
            run_old_start = old.starts[index] if index is not None else 0
        follows = None if index is None else index + 1
        position += file.size
        last_size = file.size
    if follows is not None:
        add(run_start, position, run_old_start, last_size)
    return runs
