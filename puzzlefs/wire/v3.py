"""Wire version 3: one blob that holds every metadata layer; the chunk list of a file hangs in the inode."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, InvalidArgumentError
from puzzlefs.model import BlobRef, Inode, InodeTable
from puzzlefs.wire.encode import encode_inode_list
from puzzlefs.wire.message import Buffer
from puzzlefs.wire.pointers import records_shape, records_tag
from puzzlefs.wire.rootfs import RootfsReader, RootfsWriter, WireRootfs, vector_table


class Version3:
    """The codec of version 3."""

    version = 3

    def encode_inode_vector(self, inodes: Sequence[Inode]) -> bytes:
        raise InvalidArgumentError("version 3 keeps metadata layers in the rootfs blob")

    def encode_rootfs(
        self,
        *,
        layers: Sequence[Sequence[Inode]],
        metadata_refs: Sequence[BlobRef],
        verity: Mapping[Digest, VerityDigest],
    ) -> bytes:
        if metadata_refs:
            raise InvalidArgumentError("version 3 keeps metadata layers in the rootfs blob")
        writer = RootfsWriter(self.version)
        arena = writer.arena
        count = len(layers)
        segment, start = arena.reserve(writer.segment, writer.metadatas, records_shape(count, 0, 1), 1 + count)
        struct.pack_into("<Q", arena.segment(segment), start << 3, records_tag(count, 0, 1))
        for index, inodes in enumerate(layers):
            encode_inode_list(arena, segment, start + 1 + index, inodes, file_struct=False)
        return writer.finish(verity)

    def decode_inode_vector(self, data: Buffer) -> InodeTable:
        raise InvalidArgumentError("version 3 keeps metadata layers in the rootfs blob")

    def decode_rootfs(self, data: Buffer) -> WireRootfs:
        reader = RootfsReader(data)
        reader.expect(self.version)
        message = reader.message
        segment, first, count, data_words, pointer_words = reader.metadatas()
        stride = data_words + pointer_words
        tables = []
        left = len(message.words)
        for index in range(count):
            at = first + index * stride + data_words
            table = vector_table(message, segment, at, pointer_words, file_struct=False)
            left -= len(table)
            if left < 0:
                raise FormatError("metadata layers overlap in the message")
            tables.append(table)
        return WireRootfs(self.version, (), tuple(tables), reader.verity())
