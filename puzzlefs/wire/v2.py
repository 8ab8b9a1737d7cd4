"""Wire version 2: metadata layers in blobs of their own, as in 1; the chunk list of a file hangs in the inode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.model import BlobRef, Inode, InodeTable
from puzzlefs.wire.message import Buffer
from puzzlefs.wire.referring import decode_referring_rootfs, encode_referring_rootfs
from puzzlefs.wire.rootfs import WireRootfs, decode_inode_vector, encode_inode_vector


class Version2:
    """The codec of version 2."""

    version = 2

    def encode_inode_vector(self, inodes: Sequence[Inode]) -> bytes:
        return encode_inode_vector(inodes, file_struct=False)

    def encode_rootfs(
        self,
        *,
        layers: Sequence[Sequence[Inode]],
        metadata_refs: Sequence[BlobRef],
        verity: Mapping[Digest, VerityDigest],
    ) -> bytes:
        return encode_referring_rootfs(self.version, layers, metadata_refs, verity)

    def decode_inode_vector(self, data: Buffer) -> InodeTable:
        return decode_inode_vector(data, file_struct=False)

    def decode_rootfs(self, data: Buffer) -> WireRootfs:
        return decode_referring_rootfs(self.version, data)
