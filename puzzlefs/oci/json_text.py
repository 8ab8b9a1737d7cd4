"""JSON as the image-spec's documents use it: bytes ⇄ typed values, nothing in between.

Reading is bounded: the caller bounds the size, and nesting that would exhaust the interpreter is an error of the
document, and so are more objects and arrays than any real document of its size has: a few bytes of text become many of
memory. Writing is exact, because manifests are hashed: keys sorted, no white space, UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from puzzlefs.errors import FormatError

_FREE_CONTAINERS: Final = 10_000
_MIN_CONTAINER_SIZE: Final = 32
"""A document has at most one object or array for this many bytes; a descriptor has three times as many."""

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
    if data.count(b"[") + data.count(b"{") > _FREE_CONTAINERS + len(data) // _MIN_CONTAINER_SIZE:
        raise FormatError(f"{what} consists of absurdly many JSON objects or arrays")
    try:
        value = json.loads(data, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {str(error)[:200]}") from error
    return as_object(value, what)


def encode(value: JsonValue, *, sort_keys: bool = True) -> bytes:
    """``value`` as the format writes it: no white space, UTF-8, keys sorted unless told otherwise."""
    return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


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
