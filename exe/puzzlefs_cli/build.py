"""``puzzlefs build``: make an image from a directory."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from puzzlefs.errors import InvalidArgumentError
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, size, words
from puzzlefs_cli.progress import progress_bar

if TYPE_CHECKING:
    from puzzlefs.builder import BuildReport

_EPILOG = """\
The same tree always gives the same image and the same digest, from any path and on any machine (with -c: with
the same version of the zstd library). What the OCI
directory holds already is not stored again, and files that did not change since the last build are not read again. The
digest that is printed is what `mount --digest` takes.

examples:
  puzzlefs build rootfs images:debian
  puzzlefs build --compression --timestamps keep rootfs images debian
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) puzzlefs build --timestamps clamp rootfs images:app
"""

_NS = 10**9


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "build",
        help="make an image from a directory",
        description="Make an image from a directory, and print the image's digest.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs build [OPTION...] ROOTFS IMAGE",
    )
    parser.add_argument("words", nargs="+", metavar="ROOTFS IMAGE", help=f"the directory to build from; {IMAGE_HELP}")
    parser.add_argument(
        "-c", "--compression", action="store_true", help="compress chunks with zstd where that makes them smaller"
    )
    storing = parser.add_argument_group(
        "how a compressed image is stored",
        "Images share chunks only if they were built with the same of these. Format versions 1 and 2 have other "
        "defaults: those of the original implementation.",
    )
    storing.add_argument(
        "--compression-level",
        type=int,
        metavar="N",
        help="zstd level, 1 (quick) to 22 (small) (default: 5)",
    )
    storing.add_argument(
        "--chunk-size",
        type=size,
        metavar="SIZE",
        help="average bytes of a chunk: 16K to 512K, a power of two; small chunks share more between versions, large "
        "ones compress better and need less metadata (default: 128K)",
    )
    storing.add_argument(
        "--cut-at-files",
        type=size,
        metavar="SIZE",
        help="files of at least so many bytes have chunks of their own, 4K or more; 0: no files (default: 48K)",
    )
    storing.add_argument(
        "--compress-metadata",
        action="store_true",
        help="compress the metadata, too; other implementations of the format cannot read such an image",
    )
    parser.add_argument(
        "--format-version",
        type=int,
        choices=(1, 2, 3),
        default=3,
        help="the format to write; 3, the default, is a valid OCI image, 1 and 2 are for older readers",
    )
    parser.add_argument(
        "--chunker",
        choices=("fastcdc2020", "ronomon"),
        default="fastcdc2020",
        help="how files are cut into chunks; images share chunks only if it was the same (default: fastcdc2020)",
    )
    parser.add_argument(
        "--timestamps",
        choices=("none", "keep", "clamp"),
        default="none",
        help="modification times: none (the default: everything shows 1970), keep, or clamp (keep, but none later "
        "than the SOURCE_DATE_EPOCH of the environment, in seconds)",
    )
    parser.add_argument(
        "--cross-mounts",
        action="store_true",
        help="include what is mounted below ROOTFS; otherwise mount points become empty directories",
    )
    parser.add_argument(
        "--check-existing",
        action="store_true",
        help="read and check blobs that the OCI directory holds already, and replace damaged ones",
    )
    caching = parser.add_mutually_exclusive_group()
    caching.add_argument(
        "--cache",
        metavar="DIR",
        help="where builds remember what they read, so that the next one of the same ROOTFS reads only what changed; "
        "the image is the same with and without (default: ${XDG_CACHE_HOME:-~/.cache}/puzzlefs/builds)",
    )
    caching.add_argument("--no-cache", action="store_true", help="read everything, and remember nothing")
    parser.add_argument(
        "--verify-cache",
        action="store_true",
        help="read everything, and fail if a file is not what the cache says: it changed and kept its times",
    )
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object instead of the digest")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no remarks, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    (rootfs,), reference, _ = words(args.words, ("ROOTFS",), ())
    clamp_ns = _source_date_epoch() if args.timestamps == "clamp" else None
    if args.no_cache and args.verify_cache:
        raise InvalidArgumentError("--verify-cache needs the cache that --no-cache leaves out", hint="name one of them")
    if args.debug:
        import logging  # noqa: PLC0415

        logging.basicConfig(level=logging.DEBUG, format="puzzlefs: %(message)s")

    from puzzlefs.builder import StorageOptions, build  # noqa: PLC0415  imported when it is needed: starting must be quick

    # All objects that are made die with the process: looking for garbage among them finds nothing.
    gc.disable()
    # A build that is told to end removes what it did not finish, as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    with progress_bar(not args.quiet) as progress:
        report = build(
            rootfs,
            reference,
            format_version=args.format_version,
            compression=args.compression,
            storage=StorageOptions(
                level=args.compression_level,
                chunk_size=args.chunk_size,
                cut_at_files=args.cut_at_files,
                compress_metadata=args.compress_metadata,
            ),
            chunker=args.chunker,
            timestamps=args.timestamps,
            clamp_ns=clamp_ns,
            cross_mounts=args.cross_mounts,
            check_existing=args.check_existing,
            cache=None if args.no_cache else args.cache or _default_cache(rootfs),
            verify_cache=args.verify_cache,
            progress=progress,
        )
    if not args.quiet:
        _remark(report, timestamps=args.timestamps)
    if args.json:
        print(json.dumps(_as_json(report)))
    else:
        print(f"puzzlefs image manifest digest: {report.digest}")
    return 0


def _default_cache(rootfs: str) -> Path | None:
    """Where builds remember what they read, unless they are told; ``None`` if that would become a part of the image."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # to be ignored then, says the XDG Base Directory Specification
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # nobody's home
            return None
    cache = (base / "puzzlefs" / "builds").resolve()
    return None if cache.is_relative_to(Path(rootfs).resolve()) else cache


def _source_date_epoch() -> int:
    """The latest time to store, in nanoseconds (reproducible-builds.org/specs/source-date-epoch)."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        raise InvalidArgumentError(
            "--timestamps clamp needs SOURCE_DATE_EPOCH in the environment", hint="it is a number of seconds since 1970"
        )
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgumentError(
            f"SOURCE_DATE_EPOCH is {text!r}", hint="it must be a whole number of seconds since 1970"
        )
    return int(text) * _NS


def _remark(report: BuildReport, *, timestamps: str) -> None:
    from puzzlefs.builder.source import printable  # noqa: PLC0415

    for path in report.mount_points:
        print(
            f"puzzlefs: /{printable(path)} is a mount point and becomes an empty directory; "
            "--cross-mounts includes what is mounted there",
            file=sys.stderr,
        )
    if report.has_pyc and timestamps == "none":
        print(
            "puzzlefs: the tree holds compiled Python modules, which load about three times slower without "
            "modification times; --timestamps keep stores them",
            file=sys.stderr,
        )


def _as_json(report: BuildReport) -> dict[str, object]:
    return {
        "digest": str(report.digest),
        "inodes": report.inodes,
        "bytes": report.content_size,
        "bytes_read": report.bytes_read,
        "chunks": report.chunks,
        "new_chunks": report.new_chunks,
        "stored_bytes": report.stored_bytes,
        "seconds": round(report.seconds, 3),
        "mount_points": ["/" + os.fsdecode(path) for path in report.mount_points],
    }


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
