"""Decoding with pycapnp: what it refuses, and that a small message does not keep it busy."""

from __future__ import annotations

import struct
import time

import pytest

from puzzlefs.errors import FormatError, UnsupportedVersionError
from puzzlefs.model import Fifo, Inode
from puzzlefs.wire import codec_for
from puzzlefs.wire.pointers import records_shape, records_tag, struct_shape
from puzzlefs.wire.reference import decode_inode_vector, decode_rootfs, schema_directory

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("data", [b"", bytes(4), b"\xff" * 64, bytes(7) + b"x", struct.pack("<IIQ", 0, 1, 3)])
def test_malformed_messages_are_format_errors(data: bytes) -> None:
    for version in (1, 2, 3):
        with pytest.raises(FormatError, match="pycapnp refuses"):
            decode_rootfs(version, data)
        with pytest.raises(FormatError, match="pycapnp refuses"):
            decode_inode_vector(version, data)


def test_unknown_versions() -> None:
    with pytest.raises(UnsupportedVersionError):
        decode_rootfs(4, b"")


def test_values_that_the_model_does_not_allow() -> None:
    words = [struct_shape(0, 1), records_shape(1, 3, 2), records_tag(1, 3, 2), 17, 0, 0, 0, 0]
    with pytest.raises(FormatError, match="inode 17 is of the kind 'unknown'"):
        decode_inode_vector(2, struct.pack("<II8Q", 0, 8, *words))


def test_half_a_milliard_elements_of_no_size() -> None:
    words = [struct_shape(0, 1), records_shape(0, 0, 0), records_tag((1 << 29) - 1, 0, 0)]
    start = time.process_time()
    with pytest.raises(FormatError, match="pycapnp refuses"):
        decode_inode_vector(2, struct.pack("<II3Q", 0, 3, *words))
    assert time.process_time() - start < 1


def test_all_versions_in_one_process() -> None:
    """Their schemas have the same ids, so each needs a parser of its own."""
    inode = Inode(1, 2, 3, 0o600, Fifo(), (), 5)
    for _ in range(2):
        for version in (1, 2):
            assert decode_inode_vector(version, codec_for(version).encode_inode_vector([inode])) == (inode,)
        data = codec_for(3).encode_rootfs(layers=[[inode]], metadata_refs=[], verity={})
        assert decode_rootfs(3, data).layers == ((inode,),)


def test_the_schemas_are_found() -> None:
    assert sorted(str(path.relative_to(schema_directory())) for path in schema_directory().rglob("*.capnp")) == [
        "manifest.capnp",
        "metadata.capnp",
        "v2/manifest.capnp",
        "v2/metadata.capnp",
        "v3/metadata.capnp",
    ]
