"""What metadata layers take of a message: every word is somebody's, and damage is a ``FormatError``."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_wire_fuzz import byte_changes, some_layer, word_changes
from wire_models import layers

from puzzlefs.errors import FormatError
from puzzlefs.model import Inode
from puzzlefs.wire import codec_for, embedded_sizes, encode_compact_rootfs

pytestmark = pytest.mark.property

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
MESSAGE = codec_for(3).encode_rootfs(layers=[some_layer()[:9], some_layer()], metadata_refs=(), verity={})


def encoded(stack: list[tuple[Inode, ...]], compact: bool) -> bytes:
    if compact:
        return encode_compact_rootfs(3, stack, {})
    return codec_for(3).encode_rootfs(layers=stack, metadata_refs=(), verity={})


@relaxed
@given(st.lists(layers(), max_size=4), st.booleans())
def test_the_parts_add_up_to_the_message(stack: list[tuple[Inode, ...]], compact: bool) -> None:
    """But for the framing, the rootfs with its lists, and a landing pad and an empty list for each layer."""
    message = encoded(stack, compact)
    sizes = embedded_sizes(codec_for(3).decode_rootfs(message).tables)
    segments = int.from_bytes(message[:4], "little") + 1
    own = (segments // 2 + 1) + 1 + 3 + 1 + len(stack) + 1
    rest = len(message) - 8 * own - sum(sizes)
    assert 0 <= rest <= 8 * (2 * len(stack) + 3)
    assert len(sizes) == len(stack)


@relaxed
@given(st.lists(layers(), min_size=1, max_size=3))
def test_a_layer_takes_no_more_than_it_takes_alone(stack: list[tuple[Inode, ...]]) -> None:
    """Where the encoder shares, an upper one takes less; the lowest one takes the same."""
    alone = [embedded_sizes(codec_for(3).decode_rootfs(encoded([layer], True)).tables)[0] for layer in stack]
    together = embedded_sizes(codec_for(3).decode_rootfs(encoded(stack, True)).tables)
    assert all(size <= most for size, most in zip(together, alone, strict=True))
    assert together[-1] == alone[-1]


def sizes_or_error(message: bytes) -> None:
    start = time.process_time()
    try:
        sizes = embedded_sizes(codec_for(3).decode_rootfs(message).tables)
    except FormatError:
        return
    finally:
        assert time.process_time() - start < 1
    assert sum(sizes) <= len(message)


@settings(relaxed, max_examples=500)
@given(byte_changes)
def test_changed_bytes(changes: list[tuple[int, int]]) -> None:
    message = bytearray(MESSAGE)
    for position, value in changes:
        message[position % len(message)] = value
    sizes_or_error(bytes(message))


@settings(relaxed, max_examples=500)
@given(word_changes)
def test_changed_words(changes: list[tuple[int, int]]) -> None:
    message = bytearray(MESSAGE)
    for position, word in changes:
        at = position % (len(message) // 8) * 8
        message[at : at + 8] = word.to_bytes(8, "little")
    sizes_or_error(bytes(message))
