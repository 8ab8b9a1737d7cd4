"""Cut points at the edges: empty data, the end of a stream, zeros, unknown names."""

import random
from typing import Any

import pytest

from puzzlefs.chunking import CHUNKER_NAMES, MAX_SIZE, MIN_SIZE, ChunkerName, chunker
from puzzlefs.errors import InvalidArgumentError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", CHUNKER_NAMES)
class TestEveryChunker:
    def test_is_called_what_it_was_asked_for_as(self, name: ChunkerName) -> None:
        made = chunker(name)
        assert (made.name, made.max_size) == (name, MAX_SIZE)

    @pytest.mark.parametrize("final", [False, True])
    def test_nothing_has_no_chunks(self, name: ChunkerName, final: bool) -> None:
        assert chunker(name).cut(memoryview(b""), final) == []

    @pytest.mark.parametrize("size", [1, MIN_SIZE - 1, MIN_SIZE])
    def test_a_rest_is_a_chunk_only_at_the_end(self, name: ChunkerName, size: int) -> None:
        data = memoryview(random.Random(size).randbytes(size))
        assert chunker(name).cut(data, final=False) == []
        assert chunker(name).cut(data, final=True) == [size]

    def test_zeros_are_cut_at_the_maximum_only(self, name: ChunkerName) -> None:
        zeros = memoryview(bytes(2 * MAX_SIZE + 5))
        assert chunker(name).cut(zeros, final=False) == [MAX_SIZE, MAX_SIZE]
        assert chunker(name).cut(zeros, final=True) == [MAX_SIZE, MAX_SIZE, 5]

    def test_max_size_bytes_are_enough_for_a_cut(self, name: ChunkerName) -> None:
        made = chunker(name)
        for seed in range(20):
            data = memoryview(random.Random(seed).randbytes(MAX_SIZE))
            assert made.cut(data, final=False)

    def test_read_only_and_writable_buffers_are_cut_alike(self, name: ChunkerName) -> None:
        data = random.Random(5).randbytes(600_000)
        made = chunker(name)
        assert made.cut(memoryview(data), True) == made.cut(memoryview(bytearray(data)), True)


def test_an_unknown_chunker_is_refused_with_the_names_there_are() -> None:
    name: Any = "rabin"
    with pytest.raises(InvalidArgumentError, match="no chunker 'rabin'; there are fastcdc2020, ronomon"):
        chunker(name)
