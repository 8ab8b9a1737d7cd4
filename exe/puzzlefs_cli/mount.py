"""``puzzlefs mount``: show an image as a file system."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlefs.errors import InvalidArgumentError
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.mount_daemon import mount_daemon
from puzzlefs_cli.mount_log import LEVELS, level_from
from puzzlefs_cli.mount_task import MountTask
from puzzlefs_cli.options import add_serving_options

if TYPE_CHECKING:
    from puzzlefs.oci import ImageReference

_DESCRIPTION = """\
Mount an image, read-only unless -w or -p is given. The command returns when the mount point answers; a server stays
behind in the background until somebody unmounts. With -f the command itself serves, until unmounted or Ctrl-C.
"""

_EPILOG = """\
mount options (-o): allow_other, default_permissions, ro, dev, nodev, suid, nosuid, exec, noexec,
auto_unmount, fsname=NAME, subtype=NAME. rw, the words about access times and the general words of
fstab(5) are accepted without effect.

writable mounts (-w, -p) need root. An overlay shows the image, and keeps what is written apart from it: with -w in
MOUNTPOINT/upper, which `puzzlefs umount` removes, with -p in UPPERDIR, which can be mounted over the image again (its
work directory is UPPERDIR.work). The image itself is at MOUNTPOINT/ro, below the overlay, as is everything else that
was in MOUNTPOINT. `puzzlefs commit` makes a new image of what was written.

the log goes to stderr with -f, else to syslog where there is one, and to --log-file if it is given.

examples:
  puzzlefs mount images:debian /mnt
  puzzlefs mount -d 9ac9abc0…dc2f5 -o dev,suid images:debian /mnt
  puzzlefs mount -o dev,suid --persist changes images:debian /mnt

  mkfifo ready
  puzzlefs mount -f -i ready images:debian /mnt &
  test "$(head -c1 ready)" = s && ls /mnt
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "mount",
        help="mount an image",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        usage="%(prog)s [-f | -w | -p UPPERDIR] [-i FIFO] [-o OPT,OPT…] [-d HEX] [--verity auto|kernel|user] "
        "[--engine auto|kernel|pyfuse3] IMAGE MOUNTPOINT",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE MOUNTPOINT", help=f"{IMAGE_HELP}; an existing directory")
    parser.add_argument(
        "-f",
        "--foreground",
        action="store_true",
        help="serve here instead of in the background, until unmounted or Ctrl-C: -f",
    )
    parser.add_argument(
        "-w",
        "--writable",
        action="store_true",
        help="let it be written to; what is written is thrown away by umount, unless it is committed before: -w",
    )
    parser.add_argument(
        "-p",
        "--persist",
        metavar="UPPERDIR",
        help="let it be written to, and keep what is written in this directory, which is made if it is missing: "
        "-p changes",
    )
    parser.add_argument(
        "--supervise",
        action=argparse.BooleanOptionalAction,
        help="let the mount outlive its server: one that dies is replaced (default: in the background, unless with "
        "--engine pyfuse3)",
    )
    parser.add_argument(
        "-i", "--init", metavar="FIFO", help="write s into this FIFO when the mount is ready, f if it fails: -i ready"
    )
    parser.add_argument(
        "-o", "--options", action="append", default=[], metavar="OPT,OPT…", help="mount options: -o dev,suid"
    )
    add_serving_options(parser, "mount")
    parser.add_argument(
        "--log-file", metavar="FILE", help="in the background, append the log to this file: --log-file mount.log"
    )
    parser.add_argument(
        "--log-level",
        choices=tuple(LEVELS),
        help="how much to log: --log-level debug (default: the variable PUZZLEFS_LOG, else info)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    gc.disable()  # until there is a mount: modules are loaded and an image is opened, and none of it is garbage
    try:
        return _run(args)
    finally:
        gc.enable()


def _run(args: argparse.Namespace) -> int:
    _, image, (mountpoint,) = words(args.words, [], ["MOUNTPOINT"])
    is_writable = args.writable or args.persist is not None
    if is_writable:
        _check_writable(args)
    if args.init:
        _check_fifo(args.init)
    sys.path[:] = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100  a server stands in /
    task = MountTask(
        layout=_absolute(image.layout),
        tag=image.tag,
        mountpoint=_absolute(mountpoint),
        options=tuple(args.options),
        digest=args.digest,
        verity=args.verity,
        engine=args.engine,
        is_writable=is_writable,
        upper=None if args.persist is None else _absolute(args.persist),
        supervise=args.supervise,
        is_foreground=args.foreground,
        fifo=_absolute(args.init) if args.init else None,
        paths=tuple(sys.path),
        log_level=level_from(args.log_level),
        log_file=_absolute(args.log_file) if args.log_file else None,
    )
    if args.foreground:
        if args.daemon is not None:  # -fi looked like something else
            args.daemon.dismiss()
        from puzzlefs_cli.mount_job import serve_in_foreground  # noqa: PLC0415  in the background a daemon needs that

        serve_in_foreground(task)
    else:
        daemon = args.daemon or mount_daemon()
        daemon.run(tuple(task._replace(outline=_outline(image))), debug=args.debug)
    return 0


def _outline(image: ImageReference) -> tuple[bytes, bytes, int] | None:
    """What can be found out while the daemon gets ready, where it does that on another processor."""
    if len(os.sched_getaffinity(0)) == 1:
        return None
    from puzzlefs.image_outline import outline_ahead  # noqa: PLC0415

    outline = outline_ahead(image)
    return None if outline is None else (outline.digest, outline.document, outline.layer_count)


def _absolute(path: str | Path) -> str:
    return os.fspath(Path(path).absolute())


def _check_fifo(path: str) -> None:
    from puzzlefs.mount import ReadinessFifo  # noqa: PLC0415

    ReadinessFifo(Path(path))


def _check_writable(args: argparse.Namespace) -> None:
    from puzzlefs.mount.options import split_words  # noqa: PLC0415

    option = "--writable" if args.persist is None else "--persist"
    if args.foreground:
        raise InvalidArgumentError(
            f"{option} does not go with --foreground: a writable mount is served in the background",
            hint="leave one of them out; --log-file shows what a server in the background has to say",
        )
    if args.persist == "":
        raise InvalidArgumentError("--persist needs a directory", hint="for example --persist changes")
    if any(word == "ro" for text in args.options for word in split_words(text)):
        raise InvalidArgumentError(f"{option} contradicts the mount option 'ro'", hint="leave one of them out")
