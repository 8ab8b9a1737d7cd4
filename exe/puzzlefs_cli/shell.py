"""``puzzlefs shell``: run a command in an image that it may write to, without being root."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlefs.errors import StorageError
from puzzlefs.oci import ImageReference, make_reference, parse_reference
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.options import add_serving_options

if TYPE_CHECKING:
    from puzzlefs.image import Image

_DESCRIPTION = """\
Run a command with the image as its root directory, writable. Nobody needs to be root: the command is root in a user
namespace. What it writes is kept in memory and is gone when it ends; the image stays as it is. With --commit it becomes
a new image on top of this one, and its digest is printed.
"""

_EPILOG = """\
Without CMD it is the shell of $SHELL if the image has it, else /bin/sh. The exit status is that of the command; 127 if
there is no such command, 126 if it cannot be run, 128 + n if signal n ended it. All of its processes end with it. It
starts in /, with the variables of the caller, except those that hold a path; the network is that of the host.

Files of other owners than root can be written if /etc/subuid and /etc/subgid give this user ids and newuidmap and
newgidmap are installed (Debian: package uidmap); otherwise a line on stderr says so.

examples:
  puzzlefs shell images:debian
  puzzlefs shell --commit debian-with-jq images:debian sh -c 'apt-get update && apt-get install -y jq'
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "shell",
        help="run a command in a writable image, without being root",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs shell [--commit NEWTAG] [OPTION...] IMAGE [CMD [ARG...]]",
        allow_abbrev=False,
    )
    parser.add_argument("image", metavar="IMAGE", help="the image: OCI_DIR:TAG")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="CMD", help="the command and its arguments, options included"
    )
    parser.add_argument(
        "--commit",
        metavar="NEWTAG",
        help="if the command exits with 0, store what it changed as the image NEWTAG: --commit debian-with-jq",
    )
    add_serving_options(parser, "run")
    parser.add_argument(
        "--overlay",
        choices=("auto", "kernel", "fuse-overlayfs"),
        default="auto",
        help="who makes the image writable: the kernel's overlayfs, the program fuse-overlayfs, or (auto, the default) "
        "the first of them that can do it here: --overlay fuse-overlayfs",
    )
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        help="keep what is written in a temporary directory in DIR instead of in memory: --scratch /var/tmp",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no remarks, only errors")
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)  # for CMD it would mean something else
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    import logging  # noqa: PLC0415  imported when it is needed: starting must be quick

    from puzzlefs.image import open_image  # noqa: PLC0415
    from puzzlefs.mount.shell import run_in_image  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="puzzlefs: %(message)s")
    reference = parse_reference(args.image)
    reference = ImageReference(reference.layout.absolute(), reference.tag)
    if args.commit is not None:
        _check_target(reference, args.commit)
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    with open_image(reference, digest=args.digest, verity=args.verity) as image:
        outcome = run_in_image(
            image,
            words,
            environment=os.environ,
            engine=args.engine,
            overlay=args.overlay,
            scratch=None if args.scratch is None else Path(args.scratch).absolute(),
            on_remark=None if args.quiet else _remark,
            on_success=None if args.commit is None else _commit(image, args.commit, quiet=args.quiet),
        )
    if outcome.problem is not None:
        _remark(outcome.problem)
    if args.commit is not None and outcome.status != 0:
        _remark(f"the command exited with {outcome.status}: {args.commit} was not committed")
    return outcome.status


def _check_target(reference: ImageReference, tag: str) -> None:
    """Find out before the work, not after it, that a commit cannot be.

    Raises:
        InvalidArgumentError: if there can be no such tag.
        StorageError: if this user may not write to the OCI directory.
    """
    make_reference(str(reference.layout), tag)
    if reference.layout.is_dir() and not os.access(reference.layout, os.W_OK | os.X_OK):
        raise StorageError(
            f"{reference.layout} cannot be written, and --commit {tag} has to",
            hint="copy it to a directory of your own",
        )


def _commit(image: Image, tag: str, *, quiet: bool) -> Callable[[Path], None]:
    # imported now: whatever is wrong with that must not come out after the work
    from puzzlefs.delta import build_from_upper  # noqa: PLC0415
    from puzzlefs_cli.build_report import print_report, remark  # noqa: PLC0415
    from puzzlefs_cli.progress import progress_bar  # noqa: PLC0415

    def commit(upper: Path) -> None:
        with progress_bar(not quiet) as progress:
            report = build_from_upper(upper, image, tag, progress=progress)
        if not quiet:
            remark(report, timestamps=None)
        print_report(report, as_json=False)

    return commit


def _remark(text: str) -> None:
    print(f"puzzlefs: {text}", file=sys.stderr)
