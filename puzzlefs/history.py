"""What each metadata layer of an image added, changed and removed, and what it stores.

What can be seen with a layer and without it is told by ``puzzlefs.vfs.changes``; here it is put together with what the
layer takes. Chunks are new in the lowest layer that refers to them, whether the inode that does so can be seen or not,
so the layers' numbers add up to those of the image.

The lowest layer is read whole, once: nothing else tells which chunks a layer above it shares with it. What is kept in
memory is proportional to the numbers of inodes and of distinct chunks. No content is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from puzzlefs.blobs import Layout, VerityMode
from puzzlefs.blobs.host import storage_errors
from puzzlefs.callable_module import make_callable
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image import Image, open_image
from puzzlefs.model import KIND_NAMES, FileChunk, InodeTable, Kind, chunks_of
from puzzlefs.oci import ImageReference
from puzzlefs.vfs.changes import LayerChanges, layer_changes


@dataclass(frozen=True, slots=True)
class KindHistory:
    """How many inodes of one kind a layer added, changed and removed."""

    added: int
    changed: int
    removed: int


@dataclass(frozen=True, slots=True)
class LayerHistory:
    """One metadata layer.

    Attributes:
        layer: its number; the lowest is 1.
        added: inodes that can be seen with it and not without it.
        changed: inodes that can be seen either way and are not the same: content, attributes, or, of a directory, which
            inodes have which names.
        removed: inodes that can be seen without it and not with it.
        kinds: the same three by kind (``puzzlefs.model.KIND_NAMES``), for those kinds that are concerned.
        visible: inodes that can be seen with it.
        stored_inodes: inodes that it holds, changed or not, white-outs too.
        new_chunks: chunks that no lower layer refers to.
        new_bytes: bytes of those that files refer to, before compression.
        new_stored_bytes: bytes of their blobs.
        missing_chunks: those whose blobs are not there (no reader needs them, if only hidden inodes use them).
        metadata_bytes: what it takes itself: its blob in versions 1 and 2, its part of the uncompressed rootfs blob in
            version 3; what it shares with a lower layer is the lower one's.
        blob: versions 1 and 2: the blob that holds it, ``sha256:…``; else ``None``.
    """

    layer: int
    added: int
    changed: int
    removed: int
    kinds: Mapping[str, KindHistory]
    visible: int
    stored_inodes: int
    new_chunks: int
    new_bytes: int
    new_stored_bytes: int
    missing_chunks: int
    metadata_bytes: int
    blob: str | None


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """The metadata layers of an image.

    Attributes:
        image: what it was opened as.
        digest: its digest, as ``build`` printed it.
        format_version: 1, 2 or 3.
        layers: the topmost, which is the newest, first.
    """

    image: str
    digest: str
    format_version: int
    layers: tuple[LayerHistory, ...]


def history(
    image: Image | ImageReference | str,
    *,
    digest: VerityDigest | str | None = None,
    verity: VerityMode = "auto",
) -> HistoryReport:
    """What each metadata layer of an image added, changed, removed and stores.

    Args:
        image: an open image, or the name of one.
        digest: the fs-verity digest that the manifest must have; only where ``image`` is a name.
        verity: how the image is verified below that; only where ``image`` is a name.

    Raises:
        NotFoundError: if the image or a blob of its metadata is missing.
        FormatError: if a layer is malformed, if layers contradict each other so that a directory has two places, or if
            telling what they changed would take absurdly much work.
        IntegrityError: if metadata is not what its digest says.
        StorageError: if the host cannot read.
    """
    if not isinstance(image, Image):
        with open_image(image, digest=digest, verity=verity) as opened:
            return history(opened)
    tables = image.rootfs.metadata_layers
    metadata = image.layer_sizes()
    chunks = _Chunks(image.layout)
    visible = 0
    layers: list[LayerHistory] = []
    for number, changes in enumerate(layer_changes(tables, image.tree.max_entries), 1):
        table = tables[-number]
        size, blob = metadata[-number]
        visible += changes.added.total() - changes.removed.total()
        new = chunks.new_in(table)
        layers.append(
            LayerHistory(
                layer=number,
                added=changes.added.total(),
                changed=changes.changed.total(),
                removed=changes.removed.total(),
                kinds=_by_kind(changes),
                visible=visible,
                stored_inodes=len(table),
                new_chunks=new.count,
                new_bytes=new.bytes,
                new_stored_bytes=new.stored_bytes,
                missing_chunks=new.missing,
                metadata_bytes=size,
                blob=None if blob is None else blob.oci,
            )
        )
    return HistoryReport(
        image=str(image.reference),
        digest=image.verity_digest().hex(),
        format_version=image.version,
        layers=tuple(reversed(layers)),
    )


def _by_kind(changes: LayerChanges) -> dict[str, KindHistory]:
    counts: tuple[Counter[Kind], ...] = (changes.added, changes.changed, changes.removed)
    return {KIND_NAMES[kind]: KindHistory(*(count[kind] for count in counts)) for kind in sorted(set().union(*counts))}


@dataclass(frozen=True, slots=True)
class _NewChunks:
    count: int
    bytes: int
    stored_bytes: int
    missing: int


class _Chunks:
    """The chunks that the layers so far refer to."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: set[Digest] = set()

    def new_in(self, table: InodeTable) -> _NewChunks:
        """The chunks that a layer refers to and no layer before did; they are known from now on."""
        known = self._known
        ends: dict[Digest, int] = {}
        for chunk in _chunks_in(table):
            blob = chunk.blob
            if blob.digest not in known:
                end = blob.offset + chunk.length
                if end > ends.get(blob.digest, -1):
                    ends[blob.digest] = end
        known.update(ends)
        with storage_errors("look for chunks in", self._layout.path):
            sizes = [self._layout.blob_size(digest) for digest in ends]
        stored = [size for size in sizes if size is not None]
        return _NewChunks(len(ends), sum(ends.values()), sum(stored), len(sizes) - len(stored))


def _chunks_in(table: InodeTable) -> Iterator[FileChunk]:
    """What the regular files of a layer refer to."""
    for ino, kind in table.kinds():
        if kind == Kind.REGULAR:
            yield from chunks_of(table, ino)


make_callable(__name__, history)
