"""Image → tar archive: a walk, headers, chunks.

A directory comes before what is in it: first everything that is no directory, then each directory with all that is in
it, both in the order of their names. That is the order in which builds store files, so each chunk is loaded once; and
programs that unpack can give a directory its attributes when they leave it. The first name of a file that has several
brings the content, the others are hard links to it.

Runs of zeros of 4 MiB and more are holes (GNU's sparse format 1.0). Whether a file has one is decided by its content
alone, so that the same tree gives the same archive however it was cut into chunks; but only files are looked through of
which the chunks say that there can be one: builders cut a run of zeros into equal chunks.

Everything is verified before it is written out. An error in the middle leaves an archive that is incomplete: whoever
made it has to look at the error.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol

from puzzlefs.blobs import LoadBudget, VerityMode
from puzzlefs.builder.workers import worker_count
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import FormatError, PuzzlefsError
from puzzlefs.image import Image, open_image
from puzzlefs.model import FileChunk, Kind
from puzzlefs.oci import ImageReference
from puzzlefs.sparse import SparseReader
from puzzlefs.tar.ahead import ChunksAhead
from puzzlefs.tar.encode import NO_XATTRS, end_of_archive, member_header, padding, sparse_map
from puzzlefs.tar.records import (
    BLOCK_DEVICE,
    BLOCK_SIZE,
    CHAR_DEVICE,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
)
from puzzlefs.vfs import Attributes, Entry
from puzzlefs.vfs.paths import MAX_PATH, Place, join, resolve, shown

SMALLEST_HOLE: Final = 4 << 20
"""Bytes of zeros that become a hole. A change changes the archives of images that have such files."""

_USUAL_PART: Final = 1 << 20
"""Bytes of the largest chunk that builders make."""


_ITEMS_AHEAD: Final = 4096
_OUTPUT_SIZE: Final = 1 << 20
_OUTPUT_BUFFERS: Final = 512
_KINDS: Final = {
    Kind.CHAR_DEVICE: CHAR_DEVICE,
    Kind.BLOCK_DEVICE: BLOCK_DEVICE,
    Kind.FIFO: FIFO,
}


class Output(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes, /) -> int | None:
        """Write all of ``data``, or the number of bytes that is returned."""
        ...


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported.

    Attributes:
        members: members of the archive.
        bytes: bytes of the archive.
        content_size: bytes of regular files, holes included; each file once.
        sockets: sockets that were left out: no archive can hold them.
    """

    members: int
    bytes: int
    content_size: int
    sockets: int


def export_tar(
    image: Image | ImageReference | str,
    output: Output,
    path: bytes | str = b"/",
    *,
    digest: VerityDigest | str | None = None,
    verity: VerityMode = "auto",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write what is in an image, or below a path in it, as a tar archive (pax format).

    The same tree always gives the same bytes. Names begin with ``./``, which is the directory at ``path``; if that is
    no directory, it is the only member. Contents, owners, modes, times, hard links, devices, extended attributes and
    holes are those of the image; sockets are left out, and counted.

    Args:
        image: an open image, or the name of one.
        output: where to; errors of it come through as they are.
        path: what to export; symbolic links on the way are followed within the image, one at its end is not.
        digest: the fs-verity digest that the manifest must have; only where ``image`` is a name.
        verity: how the image is verified below that; only where ``image`` is a name.
        workers: threads that load chunks ahead; as many as there are CPUs, up to 8, if not given.
        progress: called now and then with the members and the bytes of content written so far.

    Raises:
        NotFoundError: if the image, one of its blobs or the path is missing.
        FormatError: if the image is malformed.
        IntegrityError: if data is not what its digest says.
        StorageError: if a blob cannot be read. In the last four cases the archive is incomplete.
    """
    if not isinstance(image, Image):
        with open_image(image, digest=digest, verity=verity) as opened:
            return export_tar(opened, output, path, workers=workers, progress=progress)
    place = resolve(image.tree, os.fsencode(path), follow=False)
    with ChunksAhead(image, worker_count(workers)) as ahead:
        return _Export(image, output, ahead, progress).run(place)


@dataclass(frozen=True, slots=True)
class _Content:
    """A file that is being written: its path, for messages, and what loading it may cost, if there is much to load."""

    path: bytes
    budget: LoadBudget | None


Item = bytes | tuple[_Content, FileChunk]
"""A part of the archive: bytes, or a part of a chunk, which is on its way."""


@dataclass(slots=True)
class _Export:
    image: Image
    output: Output
    ahead: ChunksAhead
    progress: Callable[[int, int], None] | None
    first_names: dict[int, bytes] = field(default_factory=dict)  # of files that have several
    sparse: SparseReader = field(init=False)
    has_xattrs: bool = False
    top: bytes = b"/"
    members: int = 0
    content_size: int = 0
    sockets: int = 0
    waiting: deque[Item] = field(default_factory=deque)  # what comes next, in its order
    waiting_size: int = 0  # bytes of those that are bytes
    buffers: list[bytes | memoryview] = field(default_factory=list)  # what is about to be written
    pending: int = 0
    written: int = 0
    content_written: int = 0

    def run(self, place: Place) -> ExportReport:
        tree = self.image.tree
        tree.links()  # and there are not more entries than the image can hold
        self.has_xattrs = tree.may_have_xattrs()
        self.sparse = SparseReader(self.image)
        if place.kind is Kind.DIRECTORY:
            self.top = place.path
            self._directories(place.ino)
        else:
            directory, _, name = place.path.rpartition(b"/")
            self.top = directory or b"/"
            self._member(b"", place.parent, Entry(name, place.ino, place.kind))
        while self.waiting:
            self._advance()
        self._put(end_of_archive(self.written + self.pending))
        self._flush()
        return ExportReport(self.members, self.written, self.content_size, self.sockets)

    # ---- the walk

    def _directories(self, top: int) -> None:
        """Export a directory, and all that is below it."""
        tree = self.image.tree
        stack = [(b"./", top)]
        while stack:
            path, ino = stack.pop()
            try:
                if len(path) > MAX_PATH:
                    raise FormatError(f"its path has more than {MAX_PATH} bytes")
                self._header(DIRECTORY, path, tree.attributes(ino))
                entries = tree.entries(ino)
            except PuzzlefsError as error:
                self._name(error, path)
                raise
            below: list[tuple[bytes, int]] = []
            for entry in entries:
                if entry.kind is not Kind.DIRECTORY:
                    self._member(path, ino, entry)
                    continue
                try:
                    tree.check_entry(ino, entry)
                except PuzzlefsError as error:
                    self._name(error, path + entry.name)
                    raise
                below.append((b"%b%b/" % (path, entry.name), entry.ino))
            stack += reversed(below)

    def _member(self, directory: bytes, parent: int, entry: Entry) -> None:
        """Export anything but a directory."""
        tree = self.image.tree
        ino, kind = entry.ino, entry.kind
        path = directory + entry.name
        try:
            if kind is Kind.UNKNOWN:
                tree.check_entry(parent, entry)
            if kind is Kind.SOCKET:
                self.sockets += 1
                return
            attributes = tree.attributes(ino)
            if attributes.nlink > 1:
                first = self.first_names.get(ino)
                if first is not None:
                    self._header(HARD_LINK, path, attributes, target=first)
                    return
                self.first_names[ino] = path
            if kind is Kind.REGULAR:
                self._regular(path, attributes)
            elif kind is Kind.SYMLINK:
                self._header(SYMLINK, path, attributes, target=tree.readlink(ino))
            else:
                self._header(_KINDS[kind], path, attributes)
        except PuzzlefsError as error:
            self._name(error, path)
            raise

    def _regular(self, path: bytes, attributes: Attributes) -> None:
        size = attributes.size
        self.content_size += size
        parts = self.image.tree.parts(attributes.ino) if size else ()
        if size >= SMALLEST_HOLE and _may_have_holes(parts):
            segments = self._segments(attributes.ino, size)
            if segments != [(0, size)]:
                self._sparse(path, attributes, segments)
                return
        self._header(REGULAR, path, attributes, size=size)
        content = _Content(path, LoadBudget.for_reading(size) if len(parts) > 1 else None)
        for part in parts:
            if part.length:
                while not self.ahead.has_room():
                    self._advance()
                self.ahead.want(part)
                self.waiting.append((content, part))
        if size % BLOCK_SIZE:
            self._put_later(padding(size))

    def _header(
        self,
        kind: bytes,
        path: bytes,
        attributes: Attributes,
        *,
        size: int = 0,
        target: bytes = b"",
        real_size: int | None = None,
    ) -> None:
        self.members += 1
        is_link = kind == HARD_LINK
        rdev = attributes.rdev
        self._put_later(
            member_header(
                kind,
                path,
                mode=0o777 if kind == SYMLINK else attributes.mode & 0o7777,
                uid=attributes.uid,
                gid=attributes.gid,
                mtime_ns=attributes.mtime_ns,
                size=size,
                target=target,
                device=(os.major(rdev), os.minor(rdev)) if rdev and not is_link else (0, 0),
                xattrs=self.image.tree.xattrs(attributes.ino) if self.has_xattrs and not is_link else NO_XATTRS,
                real_size=real_size,
            )
        )

    # ---- holes

    def _segments(self, ino: int, size: int) -> list[tuple[int, int]]:
        """Where the data between the holes are."""
        segments: list[tuple[int, int]] = []
        start = position = zeros = 0  # data begin at start; the last zeros bytes before position are zeros

        def end_of_run(run_end: int) -> None:
            nonlocal start
            if zeros >= SMALLEST_HOLE:
                if run_end - zeros > start:
                    segments.append((start, run_end - zeros - start))
                start = run_end

        for length, data in self.sparse.windows(ino, 0, size):
            if data is None:
                zeros += length
            else:
                leading = len(data) - len(data.lstrip(b"\0"))
                zeros += leading
                end_of_run(position + leading)
                zeros = len(data) - len(data.rstrip(b"\0"))
            position += length
        end_of_run(size)
        if start < size:
            segments.append((start, size - start))
        return segments

    def _sparse(self, path: bytes, attributes: Attributes, segments: list[tuple[int, int]]) -> None:
        """Export a file with holes: its map, then its data."""
        ino, size = attributes.ino, attributes.size
        described = sparse_map(segments, size)
        stored = len(described) + sum(length for _, length in segments)
        self._header(REGULAR, path, attributes, size=stored, real_size=size)
        self._put_later(described)
        for offset, length in segments:
            for step, data in self.sparse.windows(ino, offset, offset + length):
                self._put_later(bytes(step) if data is None else data)
        self.content_written += size
        self._put_later(padding(stored))

    # ---- writing

    def _put_later(self, data: bytes) -> None:
        """Write ``data`` behind everything that waits."""
        self.waiting.append(data)
        self.waiting_size += len(data)
        while self.waiting_size > _OUTPUT_SIZE or len(self.waiting) > _ITEMS_AHEAD:
            self._advance()

    def _advance(self) -> None:
        """Write the first of what waits."""
        item = self.waiting.popleft()
        if isinstance(item, bytes):
            self.waiting_size -= len(item)
            self._put(item)
            return
        content, part = item
        try:
            for view in self.ahead.take(part, content.budget):
                self._put(view)
        except PuzzlefsError as error:
            self._name(error, content.path)
            raise
        self.content_written += part.length

    def _put(self, data: bytes | memoryview) -> None:
        self.buffers.append(data)
        self.pending += len(data)
        if self.pending >= _OUTPUT_SIZE or len(self.buffers) >= _OUTPUT_BUFFERS:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self.buffers)
        self.buffers.clear()
        self.pending = 0
        self.written += len(data)
        done = self.output.write(data)
        while done is not None and done < len(data):  # an unbuffered file may take less
            data = data[done:]
            done = self.output.write(data)
        if self.progress is not None:
            self.progress(self.members, self.content_written)

    def _name(self, error: PuzzlefsError, path: bytes) -> None:
        """Have an error say which file cannot be exported, if it does not yet."""
        if not error.message.startswith("cannot export"):
            where = shown(join(self.top, path.removeprefix(b"./")).rstrip(b"/") or b"/")
            error.message = f"cannot export {where} of {self.image.reference}: {error.message}"
        error.hint = error.hint or "the archive is incomplete"


def _may_have_holes(parts: Sequence[FileChunk]) -> bool:
    """Whether two parts that follow one another are of one chunk, or one is larger than builders make them."""
    return any(part.length > _USUAL_PART for part in parts) or any(
        one.blob.digest == other.blob.digest for one, other in pairwise(parts)
    )
