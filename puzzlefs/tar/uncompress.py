"""What an archive is wrapped in: recognised by its first bytes, unwrapped as a stream with bounded memory.

Several streams one behind the other are one, as ``gzip``, ``xz`` and ``zstd`` have it. Checksums of the wrapping are
checked when its end is read. Zeros behind the end are padding.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Final, Protocol

import zstandard

from puzzlefs.errors import FormatError

LONGEST_MAGIC: Final = 6
_BLOCK: Final = 64 << 10
_MAX_XZ_MEMORY: Final = 512 << 20
"""Bytes that ``xz`` may ask for; what its strongest preset makes takes 65 MiB."""
_MAX_ZSTD_WINDOW: Final = 1 << 27
"""Bytes of the largest window: what ``zstd`` itself takes without being asked."""
_ZSTD_STEP: Final = 2 << 10
_BZIP2_BLOCKS: Final = (b"1A", b"\x17r")
"""How the first block begins, and what is there instead if there is none: names of files begin with ``BZh``, too."""

_ERRORS: Final = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError)


class ByteStream(Protocol):
    """Where bytes come from, one after the other."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill the buffer, or a part of it; 0 at the end."""
        ...


class _Decoder(Protocol):
    """One compressed stream, as the standard library has it."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Gzip:
    """``zlib`` with the ways of the other two."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


class _Zstd:
    """``zstandard`` with the ways of the others. It cannot hold output back, and four bytes can be a block of 128 KiB;
    so it gets a little at a time, for 64 MiB at most."""

    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj()
        self._input = b""
        self._pending = memoryview(b"")

    @property
    def eof(self) -> bool:
        return self._decoder.eof and not self._pending

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data + self._input

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        self._input += data
        pending = self._pending
        while not pending and self._input and not self._decoder.eof:
            pending = memoryview(self._decoder.decompress(self._input[:_ZSTD_STEP]))
            self._input = self._input[_ZSTD_STEP:]
        self._pending = pending[max_length:]
        return bytes(pending[:max_length])


_KINDS: Final[tuple[tuple[bytes, str, Callable[[], _Decoder]], ...]] = (
    (b"\x1f\x8b", "gzip", _Gzip),
    (b"\xfd7zXZ\0", "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MAX_XZ_MEMORY)),
    (b"\x28\xb5\x2f\xfd", "zstd", _Zstd),
    *((bytes([0x50 + number]) + b"\x2a\x4d\x18", "zstd", _Zstd) for number in range(16)),  # frames to be skipped
    *((b"BZh%d" % level + block, "bzip2", bz2.BZ2Decompressor) for level in range(1, 10) for block in _BZIP2_BLOCKS),
)


def compression_of(beginning: bytes) -> str:
    """What a file that begins like that is wrapped in: ``gzip``, ``xz``, ``zstd``, ``bzip2``, or nothing."""
    return next((name for magic, name, _ in _KINDS if beginning.startswith(magic)), "")


class Uncompressed:
    """A ``ByteStream`` of what is in a compressed one."""

    def __init__(self, source: ByteStream, beginning: bytes) -> None:
        """Unwrap ``beginning``, whose first bytes say how, and what ``source`` has behind it."""
        self._name, self._make = next((name, make) for magic, name, make in _KINDS if beginning.startswith(magic))
        self._source = source
        self._decoder = self._make()
        self._input = beginning
        self._buffer = memoryview(bytearray(_BLOCK))
        self._is_over = False

    def readinto(self, buffer: memoryview, /) -> int:
        """See ``ByteStream``.

        Raises:
            FormatError: if the wrapping is damaged, ends early, or takes absurdly much memory.
            OSError: if the source cannot be read.
        """
        while not self._is_over:
            if self._decoder.eof:
                self._next_stream()
                continue
            data = self._decompress(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            if not self._decoder.eof:
                self._input = self._read()
                if not self._input:
                    raise FormatError(f"the {self._name} stream ends early", hint="the archive is incomplete")
        return 0

    def _decompress(self, size: int) -> bytes:
        data, self._input = self._input, b""
        try:
            return self._decoder.decompress(data, size)
        except _ERRORS as error:
            raise FormatError(
                f"the {self._name} stream is damaged: {error}", hint="get the archive once more"
            ) from error

    def _next_stream(self) -> None:
        rest = self._decoder.unused_data.lstrip(b"\0")
        while not rest:
            data = self._read()
            if not data:
                self._is_over = True
                return
            rest = data.lstrip(b"\0")
        while len(rest) < LONGEST_MAGIC and (more := self._read()):
            rest += more
        if compression_of(rest) != self._name:
            raise FormatError(
                f"there is something else behind the {self._name} stream", hint="the archive must end with it"
            )
        self._decoder, self._input = self._make(), rest

    def _read(self) -> bytes:
        return bytes(self._buffer[: self._source.readinto(self._buffer) or 0])
