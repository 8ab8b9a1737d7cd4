"""Cuts depend on content only: not on buffers, not on what was before the chunk."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlefs.chunking import CHUNKER_NAMES, MAX_SIZE, MIN_SIZE, Chunker, ChunkerName, chunker

pytestmark = pytest.mark.property


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A few hundred KiB of noise, repetition and zeros, in an order that hypothesis can shrink."""
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        size = draw(st.integers(0, 300_000))
        match draw(st.sampled_from(["noise", "zeros", "repeated"])):
            case "noise":
                parts.append(random.Random(draw(st.integers(0, 1000))).randbytes(size))
            case "zeros":
                parts.append(bytes(size))
            case _:
                period = random.Random(draw(st.integers(0, 1000))).randbytes(draw(st.integers(1, 5000)))
                parts.append((period * (size // len(period) + 1))[:size])
    return b"".join(parts)


def whole(cutter: Chunker, data: bytes) -> list[int]:
    return cutter.cut(memoryview(data), final=True)


names = st.sampled_from(CHUNKER_NAMES)


@settings(max_examples=60, deadline=None)
@given(names, streams())
def test_chunks_cover_the_stream_within_the_sizes(name: ChunkerName, data: bytes) -> None:
    lengths = whole(chunker(name), data)
    assert sum(lengths) == len(data)
    assert all(MIN_SIZE <= length <= MAX_SIZE for length in lengths[:-1])
    assert all(0 < length <= MAX_SIZE for length in lengths)


@settings(max_examples=60, deadline=None)
@given(names, streams(), st.data())
def test_the_buffer_does_not_move_a_cut(name: ChunkerName, data: bytes, draw: st.DataObject) -> None:
    cutter = chunker(name)
    lengths: list[int] = []
    start = end = 0
    while end < len(data):
        end = min(len(data), end + draw.draw(st.integers(1, 400_000)))
        certain = cutter.cut(memoryview(data)[start:end], final=False)
        assert end - start - sum(certain) < MAX_SIZE
        lengths += certain
        start += sum(certain)
    lengths += cutter.cut(memoryview(data)[start:], final=True)
    assert lengths == whole(cutter, data)


@settings(max_examples=60, deadline=None)
@given(names, streams(), st.data())
def test_a_restart_at_a_cut_goes_on_alike(name: ChunkerName, data: bytes, draw: st.DataObject) -> None:
    cutter = chunker(name)
    lengths = whole(cutter, data)
    index = draw.draw(st.integers(0, len(lengths)))
    assert whole(cutter, data[sum(lengths[:index]) :]) == lengths[index:]


@settings(max_examples=30, deadline=None)
@given(names, streams(), streams(), streams())
def test_an_insertion_disturbs_cuts_only_near_it(
    name: ChunkerName, before: bytes, inserted: bytes, after: bytes
) -> None:
    cutter = chunker(name)
    plain, changed = whole(cutter, before + after), whole(cutter, before + inserted + after)

    def ends_before(lengths: list[int], limit: int) -> list[int]:
        ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
        return [end for end in ends if end < limit]

    # One byte behind a cut belongs to what decides about it, so the last byte is not counted.
    assert ends_before(plain, len(before)) == ends_before(changed, len(before))
