"""What commands that make an image print about it."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puzzlefs.builder import BuildReport
    from puzzlefs.canonicalize import CanonicalReport
    from puzzlefs.convert import ConvertReport
    from puzzlefs.digest import VerityDigest
    from puzzlefs.tar import ImportReport


def print_digest(digest: VerityDigest) -> None:
    """The line that ends with the image's digest, which ``mount --digest`` takes."""
    print(f"puzzlefs image manifest digest: {digest}")


def print_report(report: BuildReport, *, as_json: bool) -> None:
    """The digest of what was built, or all of the report as one JSON object."""
    if as_json:
        print(json.dumps(_as_json(report)))
    else:
        print_digest(report.digest)


def print_made(report: CanonicalReport | ConvertReport | ImportReport, *, as_json: bool) -> None:
    """The digest of what was made, or all of the report as one JSON object."""
    if as_json:
        seconds = round(report.seconds, 3)
        print(json.dumps({**dataclasses.asdict(report), "digest": str(report.digest), "seconds": seconds}))
    else:
        print_digest(report.digest)


def remark(report: BuildReport, *, timestamps: str | None) -> None:
    """Say on stderr what whoever built this should know."""
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
