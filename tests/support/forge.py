"""Images to measure: honest ones from model objects, and every kind of dishonest one.

A ``Forge`` makes one layout directory. ``image`` commits metadata layers the way the library does. The ``raw`` methods
store whatever bytes they get and re-make the chain of sha256 digests above them, so that only the decoder stands
between those bytes and the reader.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.digest import Digest
from puzzlefs.image import dialect_of
from puzzlefs.image_commit import commit_image
from puzzlefs.model import (
    BlobRef,
    Content,
    Directory,
    DirEntry,
    FileChunk,
    Inode,
    RegularFile,
    Symlink,
    Xattr,
)
from puzzlefs.oci import Dialect, media_types
from puzzlefs.wire import codec_for

TAG = "hostile"


def inode(
    ino: int,
    content: Content,
    *,
    permissions: int | None = None,
    uid: int = 0,
    gid: int = 0,
    xattrs: Mapping[bytes, bytes] | None = None,
    mtime_ns: int | None = None,
) -> Inode:
    """An inode with attributes that do no harm."""
    if permissions is None:
        permissions = 0o755 if isinstance(content, Directory) else 0o644
    pairs = tuple(Xattr(key, value) for key, value in (xattrs or {}).items())
    return Inode(ino, uid, gid, permissions, content, pairs, mtime_ns)


def directory(ino: int, entries: Mapping[bytes, int] | Sequence[tuple[bytes, int]] = (), **fields: Any) -> Inode:
    """A directory with these entries, in this order."""
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    look_below = fields.pop("look_below", False)
    return inode(ino, Directory(tuple(DirEntry(number, name) for name, number in pairs), look_below), **fields)


def regular(ino: int, *chunks: FileChunk, **fields: Any) -> Inode:
    """A regular file that consists of these parts."""
    return inode(ino, RegularFile.of(chunks), **fields)


def symlink(ino: int, target: bytes, **fields: Any) -> Inode:
    """A symbolic link."""
    return inode(ino, Symlink(target), **{"permissions": 0o777, **fields})


def recompressed(chunk: FileChunk, compressed: bool) -> FileChunk:
    """The same part of the same chunk, whose compression is said to be another."""
    return chunk._replace(blob=chunk.blob._replace(compressed=compressed))


def put_file(path: Path, data: bytes) -> None:
    """Write a file anew: some file systems wait for the disk where an old one is truncated and written again."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def replace_once(data: bytes, old: bytes, new: bytes) -> bytes:
    """``data`` with the one place where ``old`` stands patched."""
    assert len(old) == len(new)
    assert data.count(old) == 1, f"{old!r} stands {data.count(old)} times"
    return data.replace(old, new)


def renumber(data: bytes, numbers: Mapping[int, int]) -> bytes:
    """``data`` with 64-bit numbers, each of which stands once, replaced."""
    for old, new in numbers.items():
        data = replace_once(data, old.to_bytes(8, "little"), new.to_bytes(8, "little"))
    return data


class Forge:
    """One layout directory of a format version."""

    def __init__(self, path: Path, version: int = 3) -> None:
        self.path = path
        self.version = version
        self.codec = codec_for(version)
        Layout.open_or_create(path, dialect_of(version)).close()

    # ---- honest parts

    def blob_path(self, digest: Digest) -> Path:
        return self.path / "blobs" / "sha256" / digest.hex()

    def blob(self, data: bytes) -> Digest:
        """Store a blob."""
        digest = Digest.of(data)
        put_file(self.blob_path(digest), data)
        return digest

    def chunk(self, data: bytes, *, compressed: bool = False, offset: int = 0, length: int | None = None) -> FileChunk:
        """Store a chunk; a reference to a part of it, by default all."""
        stored = zstandard.compress(data) if compressed else data
        return FileChunk(
            BlobRef(self.blob(stored), offset, compressed), len(data) - offset if length is None else length
        )

    def image(self, *layers: Sequence[Inode], tag: str = TAG) -> str:
        """Commit an image, metadata layers topmost first; what it is to be opened as."""
        with Layout.open(self.path) as layout, BlobWriter(layout) as writer:
            commit_image(layout, tag, version=self.version, layers=layers, chunks=(), verity={}, writer=writer)
        return self.reference(tag)

    def reference(self, tag: str = TAG) -> str:
        return f"{self.path}:{tag}"

    # ---- metadata as bytes

    def patched(self, inodes: Sequence[Inode], patch: Callable[[bytes], bytes]) -> str:
        """An image of one metadata layer, whose encoded form goes through ``patch`` before it is stored."""
        if self.version == 3:
            return self.raw_rootfs(patch(self.codec.encode_rootfs(layers=[inodes], metadata_refs=(), verity={})))
        return self.raw_vectors(patch(self.codec.encode_inode_vector(inodes)))

    def raw_rootfs(self, data: bytes) -> str:
        """An image whose rootfs blob is ``data``."""
        if self.version == 3:
            return self.raw_manifest(self.manifest(self.blob(data), len(data)))
        return self.raw_index(self.index(self.blob(data), len(data), media_types.ROOTFS))

    def raw_vectors(self, *vectors: bytes, compressed: bool = False, offset: int = 0) -> str:
        """Versions 1 and 2: an image whose inode vectors are these blobs."""
        refs = [BlobRef(self.blob(vector), offset, compressed) for vector in vectors]
        return self.raw_rootfs(self.codec.encode_rootfs(layers=(), metadata_refs=refs, verity={}))

    # ---- documents

    def manifest(self, rootfs: Digest, size: int, **changes: Any) -> bytes:
        """An OCI manifest that refers to a rootfs blob."""
        self.blob(b"{}")
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "config": {"mediaType": media_types.EMPTY, "digest": Digest.of(b"{}").oci, "size": 2},
            "layers": [{"mediaType": media_types.ROOTFS, "digest": rootfs.oci, "size": size}],
        }
        return _json({**document, **changes})

    def raw_manifest(self, data: bytes) -> str:
        """An image whose OCI manifest is ``data``."""
        return self.raw_index(self.index(self.blob(data), len(data), media_types.MANIFEST))

    def index(self, digest: Digest, size: int, media_type: str, tag: str = TAG) -> bytes:
        """An ``index.json`` that points to a blob."""
        dialect = dialect_of(self.version)
        descriptor = {
            dialect.media_type_key: media_type,
            "digest": digest.oci,
            "size": size,
            "annotations": {media_types.REF_NAME: tag},
        }
        return _json({"schemaVersion": 2 if dialect is Dialect.OCI else -1, "manifests": [descriptor]})

    def raw_index(self, data: bytes) -> str:
        """Write ``index.json``."""
        put_file(self.path / "index.json", data)
        return self.reference()

    def sparse_blob(self, digest: Digest, size: int) -> None:
        """Put a file of ``size`` bytes that takes no room under a blob's name."""
        self.blob_path(digest).write_bytes(b"")
        os.truncate(self.blob_path(digest), size)


def _json(document: object) -> bytes:
    return json.dumps(document).encode()
