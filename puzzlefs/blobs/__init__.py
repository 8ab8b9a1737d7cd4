"""Where blobs live: the image-layout directory, an atomic writer, a reader that verifies everything it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from puzzlefs.blobs.layout import Layout
from puzzlefs.blobs.verified import BlobVerifier, LoadBudget, VerifiedBlobs, VerityMode
from puzzlefs.late import late

if TYPE_CHECKING:
    from puzzlefs.blobs.writer import BlobWriter
else:
    __getattr__ = late(__name__, {"BlobWriter": "writer"})

__all__ = ["BlobVerifier", "BlobWriter", "Layout", "LoadBudget", "VerifiedBlobs", "VerityMode"]
