"""The shapes of what the inodes and the rootfs of this format consist of, as ``pointers`` writes them in words."""

from __future__ import annotations

from typing import Final

from puzzlefs.digest import SHA256_SIZE
from puzzlefs.wire.pointers import OFFSET_MASK, data_shape, records_shape, records_tag, struct_shape

FORWARD_MASK: Final = ~(OFFSET_MASK >> 1 << 2)
"""All of a pointer but its offset, whose sign counts: under it, a pointer that leads forward is its shape."""

DIGEST_WORDS: Final = SHA256_SIZE >> 3
DIGEST_SHAPE: Final = data_shape(SHA256_SIZE)
BLOB_REF_SHAPE: Final = struct_shape(2, 1)
BLOB_REF_WORDS: Final = 3
FILE_SHAPE: Final = struct_shape(0, 1)
"""Of a file of version 1, on whose only pointer the chunks hang."""
DIR_SHAPE: Final = struct_shape(1, 1)
DEVICE_SHAPE: Final = struct_shape(2, 0)
ADDITIONAL_SHAPE: Final = struct_shape(0, 2)

ONE_CHUNK_SHAPE: Final = records_shape(1, 1, 1)
"""Of the list of chunks of a file with one: as encoders lay it out, a tag, a length, a pointer, and a ``BlobRef``."""
ONE_CHUNK_TAG: Final = records_tag(1, 1, 1)
ONE_CHUNK_WORDS: Final = 6
"""Words of that list with its ``BlobRef``; its digest may come next, or lie elsewhere."""
