"""The decoded objects of an image as JSON: the manifest, the rootfs, one inode.

Names, targets and keys of extended attributes are text, in which bytes that are not UTF-8 are surrogate escapes
(``bytes_to_text``; Python's ``os.fsencode`` makes bytes of it again); values of extended attributes are hexadecimal.
Digests are written as OCI descriptors write them. A rootfs can have millions of inodes, so its text comes in pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import assert_never

from puzzlefs.errors import NotFoundError
from puzzlefs.image import Image
from puzzlefs.model import (
    KIND_NAMES,
    BlockDevice,
    CharDevice,
    Content,
    Directory,
    Fifo,
    Inode,
    InodeTable,
    RegularFile,
    Socket,
    Symlink,
    Whiteout,
    kind_of,
)
from puzzlefs.oci.json_text import JsonValue


def bytes_to_text(data: bytes) -> str:
    """``data`` as text; ``text.encode("utf-8", "surrogateescape")`` is ``data`` again."""
    return data.decode("utf-8", "surrogateescape")


def manifest_text(image: Image) -> Iterator[str]:
    """The manifest as JSON text, piece by piece: the OCI manifest, every field of it; in versions 1 and 2, where it is
    the rootfs, what ``rootfs_text`` gives.

    Raises:
        FormatError: in versions 1 and 2, if metadata are malformed.
    """
    if image.manifest is None:
        yield from rootfs_text(image)
    else:
        yield json.dumps(json.loads(image.manifest.encode()), indent=2)


def rootfs_text(image: Image) -> Iterator[str]:
    """The rootfs as JSON text, piece by piece.

    ``format_version``; ``metadata_blobs`` (versions 1 and 2: where the layers are); ``metadata_layers``, topmost first,
    each with its ``inodes`` as ``inode_object`` gives them; ``fs_verity``, by blob.

    Raises:
        FormatError: if something is malformed.
    """
    yield f'{{"format_version": {image.version}, '
    if image.metadata_refs:
        refs = [
            {"digest": ref.digest.oci, "offset": ref.offset, "compressed": ref.compressed}
            for ref in image.metadata_refs
        ]
        yield f'"metadata_blobs": {json.dumps(refs)}, '
    yield '"metadata_layers": ['
    for number, table in enumerate(image.rootfs.metadata_layers):
        yield (', {"inodes": [' if number else '{"inodes": [') + "\n"
        yield from _joined(json.dumps(inode_object(inode)) for inode in table)
        yield "]}"
    yield '], "fs_verity": {'
    yield from _joined(f'"{blob.oci}": "{verity}"' for blob, verity in image.rootfs.verity.items())
    yield "}}"


def _joined(pieces: Iterator[str]) -> Iterator[str]:
    separator = ""
    for piece in pieces:
        yield f"{separator}{piece}"
        separator = ",\n"


def inode_in_layers(image: Image, ino: int) -> dict[str, JsonValue]:
    """An inode as the topmost metadata layer that mentions it has it, a white-out too.

    That is ``inode_object``, and ``layer``: the number of that layer, the lowest being 1.

    Raises:
        NotFoundError: if no layer mentions it.
        FormatError: if it is malformed.
    """
    layers = image.rootfs.metadata_layers
    for position, table in enumerate(layers):
        found = table.find(ino)
        if found is not None:
            return {**inode_object(found), "layer": len(layers) - position}
    raise NotFoundError(f"{image.reference} has no inode {ino}", hint=f"its numbers go up to {_highest(layers)}")


def _highest(layers: tuple[InodeTable, ...]) -> int:
    return max((table.max_ino() for table in layers), default=0)


def inode_object(inode: Inode) -> dict[str, JsonValue]:
    """An inode as a JSON object.

    ``ino``, ``kind``, ``permissions`` (octal, as text), ``uid``, ``gid``, ``mtime_ns`` (``null`` where the image
    carries no times), ``xattrs`` (pairs of key and value, where there are any), and what its kind has: ``size`` and
    ``chunks``; ``entries`` and ``look_below``; ``target``; ``major`` and ``minor``.
    """
    result: dict[str, JsonValue] = {
        "ino": inode.ino,
        "kind": KIND_NAMES[kind_of(inode.content)],
        "permissions": f"{inode.permissions:04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "mtime_ns": inode.mtime_ns,
    }
    if inode.xattrs:
        result["xattrs"] = [{"key": bytes_to_text(xattr.key), "value": xattr.value.hex()} for xattr in inode.xattrs]
    result.update(_content(inode.content))
    return result


def _content(content: Content) -> dict[str, JsonValue]:
    match content:
        case RegularFile(size=size, chunks=chunks):
            parts: list[JsonValue] = [
                {
                    "digest": chunk.blob.digest.oci,
                    "offset": chunk.blob.offset,
                    "compressed": chunk.blob.compressed,
                    "length": chunk.length,
                }
                for chunk in chunks
            ]
            return {"size": size, "chunks": parts}
        case Directory(entries=entries, look_below=look_below):
            names: list[JsonValue] = [{"name": bytes_to_text(entry.name), "ino": entry.ino} for entry in entries]
            return {"entries": names, "look_below": look_below}
        case Symlink(target=target):
            return {"target": bytes_to_text(target)}
        case CharDevice(major=major, minor=minor) | BlockDevice(major=major, minor=minor):
            return {"major": major, "minor": minor}
        case Fifo() | Socket() | Whiteout():
            return {}
        case _:
            assert_never(content)
