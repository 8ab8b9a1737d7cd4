"""What is in an image, in numbers.

Everything is told from the metadata, the sizes of the blobs' files and the seek tables at the ends of compressed
chunks; contents are not read. Inodes that are malformed count as empty, and are counted, so an image that is damaged in
places can be looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from puzzlefs.blobs import VerityMode
from puzzlefs.blobs.host import storage_errors
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.image import Image, open_image
from puzzlefs.model import KIND_NAMES, InodeTable, Kind
from puzzlefs.oci import ImageReference, media_types
from puzzlefs.usage.content import BlobNumbers, FileContents, blob_sizes
from puzzlefs.usage.frames import FrameSummary, summarize_frames
from puzzlefs.usage.reach import image_blobs

_FIRST_STEP: Final = 12
"""Sizes up to 4 KiB are told apart no further."""
_LAST_STEP: Final = 21
"""Nor are those of more than 1 MiB."""

Timestamps = Literal["none", "some", "all"]


@dataclass(frozen=True, slots=True)
class MetadataLayerSummary:
    """One metadata layer.

    Attributes:
        layer: its number; the lowest is 1.
        inodes: inodes that it holds, white-outs too.
        bytes: what it takes itself, before compression: its blob in versions 1 and 2, else its part of the rootfs blob.
        blob: versions 1 and 2: the blob that holds it, ``sha256:…``; else ``None``.
        has_timestamps: whether its inodes have modification times.
    """

    layer: int
    inodes: int
    bytes: int
    blob: str | None
    has_timestamps: bool


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Chunks of about one size.

    Attributes:
        over_bytes: all of them have more content than that; ``None`` for the smallest class.
        upto_bytes: none of them has more than that; ``None`` for the largest class.
        chunks: how many there are.
        bytes: content of all of them.
    """

    over_bytes: int | None
    upto_bytes: int | None
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ChunkSummary:
    """The distinct chunks that visible files use.

    Attributes:
        number: how many there are.
        compressed: those that are compressed.
        missing: those whose blobs are not there.
        hidden: further chunks that the image lists, and no visible file uses.
        hidden_bytes: bytes of the blobs of those.
        smallest_bytes: content of the smallest chunk; 0 if there is none.
        largest_bytes: content of the largest one.
        mean_bytes: content of one on average, rounded.
        sizes: how many there are of which size, smallest first, without empty classes at either end.
    """

    number: int
    compressed: int
    missing: int
    hidden: int
    hidden_bytes: int
    smallest_bytes: int
    largest_bytes: int
    mean_bytes: int
    sizes: tuple[SizeClass, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in an image.

    Attributes:
        image: what it was opened as.
        format_version: 1, 2 or 3.
        digest: its digest, as ``build`` printed it: the fs-verity digest of the manifest.
        manifest: sha256 of the manifest, ``sha256:…``.
        manifest_bytes: bytes of the manifest.
        metadata_bytes: bytes of the other blobs that are no chunks.
        metadata_is_compressed: whether the rootfs blob is.
        metadata_layers: the topmost, which is the newest, first.
        inodes: visible inodes.
        names: directory entries; a file with several names has several.
        kinds: visible inodes by kind: ``regular``, ``directory``, ``symlink``, ``char-device`` and so on.
        malformed: inodes that are missing or cannot be decoded.
        apparent_bytes: bytes of all files.
        unique_bytes: content of the distinct chunks that they use.
        stored_bytes: bytes of the blobs of those.
        chunks: those chunks.
        frames: how the compressed ones are framed; ``None`` if there are none.
        timestamps: whether inodes have modification times.
        annotations: those of the index's entry.
        manifest_annotations: those of the manifest, and of its rootfs layer.
    """

    image: str
    format_version: int
    digest: str
    manifest: str
    manifest_bytes: int
    metadata_bytes: int
    metadata_is_compressed: bool
    metadata_layers: tuple[MetadataLayerSummary, ...]
    inodes: int
    names: int
    kinds: Mapping[str, int]
    malformed: int
    apparent_bytes: int
    unique_bytes: int
    stored_bytes: int
    chunks: ChunkSummary
    frames: FrameSummary | None
    timestamps: Timestamps
    annotations: Mapping[str, str]
    manifest_annotations: Mapping[str, str]


def inspect_image(
    image: Image | ImageReference | str,
    *,
    digest: VerityDigest | str | None = None,
    verity: VerityMode = "auto",
) -> Inspection:
    """What is in an image, in numbers.

    Args:
        image: an open image, or the name of one.
        digest: the fs-verity digest that the manifest must have; only where ``image`` is a name.
        verity: how the image is verified below that; only where ``image`` is a name.

    Raises:
        NotFoundError: if the image or a blob of its metadata is missing.
        FormatError: if the image is malformed as a whole.
        IntegrityError: if metadata is not what its digest says.
        StorageError: if the host cannot read.
    """
    if not isinstance(image, Image):
        with open_image(image, digest=digest, verity=verity) as opened:
            return inspect_image(opened)
    numbers = BlobNumbers()
    contents = FileContents(image, numbers)
    kinds, unknown = _kinds(image)
    links = image.tree.links()
    manifest_bytes, metadata_bytes = _metadata_sizes(image)
    layers = _layers(image)
    chunks, stored_bytes, frames = _chunks(image, contents, numbers)
    return Inspection(
        image=str(image.reference),
        format_version=image.version,
        digest=image.verity_digest().hex(),
        manifest=image.manifest_digest.oci,
        manifest_bytes=manifest_bytes,
        metadata_bytes=metadata_bytes,
        metadata_is_compressed=image.manifest is not None
        and image.manifest.rootfs().media_type == media_types.ROOTFS_ZSTD,
        metadata_layers=layers,
        inodes=sum(kinds.values()),
        names=sum(kinds.values()) - 1 + sum(count - 1 for count in links.shared.values()),
        kinds=kinds,
        malformed=unknown + contents.malformed,
        apparent_bytes=sum(contents.sizes),
        unique_bytes=sum(size.bytes for size in chunks.sizes),
        stored_bytes=stored_bytes,
        chunks=chunks,
        frames=frames,
        timestamps=_timestamps(layers),
        annotations=_index_annotations(image),
        manifest_annotations=_manifest_annotations(image),
    )


def _kinds(image: Image) -> tuple[dict[str, int], int]:
    """Visible inodes by kind, and how many are of none."""
    counts = Counter(map(image.tree.kind, image.tree.links().visible))
    unknown = counts.pop(None, 0) + counts.pop(Kind.UNKNOWN, 0)
    return {KIND_NAMES[kind]: counts[kind] for kind in Kind if counts[kind]}, unknown


def _metadata_sizes(image: Image) -> tuple[int, int]:
    """Bytes of the manifest, and of the other metadata blobs."""
    digests = [image.manifest_digest, *(image.metadata_blobs() - {image.manifest_digest})]
    sizes = [size or 0 for size in blob_sizes(image.layout, digests)]
    return sizes[0], sum(sizes[1:])


def _layers(image: Image) -> tuple[MetadataLayerSummary, ...]:
    tables = image.rootfs.metadata_layers
    return tuple(
        MetadataLayerSummary(
            layer=len(tables) - position,
            inodes=len(table),
            bytes=size,
            blob=None if blob is None else blob.oci,
            has_timestamps=_has_timestamps(table),
        )
        for position, (table, (size, blob)) in enumerate(zip(tables, image.layer_sizes(), strict=True))
    )


def _has_timestamps(table: InodeTable) -> bool:
    """Whether the inodes of a layer have modification times; either all have, or none has."""
    for ino, _ in table.kinds():
        try:
            inode = table.find(ino)
        except FormatError:
            continue
        return inode is not None and inode.mtime_ns is not None
    return False


def _timestamps(layers: Sequence[MetadataLayerSummary]) -> Timestamps:
    found = {layer.has_timestamps for layer in layers if layer.inodes}
    if found == {True, False}:
        return "some"
    return "all" if found == {True} else "none"


def _chunks(
    image: Image, contents: FileContents, numbers: BlobNumbers
) -> tuple[ChunkSummary, int, FrameSummary | None]:
    """The chunks, the bytes of their blobs, and how they are framed."""
    used = len(numbers)
    hidden = numbers.numbers(image_blobs(image, contents)) - set(range(used)) - numbers.numbers(image.metadata_blobs())
    digests = list(numbers)
    sizes = blob_sizes(image.layout, digests)
    content = [contents.content_size(number, sizes[number] or 0) for number in range(used)]
    compressed = [digests[number] for number in contents.compressed()]
    with storage_errors("look into chunks in", image.layout.path):
        frames = summarize_frames(image.layout, compressed) if compressed else None
    summary = ChunkSummary(
        number=used,
        compressed=len(compressed),
        missing=sizes[:used].count(None),
        hidden=len(hidden),
        hidden_bytes=sum(sizes[number] or 0 for number in hidden),
        smallest_bytes=min(content, default=0),
        largest_bytes=max(content, default=0),
        mean_bytes=round(sum(content) / used) if used else 0,
        sizes=_histogram(content),
    )
    return summary, sum(size or 0 for size in sizes[:used]), frames


def _histogram(content: Sequence[int]) -> tuple[SizeClass, ...]:
    steps = [min(max((size - 1).bit_length(), _FIRST_STEP), _LAST_STEP) for size in content]
    if not steps:
        return ()
    counts = Counter(steps)
    sums: Counter[int] = Counter()
    for step, size in zip(steps, content, strict=True):
        sums[step] += size
    return tuple(
        SizeClass(
            over_bytes=None if step == _FIRST_STEP else 1 << step - 1,
            upto_bytes=None if step == _LAST_STEP else 1 << step,
            chunks=counts[step],
            bytes=sums[step],
        )
        for step in range(min(counts), max(counts) + 1)
    )


def _index_annotations(image: Image) -> dict[str, str]:
    descriptor = image.layout.read_index().find(image.reference.tag)
    return dict((descriptor and descriptor.annotations) or {})


def _manifest_annotations(image: Image) -> dict[str, str]:
    if image.manifest is None:
        return {}
    of_manifest = image.manifest.extra.get("annotations")
    texts = of_manifest.items() if isinstance(of_manifest, Mapping) else ()
    return {**{key: str(text) for key, text in texts}, **(image.manifest.rootfs().annotations or {})}
