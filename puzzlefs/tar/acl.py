"""ACLs as text, which libarchive and star write into archives → the extended attributes that the kernel has for them.

The text is that of POSIX.1e, with a number behind the name of a user or group: ``user:wheel:rwx:1000``. Names are not
looked up: what they mean on this machine says nothing about the image. The binary form is that of
``include/uapi/linux/posix_acl_xattr.h``, sorted as the kernel returns it.
"""

from __future__ import annotations

import struct
from typing import Final

from puzzlefs.errors import FormatError
from puzzlefs.tar.records import parse_id

ACL_KEYS: Final = {
    b"SCHILY.acl.access": b"system.posix_acl_access",
    b"SCHILY.acl.default": b"system.posix_acl_default",
}
"""The records, and the extended attributes that they stand for."""

_VERSION: Final = struct.pack("<I", 2)
_entry = struct.Struct("<HHI")
_NO_ID: Final = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS: Final = {
    (b"user", False): _USER_OBJ,
    (b"user", True): _USER,
    (b"group", False): _GROUP_OBJ,
    (b"group", True): _GROUP,
    (b"mask", False): _MASK,
    (b"other", False): _OTHER,
}
_SHIFTS: Final = {_USER_OBJ: 6, _MASK: 3, _OTHER: 0}
_BITS: Final = ((b"r", 4), (b"w", 2), (b"x", 1))


def acl_xattr(text: bytes, *, is_default: bool) -> bytes:
    """The value of the extended attribute; empty if there is to be none, since an access ACL says no more than the
    permission bits do, or a default one says nothing.

    Raises:
        FormatError: if the text is malformed, or names somebody without a number.
    """
    entries: list[tuple[int, int, int]] = []
    for line in text.replace(b"\n", b",").split(b","):
        line = line.partition(b"#")[0].strip()
        if not line:
            continue
        fields = [field.strip() for field in line.split(b":")]
        name = fields[1] if len(fields) > 2 else b""
        tag = _TAGS.get((fields[0], bool(name)))
        number = fields[3] if len(fields) > 3 else name
        if tag is None or len(fields) < 2:
            raise FormatError(f"the ACL entry {line[:80]!r} cannot be understood")
        letters = fields[2] if len(fields) > 2 else fields[1]
        permissions = sum(bit for letter, bit in _BITS if letter in letters)
        entries.append((tag, parse_id(number) if name else _NO_ID, permissions))
    if not entries or (len(entries) <= 3 and not is_default):
        return b""
    try:
        return _VERSION + b"".join(_entry.pack(tag, bits, number) for tag, number, bits in sorted(entries))
    except struct.error as error:
        raise FormatError("an ACL names a user or group that cannot be") from error


def mode_with_acl(mode: int, xattr: bytes) -> int:
    """The permission bits of a file with this access ACL, as the kernel sets them: the group has the mask's."""
    for tag, bits, _ in _entry.iter_unpack(xattr[len(_VERSION) :]):
        if tag in _SHIFTS:
            mode = mode & ~(7 << _SHIFTS[tag]) | bits << _SHIFTS[tag]
    return mode
