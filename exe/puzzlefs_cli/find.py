"""``puzzlefs find``: search an image, as GNU find does."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from puzzlefs.errors import PuzzlefsError
from puzzlefs.model import Kind
from puzzlefs.vfs import Attributes
from puzzlefs.vfs.paths import Place, resolve, walk_below
from puzzlefs_cli import find_tests as tests
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
from puzzlefs_cli.quoting import shell_escape

_EPILOG: Final = f"""\
What is found meets all of the tests. Symbolic links are not followed, but on the way to PATH. On a terminal, names
that could confuse it, or that a shell would not take as they are, are quoted.

{JSON_KEYS}

examples:
  puzzlefs find images:debian /etc -name '*.conf' -type f
  puzzlefs find images:debian -perm /6000 -type f
  puzzlefs find images:debian /usr -size +10M -print0 | xargs -0 puzzlefs stat images:debian
"""

_NUMBER: Final = re.compile(r"-[0-9]+[cwbkMG]?$")
"""What begins with a dash and is the value of an option: ``-size -10k``, ``-perm -4000``. No option looks like that."""

_BATCH: Final = 1 << 18
"""Bytes that are written at a time."""

_Found = tuple[bytes, bytes, int, Kind]
"""Path, name, inode number and kind."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "find",
        help="search an image",
        description="Print the paths of what is in an image and meets the tests; from the root on if there is no PATH.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs find [-d HEX] [--verity MODE] [--json] IMAGE [PATH…] [TEST…] [-print0]",
        allow_abbrev=False,
    )
    parser._negative_number_matcher = _NUMBER
    parser.add_argument("words", nargs="+", metavar="IMAGE [PATH]", help=IMAGE_AND_PATHS_HELP)
    add = partial(parser.add_argument, action="append", default=[])
    add("-name", type=tests.name, metavar="PATTERN", help="the name matches a shell pattern")
    add("-iname", type=tests.name_in_any_case, metavar="PATTERN", help="the same in upper or lower case")
    add("-path", type=tests.name, metavar="PATTERN", help="the path matches; * and ? match / too")
    add("-type", type=tests.kinds, metavar="T", help="f, d, l, c, b, p or s; several with commas between them")
    add("-size", type=tests.size, metavar="N", help="N blocks of 512 bytes; Nc bytes, Nk, NM, NG; +N more, -N less")
    add(
        "-perm", type=tests.permissions, metavar="MODE", help="exactly these bits (octal); -MODE all, /MODE any of them"
    )
    add("-uid", type=tests.count, metavar="N", help="the owner; +N and -N as with -size")
    add("-gid", type=tests.count, metavar="N", help="the group")
    add("-links", type=tests.count, metavar="N", help="the number of names")
    add("-inum", type=tests.count, metavar="N", help="the inode number")
    parser.add_argument(
        "-mindepth", type=whole_number, default=0, metavar="N", help="not above N directories below PATH"
    )
    parser.add_argument("-maxdepth", type=whole_number, metavar="N", help="not below that")
    parser.add_argument(
        "-print0",
        "--zero",
        dest="zero",
        action="store_true",
        help="print names as they are, and a NUL instead of a line",
    )
    add_image_options(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    with opened(args) as look:
        search = _Search(look, args)
        if args.json:
            print_json(look, search.records())
        else:
            _print(search.found(), zero=args.zero)
        return look.code


class _Search:
    """One run of the command."""

    def __init__(self, look: Look, args: argparse.Namespace) -> None:
        self._look = look
        self._tree = look.image.tree
        self._min_depth: int = args.mindepth
        self._max_depth: int | None = args.maxdepth
        self._names: list[tests.Names] = [*args.name, *args.iname]
        self._paths: list[tests.Names] = args.path
        self._kinds: frozenset[Kind] = frozenset(Kind).intersection(*args.type)
        self._numbers: list[tests.Numbers] = [*args.size, *args.perm]
        fields: tuple[tuple[Callable[[Attributes], int], list[tests.Compared]], ...] = (
            (lambda item: item.uid, args.uid),
            (lambda item: item.gid, args.gid),
            (lambda item: item.nlink, args.links),
            (lambda item: item.ino, args.inum),
        )
        self._numbers += [_field(read, compared) for read, given in fields for compared in given]

    def found(self) -> Iterator[bytes]:
        """The paths of what meets the tests."""
        return (path for path, _, _, _ in self._matching())

    def records(self) -> Iterator[dict[str, Any]]:
        """The same for JSON."""
        for path, _, ino, _ in self._matching():
            entry = self._look.attempt(path, partial(self._record, path, ino))
            if entry is not None:
                yield entry

    def _matching(self) -> Iterator[_Found]:
        names, paths, numbers, kinds = self._names, self._paths, self._numbers, self._kinds
        for item in self._all():
            path, name, ino, kind = item
            if kind not in kinds or not all(test(name) for test in names) or not all(test(path) for test in paths):
                continue
            if numbers:
                try:
                    attributes = self._tree.attributes(ino)
                except PuzzlefsError as error:
                    self._look.failed(path, error)
                    continue
                if not all(test(attributes) for test in numbers):
                    continue
            yield item

    def _all(self) -> Iterator[_Found]:
        """Everything between the depths."""
        for path in self._look.paths:
            place = self._look.attempt(path, partial(resolve, self._tree, path, follow=False))
            if place is None:
                continue
            if not self._min_depth:
                yield path, _last(path), place.ino, place.kind
            if self._max_depth != 0:
                yield from self._below(path, place)

    def _below(self, path: bytes, place: Place) -> Iterator[_Found]:
        enter = None if self._max_depth is None else self._max_depth - 1
        try:
            for visit in walk_below(self._tree, place, path, max_depth=enter, failed=self._look.failed):
                if visit.depth + 1 >= self._min_depth:
                    entry = visit.entry
                    yield visit.path + entry.name, entry.name, entry.ino, entry.kind
        except PuzzlefsError as error:  # the image as a whole
            self._look.failed(path, error)

    def _record(self, path: bytes, ino: int) -> dict[str, Any]:
        return record(self._look, path, self._tree.attributes(ino))


def _field(read: Callable[[Attributes], int], compared: tests.Compared) -> tests.Numbers:
    return lambda attributes: compared.holds(read(attributes))


def _last(path: bytes) -> bytes:
    """What ``-name`` looks at where a path was named: its last component; ``/`` of the root."""
    return path.rstrip(b"/").rpartition(b"/")[2] or b"/"


def _print(paths: Iterator[bytes], *, zero: bool) -> None:
    end = b"\0" if zero else b"\n"
    if sys.stdout.isatty() and not zero:
        paths = (shell_escape(path).encode("utf-8", "surrogateescape") for path in paths)
    write = sys.stdout.buffer.write
    batch: list[bytes] = []
    left = _BATCH
    for path in paths:
        batch.append(path)
        left -= len(path)
        if left < 0:
            write(end.join([*batch, b""]))
            batch.clear()
            left = _BATCH
    write(end.join([*batch, b""]))
