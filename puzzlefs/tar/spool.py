"""The bytes of an archive, twice: once in a row for whoever cuts it into members, and later anywhere for whoever needs
what is in the files.

An archive in an ordinary file that is not compressed is read where it is, and its contents are passed over the first
time. Anything else, a pipe or a compressed file, is kept in one temporary file without a name, at the same places;
stretches of zeros take no room there. So a place in the archive says where a content is, in both cases.

For one thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self, cast

from puzzlefs.blobs.host import storage_errors
from puzzlefs.blobs.layout import TEMPORARY_PREFIX
from puzzlefs.builder.scan import identity_of
from puzzlefs.errors import FormatError, SourceError, StorageError
from puzzlefs.tar.records import Segment
from puzzlefs.tar.uncompress import LONGEST_MAGIC, ByteStream, Uncompressed, compression_of

_WINDOW: Final = 1 << 20
_WORTH_LOOKING: Final = 4 * _WINDOW
"""Bytes of the smallest file in which holes are looked for."""
_LOOK: Final = 64 << 10
"""Bytes that are read at a time where most of them may be passed over."""


class Archive:
    """An archive, open for reading. A context manager.

    Attributes:
        name: what it is called in messages.
        position: where reading is, in bytes of the archive without what it is wrapped in.
        total: bytes of the archive, 0 where they are not known.
    """

    def __init__(self, source: BinaryIO, name: str, directory: Path) -> None:
        """Begin to read.

        Args:
            source: the archive, from where it stands on; not closed here.
            name: what it is called in messages.
            directory: where there may be a temporary file.

        Raises:
            FormatError: if it is empty.
            SourceError: if it cannot be read.
            StorageError: if there can be no temporary file.
        """
        self.name = name
        self.position = 0
        self.total = 0
        self._buffer = memoryview(bytearray(_WINDOW))
        self._start = self._stop = 0
        self._spool: BinaryIO | None = None
        self._stream: ByteStream = (
            _OneRead(source) if isinstance(source, io.BufferedIOBase) else cast("ByteStream", source)
        )
        self._fd = -1
        self._offset = 0
        self._identity = b""
        try:
            self._open(source, directory)
        except BaseException:
            self.close()
            raise

    def _open(self, source: BinaryIO, directory: Path) -> None:
        raw = getattr(source, "raw", source)
        if isinstance(raw, io.FileIO):  # others may have a descriptor, too, of what they decode
            fd = raw.fileno()
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                offset = source.tell()
                if not compression_of(self._magic_at(fd, offset)):
                    self._fd, self._offset, self._identity = fd, offset, identity_of(status)
                    self.total = status.st_size - offset
                    if self.total <= 0:
                        raise self._empty()
                    return
            elif stat.S_ISFIFO(status.st_mode):
                with contextlib.suppress(OSError):  # this user may not have so large ones
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _WINDOW)
        count = self._receive()
        if not count:
            raise self._empty()
        beginning = bytes(self._buffer[:count])
        if compression_of(beginning):
            self._stream = Uncompressed(self._stream, beginning)
            count = 0
        with storage_errors("make a temporary file in", directory):
            self._directory = directory
            # where it has a name for a moment, and the program is killed then, ``gc`` finds it by that
            self._spool = tempfile.TemporaryFile(  # noqa: SIM115  closed by ``close``
                prefix=TEMPORARY_PREFIX, dir=directory, buffering=0
            )
        self._fd = self._spool.fileno()
        self._received(count)

    # ---- in a row

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer at the end.

        Raises:
            FormatError: if what the archive is wrapped in is damaged.
            SourceError: if it cannot be read.
            StorageError: if it cannot be kept.
        """
        if self._stop - self._start >= size:
            data = bytes(self._buffer[self._start : self._start + size])
            self._start += size
            self.position += size
            return data
        parts: list[bytes] = []
        while size and (self._start < self._stop or self._fill()):
            step = min(size, self._stop - self._start)
            parts.append(bytes(self._buffer[self._start : self._start + step]))
            self._start += step
            self.position += step
            size -= step
        return b"".join(parts)

    def skip(self, size: int) -> bool:
        """Pass over ``size`` bytes; whether there are so many. Raises as ``read``."""
        while size:
            if self._start == self._stop:
                if self._spool is None and size > _LOOK:
                    if self.position + size > self.total:
                        return False
                    self.position += size
                    return True
                if not self._fill():
                    return False
            step = min(size, self._stop - self._start)
            self._start += step
            self.position += step
            size -= step
        return True

    def drain(self) -> bool:
        """Read to the end; whether there is anything but zeros. Raises as ``read``."""
        found = False
        while self._start < self._stop or self._fill():
            found = found or bool(bytes(self._buffer[self._start : self._stop]).strip(b"\0"))
            self.position += self._stop - self._start
            self._start = self._stop
        return found

    # ---- anywhere

    def readinto_at(self, buffer: memoryview, position: int) -> None:
        """Fill ``buffer`` with the bytes of the archive from ``position`` on, which have been read or skipped.

        Raises:
            SourceError: if they cannot be read, or are gone.
        """
        filled = 0
        try:
            while filled < len(buffer):
                with buffer[filled:] as rest:
                    count = os.preadv(self._fd, [rest], self._place(position + filled))
                if not count:
                    raise self._changed()
                filled += count
        except OSError as error:
            raise self._failure(error) from error

    def data_in(self, position: int, length: int) -> Iterator[Segment]:
        """Where, in ``length`` bytes from ``position`` on, there may be anything but zeros: beginnings and lengths.

        Raises as ``readinto_at``.
        """
        if length < _WORTH_LOOKING:
            yield position, length
            return
        start, stop = self._place(position), self._place(position) + length
        while start < stop:
            try:
                data = os.lseek(self._fd, start, os.SEEK_DATA)
                end = min(os.lseek(self._fd, data, os.SEEK_HOLE), stop)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data up to the end
                    return
                data, end = start, stop  # it knows of no holes
            if data < stop:
                yield position + data - self._place(position), end - data
            start = max(end, data)

    def check_unchanged(self) -> None:
        """Make sure that an archive that is read where it is has not been written to meanwhile.

        Raises:
            SourceError: if it has.
        """
        try:
            is_same = not self._identity or identity_of(os.fstat(self._fd)) == self._identity
        except OSError as error:
            raise self._failure(error) from error
        if not is_same:
            raise self._changed()

    def close(self) -> None:
        """Give the temporary file back. Calling it twice is fine."""
        if self._spool is not None:
            with contextlib.suppress(OSError):  # nobody needs it any more
                self._spool.close()
            self._spool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- inside

    def _place(self, position: int) -> int:
        return position if self._spool is not None else self._offset + position

    def _magic_at(self, fd: int, offset: int) -> bytes:
        try:
            return os.pread(fd, LONGEST_MAGIC, offset)
        except OSError as error:
            raise self._failure(error) from error

    def _fill(self) -> bool:
        """Read on where nothing is left; whether there was something."""
        if self._spool is None:
            try:
                count = os.preadv(self._fd, [self._buffer[:_LOOK]], self._place(self.position))
            except OSError as error:
                raise self._failure(error) from error
            self._start, self._stop = 0, count
            return count > 0
        count = self._receive()
        self._received(count)
        return count > 0

    def _receive(self) -> int:
        """Fill the buffer from the stream, as far as there is something; how many bytes that is."""
        filled = 0
        try:
            while filled < len(self._buffer):  # a pipe gives little at a time
                count = self._stream.readinto(self._buffer[filled:])
                if not count:
                    break
                filled += count
        except OSError as error:
            raise self._failure(error) from error
        return filled

    def _received(self, count: int) -> None:
        """Keep what has come in."""
        self._start, self._stop = 0, count
        data = self._buffer[:count]
        place = self.position
        try:
            if _ZEROS.startswith(data):
                os.ftruncate(self._fd, place + count)  # a hole
                return
            while data:
                written = os.pwrite(self._fd, data, place)
                place += written
                data = data[written:]
        except OSError as error:
            raise StorageError(
                f"cannot keep what is in {self.name} in a temporary file in {self._directory}: {error.strerror}",
                hint="it takes as much room as the archive, uncompressed, beside the image",
            ) from error

    def _empty(self) -> FormatError:
        return FormatError(f"{self.name} is empty", hint="a tar archive is expected")

    def _failure(self, error: OSError) -> SourceError:
        return SourceError(f"cannot read {self.name}: {error.strerror or error}")

    def _changed(self) -> SourceError:
        return SourceError(f"{self.name} changed while it was read", hint="import a file that nobody writes to")


class _OneRead:
    """A ``ByteStream`` that asks a buffered reader for what one read of what is below it gives.

    To fill a buffer, such a reader reads again and again, and looks for signals only where it was interrupted while it
    waited: one that came while there was something to read would wait until there is more.
    """

    def __init__(self, source: io.BufferedIOBase) -> None:
        self.readinto = source.readinto1


_ZEROS: Final = bytes(_WINDOW)
