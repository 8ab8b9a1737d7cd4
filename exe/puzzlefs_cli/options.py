"""Options that several commands have, so that they are called and mean the same everywhere.

Which image is accepted (``-d``, ``--verity``), who serves a mount (``--engine``), and how what is stored is stored.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from puzzlefs_cli.arguments import size

if TYPE_CHECKING:
    from puzzlefs.builder import StorageOptions

_VERITY: Final = ("auto", "kernel", "user")


def add_digest_option(parser: argparse.ArgumentParser, *, short: bool = True) -> None:
    """Add ``-d``, ``--digest``; without ``short``, where ``-d`` means something else, the long name alone."""
    names = ("-d", "--digest") if short else ("--digest",)
    parser.add_argument(*names, metavar="HEX", help="refuse any image but the one with this digest")


def add_image_options(parser: argparse.ArgumentParser, *, short: bool = True) -> None:
    """Add the options of every command that opens an image: ``add_digest_option``, and ``--verity``."""
    add_digest_option(parser, short=short)
    parser.add_argument(
        "--verity",
        choices=_VERITY,
        default="auto",
        help="who checks what lies below the digest: the kernel's fs-verity, puzzlefs itself, or (auto, the default) "
        "the kernel where a file has fs-verity enabled",
    )


def add_serving_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the options of commands that serve an image as a file system; ``what`` they do: ``mount``."""
    parser.add_argument(
        "-d",
        "--digest",
        metavar="HEX",
        help=f"{what} only if this is the image's digest, as build printed it: -d 9ac9abc0…dc2f5",
    )
    parser.add_argument(
        "--verity",
        choices=_VERITY,
        default="auto",
        help="with --digest: who checks what lies below, fs-verity in the kernel, this program, or (auto, the "
        "default) the kernel where a file has fs-verity enabled: --verity kernel",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", "kernel", "pyfuse3"),
        default="auto",
        help="who speaks to the kernel: this program itself (kernel), libfuse (pyfuse3), or (auto, the default) the "
        "first of them that can do it here: --engine pyfuse3",
    )


def add_storage_options(
    parser: argparse.ArgumentParser, about: str, *, level: str = "5", compress_metadata: str = "no"
) -> None:
    """Add how a compressed image is stored.

    Args:
        parser: where to.
        about: what to say about all of them.
        level: the default of the level, for the help.
        compress_metadata: the default of ``--compress-metadata``, for the help.
    """
    group = parser.add_argument_group("how a compressed image is stored", about)
    group.add_argument(
        "--compression-level",
        type=int,
        metavar="N",
        help=f"zstd level, 1 (quick) to 22 (small) (default: {level})",
    )
    group.add_argument(
        "--chunk-size",
        type=size,
        metavar="SIZE",
        help="average bytes of a chunk: 16K to 512K, a power of two; small chunks share more between versions, large "
        "ones compress better and need less metadata (default: 128K)",
    )
    group.add_argument(
        "--cut-at-files",
        type=size,
        metavar="SIZE",
        help="files of at least so many bytes have chunks of their own, 4K or more; 0: no files (default: 48K)",
    )
    group.add_argument(
        "--compress-metadata",
        action="store_true",
        help="compress the metadata, too; other implementations of the format cannot read such an image "
        f"(default: {compress_metadata})",
    )


def storage_options(args: argparse.Namespace) -> StorageOptions:
    """What the options of ``add_storage_options`` say."""
    from puzzlefs.builder import StorageOptions  # noqa: PLC0415  imported when it is needed: starting must be quick

    return StorageOptions(
        level=args.compression_level,
        chunk_size=args.chunk_size,
        cut_at_files=args.cut_at_files,
        compress_metadata=args.compress_metadata,
    )


def add_chunker_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--chunker``."""
    parser.add_argument(
        "--chunker",
        choices=("fastcdc2020", "ronomon"),
        default="fastcdc2020",
        help="how files are cut into chunks; images share chunks only if it was the same (default: fastcdc2020)",
    )


def add_check_existing_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--check-existing``."""
    parser.add_argument(
        "--check-existing",
        action="store_true",
        help="read and check blobs that the OCI directory holds already, and replace damaged ones",
    )
