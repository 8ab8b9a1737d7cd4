"""Changes to bytes that know what the bytes are: words of a Cap'n Proto message, JSON, blocks of an archive.

All are functions of the input and a ``random.Random``, so a seed says what happens.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from support.archives import summed

_ODD_BYTES: Final = (0, 1, 0x2E, 0x2F, 0x7F, 0x80, 0xFF)
_WORD = 8
_MASK = (1 << 64) - 1


def any_bytes(data: bytes, rnd: random.Random) -> bytes:
    """Bytes changed, taken out, put in, repeated."""
    changed = bytearray(data)
    for _ in range(rnd.choice((1, 1, 2, 4))):
        at = rnd.randrange(len(changed) + 1)
        match rnd.randrange(6):
            case 0 if changed:
                changed[at % len(changed)] = rnd.choice(_ODD_BYTES)
            case 1 if changed:
                changed[at % len(changed)] ^= 1 << rnd.randrange(8)
            case 2:
                del changed[at : at + rnd.choice((1, 2, 8, 64))]
            case 3:
                changed[at:at] = rnd.randbytes(rnd.choice((1, 2, 8)))
            case 4:
                start = rnd.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + rnd.choice((1, 4, 16, 64))]
            case _:
                del changed[at : None if rnd.random() < 0.1 else at + 1]
    return bytes(changed)


def words_of_message(data: bytes, rnd: random.Random) -> bytes:
    """The words of a Cap'n Proto message: pointers led elsewhere, sizes changed, objects shared or overlapping."""
    count = len(data) // _WORD
    if count < 2 or rnd.random() < 0.1:
        return any_bytes(data, rnd)
    words = list(struct.unpack_from(f"<{count}Q", data))
    for _ in range(rnd.choice((1, 1, 1, 2, 3, 6))):
        at = rnd.randrange(count)
        words[at] = _changed_word(words, at, rnd) & _MASK
    if rnd.random() < 0.05:  # more room behind: of the only segment
        words += [rnd.choice(words) for _ in range(rnd.randrange(1, 20))]
        if words[0] & 0xFFFFFFFF == 0:
            words[0] = (len(words) - 1) << 32
    return struct.pack(f"<{len(words)}Q", *words) + data[count * _WORD :]


def _changed_word(words: Sequence[int], at: int, rnd: random.Random) -> int:
    word = words[at]
    count = len(words)
    match rnd.randrange(12):
        case 0:
            return rnd.choice((0, 1, 2, 3, _MASK, 1 << 63, rnd.getrandbits(64), rnd.randrange(count)))
        case 1:  # a pointer, led elsewhere
            return word & ~(0x3FFFFFFF << 2) | (rnd.randrange(count) - at - 1 & 0x3FFFFFFF) << 2
        case 2:
            return word & ~(0x3FFFFFFF << 2) | ((word >> 2) + rnd.randint(-3, 3) & 0x3FFFFFFF) << 2
        case 3:  # its size, or those of a struct
            return word & 0x7FFFFFFFF | ((word >> 35) + rnd.choice((-8, -1, 1, 8, 1000)) & 0x1FFFFFFF) << 35
        case 4:
            return word ^ rnd.choice((1, 2, 4, 7)) << rnd.choice((0, 32, 35, 48))
        case 5:  # any word of the message, with luck one of the same kind
            return words[rnd.randrange(count)]
        case 6:
            return words[max(at - rnd.randrange(1, 12), 0)]
        case 7:  # far
            return 2 | rnd.randrange(count) << 3 | rnd.choice((0, 0, 1, 2)) << 32 | rnd.choice((0, 4))
        case 8:  # a pointer to whatever, of a shape that is wanted somewhere
            shape = rnd.choice((1 << 32 | 1 << 48, 1 | 7 << 32 | 10 << 35, 1 | 2 << 32 | 32 << 35, 2 << 32 | 1 << 48))
            return shape | (rnd.randrange(count) - at - 1 & 0x3FFFFFFF) << 2
        case 9:
            return word + rnd.choice((-1, 1, 1 << 16, -(1 << 16), 1 << 32))
        case 10:  # one byte: of a name, a kind, the permissions
            shift = 8 * rnd.randrange(8)
            byte: int = rnd.choice((*_ODD_BYTES, *range(10)))
            return word & ~(0xFF << shift) | byte << shift
        case _:
            return word ^ 1 << rnd.randrange(64)


_ODD_VALUES: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 2, 2.0, 1 << 63, 1 << 70, 1e308, "", "a", "\ud800", "sha256:", [], {}, [[]], {"": {}}, ["x"],
)  # fmt: skip


def json_document(data: bytes, rnd: random.Random) -> bytes:
    """A JSON document with values and keys replaced, moved and repeated; now and then just its bytes."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return any_bytes(data, rnd)
    if rnd.random() < 0.25 or not isinstance(document, dict | list):
        return any_bytes(data, rnd)
    for _ in range(rnd.choice((1, 1, 2, 4))):
        _change_json(document, rnd)
    try:
        return json.dumps(document).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return any_bytes(data, rnd)


def _change_json(document: Any, rnd: random.Random) -> None:
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting and len(places) < 2000:
        here = waiting.pop()
        for key in list(here) if isinstance(here, dict) else range(len(here)):
            places.append((here, key))
            if isinstance(here[key], dict | list):
                waiting.append(here[key])
    if not places:
        return
    here, key = rnd.choice(places)
    there, other = rnd.choice(places)
    match rnd.randrange(5):
        case 0:
            here[key] = copy.deepcopy(rnd.choice(_ODD_VALUES))  # it may be changed later
        case 1:
            here[key] = json.loads(json.dumps(there[other]))
        case 2:
            del here[key]
        case 3 if isinstance(here, list):
            here.insert(key, json.loads(json.dumps(there[other])))
        case _ if isinstance(here[key], str) and here[key]:
            at = rnd.randrange(len(here[key]))
            here[key] = here[key][:at] + chr(rnd.choice((0, 0x2F, 0x30, 0x41, 0xD800, 0x10FFFF))) + here[key][at + 1 :]
        case _:
            if isinstance(here, dict):
                here[str(rnd.choice((key, other, "mediaType", "annotations")))] = here.pop(key)


def blocks_of_archive(data: bytes, rnd: random.Random) -> bytes:
    """The blocks of a tar archive: fields of headers changed, blocks moved; mostly with right checksums."""
    changed = bytearray(data)
    for _ in range(rnd.choice((1, 1, 2, 4))):
        if len(changed) < 512:
            return any_bytes(bytes(changed), rnd)
        block = rnd.randrange(len(changed) // 512) * 512
        match rnd.randrange(7):
            case 0 | 1:
                field, size = rnd.choice(
                    ((0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (329, 8),
                     (337, 8), (345, 155), (386, 24), (482, 1), (483, 12))
                )  # fmt: skip
                values = (b"\xff" * 12, b"\x80" + bytes(10) + b"\1", b"7" * 12, bytes(12), b"0" * 12, b"../x\0",
                          b"a/b\0", b"5", b"1", b"x", b"L", b"S", b"g", rnd.randbytes(12))  # fmt: skip
                changed[block + field : block + field + size] = (
                    rnd.choice(values)[:size].ljust(min(size, 12), b"\0")
                    + changed[block + field + min(size, 12) : block + field + size]
                )
            case 2:
                other = rnd.randrange(len(changed) // 512) * 512
                changed[block : block + 512] = changed[other : other + 512]
            case 3:
                other = rnd.randrange(len(changed) // 512) * 512
                changed[block:block] = changed[other : other + 512 * rnd.randrange(1, 4)]
            case 4:
                del changed[block : block + 512 * rnd.randrange(1, 4)]
            case 5:
                start = block + rnd.randrange(512)
                changed[start : start + 3] = rnd.choice((b"\n1 ", b"=\n9", b"999", b"path", b"%3D", rnd.randbytes(3)))
            case _:
                changed = bytearray(any_bytes(bytes(changed), rnd))
    if rnd.random() < 0.9:
        for start in range(0, len(changed) - 511, 512):
            if changed[start + 257 : start + 262] == b"ustar":
                changed[start : start + 512] = summed(bytes(changed[start : start + 512]))
    return bytes(changed)


def framed_words(offset: int) -> Callable[[bytes, random.Random], bytes]:
    """As ``words_of_message``, for a message behind ``offset`` bytes of something else."""

    def mutate(data: bytes, rnd: random.Random) -> bytes:
        if rnd.random() < 0.15:
            return any_bytes(data[:offset], rnd)[:offset].ljust(offset, b"\0") + data[offset:]
        return data[:offset] + words_of_message(data[offset:], rnd)

    return mutate
