"""One entry of a tree → the header blocks of a tar member. Pure: values in, bytes out.

The format is POSIX.1-2001 ("pax"): a ustar header, and in front of it an extended header with what does not fit. What
is written depends on the entry alone, so the same image always gives the same archive; a change here changes the bytes
of every archive, which people may have signed.

* Names and targets of up to 100 ASCII bytes stand in the ustar header (names of up to 255 if they can be divided at a
  slash), all others in records. Those that are not UTF-8 are preceded by ``hdrcharset=BINARY``, as POSIX asks for.
* Extended attributes are ``SCHILY.xattr.`` records with raw values; in keys ``%`` and ``=`` are written ``%25`` and
  ``%3D``, as GNU tar does it. ACLs and capabilities are extended attributes, too.
* Times have as many digits behind the point as they need.
* Files with holes are in GNU's sparse format 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from puzzlefs.tar.records import BLOCK_SIZE, RECORD_SIZE

_MAX_OCTAL_SIZE: Final = 0o77777777777
_MAX_OCTAL_ID: Final = 0o7777777
_NS: Final = 10**9
_NAME_SIZE: Final = 100
_PREFIX_SIZE: Final = 155
_PAX_NAME: Final = b"././@PaxHeader"
_SPARSE_DIRECTORY: Final = b"GNUSparseFile.0/"

_EXTENDED: Final = b"x"

NO_XATTRS: Final[Mapping[bytes, bytes]] = {}


def member_header(
    kind: bytes,
    name: bytes,
    *,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    size: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[bytes, bytes] = NO_XATTRS,
    real_size: int | None = None,
) -> bytes:
    """The blocks in front of a member's data.

    Args:
        kind: its type flag.
        name: its name; that of a directory ends with a slash.
        mode: the 12 permission bits.
        uid: owner.
        gid: group.
        mtime_ns: nanoseconds since the epoch.
        size: bytes of data that follow; of a file with holes the map of them included.
        target: what a link points to.
        device: major and minor number of a device.
        xattrs: extended attributes.
        real_size: bytes of a file with holes, ``None`` if it is stored whole.
    """
    seconds, ns = divmod(mtime_ns, _NS)
    records: list[tuple[bytes, bytes]] = []
    header_name, prefix = name, b""
    if real_size is not None:
        parent, slash, last = name.rpartition(b"/")
        header_name = parent + slash + _SPARSE_DIRECTORY + last
        records += (
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name),
            (b"GNU.sparse.realsize", b"%d" % real_size),
        )
        if len(header_name) > _NAME_SIZE or not header_name.isascii():
            records.append((b"path", header_name))  # older readers see this one
    elif len(name) > _NAME_SIZE or not name.isascii():
        header_name, prefix = _divided(name)
        if not header_name:
            header_name = name
            records.append((b"path", name))
    if target and (len(target) > _NAME_SIZE or not target.isascii()):
        records.append((b"linkpath", target))
    if uid > _MAX_OCTAL_ID:
        records.append((b"uid", b"%d" % uid))
        uid = 0
    if gid > _MAX_OCTAL_ID:
        records.append((b"gid", b"%d" % gid))
        gid = 0
    if ns or not 0 <= seconds <= _MAX_OCTAL_SIZE:
        records.append((b"mtime", _decimal(mtime_ns)))
        seconds = min(max(seconds, 0), _MAX_OCTAL_SIZE)
    if size > _MAX_OCTAL_SIZE:
        records.append((b"size", b"%d" % size))
        size = 0
    if xattrs:
        records += ((b"SCHILY.xattr." + _escaped(key), value) for key, value in sorted(xattrs.items()))
    header = _ustar(kind, header_name, prefix, mode, uid, gid, size, seconds, target, device)
    if not records:
        return header
    if not all(_is_utf8(value) for key, value in records if key in _NAMES):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    data = b"".join(map(_record, records))
    extended = _ustar(_EXTENDED, _PAX_NAME, b"", 0o644, 0, 0, len(data), 0, b"", (0, 0))
    return b"".join((extended, data, padding(len(data)), header))


_NAMES: Final = frozenset({b"path", b"linkpath", b"GNU.sparse.name"})


def sparse_map(segments: Sequence[tuple[int, int]], real_size: int) -> bytes:
    """What precedes the data of a file with holes: where each of the segments of data begins, and its length."""
    numbers: list[int] = [0]
    for offset, length in segments:
        numbers += (offset, length)
    if not segments or sum(segments[-1]) < real_size:
        numbers += (real_size, 0)  # as GNU tar ends a map whose file ends with a hole
    numbers[0] = len(numbers) // 2
    text = b"".join(b"%d\n" % number for number in numbers)
    return text + padding(len(text))


def padding(size: int) -> bytes:
    """The zeros that fill up the last block of ``size`` bytes."""
    return bytes(-size % BLOCK_SIZE)


def end_of_archive(size: int) -> bytes:
    """What ends an archive of ``size`` bytes: two blocks of zeros at least, up to a whole record."""
    return bytes(2 * BLOCK_SIZE + -(size + 2 * BLOCK_SIZE) % RECORD_SIZE)


def _ustar(
    kind: bytes,
    name: bytes,
    prefix: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    target: bytes,
    device: tuple[int, int],
) -> bytes:
    front = name[:_NAME_SIZE].ljust(_NAME_SIZE, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        mode,
        uid,
        gid,
        size,
        mtime,
    )
    back, back_sum = _back(kind, prefix, target, device)
    return b"%b%06o\0 %b" % (front, sum(front) + 8 * 0x20 + back_sum, back)


@lru_cache(maxsize=256)
def _back(kind: bytes, prefix: bytes, target: bytes, device: tuple[int, int]) -> tuple[bytes, int]:
    """A header from the type flag on, which most members have in common, and the sum of its bytes."""
    back = b"%b%bustar\x0000%64b%07o\0%07o\0%b%12b" % (
        kind,
        target[:_NAME_SIZE].ljust(_NAME_SIZE, b"\0"),
        _NO_OWNER_NAMES,
        *device,
        prefix.ljust(_PREFIX_SIZE, b"\0"),
        _NO_OWNER_NAMES[:12],
    )
    return back, sum(back)


_NO_OWNER_NAMES: Final = bytes(64)


def _divided(name: bytes) -> tuple[bytes, bytes]:
    """A long name as the two fields of a ustar header; two empty ones if it cannot be divided."""
    if len(name) > _PREFIX_SIZE + 1 + _NAME_SIZE or not name.isascii():
        return b"", b""
    cut = name.rfind(b"/", 0, min(_PREFIX_SIZE, len(name) - 2) + 1)  # a directory's last slash does not divide
    if cut <= 0 or len(name) - cut - 1 > _NAME_SIZE:
        return b"", b""
    return name[cut + 1 :], name[:cut]


def _record(record: tuple[bytes, bytes]) -> bytes:
    """A record of an extended header: its own length in decimal, key, value."""
    key, value = record
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


def _decimal(ns: int) -> bytes:
    seconds, rest = divmod(abs(ns), _NS)
    text = (b"%d.%09d" % (seconds, rest)).rstrip(b"0").rstrip(b".")
    return b"-" + text if ns < 0 else text


def _escaped(key: bytes) -> bytes:
    return key.replace(b"%", b"%25").replace(b"=", b"%3D")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
