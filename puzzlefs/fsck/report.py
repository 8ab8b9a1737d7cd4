"""What a check says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What it comes to. The words are in reports that programs read."""

    CLEAN = "clean"
    REPAIRABLE = "repairable"
    """Blobs are bad, and everything else is in order: whoever has the bytes can mend it."""
    LOST = "lost"
    """Something is malformed, or the sources that were named for a repair do not have what is bad."""


class Fault(StrEnum):
    """What is wrong with a blob."""

    MISSING = "missing"
    WRONG_SIZE = "wrong size"
    CORRUPT = "corrupt"
    NO_FILE = "no regular file"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Hit:
    """What a bad blob spoils in one image.

    Attributes:
        image: the image's tag, or its digest where it has none.
        files: paths of the files, from the image's root on; all that have bytes in it.
        is_whole: whether it is the image as a whole.
    """

    image: str
    files: Sequence[bytes]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class BadBlob:
    """A blob that has to be there and is not, or not as it should be.

    Attributes:
        digest: ``sha256:…``.
        role: ``index``, ``manifest``, ``config``, ``rootfs``, ``metadata``, ``chunk``, or ``layer``, of an image of
            another kind.
        fault: what is wrong.
        detail: sizes or digests that were found, or what the host says.
        hits: what it spoils.
    """

    digest: str
    role: str
    fault: Fault
    detail: str
    hits: Sequence[Hit]


@dataclass(frozen=True, slots=True)
class Malformed:
    """Something that is intact and cannot be.

    Attributes:
        image: the image's tag, or its digest where it has none.
        path: where in the image's tree, from its root on; ``None`` where it is not one place.
        message: what is wrong.
    """

    image: str
    path: bytes | None
    message: str


class RemarkKind(StrEnum):
    """What a remark is about."""

    VERITY_OF_OTHER_BYTES = "fs-verity digest of compressed bytes"
    """Compressed images of the original record it for chunks that are stored raw (format/README.md, section 12)."""
    DESCRIPTOR_SIZE = "size in a descriptor"
    """Compressed images of release 0.2.0 of the original record the size of the content."""
    NOT_RECORDED = "no fs-verity digest"
    NOT_NEEDED = "missing and not needed"
    """Only inodes that layers above hide have bytes in it."""
    OTHER_IMAGE = "not a PuzzleFS image"


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that is worth knowing and no reader stumbles over.

    Attributes:
        kind: what it is about.
        image: the image's tag, or its digest where it has none.
        message: what it is.
    """

    kind: RemarkKind
    image: str
    message: str


@dataclass(frozen=True, slots=True)
class FsckReport:
    """The whole of a check.

    Attributes:
        state: what it comes to.
        quick: whether contents were not read.
        images: the images that were checked, by tag, or by digest where they have none.
        blobs: distinct blobs that were checked.
        bytes: their bytes, as far as they were read.
        inodes: inodes that were decoded.
        bad: the blobs that are bad.
        malformed: what is malformed.
        remarks: what is worth knowing.
        unreachable_blobs: blobs that nothing in the index reaches, which is normal; ``None`` where that cannot be
            known, because a manifest is bad, or was not asked, because one image was named.
        unreachable_bytes: their bytes.
        left_over_files: temporary files of programs that were killed.
        left_over_bytes: their bytes.
        repaired: the blobs that were mended, ``sha256:…``, and where the bytes came from.
        seconds: how long it took.
    """

    state: State
    quick: bool
    images: Sequence[str]
    blobs: int
    bytes: int
    inodes: int
    bad: Sequence[BadBlob]
    malformed: Sequence[Malformed]
    remarks: Sequence[Remark]
    unreachable_blobs: int | None
    unreachable_bytes: int | None
    left_over_files: int
    left_over_bytes: int
    repaired: Sequence[tuple[str, str]]
    seconds: float
