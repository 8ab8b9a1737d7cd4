"""Model → messages: every object in the order in which the original implementation allocates it.

The order is part of the digest of an image (see ``arena``):

* inode vector: the inode list, then for each inode its content, then ``additional`` where there is an xattr or a
  target;
* content: ``Dir`` struct, entry list, each name · (version 1: ``File`` struct,) chunk list, then for each chunk its
  ``BlobRef`` struct and the digest · ``Chr`` or ``Blk`` struct;
* additional: struct, xattr list (an empty one too), for each xattr value before key, then the target;
* ``Rootfs``: struct, list of layers or blob references, what is in them, verity list, for each entry digest, verity.

Each of these runs is one batch of the arena. The pointers inside of a batch are relative, so most are constants.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, InvalidArgumentError
from puzzlefs.model import (
    BlobRef,
    BlockDevice,
    CharDevice,
    Directory,
    Fifo,
    FileChunk,
    Inode,
    Kind,
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
    kind_of,
)
from puzzlefs.wire.arena import Arena, Outline
from puzzlefs.wire.pointers import data_shape, records_shape, records_tag
from puzzlefs.wire.shapes import (
    ADDITIONAL_SHAPE,
    BLOB_REF_SHAPE,
    DEVICE_SHAPE,
    DIGEST_SHAPE,
    DIR_SHAPE,
    FILE_SHAPE,
    ONE_CHUNK_SHAPE,
    ONE_CHUNK_TAG,
)

_INODE_POINTERS = 2
_INODE_DATA = 3
_INODE_DATA_WITH_MTIME = 4
_inode = struct.Struct("<QHHII4xQQ")
_inode_with_mtime = struct.Struct("<QHHII4xqQQ")

_device = struct.Struct("<QQ")
_blob_ref = struct.Struct("<QQQ32s")
# The chunk list of a file of one chunk: tag, element, BlobRef (its struct follows at once), digest.
_one_chunk = struct.Struct("<QQQQQQ32s")

_PERMISSIONS = 0o7777


def encode_inode_list(arena: Arena, segment: int, at: int, inodes: Sequence[Inode], *, file_struct: bool) -> None:
    """Write ``inodes`` as the list that the pointer at word ``at`` of ``segment`` refers to.

    Args:
        file_struct: version 1, where the chunk list of a file hangs in a struct of its own.

    Raises:
        FormatError: a number does not fit its field, or there is more than a message can hold.
        InvalidArgumentError: the inodes are not sorted by number.
    """
    with_mtime = any(inode.mtime_ns is not None for inode in inodes)
    data_words = _INODE_DATA_WITH_MTIME if with_mtime else _INODE_DATA
    stride = data_words + _INODE_POINTERS
    count = len(inodes)
    shape = records_shape(count, data_words, _INODE_POINTERS)
    segment, start = arena.reserve(segment, at, shape, 1 + count * stride)
    memory = arena.segment(segment)
    struct.pack_into("<Q", memory, start << 3, records_tag(count, data_words, _INODE_POINTERS))
    position = start + 1
    previous = 0
    inode: Inode | None = None
    try:
        for inode in inodes:
            ino = inode.ino
            if ino < previous:
                raise InvalidArgumentError(f"inode {ino} comes after inode {previous}: a layer is sorted by number")
            previous = ino
            if inode.permissions & ~_PERMISSIONS:
                raise FormatError(f"permissions {inode.permissions:#o} have more than 12 bits")
            slot = position + data_words
            target: bytes | None = None
            content_pointer = additional_pointer = 0
            content = inode.content
            match content:
                case RegularFile():
                    kind = Kind.REGULAR
                    content_pointer = _put_file(arena, segment, slot, content.chunks, file_struct)
                case Directory():
                    kind = Kind.DIRECTORY
                    content_pointer = _put_directory(arena, segment, slot, content)
                case Symlink():
                    kind = Kind.SYMLINK
                    target = content.target
                case CharDevice() | BlockDevice():
                    kind = kind_of(content)
                    numbers = _device.pack(content.major, content.minor)
                    content_pointer = arena.put(segment, slot, DEVICE_SHAPE, numbers, 2, outline=_device_outline)
                case Fifo() | Socket() | Whiteout():
                    kind = kind_of(content)
                case _:
                    assert_never(content)
            if inode.xattrs or target is not None:
                additional_pointer = _put_additional(arena, segment, slot + 1, inode.xattrs, target)
            if with_mtime:
                _inode_with_mtime.pack_into(
                    memory,
                    position << 3,
                    ino,
                    kind,
                    inode.permissions,
                    inode.uid,
                    inode.gid,
                    inode.mtime_ns or 0,
                    content_pointer,
                    additional_pointer,
                )
            else:
                _inode.pack_into(
                    memory,
                    position << 3,
                    ino,
                    kind,
                    inode.permissions,
                    inode.uid,
                    inode.gid,
                    content_pointer,
                    additional_pointer,
                )
            position += stride
    except struct.error as error:
        number = "?" if inode is None else inode.ino
        raise FormatError(f"inode {number}: a number does not fit its field: {error}") from error
    except FormatError as error:
        number = "?" if inode is None else inode.ino
        raise FormatError(f"inode {number}: {error.message}") from error


def encode_blob_refs(arena: Arena, segment: int, at: int, refs: Sequence[BlobRef]) -> None:
    """Write ``refs`` as the list that the pointer at word ``at`` of ``segment`` refers to."""
    count = len(refs)
    words = [records_tag(count, 2, 1)]
    for index, ref in enumerate(refs):
        # The digest of element i lies behind the list and the digests before it.
        words += (ref.offset, ref.compressed, (3 * (count - index - 1) + 4 * index) << 2 | DIGEST_SHAPE)

    def outline() -> Outline:
        yield -1, 0, 1 + 3 * count
        for index in range(count):
            yield 3 * index + 3, 1 + 3 * count + 4 * index, 4

    batch = _pack_words(words) + b"".join(ref.digest for ref in refs)
    _write_pointer(
        arena, segment, at, arena.put(segment, at, records_shape(count, 2, 1), batch, 1 + 3 * count, outline=outline)
    )


def encode_verity(arena: Arena, segment: int, at: int, verity: Mapping[Digest, VerityDigest]) -> None:
    """Write ``verity``, sorted by digest, as the list that the pointer at word ``at`` of ``segment`` refers to."""
    count = len(verity)
    words = [records_tag(count, 0, 2)]
    for index in range(count):
        # Behind the list come eight words for each entry: digest, then verity.
        offset = 2 * (count - index) - 1 + 8 * index
        words += (offset << 2 | DIGEST_SHAPE, offset + 3 << 2 | DIGEST_SHAPE)

    def outline() -> Outline:
        yield -1, 0, 1 + 2 * count
        for index in range(count):
            start = 1 + 2 * count + 8 * index
            yield 2 * index + 1, start, 4
            yield 2 * index + 2, start + 4, 4

    batch = _pack_words(words) + b"".join([part for entry in sorted(verity.items()) for part in entry])
    _write_pointer(
        arena, segment, at, arena.put(segment, at, records_shape(count, 0, 2), batch, 1 + 2 * count, outline=outline)
    )


def _put_file(arena: Arena, segment: int, at: int, chunks: Sequence[FileChunk], file_struct: bool) -> int:
    count = len(chunks)
    if count == 1:
        chunk = chunks[0]
        blob = chunk.blob
        shape = ONE_CHUNK_SHAPE
        batch = _one_chunk.pack(
            ONE_CHUNK_TAG, chunk.length, BLOB_REF_SHAPE, blob.offset, blob.compressed, DIGEST_SHAPE, blob.digest
        )
    else:
        shape = records_shape(count, 1, 1)
        words = [records_tag(count, 1, 1)]
        blobs = []
        offset = 2 * count - 2
        for chunk in chunks:
            blob = chunk.blob
            words += (chunk.length, offset << 2 | BLOB_REF_SHAPE)
            blobs.append(_blob_ref.pack(blob.offset, blob.compressed, DIGEST_SHAPE, blob.digest))
            offset += 5
        batch = _pack_words(words) + b"".join(blobs)
    prefix = 0
    first_words = 1 + 2 * count
    if file_struct:
        prefix = first_words = 1
        batch = shape.to_bytes(8, "little") + batch
        shape = FILE_SHAPE

    def outline() -> Outline:
        if prefix:
            yield -1, 0, 1
        yield prefix - 1, prefix, 1 + 2 * count
        for index in range(count):
            start = prefix + 1 + 2 * count + 7 * index
            yield prefix + 2 * index + 2, start, 3
            yield start + 2, start + 3, 4

    return arena.put(segment, at, shape, batch, first_words, outline=outline)


def _put_directory(arena: Arena, segment: int, at: int, directory: Directory) -> int:
    entries = directory.entries
    count = len(entries)
    words = [int(directory.look_below), records_shape(count, 1, 1), records_tag(count, 1, 1)]
    names = []
    offset = 2 * count - 2
    for entry in entries:
        name = entry.name
        size = len(name)
        words += (entry.ino, offset << 2 | size << 35 | _EMPTY_DATA)
        padded = size + 7 & ~7
        names.append(name.ljust(padded, b"\0"))
        offset += (padded >> 3) - 2
    batch = _pack_words(words) + b"".join(names)
    data_shape(len(batch))  # no name is longer than all of them

    def outline() -> Outline:
        yield -1, 0, 2
        yield 1, 2, 1 + 2 * count
        start = 3 + 2 * count
        for index, entry in enumerate(entries):
            length = len(entry.name) + 7 >> 3
            yield 2 * index + 4, start, length
            start += length

    return arena.put(segment, at, DIR_SHAPE, batch, 2, outline=outline)


def _put_additional(arena: Arena, segment: int, at: int, xattrs: Sequence[Xattr], target: bytes | None) -> int:
    if len(xattrs) > 1:
        xattrs = sorted(xattrs, key=lambda xattr: xattr.key)
    count = len(xattrs)
    words = [1 << 2 | records_shape(count, 0, 2), 0, records_tag(count, 0, 2)]
    values: list[bytes] = []
    end = 3 + 2 * count
    for index, xattr in enumerate(xattrs):
        key_at = 3 + 2 * index
        value_end = end + (len(xattr.value) + 7 >> 3)
        words += (
            value_end - key_at - 1 << 2 | data_shape(len(xattr.key)),
            end - key_at - 2 << 2 | data_shape(len(xattr.value)),
        )
        values += (_padded(xattr.value), _padded(xattr.key))
        end = value_end + (len(xattr.key) + 7 >> 3)
    if target is not None:
        words[1] = end - 2 << 2 | data_shape(len(target))
        values.append(_padded(target))

    def outline() -> Outline:
        yield -1, 0, 2
        yield 0, 2, 1 + 2 * count
        start = 3 + 2 * count
        for index, xattr in enumerate(xattrs):
            for pointer, data in ((4 + 2 * index, xattr.value), (3 + 2 * index, xattr.key)):
                yield pointer, start, len(data) + 7 >> 3
                start += len(data) + 7 >> 3
        if target is not None:
            yield 1, start, len(target) + 7 >> 3

    return arena.put(segment, at, ADDITIONAL_SHAPE, _pack_words(words) + b"".join(values), 2, outline=outline)


_EMPTY_DATA = data_shape(0)


def _device_outline() -> Iterator[tuple[int, int, int]]:
    yield -1, 0, 2


def _pack_words(words: list[int]) -> bytes:
    return struct.pack(f"<{len(words)}Q", *words)


def _padded(data: bytes) -> bytes:
    return data.ljust(len(data) + 7 & ~7, b"\0")


def _write_pointer(arena: Arena, segment: int, at: int, pointer: int) -> None:
    struct.pack_into("<Q", arena.segment(segment), at << 3, pointer)
