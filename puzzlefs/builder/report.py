"""What a build says about itself: while it runs, and when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from puzzlefs.digest import VerityDigest


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is.

    Attributes:
        stage: ``scan`` (walking the tree), ``chunks`` (reading and storing files), ``commit`` (putting it on
        disk).
        inodes: directory entries met so far.
        bytes_done: bytes of file content that are dealt with.
        bytes_total: bytes of file content there are; 0 until the scan is over.
    """

    stage: Literal["scan", "chunks", "commit"]
    inodes: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built.

    Attributes:
        digest: the image's digest: the fs-verity digest of its manifest, which ``--digest`` takes.
        inodes: inodes in the image; several names of one count once.
        content_size: bytes of all regular files together, holes included.
        bytes_read: bytes of them that were read; the rest is known from the last build, or a hole.
        chunks: distinct chunks that the image consists of.
        new_chunks: those of them that the layout did not hold before.
        stored_bytes: bytes of every blob that the layout did not hold before, metadata included.
        seconds: how long it took.
        mount_points: paths, relative to the root, of directories that are empty in the image because
            something else is mounted there.
        has_pyc: whether the tree holds compiled Python modules, which are slow to load without timestamps.
    """

    digest: VerityDigest
    inodes: int
    content_size: int
    bytes_read: int
    chunks: int
    new_chunks: int
    stored_bytes: int
    seconds: float
    mount_points: tuple[bytes, ...]
    has_pyc: bool
