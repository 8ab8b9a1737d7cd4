"""Pinned cut points: no optimisation may change these.

A cut that moves gives every chunk behind it another name, so images stop sharing chunks with those built
before, and a build stops giving the original's digest. The figures for ``text`` are also the chunks of
``srv/text`` in the images of the original implementation.
"""

import random

import pytest
from fastcdc.fastcdc_py import fastcdc_py

from puzzlefs.chunking import AVERAGE_SIZE, MAX_SIZE, MIN_SIZE, ChunkerName, chunker

pytestmark = pytest.mark.golden

NOISE = random.Random(2020).randbytes(2 << 20)
TEXT = b"".join(b"line %06d\n" % number for number in range(100_000))

# fmt: off
FASTCDC2020_NOISE = [
    65797, 69712, 80485, 66036, 121417, 73809, 75647, 68787, 79130, 34179, 34438, 120709, 50945, 138545,
    82970, 45965, 71900, 179802, 192018, 262144, 48692, 33032, 32693, 68300,
]
FASTCDC2020_TEXT = [
    16567, 92858, 54476, 92586, 17596, 99213, 81832, 69941, 39386, 75008, 97744, 200963, 77364, 110893,
    73573,
]
RONOMON_NOISE = [
    61260, 64310, 55105, 66342, 112734, 77348, 42157, 90869, 64590, 108601, 43234, 54049, 30843, 68730,
    41344, 57594, 59600, 42039, 102668, 50542, 20802, 49901, 42023, 41704, 68569, 22019, 138061, 44520,
    18727, 195567, 78178, 83122,
]
RONOMON_TEXT = [
    61060, 77367, 57318, 44531, 29653, 52805, 89140, 56619, 93315, 75707, 57142, 43312, 80500, 19834,
    67755, 96570, 52698, 17937, 25967, 44811, 25481, 30478,
]
# fmt: on


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        pytest.param("fastcdc2020", NOISE, FASTCDC2020_NOISE, id="fastcdc2020-noise"),
        pytest.param("fastcdc2020", TEXT, FASTCDC2020_TEXT, id="fastcdc2020-text"),
        pytest.param("ronomon", NOISE, RONOMON_NOISE, id="ronomon-noise"),
        pytest.param("ronomon", TEXT, RONOMON_TEXT, id="ronomon-text"),
    ],
)
def test_cuts_are_where_they_always_were(name: ChunkerName, data: bytes, expected: list[int]) -> None:
    assert chunker(name).cut(memoryview(data), final=True) == expected


def test_the_compiled_ronomon_chunker_cuts_like_the_readable_one() -> None:
    readable = fastcdc_py(TEXT, min_size=MIN_SIZE, avg_size=AVERAGE_SIZE, max_size=MAX_SIZE)
    assert [chunk.length for chunk in readable] == RONOMON_TEXT
