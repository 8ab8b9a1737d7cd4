#!/usr/bin/env python3
"""What looking inside and keeping house cost where there is a lot: gc, fsck, du, ls, find, diff.

    python benchmarks/housekeeping.py [--blobs 100000] [--blob-size 11000] [--rounds 3] [--work DIR] [--out FILE.json]

Two images are made through the library, versions of one tree with as many files as blobs are asked for, each with a
chunk of its own, in directories of a thousand; ten files differ between the two. Every command is run as a user runs
it, from start to exit; shown are the medians of seconds and of the largest resident set.

What no program can beat is measured beside it in every round: ``rm -r`` of a folder of as many files of the same sizes
on the same file system, and ``sha256sum`` over the same blobs, two at a time (``xargs -P2``). The caches are warm.
Removing files depends on the file system more than on anything else (``discard``, a journal), so ``--work`` matters.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.image import dialect_of
from puzzlefs.image_commit import StoredChunk, commit_image
from puzzlefs.model import BlobRef, Directory, DirEntry, FileChunk, Inode, RegularFile
from puzzlefs.verity import verity_digest

_CHANGED = 10
_FILES_PER_DIRECTORY = 1000
_PUZZLEFS = (sys.executable, "-m", "puzzlefs_cli")
_SHA256SUM = "find {}/blobs/sha256 -type f -print0 | xargs -0 -n 500 -P 2 sha256sum > /dev/null"


def make_image(layout: Path, tag: str, blobs: int, blob_size: int, changed: int, version: int) -> None:
    """An image with a chunk for each file; the first ``changed`` files are others than without."""
    rnd = random.Random(7)
    inodes: list[Inode] = []
    chunks: list[StoredChunk] = []
    verity = {}
    directories = -(-blobs // _FILES_PER_DIRECTORY)
    with Layout.open_or_create(layout, dialect_of(version)) as opened, BlobWriter(opened) as writer:
        for number in range(blobs):
            size = rnd.randint(16, 2 * blob_size - 16)
            data = rnd.randbytes(size)
            if number < changed:
                data = bytes(8) + data[8:]
            digest = writer.put(data)
            chunks.append(StoredChunk(digest, size, False))
            verity[digest] = verity_digest(data)
            part = FileChunk(BlobRef(digest, 0, False), size)
            inodes.append(Inode(2 + directories + number, 0, 0, 0o644, RegularFile(size, (part,))))
        first = 2 + directories
        names = [DirEntry(first + number, f"file{number:07}".encode()) for number in range(blobs)]
        for number in reversed(range(directories)):
            below = tuple(names[number * _FILES_PER_DIRECTORY : (number + 1) * _FILES_PER_DIRECTORY])
            inodes.insert(0, Inode(2 + number, 0, 0, 0o755, Directory(below)))
        top = tuple(DirEntry(2 + number, f"directory{number:04}".encode()) for number in range(directories))
        inodes.insert(0, Inode(1, 0, 0, 0o755, Directory(top)))
        commit_image(opened, tag, version=version, layers=[inodes], chunks=chunks, verity=verity, writer=writer)


class Clock:
    """Runs commands, and keeps what they took.

    Attributes:
        seconds: by name, one value for each time.
        processor: by name, seconds of processor time, the kernel's included: what a busy machine changes least.
        peaks: by name, the largest resident sets in MiB.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}
        self.peaks: dict[str, list[float]] = {}

    def run(self, name: str, command: Sequence[str | Path], *, codes: Sequence[int] = (0,)) -> None:
        """Run a command; what it prints is thrown away.

        Raises:
            SystemExit: if it ends with a code that is not one of ``codes``.
        """
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in codes:
            raise SystemExit(f"{name}: exit code {process.returncode}")
        self.seconds.setdefault(name, []).append(round(seconds, 3))
        self.processor.setdefault(name, []).append(round(usage.ru_utime + usage.ru_stime, 3))
        self.peaks.setdefault(name, []).append(round(usage.ru_maxrss / 1024, 1))
        took = f"{seconds:.2f} s, {self.processor[name][-1]:.2f} of a processor, {self.peaks[name][-1]:.0f} MiB"
        print(f"  {name}: {took}", file=sys.stderr, flush=True)

    def puzzlefs(self, name: str, *words: str | Path, codes: Sequence[int] = (0,)) -> None:
        """Run ``puzzlefs``."""
        self.run(name, [*_PUZZLEFS, *words], codes=codes)

    def medians(self) -> dict[str, dict[str, float]]:
        """What counts."""
        return {
            name: {
                "seconds": round(statistics.median(values), 3),
                "processor": round(statistics.median(self.processor[name]), 3),
                "MiB": round(statistics.median(self.peaks[name]), 1),
            }
            for name, values in self.seconds.items()
        }


def measure(clock: Clock, work: Path, blobs: int, blob_size: int) -> None:
    """One round."""
    layout, old = work / "images", work / "old"
    for tag, changed in (("a", 0), ("b", _CHANGED)):
        for target, size, version in ((layout, blob_size, 3), (old, 512, 1)):
            # A process of its own: what a child of a large process takes at its start counts for the child.
            maker = multiprocessing.get_context("fork").Process(
                target=make_image, args=(target, tag, blobs, size, changed, version)
            )
            maker.start()
            maker.join()
    os.sync()
    image = f"{layout}:a"
    clock.puzzlefs("gc, nothing to remove", "gc", "--grace", "0", layout)
    clock.puzzlefs("fsck --quick", "fsck", "--quick", layout)
    clock.puzzlefs("fsck", "fsck", layout)
    clock.run("sha256sum, two at a time", ["sh", "-c", _SHA256SUM.format(layout)])
    clock.puzzlefs("ls -lR", "ls", "-lR", image)
    clock.puzzlefs("ls -lR --json", "ls", "-lR", "--json", image)
    clock.puzzlefs("find", "find", image)
    clock.puzzlefs("diff", "diff", image, f"{layout}:b", codes=(1,))
    clock.puzzlefs("diff, version 1", "diff", f"{old}:a", f"{old}:b", codes=(1,))
    clock.puzzlefs("du", "du", image)
    clock.puzzlefs("du, version 1", "du", f"{old}:a")
    clock.puzzlefs("stats", "stats", layout)
    copy = work / "copy"
    shutil.copytree(layout / "blobs" / "sha256", copy)
    os.sync()
    subprocess.run([*_PUZZLEFS, "untag", image], check=True)
    subprocess.run([*_PUZZLEFS, "untag", f"{layout}:b"], check=True)
    clock.puzzlefs("gc, everything is removed", "gc", "--grace", "0", layout)
    clock.run("rm -r", ["rm", "-r", copy])
    shutil.rmtree(layout)
    shutil.rmtree(old)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blobs", type=int, default=100_000, help="files in each image (default 100000)")
    parser.add_argument("--blob-size", type=int, default=11_000, help="bytes of a chunk, on average (default 11000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is done (default 3)")
    parser.add_argument("--work", type=Path, help="where to write (default: the temporary directory)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    clock = Clock()
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=args.work) as name:
            measure(clock, Path(name), args.blobs, args.blob_size)
    figures = {
        "what": "housekeeping",
        "blobs": args.blobs,
        "blob_size": args.blob_size,
        "medians": clock.medians(),
        "seconds": clock.seconds,
        "processor": clock.processor,
        "MiB": clock.peaks,
    }
    print(json.dumps(figures["medians"], indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
