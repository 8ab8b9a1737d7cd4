"""Disks with fs-verity, and without, for the tests that run inside the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from puzzlefs.digest import VerityDigest
from puzzlefs.verity import find_measurement

MakeDisk = Callable[..., "Disk"]
"""``make_disk(verity=True, size=64 << 20, kind="ext4")``, a fixture."""

Kind = Literal["ext4", "btrfs"]

_SMALLEST_BTRFS = 128 << 20


class Disk:
    """A small file system on a loop device in the machine's memory."""

    def __init__(self, directory: Path, *, verity: bool, size: int, kind: Kind) -> None:
        self.image = directory / "disk"
        self.root = directory / "mounted"
        self.kind = kind
        directory.mkdir()
        self.root.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size if kind == "ext4" else max(size, _SMALLEST_BTRFS))
        if kind == "ext4":
            features = "verity" if verity else "^verity"
            # Small disks get smaller blocks by default, and kernels before 6.3 have fs-verity for whole pages only.
            run("mkfs.ext4", "-q", "-b", "4096", "-O", features, self.image)
        else:
            _need_btrfs()
            run("mkfs.btrfs", "-q", self.image)
        self.device = ""
        self.mount()

    def mount(self, options: str = "rw") -> None:
        if self.kind == "btrfs":
            options += ",nodatasum"  # its own checksums would find every corruption first
        run("mount", "-t", self.kind, "-o", f"loop,{options}", self.image, self.root)
        self.device = run("findmnt", "-n", "-o", "SOURCE", self.root).strip()

    def unmount(self) -> None:
        run("umount", self.root)

    def close(self) -> None:
        if self.root.is_mount():
            self.unmount()
        self.image.unlink()

    def enable(self, path: Path, *options: str) -> None:
        """Enables fs-verity on a file with the ``fsverity`` tool, with whatever content and parameters."""
        run("fsverity", "enable", *options, path)

    def corrupt(self, old: bytes, new: bytes) -> None:
        """Overwrites ``old``, which lies on the disk once, with ``new``, behind the file system's back."""
        if len(old) != len(new):
            raise ValueError("corruption keeps the length")
        path = self.image
        self.unmount()
        data = path.read_bytes()
        if data.count(old) != 1:
            raise ValueError(f"found {data.count(old)} times on the disk")
        with path.open("r+b") as file:
            file.seek(data.index(old))
            file.write(new)
        self.mount()


def fs_verity_of(path: Path) -> VerityDigest | None:
    """What the kernel measures for a file; ``None`` if it does not have fs-verity enabled."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return find_measurement(fd)
    finally:
        os.close(fd)


def _need_btrfs() -> None:
    """Skips the test unless there is a btrfs that has fs-verity, as it does since Linux 5.15."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("mkfs.btrfs is not installed (apt: btrfs-progs)")
    if subprocess.run(["modprobe", "btrfs"], check=False).returncode:
        pytest.skip("this kernel has no btrfs")


def run(*command: str | Path) -> str:
    """Runs a command that has to succeed and returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
    return done.stdout
