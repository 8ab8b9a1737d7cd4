"""Which codec speaks which version: the one place where a version number chooses code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import UnsupportedVersionError
from puzzlefs.model import BlobRef, Inode, InodeTable
from puzzlefs.wire.message import Buffer
from puzzlefs.wire.rootfs import WireRootfs
from puzzlefs.wire.v1 import Version1
from puzzlefs.wire.v2 import Version2
from puzzlefs.wire.v3 import Version3


class Codec(Protocol):
    """One wire version: bytes ⇄ model. Stateless, so threads may share it.

    Decoding is lazy and takes time for the framing only. What it returns refers to ``data`` and raises ``FormatError``
    where a part that is asked for is malformed.
    """

    @property
    def version(self) -> int:
        """The ``manifestVersion``."""
        ...

    def encode_inode_vector(self, inodes: Sequence[Inode]) -> bytes:
        """The metadata blob that holds ``inodes``, sorted by number (versions 1 and 2).

        An ``mtime_ns`` of ``None`` beside inodes that have one is written, and read back, as 0.

        Raises:
            FormatError: a number does not fit its field, or there is more than a message can hold.
            InvalidArgumentError: the inodes are not sorted, or the version has no such blobs.
        """
        ...

    def encode_rootfs(
        self,
        *,
        layers: Sequence[Sequence[Inode]],
        metadata_refs: Sequence[BlobRef],
        verity: Mapping[Digest, VerityDigest],
    ) -> bytes:
        """The rootfs blob.

        Args:
            layers: version 3: the metadata layers, topmost first; else empty.
            metadata_refs: versions 1 and 2: where they are, topmost first; else empty.
            verity: written sorted by digest.

        Raises:
            FormatError: a number does not fit its field, or there is more than a message can hold.
            InvalidArgumentError: the inodes are not sorted, or the layers were given in the other version's way.
        """
        ...

    def decode_inode_vector(self, data: Buffer) -> InodeTable:
        """The inodes of a metadata blob (versions 1 and 2).

        Raises:
            FormatError: the message is malformed.
            InvalidArgumentError: the version has no such blobs.
        """
        ...

    def decode_rootfs(self, data: Buffer) -> WireRootfs:
        """What a rootfs blob says.

        Raises:
            FormatError: the message is malformed or of another version.
        """
        ...


_CODECS: Final[Mapping[int, Codec]] = {codec.version: codec for codec in (Version1(), Version2(), Version3())}

VERSIONS: Final = tuple(sorted(_CODECS))
"""Every version that can be read and written."""


def codec_for(version: int) -> Codec:
    """The codec of a version.

    Raises:
        UnsupportedVersionError: nobody knows that version.
    """
    try:
        return _CODECS[version]
    except KeyError:
        raise UnsupportedVersionError(version) from None
