"""What the blocks of a tar archive say: header blocks, extended headers, maps of holes. Pure: bytes in, values out.

Known are the formats of V7, POSIX (ustar and pax) and GNU, as GNU tar, libarchive and Python write them. Every number
is checked where it is read: it is not negative, and no larger than a file can be. What is malformed is a
``FormatError``; whoever reads the archive says where.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from puzzlefs.errors import FormatError

BLOCK_SIZE: Final = 512
"""Bytes of a block; headers begin at multiples of it."""

RECORD_SIZE: Final = 20 * BLOCK_SIZE
"""Bytes of what an archive is a multiple of (the blocking factor 20 that every tar has)."""

ZERO_BLOCK: Final = bytes(BLOCK_SIZE)

REGULAR: Final = b"0"
"""This and the following are the type flags of POSIX that members of images have."""
HARD_LINK: Final = b"1"
SYMLINK: Final = b"2"
CHAR_DEVICE: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"

MAX_SIZE: Final = (1 << 63) - 1
"""The largest size of a file."""

MAX_RECORDS: Final = 1 << 18
"""Records of the extended headers of one member. Their bytes are bounded too, but the smallest ones take many times
their size in memory."""

MAX_SEGMENTS: Final = 1 << 18
"""Runs of data of one file with holes."""

_NS: Final = 10**9
_MAX_DIGITS: Final = 24
_INT64: Final = 1 << 63
_BINARY_POSITIVE: Final = 0x80
_BINARY_NEGATIVE: Final = 0xFF
_CHECKSUM: Final = slice(148, 156)
_OLD_SPARSE_MAP: Final = 386
_OLD_SPARSE_ENTRIES: Final = 4
_OLD_SPARSE_EXTENDED: Final = 482
_OLD_SPARSE_REAL_SIZE: Final = slice(483, 495)
_EXTENSION_ENTRIES: Final = 21
_EXTENSION_EXTENDED: Final = 504
_STANDARD: Final = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")
_DECIMAL: Final = re.compile(rb"(-?)(\d{1,20})(?:\.(\d{0,40}))?(?:e([+-]?\d{1,2}))?\Z")

Segment = tuple[int, int]
"""Where in a file a run of data begins, and its bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header block.

    Attributes:
        kind: the type flag, one byte.
        name: the name, as it stands there; prefix and name joined.
        target: what a link points to.
        mode: the 12 permission bits.
        uid: owner.
        gid: group.
        size: bytes of data that follow.
        mtime: seconds since the epoch.
        major: of a device.
        minor: of a device.
        block: the block itself.
    """

    kind: bytes
    name: bytes
    target: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    major: int
    minor: int
    block: bytes


def parse_header(block: bytes) -> Header:
    """What a header block says.

    Raises:
        FormatError: if it is none.
    """
    _check_checksum(block)
    magic = block[257:263]
    name = _text(block[0:100])
    prefix = _text(block[345:500]) if magic == b"ustar\0" else b""  # GNU's own format has other things there
    kind = block[156:157]
    is_device = kind in (CHAR_DEVICE, BLOCK_DEVICE)
    return Header(
        kind=REGULAR if kind in (b"\0", b"7") else kind,
        name=prefix + b"/" + name if prefix else name,
        target=_text(block[157:257]),
        mode=_number(block[100:108], "mode") & 0o7777,
        uid=_number(block[108:116], "owner"),
        gid=_number(block[116:124], "group"),
        size=_size(block[124:136], "size"),
        mtime=_number(block[136:148], "time", signed=True),
        major=_number(block[329:337], "device number") if is_device else 0,
        minor=_number(block[337:345], "device number") if is_device else 0,
        block=block,
    )


def parse_extended(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of an extended header in their order.

    Raises:
        FormatError: if it is malformed.
    """
    records: list[tuple[bytes, bytes]] = []
    start = 0
    while start < len(data) and data[start]:  # some writers fill up with zeros
        space = data.find(b" ", start, start + _MAX_DIGITS)
        digits = data[start:space] if space > 0 else b""
        stop = start + int(digits) if digits.isdigit() else 0
        equals = data.find(b"=", space, stop)
        if not space < stop <= len(data) or data[stop - 1 : stop] != b"\n" or equals <= space + 1:
            raise FormatError("an extended header is malformed")
        records.append((data[space + 1 : equals], data[equals + 1 : stop - 1]))
        check_records(records)
        start = stop
    return records


def check_records(records: Sized) -> None:
    """Refuse absurdly many.

    Raises:
        FormatError: if there are.
    """
    if len(records) > MAX_RECORDS:
        raise FormatError(f"an extended header has more than {MAX_RECORDS} records")


def check_map_size(count: int) -> None:
    """Refuse a map of holes of so many runs of data.

    Raises:
        FormatError: if there are absurdly many.
    """
    if count > MAX_SEGMENTS:
        raise FormatError(f"a file with holes has more than {MAX_SEGMENTS} runs of data")


def parse_size(text: bytes) -> int:
    """A size in decimal, as records have them.

    Raises:
        FormatError: if it is none.
    """
    value = int(text) if text.isdigit() and len(text) < _MAX_DIGITS else -1
    if not 0 <= value <= MAX_SIZE:
        raise FormatError(f"{text[:80]!r} is not a size")
    return value


def parse_id(text: bytes) -> int:
    """An owner or a group in decimal.

    Raises:
        FormatError: if it is none.
    """
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise FormatError(f"{text[:80]!r} is not a user or a group")
    return int(text)


def parse_time(text: bytes) -> int:
    """A time in decimal seconds, in nanoseconds; what is less is dropped. Python writes small ones as ``1.7e-08``.

    Raises:
        FormatError: if it is none.
    """
    found = _DECIMAL.match(text)
    if found is None:
        raise FormatError(f"{text[:80]!r} is not a time")
    fraction = found[3] or b""
    digits = int(found[2] + fraction)
    exponent = int(found[4] or b"0") + 9 - len(fraction)
    value = digits * 10**exponent if exponent >= 0 else digits // 10**-exponent
    return _clamped(-value if found[1] else value)


def seconds_to_ns(seconds: int) -> int:
    """A time of a header in nanoseconds."""
    return _clamped(seconds * _NS)


# ---- extended attributes


def gnu_key(escaped: bytes) -> bytes:
    """The key behind ``SCHILY.xattr.``, as GNU tar escapes it."""
    return escaped.replace(b"%3D", b"=").replace(b"%25", b"%")


def libarchive_xattr(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Key and value of a ``LIBARCHIVE.xattr.`` record, which escapes the one and has the other in base 64.

    Raises:
        FormatError: if they are malformed.
    """
    try:
        return unquote_to_bytes(key), binascii.a2b_base64(value + b"=" * (-len(value) % 4))
    except binascii.Error as error:
        raise FormatError(f"the value of the extended attribute {key[:80]!r} is not base 64") from error


# ---- maps of holes


def old_sparse_map(header: Header) -> tuple[int, list[Segment], bool]:
    """Of a header of GNU's type ``S``: the real size, the first segments, and whether extension blocks follow.

    Raises:
        FormatError: if it is malformed.
    """
    block = header.block
    segments = _old_segments(block[_OLD_SPARSE_MAP:], _OLD_SPARSE_ENTRIES)
    return _size(block[_OLD_SPARSE_REAL_SIZE], "size"), segments, bool(block[_OLD_SPARSE_EXTENDED])


def old_sparse_extension(block: bytes) -> tuple[list[Segment], bool]:
    """The segments of an extension block, and whether another one follows.

    Raises:
        FormatError: if it is malformed.
    """
    return _old_segments(block, _EXTENSION_ENTRIES), bool(block[_EXTENSION_EXTENDED])


def sparse_records(records: Sequence[tuple[bytes, bytes]]) -> list[Segment]:
    """The segments of GNU's sparse formats 0.0 and 0.1, which stand in the extended header.

    Raises:
        FormatError: if they are malformed.
    """
    numbers: list[bytes] = []
    for key, value in records:
        if key == b"GNU.sparse.map":
            check_map_size(value.count(b",") // 2)
            numbers = value.split(b",") if value else []
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            numbers.append(value)
    return sparse_pairs(numbers)


def sparse_pairs(numbers: Sequence[bytes]) -> list[Segment]:
    """The segments that numbers in decimal stand for; those of format 1.0 stand in front of the data.

    Raises:
        FormatError: if they are malformed.
    """
    if len(numbers) % 2:
        raise FormatError("the map of a file with holes is malformed")
    sizes = list(map(parse_size, numbers))
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def check_segments(segments: Sequence[Segment], size: int, real_size: int) -> list[Segment]:
    """The segments that hold a byte, if they fit one another, ``size`` stored bytes and the size of the file.

    Raises:
        FormatError: if they do not.
    """
    end = stored = 0
    for offset, length in segments:
        if offset < end:
            raise FormatError("the map of a file with holes goes backwards")
        end = offset + length
        stored += length
    if end > real_size or stored != size:
        raise FormatError("the map of a file with holes does not fit the file")
    return [segment for segment in segments if segment[1]]


def wanted_records(records: Sequence[tuple[bytes, bytes]], defaults: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What an extended header says on top of the global one. The last record of a key counts, and an empty one means
    that the header block does."""
    merged = {**defaults, **dict(records)}
    for key in _STANDARD:
        if merged.get(key) == b"":
            del merged[key]
    return merged


# ---- fields of header blocks


def _check_checksum(block: bytes) -> None:
    try:
        expected = _number(block[_CHECKSUM], "checksum")
    except FormatError:
        expected = -1
    rest = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
    unsigned = sum(rest)
    if expected == unsigned:
        return
    # Some old programs summed up signed bytes.
    if expected != unsigned - 256 * sum(byte >= 0x80 for byte in rest):
        raise FormatError("there is no tar header: the checksum is wrong")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, what: str, *, signed: bool = False) -> int:
    first = field[0]
    if first == _BINARY_POSITIVE:
        return int.from_bytes(field[1:], "big")
    if first == _BINARY_NEGATIVE:
        value = int.from_bytes(field, "big", signed=True)
    else:
        text = _text(field).strip(b" ")
        if text.strip(b"01234567"):
            raise FormatError(f"{text!r} is not an octal number: the {what} is malformed")
        value = int(text or b"0", 8)
    if value < 0 and not signed:
        raise FormatError(f"the {what} is negative")
    return value


def _size(field: bytes, what: str) -> int:
    value = _number(field, what)
    if value > MAX_SIZE:
        raise FormatError(f"a file of {value} bytes cannot be")
    return value


def _clamped(ns: int) -> int:
    # The field of an image ends in the year 2262.
    return max(-_INT64, min(_INT64 - 1, ns))


def _old_segments(data: bytes, count: int) -> list[Segment]:
    segments: list[Segment] = []
    for start in range(0, 24 * count, 24):
        if not data[start]:
            break  # the map is over
        segments.append((_size(data[start : start + 12], "map"), _size(data[start + 12 : start + 24], "map")))
    return segments
