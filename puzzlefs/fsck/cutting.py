"""A chunk once more, from the files that it was cut out of.

The metadata say which runs of which files a chunk consists of. If those runs cover it, it is put together again. A
compressed blob is made of that in each way in which this program and the original store chunks: in the frames of
versions 1 and 2, of version 3, of either as the other after a conversion, or one of every 4 KiB; at every zstd level.
What was right the last time is tried first. (Another version of the zstd library may give other bytes at every level:
then the blob cannot be made again.)

Nothing here is trusted: a result counts only if its sha256 is the name of the blob.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from puzzlefs.compression import compress_chunk, compress_whole
from puzzlefs.compression.frames import SeekEntry, seek_table
from puzzlefs.compression.zstd import LEVELS
from puzzlefs.digest import Digest
from puzzlefs.errors import NotFoundError, StorageError
from puzzlefs.fsck.uses import Use

_MAX_CONTENT: Final = 4 << 20
"""Bytes of the largest chunk that is cut again; builders make none of more than 1 MiB."""
_ORIGINAL_FRAME: Final = 4096
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LEVELS: Final = (5, 3, *(level for level in LEVELS if level not in (3, 5)))
"""What images have unless somebody asked for another, then all others."""

Form = tuple[str, int]


class TreeSource:
    """A directory that images were built from. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            NotFoundError: if it is no directory.
            StorageError: if it cannot be opened.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"{path} is not a directory", hint="name the one that the image was built from"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error

    def read(self, path: bytes, offset: int, size: int) -> bytes | None:
        """A run of bytes of a file, ``None`` if there is no such regular file, or it is shorter.

        No link is followed: the image's path leads nowhere else.
        """
        *directories, name = path.strip(b"/").split(b"/")
        fd = self._fd
        try:
            for directory in directories:
                below = os.open(directory, _DIRECTORY, dir_fd=fd)
                self._leave(fd)
                fd = below
            file = os.open(name, _FILE, dir_fd=fd)
        except (OSError, ValueError):
            return None
        finally:
            self._leave(fd)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                return None
            parts: list[bytes] = []
            while size and (part := os.pread(file, size, offset)):
                parts.append(part)
                offset += len(part)
                size -= len(part)
        except OSError:
            return None
        finally:
            os.close(file)
        return None if size else b"".join(parts)

    def _leave(self, fd: int) -> None:
        if fd != self._fd:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


class Cutter:
    """Makes chunks again. For one thread."""

    def __init__(self, trees: Sequence[TreeSource]) -> None:
        self._trees = trees
        self._forms: list[Form] = []

    def blob(self, digest: Digest, places: Sequence[tuple[bytes, Use]]) -> tuple[bytes, Path] | None:
        """The stored bytes of a chunk, and the tree that it was cut from; ``None`` if it cannot be made.

        Args:
            digest: its sha256.
            places: the paths of the files that have bytes in it, and which.
        """
        for tree in self._trees:
            for compressed in dict.fromkeys(use.compressed for _, use in places):
                mine = [(path, use) for path, use in places if use.compressed == compressed]
                for order in (mine, mine[::-1]):  # a copy of the file may be what did not change
                    content = _put_together(tree, order)
                    made = None if content is None else self._stored(digest, content, compressed)
                    if made is not None:
                        return made, tree.path
                    if len(mine) == 1:
                        break
        return None

    def _stored(self, digest: Digest, content: bytes, compressed: bool) -> bytes | None:
        if not compressed:
            return content if Digest.of(content) == digest else None
        for name, level in (*self._forms, *((name, level) for level in _LEVELS for name in _MAKERS)):
            made = _MAKERS[name](content, level)
            if Digest.of(made) == digest:
                if (name, level) not in self._forms:
                    self._forms.insert(0, (name, level))
                return made
        return None


def _put_together(tree: TreeSource, places: Sequence[tuple[bytes, Use]]) -> bytes | None:
    """The content of a chunk from its beginning to the last byte that a file has of it."""
    size = max(use.chunk_offset + use.length for _, use in places)
    if size > _MAX_CONTENT:
        return None
    content = bytearray(size)
    missing = [(0, size)]
    for path, use in places:
        start, stop = use.chunk_offset, use.chunk_offset + use.length
        if not any(first < stop and start < last for first, last in missing):
            continue
        data = tree.read(path, use.file_offset, use.length)
        if data is not None:
            gaps = list(_without(missing, start, stop))
            for first, last in missing:
                begin, end = max(first, start), min(last, stop)
                if begin < end:
                    content[begin:end] = data[begin - start : end - start]
            missing = gaps
        if not missing:
            return bytes(content)
    return None


def _without(ranges: Sequence[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int]]:
    for first, last in ranges:
        if first < min(last, start):
            yield first, min(last, start)
        if max(first, stop) < last:
            yield max(first, stop), last


# ---- how chunks are stored


def _with_table(frame: bytes, size: int) -> bytes:
    return frame + seek_table([SeekEntry(len(frame), size)])


def _many_frames(content: bytes, level: int) -> bytes:
    """As the original stores chunks in version 3."""
    frames: list[bytes] = []
    entries: list[SeekEntry] = []
    for start in range(0, len(content), _ORIGINAL_FRAME):
        piece = content[start : start + _ORIGINAL_FRAME]
        frames.append(compress_chunk(piece, 1, level))
        entries.append(SeekEntry(len(frames[-1]), len(piece)))
    return b"".join(frames) + seek_table(entries)


_MAKERS: Final[dict[str, Callable[[bytes, int], bytes]]] = {
    "version 3": lambda content, level: compress_chunk(content, 3, level),
    "versions 1 and 2": lambda content, level: compress_chunk(content, 1, level),
    "version 3 of the original": _many_frames,
    "versions 1 and 2, as version 3": lambda content, level: _with_table(
        compress_chunk(content, 1, level), len(content)
    ),
    "version 3, as versions 1 and 2": compress_whole,
}
