"""PuzzleFS: container images that share chunks across versions, mounted at once, checked to the last byte.

The public face of the library::

    import puzzlefs

    report = puzzlefs.build("rootfs", "images:debian")
    print(report.digest)

    with puzzlefs.open_image("images:debian", digest=str(report.digest)) as image:
        text = (image.path("/etc") / "os-release").read_text()

    puzzlefs.extract("images:debian", "copy")
    puzzlefs.mount("images:debian", "/mnt")          # serves until it is unmounted

Everything that goes wrong on purpose is a ``puzzlefs.PuzzlefsError``. The names below are loaded when they are first
used: a program that only reads images does not pay for FUSE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from puzzlefs._version import __version__
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    MountError,
    NotFoundError,
    PathError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
    PuzzlefsError,
    SourceError,
    StorageError,
    TagNotFoundError,
    UnsafePathError,
    UnsupportedError,
    UnsupportedVersionError,
    VerityNotEnabledError,
    VerityUnavailableError,
)
from puzzlefs.late import late

if TYPE_CHECKING:
    from puzzlefs.builder import BuildReport, StorageOptions, build
    from puzzlefs.canonicalize import CanonicalReport, canonicalize
    from puzzlefs.collect import GarbageReport, collect_garbage
    from puzzlefs.convert import ConvertReport, convert
    from puzzlefs.copy_image import CopyReport, copy_all, copy_image
    from puzzlefs.delta import build_from_tree, build_from_upper
    from puzzlefs.diff import Difference, DiffReport, diff
    from puzzlefs.digest import Digest, VerityDigest
    from puzzlefs.enable_verity import EnableReport, enable_fs_verity
    from puzzlefs.extract import ExtractReport, extract
    from puzzlefs.fsck import FsckReport, fsck
    from puzzlefs.history import HistoryReport, history
    from puzzlefs.image import Image, open_image
    from puzzlefs.image_path import ImagePath
    from puzzlefs.mount import mount
    from puzzlefs.mount.committing import commit
    from puzzlefs.mount.shell import ShellOutcome, run_in_image
    from puzzlefs.mount.status import MountStatus, MountVerification, mount_status, verify_mount
    from puzzlefs.mount.unmounting import unmount
    from puzzlefs.mount.writable import mount_writable
    from puzzlefs.oci import ImageReference, parse_reference
    from puzzlefs.tags import TagChange, TagInfo, TagsReport, tag, tags, untag
    from puzzlefs.tar import ExportReport, ImportReport, export_tar, import_tar
    from puzzlefs.usage import Inspection, LayoutStatistics, UsageReport, disk_usage, inspect_image, layout_statistics

_HOMES = {
    "BuildReport": "builder",
    "CanonicalReport": "canonicalize",
    "ConvertReport": "convert",
    "CopyReport": "copy_image",
    "DiffReport": "diff",
    "Difference": "diff",
    "Digest": "digest",
    "EnableReport": "enable_verity",
    "ExportReport": "tar",
    "ExtractReport": "extract",
    "FsckReport": "fsck",
    "GarbageReport": "collect",
    "HistoryReport": "history",
    "Image": "image",
    "ImagePath": "image_path",
    "ImageReference": "oci",
    "ImportReport": "tar",
    "Inspection": "usage",
    "LayoutStatistics": "usage",
    "MountStatus": "mount.status",
    "MountVerification": "mount.status",
    "ShellOutcome": "mount.shell",
    "StorageOptions": "builder",
    "TagChange": "tags",
    "TagInfo": "tags",
    "TagsReport": "tags",
    "UsageReport": "usage",
    "VerityDigest": "digest",
    "build": "builder",
    "build_from_tree": "delta",
    "build_from_upper": "delta",
    "canonicalize": "canonicalize",
    "collect_garbage": "collect",
    "commit": "mount.committing",
    "convert": "convert",
    "copy_all": "copy_image",
    "copy_image": "copy_image",
    "diff": "diff",
    "disk_usage": "usage",
    "enable_fs_verity": "enable_verity",
    "export_tar": "tar",
    "extract": "extract",
    "fsck": "fsck",
    "history": "history",
    "import_tar": "tar",
    "inspect_image": "usage",
    "layout_statistics": "usage",
    "mount": "mount",
    "mount_status": "mount.status",
    "mount_writable": "mount.writable",
    "open_image": "image",
    "parse_reference": "oci",
    "run_in_image": "mount.shell",
    "tag": "tags",
    "tags": "tags",
    "unmount": "mount",
    "untag": "tags",
    "verify_mount": "mount.status",
}


if not TYPE_CHECKING:
    __getattr__ = late(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


__all__ = [
    "BlobNotFoundError",
    "BuildReport",
    "CanonicalReport",
    "ConvertReport",
    "CopyReport",
    "DiffReport",
    "Difference",
    "Digest",
    "EnableReport",
    "ExportReport",
    "ExtractReport",
    "FormatError",
    "FsckReport",
    "GarbageReport",
    "HistoryReport",
    "Image",
    "ImagePath",
    "ImageReference",
    "ImportReport",
    "Inspection",
    "IntegrityError",
    "InvalidArgumentError",
    "LayoutStatistics",
    "MountError",
    "MountStatus",
    "MountVerification",
    "NotFoundError",
    "PathError",
    "PathIsDirectoryError",
    "PathNotDirectoryError",
    "PathNotFoundError",
    "PuzzlefsError",
    "ShellOutcome",
    "SourceError",
    "StorageError",
    "StorageOptions",
    "TagChange",
    "TagInfo",
    "TagNotFoundError",
    "TagsReport",
    "UnsafePathError",
    "UnsupportedError",
    "UnsupportedVersionError",
    "UsageReport",
    "VerityDigest",
    "VerityNotEnabledError",
    "VerityUnavailableError",
    "__version__",
    "build",
    "build_from_tree",
    "build_from_upper",
    "canonicalize",
    "collect_garbage",
    "commit",
    "convert",
    "copy_all",
    "copy_image",
    "diff",
    "disk_usage",
    "enable_fs_verity",
    "export_tar",
    "extract",
    "fsck",
    "history",
    "import_tar",
    "inspect_image",
    "layout_statistics",
    "mount",
    "mount_status",
    "mount_writable",
    "open_image",
    "parse_reference",
    "run_in_image",
    "tag",
    "tags",
    "unmount",
    "untag",
    "verify_mount",
]
