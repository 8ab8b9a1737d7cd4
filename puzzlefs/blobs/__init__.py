"""Where blobs live: the image-layout directory, an atomic writer, a reader that verifies everything it returns."""

from puzzlefs.blobs.layout import Layout
from puzzlefs.blobs.verified import BlobVerifier, LoadBudget, VerifiedBlobs, VerityMode
from puzzlefs.blobs.writer import BlobWriter

__all__ = ["BlobVerifier", "BlobWriter", "Layout", "LoadBudget", "VerifiedBlobs", "VerityMode"]
