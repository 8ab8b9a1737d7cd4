"""The fs-verity file digest, computed in user space.

The file is cut into blocks of 4096 bytes, the last one padded with zeros; the SHA-256 of the blocks, one
after the other, are the next level of the tree, which is cut and hashed in the same way until one hash is
left: the Merkle root. The *file digest* is the SHA-256 of ``struct fsverity_descriptor``, which holds the
root and the size of the file. (The kernel's Documentation/filesystems/fsverity.rst, "Merkle tree" and
"fs-verity descriptor".)

Parameters are fixed: SHA-256, blocks of 4096 bytes, no salt, descriptor version 1. They are part of the image
format: a change of any of them changes every digest that was ever printed by ``puzzlefs build``.

Nothing is copied but the last block of a level: blocks are hashed through views of the caller's buffer. One
block is one call, which makes SHA-256 itself the limit on a machine with SHA instructions. The functions are
thread safe; a ``VerityHasher`` belongs to one thread at a time.
"""

from __future__ import annotations

import os
import struct
from hashlib import sha256

from puzzlefs.digest import SHA256_SIZE, VerityDigest

BLOCK_SIZE = 4096
"""Bytes of a block of the file and of the tree. Part of the format: see the design note."""

HASH_ALGORITHM_SHA256 = 1
"""``FS_VERITY_HASH_ALG_SHA256`` of ``linux/fsverity.h``."""

# struct fsverity_descriptor: version, hash_algorithm, log_blocksize, salt_size, reserved (4), data_size,
# root_hash[64], salt[32], reserved[144]; little-endian, 256 bytes.
_DESCRIPTOR = struct.Struct("<BBBB4xQ64s32x144x")
_DESCRIPTOR_VERSION = 1
_LOG_BLOCK_SIZE = 12

_EMPTY_ROOT = bytes(SHA256_SIZE)
_READ_SIZE = 1 << 20


def _hash_whole_blocks(data: memoryview) -> bytes:
    """The hashes of the blocks of ``data``, whose length is a multiple of the block size, in their order."""
    return b"".join([sha256(data[start : start + BLOCK_SIZE]).digest() for start in range(0, len(data), BLOCK_SIZE)])


def _hash_last_block(tail: bytes | bytearray | memoryview) -> bytes:
    """The hash of a block that is filled up with zeros; of no block, where ``tail`` is empty."""
    if not tail:
        return b""
    return sha256(bytes(tail).ljust(BLOCK_SIZE, b"\0")).digest()


def _file_digest(size: int, root: bytes) -> VerityDigest:
    """The digest of the descriptor of a file of ``size`` bytes with the Merkle root ``root``."""
    descriptor = _DESCRIPTOR.pack(_DESCRIPTOR_VERSION, HASH_ALGORITHM_SHA256, _LOG_BLOCK_SIZE, 0, size, root)
    return VerityDigest(sha256(descriptor).digest())


def verity_digest(data: bytes | bytearray | memoryview) -> VerityDigest:
    """The fs-verity digest of a file that holds exactly ``data``.

    Args:
        data: any contiguous buffer; it is not copied.

    Returns:
        What ``fsverity digest`` prints and what the kernel measures for such a file.
    """
    level = memoryview(data).cast("B")
    size = len(level)
    while True:  # one loop for all levels: most files are so small that calls would count
        length = len(level)
        whole = length - length % BLOCK_SIZE
        hashes = [sha256(level[start : start + BLOCK_SIZE]).digest() for start in range(0, whole, BLOCK_SIZE)]
        if whole < length:
            hashes.append(_hash_last_block(level[whole:]))
        if len(hashes) < 2:
            return _file_digest(size, hashes[0] if hashes else _EMPTY_ROOT)
        level = memoryview(b"".join(hashes))


class VerityHasher:
    """The fs-verity digest of data that comes in pieces.

    Used like the objects of ``hashlib``: any number of ``update`` calls, cut anywhere; ``digest`` may be
    asked for at any time and does not end the stream. Memory: one block for each level of the tree (seven for
    2^64 bytes).
    """

    __slots__ = ("_pending", "_size")

    def __init__(self) -> None:
        self._size = 0
        # Of each level, from the file upwards: the bytes that do not fill a block yet. There is a level above
        # the last one only when that one has had a full block.
        self._pending: list[bytearray] = [bytearray()]

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Appends ``data``, which is not kept."""
        view = memoryview(data).cast("B")
        self._size += len(view)
        # Pieces of a megabyte, so that the hashes of one huge buffer do not pile up.
        for start in range(0, len(view), _READ_SIZE):
            self._append(0, view[start : start + _READ_SIZE])

    def digest(self) -> VerityDigest:
        """The digest of everything appended so far."""
        if not self._size:
            return _file_digest(0, _EMPTY_ROOT)
        *below, top = self._pending
        hashes = b""
        for pending in below:
            # Never more than one block: a level above the file grows by whole hashes, and a block is a
            # multiple of one.
            hashes = _hash_last_block(bytes(pending) + hashes)
        hashes = bytes(top) + hashes
        # One hash is the root; otherwise the top level is one block, the file itself or several hashes.
        is_root = below and len(hashes) == SHA256_SIZE
        return _file_digest(self._size, hashes if is_root else _hash_last_block(hashes))

    def _append(self, number: int, data: memoryview) -> None:
        """Appends ``data`` to a level and the hashes of the blocks that it fills to the level above."""
        if number == len(self._pending):
            self._pending.append(bytearray())
        pending = self._pending[number]
        hashes = b""
        if pending:
            missing = BLOCK_SIZE - len(pending)
            pending += data[:missing]
            data = data[missing:]
            if len(pending) < BLOCK_SIZE:
                return
            hashes = sha256(pending).digest()
            pending.clear()
        whole = len(data) - len(data) % BLOCK_SIZE
        hashes += _hash_whole_blocks(data[:whole])
        pending += data[whole:]
        if hashes:
            self._append(number + 1, memoryview(hashes))


def verity_digest_of_file(fd: int) -> VerityDigest:
    """The fs-verity digest of the content of an open file, from its beginning to its end.

    Args:
        fd: a file descriptor that can be read at any offset; its position is neither used nor moved.

    Returns:
        The digest of the bytes that were read. Memory does not depend on the size of the file.

    Raises:
        OSError: as the host reports it.
    """
    hasher = VerityHasher()
    buffer = memoryview(bytearray(_READ_SIZE))
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        hasher.update(buffer[:count])
        offset += count
    return hasher.digest()
