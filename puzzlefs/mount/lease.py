"""The lease that a mount holds, so that ``gc`` leaves alone what it serves, whatever becomes of its tag.

It costs a few system calls. Where it cannot be had (the layout is not ours to write to, or on a read-only medium) the
mount goes on without: whoever may remove blobs there has to know.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from puzzlefs.blobs.lease import Lease, Root
from puzzlefs.errors import BlobNotFoundError
from puzzlefs.image import Image

log = logging.getLogger("puzzlefs.mount")

_PATIENCE: Final = 30.0
"""Seconds that a mount waits for a ``gc`` that is removing blobs: nobody can hold it up for good."""


@contextlib.contextmanager
def leased(image: Image) -> Iterator[None]:
    """Hold a lease on ``image`` inside.

    Raises:
        BlobNotFoundError: if the image was removed since it was opened.
    """
    lease: Lease | None = None
    try:
        lease = Lease(image.layout.blobs_fd, patience=_PATIENCE)
        lease.name((image.manifest_digest,), Root.ROOTFS if image.manifest is None else Root.MANIFEST)
        with contextlib.suppress(OSError):
            lease.settle()
    except OSError as error:
        log.info(
            "No lease on %s (%s): puzzlefs gc there will not know of this mount",
            image.layout.path,
            error.strerror or error,
        )
    try:
        # What gc leaves of a manifest is all of it or nothing, so from here on everything is there.
        if lease is not None and image.layout.blob_size(image.manifest_digest) is None:
            raise BlobNotFoundError(image.manifest_digest.hex(), str(image.layout.blob_path(image.manifest_digest)))
        yield
    finally:
        if lease is not None:
            lease.close()
