"""The host's tree that an image is built from: reaching its entries, and saying what went wrong with which.

Everything is reached from a descriptor of the root, component by component from there, and never through a
symbolic link: a tree whose owner swaps a directory for a link while root builds it gives an error, not
somebody else's files. Paths are bytes relative to the root, of any length: one longer than the kernel takes
is walked in pieces.

Errors of the host become ``SourceError`` here, with the whole path in it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from puzzlefs.errors import InvalidArgumentError, NotFoundError, SourceError

PATH_MAX: Final = 4096
"""The kernel takes paths of fewer bytes than this (limits.h: 4096 with the final NUL)."""

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Should a fifo or a device stand there by now, opening it must neither wait nor make it a controlling
# terminal.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_CHANGED_HINT = "a tree must not change while it is built; build from a snapshot or stop what writes there"
_HINTS = {
    errno.EACCES: "build as a user who may read it, for example as root",
    errno.EPERM: "build as a user who may read it, for example as root",
    errno.ENOENT: _CHANGED_HINT,
    errno.ENOTDIR: _CHANGED_HINT,
    errno.ELOOP: _CHANGED_HINT,
    errno.ESTALE: _CHANGED_HINT,
    errno.EIO: "the medium may be failing: see the kernel's log",
}


def join(directory: bytes, name: bytes) -> bytes:
    """The path of an entry, relative to the root as ``directory`` is; the root itself is the empty path."""
    return directory + b"/" + name if directory else name


def printable(path: bytes) -> str:
    """A path as one line of text: undecodable bytes and control characters are escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class SourceTree:
    """A directory of the host, open for building. Use it as a context manager, or ``close`` it.

    The descriptors that its methods return belong to the caller.
    """

    def __init__(self, root: Path) -> None:
        """Open the tree; ``root`` itself may be a symbolic link.

        Raises:
            NotFoundError: if there is nothing.
            InvalidArgumentError: if it is no directory.
            SourceError: if it cannot be opened.
        """
        self.root = root
        try:
            self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(f"{root} does not exist", hint="name the directory to build from") from error
        except NotADirectoryError as error:
            raise InvalidArgumentError(f"{root} is not a directory", hint="name the directory to build from") from error
        except OSError as error:
            raise self.failure("open", b"", error) from error
        # Calls for xattrs take no descriptor of a directory, but a path that begins with one. Where /proc is
        # not mounted the plain path serves, though not beyond PATH_MAX.
        self._has_proc = Path("/proc/self/fd").exists()

    @property
    def fd(self) -> int:
        """A descriptor of the root, owned by the tree."""
        return self._root_fd

    def open_directory(self, path: bytes) -> int:
        """A descriptor of the directory at ``path``.

        Raises:
            SourceError: if it cannot be opened, or is not a directory any more.
        """
        try:
            return self._open_directory(path)
        except OSError as error:
            raise self.failure("open the directory", path, error) from error

    def open_file(self, directory_fd: int, directory: bytes, name: bytes) -> int:
        """A descriptor of the file ``name`` in ``directory``, whose descriptor is ``directory_fd``.

        Its access time stays as it is where the caller may ask for that.

        Raises:
            SourceError: if it cannot be opened.
        """
        try:
            try:
                return os.open(name, _FILE_FLAGS | os.O_NOATIME, dir_fd=directory_fd)
            except PermissionError:  # O_NOATIME is for the owner
                return os.open(name, _FILE_FLAGS, dir_fd=directory_fd)
        except OSError as error:
            raise self.failure("read", join(directory, name), error) from error

    def base(self, directory_fd: int, directory: bytes) -> bytes:
        """A path of ``directory`` for calls that take no descriptor; valid while ``directory_fd`` is open."""
        if self._has_proc:
            return b"/proc/self/fd/%d" % directory_fd
        return join(os.fsencode(self.root), directory)

    def shown(self, path: bytes) -> str:
        """The whole path of an entry, for messages."""
        return printable(join(os.fsencode(self.root), path) if path else os.fsencode(self.root))

    def failure(self, action: str, path: bytes, error: OSError) -> SourceError:
        """The error that says that ``action`` failed on ``path``."""
        hint = _HINTS.get(error.errno or 0, "")
        return SourceError(f"cannot {action} {self.shown(path)}: {error.strerror or error}", hint=hint)

    def changed(self, path: bytes) -> SourceError:
        """The error that says that what is at ``path`` is not what was there before."""
        return SourceError(f"{self.shown(path)} changed while it was read", hint=_CHANGED_HINT)

    def close(self) -> None:
        """Give the descriptor back. Calling it twice is fine."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_directory(self, path: bytes) -> int:
        start = self._root_fd
        try:
            while len(path) >= PATH_MAX:
                cut = path.rindex(b"/", 0, PATH_MAX)
                step = os.open(path[:cut], _STEP_FLAGS, dir_fd=start)
                if start != self._root_fd:
                    os.close(start)
                start = step
                path = path[cut + 1 :]
            return os.open(path or b".", _DIRECTORY_FLAGS, dir_fd=start)
        finally:
            if start != self._root_fd:
                os.close(start)
