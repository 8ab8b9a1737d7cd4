"""Target: a whole image whose metadata are any bytes, opened and served as a mount would, without a kernel.

The rest of the layout is sound, so that files that are still whole can be read: their bytes must be those of the
chunks, and nothing else.
"""

from __future__ import annotations

import atexit
import logging
import shutil
import struct
import tempfile
from functools import cache
from pathlib import Path

from support.forge import Forge, directory, inode, regular, symlink

from fuzz.metadata import rootfs_blobs, some_layer
from fuzz.mutation import words_of_message
from fuzz.target import Target
from puzzlefs.digest import Digest
from puzzlefs.errors import PuzzlefsError
from puzzlefs.image import Image, open_image
from puzzlefs.model import BlobRef, FileChunk, Inode
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.kernel_answers import Answers
from puzzlefs.mount.kernel_protocol import BODY, GETXATTR_IN, IN_HEADER, READ_IN, Opcode
from puzzlefs.mount.operations import Operations

_ROOM = 4096
_MAX_VISITS = 300
_MAX_PAGES = 20
_SMALL = b"a small file\n"
_LARGE = bytes(range(256)) * 40


class _Workshop:
    """One layout in memory, whose rootfs is replaced again and again."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self.directory = Path(tempfile.mkdtemp(prefix="puzzlefs-fuzz-", dir=memory if memory.is_dir() else None))
        atexit.register(shutil.rmtree, self.directory, ignore_errors=True)
        self.forge = Forge(self.directory / "layout")
        self.chunks = (
            self.forge.chunk(_SMALL),
            self.forge.chunk(_LARGE),
            self.forge.chunk(_LARGE, compressed=True, offset=100),
        )
        self.kept = set(self._blobs())
        logging.getLogger("puzzlefs").addHandler(logging.NullHandler())

    def _blobs(self) -> list[Path]:
        return list((self.forge.path / "blobs" / "sha256").iterdir())

    def open(self, rootfs: bytes) -> Image:
        """The image whose rootfs is that."""
        for path in self._blobs():
            if path not in self.kept:
                path.unlink()
        return open_image(self.forge.raw_rootfs(rootfs))


@cache
def _workshop() -> _Workshop:
    return _Workshop()


def images(data: bytes) -> None:
    """Open the image and ask for everything in it, as the kernel does for ``ls -lR`` and ``tar``."""
    with _workshop().open(data) as image:
        _Visitor(image).visit()


class _Visitor:
    """Asks as the kernel does. Only ``RequestError`` may come back."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._operations = Operations(image)
        self._answers = Answers(self._operations).table

    def ask(self, opcode: Opcode, ino: int, body: bytes) -> bytes | None:
        request = memoryview(bytearray(IN_HEADER.pack(IN_HEADER.size + len(body), opcode, 1, ino, 0, 0, 0, 0) + body))
        assert len(request) == BODY + len(body)
        try:
            return self._answers[opcode](ino, request, len(request))
        except RequestError:
            return None

    def visit(self) -> None:
        self.ask(Opcode.STATFS, 1, b"")
        waiting = [1]
        seen: set[int] = set()
        while waiting and len(seen) < _MAX_VISITS:
            ino = waiting.pop()
            if ino in seen:
                continue
            seen.add(ino)
            self.ask(Opcode.GETATTR, ino, bytes(16))
            self.ask(Opcode.READLINK, ino, b"")
            names = self.ask(Opcode.LISTXATTR, ino, GETXATTR_IN.pack(1 << 16, 0)) or b""
            for name in names.split(b"\0")[:5]:
                self.ask(Opcode.GETXATTR, ino, GETXATTR_IN.pack(1 << 16, 0) + name + b"\0")
            self._read(ino)
            for name in self._listing(Opcode.READDIR, ino):
                found = self.ask(Opcode.LOOKUP, ino, name + b"\0")
                if found:
                    (number,) = struct.unpack_from("=Q", found)
                    if number:
                        waiting.append(number)
            self._listing(Opcode.READDIRPLUS, ino)

    def _listing(self, opcode: Opcode, ino: int) -> list[bytes]:
        """The names in a directory, page by page, without the dots."""
        names: list[bytes] = []
        offset = 0
        for _ in range(_MAX_PAGES):
            page = self.ask(opcode, ino, READ_IN.pack(0, offset, _ROOM) + bytes(20))
            if not page:
                break
            assert len(page) <= _ROOM
            at = 0
            while at < len(page):
                at += 128 if opcode is Opcode.READDIRPLUS else 0
                _, after, size, _ = struct.unpack_from("=QQII", page, at)
                assert after > offset
                offset = after
                names.append(page[at + 24 : at + 24 + size])
                at += 24 + (size + 7 & ~7)
        return names[2:]

    def _read(self, ino: int) -> None:
        """A file's beginning, a place in it, and its end."""
        tree = self._image.tree
        try:
            size = tree.attributes(ino).size
        except PuzzlefsError:
            return
        for offset in {0, size // 2, max(size - 10, 0)}:
            try:
                plan = self._operations.plan(ino, offset, 1 << 17)
                self._operations.is_ready(plan)
                content = self._operations.fetch(ino, plan)
            except RequestError:
                continue
            assert len(content) == min(1 << 17, size - offset)
            at = 0
            for piece in plan.pieces:
                whole = _contents()[piece.blob]
                assert content[at : at + piece.length] == whole[piece.offset : piece.offset + piece.length]
                at += piece.length
            assert at == len(content)


@cache
def _contents() -> dict[Digest, bytes]:
    small, large, packed = _workshop().chunks
    return {small.blob.digest: _SMALL, large.blob.digest: _LARGE, packed.blob.digest: _LARGE}


def _layers() -> list[list[Inode]]:
    small, large, packed = _workshop().chunks
    part = FileChunk(BlobRef(large.blob.digest, 50, False), 1000)
    top = [
        directory(1, {b"a": 2, b"b": 3, b"c": 4, b"d": 5, b"e": 6}, mtime_ns=1),
        regular(2, small, mtime_ns=2),
        regular(3, large, packed, part, xattrs={b"user.x": b"value"}, mtime_ns=3),
        directory(4, {b"a": 2, b"f": 7, b"g": 8}, mtime_ns=-4),
        symlink(5, b"c/g", mtime_ns=5),
        *(inode(number, content.content, mtime_ns=6) for number, content in enumerate(some_layer(14)[5:8], 6)),
    ]
    below = [directory(1, {b"a": 2}), regular(2, large), directory(4, {b"z": 2})]
    return [top, below]


def _seeds() -> list[bytes]:
    codec = _workshop().forge.codec
    top, below = _layers()
    made = [
        codec.encode_rootfs(layers=layers, metadata_refs=(), verity={}) for layers in ([top], [top, below], [below])
    ]
    return [*made, *rootfs_blobs(3)]


TARGETS = (Target("images", images, _seeds, words_of_message),)
