"""What versions 1 and 2 have in common: a rootfs blob that refers to metadata layers in blobs of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import InvalidArgumentError
from puzzlefs.model import BlobRef, Inode
from puzzlefs.wire.encode import encode_blob_refs
from puzzlefs.wire.message import Buffer
from puzzlefs.wire.rootfs import RootfsReader, RootfsWriter, WireRootfs


def encode_referring_rootfs(
    version: int,
    layers: Sequence[Sequence[Inode]],
    metadata_refs: Sequence[BlobRef],
    verity: Mapping[Digest, VerityDigest],
) -> bytes:
    """A rootfs blob of a version that keeps its metadata layers in blobs of their own.

    Raises:
        InvalidArgumentError: there are ``layers``.
        FormatError: a number does not fit its field, or there is more than a message can hold.
    """
    if layers:
        raise InvalidArgumentError(f"version {version} keeps metadata layers in blobs of their own")
    writer = RootfsWriter(version)
    encode_blob_refs(writer.arena, writer.segment, writer.metadatas, metadata_refs)
    return writer.finish(verity)


def decode_referring_rootfs(version: int, data: Buffer) -> WireRootfs:
    """A rootfs blob of a version that keeps its metadata layers in blobs of their own.

    Raises:
        FormatError: the message is malformed or of another version.
    """
    reader = RootfsReader(data)
    reader.expect(version)
    return WireRootfs(version, reader.blob_refs(), (), reader.verity())
