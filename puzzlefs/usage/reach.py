"""Which blobs an image, and the entries of a layout's index, reach.

What an entry reaches is what ``gc`` keeps for it (``puzzlefs.reachable``), so that what is said to be exclusive is what
is freed when the entry goes: everything that its documents name, and every chunk that its metadata name, in hidden
inodes too. For an image that is open anyway, ``image_blobs`` tells the same from its inodes.

An entry that cannot be read may reach anything, so nobody can say what the others have for themselves; callers are told
by an exception, and decide.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from puzzlefs.blobs import BlobVerifier, Layout, VerifiedBlobs
from puzzlefs.blobs.layout import MAX_INDEX_SIZE, MAX_MANIFEST_SIZE
from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.image import Image, open_image
from puzzlefs.model import Kind, chunks_of
from puzzlefs.oci import Descriptor, Dialect, ImageReference, Index, Manifest, media_types
from puzzlefs.oci.json_text import JsonValue
from puzzlefs.usage.content import FileContents

_MAX_INDEX_DEPTH: Final = 4
_MAX_MANIFESTS: Final = 10_000
"""What one entry may lead to through indexes."""
_ROOTFS_TYPES: Final = (media_types.ROOTFS, media_types.ROOTFS_ZSTD)
_SHA256_PREFIX: Final = "sha256:"
_UNTAGGED: Final = "untagged"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the index.

    Attributes:
        tag: its tag; ``None`` where it has none, or a later entry has the same.
        descriptor: what it points to.
    """

    tag: str | None
    descriptor: Descriptor


def entries_of(index: Index) -> list[Entry]:
    """The entries of an index in its order; those that say the same again are left out."""
    last = {descriptor.annotation(media_types.REF_NAME): descriptor for descriptor in index.manifests}
    entries: dict[tuple[str | None, Digest], Entry] = {}
    for descriptor in index.manifests:
        tag = descriptor.annotation(media_types.REF_NAME)
        if tag is not None and last[tag] is not descriptor:
            tag = None
        entries.setdefault((tag, descriptor.digest), Entry(tag, descriptor))
    return list(entries.values())


def manifests_below(layout: Layout, descriptor: Descriptor) -> list[Descriptor]:
    """The manifests to which an entry leads, each once.

    Raises:
        NotFoundError: if an index is missing.
        FormatError: if one is malformed, or they are nested too deeply.
        IntegrityError: if one is not what its digest says.
        StorageError: if the host cannot read it.
    """
    blobs = VerifiedBlobs(layout, BlobVerifier("user"))
    manifests: dict[Digest, Descriptor] = {}
    indexes: set[Digest] = set()
    level = [descriptor]
    for _ in range(_MAX_INDEX_DEPTH + 1):
        below: list[Descriptor] = []
        for found in level:
            if found.media_type != media_types.INDEX:
                manifests.setdefault(found.digest, found)
            elif found.digest not in indexes:
                indexes.add(found.digest)
                data = blobs.read(found.digest, limit=MAX_INDEX_SIZE)
                below.extend(Index.parse(data, f"index {found.digest.oci}").manifests)
        if len(below) + len(manifests) > _MAX_MANIFESTS:
            raise FormatError(f"index {descriptor.digest.oci} leads to absurdly many manifests")
        if not below:
            return list(manifests.values())
        level = below
    raise FormatError(f"index {descriptor.digest.oci} leads to more than {_MAX_INDEX_DEPTH} indexes below each other")


def is_puzzlefs(layout: Layout, descriptor: Descriptor) -> bool:
    """Whether a manifest is that of a PuzzleFS image, and not of another kind of OCI image; as ``manifests_below``."""
    if layout.dialect is not Dialect.OCI:
        return descriptor.media_type == media_types.ROOTFS
    if descriptor.media_type != media_types.MANIFEST:
        return False
    blobs = VerifiedBlobs(layout, BlobVerifier("user"))
    layers = Manifest.parse(blobs.read(descriptor.digest, limit=MAX_MANIFEST_SIZE)).layers()
    return any(layer.media_type in _ROOTFS_TYPES for layer in layers)


def open_manifest(layout: Layout, descriptor: Descriptor, tag: str | None = None) -> Image:
    """The image whose manifest a descriptor names, wherever tags point; as ``open_image``."""
    return open_image(ImageReference(layout.path, tag or _UNTAGGED), manifest=descriptor.digest)


def image_blobs(image: Image, contents: FileContents) -> Iterator[Digest]:
    """Every blob that an open image reaches; some more than once, and none that nothing but its visible files uses.

    Args:
        image: the image.
        contents: what its visible files use.

    Raises:
        FormatError: if a layer of the manifest is malformed. (An inode that is refers to nothing.)
    """
    yield image.manifest_digest
    if image.manifest is not None:
        yield from _listed(image.manifest)
    for ref in image.metadata_refs:
        yield ref.digest
    known = frozenset(contents.inodes)
    owner = image.tree.owner
    for table in image.rootfs.metadata_layers:
        for ino, kind in table.kinds():
            if kind == Kind.REGULAR and not (ino in known and owner(ino) is table):
                with contextlib.suppress(FormatError):
                    yield from [chunk.blob.digest for chunk in chunks_of(table, ino)]


def _listed(manifest: Manifest) -> Iterator[Digest]:
    """The digests of an OCI manifest's configuration and layers."""
    yield manifest.config.digest
    for number, layer in enumerate(manifest.layer_objects):
        found = _quick_digest(layer)
        yield Descriptor.from_json(layer, f"the OCI manifest's layer {number}").digest if found is None else found


def _quick_digest(layer: JsonValue) -> Digest | None:
    """The digest in a descriptor that is as it should be: a large image has hundreds of thousands."""
    text = layer.get("digest") if isinstance(layer, dict) else None
    if not isinstance(text, str) or len(text) != 71 or not text.startswith(_SHA256_PREFIX):
        return None
    try:
        return Digest(bytes.fromhex(text[7:]))
    except (ValueError, FormatError):
        return None
