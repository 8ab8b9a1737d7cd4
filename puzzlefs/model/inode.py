"""The inode and what can be in it.

``Inode.content`` says what kind of file it is and holds what only that kind has; code that tells kinds apart uses
``match`` and ends with ``assert_never``. ``Kind`` is the same distinction as one small number, for code that walks many
inodes without decoding them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple, assert_never

from puzzlefs.digest import Digest

MAX_FILE_SIZE: Final = (1 << 63) - 1
"""The largest ``st_size``."""

NO_OWNER: Final = 0xFFFFFFFF
"""Not a user or group: chown(2) takes it for "leave as it is"."""


class Kind(enum.IntEnum):
    """The kind of an inode; the numbers are those of the wire formats' ``mode`` union and must not change."""

    UNKNOWN = 0
    FIFO = 1
    CHAR_DEVICE = 2
    DIRECTORY = 3
    BLOCK_DEVICE = 4
    REGULAR = 5
    SYMLINK = 6
    SOCKET = 7
    WHITEOUT = 8


KIND_NAMES: Final = {kind: kind.name.lower().replace("_", "-") for kind in Kind}
"""What reports call the kinds: ``regular``, ``directory``, ``symlink``, ``char-device`` and so on."""


class _Content:
    """A value: equal to another one of the same class with the same fields, and never changed.

    Not a ``dataclass``: a mount would have to wait for the modules that those load (docs/adr/0018).
    """

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def _fields(self) -> tuple[object, ...]:
        return tuple([getattr(self, name) for name in self.__match_args__])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and type(self) is type(other) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__name__}({fields})"


class BlobRef(NamedTuple):
    """A place in a stored blob.

    Attributes:
        digest: sha256 of the stored bytes, which names the blob.
        offset: bytes into the *uncompressed* content of the blob.
        compressed: whether the stored bytes are zstd.
    """

    digest: Digest
    offset: int
    compressed: bool


class FileChunk(NamedTuple):
    """A part of a stored chunk that is a part of a file: ``length`` uncompressed bytes from ``blob.offset`` on."""

    blob: BlobRef
    length: int


class DirEntry(NamedTuple):
    """A name in a directory. Names are 1 to 255 bytes, without ``/`` and NUL, and neither ``.`` nor ``..``."""

    ino: int
    name: bytes


class RegularFile(_Content):
    """A regular file: its size in bytes, and the parts that it is made of, in order.

    ``chunks`` may be decoded lazily; their lengths add up to ``size``. Build one with ``RegularFile.of``.
    """

    __slots__ = __match_args__ = ("size", "chunks")

    def __init__(self, size: int, chunks: Sequence[FileChunk]) -> None:
        self.size: Final = size
        self.chunks: Final = chunks

    @classmethod
    def of(cls, chunks: Sequence[FileChunk]) -> RegularFile:
        """The file that consists of ``chunks``."""
        return cls(sum([chunk.length for chunk in chunks]), chunks)


class Directory(_Content):
    """A directory: its entries, sorted by name, in this metadata layer.

    Attributes:
        look_below: ``False``: the list is complete; ``True``: entries of the metadata layers below count as well.
    """

    __slots__ = __match_args__ = ("entries", "look_below")

    def __init__(self, entries: Sequence[DirEntry], look_below: bool = False) -> None:
        self.entries: Final = entries
        self.look_below: Final = look_below


class Symlink(_Content):
    __slots__ = __match_args__ = ("target",)

    def __init__(self, target: bytes) -> None:
        self.target: Final = target


class CharDevice(_Content):
    __slots__ = __match_args__ = ("major", "minor")

    def __init__(self, major: int, minor: int) -> None:
        self.major: Final = major
        self.minor: Final = minor


class BlockDevice(_Content):
    __slots__ = __match_args__ = ("major", "minor")

    def __init__(self, major: int, minor: int) -> None:
        self.major: Final = major
        self.minor: Final = minor


class Fifo(_Content):
    __slots__ = ()


class Socket(_Content):
    __slots__ = ()


class Whiteout(_Content):
    """The inode does not exist, whatever the metadata layers below say."""

    __slots__ = ()


Content = RegularFile | Directory | Symlink | CharDevice | BlockDevice | Fifo | Socket | Whiteout


class Xattr(NamedTuple):
    key: bytes
    value: bytes


class Inode(NamedTuple):
    """One inode of one metadata layer.

    Attributes:
        ino: its number; the root directory is 1.
        uid: owner.
        gid: group.
        permissions: the 12 permission bits (``st_mode & 0o7777``).
        content: what kind of file it is, and what only that kind has.
        xattrs: extended attributes, sorted by key.
        mtime_ns: modification time in nanoseconds since the epoch, or ``None`` where the image carries none.
    """

    ino: int
    uid: int
    gid: int
    permissions: int
    content: Content
    xattrs: tuple[Xattr, ...] = ()
    mtime_ns: int | None = None


def kind_of(content: Content) -> Kind:
    """The kind of ``content`` as a number."""
    match content:
        case RegularFile():
            return Kind.REGULAR
        case Directory():
            return Kind.DIRECTORY
        case Symlink():
            return Kind.SYMLINK
        case CharDevice():
            return Kind.CHAR_DEVICE
        case BlockDevice():
            return Kind.BLOCK_DEVICE
        case Fifo():
            return Kind.FIFO
        case Socket():
            return Kind.SOCKET
        case Whiteout():
            return Kind.WHITEOUT
        case _:
            assert_never(content)
