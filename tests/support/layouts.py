"""What is in a layout, and damage done to it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from puzzlefs.blobs.lease import LEASE_PREFIX
from puzzlefs.image import open_image
from support import trees


def copy_layout(source: str | Path, destination: Path) -> None:
    """Copy a layout, but not what says who relies on it: a mount of another test may end in between."""
    shutil.copytree(source, destination, ignore=shutil.ignore_patterns(f"{LEASE_PREFIX}*"))


def layouts_in(directory: Path) -> list[str]:
    """The names of the OCI layouts in a directory."""
    return sorted(path.parent.name for path in directory.glob("*/index.json"))


def blob_names(layout: Path) -> set[str]:
    """The names of everything that lies beside the blobs."""
    return set(os.listdir(layout / "blobs" / "sha256"))


def blobs_of(layout: Path) -> dict[str, bytes]:
    """The blobs by name."""
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}


def shown(reference: str, *, mtime: bool = False) -> trees.Tree:
    """What an image shows."""
    with open_image(reference) as image:
        return trees.in_image(image, mtime=mtime)


def damaged(path: Path, damage: str) -> None:
    """Put something else, or nothing, where a file is."""
    data = path.read_bytes()
    path.unlink()
    match damage:
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "flipped":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "longer":
            path.write_bytes(data + b"x")
        case "empty":
            path.touch()
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to("/dev/zero")
        case "fifo":
            os.mkfifo(path)
        case _:
            assert damage == "missing"
