"""``puzzlefs mount``: show an image as a file system."""

from __future__ import annotations

import argparse
import gc
import marshal
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.oci import ImageReference, ManifestOutline
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.daemon import in_background
from puzzlefs_cli.heap import keep_memory_together
from puzzlefs_cli.mount_log import LEVELS, level_from, log_in_background, log_to_stderr
from puzzlefs_cli.options import add_serving_options

if TYPE_CHECKING:
    from puzzlefs.mount import ReadinessFifo
    from puzzlefs.mount.successor import Successor

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


_LARGE: Final = 128 << 10
"""Bytes of a directory of blobs (about two thousand on ext4, and six on tmpfs) below which no manifest takes long."""

_TAKEOVER = "puzzlefs_cli.takeover"
"""What a guardian has another version of this program run; its name is the interface between versions."""


class _Request(NamedTuple):
    """What was asked for, with paths that stay right in another directory."""

    image: ImageReference
    mountpoint: Path
    options: tuple[str, ...]
    digest: str | None
    verity: Literal["auto", "kernel", "user"]
    engine: Literal["auto", "kernel", "pyfuse3"]
    is_writable: bool
    upper: Path | None
    supervise: bool | None
    is_foreground: bool
    paths: tuple[str, ...]
    log_level: int
    log_file: Path | None

    def successor(self) -> Successor | None:
        """The program that a supervised mount is served by after SIGHUP; ``None``: it is not supervised."""
        if not self._is_supervised():
            return None
        from puzzlefs.mount.successor import Successor, command_of  # noqa: PLC0415

        settings = {
            "log_level": self.log_level,
            "log_file": None if self.log_file is None else os.fspath(self.log_file),
            "foreground": self.is_foreground,
        }
        return Successor(command_of(_TAKEOVER, self.paths), settings)

    def _is_supervised(self) -> bool:
        if self.supervise is not None:
            return self.supervise
        from puzzlefs.mount import can_supervise  # noqa: PLC0415

        return not self.is_foreground and can_supervise(self.engine)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    gc.disable()  # until there is a mount: modules are loaded and an image is opened, and none of it is garbage
    try:
        return _run(args)
    finally:
        gc.enable()


def _run(args: argparse.Namespace) -> int:
    # What a mount needs is loaded in the process that serves it, or starts who does: memory that was filled before a
    # fork is copied page by page by whoever touches it first.
    _, image, (mountpoint,) = words(args.words, [], ["MOUNTPOINT"])
    is_writable = args.writable or args.persist is not None
    if is_writable:
        _check_writable(args)
    sys.path[:] = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100  the daemon stands in /
    fifo = _fifo(args.init) if args.init else None
    request = _Request(
        image=ImageReference(image.layout.absolute(), image.tag),
        mountpoint=Path(mountpoint).absolute(),
        options=tuple(args.options),
        digest=args.digest,
        verity=args.verity,
        engine=args.engine,
        is_writable=is_writable,
        upper=None if args.persist is None else Path(args.persist).absolute(),
        supervise=args.supervise,
        is_foreground=args.foreground,
        paths=tuple(sys.path),
        log_level=level_from(args.log_level),
        log_file=Path(args.log_file).absolute() if args.log_file else None,
    )
    if args.foreground:
        _in_foreground(request, fifo)
    else:
        in_background(
            lambda ready, told: _in_daemon(request, fifo, ready, told),
            meanwhile=lambda: _outline(image),
            on_failure=None if fifo is None else fifo.failed,
            debug=args.debug,
        )
    return 0


def _fifo(path: str) -> ReadinessFifo:
    from puzzlefs.mount import ReadinessFifo  # noqa: PLC0415

    return ReadinessFifo(Path(path))


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


def _in_foreground(request: _Request, fifo: ReadinessFifo | None) -> None:
    was_ready = False

    def ready() -> None:
        nonlocal was_ready
        was_ready = True
        _announce(fifo)

    log_to_stderr(request.log_level)
    try:
        _serve(request, ready, lambda: None)
    except BaseException:
        if fifo is not None and not was_ready:
            fifo.failed()
        raise


def _outline(image: ImageReference) -> bytes:
    """What can be found out about an image while the daemon gets ready, if it does that on another processor."""
    try:
        is_worth_it = (image.layout / "blobs" / "sha256").stat().st_size > _LARGE and len(os.sched_getaffinity(0)) > 1
    except OSError:
        is_worth_it = False
    if not is_worth_it:
        return b""
    from puzzlefs.image_outline import outline_ahead  # noqa: PLC0415

    outline = outline_ahead(image)
    return b"" if outline is None else marshal.dumps(tuple(outline))


def _understood(data: bytes) -> ManifestOutline | None:
    try:
        return ManifestOutline(*marshal.loads(data))  # noqa: S302  from the process that this one was forked from
    except (EOFError, ValueError):
        return None  # nothing, or only its beginning


def _in_daemon(
    request: _Request, fifo: ReadinessFifo | None, report: Callable[[], None], told: Callable[[], bytes]
) -> None:
    def ready() -> None:
        report()
        _announce(fifo)

    log_in_background(request.log_level, request.log_file)
    _serve(request, ready, lambda: _understood(told()))


def _announce(fifo: ReadinessFifo | None) -> None:
    if fifo is not None:
        fifo.ready()
    # everything that is alive now stays so until the end: the collector need not look at it again
    gc.collect()
    gc.freeze()
    gc.enable()


def _serve(request: _Request, ready: Callable[[], None], outline: Callable[[], ManifestOutline | None]) -> None:
    # all that a mount needs is loaded before the outline, which somebody else works out meanwhile, is waited for
    import puzzlefs.mount.guardian  # noqa: F401, PLC0415
    from puzzlefs.image import open_image  # noqa: PLC0415
    from puzzlefs.mount import mount, parse_options  # noqa: PLC0415

    keep_memory_together()
    options = parse_options(request.options)
    successor = request.successor()
    with open_image(request.image, digest=request.digest, verity=request.verity, outline=outline()) as image:
        if request.is_writable:
            from puzzlefs.mount.writable import mount_writable  # noqa: PLC0415

            mount_writable(
                image,
                request.mountpoint,
                options,
                upper=request.upper,
                on_ready=ready,
                engine=request.engine,
                supervise=successor is not None,
                successor=successor,
            )
        else:
            mount(
                image,
                request.mountpoint,
                options,
                on_ready=ready,
                engine=request.engine,
                supervise=successor is not None,
                successor=successor,
            )
