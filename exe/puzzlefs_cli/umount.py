"""``puzzlefs umount``: take a mount away."""

from __future__ import annotations

import argparse
from pathlib import Path

from puzzlefs_cli.arguments import HelpFormatter

_DESCRIPTION = """\
Unmount an image. The server behind the mount ends by itself.
"""

_EPILOG = """\
What was written to a writable mount (mount -w) is thrown away, unless it was committed; with mount -p it stays in the
directory that was named there. What is left of a writable mount, because its overlay was unmounted by other means, its
server died or the machine went down, is cleared away.

A mount in use is left alone, and the message says how to find its users and how to detach it from them.

example:
  puzzlefs umount /mnt
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "umount",
        help="unmount an image",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where the image is mounted: /mnt")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    from puzzlefs.mount import unmount  # noqa: PLC0415  other verbs should not pay for it

    unmount(Path(args.mountpoint))
    return 0
