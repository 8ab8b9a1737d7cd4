"""What is in the files of archives → ONE stream of bytes, in the order of the image.

Holes are known from the archive, and from the temporary file that it is kept in, and are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from puzzlefs.builder.stream import StreamCutter
from puzzlefs.canonicalize.renumber import ImageFile
from puzzlefs.tar.archive import Extent
from puzzlefs.tar.spool import Archive


def feed(
    files: Sequence[ImageFile],
    content_of: Callable[[int], tuple[Archive, Sequence[Extent]]],
    cutter: StreamCutter,
    *,
    cut_at_files: int,
) -> None:
    """Append the content of all files to the stream, and end it.

    Args:
        files: the files of the image, in its order.
        content_of: where the data of a file are, by its number: in which archive, and where there.
        cutter: takes the stream.
        cut_at_files: files of so many bytes or more, if it is not 0, have borders.

    Raises:
        SourceError: if an archive cannot be read any more, or changed.
        StorageError: if a chunk cannot be stored.
    """
    for file in files:
        has_borders = 0 < cut_at_files <= file.size
        if has_borders:
            cutter.border()
        done = 0
        archive, extents = content_of(file.ino)
        for extent in extents:
            shift = extent.offset - extent.position
            for position, length in archive.data_in(extent.position, extent.length):
                cutter.zeros(position + shift - done)
                _append(archive, position, length, cutter)
                done = position + shift + length
        cutter.zeros(file.size - done)
        if has_borders:
            cutter.border()
    cutter.finish()


def _append(archive: Archive, position: int, length: int, cutter: StreamCutter) -> None:
    while length:
        with cutter.space() as space, space[:length] as target:
            count = len(target)
            archive.readinto_at(target, position)
        cutter.advance(count)
        position += count
        length -= count
