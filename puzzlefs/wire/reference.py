"""The same blobs, decoded with pycapnp and the schemas that are shipped: what our own decoder is held against.

Not on the road of a mount (pycapnp costs 60 ms to load and 24 µs an inode): tests and integrity checks come here.
Everything is decoded at once. Only this module imports ``capnp``.

* One ``SchemaParser`` for each version, for the versions' files have the same ids, and two files with one id in one
  parser abort the process.
* The traversal limit grows with the message. The default of 8 M words is less than a large image has, and no limit at
  all lets a small message (a list of half a milliard elements of no size) keep a reader busy for minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import capnp

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, UnsupportedVersionError
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

capnp.remove_import_hook()  # nobody asked for ``import some_capnp``

_TRAVERSAL_FACTOR = 16  # one walk takes less than three words for each of the message
_PERMISSIONS = 0o7777

# Directory of the schemas below ``format/``, and the files that define Rootfs and InodeVector.
_FILES: Mapping[int, tuple[str, str, str]] = {
    1: (".", "manifest.capnp", "metadata.capnp"),
    2: ("v2", "manifest.capnp", "metadata.capnp"),
    3: ("v3", "metadata.capnp", "metadata.capnp"),
}

_Decoded = TypeVar("_Decoded")


@dataclass(frozen=True, slots=True)
class ReferenceRootfs:
    """What pycapnp says about a rootfs blob.

    Attributes:
        version: its ``manifestVersion``.
        metadata_refs: versions 1 and 2: where the metadata layers are; else empty.
        layers: version 3: the inodes of each metadata layer; else empty.
        verity: sha256 of a stored blob → fs-verity digest, in the order of the blob.
    """

    version: int
    metadata_refs: tuple[BlobRef, ...]
    layers: tuple[tuple[Inode, ...], ...]
    verity: Mapping[Digest, VerityDigest]


def schema_directory() -> Path:
    """Where the schemas are: inside of the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: they are missing from this installation.
    """
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "format", package.parent / "format"):
        if (directory / "metadata.capnp").is_file():
            return directory
    raise FileNotFoundError(f"the wire schemas are missing beside {package}")


def decode_inode_vector(version: int, data: bytes) -> tuple[Inode, ...]:
    """The inodes of a metadata blob of version 1 or 2.

    ``mtime_ns`` is 0, never ``None``, where the blob has none: pycapnp does not tell.

    Raises:
        FormatError: pycapnp refuses the message, or a value in it is not what the model allows.
        UnsupportedVersionError: nobody knows that version.
    """
    schema = _schemas(version)[1]
    return _reading(schema.InodeVector, data, lambda vector: tuple(_inode(version, inode) for inode in vector.inodes))


def decode_rootfs(version: int, data: bytes) -> ReferenceRootfs:
    """A rootfs blob, read with the schema of ``version`` whatever it says about itself.

    Raises:
        FormatError: pycapnp refuses the message, or a value in it is not what the model allows.
        UnsupportedVersionError: nobody knows that version.
    """

    def decode(rootfs: Any) -> ReferenceRootfs:
        embedded = version == 3
        return ReferenceRootfs(
            version=rootfs.manifestVersion,
            metadata_refs=() if embedded else tuple(_blob_ref(ref) for ref in rootfs.metadatas),
            layers=tuple(tuple(_inode(version, inode) for inode in vector.inodes) for vector in rootfs.metadatas)
            if embedded
            else (),
            verity={Digest(entry.digest): VerityDigest(entry.verity) for entry in rootfs.fsVerityData},
        )

    return _reading(_schemas(version)[0].Rootfs, data, decode)


@cache
def _schemas(version: int) -> tuple[Any, Any]:
    """The modules that define ``Rootfs`` and ``InodeVector`` in a version."""
    try:
        directory, rootfs, inodes = _FILES[version]
    except KeyError:
        raise UnsupportedVersionError(version) from None
    base = schema_directory() / directory
    parser = capnp.SchemaParser()
    # The parser owns the loaded schemas: a module keeps it alive.
    module = parser.load(str(base / rootfs))
    return module, module if inodes == rootfs else parser.load(str(base / inodes))


def _reading(schema: Any, data: bytes, decode: Callable[[Any], _Decoded]) -> _Decoded:
    try:
        limit = _TRAVERSAL_FACTOR * len(data) // 8 + 1024
        with schema.from_bytes(data, traversal_limit_in_words=limit) as reader:
            return decode(reader)
    except (capnp.KjException, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise FormatError(f"pycapnp refuses the message: {first_line}") from error


def _inode(version: int, inode: Any) -> Inode:
    return Inode(
        ino=inode.ino,
        uid=inode.uid,
        gid=inode.gid,
        permissions=inode.permissions & _PERMISSIONS,
        content=_content(version, inode),
        xattrs=tuple(Xattr(bytes(xattr.key), bytes(xattr.val)) for xattr in inode.additional.xattrs),
        mtime_ns=inode.mtimeNs,
    )


def _content(version: int, inode: Any) -> Content:
    mode = inode.mode
    kind = str(mode.which())
    match kind:
        case "file":
            chunks = mode.file.chunks if version == 1 else mode.file
            return RegularFile.of(tuple(FileChunk(_blob_ref(chunk.blob), chunk.len) for chunk in chunks))
        case "dir":
            entries = tuple(DirEntry(entry.ino, bytes(entry.name)) for entry in mode.dir.entries)
            return Directory(entries, mode.dir.lookBelow)
        case "lnk":
            return Symlink(bytes(inode.additional.symlinkTarget))
        case "chr":
            return CharDevice(mode.chr.major, mode.chr.minor)
        case "blk":
            return BlockDevice(mode.blk.major, mode.blk.minor)
        case "fifo":
            return Fifo()
        case "sock":
            return Socket()
        case "wht":
            return Whiteout()
        case _:
            raise FormatError(f"inode {inode.ino} is of the kind {kind!r}")


def _blob_ref(ref: Any) -> BlobRef:
    return BlobRef(Digest(ref.digest), ref.offset, ref.compressed)
