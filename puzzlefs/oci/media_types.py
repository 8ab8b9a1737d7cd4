"""Media types and annotation keys, as the image-spec and the PuzzleFS format name them.

These strings are in images: changing one makes existing images unreadable.
"""

from __future__ import annotations

from typing import Final

ROOTFS: Final = "application/vnd.puzzlefs.image.rootfs.v1"
ROOTFS_ZSTD: Final = ROOTFS + "+zstd"
"""The same as one zstd frame: an extension of this implementation, which others do not find as a rootfs."""

INODES: Final = "application/vnd.puzzlefs.image.inodes.v1"
FILE_DATA: Final = "application/vnd.puzzlefs.image.filedata.v1"
FILE_DATA_ZSTD: Final = FILE_DATA + "+zstd"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
EMPTY: Final = "application/vnd.oci.empty.v1+json"

# Tuples: a document may have something instead of a media type that no set can be asked about.
ROOTFS_TYPES: Final = (ROOTFS, ROOTFS_ZSTD)
CHUNK_TYPES: Final = (FILE_DATA, FILE_DATA_ZSTD)
MANIFEST_TYPES: Final = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
INDEX_TYPES: Final = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
"""What manifests, and indexes, are called; by other programs, too."""

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""Annotation of a descriptor in ``index.json``: the tag."""

VERITY_ROOT_HASH: Final = "io.puzzlefsoci.puzzlefs.puzzlefs_verity_root_hash"
"""Annotation of the rootfs descriptor: the fs-verity *file digest* of the blob (the key says root hash; it is not)."""
