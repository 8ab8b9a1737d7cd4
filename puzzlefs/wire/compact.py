"""Model → the rootfs blob of a compressed version 3 image: one segment, every digest and every short name once.

What ``encode`` writes is bound to the bytes of the original. A compressed image is not: its digest depends on the zstd
library anyway. So here pointers share what they refer to, which Cap'n Proto readers do not notice: all references to a
chunk, and its entry among the verity digests, point to the same 32 bytes, and entries of one name to one name.

The message is one segment, because a pointer within a segment needs no landing pad wherever it leads::

    root pointer · Rootfs · pointers to the layers · inode list of each layer
    · what hangs on the inodes, in their order · shared names · verity digests · digests · verity list

What inodes share lies behind everything that refers to it: their pointers lead forward, as the quick reader expects.
The verity list comes last, because whoever puts a layer on top writes a new one (``on_top``) and cuts this one off.
Names longer than ``SHARED_NAME_SIZE`` are not shared: a reader that bounds its work by the size of the message
(``Ledger``) pays for a name each time that it is met.

Sizes of all but the digests are known before the first word is written, so the message is made in place, in one pass.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, assert_never

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, InvalidArgumentError
from puzzlefs.model import (
    BlockDevice,
    CharDevice,
    Directory,
    Fifo,
    FileChunk,
    Inode,
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
    kind_of,
)
from puzzlefs.wire.arena import MAX_SEGMENT_WORDS
from puzzlefs.wire.pointers import OFFSET_MASK, data_shape, records_shape, records_tag, struct_shape
from puzzlefs.wire.shapes import (
    ADDITIONAL_SHAPE,
    BLOB_REF_SHAPE,
    BLOB_REF_WORDS,
    DEVICE_SHAPE,
    DIGEST_SHAPE,
    DIGEST_WORDS,
    DIR_SHAPE,
    ONE_CHUNK_SHAPE,
    ONE_CHUNK_TAG,
)

SHARED_NAME_SIZE: Final = 32
"""Bytes of the longest name that entries share."""

_ROOTFS_WORDS: Final = 3
_INODE_POINTERS: Final = 2
_PERMISSIONS: Final = 0o7777

_inode_head = struct.Struct("<QHHII4x")
_one_chunk = struct.Struct("<6Q")
_EMPTY_DATA = data_shape(0)


def encode_compact_rootfs(
    version: int, layers: Sequence[Sequence[Inode]], verity: Mapping[Digest, VerityDigest]
) -> bytes:
    """The rootfs blob.

    Args:
        version: the ``manifestVersion``; layouts of other versions than 3 are different.
        layers: the metadata layers, topmost first.
        verity: written sorted by digest.

    Raises:
        FormatError: a number does not fit its field, or there is more than one segment can hold.
        InvalidArgumentError: the inodes are not sorted by number.
    """
    return _Writer(layers, verity).write(version)


class _Writer:
    """One message under construction. Positions are words of the segment."""

    def __init__(self, layers: Sequence[Sequence[Inode]], verity: Mapping[Digest, VerityDigest]) -> None:
        self._layers = layers
        self._verity = sorted(verity.items())
        self._digests = {digest: index for index, (digest, _) in enumerate(self._verity)}
        self._names: dict[bytes, int] = {}
        self._names_size = 0
        self._with_mtime = [any(inode.mtime_ns is not None for inode in layer) for layer in layers]
        lists = sum(
            1 + len(layer) * (3 + with_mtime + _INODE_POINTERS)
            for layer, with_mtime in zip(layers, self._with_mtime, strict=True)
        )
        self._lists = 1 + _ROOTFS_WORDS + 1 + len(layers)  # the root pointer, the layers' list
        self._contents = self._lists + lists
        self._names_start = self._contents + sum(self._content_words(inode) for layer in layers for inode in layer)
        self._values = self._names_start + self._names_size
        self._digests_start = self._values + DIGEST_WORDS * len(self._verity)
        _check_size(self._digests_start)
        self._words = bytearray(self._digests_start << 3)

    def write(self, version: int) -> bytes:
        count = len(self._layers)
        self._pack(0, struct_shape(1, 2), version, records_shape(count, 0, 1) | 1 << 2, 0, records_tag(count, 0, 1))
        start = self._lists
        at = self._contents
        for index, (layer, with_mtime) in enumerate(zip(self._layers, self._with_mtime, strict=True)):
            pointer = 1 + _ROOTFS_WORDS + 1 + index
            shape = records_shape(len(layer), 3 + with_mtime, _INODE_POINTERS)
            self._pack(pointer, self._pointer(pointer, start, shape))
            start, at = self._put_layer(start, at, layer, with_mtime)
        position = self._names_start << 3
        for name in self._names:
            self._words[position : position + len(name)] = name
            position += len(name) + 7 & ~7
        self._words += b"".join(self._digests)
        self._put_verity()
        size = len(self._words) >> 3
        _check_size(size)
        return b"".join((struct.pack("<II", 0, size), self._words))

    # ---- sizes

    def _content_words(self, inode: Inode) -> int:
        """Words of what hangs on an inode; gives its short names their places."""
        content = inode.content
        words = 0
        match content:
            case RegularFile():
                words = 1 + (2 + BLOB_REF_WORDS) * len(content.chunks)
            case Directory():
                words = 3 + 2 * len(content.entries)
                names = self._names
                for entry in content.entries:
                    name = entry.name
                    if len(name) > SHARED_NAME_SIZE:
                        words += len(name) + 7 >> 3
                    elif name not in names:
                        # The place within the names' area; where that begins is known after all sizes are.
                        names[name] = self._names_size
                        self._names_size += len(name) + 7 >> 3
            case CharDevice() | BlockDevice():
                words = 2
            case _:
                pass
        target = content.target if isinstance(content, Symlink) else None
        if inode.xattrs or target is not None:
            words += 3 + 2 * len(inode.xattrs) + (len(target or b"") + 7 >> 3)
            words += sum((len(xattr.key) + 7 >> 3) + (len(xattr.value) + 7 >> 3) for xattr in inode.xattrs)
        return words

    # ---- inodes

    def _put_layer(self, start: int, at: int, layer: Sequence[Inode], with_mtime: bool) -> tuple[int, int]:
        """Write an inode list at ``start`` and what hangs on it at ``at``; where both end."""
        data_words = 3 + with_mtime
        self._pack(start, records_tag(len(layer), data_words, _INODE_POINTERS))
        position = start + 1
        previous = 0
        for inode in layer:
            ino = inode.ino
            if ino < previous:
                raise InvalidArgumentError(f"inode {ino} comes after inode {previous}: a layer is sorted by number")
            previous = ino
            if inode.permissions & ~_PERMISSIONS:
                raise FormatError(f"inode {ino}: permissions {inode.permissions:#o} have more than 12 bits")
            try:
                kind = kind_of(inode.content)
                _inode_head.pack_into(self._words, position << 3, ino, kind, inode.permissions, inode.uid, inode.gid)
                if with_mtime:
                    struct.pack_into("<q", self._words, position + 3 << 3, inode.mtime_ns or 0)
                at = self._put_content(position + data_words, at, inode)
            except struct.error as error:
                raise FormatError(f"inode {ino}: a number does not fit its field: {error}") from error
            except FormatError as error:
                raise FormatError(f"inode {ino}: {error.message}") from error
            position += data_words + _INODE_POINTERS
        return position, at

    def _put_content(self, slot: int, at: int, inode: Inode) -> int:
        """Write what hangs on an inode, whose pointers are at ``slot``, at ``at``; where it ends."""
        content = inode.content
        target: bytes | None = None
        end = at
        match content:
            case RegularFile():
                end = self._put_file(slot, at, content.chunks)
            case Directory():
                end = self._put_directory(slot, at, content)
            case Symlink():
                target = content.target
            case CharDevice() | BlockDevice():
                self._pack(slot, self._pointer(slot, at, DEVICE_SHAPE))
                self._pack(at, content.major, content.minor)
                end = at + 2
            case Fifo() | Socket() | Whiteout():
                pass
            case _:
                assert_never(content)
        if inode.xattrs or target is not None:
            end = self._put_additional(slot + 1, end, inode.xattrs, target)
        return end

    def _put_file(self, slot: int, at: int, chunks: Sequence[FileChunk]) -> int:
        count = len(chunks)
        if count == 1:  # most files
            chunk = chunks[0]
            blob = chunk.blob
            self._pack(slot, self._pointer(slot, at, ONE_CHUNK_SHAPE))
            _one_chunk.pack_into(
                self._words,
                at << 3,
                ONE_CHUNK_TAG,
                chunk.length,
                BLOB_REF_SHAPE,
                blob.offset,
                blob.compressed,
                self._digest_pointer(at + 5, blob.digest),
            )
            return at + 6
        self._pack(slot, self._pointer(slot, at, records_shape(count, 1, 1)))
        self._pack(at, records_tag(count, 1, 1))
        entry, ref = at + 1, at + 1 + 2 * count
        for chunk in chunks:
            blob = chunk.blob
            self._pack(entry, chunk.length, self._pointer(entry + 1, ref, BLOB_REF_SHAPE))
            self._pack(ref, blob.offset, blob.compressed, self._digest_pointer(ref + 2, blob.digest))
            entry += 2
            ref += BLOB_REF_WORDS
        return ref

    def _put_directory(self, slot: int, at: int, directory: Directory) -> int:
        entries = directory.entries
        count = len(entries)
        self._pack(slot, self._pointer(slot, at, DIR_SHAPE))
        self._pack(at, directory.look_below, records_shape(count, 1, 1), records_tag(count, 1, 1))
        position = at + 3
        end = position + 2 * count
        for entry in entries:
            name = entry.name
            size = len(name)
            if size > SHARED_NAME_SIZE:
                self._words[end << 3 : (end << 3) + size] = name
                place = end
                end += size + 7 >> 3
            else:
                place = self._names_start + self._names[name]
            self._pack(position, entry.ino, place - position - 2 << 2 | size << 35 | _EMPTY_DATA)
            position += 2
        data_shape(end - at << 3)  # no name is longer than all of them
        return end

    def _put_additional(self, slot: int, at: int, xattrs: Sequence[Xattr], target: bytes | None) -> int:
        count = len(xattrs)
        self._pack(slot, self._pointer(slot, at, ADDITIONAL_SHAPE))
        self._pack(at, records_shape(count, 0, 2) | 1 << 2, 0, records_tag(count, 0, 2))
        position = at + 3
        end = position + 2 * count
        for xattr in sorted(xattrs, key=lambda xattr: xattr.key):
            end = self._put_data(position + 1, end, xattr.value)
            end = self._put_data(position, end, xattr.key)
            position += 2
        return end if target is None else self._put_data(at + 1, end, target)

    def _put_data(self, slot: int, at: int, data: bytes) -> int:
        self._pack(slot, self._pointer(slot, at, data_shape(len(data))))
        self._words[at << 3 : (at << 3) + len(data)] = data
        return at + (len(data) + 7 >> 3)

    # ---- what is shared

    def _put_verity(self) -> None:
        count = len(self._verity)
        start = len(self._words) >> 3
        self._words += bytes(1 + 2 * count << 3)
        self._pack(3, self._pointer(3, start, records_shape(count, 0, 2)))
        self._pack(start, records_tag(count, 0, 2))
        position = start + 1
        value = self._values
        for digest, verity in self._verity:
            self._pack(
                position, self._digest_pointer(position, digest), self._pointer(position + 1, value, DIGEST_SHAPE)
            )
            self._words[value << 3 : value + DIGEST_WORDS << 3] = verity
            position += 2
            value += DIGEST_WORDS

    def _digest_pointer(self, at: int, digest: Digest) -> int:
        """The pointer at ``at`` to a digest, which gets a place if it has none (where no verity digest names it)."""
        index = self._digests.setdefault(digest, len(self._digests))
        return self._pointer(at, self._digests_start + DIGEST_WORDS * index, DIGEST_SHAPE)

    def _pointer(self, at: int, to: int, shape: int) -> int:
        return (to - at - 1 & OFFSET_MASK) << 2 | shape

    def _pack(self, at: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self._words, at << 3, *words)


def _check_size(words: int) -> None:
    if words > MAX_SEGMENT_WORDS:
        raise FormatError("there is more metadata than one segment of a Cap'n Proto message can hold")
