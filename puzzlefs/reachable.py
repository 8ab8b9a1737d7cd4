"""Which blobs may be needed: the question before something is removed, so the answer errs upwards.

From an entry of an index everything is followed that names blobs: nested indexes, OCI manifests of any kind, rootfs
blobs of versions 1 and 2. Their bytes are verified first. What a JSON document names are all strings in it that look
like a digest, wherever they stand.

In Cap'n Proto metadata no inode is decoded: every digest in a message begins at a multiple of eight bytes, so a blob
whose first eight bytes stand nowhere in it as a word is not named there, by no inode of any layer and by no list of
fs-verity digests, malformed ones included. That takes a few milliseconds for a megabyte, and no chunk is read.

A document that cannot be read is an error, for what it names would be taken for garbage. Not for several threads.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from puzzlefs.blobs import BlobVerifier, Layout, VerifiedBlobs
from puzzlefs.blobs.layout import MAX_INDEX_SIZE, MAX_MANIFEST_SIZE
from puzzlefs.blobs.lease import Root
from puzzlefs.compression import decompress_chunk
from puzzlefs.digest import Digest, digests_of
from puzzlefs.errors import FormatError, PuzzlefsError, StorageError
from puzzlefs.image import MAX_METADATA_RATIO, MAX_METADATA_SIZE
from puzzlefs.model import BlobRef
from puzzlefs.oci import Descriptor, media_types
from puzzlefs.oci.json_text import JsonValue, parse_object
from puzzlefs.wire import codec_for, rootfs_version

_MAX_DEPTH: Final = 8
"""Documents that name documents, one below the other."""
_WORD: Final = 8
_MAX_SEGMENTS: Final = 512
_DIGEST: Final = re.compile(rb'"sha256:([0-9a-f]{64})"')


class Reachable:
    """The blobs of a layout that roots may lead to.

    Attributes:
        named: the digests that were found; of those in metadata only such that are candidates.
    """

    def __init__(self, layout: Layout, candidates: Iterable[Digest]) -> None:
        """Nothing is reachable yet; ``candidates`` are the blobs about which the question is."""
        self.named: set[Digest] = set()
        self._blobs = VerifiedBlobs(layout, BlobVerifier("user"))
        self._layout = layout
        self._candidates = frozenset(candidates)
        self._by_word: dict[int, list[Digest]] = {}
        self._words: set[int] = set()
        self._visited: set[Digest | BlobRef] = set()

    def anew(self) -> Reachable:
        """Another one about the same candidates; nothing is reachable yet."""
        other = copy.copy(self)
        other.named = set()
        other._visited = set()
        return other

    def add_entry(self, descriptor: Descriptor) -> None:
        """Follow an entry of an index.

        Raises:
            BlobNotFoundError: if a document or a metadata blob below it is missing.
            FormatError: if one is malformed, or they are nested absurdly.
            IntegrityError: if one is not what its digest says.
            StorageError: if the host cannot read one.
        """
        self._follow(descriptor.media_type, descriptor.digest, 0)

    def add_root(self, kind: Root, digest: Digest) -> None:
        """Follow what a lease names; as ``add_entry``."""
        match kind:
            case Root.BLOB:
                self.named.add(digest)
            case Root.MANIFEST:
                self._follow(media_types.MANIFEST, digest, 0)
            case Root.ROOTFS:
                self._follow(media_types.ROOTFS, digest, 0)

    def _follow(self, media_type: str, digest: Digest, depth: int) -> None:
        self.named.add(digest)
        if digest in self._visited:
            return
        if depth > _MAX_DEPTH:
            raise FormatError(f"more than {_MAX_DEPTH} documents name one another down to {digest.oci}")
        if media_type == media_types.ROOTFS:
            self._scan_rootfs(digest, is_compressed=False)
        elif media_type in media_types.INDEX_TYPES:
            self._document(digest, MAX_INDEX_SIZE, depth, is_index=True)
        elif media_type in media_types.MANIFEST_TYPES:
            self._document(digest, MAX_MANIFEST_SIZE, depth, is_index=False)
        elif media_type.endswith("json"):
            self._document(digest, MAX_MANIFEST_SIZE, depth, is_index=True)
        self._visited.add(digest)  # only now: what failed fails again

    # ---- JSON

    def _document(self, digest: Digest, limit: int, depth: int, *, is_index: bool) -> None:
        data = self._blobs.read(digest, limit=limit)
        is_plain = b"\\" not in data  # else a string can be written in more than one way
        document = parse_object(data, f"document {digest.oci}", object_hook=_without_chunk if is_plain else None)
        self.named.update(digests_of(b"".join(_DIGEST.findall(data)).decode()))
        if not is_plain:
            self.named.update(_digests_in(document))
        for key, value in document.items():
            entries = value if isinstance(value, list) else [value]
            for entry in entries:
                if not isinstance(entry, Mapping):
                    continue
                media_type = entry.get("mediaType")
                if media_type in media_types.ROOTFS_TYPES and key == "layers":
                    self._scan_rootfs(_digest_of(entry, digest), is_compressed=media_type == media_types.ROOTFS_ZSTD)
                elif media_type in media_types.INDEX_TYPES or media_type in media_types.MANIFEST_TYPES:
                    below = _digest_of(entry, digest)
                    # What a manifest refers to (its subject) need not be there, what an index lists must be.
                    if is_index or self._layout.blob_size(below) is not None:
                        self._follow(str(media_type), below, depth + 1)

    # ---- metadata

    def _scan_rootfs(self, digest: Digest, *, is_compressed: bool) -> None:
        ref = BlobRef(digest, 0, is_compressed)
        if ref in self._visited:
            return
        self.named.add(digest)
        data = self._message(ref)
        self._scan(data)
        version = rootfs_version(data)
        for below in codec_for(version).decode_rootfs(data).metadata_refs:
            self.named.add(below.digest)
            if below not in self._visited:
                self._scan(self._message(below))
                self._visited.add(below)
        self._visited.add(ref)

    def _message(self, ref: BlobRef) -> bytes:
        stored = self._blobs.read(ref.digest, limit=MAX_METADATA_SIZE)
        if ref.compressed:
            limit = min(MAX_METADATA_SIZE, MAX_METADATA_RATIO * len(stored))
            stored = decompress_chunk(stored, limit=limit)
        return stored[ref.offset :] if ref.offset else stored

    def _scan(self, data: bytes) -> None:
        if self._candidates <= self.named:
            return  # a manifest of version 3 names all of its chunks: there is no more to find
        if not self._words:
            for digest in self._candidates:
                self._by_word.setdefault(int.from_bytes(digest[:_WORD], sys.byteorder), []).append(digest)
            self._words.update(self._by_word)
        whole = memoryview(data)[: len(data) - len(data) % _WORD].cast("Q")
        for word in self._words.intersection(whole):
            self.named.update(self._by_word[word])


def _without_chunk(value: dict[str, JsonValue]) -> JsonValue:
    """An object of a document; nothing for a chunk's descriptor, of which there are hundreds of thousands."""
    return None if value.get("mediaType") in media_types.CHUNK_TYPES else value


def _digest_of(entry: Mapping[str, JsonValue], parent: Digest) -> Digest:
    value = entry.get("digest")
    if not isinstance(value, str):
        raise FormatError(f"document {parent.oci} has a descriptor without a digest")
    return Digest.parse(value)


def _digests_in(document: JsonValue) -> Iterator[Digest]:
    """Every string that is a digest."""
    stack = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, str) and _DIGEST.fullmatch(f'"{value}"'.encode("utf-8", "surrogatepass")):
            yield Digest.parse(value)


def kind_of_document(layout: Layout, digest: Digest, size: int) -> Root | None:
    """What a blob seems to be, if it may be a manifest; of a chunk no more than a page is looked at.

    Raises:
        StorageError: if it cannot be read.
    """
    if not _WORD <= size <= MAX_MANIFEST_SIZE:
        return None
    try:
        with open(layout.open_blob(digest), "rb", buffering=0) as file:
            head = file.read(_WORD * (_MAX_SEGMENTS // 2 + 1))
    except (OSError, PuzzlefsError) as error:
        raise StorageError(
            f"blob {layout.blob_path(digest)}, which may be a new manifest, cannot be read: {error}"
        ) from error
    if head[:1] == b"{":
        return Root.MANIFEST
    count = int.from_bytes(head[:4], "little") + 1
    table = 4 * (count + 1)
    words = [int.from_bytes(head[at : at + 4], "little") for at in range(4, table, 4)] if count <= _MAX_SEGMENTS else []
    if not words or -(-table // _WORD) * _WORD + _WORD * sum(words) != size:
        return None
    try:
        version = rootfs_version(VerifiedBlobs(layout, BlobVerifier("user")).read(digest, limit=MAX_MANIFEST_SIZE))
    except PuzzlefsError:
        return None
    return Root.ROOTFS if version in (1, 2) else None
