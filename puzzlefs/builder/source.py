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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, eq=False)
class SourceDirectory:
    """A directory of the tree; the root has no parent and no name.

    Directories know their parents instead of their paths, whose lengths would add up in a deep tree.
    """

    parent: SourceDirectory | None = None
    name: bytes = b""

    def path(self, name: bytes = b"") -> bytes:
        """The path, relative to the root, of this directory or of its entry ``name``; empty for the root."""
        names = [name] if name else []
        directory: SourceDirectory | None = self
        while directory is not None and directory.parent is not None:
            names.append(directory.name)
            directory = directory.parent
        return b"/".join(reversed(names))


def printable(path: bytes) -> str:
    """A path as one line of text: undecodable bytes and control characters are escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class SourceTree:
    """A directory of the host, open for building. Use it as a context manager, or ``close`` it.

    Attributes:
        root: the path that it was opened by.
        top: its root directory.
    """

    def __init__(self, root: Path) -> None:
        """Open the tree; ``root`` itself may be a symbolic link.

        Raises:
            NotFoundError: if there is nothing.
            InvalidArgumentError: if it is no directory.
            SourceError: if it cannot be opened.
        """
        self.root = root
        self.top = SourceDirectory()
        try:
            self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(f"{root} does not exist", hint="name the directory to build from") from error
        except NotADirectoryError as error:
            raise InvalidArgumentError(f"{root} is not a directory", hint="name the directory to build from") from error
        except OSError as error:
            raise self.failure("open", self.top, b"", error) from error
        self._current = self.top
        self._current_fd = self._root_fd
        # Calls for xattrs take no descriptor of a directory, but a path that begins with one. Where /proc is
        # not mounted the plain path serves, though not beyond PATH_MAX.
        self._has_proc = Path("/proc/self/fd").exists()

    @property
    def fd(self) -> int:
        """A descriptor of the root, owned by the tree."""
        return self._root_fd

    def enter(self, directory: SourceDirectory) -> int:
        """A descriptor of ``directory``, owned by the tree and valid until another directory is entered.

        Entering a subdirectory of the one entered last takes one step, whatever the depth.

        Raises:
            SourceError: if it cannot be opened, or is not a directory any more.
        """
        if directory is self._current:
            return self._current_fd
        try:
            if directory.parent is self._current:
                fd = os.open(directory.name, _DIRECTORY_FLAGS, dir_fd=self._current_fd)
            else:
                fd = self._open_from_root(directory.path())
        except OSError as error:
            raise self.failure("open the directory", directory, b"", error) from error
        self._leave()
        self._current, self._current_fd = directory, fd
        return fd

    def open_file(self, directory: SourceDirectory, name: bytes) -> int:
        """A descriptor, which the caller closes, of the file ``name`` in ``directory``.

        Its access time stays as it is where the caller may ask for that.

        Raises:
            SourceError: if it cannot be opened.
        """
        fd = self.enter(directory)
        try:
            try:
                return os.open(name, _FILE_FLAGS | os.O_NOATIME, dir_fd=fd)
            except PermissionError:  # O_NOATIME is for the owner
                return os.open(name, _FILE_FLAGS, dir_fd=fd)
        except OSError as error:
            raise self.failure("read", directory, name, error) from error

    def base(self, directory: SourceDirectory) -> bytes:
        """A path of ``directory``, for calls that take no descriptor; valid as long as its descriptor."""
        fd = self.enter(directory)
        if self._has_proc:
            return b"/proc/self/fd/%d" % fd
        return self._host_path(directory.path())

    def shown(self, path: bytes) -> str:
        """The whole path of an entry, for messages; its end, if it is very long."""
        return printable(self._host_path(path)[-PATH_MAX:])

    def failure(self, action: str, directory: SourceDirectory, name: bytes, error: OSError) -> SourceError:
        """The error that says that ``action`` failed on an entry of ``directory``, or on the directory
        itself."""
        path = self.shown(directory.path(name))
        return SourceError(f"cannot {action} {path}: {error.strerror or error}", hint=_HINTS.get(error.errno or 0, ""))

    def changed(self, directory: SourceDirectory, name: bytes = b"") -> SourceError:
        """The error that says that an entry of ``directory``, or the directory itself, is not what was there
        before."""
        return SourceError(f"{self.shown(directory.path(name))} changed while it was read", hint=_CHANGED_HINT)

    def close(self) -> None:
        """Give the descriptor back. Calling it twice is fine."""
        if self._root_fd >= 0:
            self._leave()
            os.close(self._root_fd)
            self._root_fd = self._current_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _leave(self) -> None:
        if self._current_fd != self._root_fd:
            os.close(self._current_fd)
        self._current, self._current_fd = self.top, self._root_fd

    def _open_from_root(self, path: bytes) -> int:
        fd = self._root_fd
        position = 0
        try:
            while len(path) - position >= PATH_MAX:
                cut = path.rindex(b"/", position, position + PATH_MAX)
                step = os.open(path[position:cut], _STEP_FLAGS, dir_fd=fd)
                if fd != self._root_fd:
                    os.close(fd)
                fd = step
                position = cut + 1
            return os.open(path[position:] or b".", _DIRECTORY_FLAGS, dir_fd=fd)
        finally:
            if fd != self._root_fd:
                os.close(fd)

    def _host_path(self, path: bytes) -> bytes:
        root = os.fsencode(self.root)
        return root.rstrip(b"/") + b"/" + path if path else root
