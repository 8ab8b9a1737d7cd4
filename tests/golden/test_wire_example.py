"""The example of the format's documentation, to the bit: a change here changes the digest of every image."""

from __future__ import annotations

import hashlib

import pytest

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.model import BlobRef, Directory, DirEntry, FileChunk, Inode, RegularFile
from puzzlefs.verity import verity_digest
from puzzlefs.wire import codec_for, rootfs_version

pytestmark = pytest.mark.golden

DATA = Digest.from_hex("ef204427d2692553839ee018a219605a8c5f9ec2610299af36c5d8c173793e16")
DATA_VERITY = VerityDigest.from_hex("c436474f036803fda3f355d543eb90d214cea0d14ba45d164f542977145440a4")
VECTOR_VERITY = VerityDigest.from_hex("e0b43fc18ec618af4e2a7ee3fdbb66a21f4d55fccd89c6d81ad571ee904f5df4")


def inode(ino: int, permissions: int, content: Directory | RegularFile) -> Inode:
    return Inode(ino, 1000, 1000, permissions, content)


def part(offset: int, length: int) -> RegularFile:
    return RegularFile.of((FileChunk(BlobRef(DATA, offset, False), length),))


LAYER = [
    inode(1, 0o755, Directory((DirEntry(2, b"algorithms"), DirEntry(3, b"lorem_ipsum.txt")))),
    inode(2, 0o755, Directory((DirEntry(4, b"binary-search.txt"),))),
    inode(3, 0o644, part(0, 865)),
    inode(4, 0o644, part(865, 278)),
]


def test_the_inode_vector() -> None:
    data = codec_for(1).encode_inode_vector(LAYER)
    assert len(data) == 520
    assert hashlib.sha256(data).hexdigest() == "66c5e360889c93908b9af8e41da1fce476de152c8400d6a4504a799c1a557b39"
    assert verity_digest(data) == VECTOR_VERITY
    assert list(codec_for(1).decode_inode_vector(data)) == LAYER


def test_the_rootfs() -> None:
    vector = Digest.of(codec_for(1).encode_inode_vector(LAYER))
    ref = BlobRef(vector, 0, False)
    verity = {DATA: DATA_VERITY, vector: VECTOR_VERITY}
    data = codec_for(1).encode_rootfs(layers=[], metadata_refs=[ref], verity=verity)
    assert len(data) == 272
    assert hashlib.sha256(data).hexdigest() == "0efa2a4b490abb02a5b9b5f2d43c8262643dba48c67f14b236df0a6f1ea745d8"
    assert verity_digest(data).hex() == "9ac9abc098870c55cc61431dae8635806273d8f61274d34bec062560e79dc2f5"
    assert rootfs_version(data) == 1
    rootfs = codec_for(1).decode_rootfs(data)
    assert rootfs.metadata_refs == (ref,)
    assert dict(rootfs.verity) == verity
