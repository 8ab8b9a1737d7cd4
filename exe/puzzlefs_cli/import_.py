"""``puzzlefs import``: make an image from a tar archive.

``--json`` prints one object: ``digest``, ``members`` (of the archives), ``inodes``, ``content_size`` (bytes of regular
files, holes included), ``chunks`` (distinct), ``new_chunks``, ``stored_bytes``, ``seconds``, and ``ignored``, an object
that says what was left out or is odd about the archive, and how often.
"""

from __future__ import annotations

import argparse
import sys

from puzzlefs.errors import InvalidArgumentError
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.build import source_date_epoch
from puzzlefs_cli.build_report import print_made
from puzzlefs_cli.options import add_check_existing_option, add_chunker_option, add_storage_options, storage_options
from puzzlefs_cli.progress import add_progress_options, begin_work, progress_of

_EPILOG = """\
The image is the one that `puzzlefs build` makes of the unpacked tree (tar -x --numeric-owner --xattrs), with the same
digest, but nothing is unpacked. Archives of GNU tar, bsdtar, Python and others are read, with extended attributes,
ACLs, devices, hard links and holes, and if they are compressed with gzip, bzip2, xz or zstd. Contents wait in a
temporary file without a name in OCI_DIR, unless the archive is an ordinary file that is not compressed.

A later member takes the place of an earlier one of its name. Slashes in front of names are left out; `..` in a name is
refused. Several -f are unpacked over one another. The layers of a container image are such archives: with
--whiteouts apply, their .wh. names remove what the layers before have.

examples:
  puzzlefs import images:debian < debian.tar
  ssh host tar -C / --one-file-system --xattrs --acls -c . | puzzlefs import images:host
  puzzlefs import -c --whiteouts apply -f base.tar.gz -f app.tar.gz images:app
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "import",
        help="make an image from a tar archive",
        description="Make an image from a tar archive on stdin, or in files, and print the image's digest.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs import [OPTION...] IMAGE < FILE",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE", help=IMAGE_HELP)
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        action="append",
        help="an archive, instead of stdin; several times: lowest first",
    )
    parser.add_argument("--stdin", action="store_true", help="read the archive from stdin, as without -f")
    parser.add_argument(
        "--whiteouts",
        choices=("refuse", "apply", "keep"),
        default="refuse",
        help="names that begin with .wh.: refuse the archive (the default), apply them to the archives before as "
        "container images mean them, or keep them as files",
    )
    parser.add_argument(
        "-c", "--compression", action="store_true", help="compress chunks with zstd where that makes them smaller"
    )
    add_storage_options(parser, "The same options as for build.")
    parser.add_argument(
        "--format-version", type=int, choices=(1, 2, 3), default=3, help="the format to write (default: 3)"
    )
    add_chunker_option(parser)
    parser.add_argument(
        "--timestamps",
        choices=("none", "keep", "clamp"),
        default="none",
        help="modification times: none (the default: everything shows 1970), keep, or clamp (keep, but none later "
        "than the SOURCE_DATE_EPOCH of the environment, in seconds)",
    )
    add_check_existing_option(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object instead of the digest")
    add_progress_options(parser, "no remarks, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    _, reference, _ = words(args.words, (), ())
    if args.file and args.stdin:
        raise InvalidArgumentError("--stdin and -f exclude one another", hint="name one of them")
    if not args.file and sys.stdin.isatty():
        raise InvalidArgumentError(
            "there is no archive on a terminal", hint="redirect one to stdin, or name it: -f FILE"
        )
    clamp_ns = source_date_epoch() if args.timestamps == "clamp" else None

    from puzzlefs.tar import import_tar  # noqa: PLC0415  imported when it is needed: starting must be quick

    begin_work()
    with progress_of(args) as progress:
        report = import_tar(
            args.file or sys.stdin.buffer,
            reference,
            whiteouts=args.whiteouts,
            format_version=args.format_version,
            compression=args.compression,
            storage=storage_options(args),
            chunker=args.chunker,
            timestamps=args.timestamps,
            clamp_ns=clamp_ns,
            check_existing=args.check_existing,
            progress=progress,
        )
    if report.ignored and not args.quiet:
        what = ", ".join(f"{what} ({count})" for what, count in sorted(report.ignored.items()))
        print(f"puzzlefs: ignored in the archive: {what}", file=sys.stderr)
    print_made(report, as_json=args.json)
    return 0
