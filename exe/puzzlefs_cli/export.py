"""``puzzlefs export``: an image as a tar archive.

``--json`` prints one object on stderr, since stdout is the archive's (on stdout with ``-o``): ``members``, ``bytes``
(of the archive), ``content_size`` (bytes of regular files, holes included, each file once), ``sockets`` (left out).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import io
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from puzzlefs.errors import InvalidArgumentError, StorageError
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, image_and_paths
from puzzlefs_cli.options import add_image_options
from puzzlefs_cli.progress import add_progress_options, begin_work, progress_of

_EPILOG = """\
The archive is in the pax format, which GNU tar, bsdtar and others read: with extended attributes, ACLs and capabilities
(as SCHILY.xattr records), devices, hard links, holes, times to the nanosecond, and names of any bytes. Only sockets
cannot be in it; a line on stderr says how many were left out. The same image always gives the same bytes, and
everything is verified on the way. Nothing is unpacked.

examples:
  puzzlefs export images:debian | tar -C /srv/debian -x --xattrs --xattrs-include='*' --numeric-owner
  puzzlefs export images:debian /usr/share/doc | zstd > doc.tar.zst
  puzzlefs export -o debian.tar images:debian
"""

_PIPE_SIZE = 1 << 20
"""Bytes that a pipe holds while its reader does something else (what every user may ask for: pipe(7))."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "export",
        help="write an image, or a part of it, as a tar archive",
        description="Write what is in an image, or below a path in it, to stdout as a tar archive.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs export [OPTION...] IMAGE [PATH] > FILE",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="IMAGE [PATH]",
        help=f"{IMAGE_HELP}; then a path in it: that directory becomes ./ of the archive",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to, instead of stdout; it appears when it is whole"
    )
    add_image_options(parser)
    parser.add_argument(
        "--json", action="store_true", help="print a report as one JSON object, on stderr if stdout is the archive's"
    )
    add_progress_options(parser, "no remarks, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    reference, paths = image_and_paths(args.words, default="/")
    if len(paths) > 1:
        raise InvalidArgumentError("too many arguments: IMAGE [PATH] expected", hint="export one directory at a time")
    path = paths[0]
    if args.output is None and sys.stdout.isatty():
        raise InvalidArgumentError(
            "an archive is not for a terminal", hint="send it to a file or a program, or name one with -o FILE"
        )

    from puzzlefs.builder import Progress  # noqa: PLC0415  imported when it is needed: starting must be quick
    from puzzlefs.image import open_image  # noqa: PLC0415
    from puzzlefs.tar import export_tar  # noqa: PLC0415

    begin_work()
    with (
        open_image(reference, digest=args.digest, verity=args.verity) as image,
        progress_of(args) as show,
        _output(args.output) as output,
    ):
        total = image.tree.totals().size if show is not None and path == "/" else 0

        def progress(members: int, size: int) -> None:
            if show is not None:
                show(Progress("chunks", members, size, total))

        report = export_tar(image, output, path, progress=progress)
    if report.sockets and not args.quiet:
        what = "a socket was" if report.sockets == 1 else f"{report.sockets} sockets were"
        print(f"puzzlefs: {what} left out: a tar archive cannot hold any", file=sys.stderr)
    if args.json:
        print(json.dumps(dataclasses.asdict(report)), file=sys.stderr if args.output is None else sys.stdout)
    return 0


@contextlib.contextmanager
def _output(name: str | None) -> Iterator[io.FileIO]:
    """Where the archive goes: stdout, or a file, which gets its name when it is whole."""
    if name is None:
        with open(sys.stdout.fileno(), "wb", buffering=0, closefd=False) as file:
            with contextlib.suppress(OSError):  # no pipe, or larger than this user may have it
                fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            yield file
        return
    path = Path(name)
    try:
        is_file = not path.exists() or stat.S_ISREG(path.stat().st_mode)
        written = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}") if is_file else path
        with written.open("xb" if is_file else "wb", buffering=0) as file:
            try:
                yield file
                if is_file:
                    os.fsync(file.fileno())
                    written.rename(path)
            except BaseException:
                if is_file:
                    written.unlink(missing_ok=True)
                raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {name}: {error.strerror or error}") from error
