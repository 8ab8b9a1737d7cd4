"""What is in an image, as paths that read like those of ``pathlib``.

::

    with puzzlefs.open_image("images:debian") as image:
        release = (image.path("/etc") / "os-release").read_text()
        programs = [path.name for path in image.path("/usr/bin").iterdir() if path.is_file()]

``ImagePath`` has the reading half of ``pathlib.Path``, and so is a ``importlib.resources.abc.Traversable``: what takes
one of those takes a path in an image. Differences that follow from what an image is:

* every path begins at the root of the image; there is no current directory, and ``..`` stops at the root;
* symbolic links are followed inside the image only (``puzzlefs.vfs.paths``);
* it is no ``os.PathLike``, since the host cannot open it. ``str(path)`` is the path inside the image;
* names that are not UTF-8 are text with surrogate escapes (PEP 383), as in ``os``;
* what is missing or of another kind raises ``puzzlefs`` errors that are the usual ``FileNotFoundError`` and so on as
  well; bad images and bad data raise the others. ``exists`` and ``is_*`` raise those too, instead of answering no.

Nothing is kept but the path itself: immutable, hashable, thread safe.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final, Literal, Self, cast, overload

from puzzlefs.errors import FormatError, InvalidArgumentError, PathError, PathNotFoundError, PuzzlefsError
from puzzlefs.image_file import FileSource, ImageFile, open_file
from puzzlefs.model import Kind
from puzzlefs.vfs import Attributes
from puzzlefs.vfs.paths import MAX_PATH, Place, entries_of, join, resolve, shown, walk_below

_BLOCK_SIZE: Final = 4096
_NS: Final = 1_000_000_000
_MAGIC: Final = re.compile(r"[*?\[]")


class ImagePath:
    """A path inside an open image, whether or not anything is there. Made by ``Image.path`` and by joining."""

    __slots__ = ("_image", "_path")

    def __init__(self, image: FileSource, path: str | bytes | os.PathLike[str] = "/") -> None:
        """``path`` inside ``image``; a relative one begins at the root too."""
        text = os.fsdecode(path)
        self._image = image
        self._path = PurePosixPath("/" + text.lstrip("/"))

    # ---- the path itself

    @property
    def name(self) -> str:
        """The last component; empty for the root."""
        return self._path.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._path.stem

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """The parts of the name that begin with a dot."""
        return self._path.suffixes

    @property
    def parts(self) -> tuple[str, ...]:
        """The components, beginning with ``/``."""
        return self._path.parts

    @property
    def parent(self) -> Self:
        """The path without its last component, as it is written: links are not looked at."""
        return self._at(self._path.parent)

    @property
    def parents(self) -> tuple[Self, ...]:
        """The parent, its parent, and so on to the root."""
        return tuple(map(self._at, self._path.parents))

    def joinpath(self, *segments: str | os.PathLike[str]) -> Self:
        """The path with more components; an absolute one begins at the root of the image again."""
        return self._at(self._path.joinpath(*segments))

    def with_name(self, name: str) -> Self:
        """The path with another last component."""
        return self._at(self._path.with_name(name))

    def with_suffix(self, suffix: str) -> Self:
        """The path with another suffix."""
        return self._at(self._path.with_suffix(suffix))

    def with_stem(self, stem: str) -> Self:
        """The path with another name before the suffix."""
        return self._at(self._path.with_stem(stem))

    def relative_to(self, other: ImagePath | PurePosixPath | str) -> PurePosixPath:
        """What is to be joined to ``other`` for this path.

        Raises:
            ValueError: if this path does not begin with ``other``.
        """
        return self._path.relative_to(_pure(other))

    def is_relative_to(self, other: ImagePath | PurePosixPath | str) -> bool:
        """Whether this path begins with ``other``."""
        return self._path.is_relative_to(_pure(other))

    def match(self, pattern: str) -> bool:
        """Whether the path matches a pattern, as ``PurePath.match`` says."""
        return self._path.match(pattern)

    def is_absolute(self) -> bool:
        """Always."""
        return True

    def absolute(self) -> Self:
        """The path itself."""
        return self

    def as_posix(self) -> str:
        """The path as text."""
        return str(self._path)

    def __truediv__(self, segment: str | os.PathLike[str]) -> Self:
        return self.joinpath(segment)

    def __str__(self) -> str:
        return str(self._path)

    def __bytes__(self) -> bytes:
        return os.fsencode(str(self._path))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImagePath):
            return NotImplemented
        return self._image is other._image and self._path == other._path

    def __lt__(self, other: ImagePath) -> bool:
        if not isinstance(other, ImagePath):
            return NotImplemented
        return self._path < other._path

    def __hash__(self) -> int:
        return hash((id(self._image), self._path))

    # ---- what is there

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """The attributes of what the path leads to, as ``os.stat`` shows them.

        An image has one time for each file: it stands for all three. ``st_dev`` is 0.

        Raises:
            PathNotFoundError: if nothing is there.
            PathError: if the path cannot be followed: it leads through something that is no directory, or in a circle.
            FormatError: if the image is malformed there.
        """
        return stat_result(self._attributes(follow_symlinks))

    def lstat(self) -> os.stat_result:
        """``stat`` of a symbolic link itself."""
        return self.stat(follow_symlinks=False)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether the path leads to anything.

        Raises:
            FormatError: if the image is malformed on the way.
        """
        return self._kind(follow_symlinks) is not None

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it leads to a directory; raises as ``exists``."""
        return self._kind(follow_symlinks) is Kind.DIRECTORY

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it leads to a regular file; raises as ``exists``."""
        return self._kind(follow_symlinks) is Kind.REGULAR

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link; raises as ``exists``."""
        return self._kind(False) is Kind.SYMLINK

    def is_fifo(self) -> bool:
        """Whether it leads to a FIFO; raises as ``exists``."""
        return self._kind(True) is Kind.FIFO

    def is_socket(self) -> bool:
        """Whether it leads to a socket; raises as ``exists``."""
        return self._kind(True) is Kind.SOCKET

    def is_char_device(self) -> bool:
        """Whether it leads to a character device; raises as ``exists``."""
        return self._kind(True) is Kind.CHAR_DEVICE

    def is_block_device(self) -> bool:
        """Whether it leads to a block device; raises as ``exists``."""
        return self._kind(True) is Kind.BLOCK_DEVICE

    def is_mount(self) -> bool:
        """Whether it is the root: an image has no other mount points."""
        place = self._find(True)
        return place is not None and place.path == b"/"

    def samefile(self, other: ImagePath) -> bool:
        """Whether both lead to one inode of one image; raises as ``stat``."""
        return self._image is other._image and self._place(True).ino == other._place(True).ino

    def readlink(self) -> PurePosixPath:
        """The target of a symbolic link, as it stands there; raises as ``stat``.

        Raises:
            InvalidArgumentError: if it is no symbolic link.
        """
        place = self._place(False)
        if place.kind is not Kind.SYMLINK:
            raise InvalidArgumentError(f"{self} is not a symbolic link")
        return PurePosixPath(os.fsdecode(self._image.tree.readlink(place.ino)))

    def resolve(self, strict: bool = False) -> Self:
        """The path without symbolic links and ``..``.

        Args:
            strict: raise if nothing is there; else what is missing stays as it is written.

        Raises:
            PathNotFoundError: if nothing is there, with ``strict``.
            PathError: if the path cannot be followed.
            FormatError: if the image is malformed on the way.
        """
        path = self
        missing: list[str] = []  # names behind ``path``, the last one first
        while True:
            try:
                place = path._place(True)
                break
            except PathNotFoundError:
                if strict:
                    raise
            if path.is_symlink():  # to something that is missing
                path = path.parent.joinpath(path.readlink())
            else:
                missing.append(path.name)
                path = path.parent
        path = self._at(os.fsdecode(place.path))
        for name in reversed(missing):
            path = path.parent if name == ".." else path / name
        return path

    def xattrs(self, *, follow_symlinks: bool = True) -> Mapping[bytes, bytes]:
        """The extended attributes; raises as ``stat``."""
        return self._image.tree.xattrs(self._place(follow_symlinks).ino)

    # ---- directories

    def iterdir(self) -> Iterator[Self]:
        """What is in the directory, in the order of the names' bytes; raises as ``stat``.

        Raises:
            PathNotDirectoryError: if it is none.
        """
        entries = entries_of(self._image.tree, self._place(True))
        return (self._child(os.fsdecode(entry.name)) for entry in entries)

    def walk(
        self,
        top_down: bool = True,
        on_error: Callable[[PuzzlefsError], object] | None = None,
        follow_symlinks: bool = False,
    ) -> Iterator[tuple[Self, list[str], list[str]]]:
        """Every directory from this one on with the names of its directories and of its other entries (``Path.walk``).

        Args:
            top_down: directories before what is in them; names that are removed from the list of directories are then
                not entered.
            on_error: told of directories that cannot be listed; they are left out either way.
            follow_symlinks: enter directories through links too. Links can lead in circles.
        """
        waiting: list[tuple[Self, Place | None] | tuple[Self, list[str], list[str]]] = [(self, None)]
        while waiting:
            item = waiting.pop()
            if len(item) == 3:  # its turn comes after what is in it
                yield item
                continue
            path, place = item
            try:
                if place is None or place.ino in self._image.tree.links().misplaced:
                    place = path._place(True)
                if len(place.path) > MAX_PATH:
                    raise FormatError(f"{shown(place.path)} is too deep: its path has more than {MAX_PATH} bytes")
                entries = entries_of(self._image.tree, place)
            except (PathError, PathNotFoundError, FormatError) as error:
                if on_error is not None:
                    on_error(error)
                continue
            inside: dict[str, Place | None] = {}  # of directories behind links it takes the path to tell the place
            others: list[str] = []
            for entry in entries:
                name = os.fsdecode(entry.name)
                if entry.kind is Kind.DIRECTORY:
                    inside[name] = Place(join(place.path, entry.name), place.ino, entry.ino, entry.kind)
                elif follow_symlinks and entry.kind is Kind.SYMLINK and path._child(name).is_dir():
                    inside[name] = None
                else:
                    others.append(name)
            directories = list(inside)
            if top_down:
                yield path, directories, others
            else:
                waiting.append((path, directories, others))
            waiting += [(path._child(name), inside.get(name)) for name in reversed(directories)]

    def glob(self, pattern: str) -> Iterator[Self]:
        """What is below this directory and matches ``pattern``, each path once.

        ``*``, ``?`` and ``[…]`` match within a name, also where it begins with a dot; ``**`` is any number of
        directories, without following links, and at the end of a pattern anything at all.

        Raises:
            InvalidArgumentError: if the pattern is empty or absolute.
            FormatError: if the image is malformed there.
        """
        if pattern.startswith("/"):
            raise InvalidArgumentError(f"the pattern {pattern!r} is absolute", hint="leave the first slash out")
        segments = list(PurePosixPath(pattern).parts)
        if not segments:
            raise InvalidArgumentError(f"{pattern!r} is not a pattern")
        found: Iterable[Self] = [self]
        for number, segment in enumerate(segments):
            found = self._matching(found, segment, is_last=number == len(segments) - 1)
        return iter(dict.fromkeys(found)) if segments.count("**") > 1 else iter(found)

    def rglob(self, pattern: str) -> Iterator[Self]:
        """``glob`` in this directory and all below it."""
        return self.glob(f"**/{pattern}" if not pattern.startswith("/") else pattern)

    # ---- content

    @overload
    def open(
        self,
        mode: Literal["r", "rt", "tr"] = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...

    @overload
    def open(self, mode: Literal["rb", "br"], buffering: Literal[0]) -> ImageFile: ...

    @overload
    def open(
        self,
        mode: Literal["rb", "br"],
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
    ) -> io.BufferedReader[ImageFile]: ...

    @overload
    def open(
        self,
        mode: str,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper | io.BufferedReader[ImageFile] | ImageFile: ...

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper | io.BufferedReader[ImageFile] | ImageFile:
        """Open the file for reading, as ``Path.open``; what is read later is verified then (``Image.read``).

        Raises:
            PathIsDirectoryError: if it is a directory.
            InvalidArgumentError: if it is something else that has no content, or ``mode`` is not one of reading.
            PathNotFoundError: as ``stat``.
            PathError: as ``stat``.
            FormatError: if the image is malformed there.
        """
        return open_file(self._image, self._place(True), mode, buffering, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        """The content of the file; raises as ``open`` and as ``Image.read``."""
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The content of the file as text; raises as ``open`` and as ``Image.read``."""
        with self.open("r", -1, encoding, errors) as file:
            return file.read()

    # ---- inside

    def _at(self, path: PurePosixPath | str) -> Self:
        return type(self)(self._image, path)

    def _child(self, name: str) -> Self:
        return self._at(self._path / name)

    def _place(self, follow: bool) -> Place:
        return resolve(self._image.tree, bytes(self), follow=follow)

    def _attributes(self, follow: bool) -> Attributes:
        return self._image.tree.attributes(self._place(follow).ino)

    def _find(self, follow: bool) -> Place | None:
        try:
            return self._place(follow)
        except (PathNotFoundError, PathError):
            return None

    def _kind(self, follow: bool) -> Kind | None:
        place = self._find(follow)
        return None if place is None else place.kind

    def _matching(self, paths: Iterable[Self], segment: str, *, is_last: bool) -> Iterator[Self]:
        """What one segment of a pattern makes of the paths that the segments before it found."""
        if segment == "**":
            for path in paths:
                yield from path._below(directories_only=not is_last)
        elif not _MAGIC.search(segment):
            for path in paths:
                child = path._child(segment)
                if child.exists(follow_symlinks=not is_last):
                    yield child
        else:
            matches = re.compile(fnmatch.translate(segment)).match
            for path in paths:
                if path.is_dir():
                    yield from (child for child in path.iterdir() if matches(child.name))

    def _below(self, *, directories_only: bool) -> Iterator[Self]:
        """This path and everything below it."""
        place = self._find(True)
        if place is None:
            return
        yield self
        for visit in walk_below(self._image.tree, place, bytes(self)):
            if visit.entry.kind is Kind.DIRECTORY or not directories_only:
                yield self._at(os.fsdecode(visit.path + visit.entry.name))


def stat_result(attributes: Attributes) -> os.stat_result:
    """Attributes as ``os.stat`` shows them; the one time that an image has stands for all three."""
    time_ns = attributes.mtime_ns
    seconds = time_ns // _NS
    more: dict[str, int | float] = {
        "st_blksize": _BLOCK_SIZE,
        "st_blocks": attributes.blocks,
        "st_rdev": attributes.rdev,
    }
    for name in ("st_atime", "st_mtime", "st_ctime"):
        more[name] = time_ns / _NS
        more[f"{name}_ns"] = time_ns
    fields = (attributes.mode, attributes.ino, 0, attributes.nlink, attributes.uid, attributes.gid, attributes.size)
    return os.stat_result((*fields, seconds, seconds, seconds), cast("dict[str, object]", more))


def _pure(path: ImagePath | PurePosixPath | str) -> PurePosixPath:
    return PurePosixPath("/" + str(path).lstrip("/"))
