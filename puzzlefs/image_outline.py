"""A look at an image by a process that will not open it, for one that will.

Most of opening a large image that is in memory is the manifest, which is JSON with an object for each chunk. Whoever
starts a mount has nothing to do while the process that serves is getting ready, so it parses that meanwhile.
"""

from __future__ import annotations

import os

from puzzlefs.blobs.host import read_bounded
from puzzlefs.blobs.layout import MAX_MANIFEST_SIZE, Layout
from puzzlefs.errors import PuzzlefsError
from puzzlefs.oci import Dialect, ImageReference, Manifest, ManifestOutline, media_types


def outline_ahead(reference: ImageReference) -> ManifestOutline | None:
    """The outline of an image's manifest, if nothing about it is unusual; the host begins to read the rootfs, too.

    Nothing is checked, and nothing is an error: that is for who opens the image, and takes the outline for what it says
    only if the manifest has its digest.
    """
    try:
        with Layout.open(reference.layout) as layout:
            found = layout.read_index().find(reference.tag) if layout.dialect is Dialect.OCI else None
            if found is None or found.media_type != media_types.MANIFEST:
                return None
            fd = layout.open_blob(found.digest)
            try:
                data = read_bounded(fd, "the manifest", MAX_MANIFEST_SIZE)
            finally:
                os.close(fd)
            manifest = Manifest.skim(data)
            layout.advise(manifest.rootfs().digest)
            return manifest.outline(data)
    except (PuzzlefsError, OSError, MemoryError):
        return None
