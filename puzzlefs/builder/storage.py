"""What may be chosen about how an image is stored, and what is chosen for who says nothing.

An uncompressed image has the bytes that the original writes, so nothing about it can be chosen. In a compressed one of
version 3 the defaults here apply (``docs/adr/0011``); each of them is read by every reader of version 3. Versions 1 and
2 are written for older readers, and compressed as the original does it unless somebody says otherwise.

Another value of any default makes compressed images share nothing with those built before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from puzzlefs.chunking import USUAL_SIZES, ChunkSizes
from puzzlefs.compression.zstd import LEVEL, LEVELS
from puzzlefs.errors import InvalidArgumentError
from puzzlefs.image import DEFAULT_VERSION

COMPRESSED_LEVEL: Final = 5
"""The zstd level of compressed version 3 images."""

COMPRESSED_SIZES: Final = ChunkSizes.around(128 << 10)
"""Their chunks."""

COMPRESSED_CUT_AT_FILES: Final = 48 << 10
"""Bytes from which on their files have chunks of their own."""

SMALLEST_CUT: Final = 4 << 10
"""The smallest size of files that can have chunks of their own: smaller ones would be more metadata than data."""


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """What a caller wants; ``None`` is the default. Only compressed images have a choice.

    Attributes:
        level: zstd level, 1 to 22.
        chunk_size: average bytes of a chunk, a power of two.
        cut_at_files: the stream is cut where a file of at least so many bytes begins and where it ends; 0: nowhere.
        compress_metadata: store the metadata as zstd, too: a version 3 image that only this program reads.
    """

    level: int | None = None
    chunk_size: int | None = None
    cut_at_files: int | None = None
    compress_metadata: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """How one image is stored: a default in the place of everything that was left open.

    Attributes:
        compression: whether chunks are compressed.
        level: with which zstd level.
        sizes: of the chunks.
        cut_at_files: the stream is cut around files of at least so many bytes; 0: around none.
        compact_metadata: whether the metadata are laid out with what is equal stored once.
        compress_metadata: whether the metadata are compressed.
    """

    compression: bool = False
    level: int = LEVEL
    sizes: ChunkSizes = USUAL_SIZES
    cut_at_files: int = 0
    compact_metadata: bool = False
    compress_metadata: bool = False


def storage_of(format_version: int, *, compression: bool, options: StorageOptions) -> Storage:
    """How an image is stored.

    Raises:
        InvalidArgumentError: for options that make no sense, or that an image of this kind does not have.
    """
    if not compression:
        if options != StorageOptions():
            raise InvalidArgumentError(
                "how an uncompressed image is stored cannot be chosen: its digest depends on the tree alone",
                hint="ask for compression, too (--compression)",
            )
        return Storage()
    is_default_version = format_version == DEFAULT_VERSION
    level = options.level
    if level is None:
        level = COMPRESSED_LEVEL if is_default_version else LEVEL
    elif level not in LEVELS:
        raise InvalidArgumentError(
            f"there is no compression level {level}", hint=f"say {LEVELS.start} (quick) to {LEVELS.stop - 1} (small)"
        )
    cut_at_files = options.cut_at_files
    if cut_at_files is None:
        cut_at_files = COMPRESSED_CUT_AT_FILES if is_default_version else 0
    elif cut_at_files < 0 or 0 < cut_at_files < SMALLEST_CUT:
        raise InvalidArgumentError(
            f"files of {cut_at_files} bytes are too small for chunks of their own",
            hint=f"say a size from {SMALLEST_CUT >> 10}K on, or 0 to cut without regard to files",
        )
    if options.chunk_size is not None:
        sizes = ChunkSizes.around(options.chunk_size)
    else:
        sizes = COMPRESSED_SIZES if is_default_version else USUAL_SIZES
    if options.compress_metadata and not is_default_version:
        raise InvalidArgumentError(
            f"format version {format_version} has no compressed metadata",
            hint=f"it takes version {DEFAULT_VERSION}, the default",
        )
    return Storage(
        compression=True,
        level=level,
        sizes=sizes,
        cut_at_files=cut_at_files,
        compact_metadata=is_default_version,
        compress_metadata=options.compress_metadata,
    )
