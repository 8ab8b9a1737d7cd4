"""The ``capnp`` tool reads what we write, with the schema files that we ship, as the documentation shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.model import (
    BlobRef,
    BlockDevice,
    CharDevice,
    Content,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    Xattr,
)
from puzzlefs.wire import codec_for, encode_compact_rootfs

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(shutil.which("capnp") is None, reason="the capnp tool is not installed (apt install capnproto)"),
]

ROOT = Path(__file__).resolve().parents[2]
BLOB = Digest.of(b"a chunk")
VERITY = {
    BLOB: VerityDigest(bytes(range(32))),
    Digest.of(b"another"): VerityDigest(bytes(32)),
}


def chunk(offset: int, length: int, compressed: bool = False) -> FileChunk:
    return FileChunk(BlobRef(BLOB, offset, compressed), length)


SMALL = [
    Inode(1, 0, 0, 0o1755, Directory((DirEntry(2, b"odd \xff\xfe\n"), DirEntry(3, b"n" * 255)))),
    Inode(2, 1000, (1 << 32) - 2, 0o644, RegularFile.of((chunk(0, 865), chunk(1 << 63, 1 << 40, True)))),
    Inode(3, 0, 42, 0o4755, RegularFile.of(()), (Xattr(b"security.capability", b"\x01\0"), Xattr(b"user.e", b""))),
    Inode(4, 0, 0, 0o777, Symlink(b"../etc/passwd")),
    Inode(5, 0, 0, 0o600, CharDevice(259, 1048575), (Xattr(b"trusted.x", b"x" * 200),)),
    Inode(6, 0, 0, 0o660, BlockDevice(8, 17)),
    Inode(7, 0, 0, 0o600, Fifo()),
    Inode(8, 0, 0, 0o755, Socket()),
    Inode(9, 0, 0, 0, Whiteout()),
    Inode(10, 0, 0, 0o700, Directory((), look_below=True)),
]
LARGE = [
    *SMALL,
    Inode(11, 0, 0, 0o755, Directory(tuple(DirEntry(12 + i, b"file %d" % i) for i in range(3000)))),
    *(Inode(12 + i, 0, 0, 0o644, RegularFile.of((chunk(i, i),)), (), 10**18 + i) for i in range(3000)),
]


def convert(schema: str, struct: str, data: bytes) -> Any:
    """``capnp convert binary:json format/SCHEMA STRUCT < blob``."""
    done = subprocess.run(
        ["capnp", "convert", "binary:json", f"format/{schema}", struct],
        input=data,
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return json.loads(done.stdout)


def as_json(version: int, inode: Inode) -> dict[str, Any]:
    """An inode as the tool shows it: 64-bit numbers as strings, bytes as lists of numbers, no null pointers."""
    shown: dict[str, Any] = {
        "ino": str(inode.ino),
        "mode": mode_json(version, inode.content),
        "uid": inode.uid,
        "gid": inode.gid,
        "permissions": inode.permissions,
        "mtimeNs": str(inode.mtime_ns or 0),
    }
    if inode.xattrs or isinstance(inode.content, Symlink):
        xattrs = [{"key": list(xattr.key), "val": list(xattr.value)} for xattr in inode.xattrs]
        shown["additional"] = {"xattrs": xattrs}
        if isinstance(inode.content, Symlink):
            shown["additional"]["symlinkTarget"] = list(inode.content.target)
    return shown


def mode_json(version: int, content: Content) -> dict[str, Any]:
    match content:
        case RegularFile():
            chunks = [{"blob": ref_json(chunk.blob), "len": str(chunk.length)} for chunk in content.chunks]
            return {"file": {"chunks": chunks} if version == 1 else chunks}
        case Directory():
            entries = [{"ino": str(entry.ino), "name": list(entry.name)} for entry in content.entries]
            return {"dir": {"entries": entries, "lookBelow": content.look_below}}
        case CharDevice():
            return {"chr": {"major": str(content.major), "minor": str(content.minor)}}
        case BlockDevice():
            return {"blk": {"major": str(content.major), "minor": str(content.minor)}}
        case Symlink():
            return {"lnk": None}
        case Fifo():
            return {"fifo": None}
        case Socket():
            return {"sock": None}
        case Whiteout():
            return {"wht": None}


def ref_json(ref: BlobRef) -> dict[str, Any]:
    return {"digest": list(ref.digest), "offset": str(ref.offset), "compressed": ref.compressed}


VERITY_JSON = [{"digest": list(digest), "verity": list(verity)} for digest, verity in sorted(VERITY.items())]


@pytest.mark.parametrize("layer", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("version", "directory"), [(1, ""), (2, "v2/")])
def test_metadata_blobs(version: int, directory: str, layer: Sequence[Inode]) -> None:
    data = codec_for(version).encode_inode_vector(layer)
    shown = convert(f"{directory}metadata.capnp", "InodeVector", data)
    assert shown == {"inodes": [as_json(version, inode) for inode in layer]}


@pytest.mark.parametrize(("version", "directory"), [(1, ""), (2, "v2/")])
def test_rootfs_blobs_that_refer(version: int, directory: str) -> None:
    refs = [BlobRef(Digest.of(b"top"), 0, False), BlobRef(Digest.of(b"bottom"), 7, True)]
    data = codec_for(version).encode_rootfs(layers=[], metadata_refs=refs, verity=VERITY)
    assert convert(f"{directory}manifest.capnp", "Rootfs", data) == {
        "metadatas": [ref_json(ref) for ref in refs],
        "fsVerityData": VERITY_JSON,
        "manifestVersion": str(version),
    }


def test_rootfs_blobs_that_embed() -> None:
    data = codec_for(3).encode_rootfs(layers=[SMALL, LARGE], metadata_refs=[], verity=VERITY)
    assert convert("v3/metadata.capnp", "Rootfs", data) == {
        "metadatas": [{"inodes": [as_json(3, inode) for inode in layer]} for layer in (SMALL, LARGE)],
        "fsVerityData": VERITY_JSON,
        "manifestVersion": "3",
    }


@pytest.mark.parametrize("layer", [SMALL, LARGE], ids=["small", "large"])
def test_compact_metadata_say_the_same(layer: Sequence[Inode]) -> None:
    usual = codec_for(3).encode_rootfs(layers=[layer, SMALL], metadata_refs=[], verity=VERITY)
    compact = encode_compact_rootfs(3, [layer, SMALL], VERITY)
    assert compact != usual
    assert convert("v3/metadata.capnp", "Rootfs", compact) == convert("v3/metadata.capnp", "Rootfs", usual)
