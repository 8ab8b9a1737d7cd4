"""The words of a Cap'n Proto message that are not data: pointers and list tags (capnproto.org/encoding.html).

One 64-bit little-endian word each, least significant bit first:

    struct   kind 0 (2 bits) · offset (30, signed) · data words (16) · pointer words (16)
    list     kind 1 (2 bits) · offset (30, signed) · element size code (3) · element count (29)
    far      kind 2 (2 bits) · double (1) · landing pad's word (29) · landing pad's segment (32)
    tag      like a struct pointer, its offset being the number of elements: first word of a list of structs

An offset counts words from the word after the pointer. For a list of structs (size code 7) the count is that of the
words of all elements without the tag. A pointer's *shape* is the pointer without its offset.
"""

from __future__ import annotations

from puzzlefs.errors import FormatError

STRUCT = 0
LIST = 1
FAR = 2

OFFSET_BITS = 30
OFFSET_MASK = (1 << OFFSET_BITS) - 1
OFFSET_SIGN = 1 << (OFFSET_BITS - 1)
SHAPE_MASK = ~(OFFSET_MASK << 2)

BYTES = 2
"""Element size code of ``Data``."""
COMPOSITE = 7
"""Element size code of a list of structs."""

MAX_COUNT = (1 << 29) - 1
"""The largest number of elements or words that a list pointer can say."""


def struct_shape(data_words: int, pointer_words: int) -> int:
    """The shape of a pointer to such a struct."""
    return data_words << 32 | pointer_words << 48


def records_shape(count: int, data_words: int, pointer_words: int) -> int:
    """The shape of a pointer to a list of ``count`` such structs.

    Raises:
        FormatError: the list is longer than a pointer can say.
    """
    words = count * (data_words + pointer_words)
    if words > MAX_COUNT:
        raise FormatError(f"a list of {count} elements is more than a Cap'n Proto message can hold")
    return LIST | COMPOSITE << 32 | words << 35


def records_tag(count: int, data_words: int, pointer_words: int) -> int:
    """The tag in front of the elements of a list of structs."""
    return count << 2 | struct_shape(data_words, pointer_words)


def data_shape(size: int) -> int:
    """The shape of a pointer to ``size`` bytes.

    Raises:
        FormatError: there are more bytes than a pointer can say.
    """
    if size > MAX_COUNT:
        raise FormatError(f"{size} bytes are more than a Cap'n Proto pointer can say")
    return LIST | BYTES << 32 | size << 35
