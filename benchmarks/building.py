#!/usr/bin/env python3
"""How long a build takes, beside its peers, in one run.

    python benchmarks/building.py ROOTFS [--rounds 5] [--out FILE.json]

Every round runs every contestant once, in turn, each into an empty directory on the same file system; the first round
is thrown away. What counts is the median, and the ratio to puzzlefs, because the machine's speed drifts. Contestants
that are not installed are left out and named.

``write floor`` writes the blobs of the finished image from memory as files (temporary name, then rename): what no
builder of this format can beat on this file system.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Contestant = Callable[[Path], None]


def command(*words: str) -> Contestant:
    """A contestant that is a command; ``{out}`` in a word is its empty output directory."""

    def run(out: Path) -> None:
        done = subprocess.run(
            [word.replace("{out}", str(out)) for word in words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{words[0]} failed: {done.stderr.strip()[-500:]}")

    return run


def write_floor(blobs: list[bytes]) -> Contestant:
    """A plain loop that writes ``blobs`` as files."""

    def run(out: Path) -> None:
        for number, blob in enumerate(blobs):
            temporary = out / f".tmp-{number}"
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, blob)
            os.close(fd)
            temporary.rename(out / f"{number:064x}")

    return run


def contestants(rootfs: Path, work: Path) -> dict[str, Contestant]:
    """Everybody who is installed, by name; the first is the one that ratios refer to."""
    puzzlefs = str(Path(sys.executable).with_name("puzzlefs"))
    root = str(rootfs)
    image = work / "floor"
    subprocess.run([puzzlefs, "build", root, f"{image}:floor"], check=True, capture_output=True)
    blobs = [path.read_bytes() for path in sorted((image / "blobs" / "sha256").iterdir())]
    found: dict[str, Contestant] = {
        "puzzlefs": command(puzzlefs, "build", root, "{out}/image:t"),
        "write floor": write_floor(blobs),
        "puzzlefs zstd": command(puzzlefs, "build", "-c", root, "{out}/image:t"),
    }
    peers: dict[str, tuple[str, ...]] = {
        "mksquashfs plain": ("mksquashfs", root, "{out}/image", "-noI", "-noD", "-noF", "-noX", "-quiet"),
        "mksquashfs zstd-3": (
            "mksquashfs", root, "{out}/image", "-comp", "zstd", "-Xcompression-level", "3", "-quiet",
        ),
        "mkfs.erofs": ("mkfs.erofs", "{out}/image", root),
        "casync make": ("casync", "make", "--store={out}/store.castr", "{out}/image.caidx", root),
    }  # fmt: skip
    if original := os.environ.get("PEER_PUZZLEFS"):
        peers["the original"] = (original, "build", root, "{out}/image:t")
        peers["the original -c"] = (original, "build", "-c", root, "{out}/image:t")
    for name, words in peers.items():
        if shutil.which(words[0]):
            found[name] = command(*words)
        else:
            print(f"left out, not installed: {name}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rootfs", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--work", type=Path, help="where images are written (default: the temporary directory)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as directory:
        work = Path(directory)
        everybody = contestants(args.rootfs, work)
        seconds: dict[str, list[float]] = {name: [] for name in everybody}
        for number in range(args.rounds + 1):
            for name, run in everybody.items():
                out = work / "out"
                out.mkdir()
                os.sync()
                start = time.perf_counter()
                run(out)
                if number:
                    seconds[name].append(time.perf_counter() - start)
                shutil.rmtree(out)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians["puzzlefs"]
    print("| build of " + args.rootfs.name + " | median s | puzzlefs / it |")
    print("|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {base / median:.2f} |")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"rootfs": args.rootfs.name, "seconds": seconds, "median": medians}, indent=1))


if __name__ == "__main__":
    main()
