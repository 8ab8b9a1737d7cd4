"""The ``Rootfs`` struct, which all versions share but for what its ``metadatas`` are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.model import BlobRef, Inode, InodeTable
from puzzlefs.wire.arena import Arena
from puzzlefs.wire.contents import blob_ref
from puzzlefs.wire.encode import encode_inode_list, encode_verity
from puzzlefs.wire.message import Buffer, Message
from puzzlefs.wire.pointers import struct_shape
from puzzlefs.wire.table import WireInodeTable
from puzzlefs.wire.verity_table import VerityTable

_SHAPE = struct_shape(1, 2)
_WORDS = 3

MAX_METADATA_LAYERS = 4096
"""A lookup asks the layers one after the other, so their number is bounded. No real image comes near."""


class WireRootfs(NamedTuple):
    """What a rootfs blob says.

    Attributes:
        version: its ``manifestVersion``.
        metadata_refs: versions 1 and 2: where the metadata layers are, topmost first; else empty.
        tables: version 3: the metadata layers, topmost first, read lazily; else empty.
        verity: sha256 of a stored blob → fs-verity digest of the same bytes, read lazily.
    """

    version: int
    metadata_refs: tuple[BlobRef, ...]
    tables: tuple[InodeTable, ...]
    verity: Mapping[Digest, VerityDigest]


def rootfs_version(data: Buffer) -> int:
    """The ``manifestVersion`` of a rootfs blob, whatever it is.

    The struct has the same shape in all versions, and nothing else tells versions 2 and 3 apart: bytes of one, read
    with the schema of the other, give zeroed inodes and no error.

    Raises:
        FormatError: the message is malformed.
    """
    return RootfsReader(data).version


class RootfsReader:
    """A rootfs blob, opened.

    Attributes:
        message: the message.
        version: its ``manifestVersion``.
    """

    __slots__ = ("_pointer_words", "_pointers", "_segment", "message", "version")

    def __init__(self, data: Buffer) -> None:
        self.message = Message(data)
        segment, start, data_words, pointer_words = self.message.struct_at(*self.message.root(), "rootfs")
        self.version = self.message.words[start] if data_words else 0
        self._segment = segment
        self._pointers = start + data_words
        self._pointer_words = pointer_words

    def expect(self, version: int) -> None:
        """Check the version before anything else is read.

        Raises:
            FormatError: it is another one.
        """
        if self.version != version:
            raise FormatError(f"the rootfs is of format version {self.version}, not {version}")

    def metadatas(self) -> tuple[int, int, int, int, int]:
        """The list of metadata layers or references to them, as ``Message.records_at`` returns it.

        Raises:
            FormatError: it is malformed or absurdly long.
        """
        if self._pointer_words < 1:
            return self._segment, self._pointers, 0, 0, 0
        records = self.message.records_at(self._segment, self._pointers, "metadata layers")
        if records[2] > MAX_METADATA_LAYERS:
            raise FormatError(f"{records[2]} metadata layers; at most {MAX_METADATA_LAYERS} are read")
        return records

    def blob_refs(self) -> tuple[BlobRef, ...]:
        """Versions 1 and 2: the references to the metadata layers.

        Raises:
            FormatError: one is malformed.
        """
        segment, first, count, data_words, pointer_words = self.metadatas()
        stride = data_words + pointer_words
        try:
            return tuple(
                blob_ref(self.message, segment, position, data_words, pointer_words)
                for position in range(first, first + count * stride, stride or 1)
            )
        except FormatError as error:
            raise FormatError(f"reference to a metadata layer: {error.message}") from error

    def verity_records(self) -> tuple[int, int, int, int, int]:
        """The list of verity digests, as ``Message.records_at`` returns it.

        Raises:
            FormatError: it is malformed.
        """
        if self._pointer_words < 2:
            return self._segment, self._pointers, 0, 0, 0
        return self.message.records_at(self._segment, self._pointers + 1, "verity digests")

    def verity(self) -> VerityTable:
        """The verity digests.

        Raises:
            FormatError: their list is malformed.
        """
        return VerityTable(self.message, self.verity_records())


def inode_table(message: Message, segment: int, at: int, *, file_struct: bool) -> WireInodeTable:
    """The inodes of the ``InodeVector`` struct that the pointer at word ``at`` refers to.

    Raises:
        FormatError: it is malformed.
    """
    segment, start, data_words, pointer_words = message.struct_at(segment, at, "inode vector")
    return vector_table(message, segment, start + data_words, pointer_words, file_struct=file_struct)


def vector_table(
    message: Message, segment: int, pointers: int, pointer_words: int, *, file_struct: bool
) -> WireInodeTable:
    """The inodes of the ``InodeVector`` struct whose pointer section is at ``pointers``.

    Raises:
        FormatError: it is malformed.
    """
    records = message.records_at(segment, pointers, "inodes") if pointer_words else (segment, pointers, 0, 0, 0)
    return WireInodeTable(message, records, file_struct=file_struct)


def decode_inode_vector(data: Buffer, *, file_struct: bool) -> WireInodeTable:
    """The inodes of a metadata blob.

    Raises:
        FormatError: the message is malformed.
    """
    message = Message(data)
    return inode_table(message, *message.root(), file_struct=file_struct)


def encode_inode_vector(inodes: Sequence[Inode], *, file_struct: bool) -> bytes:
    """A metadata blob.

    Raises:
        FormatError: a number does not fit its field, or there is more than a message can hold.
        InvalidArgumentError: the inodes are not sorted by number.
    """
    arena = Arena()
    segment, start = arena.reserve(0, 0, struct_shape(0, 1), 1)
    encode_inode_list(arena, segment, start, inodes, file_struct=file_struct)
    return arena.message()


class RootfsWriter:
    """A rootfs blob under construction: the layers are to be written at ``metadatas``, then ``finish`` is called.

    Attributes:
        arena: where it is built.
        segment: segment of the struct.
        metadatas: the word of the pointer to the layers.
    """

    __slots__ = ("arena", "metadatas", "segment")

    def __init__(self, version: int) -> None:
        self.arena = Arena()
        self.segment, start = self.arena.reserve(0, 0, _SHAPE, _WORDS)
        self.arena.segment(self.segment)[start << 3 : start + 1 << 3] = version.to_bytes(8, "little")
        self.metadatas = start + 1

    def finish(self, verity: Mapping[Digest, VerityDigest]) -> bytes:
        """Write the verity digests; the blob."""
        encode_verity(self.arena, self.segment, self.metadatas + 1, verity)
        return self.arena.message()
