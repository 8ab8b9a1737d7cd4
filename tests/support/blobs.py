"""Blobs in a layout."""

from __future__ import annotations

from puzzlefs.blobs import BlobVerifier, BlobWriter, Layout, VerifiedBlobs
from puzzlefs.digest import Digest


def reader(layout: Layout) -> VerifiedBlobs:
    """Reads the blobs of a layout, and hashes them."""
    return VerifiedBlobs(layout, BlobVerifier("user"))


def store(layout: Layout, data: bytes) -> Digest:
    """Put a blob into a layout."""
    with BlobWriter(layout) as writer:
        digest = writer.put(data)
        writer.commit()
    return digest
