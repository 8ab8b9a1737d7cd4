"""Images as a file system of fsspec, so that pandas, pyarrow, dask and the rest open files in an image without a mount.

::

    import fsspec

    with fsspec.open("puzzlefs://images:debian!/etc/os-release", "rt") as file: ...
    fs = fsspec.filesystem("puzzlefs", image="/srv/images:debian", digest="59a0cf3d…")
    fs.glob("/usr/lib/**/*.so")

A URL is ``puzzlefs://IMAGE!PATH``: the image as everywhere (``OCI_DIR:TAG``; a third slash begins an absolute
``OCI_DIR``), and behind the first ``!`` that ends the name of an image, the path inside of it. fsspec's chained form
says the same: ``puzzlefs:///etc/os-release::/srv/images:debian``; and an image may be a link of longer chains:
``zip://in.csv::puzzlefs://images:data!/out.zip``. Where the image is given as an option, the URL holds a path alone.

An instance is one open image: it shows what the tag pointed to when it was made, also if the tag has moved since, and
fsspec keeps instances (``skip_instance_cache=True`` makes a new one). Symbolic links are followed inside the image
only. In listings, a link to a file is a file and a link to a directory a ``link``, since programs that walk would
otherwise walk in circles; ``info`` of such a link itself says ``directory``.

This module needs the package fsspec (``puzzlefs[fsspec]``), which finds it by an entry point. Everything that would
write fails with ``EROFS``; what is missing raises ``FileNotFoundError``, and so on (``puzzlefs.errors``).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, NoReturn

from fsspec.spec import AbstractFileSystem

from puzzlefs.blobs import VerityMode
from puzzlefs.errors import InvalidArgumentError, PathError, PathNotFoundError, UnsupportedError
from puzzlefs.image import Image, open_image
from puzzlefs.image_file import BUFFER_SIZE, ImageFile, check_is_file
from puzzlefs.model import Kind
from puzzlefs.oci import ImageReference, parse_reference
from puzzlefs.vfs import Attributes
from puzzlefs.vfs.paths import Place, entries_of, join, resolve

PROTOCOL: Final = "puzzlefs"
_PREFIX: Final = f"{PROTOCOL}://"
_LOCAL: Final = frozenset({None, "file", "local"})
_TYPES: Final = {Kind.REGULAR: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "link"}


class PuzzlefsFileSystem(AbstractFileSystem):
    """One image, read-only.

    Attributes:
        image: the open image.
    """

    protocol: ClassVar[str] = PROTOCOL
    root_marker: ClassVar[str] = "/"

    def __init__(
        self,
        image: str | ImageReference | None = None,
        *,
        digest: str | None = None,
        verity: VerityMode = "auto",
        fo: str | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        **storage_options: Any,
    ) -> None:
        """Open an image.

        Args:
            image: ``OCI_DIR:TAG``.
            digest: as ``open_image``.
            verity: as ``open_image``.
            fo: the image, from a chained URL.
            target_protocol: what kind of URL that is; only files of the host can be.
            target_options: options of that; ignored.
            storage_options: what every file system of fsspec takes.

        Raises:
            InvalidArgumentError: if no image is named.
            UnsupportedError: if it is not on this host.
            PuzzlefsError: as ``open_image``.
        """
        if self._cached:
            return
        super().__init__(**storage_options)
        if target_protocol not in _LOCAL:
            raise UnsupportedError(
                f"an image cannot be read through {target_protocol}", hint="copy its layout to this host first"
            )
        name = fo if image is None else image
        if name is None:
            raise InvalidArgumentError("no image is named", hint="write puzzlefs://OCI_DIR:TAG!/PATH")
        self.image: Image = open_image(name, digest=digest, verity=verity)

    def close(self) -> None:
        """Give the image's descriptors back; the file system is of no use afterwards."""
        self.image.close()

    # ---- names

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """The path inside the image that a URL, or a path, names: absolute, without a slash at its end."""
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        text = _divide(os.fspath(path))[1]
        return "/" + text.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        image = _divide(path)[0]
        return {} if image is None else {"image": image}

    def unstrip_protocol(self, name: str) -> str:
        """The whole URL of a path."""
        return f"{_PREFIX}{self.image.reference}!{self._strip_protocol(name)}"

    @property
    def fsid(self) -> str:
        """What this file system is: the same for the same image, wherever it is."""
        return f"{PROTOCOL}_{self.image.manifest_digest.hex()}"

    # ---- looking

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        """What is at a path, links followed.

        Returns:
            ``name``, ``type`` (``file``, ``directory``, ``link``, ``other``), ``size``; and ``mode``, ``uid``, ``gid``,
            ``nlink``, ``ino``, ``mtime`` (seconds since the epoch), ``islink``, and of a link ``destination``.

        Raises:
            PathNotFoundError: if nothing is there.
            PathError: if the path cannot be followed.
            FormatError: if the image is malformed there.
        """
        name = self._strip_protocol(path)
        place = resolve(self.image.tree, os.fsencode(name), follow=False)
        return self._info(name, place, in_listing=False)

    def ls(self, path: str, detail: bool = True, **_options: Any) -> list[Any]:
        """What is in a directory, or the file at a path itself, sorted by name; raises as ``info``."""
        name = self._strip_protocol(path)
        directory = resolve(self.image.tree, os.fsencode(name))
        if directory.kind is not Kind.DIRECTORY:
            return [self.info(name)] if detail else [name]
        found: list[Any] = []
        for entry in entries_of(self.image.tree, directory):
            child = os.fsdecode(join(os.fsencode(name), entry.name))
            if detail:
                place = Place(join(directory.path, entry.name), directory.ino, entry.ino, entry.kind)
                found.append(self._info(child, place, in_listing=True))
            else:
                found.append(child)
        return found

    def lexists(self, path: str, **_options: Any) -> bool:
        """Whether anything is at a path, if only a link to nothing."""
        try:
            resolve(self.image.tree, os.fsencode(self._strip_protocol(path)), follow=False)
        except (PathNotFoundError, PathError):
            return False
        return True

    def modified(self, path: str) -> datetime:
        """The modification time; 1970 where the image carries none."""
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def ukey(self, path: str) -> str:
        """What changes if the content may have: the image, and the path in it."""
        name = self._strip_protocol(path)
        self.info(name)
        return hashlib.sha256(self.image.manifest_digest + os.fsencode(name)).hexdigest()

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | str | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **_options: Any,
    ) -> Any:
        if mode not in ("r", "rb"):
            self._refuse(path)
        place = resolve(self.image.tree, os.fsencode(self._strip_protocol(path)))
        check_is_file(place)
        raw = ImageFile(self.image, place.ino, os.fsdecode(place.path))
        return _Buffered(raw, block_size if isinstance(block_size, int) and block_size > 0 else BUFFER_SIZE)

    def _info(self, name: str, place: Place, *, in_listing: bool) -> dict[str, Any]:
        tree = self.image.tree
        attributes = tree.attributes(place.ino)
        target: bytes | None = None
        kind = place.kind
        if kind is Kind.SYMLINK:
            target = tree.readlink(place.ino)
            try:
                end = resolve(tree, place.path)
            except (PathNotFoundError, PathError):
                pass  # it stays what it is
            else:
                if not (in_listing and end.kind is Kind.DIRECTORY):
                    kind, attributes = end.kind, tree.attributes(end.ino)
        result = _fields(name, kind, attributes)
        if target is not None:
            result |= {"islink": True, "destination": os.fsdecode(target)}
        return result

    # ---- what an image does not do

    def _refuse(self, path: object = "", *_rest: object, **_options: object) -> NoReturn:
        raise OSError(errno.EROFS, f"an image is read-only: {self.image.reference}", str(path))

    mkdir = makedirs = rmdir = touch = rm = rm_file = _rm = cp_file = mv = pipe_file = put_file = put = copy = _refuse


class _Buffered(io.BufferedReader):
    """An open file; those of fsspec also know their size."""

    raw: ImageFile

    @property
    def size(self) -> int:
        return self.raw.size


def _fields(name: str, kind: Kind, attributes: Attributes) -> dict[str, Any]:
    return {
        "name": name,
        "type": _TYPES.get(kind, "other"),
        "size": attributes.size,
        "mode": attributes.mode,
        "uid": attributes.uid,
        "gid": attributes.gid,
        "nlink": attributes.nlink,
        "ino": attributes.ino,
        "mtime": attributes.mtime_ns / 1e9,
        "islink": stat.S_ISLNK(attributes.mode),
    }


def _divide(url: str | PurePosixPath) -> tuple[str | None, str]:
    """The image that a URL names, if it does, and the path inside of it."""
    text = str(url)
    if not text.startswith(_PREFIX):
        return None, text
    text = text.removeprefix(_PREFIX)
    position = -1
    while (position := text.find("!", position + 1)) >= 0:
        try:
            parse_reference(text[:position])
        except InvalidArgumentError:
            continue
        return text[:position], text[position + 1 :]
    return None, text
