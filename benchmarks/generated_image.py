#!/usr/bin/env python3
"""An image of as many inodes as asked for, made through the library's encoder, without a tree on the host.

    python benchmarks/generated_image.py LAYOUT:TAG INODES

It is for measuring what mounting costs: directories of a thousand files each, and all files are parts of one chunk.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.image import dialect_of
from puzzlefs.image_commit import StoredChunk, commit_image
from puzzlefs.model import BlobRef, Directory, DirEntry, FileChunk, Inode, RegularFile
from puzzlefs.oci import parse_reference
from puzzlefs.verity import verity_digest

_VERSION = 3
_CHUNK_SIZE = 65536
_FILE_SIZE = 64
_FILES_PER_DIRECTORY = 1000


def generate(reference: str, number: int) -> None:
    """Make an image of ``number`` inodes, the root included."""
    target = parse_reference(reference)
    data = random.Random(4).randbytes(_CHUNK_SIZE)
    with Layout.open_or_create(target.layout, dialect_of(_VERSION)) as layout, BlobWriter(layout) as writer:
        digest = writer.put(data)
        inodes = list(_inodes(number, [BlobRef(digest, at, False) for at in range(0, _CHUNK_SIZE, _FILE_SIZE)]))
        commit_image(
            layout,
            target.tag,
            version=_VERSION,
            layers=[inodes],
            chunks=[StoredChunk(digest, len(data), False)],
            verity={digest: verity_digest(data)},
            writer=writer,
        )


def _inodes(number: int, places: list[BlobRef]) -> Iterator[Inode]:
    """Numbers as ``build`` gives them: first the entries of the root, then those of each directory in turn."""
    count = (number - 1) // (_FILES_PER_DIRECTORY + 1)
    loose = number - 1 - count * (_FILES_PER_DIRECTORY + 1)

    def files(first: int, last: int) -> Iterator[Inode]:
        for ino in range(first, last):
            chunk = FileChunk(places[ino % len(places)], _FILE_SIZE)
            yield Inode(ino, 0, 0, 0o644, RegularFile(_FILE_SIZE, (chunk,)))

    def entries(first: int, last: int, letter: str) -> tuple[DirEntry, ...]:
        return tuple(DirEntry(ino, f"{letter}{ino - first:06}".encode()) for ino in range(first, last))

    after_directories, at = 2 + count, 2 + count + loose
    top = (*entries(2, after_directories, "d"), *entries(after_directories, at, "f"))
    yield Inode(1, 0, 0, 0o755, Directory(top))
    for index in range(count):
        first = at + index * _FILES_PER_DIRECTORY
        yield Inode(2 + index, 0, 0, 0o755, Directory(entries(first, first + _FILES_PER_DIRECTORY, "f")))
    yield from files(after_directories, at + count * _FILES_PER_DIRECTORY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", help="LAYOUT:TAG")
    parser.add_argument("inodes", type=int)
    args = parser.parse_args()
    generate(args.reference, args.inodes)


if __name__ == "__main__":
    main()
