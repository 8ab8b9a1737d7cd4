"""Layouts for checking and mending, and what is in them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puzzlefs.builder import StorageOptions, build
from puzzlefs.delta import build_from_tree
from puzzlefs.errors import PuzzlefsError
from puzzlefs.fsck import Fault, FsckReport, State
from puzzlefs.image import open_image
from support.layouts import blobs_of

KINDS: dict[str, dict[str, Any]] = {
    "v1": {"format_version": 1},
    "v1-zstd": {"format_version": 1, "compression": True},
    "v2-zstd": {"format_version": 2, "compression": True, "storage": StorageOptions(level=9)},
    "v3": {},
    "v3-zstd": {"compression": True, "storage": StorageOptions(level=12, cut_at_files=0, chunk_size=32 << 10)},
    "v3-small-metadata": {"compression": True, "storage": StorageOptions(compress_metadata=True)},
}


def write_tree(root: Path, seed: int = 0) -> Path:
    """Files that share chunks, span some, have holes, several names, or nothing in them."""
    (root / "sub" / "dir").mkdir(parents=True)
    for number in range(6):
        noise = random.Random(f"{seed}/{number}").randbytes(30_000)
        (root / "sub" / f"{number}").write_bytes(noise + noise[:5_000] * number)
    (root / "a small one").write_bytes(b"text\n" * (seed + 1))
    (root / "sub" / "dir" / "zeros").write_bytes(bytes(700_000))
    (root / "sub" / "dir" / "text").write_bytes(b"".join(b"line %d\n" % number for number in range(60_000)))
    os.link(root / "sub" / "3", root / "third name")
    (root / "empty").touch()
    (root / "link").symlink_to("sub/3")
    return root


DAMAGES = {
    "missing": Fault.MISSING,
    "truncated": Fault.WRONG_SIZE,
    "flipped": Fault.CORRUPT,
    "longer": Fault.WRONG_SIZE,
    "empty": Fault.WRONG_SIZE,
    "directory": Fault.NO_FILE,
    "link": Fault.NO_FILE,
    "fifo": Fault.NO_FILE,
}


def unreadable_files(reference: str) -> set[bytes]:
    """Which files of an image cannot be read: what a reader meets, found without ``fsck``."""
    found: set[bytes] = set()
    with open_image(reference) as image:
        stack = [(image.tree.root, b"")]
        while stack:
            directory, path = stack.pop()
            for entry in image.tree.entries(directory):
                below = path + b"/" + entry.name
                if entry.kind.name == "DIRECTORY":
                    stack.append((entry.ino, below))
                elif entry.kind.name == "REGULAR":
                    try:
                        for offset in range(0, image.tree.attributes(entry.ino).size, 1 << 20):
                            image.read(entry.ino, offset, 1 << 20)
                    except PuzzlefsError:
                        found.add(below)
    return found


def three_images(base: Path, kind: str) -> tuple[Path, Path]:
    """A layout in ``base`` with two images and a delta, of one of ``KINDS``, and the tree of the first."""
    layout, options = base / "oci", KINDS[kind]
    build(write_tree(base / "one"), f"{layout}:one", **options)
    shutil.copytree(base / "one", base / "two", symlinks=True)
    (base / "two" / "sub" / "new").write_bytes(random.Random(5).randbytes(90_000))
    (base / "two" / "sub" / "4").unlink()
    build(base / "two", f"{layout}:two", **options)
    (base / "two" / "sub" / "dir" / "text").write_bytes(b"".join(b"other %d\n" % number for number in range(9_000)))
    (base / "two" / "sub" / "5").unlink()
    layering = {name: value for name, value in options.items() if name == "storage"}
    with open_image(f"{layout}:one") as image:
        build_from_tree(base / "two", image, "delta", **layering)
    return layout, base / "one"


TAGS = ["one", "two", "delta"]


def roles_of(layout: Path, tags: Sequence[str] = TAGS) -> dict[str, str]:
    """What each blob is, as far as a test has to know."""
    roles: dict[str, str] = {}
    for tag in tags:
        with open_image(f"{layout}:{tag}") as image:
            if image.manifest is None:
                roles[image.manifest_digest.hex()] = "rootfs"
            else:
                roles[image.manifest_digest.hex()] = "manifest"
                roles[image.manifest.config.digest.hex()] = "config"
                roles[image.manifest.rootfs().digest.hex()] = "rootfs"
            roles |= {ref.digest.hex(): "metadata" for ref in image.metadata_refs}
    return {name: roles.get(name, "chunk") for name in blobs_of(layout)}


def assert_clean(report: FsckReport, **others: object) -> None:
    assert report.bad == ()
    assert report.malformed == ()
    assert report.state is State.CLEAN
    assert {name: getattr(report, name) for name in others} == others


def chunks_of(image: Any) -> set[str]:
    """The chunks that visible files have bytes in."""
    found: set[str] = set()
    for _, _, entry in image.tree.walk():
        if entry.kind.name == "REGULAR":
            found |= {piece.blob.hex() for piece in image.tree.plan(entry.ino, 0, 1 << 40).pieces}
    return found
