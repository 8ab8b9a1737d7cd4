"""What the commands that look into an image have in common: which image and paths, what failed, how JSON is written.

These commands go on where something cannot be looked at, as the tools do whose names they have: a line on stderr says
what and why, and the exit code is that of the first such line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from puzzlefs.errors import PuzzlefsError
from puzzlefs_cli.arguments import image_and_paths
from puzzlefs_cli.exit_codes import exit_code
from puzzlefs_cli.quoting import shell_escape

if TYPE_CHECKING:
    from puzzlefs.image import Image
    from puzzlefs.vfs import Attributes

IMAGE_AND_PATHS_HELP: Final = (
    "the image: OCI_DIR:TAG, or the two words OCI_DIR TAG (if the first word does not name an image by itself); then "
    "paths inside of it"
)

JSON_KEYS: Final = """\
--json prints one object: "image", the paths as "entries", and what could not be looked at as "errors" ("path",
"message").
An entry has "path", "name", "type" (regular, directory, symlink, char-device, block-device, fifo, socket), "ino",
"mode" (octal), "uid", "gid", "nlink", "size" and "mtime_ns"; a symlink has "target", a device "device" ([major,
minor]).
Names that are not UTF-8 have surrogate escapes, as in Python's os.fsdecode."""

T = TypeVar("T")

_MAX_SHOWN: Final = 200

_TYPE_NAMES: Final = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char-device",
    stat.S_IFBLK: "block-device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(slots=True)
class Look:
    """An open image that is looked into.

    Attributes:
        image: the image.
        paths: the paths that were named.
        code: the exit code so far.
        errors: what could not be looked at, for JSON.
    """

    image: Image
    paths: list[bytes]
    code: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)

    def failed(self, path: bytes, error: PuzzlefsError) -> None:
        """Say that something could not be looked at, and go on."""
        sys.stdout.flush()  # what was printed before it
        shown = shell_escape(path) if len(path) <= _MAX_SHOWN else shell_escape(path[:_MAX_SHOWN]) + "…"
        message = str(error)
        about = "" if shown in message else f"{shown}: "
        text = " ".join(f"puzzlefs: {self.image.reference}: {about}{message}".splitlines())
        print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
        self.errors.append({"path": os.fsdecode(path), "message": message})
        self.code = self.code or exit_code(error)

    def attempt(self, path: bytes, action: Callable[[], T]) -> T | None:
        """What ``action`` returns, or ``None`` after ``failed``."""
        try:
            return action()
        except PuzzlefsError as error:
            self.failed(path, error)
            return None


def whole_number(text: str) -> int:
    """A number of an option.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


@contextmanager
def opened(args: argparse.Namespace, *, default: str | None = "/") -> Iterator[Look]:
    """Open the image that the words name; without paths, ``default`` is the one that is meant.

    Raises:
        PuzzlefsError: as ``open_image``; ``InvalidArgumentError`` if the words name no image, or a path is missing.
    """
    reference, paths = image_and_paths(args.words, default=default)

    from puzzlefs.image import open_image  # noqa: PLC0415  imported when it is needed: starting must be quick

    gc.disable()  # all that is made here dies with the process
    with open_image(reference, digest=args.digest, verity=args.verity) as image:
        yield Look(image, list(map(os.fsencode, paths)))


def record(look: Look, path: bytes, attributes: Attributes) -> dict[str, Any]:
    """What JSON says of a file."""
    mode = attributes.mode
    entry: dict[str, Any] = {
        "path": os.fsdecode(path),
        "name": os.fsdecode(path.rstrip(b"/").rpartition(b"/")[2]),
        "type": _TYPE_NAMES[stat.S_IFMT(mode)],
        "ino": attributes.ino,
        "mode": f"{stat.S_IMODE(mode):04o}",
        "uid": attributes.uid,
        "gid": attributes.gid,
        "nlink": attributes.nlink,
        "size": attributes.size,
        "mtime_ns": attributes.mtime_ns,
    }
    if stat.S_ISLNK(mode):
        entry["target"] = os.fsdecode(look.image.tree.readlink(attributes.ino))
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        entry["device"] = [os.major(attributes.rdev), os.minor(attributes.rdev)]
    return entry


def print_json(look: Look, entries: Iterator[Mapping[str, Any]], more: Callable[[], Mapping[str, Any]] = dict) -> None:
    """Write the one object, entry by entry, so that a large image takes no memory.

    Args:
        look: the image.
        entries: the entries; iterating may add to ``look.errors``.
        more: further keys, asked for when the entries are through.
    """
    write = sys.stdout.write
    write(f'{{"image": {json.dumps(str(look.image.reference))}, "entries": [')
    separator = ""
    for entry in entries:
        write(separator + json.dumps(entry))
        separator = ", "
    rest = json.dumps({**more(), "errors": look.errors})
    write(f"], {rest[1:]}\n")
