"""The tags of a layout: which there are, one more, one less.

A tag is an entry of ``index.json`` with a name (image-spec, annotations.md: ``org.opencontainers.image.ref.name``). It
may point to anything: an image of ours, one of another program, a nested index. Adding and removing tags moves entries
as they are, and looks into nothing; every other entry stays as it is. Changes are made under the layout's lock, and
``index.json`` is replaced atomically.

No blob is removed here: what no entry names any more is garbage, which ``puzzlefs gc`` collects.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puzzlefs.blobs import BlobVerifier, Layout, VerifiedBlobs
from puzzlefs.blobs.host import storage_errors
from puzzlefs.blobs.layout import MAX_MANIFEST_SIZE
from puzzlefs.callable_module import make_callable
from puzzlefs.digest import Digest
from puzzlefs.errors import BlobNotFoundError, PuzzlefsError
from puzzlefs.oci import Descriptor, Dialect, ImageReference, Index, make_reference, media_types, parse_reference
from puzzlefs.verity import verity_digest

_CREATED: Final = "org.opencontainers.image.created"
"""When an image was made, as RFC 3339 (image-spec, annotations.md)."""


@dataclass(frozen=True, slots=True)
class TagInfo:
    """A tag.

    Attributes:
        tag: its name.
        manifest: sha256 of what it points to, ``sha256:…``.
        digest: the digest of the image (fs-verity), which ``build`` prints and ``--digest`` takes; ``None`` if it
            points to an index, or to what cannot be read.
        size: bytes of the blob that it points to; ``None`` if that is missing.
        media_type: what that is.
        created_ns: when it was made, in nanoseconds since the epoch: what the entry says, else the time of
            modification of the blob; ``None`` if neither is known.
        is_created_said: whether the entry says it.
        problem: why the digest cannot be told; ``None`` if it can, or there is none.
    """

    tag: str
    manifest: str
    digest: str | None
    size: int | None
    media_type: str
    created_ns: int | None
    is_created_said: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class TagsReport:
    """The tags of a layout.

    Attributes:
        layout: its path.
        tags: its tags, in the order of the index.
        untagged: how many entries have no tag.
    """

    layout: str
    tags: tuple[TagInfo, ...]
    untagged: int


@dataclass(frozen=True, slots=True)
class TagChange:
    """What became of a tag.

    Attributes:
        image: the image as it is named by the tag.
        manifest: sha256 of what it points to, or pointed to if it was removed; ``sha256:…``.
        before: what it pointed to before; ``None`` if there was no such tag.
        other_tags: the other tags that point to ``manifest``.
    """

    image: str
    manifest: str
    before: str | None
    other_tags: tuple[str, ...]


def tags(layout: str | os.PathLike[str]) -> TagsReport:
    """The tags of a layout, with what they point to.

    The manifests are read; what is wrong with one is told with its tag.

    Raises:
        NotFoundError: if there is no layout.
        FormatError: if it, or its index, is malformed.
        StorageError: if it cannot be read.
    """
    with Layout.open(Path(layout)) as opened:
        index = opened.read_index()
        digests: dict[tuple[Digest, str], tuple[str | None, str | None]] = {}
        infos = [_info(opened, tag, entry, digests) for tag, entry in index.tagged().items()]
    return TagsReport(
        layout=str(layout),
        tags=tuple(infos),
        untagged=sum(entry.annotation(media_types.REF_NAME) is None for entry in index.manifests),
    )


def tag(image: ImageReference | str, new_tag: str) -> TagChange:
    """Have one more tag point to what a tag points to; it moves if it is there.

    Args:
        image: the image, ``OCI_DIR:TAG``.
        new_tag: the new tag, in the same layout.

    Raises:
        NotFoundError: if there is no such layout or tag, or what it points to is missing.
        FormatError: if the layout, or its index, is malformed.
        InvalidArgumentError: if ``new_tag`` cannot be a tag.
        StorageError: if the index cannot be written. It is then what it was.
    """
    reference = parse_reference(image) if isinstance(image, str) else image
    target = make_reference(reference.layout, new_tag)
    with Layout.open(reference.layout) as layout, layout.locked():
        index = layout.read_index()
        entry = layout.find_entry(index, reference.tag)
        with storage_errors("read", layout.blob_path(entry.digest)):
            if layout.blob_size(entry.digest) is None:
                raise BlobNotFoundError(entry.digest.hex(), str(layout.blob_path(entry.digest)))
        before = index.find(new_tag)
        if before != entry.with_annotation(media_types.REF_NAME, new_tag):
            index = index.with_tag(new_tag, entry)
            layout.write_index(index)
    return _change(target, entry, before, index)


def untag(image: ImageReference | str) -> TagChange:
    """Remove a tag. What it points to stays until garbage is collected, unless something else names it.

    Args:
        image: the image, ``OCI_DIR:TAG``.

    Raises:
        NotFoundError: if there is no such layout or tag.
        FormatError: if the layout, or its index, is malformed.
        StorageError: if the index cannot be written. It is then what it was.
    """
    reference = parse_reference(image) if isinstance(image, str) else image
    with Layout.open(reference.layout) as layout, layout.locked():
        index = layout.read_index()
        entry = layout.find_entry(index, reference.tag)
        # All entries of this name: where it stands twice, the one that did not count must not begin to count.
        kept = [one for one in index.manifests if one.annotation(media_types.REF_NAME) != reference.tag]
        index = index._replace(manifests=tuple(kept))
        layout.write_index(index)
    return _change(reference, entry, entry, index)


def _change(reference: ImageReference, entry: Descriptor, before: Descriptor | None, index: Index) -> TagChange:
    others = [name for name, other in index.tagged().items() if other.digest == entry.digest and name != reference.tag]
    return TagChange(
        image=str(reference),
        manifest=entry.digest.oci,
        before=None if before is None else before.digest.oci,
        other_tags=tuple(others),
    )


def _info(
    layout: Layout, name: str, entry: Descriptor, digests: dict[tuple[Digest, str], tuple[str | None, str | None]]
) -> TagInfo:
    created = _created(entry)
    size: int | None = None
    with storage_errors("look for blobs in", layout.path):
        try:
            status = os.stat(entry.digest.hex(), dir_fd=layout.blobs_fd, follow_symlinks=False)
        except FileNotFoundError:
            blob_time = None
        else:
            size, blob_time = status.st_size, status.st_mtime_ns
    key = entry.digest, entry.media_type
    if key not in digests:
        digests[key] = _digest(layout, entry)
    digest, problem = digests[key]
    return TagInfo(
        tag=name,
        manifest=entry.digest.oci,
        digest=digest,
        size=size,
        media_type=entry.media_type,
        created_ns=blob_time if created is None else created,
        is_created_said=created is not None,
        problem=problem,
    )


def _digest(layout: Layout, entry: Descriptor) -> tuple[str | None, str | None]:
    """The digest of an image, or what is wrong."""
    wanted = media_types.MANIFEST if layout.dialect is Dialect.OCI else media_types.ROOTFS
    try:
        data = VerifiedBlobs(layout, BlobVerifier("user")).read(entry.digest, limit=MAX_MANIFEST_SIZE)
    except PuzzlefsError as error:
        return None, str(error)
    return (verity_digest(data).hex() if entry.media_type == wanted else None), None


def _created(entry: Descriptor) -> int | None:
    text = entry.annotation(_CREATED)
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None  # RFC 3339 always says the offset
    elapsed = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000_000 + elapsed.microseconds * 1000


make_callable(__name__, tags)
