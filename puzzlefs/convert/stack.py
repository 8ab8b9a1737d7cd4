"""Metadata layers → what version 3 makes of them: one rootfs blob, and the list of chunks for its manifest.

A stack is encoded as it is built: the lowest layer as a build writes it, each other one on top of those below. The list
of chunks is that of the builds, too: for each layer, the topmost first, the stream of its files. What the stream was
follows from the files, which are parts of its chunks in the order of their numbers. A file that is the same below is
not a part of the stream: only its attributes differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.image import DEFAULT_VERSION
from puzzlefs.image_commit import StoredChunk
from puzzlefs.model import FileChunk, Inode, RegularFile, Whiteout
from puzzlefs.wire import codec_for, encode_compact_rootfs, encode_on_top

Key = tuple[Digest, bool]
"""A chunk: its blob, and whether that is compressed."""


def encode_stack(
    layers: Sequence[Sequence[Inode]], verity: Mapping[Digest, VerityDigest], stored: Mapping[Key, StoredChunk]
) -> tuple[bytes, list[StoredChunk]]:
    """The rootfs blob of version 3 of a stack, and what its manifest lists.

    Args:
        layers: the metadata layers, topmost first, at least one.
        verity: the fs-verity digests of their chunks.
        stored: the chunks; those that are not there are not listed.

    Raises:
        FormatError: a number does not fit its field, or there is more than a message can hold.
    """
    *above, lowest = layers
    streams = _streams(layers)
    listed = [[stored[key] for key in stream if key in stored] for stream in streams]
    digests = _verity_of(lowest, verity)
    if any(part.blob.compressed for part in _parts(lowest)):
        rootfs = encode_compact_rootfs(DEFAULT_VERSION, [lowest], digests)
        listed[-1] = list(dict.fromkeys(listed[-1]))
    else:
        rootfs = codec_for(DEFAULT_VERSION).encode_rootfs(layers=[lowest], metadata_refs=(), verity=digests)
    for layer in reversed(above):
        rootfs = encode_on_top(rootfs, layer, _verity_of(layer, verity))
    return rootfs, [chunk for chunks in listed for chunk in chunks]


def _streams(layers: Sequence[Sequence[Inode]]) -> list[list[Key]]:
    """The chunks of the stream of each layer, in its order, repeats included."""
    streams: list[list[Key]] = []
    below: dict[int, Sequence[FileChunk]] = {}
    for layer in reversed(layers):
        files: dict[int, Sequence[FileChunk]] = {}
        others: list[int] = []
        for inode in layer:
            if isinstance(inode.content, RegularFile):
                files[inode.ino] = inode.content.chunks
            elif not isinstance(inode.content, Whiteout) or inode.ino not in files:
                others.append(inode.ino)
        streams.append(_stream(chunks for ino, chunks in files.items() if not _is_same(chunks, below.get(ino))))
        for ino in others:
            below.pop(ino, None)
        below.update(files)
    streams.reverse()
    return streams


def _stream(files: Iterable[Sequence[FileChunk]]) -> list[Key]:
    """The chunks that files which follow one another in a stream are parts of."""
    stream: list[Key] = []
    reached: tuple[Key, int] | None = None
    for chunks in files:
        for part in chunks:
            if not part.length:
                continue
            blob = part.blob
            key = (blob.digest, blob.compressed)
            if reached != (key, blob.offset):
                stream.append(key)
            reached = (key, blob.offset + part.length)
    return stream


def _is_same(chunks: Sequence[FileChunk], other: Sequence[FileChunk] | None) -> bool:
    return other is not None and len(chunks) == len(other) and all(map(FileChunk.__eq__, chunks, other))


def _verity_of(layer: Sequence[Inode], verity: Mapping[Digest, VerityDigest]) -> dict[Digest, VerityDigest]:
    """The fs-verity digests of the chunks of one layer, as far as they are known."""
    return {part.blob.digest: verity[part.blob.digest] for part in _parts(layer) if part.blob.digest in verity}


def _parts(layer: Sequence[Inode]) -> Iterable[FileChunk]:
    for inode in layer:
        if isinstance(inode.content, RegularFile):
            yield from inode.content.chunks
