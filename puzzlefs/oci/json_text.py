"""JSON as the image-spec's documents use it: bytes ⇄ typed values, nothing in between.

Reading is bounded: the caller bounds the size, and nesting that would exhaust the interpreter is an error of the
document, and so are more objects and arrays than any real document of its size has: a few bytes of text become many of
memory. Writing is exact, because manifests are hashed: keys sorted, no white space, UTF-8.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from puzzlefs.errors import FormatError

_FREE_CONTAINERS: Final = 10_000
_MIN_CONTAINER_SIZE: Final = 32
"""A document has at most one object or array for this many bytes; a descriptor has three times as many."""
_PIECE_SIZE: Final = 64 << 10
"""Bytes of text of which the values are in memory at once: they stay in the processor's cache, and so take half the
time of those of a large document."""
_MARK_SIZE: Final = 16

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
JsonObject = Mapping[str, JsonValue]

NO_FIELDS: Final[JsonObject] = MappingProxyType({})


def parse_object(
    data: bytes, what: str, *, object_hook: Callable[[dict[str, JsonValue]], JsonValue] | None = None
) -> JsonObject:
    """The JSON object that ``data`` holds.

    Args:
        data: the text.
        what: what it is, for messages.
        object_hook: what stands for an object; one that drops objects saves the memory that they take.

    Raises:
        FormatError: if it is not JSON, not an object, or nested or cut up absurdly; the message starts with ``what``.
    """
    _check_containers(data, what)
    try:
        value = json.loads(data, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {str(error)[:200]}") from error
    return as_object(value, what)


def parse_without(
    data: bytes, what: str, key: str, kept: Callable[[Sequence[JsonValue]], Sequence[int]]
) -> tuple[JsonObject, int, list[tuple[int, JsonValue]]] | None:
    """A JSON object without the elements of one long array, which take much memory and never exist all at once.

    The array is found as it is written without white space, and parsed in pieces. Those are cut where it looks as if
    one object ended and the next one began. Each must be a list of values, and the rest of the text, with one value in
    their place, an object with just that value in the array; then the whole text means what the parts do.

    Args:
        data: the text.
        what: what it is, for messages.
        key: the key of the array.
        kept: the positions, among some elements, of those that are to be kept.

    Returns:
        The object, whose array is empty; how many elements that has; and those that are kept, with their positions.
        ``None`` if the text has to be parsed as a whole, to find out what it is.

    Raises:
        FormatError: if it is cut up absurdly.
    """
    _check_containers(data, what)
    opening = b'"%b":[{' % key.encode()
    begin, end = data.find(opening) + len(opening) - 1, data.rfind(b"}]") + 1
    if begin < len(opening) - 1 or end <= begin:
        return None
    mark = os.urandom(_MARK_SIZE).hex()
    count = 0
    found: list[tuple[int, JsonValue]] = []
    try:
        value = json.loads(b'%b"%b"%b' % (data[:begin], mark.encode(), data[end:]))
        if not isinstance(value, dict) or value.get(key) != [mark]:
            return None
        while begin < end:
            cut = data.find(b"},{", begin + _PIECE_SIZE, end)
            cut = end if cut < 0 else cut + 1
            piece = json.loads(b"[%b]" % data[begin:cut])
            found += [(count + number, piece[number]) for number in kept(piece)]
            count += len(piece)
            begin = cut + 1
    except (ValueError, RecursionError):
        return None
    value[key] = []
    return value, count, found


def encode(value: JsonValue, *, sort_keys: bool = True) -> bytes:
    """``value`` as the format writes it: no white space, UTF-8, keys sorted unless told otherwise."""
    return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def _check_containers(data: bytes, what: str) -> None:
    if data.count(b"[") + data.count(b"{") > _FREE_CONTAINERS + len(data) // _MIN_CONTAINER_SIZE:
        raise FormatError(f"{what} consists of absurdly many JSON objects or arrays")


def as_object(value: JsonValue, what: str) -> JsonObject:
    """``value`` if it is an object.

    Raises:
        FormatError: otherwise.
    """
    if not isinstance(value, Mapping):
        raise FormatError(f"{what} is not a JSON object")
    return value


def as_list(value: JsonValue, what: str) -> Sequence[JsonValue]:
    """``value`` if it is an array.

    Raises:
        FormatError: otherwise.
    """
    if not isinstance(value, list):
        raise FormatError(f"{what} is not a JSON array")
    return value


def as_text(value: JsonValue, what: str) -> str:
    """``value`` if it is a string.

    Raises:
        FormatError: otherwise.
    """
    if not isinstance(value, str):
        raise FormatError(f"{what} is not a JSON string")
    return value


def as_size(value: JsonValue, what: str) -> int:
    """``value`` if it is a whole number from 0 to 2^63 - 1 (image-spec: ``size`` is an int64).

    Raises:
        FormatError: otherwise.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise FormatError(f"{what} is not a size in bytes")
    return value
