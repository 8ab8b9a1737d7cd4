"""The bounds-checked reader: every kind of pointer, and every way in which one can lie."""

from __future__ import annotations

import array
import mmap
import struct
import tempfile
from collections.abc import Sequence

import pytest

from puzzlefs.errors import FormatError
from puzzlefs.wire.message import Ledger, Message, OverdrawnError, native_words
from puzzlefs.wire.pointers import data_shape, records_shape, records_tag, struct_shape

pytestmark = pytest.mark.unit

FAR = 2
DOUBLE_FAR = 6


def framed(*segments: Sequence[int]) -> bytes:
    """A message of segments that are given as words."""
    head = [len(segments) - 1, *(len(segment) for segment in segments)]
    head += [0] * (len(head) % 2)
    words = [word for segment in segments for word in segment]
    return struct.pack(f"<{len(head)}I", *head) + struct.pack(f"<{len(words)}Q", *words)


def far(segment: int, word: int, *, double: bool = False) -> int:
    return (DOUBLE_FAR if double else FAR) | word << 3 | segment << 32


def near(offset: int, shape: int) -> int:
    return (offset & 0x3FFFFFFF) << 2 | shape


def open_root(*segments: Sequence[int]) -> tuple[Message, int, int]:
    message = Message(framed(*segments))
    return message, *message.root()


# --- framing ---


def test_bytes_views_and_mappings_are_read_alike() -> None:
    data = framed([near(0, struct_shape(1, 0)), 77])
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for form in (data, bytearray(data), memoryview(data), mapped):
            message = Message(form)
            _segment, start, _data, _pointers = message.struct_at(*message.root(), "thing")
            assert message.words[start] == 77


def test_bytes_behind_the_message_are_ignored() -> None:
    data = framed([near(0, struct_shape(1, 0)), 77])
    for rest in (b"x", bytes(8), b"12345678901"):
        assert len(Message(data + rest).words) == len(data) // 8


@pytest.mark.parametrize("size", range(40))
def test_truncated_messages_are_refused(size: int) -> None:
    data = framed([near(0, struct_shape(1, 0)), 77], [1, 2])
    assert len(data) == 48
    with pytest.raises(FormatError, match=r"truncated|empty"):
        Message(data[:size])


def test_absurd_numbers_of_segments_are_refused() -> None:
    for count in (512, 0xFFFFFFFE, 0xFFFFFFFF):
        with pytest.raises(FormatError, match="segments"):
            Message(struct.pack("<II", count, 1) + bytes(64))
    assert Message(framed(*[[1]] * 512)).root() == (0, 257)


def test_sizes_that_lie_are_refused() -> None:
    with pytest.raises(FormatError, match="truncated"):
        Message(struct.pack("<II", 0, 0xFFFFFFFF) + bytes(64))
    with pytest.raises(FormatError, match="truncated"):
        Message(struct.pack("<IIII", 1, 1, 0xFFFFFFFF, 0) + bytes(64))


def test_an_empty_first_segment_has_no_root() -> None:
    with pytest.raises(FormatError, match="empty"):
        Message(framed([], [1])).root()


def test_words_on_a_host_of_the_other_byte_order_are_swapped() -> None:
    data = struct.pack("<QQ", 1, 0x0123456789ABCDEF)
    assert native_words(memoryview(data), "little").tolist() == [1, 0x0123456789ABCDEF]
    swapped = array.array("Q", [1, 0x0123456789ABCDEF])
    swapped.byteswap()
    assert native_words(memoryview(data), "big").tolist() == swapped.tolist()


# --- structs ---


def test_a_null_struct_has_no_words() -> None:
    message, segment, at = open_root([0])
    assert message.struct_at(segment, at, "thing")[2:] == (0, 0)


def test_near_pointers_lead_forward_and_backward() -> None:
    message, segment, at = open_root([near(1, struct_shape(1, 1)), 5, 6, near(-3, struct_shape(1, 0))])
    assert message.struct_at(segment, at, "thing") == (0, at + 2, 1, 1)
    assert message.struct_at(segment, at + 3, "thing") == (0, at + 1, 1, 0)


@pytest.mark.parametrize(
    "pointer",
    [
        near(0, struct_shape(2, 0)),
        near(1, struct_shape(1, 0)),
        near(-3, struct_shape(1, 0)),
        near(-2, struct_shape(0, 0xFFFF)),
        near(0x1FFFFFFF, struct_shape(1, 0)),
        near(-0x20000000, struct_shape(1, 0)),
    ],
)
def test_structs_outside_are_refused(pointer: int) -> None:
    message, segment, at = open_root([pointer, 0])
    with pytest.raises(FormatError, match="thing: points outside"):
        message.struct_at(segment, at, "thing")


def test_pointers_do_not_reach_into_the_next_segment() -> None:
    message, segment, at = open_root([near(0, struct_shape(1, 0))], [1, 2, 3])
    with pytest.raises(FormatError, match="points outside"):
        message.struct_at(segment, at, "thing")
    message = Message(framed([0], [near(-2, struct_shape(1, 0))]))
    with pytest.raises(FormatError, match="points outside"):
        message.struct_at(1, 3, "thing")


def test_other_kinds_are_refused() -> None:
    for pointer in (data_shape(0), records_shape(0, 1, 0), 3, 3 | 7 << 32):
        message, segment, at = open_root([pointer, 0])
        with pytest.raises(FormatError, match="thing: "):
            message.struct_at(segment, at, "thing")
    message, segment, at = open_root([struct_shape(1, 0), 0])
    with pytest.raises(FormatError, match="thing: a struct where a list"):
        message.records_at(segment, at, "thing")
    with pytest.raises(FormatError, match="thing: something else"):
        message.extent_at(segment, at, "thing")


# --- far pointers ---


def test_far_pointers() -> None:
    message, segment, at = open_root([far(1, 1)], [9, near(0, struct_shape(1, 0)), 77])
    assert message.struct_at(segment, at, "thing") == (1, 5, 1, 0)
    assert message.words[5] == 77


def test_double_far_pointers() -> None:
    message, segment, at = open_root([far(1, 1, double=True)], [9, far(2, 1), near(1, struct_shape(1, 1))], [0, 77, 78])
    found, start, data_words, pointer_words = message.struct_at(segment, at, "thing")
    assert (found, data_words, pointer_words) == (2, 1, 1)
    assert message.words[start] == 77


def test_double_far_lists_and_bytes() -> None:
    tag = records_tag(2, 1, 0)
    message, segment, at = open_root([far(1, 0, double=True)], [far(2, 0), records_shape(2, 1, 0)], [tag, 77, 78])
    _segment, first, count, data_words, pointer_words = message.records_at(segment, at, "thing")
    assert (count, data_words, pointer_words) == (2, 1, 0)
    assert message.words[first : first + 2].tolist() == [77, 78]
    text = int.from_bytes(b"abcdefgh", "little")
    message, segment, at = open_root([far(1, 0, double=True)], [far(2, 0), data_shape(3)], [text])
    assert message.data_at(segment, at, "thing", Ledger(10)) == b"abc"


@pytest.mark.parametrize(
    "segments",
    [
        ([far(2, 0)], [0]),  # no such segment
        ([far(0xFFFFFFFF, 0)], [0]),
        ([far(1, 1)], [0]),  # landing pad outside
        ([far(1, 0x1FFFFFFF)], [0]),
        ([far(0, 0)],),  # itself
        ([far(1, 0)], [far(0, 0)]),  # a circle
        ([far(1, 0)], [far(1, 0, double=True), 0]),
        ([far(1, 0)], [near(0, struct_shape(1, 0))]),  # lands, and then leads outside
        ([far(1, 0)], [3]),  # a capability
        ([far(0, 0, double=True)],),  # pad of one word
        ([far(1, 0, double=True)], [0, 0]),  # pad is not a far pointer
        ([far(1, 0, double=True)], [far(1, 0, double=True), struct_shape(1, 0)]),
        ([far(1, 0, double=True)], [far(2, 0), struct_shape(1, 0)]),
        ([far(1, 0, double=True)], [far(1, 3), struct_shape(1, 0)]),
        ([far(1, 0, double=True)], [far(1, 0), far(1, 0)]),  # tag is a far pointer
        ([far(1, 0, double=True)], [far(1, 0), 3]),
    ],
)
def test_far_pointers_that_lie(segments: tuple[list[int], ...]) -> None:
    message, segment, at = open_root(*segments)
    for method in (message.struct_at, message.records_at, message.extent_at):
        with pytest.raises(FormatError, match="thing: "):
            method(segment, at, "thing")


# --- lists ---


def test_null_and_empty_lists() -> None:
    for pointer, rest in ((0, []), (1 | 2 << 32, []), (records_shape(0, 0, 0), [records_tag(0, 3, 2)])):
        message, segment, at = open_root([pointer, *rest])
        assert message.records_at(segment, at, "thing")[2] == 0


@pytest.mark.parametrize(
    ("shape", "tag"),
    [
        (records_shape(3, 1, 0), records_tag(3, 1, 0)),  # longer than the message
        (1 | 7 << 32 | 0x1FFFFFFF << 35, records_tag(1, 1, 0)),
        (records_shape(2, 1, 0), records_tag(3, 1, 0)),  # the tag says more than the pointer
        (records_shape(2, 1, 0), records_tag(2, 0xFFFF, 0xFFFF)),
        (records_shape(2, 1, 0), records_tag(0x3FFFFFFF, 0, 1)),
        (records_shape(2, 1, 0), records_tag(1, 0, 0)),  # elements of no size
        (records_shape(2, 1, 0), records_tag(0x3FFFFFFF, 0, 0)),
        (records_shape(2, 1, 0), records_tag(2, 1, 0) | 1),  # not a tag
        (records_shape(2, 1, 0), FAR),
        (1 | 5 << 32 | 2 << 35, 0),  # numbers
        (1 | 2 << 32 | 8 << 35, 0),  # bytes
        (1 | 0 << 32 | 0x1FFFFFFF << 35, 0),  # half a milliard times nothing
    ],
)
def test_lists_that_lie(shape: int, tag: int) -> None:
    message, segment, at = open_root([shape, tag, 1, 2])
    with pytest.raises(FormatError, match="thing: "):
        message.records_at(segment, at, "thing")


@pytest.mark.parametrize(
    "shape",
    [data_shape(17), data_shape(0x1FFFFFFF), 1 | 3 << 32 | 2 << 35, 1 | 7 << 32 | 2 << 35, near(-2, data_shape(1))],
)
def test_bytes_that_lie(shape: int) -> None:
    message, segment, at = open_root([shape, 0, 0])
    with pytest.raises(FormatError, match="thing: "):
        message.extent_at(segment, at, "thing")


def test_bytes() -> None:
    message, segment, at = open_root([data_shape(16), 0x4142434445464748, 0x4142434445464749])
    assert message.data_at(segment, at, "thing", Ledger(2)) == b"HGFEDCBAIGFEDCBA"
    message, segment, at = open_root([0])
    assert message.data_at(segment, at, "thing", Ledger(0)) == b""
    message, segment, at = open_root([data_shape(0)])
    assert message.data_at(segment, at, "thing", Ledger(0)) == b""


def test_a_ledger_ends() -> None:
    ledger = Ledger(3)
    ledger.spend(2, "thing")
    ledger.spend(1, "thing")
    with pytest.raises(OverdrawnError, match="thing overlap"):
        ledger.spend(1, "thing")
