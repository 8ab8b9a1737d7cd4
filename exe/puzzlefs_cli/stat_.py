"""``puzzlefs stat``: show what an image says of single files, as GNU stat does."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from puzzlefs.image_owners import Owners
from puzzlefs.vfs import Attributes
from puzzlefs.vfs.paths import Place, resolve
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.looking import (
    IMAGE_AND_PATHS_HELP,
    JSON_KEYS,
    Look,
    opened,
    print_json,
    record,
)
from puzzlefs_cli.ls_format import full_time
from puzzlefs_cli.options import add_image_options
from puzzlefs_cli.quoting import shell_escape

_EPILOG: Final = f"""\
A symbolic link at the end of PATH is shown itself, unless -L says to follow it. Names of owners are those that the
image gives them. An image has one time for each file, that of the last modification (none: 1970).

{JSON_KEYS}
Here an entry also has "path" as it was named, "resolved", where that is, "user" and "group" (null where the image does
not name them), and "xattrs": names and values in hexadecimal.

examples:
  puzzlefs stat images:debian /etc/passwd /dev/null
  puzzlefs stat --json images:debian /bin/ping
"""

_IO_BLOCK: Final = 4096
_FILE_TYPES: Final = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character special file",
    stat.S_IFBLK: "block special file",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "stat",
        help="show what an image says of a file",
        description="Show attributes of files of an image, as GNU stat does.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs stat [-L] [-d HEX] [--verity MODE] [--json] IMAGE PATH…",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE PATH", help=IMAGE_AND_PATHS_HELP)
    parser.add_argument("-L", "--dereference", action="store_true", help="follow symbolic links")
    add_image_options(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    with opened(args, default=None) as look:
        owners = Owners(look.image)
        found = _found(look, follow=args.dereference)
        if args.json:
            print_json(look, (_record(look, owners, *item) for item in found))
        else:
            quotes = sys.stdout.isatty()
            for path, _, attributes, target in found:
                sys.stdout.buffer.write(_text(owners, path, attributes, target, quotes=quotes))
        return look.code


def _found(look: Look, *, follow: bool) -> Iterator[tuple[bytes, Place, Attributes, bytes | None]]:
    tree = look.image.tree

    def examine(path: bytes) -> tuple[bytes, Place, Attributes, bytes | None]:
        place = resolve(tree, path, follow=follow)
        attributes = tree.attributes(place.ino)
        return path, place, attributes, tree.readlink(place.ino) if stat.S_ISLNK(attributes.mode) else None

    for path in look.paths:
        item = look.attempt(path, partial(examine, path))
        if item is not None:
            yield item


def _record(
    look: Look, owners: Owners, path: bytes, place: Place, attributes: Attributes, _target: bytes | None
) -> dict[str, Any]:
    xattrs = look.attempt(path, lambda: look.image.tree.xattrs(place.ino)) or {}
    return {
        **record(look, path, attributes),
        "resolved": os.fsdecode(place.path),
        "user": owners.user(attributes.uid),
        "group": owners.group(attributes.gid),
        "xattrs": {os.fsdecode(name): value.hex() for name, value in sorted(xattrs.items())},
    }


def _text(owners: Owners, path: bytes, attributes: Attributes, target: bytes | None, *, quotes: bool) -> bytes:
    """The lines that GNU stat prints; without a device, and with the one time that there is."""
    mode = attributes.mode
    kind = _FILE_TYPES[stat.S_IFMT(mode)]
    if stat.S_ISREG(mode) and not attributes.size:
        kind = "regular empty file"
    links = f"Links: {attributes.nlink}"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        links = f"Links: {attributes.nlink:<5} Device type: {os.major(attributes.rdev)},{os.minor(attributes.rdev)}"
    user = f"({attributes.uid:5}/{owners.user(attributes.uid) or 'UNKNOWN':>8})"
    group = f"({attributes.gid:5}/{owners.group(attributes.gid) or 'UNKNOWN':>8})"
    lines = [
        f"  Size: {attributes.size:<10}\tBlocks: {attributes.blocks:<10} IO Block: {_IO_BLOCK:<6} {kind}",
        f"Device: -\tInode: {attributes.ino:<11} {links}",
        f"Access: ({stat.S_IMODE(mode):04o}/{stat.filemode(mode)})  Uid: {user}   Gid: {group}",
        f"Modify: {full_time(attributes.mtime_ns)}",
    ]
    names = [name for name in (path, target) if name is not None]
    shown = [shell_escape(name).encode("utf-8", "surrogateescape") for name in names] if quotes else names
    return b"  File: %s\n%s\n" % (b" -> ".join(shown), "\n".join(lines).encode("utf-8", "surrogateescape"))
