"""Wire versions 1, 2 and 3: bytes of metadata and rootfs blobs ⇄ the model.

Ask ``rootfs_version`` what a rootfs blob is, ``codec_for`` for who speaks it. The codecs neither load pycapnp nor
build objects that nobody asked for; ``puzzlefs.wire.reference`` decodes the same blobs with pycapnp and the schemas
that are shipped, and tests hold the two against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from puzzlefs.late import late
from puzzlefs.wire.codec import VERSIONS, Codec, codec_for
from puzzlefs.wire.contents import ChunkList
from puzzlefs.wire.rootfs import WireRootfs, rootfs_version

if TYPE_CHECKING:
    from puzzlefs.wire.alike import Likeness, chunk_digests, same_records
    from puzzlefs.wire.compact import encode_compact_rootfs
    from puzzlefs.wire.on_top import encode_on_top
    from puzzlefs.wire.reach import embedded_sizes
else:
    __getattr__ = late(
        __name__,
        {
            "Likeness": "alike",
            "chunk_digests": "alike",
            "embedded_sizes": "reach",
            "encode_compact_rootfs": "compact",
            "encode_on_top": "on_top",
            "same_records": "alike",
        },
    )

__all__ = [
    "VERSIONS",
    "ChunkList",
    "Codec",
    "Likeness",
    "WireRootfs",
    "chunk_digests",
    "codec_for",
    "embedded_sizes",
    "encode_compact_rootfs",
    "encode_on_top",
    "rootfs_version",
    "same_records",
]
