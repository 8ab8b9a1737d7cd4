#!/usr/bin/env python3
"""What metadata would take in a version 4: a prototype of the layout only, which nothing reads back.

    python benchmarks/metadata_prototype.py OCI_DIR

OCI_DIR holds versions of one image, in the order of its tags, built with ``-c``. For each way of storing their metadata
this prints what the first version takes and what all of them take together, blobs that are the same counted once.

The ways, from what there is to what could be (``docs/adr/0012``):

* version 3 as the original writes it, compact, and compact as zstd (``--compress-metadata``);
* *packs*: directories in the order in which they are visited, each with the inodes of its entries. No inode has a
  number, since the order gives it; so what did not change is the same bytes, wherever it stands. The row of directories
  is cut where the content of one says so, and each piece is a zstd blob of its own;
* the same, but chunks are numbers in a list that belongs to the pack, and that list is an OCI manifest of its own:
  the tag is an OCI index of such manifests. What did not change is then shared as well.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zstandard

from puzzlefs.blobs import Layout
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image import Image, open_image
from puzzlefs.model import (
    ROOT_INO,
    BlockDevice,
    CharDevice,
    Directory,
    Inode,
    RegularFile,
    Symlink,
    kind_of,
)
from puzzlefs.oci import Descriptor, Manifest, media_types
from puzzlefs.wire import codec_for, encode_compact_rootfs

_PACK_DIRECTORIES: Final = 64
"""Directories in a pack, on average."""
_LEVEL: Final = 12
_DESCRIPTOR_IN_INDEX: Final = 190
"""Bytes that an OCI index takes for each manifest, with an annotation that says which pack it is."""


@dataclass
class Way:
    """One way to store metadata: the blobs of all versions so far.

    Attributes:
        first: bytes of the first version.
        blobs: bytes of each distinct blob.
    """

    first: int = 0
    blobs: dict[bytes, int] = field(default_factory=dict)

    def add(self, blobs: Iterable[bytes]) -> None:
        """Store one more version."""
        for blob in blobs:
            self.blobs[hashlib.sha256(blob).digest()] = len(blob)
        self.first = self.first or sum(self.blobs.values())


@dataclass
class Pack:
    """A run of directories.

    Attributes:
        records: their bytes, with chunks as numbers.
        chunks: which chunks those are, in the order of their first use.
    """

    records: bytearray = field(default_factory=bytearray)
    chunks: dict[Digest, int] = field(default_factory=dict)


def packs_of(image: Image) -> Iterator[Pack]:
    """The directories of an image, cut by content."""
    inodes = {inode.ino: inode for inode in image.rootfs.metadata_layers[0]}
    seen: set[int] = set()
    stack = [ROOT_INO]
    pack = Pack()
    while stack:
        content = inodes[stack.pop()].content
        if not isinstance(content, Directory):
            continue
        start = len(pack.records)
        pack.records += struct.pack("<I", len(content.entries))
        below = []
        for entry in content.entries:
            inode = inodes[entry.ino]
            is_again = entry.ino in seen  # a further name of a hard link, which has to say whose
            seen.add(entry.ino)
            pack.records += struct.pack("<B", len(entry.name)) + entry.name
            pack.records += struct.pack("<Q", entry.ino) if is_again else record_of(inode, pack.chunks)
            if isinstance(inode.content, Directory):
                below.append(entry.ino)
        stack += reversed(below)
        if hashlib.sha256(pack.records[start:]).digest()[0] * _PACK_DIRECTORIES < 256:
            yield pack
            pack = Pack()
    yield pack


def record_of(inode: Inode, chunks: dict[Digest, int]) -> bytes:
    """An inode without its number."""
    content = inode.content
    rest = b""
    match content:
        case RegularFile():
            rest = struct.pack("<I", len(content.chunks))
            for chunk in content.chunks:
                number = chunks.setdefault(chunk.blob.digest, len(chunks))
                rest += struct.pack("<II?I", number, chunk.blob.offset, chunk.blob.compressed, chunk.length)
        case Symlink():
            rest = struct.pack("<H", len(content.target)) + content.target
        case CharDevice() | BlockDevice():
            rest = struct.pack("<II", content.major, content.minor)
        case _:
            pass
    for xattr in inode.xattrs:
        rest += struct.pack("<BI", len(xattr.key), len(xattr.value)) + xattr.key + xattr.value
    head = struct.pack("<BHIIqB", kind_of(content), inode.permissions, inode.uid, inode.gid, inode.mtime_ns or 0, 0)
    return head + rest


def manifest_of(rootfs: list[Descriptor], chunks: Iterable[Descriptor]) -> bytes:
    return Manifest.of([*rootfs, *chunks]).encode()


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    layout = Path(sys.argv[1])
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    ways: dict[str, Way] = {}

    def add(name: str, blobs: Iterable[bytes]) -> None:
        ways.setdefault(name, Way()).add(blobs)

    with Layout.open(layout) as opened:
        tags = opened.read_index().tags()
    for tag in sorted(tags, key=lambda tag: (len(tag), tag)):
        with open_image(f"{layout}:{tag}") as image:
            if image.manifest is None:
                sys.exit("metadata_prototype: version 3 images are needed")
            rootfs, *listed = image.manifest.layers()
            by_digest = {descriptor.digest: descriptor for descriptor in listed}
            layer = list(image.rootfs.metadata_layers[0])
            verity = dict(image.rootfs.verity)
            repeated = [
                by_digest[chunk.blob.digest]
                for inode in layer
                if isinstance(inode.content, RegularFile)
                for chunk in inode.content.chunks
                if not chunk.blob.offset
            ]
            packs = list(packs_of(image))
        plain = codec_for(3).encode_rootfs(layers=[layer], metadata_refs=(), verity=verity)
        compact = encode_compact_rootfs(3, [layer], verity)
        manifest = manifest_of([rootfs], listed)
        add("version 3, as the original writes it: rootfs", [plain])
        add("version 3, as the original writes it: with its manifest", [plain, manifest_of([rootfs], repeated)])
        add("version 3, compact: rootfs", [compact])
        add("version 3, compact: with its manifest", [compact, manifest])
        add("version 3, compact as zstd: rootfs", [compressor.compress(compact)])
        add("version 3, compact as zstd: with its manifest", [compressor.compress(compact), manifest])
        without = encode_compact_rootfs(3, [layer], {})
        add("version 3, compact as zstd, no verity digests: rootfs", [compressor.compress(without)])

        inside, numbered, lists, verities = [], [], [], []
        for pack in packs:
            records = compressor.compress(bytes(pack.records))
            table = b"".join(pack.chunks)
            values = b"".join(verity.get(digest, VerityDigest(bytes(32))) for digest in pack.chunks)
            inside.append(compressor.compress(bytes(pack.records) + table))
            numbered.append(records)
            verities.append(values)
            own = Descriptor(media_types.INODES, Digest.of(records), len(records))
            lists.append(manifest_of([own], [by_digest[digest] for digest in pack.chunks]))
        index = bytes(tag, "ascii") + bytes(_DESCRIPTOR_IN_INDEX * len(packs))
        add("packs with their chunks' digests", inside)
        add("packs with their chunks' digests: with one manifest", [*inside, manifest])
        add("packs with chunks as numbers", numbered)
        add("packs with chunks as numbers: with an index of manifests", [*numbered, *lists, index])
        add("verity digests of the packs' chunks, apart", verities)
    print(f"| metadata of {len(tags)} versions, kB | first | all | one more |")
    print("|---|---|---|---|")
    for name, way in ways.items():
        total = sum(way.blobs.values())
        more = (total - way.first) / max(len(tags) - 1, 1)
        print(f"| {name} | {way.first / 1000:.0f} | {total / 1000:.0f} | {more / 1000:.0f} |")


if __name__ == "__main__":
    main()
