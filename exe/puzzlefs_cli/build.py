"""``puzzlefs build``: make an image from a directory."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlefs.errors import InvalidArgumentError
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.build_report import print_report, remark
from puzzlefs_cli.options import add_check_existing_option, add_chunker_option, add_storage_options, storage_options
from puzzlefs_cli.progress import add_progress_options, begin_work, progress_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from puzzlefs.builder import BuildReport, Progress, StorageOptions
    from puzzlefs.oci import ImageReference

_EPILOG = """\
The same tree always gives the same image and the same digest, from any path and on any machine (with -c: with
the same version of the zstd library). What the OCI
directory holds already is not stored again, and files that did not change since the last build are not read again. The
digest that is printed is what `mount --digest` takes.

With --base-layer the image is a metadata layer on top of another one in the same OCI directory, and holds only what
differs. With --upper instead of a ROOTFS, what differs is read from the upper directory of an overlayfs on that image,
and nothing else is looked at.

examples:
  puzzlefs build rootfs images:debian
  puzzlefs build --base-layer debian rootfs-new images:debian-2
  puzzlefs build --base-layer debian --upper /srv/overlay/upper images:debian-changed
  puzzlefs build --compression --timestamps keep rootfs images debian
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) puzzlefs build --timestamps clamp rootfs images:app
"""

_NS = 10**9
_DEFAULT_VERSION = 3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "build",
        help="make an image from a directory",
        description="Make an image from a directory, and print the image's digest.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs build [OPTION...] ROOTFS IMAGE\n       puzzlefs build --base-layer TAG --upper UPPERDIR IMAGE",
    )
    parser.add_argument("words", nargs="+", metavar="ROOTFS IMAGE", help=f"the directory to build from; {IMAGE_HELP}")
    parser.add_argument(
        "--base-layer",
        metavar="TAG",
        help="build on top of the image with this tag in the same OCI directory: --base-layer debian",
    )
    parser.add_argument(
        "--upper",
        metavar="UPPERDIR",
        help="with --base-layer, instead of ROOTFS: the upper directory of an overlayfs whose lower one is that image",
    )
    parser.add_argument(
        "-c", "--compression", action="store_true", help="compress chunks with zstd where that makes them smaller"
    )
    add_storage_options(
        parser,
        "Images share chunks only if they were built with the same of these. Format versions 1 and 2 have other "
        "defaults: those of the original implementation.",
    )
    parser.add_argument(
        "--format-version",
        type=int,
        choices=(1, 2, 3),
        help="the format to write; 3, the default, is a valid OCI image, 1 and 2 are for older readers; a layer has "
        "that of the image below",
    )
    add_chunker_option(parser)
    parser.add_argument(
        "--timestamps",
        choices=("none", "keep", "clamp"),
        help="modification times: none (the default: everything shows 1970), keep, or clamp (keep, but none later "
        "than the SOURCE_DATE_EPOCH of the environment, in seconds); a layer does by default what the image below does",
    )
    parser.add_argument(
        "--cross-mounts",
        action="store_true",
        help="include what is mounted below ROOTFS; otherwise mount points become empty directories",
    )
    add_check_existing_option(parser)
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
    add_progress_options(parser, "no remarks, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    names = () if args.upper else ("ROOTFS",)
    before, reference, _ = words(args.words, names, ())
    if args.upper and not args.base_layer:
        raise InvalidArgumentError(
            "--upper needs to know the image below", hint="name its tag: --base-layer TAG --upper UPPERDIR IMAGE"
        )
    if args.upper and args.cross_mounts:
        raise InvalidArgumentError(
            "--cross-mounts makes no sense with --upper: nothing is mounted in an upper directory"
        )
    clamp_ns = source_date_epoch() if args.timestamps == "clamp" else None
    if args.verify_cache and (args.no_cache or args.base_layer):
        other = "--no-cache" if args.no_cache else "--base-layer"
        raise InvalidArgumentError(f"--verify-cache needs the cache that {other} leaves out", hint="name one of them")
    if args.debug:
        import logging  # noqa: PLC0415

        logging.basicConfig(level=logging.DEBUG, format="puzzlefs: %(message)s")

    begin_work()
    storage = storage_options(args)
    with progress_of(args) as progress:
        if args.base_layer:
            report = _build_layer(args, before, reference, storage, clamp_ns, progress)
        else:
            report = _build(args, before[0], reference, storage, clamp_ns, progress)
    if not args.quiet:
        remark(report, timestamps=args.timestamps or (None if args.base_layer else "none"))
    print_report(report, as_json=args.json)
    return 0


def _build(
    args: argparse.Namespace,
    rootfs: str,
    reference: ImageReference,
    storage: StorageOptions,
    clamp_ns: int | None,
    progress: Callable[[Progress], None] | None,
) -> BuildReport:
    from puzzlefs.builder import build  # noqa: PLC0415

    return build(
        rootfs,
        reference,
        format_version=args.format_version or _DEFAULT_VERSION,
        compression=args.compression,
        storage=storage,
        chunker=args.chunker,
        timestamps=args.timestamps or "none",
        clamp_ns=clamp_ns,
        cross_mounts=args.cross_mounts,
        check_existing=args.check_existing,
        cache=None if args.no_cache else args.cache or _default_cache(rootfs),
        verify_cache=args.verify_cache,
        progress=progress,
    )


def _build_layer(
    args: argparse.Namespace,
    rootfs: list[str],
    reference: ImageReference,
    storage: StorageOptions,
    clamp_ns: int | None,
    progress: Callable[[Progress], None] | None,
) -> BuildReport:
    from puzzlefs.delta import build_from_tree, build_from_upper  # noqa: PLC0415
    from puzzlefs.image import open_image  # noqa: PLC0415
    from puzzlefs.oci import make_reference  # noqa: PLC0415

    with open_image(make_reference(reference.layout, args.base_layer)) as base:
        if args.format_version not in (None, base.version):
            raise InvalidArgumentError(
                f"{base.reference} is of format version {base.version}, and so are layers on top of it",
                hint="leave out --format-version, or convert the image first: puzzlefs convert",
            )
        if args.upper:
            build_on_top = partial(build_from_upper, args.upper)
        else:
            build_on_top = partial(build_from_tree, rootfs[0], cross_mounts=args.cross_mounts)
        return build_on_top(
            base,
            reference.tag,
            compression=True if args.compression else None,
            storage=storage,
            chunker=args.chunker,
            timestamps=args.timestamps,
            clamp_ns=clamp_ns,
            check_existing=args.check_existing,
            progress=progress,
        )


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


def source_date_epoch() -> int:
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
