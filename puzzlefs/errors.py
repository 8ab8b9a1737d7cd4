"""The one error tree: everything that the library raises on purpose hangs below ``PuzzlefsError``.

    PuzzlefsError
    ├── FormatError              the image is not what the format says          (the image's fault)
    │   └── UnsupportedVersionError   a format version that we do not know
    ├── IntegrityError           bytes are not what their digest says           (somebody's fault)
    ├── NotFoundError            a layout, tag, blob, inode or path is missing
    │   ├── TagNotFoundError
    │   ├── BlobNotFoundError
    │   └── PathNotFoundError    a path in an image (also a FileNotFoundError)
    ├── UnsafePathError          following the image would lead outside of a directory
    ├── VerityUnavailableError   this kernel or file system cannot do fs-verity
    ├── VerityNotEnabledError    it could, but this file does not have it
    ├── InvalidArgumentError     the caller asked for something that makes no sense (also a ValueError)
    │   └── PathError            what a path in an image leads to is not what was asked for (also an OSError)
    │       ├── PathNotDirectoryError    (also a NotADirectoryError)
    │       └── PathIsDirectoryError     (also an IsADirectoryError)
    ├── UnsupportedError         this machine or this user cannot do what was asked
    ├── SourceError              a file of the tree being built is unreadable, or changed under us
    ├── StorageError             the host's I/O failed while an image was written or read
    └── MountError               mounting or unmounting failed

The groups say whose fault it is. Errors carry fields, not only text: ``message`` names the object,
``hint`` the next step. Adapters own one translation table each (errno, exit code) over these classes.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Self


class PuzzlefsError(Exception):
    """Root of every error that the library raises on purpose.

    Attributes:
        message: what is wrong, naming the object; one line.
        hint: what to do next, or an empty string.
        blob: the blob in which it was found, sha256 in hex, where that is known; or an empty string.
    """

    blob = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class FormatError(PuzzlefsError):
    """An image does not follow the format: truncated, cyclic, contradictory, absurd."""


class UnsupportedVersionError(FormatError):
    """A ``manifestVersion`` that this program does not know.

    Attributes:
        version: the number that was found.
    """

    def __init__(self, version: int) -> None:
        super().__init__(
            f"format version {version} is not known",
            hint="versions 1, 2 and 3 can be read; a newer puzzlefs may help",
        )
        self.version = version


class IntegrityError(PuzzlefsError):
    """Bytes are not what their digest says.

    Attributes:
        subject: what was checked, for example ``blob sha256:…``.
        expected: the digest that was asked for, hex.
        actual: the digest that was found, hex; empty where none could be computed.
    """

    def __init__(self, subject: str, *, expected: str, actual: str, hint: str = "") -> None:
        found = f", found {actual}" if actual else ""
        super().__init__(f"{subject} is corrupt or was replaced: expected {expected}{found}", hint=hint)
        self.subject = subject
        self.expected = expected
        self.actual = actual


class NotFoundError(PuzzlefsError):
    """Something that was named is not there."""


class TagNotFoundError(NotFoundError):
    """A layout has no such tag.

    Attributes:
        tag: the tag that was asked for.
        available: the tags there are.
    """

    def __init__(self, layout: str, tag: str, available: Sequence[str]) -> None:
        shown = ", ".join(map(_shown, available[:20])) + (", …" if len(available) > 20 else "")
        super().__init__(
            f"{layout} has no tag {tag!r}",
            hint=f"its tags are: {shown}" if available else "it has no tags at all",
        )
        self.tag = tag
        self.available = tuple(available)


class BlobNotFoundError(NotFoundError):
    """A blob that the image refers to is not in the layout.

    Attributes:
        digest: its digest, hex.
    """

    def __init__(self, digest: str, path: str) -> None:
        super().__init__(f"blob sha256:{digest} is missing", hint=f"it should be at {path}")
        self.digest = digest


class PathNotFoundError(NotFoundError, FileNotFoundError):
    """A path in an image leads to nothing.

    Attributes:
        errno: ``ENOENT``.
        filename: the path.
    """

    def __init__(self, message: str, path: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno.ENOENT
        self.strerror = message
        self.filename = path


class UnsafePathError(PuzzlefsError):
    """Following what the image says would lead outside of a directory, or through a link that it planted."""


class VerityUnavailableError(PuzzlefsError):
    """This kernel or this file system has no fs-verity."""


class VerityNotEnabledError(PuzzlefsError):
    """The file system could do fs-verity, but this file does not have it enabled."""


class InvalidArgumentError(PuzzlefsError, ValueError):
    """The caller asked for something that makes no sense."""


class PathError(InvalidArgumentError, OSError):
    """What a path in an image leads to is not what was asked for; as it is, it is one of too many symbolic links.

    Attributes:
        errno: ``ELOOP``, or that of the derived class.
        filename: the path.
    """

    _number = errno.ELOOP

    def __new__(cls, *_given: object, **_more: object) -> Self:
        return OSError.__new__(cls)  # else it would be made as a ValueError, which has no room for an errno

    def __init__(self, message: str, path: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = self._number
        self.strerror = message
        self.filename = path


class PathNotDirectoryError(PathError, NotADirectoryError):
    """A path in an image goes through, or should lead to, a directory, and something else is there."""

    _number = errno.ENOTDIR


class PathIsDirectoryError(PathError, IsADirectoryError):
    """A path in an image leads to a directory, which has no content."""

    _number = errno.EISDIR


class UnsupportedError(PuzzlefsError):
    """This machine, or this user, cannot do what was asked."""


class SourceError(PuzzlefsError):
    """A file of the tree being built cannot be read, or changed while it was read."""


class StorageError(PuzzlefsError):
    """The host's I/O failed while an image was read or written (a full disk, for example)."""


class MountError(PuzzlefsError):
    """Mounting or unmounting failed."""


def _shown(text: str) -> str:
    """Text of an image as part of a message: what could confuse a terminal, or is too long, becomes a literal."""
    return text if text and text.isprintable() and len(text) <= 80 else ascii(text[:80])
