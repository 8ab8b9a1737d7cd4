"""Digests as values: 32 raw bytes of SHA-256 that know what they are digests of.

Two kinds must not be mixed up, so they are two types:

* ``Digest`` — the sha256 of a stored blob's bytes, which is also the blob's name;
* ``VerityDigest`` — the fs-verity *file digest* of a blob: the hash of ``struct fsverity_descriptor``, which
  contains the root of the Merkle tree over the same bytes.

Both are immutable ``bytes`` of length 32, so they hash and compare at the speed of bytes and pack into a message
as they are. Thread safe.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from typing import Final, Self

from puzzlefs.errors import FormatError

SHA256_SIZE = 32
"""Bytes of a raw SHA-256 digest."""

_HEX = re.compile(r"[0-9a-f]{64}")
_PREFIX = "sha256:"


class _Sha256(bytes):
    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        if len(raw) != SHA256_SIZE:
            raise FormatError(f"a digest has {SHA256_SIZE} bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """The digest that 64 lower-case hex digits stand for.

        Raises:
            FormatError: if ``text`` is anything else.
        """
        if not _HEX.fullmatch(text):
            raise FormatError(f"{text[:80]!r} is not a sha256 digest: 64 lower-case hex digits are expected")
        return cls(bytes.fromhex(text))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"


class Digest(_Sha256):
    """The SHA-256 of a stored blob."""

    __slots__ = ()

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """The digest of ``data``."""
        return cls(hashlib.sha256(data).digest())

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest that an OCI descriptor writes as ``sha256:<64 hex>``.

        Raises:
            FormatError: for another algorithm or malformed digits (image-spec, descriptor.md, "Digests").
        """
        if not text.startswith(_PREFIX):
            raise FormatError(f"{text[:80]!r} is not a sha256 digest: 'sha256:' and 64 hex digits are expected")
        return cls.from_hex(text[len(_PREFIX) :])

    @property
    def oci(self) -> str:
        """The form that OCI descriptors use: ``sha256:<64 hex>``."""
        return _PREFIX + self.hex()


class VerityDigest(_Sha256):
    """The fs-verity file digest (SHA-256, 4096-byte blocks, no salt) of a file."""

    __slots__ = ()


as_digest: Final[Callable[[bytes | memoryview], Digest]] = partial(bytes.__new__, Digest)
"""A ``Digest`` of bytes that are known to be 32; twice as quick as calling the class."""

as_verity_digest: Final[Callable[[bytes | memoryview], VerityDigest]] = partial(bytes.__new__, VerityDigest)
"""Likewise."""


def digests_of(hexadecimal: str) -> list[Digest]:
    """The digests that stand in hex one behind the other, 64 digits each: many are converted at once.

    Raises:
        ValueError: if there is something else than hex digits.
    """
    raw = bytes.fromhex(hexadecimal)
    return [as_digest(raw[at : at + SHA256_SIZE]) for at in range(0, len(raw), SHA256_SIZE)]
