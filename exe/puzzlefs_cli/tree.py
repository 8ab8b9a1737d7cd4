"""``puzzlefs tree``: draw what is in an image, as tree(1) does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from puzzlefs.errors import FormatError, PathError, PathNotFoundError, PuzzlefsError
from puzzlefs.model import Kind
from puzzlefs.vfs import Entry
from puzzlefs.vfs.paths import MAX_PATH, Place, entries_of, join, resolve
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.looking import (
    IMAGE_AND_PATHS_HELP,
    JSON_KEYS,
    Look,
    opened,
    print_json,
    record,
    whole_number,
)
from puzzlefs_cli.options import add_image_options
from puzzlefs_cli.quoting import octal

_EPILOG: Final = f"""\
As tree(1) does, directories that were named are counted, unless they are empty, and so are symbolic links to
directories. What cannot be printed is shown as \\012.

{JSON_KEYS}
Here the entries are in the order of the drawing, each with its "depth" (0 for a directory that was named), and
"directories" and "files" are the numbers of the last line.

example:
  puzzlefs tree -L 2 images:debian /usr
"""

_UTF8_LINES: Final = ("│   ", "    ", "├── ", "└── ")
_ASCII_LINES: Final = ("|   ", "    ", "|-- ", "`-- ")
_BATCH: Final = 1 << 16
"""Characters that are written at a time."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "tree",
        help="draw what is in an image",
        description="Draw the directories of an image, as tree(1) does; from the root on if there is no PATH.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs tree [-aD] [-L LEVELS] [-d HEX] [--verity MODE] [--json] IMAGE [PATH…]",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE [PATH]", help=IMAGE_AND_PATHS_HELP)
    parser.add_argument("-a", "--all", action="store_true", help="names that begin with a dot, too")
    parser.add_argument("-D", "--directories", action="store_true", help="directories only (tree -d elsewhere)")
    parser.add_argument("-L", "--levels", type=whole_number, metavar="LEVELS", help="no deeper than that")
    add_image_options(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    with opened(args) as look:
        drawing = _Drawing(look, hidden=args.all, directories_only=args.directories, levels=args.levels)
        if args.json:
            print_json(look, drawing.records(), drawing.counts)
        else:
            drawing.print()
        return look.code


@dataclass(frozen=True, slots=True)
class _Line:
    """An entry of the drawing.

    Attributes:
        path: its path.
        name: what is printed: the path as it was named, or a name.
        ino: its inode.
        kind: the kind of that.
        lasts: for each directory from the one that was named on, whether what leads on here is the last in it.
    """

    path: bytes
    name: bytes
    ino: int
    kind: Kind
    lasts: tuple[bool, ...]


class _Drawing:
    """One run of the command."""

    def __init__(self, look: Look, *, hidden: bool, directories_only: bool, levels: int | None) -> None:
        self._look = look
        self._tree = look.image.tree
        self._hidden = hidden
        self._directories_only = directories_only
        self._levels = levels
        self._directories = self._files = 0
        self._left = self._tree.max_entries

    def print(self) -> None:
        """Draw."""
        is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        along, space, item, last = _UTF8_LINES if is_utf8 else _ASCII_LINES
        lines: list[str] = []
        left = _BATCH
        for line in self._lines():
            text = octal(line.name)
            if line.lasts:
                lead = "".join([space if is_last else along for is_last in line.lasts[:-1]])
                text = f"{lead}{last if line.lasts[-1] else item}{text}"
            if line.kind is Kind.SYMLINK:
                text += self._arrow(line)
            lines.append(text)
            left -= len(text)
            if left < 0:
                self._write(lines)
                left = _BATCH
        directories = f"{self._directories} director{'y' if self._directories == 1 else 'ies'}"
        files = "" if self._directories_only else f", {self._files} file{'' if self._files == 1 else 's'}"
        lines += ["", directories + files]
        self._write(lines)

    def records(self) -> Iterator[dict[str, Any]]:
        """The same for JSON."""
        for line in self._lines():
            try:
                entry = record(self._look, line.path, self._tree.attributes(line.ino))
            except PuzzlefsError as error:
                self._look.failed(line.path, error)
            else:
                yield {**entry, "depth": len(line.lasts)}

    def counts(self) -> dict[str, int]:
        """How many directories and other files there were."""
        return {"directories": self._directories, "files": self._files}

    # ---- inside

    def _lines(self) -> Iterator[_Line]:
        for path in self._look.paths:
            place = self._look.attempt(path, partial(resolve, self._tree, path))
            if place is None:
                continue
            entries = self._look.attempt(path, partial(self._entries, path, place))
            if entries is not None:
                self._directories += bool(entries)
                yield _Line(path, path, place.ino, place.kind, ())
                yield from self._below(path, place, entries)

    def _below(self, path: bytes, place: Place, entries: Sequence[Entry]) -> Iterator[_Line]:
        levels = [(path, place.ino, iter(entries), len(entries))]
        lasts: list[bool] = []
        while levels:
            path, parent, rest, left = levels[-1]
            entry = next(rest, None)
            if entry is None:
                levels.pop()
                if lasts:
                    lasts.pop()
                continue
            levels[-1] = (path, parent, rest, left - 1)
            here = join(path, entry.name)
            try:
                self._tree.check_entry(parent, entry)
            except PuzzlefsError as error:
                self._look.failed(here, error)
                kind = Kind.UNKNOWN
            else:
                kind = entry.kind
            if kind is Kind.DIRECTORY or (kind is Kind.SYMLINK and self._leads_to_directory(here)):
                self._directories += 1
            else:
                self._files += 1
            lasts.append(left == 1)
            yield _Line(here, entry.name, entry.ino, kind, tuple(lasts))
            if kind is Kind.DIRECTORY and (self._levels is None or len(lasts) < self._levels):
                below = Place(here, parent, entry.ino, entry.kind)
                found = self._look.attempt(here, partial(self._entries, here, below))
                if found:
                    levels.append((here, entry.ino, iter(found), len(found)))
                    continue
            lasts.pop()

    def _entries(self, path: bytes, place: Place) -> list[Entry]:
        if len(path) > MAX_PATH:
            raise FormatError(f"it is too deep: its path has more than {MAX_PATH} bytes")
        entries = entries_of(self._tree, place)
        self._left -= len(entries)
        if self._left < 0:
            raise FormatError(f"there are more than {self._tree.max_entries} entries, which this image cannot hold")
        shown = [entry for entry in entries if self._hidden or not entry.name.startswith(b".")]
        if self._directories_only:
            shown = [
                entry
                for entry in shown
                if entry.kind is Kind.DIRECTORY
                or (entry.kind is Kind.SYMLINK and self._leads_to_directory(join(path, entry.name)))
            ]
        return shown

    def _leads_to_directory(self, path: bytes) -> bool:
        with suppress(PathError, PathNotFoundError, FormatError):
            return resolve(self._tree, path).kind is Kind.DIRECTORY
        return False

    def _arrow(self, line: _Line) -> str:
        target = self._look.attempt(line.path, lambda: self._tree.readlink(line.ino))
        return "" if target is None else f" -> {octal(target)}"

    def _write(self, lines: list[str]) -> None:
        text = "\n".join(lines) + "\n"
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        lines.clear()
