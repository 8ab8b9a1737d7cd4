"""``puzzlefs restart``: have a live mount served by a new version of the program."""

from __future__ import annotations

import argparse

from puzzlefs_cli.arguments import HelpFormatter

_DESCRIPTION = """\
Replace the server of a live mount, for example after an upgrade: what serves then is the program that mounted, as it is
on disk by now. The new server is started beside the old one, which goes on until the new one serves; if that does not
come up, the old one stays. Who uses the mount sees nothing of it.
"""

_EPILOG = """\
The mount must be supervised, as mounts in the background are. Only root and the user that mounted it may ask for that.
SIGHUP, sent to the guardian or the server (see `puzzlefs status`), does the same.

examples:
  puzzlefs restart /mnt
  pip install --upgrade puzzlefs && puzzlefs restart /mnt
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "restart",
        help="have a live mount served by a new version of puzzlefs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where an image is mounted: /mnt")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    from puzzlefs.mount.restarting import restart_mount  # noqa: PLC0415  other verbs should not pay for it

    print(f"{args.mountpoint} is served by process {restart_mount(args.mountpoint)}")
    return 0
