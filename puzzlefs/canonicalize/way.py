"""How an image was built, as far as it can be told from the image: so it is built again.

* The format version, and whether there are times, is in it.
* It was built with compression if any chunk is compressed, or if its metadata are laid out as only compressed images
  have them (version 3; a tree of nothing compressible).
* The zstd level is the one that gives the same bytes again for a sample of the compressed chunks: the default if it is
  one of them. If there is none, another program or another version of the library made them, and what the image has is
  compressed anew, since ``build`` would do so.
* How the stream was cut cannot be told. The defaults of ``build`` apply unless the caller knows better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from puzzlefs.builder.storage import Storage, StorageOptions, storage_of
from puzzlefs.canonicalize.content import Key, load_chunk, parts_of
from puzzlefs.canonicalize.renumber import ImageFile
from puzzlefs.compression import compress_chunk
from puzzlefs.compression.zstd import LEVELS
from puzzlefs.image import MAX_METADATA_SIZE, Image
from puzzlefs.oci import media_types
from puzzlefs.wire import codec_for, encode_compact_rootfs

_SAMPLES: Final = 16


@dataclass(frozen=True, slots=True)
class Way:
    """How to build.

    Attributes:
        storage: how chunks and metadata are stored.
        takes_over: whether stored chunks that line up are what a build would store: the compressed ones (``True``), the
            raw ones (``False``), or none (``None``).
    """

    storage: Storage
    takes_over: bool | None


def way_of(image: Image, files: Sequence[ImageFile], compression: bool | None, options: StorageOptions) -> Way:
    """How to build the canonical form of ``image``, whose files are ``files``.

    Args:
        image: the image.
        files: its files.
        compression: whether chunks are compressed; ``None``: as they are.
        options: what the caller knows, or wants.

    Raises:
        InvalidArgumentError: for options that make no sense, or that an image of this kind does not have.
        PuzzlefsError: if the image cannot be read.
    """
    samples = _sample(image, files) if compression is None or compression else []
    has_small_metadata = image.manifest is not None and image.manifest.rootfs().media_type == media_types.ROOTFS_ZSTD
    if compression is None:
        compression = bool(samples) or has_small_metadata or _has_compact_metadata(image)
    if compression and has_small_metadata:
        options = replace(options, compress_metadata=True)
    storage = storage_of(image.version, compression=compression, options=options)
    if not compression:
        return Way(storage, False)
    level = _level_of(image, samples, storage.level, only=options.level is not None)
    if level is None:
        return Way(storage, None)
    return Way(replace(storage, level=level), True)


def _sample(image: Image, files: Sequence[ImageFile]) -> list[Key]:
    """Some of the compressed chunks, from all over the stream."""
    found: dict[Key, None] = {}
    for _, part in parts_of(image, files):
        if part.blob.compressed:
            found[part.blob.digest, True] = None
    step = -(-len(found) // _SAMPLES) or 1
    return list(found)[::step]


def _level_of(image: Image, samples: Sequence[Key], default: int, *, only: bool) -> int | None:
    """The zstd level that all samples were compressed with; ``default`` if it may be that one, or if nothing can be
    told.

    Args:
        image: the image.
        samples: compressed chunks.
        default: the level that is looked at first.
        only: whether it is the only one.

    Returns:
        ``None`` if no level gives these bytes.
    """
    loaded = [found for key in samples if (found := load_chunk(image, key)) is not None]

    def fits(level: int, number: int) -> bool:
        chunk, stored = loaded[number]
        return compress_chunk(chunk.content, image.version, level) == stored

    if all(fits(default, number) for number in range(len(loaded))):
        return default
    levels = [] if only else [level for level in LEVELS if level != default]
    for number in range(len(loaded)):
        levels = [level for level in levels if fits(level, number)]
    return levels[0] if levels else None


def _has_compact_metadata(image: Image) -> bool:
    """Whether the metadata are laid out as only those of compressed images are."""
    if image.manifest is None:
        return False
    stored = image.blobs.read(image.manifest.rootfs().digest, limit=MAX_METADATA_SIZE)
    if int.from_bytes(stored[:4], "little"):  # compact metadata are one segment
        return False
    layers = [list(layer) for layer in image.rootfs.metadata_layers]
    verity = dict(image.rootfs.verity)
    if encode_compact_rootfs(image.version, layers, verity) != stored:
        return False
    return codec_for(image.version).encode_rootfs(layers=layers, metadata_refs=(), verity=verity) != stored
