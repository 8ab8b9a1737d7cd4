#!/usr/bin/env python3
"""What a metadata layer costs: its bytes beside the base's, and the time that a commit takes.

    python benchmarks/deltas.py [ROOTFS] [--share 0.01] [--work DIR] [--out FILE.json]

ROOTFS (by default the Debian of ``scripts/rootfs.py``) is built, uncompressed and compressed. Then ``--share`` of its
files, chosen at random, get 100 other bytes in their middle, or a line more where they are shorter, and the tree is
built on top of the first image. Shown are the bytes of the new layer's metadata (what the rootfs blob has grown by) as
a share of the base's, and the bytes of new chunks beside the bytes of the files that changed.

Commits are timed with an upper directory of ten files over generated images of 10,000 and 100,000 inodes, and with
the same ten over ROOTFS's image; medians of five.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from generated_image import generate

from puzzlefs import build, build_from_tree, build_from_upper, open_image

_ROUNDS = 5
_INODES = (10_000, 100_000)
_SEED = 4


def change(root: Path, share: float) -> tuple[int, int]:
    """Change a share of the files; how many, and their bytes."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    rnd = random.Random(_SEED)
    chosen = rnd.sample(files, max(1, round(len(files) * share)))
    for path in chosen:
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.seek(size // 2 if size > 1000 else size)
            file.write(rnd.randbytes(100))
    return len(chosen), sum(path.stat().st_size for path in chosen)


def measure_layer(rootfs: Path, work: Path, share: float, *, compression: bool) -> dict[str, float]:
    """Build, change, build on top."""
    tree, layout = work / "tree", work / f"oci-{compression}"
    subprocess.run(["cp", "-a", rootfs, tree], check=True)
    try:
        build(tree, f"{layout}:base", compression=compression)
        count, size = change(tree, share)
        with open_image(f"{layout}:base") as base:
            start = time.perf_counter()
            report = build_from_tree(tree, base, "delta")
            seconds = time.perf_counter() - start
            before = len(base.rootfs_data)
        with open_image(f"{layout}:delta") as delta:
            grown = len(delta.rootfs_data) - before
        metadata = sum(_size(layout, tag) for tag in ("delta",))
    finally:
        shutil.rmtree(tree)
    return {
        "files changed": count,
        "bytes of those files": size,
        "inodes in the layer": report.inodes,
        "metadata of the base": before,
        "metadata of the layer": grown,
        "metadata of the layer, % of the base's": round(100 * grown / before, 2),
        "new chunks, bytes": report.stored_bytes - metadata,
        "new chunks / bytes of those files": round((report.stored_bytes - metadata) / size, 2),
        "seconds": round(seconds, 3),
    }


def _size(layout: Path, tag: str) -> int:
    """Stored bytes of an image's manifest and rootfs."""
    with open_image(f"{layout}:{tag}") as image:
        if image.manifest is None:
            raise SystemExit("the images of this benchmark are of version 3")
        return (image.layout.blob_size(image.manifest_digest) or 0) + image.manifest.rootfs().size


def measure_commit(reference: str, work: Path) -> float:
    """The median seconds to open an image and to commit ten new files on top of it."""
    upper = work / "upper"
    shutil.rmtree(upper, ignore_errors=True)
    (upper / "d").mkdir(parents=True)
    for number in range(10):
        (upper / "d" / f"file{number}").write_bytes(os.urandom(5000))
    values = []
    for number in range(_ROUNDS + 1):
        start = time.perf_counter()
        with open_image(reference) as base:
            build_from_upper(upper, base, f"commit-{number}")
        values.append(time.perf_counter() - start)
    return round(statistics.median(values[1:]), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rootfs", type=Path, nargs="?")
    parser.add_argument("--share", type=float, default=0.01, help="share of the files that change (default 0.01)")
    parser.add_argument("--work", type=Path, help="where to write (default: the temporary directory)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    rootfs = args.rootfs
    if rootfs is None:
        script = Path(__file__).parent.parent / "scripts" / "rootfs.py"
        rootfs = Path(subprocess.check_output([sys.executable, script], text=True).splitlines()[-1])
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work = Path(name)
        for compression in (False, True):
            figures["-c" if compression else "raw"] = measure_layer(rootfs, work, args.share, compression=compression)
        for number in _INODES:
            generate(f"{work}/generated-{number}:t", number)
            figures[f"commit of 10 files on {number:,} inodes, s"] = measure_commit(
                f"{work}/generated-{number}:t", work
            )
        figures["commit of 10 files on ROOTFS, s"] = measure_commit(f"{work}/oci-False:base", work)
    text = json.dumps(figures, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
