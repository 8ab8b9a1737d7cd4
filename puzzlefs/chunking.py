"""Where the file stream is cut: content-defined chunking, as a function from bytes to lengths.

A chunker keeps no state between calls. Where a chunk ends depends only on the bytes from its beginning on,
never on how the stream was cut into buffers: a cut that more data could still move is not reported, and the
caller offers the same bytes again with more behind them. ``tests/property`` holds both chunkers to that.

The sizes and the algorithm decide which bytes become one blob. Changing anything here makes every image share
nothing with those built before, and breaks the digests pinned in ``tests/golden``: no optimisation may change
a cut. Other sizes than ``USUAL_SIZES`` are for images whose digests nobody else has to reproduce.

A chunker belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import pyfastcdc

from puzzlefs.errors import InvalidArgumentError

MIN_SIZE: Final = 16 << 10
"""Bytes of the smallest chunk (but for the last of a stream). Part of the format's identity: see above."""

AVERAGE_SIZE: Final = 64 << 10
"""Bytes around which the cuts are aimed. Part of the format's identity: see above."""

MAX_SIZE: Final = 256 << 10
"""Bytes of the largest chunk. Part of the format's identity: see above."""

LARGEST_AVERAGE: Final = 512 << 10
"""The largest average size that can be asked for: readers hold whole chunks in memory."""

LOOK_AHEAD: Final = 64
"""Bytes behind a cut after which nothing can move it any more, not even the end of the stream. (``fastcdc2020`` looks
at the first byte of the next chunk, and misses a cut one byte before the end; the rest is room to spare.)"""

ChunkerName = Literal["fastcdc2020", "ronomon"]
"""``fastcdc2020``: what the original uses and every default; ``ronomon``: the older FastCDC of the ronomon
library."""


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """How long chunks are, in bytes.

    Attributes:
        minimum: of the smallest one, but for the last of what is cut.
        average: around which the cuts are aimed.
        maximum: of the largest one.
    """

    minimum: int
    average: int
    maximum: int

    @classmethod
    def around(cls, average: int) -> ChunkSizes:
        """Sizes in the proportions of ``USUAL_SIZES``; the largest is not more than 256 KiB, or twice the average.

        Raises:
            InvalidArgumentError: if ``average`` is not a power of two, or too small or large.
        """
        if average.bit_count() != 1 or not MIN_SIZE <= average <= LARGEST_AVERAGE:
            raise InvalidArgumentError(
                f"chunks cannot be {average} bytes long on average",
                hint=f"say a power of two from {MIN_SIZE >> 10}K to {LARGEST_AVERAGE >> 10}K",
            )
        return cls(average // 4, average, min(4 * average, max(MAX_SIZE, 2 * average)))


USUAL_SIZES: Final = ChunkSizes(MIN_SIZE, AVERAGE_SIZE, MAX_SIZE)
"""What the original cuts with. Part of the format's identity: see above."""

CHUNKER_NAMES: Final[tuple[ChunkerName, ...]] = ("fastcdc2020", "ronomon")


class Chunker(Protocol):
    """Cuts a stream into chunks.

    Attributes:
        name: what the algorithm is called on the command line.
        max_size: bytes of the largest chunk; with that many bytes at hand at least one cut is certain.
    """

    @property
    def name(self) -> ChunkerName: ...

    @property
    def max_size(self) -> int: ...

    def cut(self, data: memoryview, final: bool) -> list[int]:
        """The lengths of the chunks that ``data`` begins with.

        Args:
            data: bytes of the stream from the beginning of a chunk on.
            final: whether the stream ends with ``data``; the rest is a chunk then, whatever its length.

        Returns:
            Lengths in bytes, in order, of those chunks whose ends no further data can move. Without ``final``
            a rest shorter than ``max_size`` may be left over.
        """
        ...


def chunker(name: ChunkerName, sizes: ChunkSizes = USUAL_SIZES) -> Chunker:
    """A chunker of the given algorithm and sizes.

    Raises:
        InvalidArgumentError: if there is none of that name.
    """
    if name not in _CHUNKERS:
        raise InvalidArgumentError(f"there is no chunker {name!r}", hint=f"there are {', '.join(CHUNKER_NAMES)}")
    return _CHUNKERS[name](sizes)


class _FastCdc2020:
    """FastCDC 2020 with the gear table and normalisation level 1 of the Rust crate ``fastcdc``, module
    ``v2020``."""

    name: Final = "fastcdc2020"

    def __init__(self, sizes: ChunkSizes) -> None:
        self.max_size = sizes.maximum
        self._fastcdc = pyfastcdc.FastCDC(sizes.average, min_size=sizes.minimum, max_size=sizes.maximum)

    def cut(self, data: memoryview, final: bool) -> list[int]:
        lengths = [chunk.length for chunk in self._fastcdc.cut_buf(data)]
        return _without_uncertain_end(lengths, len(data), final, self.max_size)


class _Ronomon:
    """FastCDC of 2016 as the ronomon library does it: 31-bit gear table, centre of the sizes derived from the
    minimum."""

    name: Final = "ronomon"

    def __init__(self, sizes: ChunkSizes) -> None:
        self.max_size = sizes.maximum
        self._sizes = sizes
        # Imported when asked for: the package pulls in a command line framework, and where its compiled part
        # is missing it says so on stdout, which belongs to the digest that a build prints.
        with contextlib.redirect_stdout(io.StringIO()):
            from fastcdc import fastcdc  # noqa: PLC0415
        self._fastcdc = fastcdc

    def cut(self, data: memoryview, final: bool) -> list[int]:
        sizes = self._sizes
        chunks = self._fastcdc(data, min_size=sizes.minimum, avg_size=sizes.average, max_size=sizes.maximum)
        return _without_uncertain_end([chunk.length for chunk in chunks], len(data), final, self.max_size)


_CHUNKERS: Final[dict[ChunkerName, Callable[[ChunkSizes], Chunker]]] = {
    "fastcdc2020": _FastCdc2020,
    "ronomon": _Ronomon,
}


def _without_uncertain_end(lengths: list[int], size: int, final: bool, max_size: int) -> list[int]:
    # Both libraries end a chunk at the end of the buffer when they find no cut before it. Only such a chunk
    # can be moved by more data, and only when it is shorter than the maximum.
    if not final and lengths and lengths[-1] < max_size and sum(lengths) == size:
        lengths.pop()
    return lengths
