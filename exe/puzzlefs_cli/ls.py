"""``puzzlefs ls``: list what is in an image, as GNU ls does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from puzzlefs.errors import FormatError, PathError, PathNotFoundError, PuzzlefsError
from puzzlefs.image_owners import Owners
from puzzlefs.model import Kind
from puzzlefs.vfs import Attributes, Entry
from puzzlefs.vfs.paths import MAX_PATH, Place, entries_of, join, resolve
from puzzlefs_cli.arguments import HelpFormatter, terminal_columns
from puzzlefs_cli.looking import (
    IMAGE_AND_PATHS_HELP,
    JSON_KEYS,
    Look,
    opened,
    print_json,
    record,
)
from puzzlefs_cli.ls_format import LongFormat, Row, columns, total
from puzzlefs_cli.options import add_image_options
from puzzlefs_cli.quoting import shell_escape, width

_EPILOG: Final = f"""\
Names are sorted by their bytes. Owners are numbers, unless --names asks for the names that the image itself gives
them. A file takes as much room ("total") as its size, and a directory none: what a mount shows. On a terminal, names
that a shell would not take as they are, or that could confuse the terminal, are quoted.

{JSON_KEYS}

examples:
  puzzlefs ls images:debian /etc
  puzzlefs ls -lR --names images:debian /usr/lib/apt
"""

_ACLS: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})
_CONTEXT: Final = b"security.selinux"
_DOTS: Final = frozenset({b".", b".."})
_TO_CHECK: Final = frozenset({Kind.DIRECTORY, Kind.UNKNOWN})


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "ls",
        help="list what is in an image",
        description="List directories of an image, as GNU ls does; the root if there is no PATH.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs ls [-laADiRC10] [--full-time] [--names] [-d HEX] [--verity MODE] [--json] IMAGE [PATH…]",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE [PATH]", help=IMAGE_AND_PATHS_HELP)
    parser.add_argument("-l", dest="long", action="store_true", help="mode, links, owner, group, size, time, name")
    parser.add_argument("-R", "--recursive", action="store_true", help="list what is in directories, too")
    parser.add_argument("-a", "--all", action="store_true", help="list names that begin with a dot too, and . and ..")
    parser.add_argument("-A", "--almost-all", action="store_true", help="the same without . and ..")
    parser.add_argument("-D", "--directory", action="store_true", help="list directories themselves (ls -d elsewhere)")
    parser.add_argument("-i", "--inode", action="store_true", help="print inode numbers, too")
    parser.add_argument("-C", dest="columns", action="store_true", help="print columns, as on a terminal")
    parser.add_argument("-1", dest="single", action="store_true", help="print a name in each line")
    parser.add_argument(
        "-0", "--zero", action="store_true", help="print names as they are, and a NUL instead of the end of a line"
    )
    parser.add_argument("--full-time", action="store_true", help="print times in full; implies -l")
    parser.add_argument("--names", action="store_true", help="print the names of owners that the image gives them")
    add_image_options(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    with opened(args) as look:
        listing = _Listing(look, args)
        if args.json:
            print_json(look, listing.records())
        else:
            listing.print()
        return look.code


class _Listed(NamedTuple):
    """A file or directory to be listed, and the path that is printed for it."""

    path: bytes
    place: Place


class _Listing:
    """One run of the command."""

    def __init__(self, look: Look, args: argparse.Namespace) -> None:
        self._look = look
        self._tree = look.image.tree
        self._recursive: bool = args.recursive
        self._itself: bool = args.directory
        self._dots: bool = args.all
        self._hidden: bool = args.all or args.almost_all
        self._long: bool = args.long or args.full_time
        self._inodes: bool = args.inode
        owners = Owners(look.image)
        self._long_format = LongFormat(
            user=(lambda uid: owners.user(uid) or str(uid)) if args.names else str,
            group=(lambda gid: owners.group(gid) or str(gid)) if args.names else str,
            numeric=not args.names,
            full_time=args.full_time,
            inodes=args.inode,
        )
        terminal = sys.stdout.isatty()
        self._quotes = terminal and not args.zero
        self._in_columns = (args.columns or terminal) and not (args.single or args.zero or self._long)
        self._end = b"\0" if args.zero else b"\n"
        self._has_xattrs = self._long and self._tree.may_have_xattrs()
        self._left = self._tree.max_entries

    # ---- what is listed

    def print(self) -> None:
        """List everything that was named: first what is no directory, then the directories."""
        files, directories = self._named()
        write = sys.stdout.buffer.write
        if files:
            write(self._lines([(path, place.ino, place.kind) for path, place in files], b""))
        has_headers = self._recursive or len(self._look.paths) > 1
        is_first = not files
        for listed, entries in self._directories(directories):
            if has_headers:
                header = self._header(listed.path) + self._end
                write(header if is_first else self._end + header)
            is_first = False
            # plain tuples from here on: there may be very many
            items = [(entry.name, entry.ino, entry.kind) for entry in entries]
            if self._dots:
                here, up = listed.place.ino, listed.place.parent
                items = sorted([*items, (b".", here, Kind.DIRECTORY), (b"..", up, Kind.DIRECTORY)])
            write(self._lines(items, listed.path, listed.place.ino))

    def records(self) -> Iterator[dict[str, Any]]:
        """The same for JSON."""
        files, directories = self._named()
        for path, place in files:
            yield from self._record(path, place.ino)
        for listed, entries in self._directories(directories):
            for entry in entries:
                path = join(listed.path, entry.name)
                if self._is_sound(listed.place.ino, entry, path):
                    yield from self._record(path, entry.ino)

    def _record(self, path: bytes, ino: int) -> Iterator[dict[str, Any]]:
        found = self._look.attempt(path, lambda: record(self._look, path, self._tree.attributes(ino)))
        if found is not None:
            yield found

    def _named(self) -> tuple[list[_Listed], list[_Listed]]:
        """What the command line names: what is listed itself, and the directories whose entries are."""
        files: list[_Listed] = []
        directories: list[_Listed] = []
        for path in sorted(self._look.paths) if len(self._look.paths) > 1 else self._look.paths:
            place = self._look.attempt(path, partial(self._place, path))
            if place is not None:
                is_listed_itself = self._itself or place.kind is not Kind.DIRECTORY
                (files if is_listed_itself else directories).append(_Listed(path, place))
        return files, directories

    def _place(self, path: bytes) -> Place:
        if not (self._long or self._itself):
            with suppress(PathNotFoundError, PathError):
                return resolve(self._tree, path)  # a link to a directory means the directory
        return resolve(self._tree, path, follow=False)

    def _directories(self, named: Sequence[_Listed]) -> Iterator[tuple[_Listed, Sequence[Entry]]]:
        """Each directory with the entries that are listed, and with ``-R`` those below it in their turn."""
        waiting = list(reversed(named))
        while waiting:
            listed = waiting.pop()
            entries = self._look.attempt(listed.path, partial(self._entries, listed))
            if entries is None:
                continue
            yield listed, entries
            if self._recursive:
                here = listed.place.ino
                waiting += [
                    _Listed(path, Place(path, here, entry.ino, entry.kind))
                    for entry in reversed(entries)
                    if entry.kind is Kind.DIRECTORY
                    and self._is_sound(here, entry, path := join(listed.path, entry.name), told=self._long)
                ]

    def _entries(self, listed: _Listed) -> Sequence[Entry]:
        if len(listed.path) > MAX_PATH:
            raise FormatError(f"it is too deep: its path has more than {MAX_PATH} bytes")
        entries = entries_of(self._tree, listed.place)
        self._left -= len(entries)
        if self._left < 0:
            raise FormatError(f"there are more than {self._tree.max_entries} entries, which this image cannot hold")
        return entries if self._hidden else [entry for entry in entries if not entry.name.startswith(b".")]

    def _is_sound(self, parent: int, entry: Entry, path: bytes, *, told: bool = False) -> bool:
        """Whether there is nothing wrong with an entry; says so, unless that has been ``told`` before."""
        try:
            self._tree.check_entry(parent, entry)
        except PuzzlefsError as error:
            if not told:
                self._look.failed(path, error)
            return False
        return True

    # ---- how it is written

    def _lines(self, items: Sequence[tuple[bytes, int, Kind]], directory: bytes, parent: int | None = None) -> bytes:
        """The lines about files of one directory, or about those that were named, with the ends of lines."""
        names = [name for name, _, _ in items]
        if self._quotes:
            names = self._quoted(names)
        lines: list[bytes]
        if self._long:
            attributes_of = self._tree.attributes
            attributes: list[Attributes | None] = []
            for item in items:
                try:
                    if item[2] in _TO_CHECK and item[0] not in _DOTS and parent is not None:
                        self._tree.check_entry(parent, Entry(*item))
                    attributes.append(attributes_of(item[1]))
                except PuzzlefsError as error:
                    self._look.failed(join(directory, item[0]) if parent is not None else item[0], error)
                    attributes.append(None)
            rows = [
                Row(
                    self._with_target(name, found) if item[2] is Kind.SYMLINK else name,
                    item[2],
                    found,
                    self._access(found) if self._has_xattrs else " ",
                )
                for item, name, found in zip(items, names, attributes, strict=True)
            ]
            lines = self._long_format.lines(rows)
            if parent is not None:
                lines.insert(0, b"total %d" % total(rows))
        else:
            if self._inodes and items:
                digits = len(str(max(ino for _, ino, _ in items)))
                names = [b"%*d %s" % (digits, item[1], name) for item, name in zip(items, names, strict=True)]
            lines = self._columns(names) if self._in_columns else names
        return self._end.join([*lines, b""])

    def _access(self, attributes: Attributes | None) -> str:
        if attributes is None:
            return " "
        try:
            keys = self._tree.xattrs(attributes.ino).keys()
        except PuzzlefsError:
            return "?"
        return " " if not keys else "+" if keys & _ACLS else "." if _CONTEXT in keys else " "

    def _with_target(self, name: bytes, attributes: Attributes | None) -> bytes:
        if attributes is None:
            return name
        target = self._look.attempt(name, lambda: self._tree.readlink(attributes.ino))
        if target is None:
            return name
        return b"%s -> %s" % (name, _encoded(shell_escape(target)) if self._quotes else target)

    def _quoted(self, names: Sequence[bytes]) -> list[bytes]:
        shown = [shell_escape(name) for name in names]
        if (self._long or self._in_columns) and any(text[0] in "'\"" for text in shown):
            shown = [text if text[0] in "'\"" else f" {text}" for text in shown]
        return list(map(_encoded, shown))

    def _columns(self, names: Sequence[bytes]) -> list[bytes]:
        texts = list(map(os.fsdecode, names))
        line_width = terminal_columns()
        return [os.fsencode(line) for line in columns(texts, list(map(width, texts)), line_width)]

    def _header(self, path: bytes) -> bytes:
        return (_encoded(shell_escape(path)) if self._quotes else path) + b":"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
