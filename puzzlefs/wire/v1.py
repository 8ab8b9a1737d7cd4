"""Wire version 1: metadata layers in blobs of their own; the chunks of a file hang in a ``File`` struct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.model import BlobRef, Inode, InodeTable
from puzzlefs.wire.message import Buffer
from puzzlefs.wire.referring import decode_referring_rootfs, encode_referring_rootfs
from puzzlefs.wire.rootfs import WireRootfs, decode_inode_vector, encode_inode_vector


class Version1:
    """The codec of version 1."""

    version = 1

    def encode_inode_vector(self, inodes: Sequence[Inode]) -> bytes:
        return encode_inode_vector(inodes, file_struct=True)

    def encode_rootfs(
        self,
        *,
        layers: Sequence[Sequence[Inode]],
        metadata_refs: Sequence[BlobRef],
        verity: Mapping[Digest, VerityDigest],
    ) -> bytes:
        return encode_referring_rootfs(self.version, layers, metadata_refs, verity)

    def decode_inode_vector(self, data: Buffer) -> InodeTable:
        return decode_inode_vector(data, file_struct=True)

    def decode_rootfs(self, data: Buffer) -> WireRootfs:
        return decode_referring_rootfs(self.version, data)
