#!/usr/bin/env python3
"""What it costs to write an image as a tar archive, and to make an image of one.

    python benchmarks/tar.py --tree DIR [--work DIR] [--rounds 5] [--json]

Export: ``puzzlefs export | tar -t`` beside ``tar -c | cat`` from a squashfuse_ll mount of the same tree (not
compressed), and from the tree itself. Cold: the caches of the kernel are dropped and the mount is new; warm: once more.
(``tar`` reads nothing when it writes to /dev/null, so there is a ``cat``.)

Import: ``puzzlefs import`` of the archive, from a pipe and from a file, beside ``tar -x`` and ``puzzlefs build`` of
what that makes. Each into a new OCI directory, everything on disk at the end.

Every round runs all contestants, in turn; medians count, and the least is beside them, for machines that do other
things, too. What they wrote is removed at the very end: on ext4 without a journal, whoever writes many files after many
were removed takes twice as long (docs/performance.md). Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

from measures import drop_caches

PUZZLEFS: Final = str(Path(sys.executable).with_name("puzzlefs"))
Times = dict[str, list[float]]


def timed(script: str, **places: Path) -> float:
    """The seconds that a shell script takes; ``$name`` in it is one of the places, ``$puzzlefs`` the program."""
    environment = {**os.environ, "puzzlefs": PUZZLEFS, **{name: str(place) for name, place in places.items()}}
    started = time.perf_counter()
    subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - started


@contextlib.contextmanager
def squashfuse(image: Path, point: Path) -> Iterator[None]:
    """A new mount, so that nothing of it is cached."""
    subprocess.run(["squashfuse_ll", image, point], check=True)
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", point], check=True)


def measure_export(tree: Path, work: Path, times: Times) -> None:
    """One round of exports."""
    export = "$puzzlefs export $images:x | tar -t"
    pack = "tar -C $tree -c . | cat"
    drop_caches()
    times["export | tar -t, cold"].append(timed(export, images=work / "images"))
    times["export | tar -t, warm"].append(timed(export, images=work / "images"))
    drop_caches()
    with squashfuse(work / "tree.sqfs", work / "mnt"):
        times["tar -c of squashfuse_ll, cold"].append(timed(pack, tree=work / "mnt"))
        times["tar -c of squashfuse_ll, warm"].append(timed(pack, tree=work / "mnt"))
    drop_caches()
    times["tar -c of the tree, cold"].append(timed(pack, tree=tree))
    times["tar -c of the tree, warm"].append(timed(pack, tree=tree))


def measure_import(work: Path, number: int, times: Times) -> None:
    """One round of imports."""
    for name, script in (
        ("import < file", '$puzzlefs import -q "$out/images:x" < $archive; sync'),
        ("cat | import", 'cat $archive | $puzzlefs import -q "$out/images:x"; sync'),
        ("import -c < file", '$puzzlefs import -q -c "$out/images:x" < $archive; sync'),
        (
            "tar -x; build",
            'mkdir "$out/x"; tar -C "$out/x" --xattrs --xattrs-include=\'*\' -xf $archive;'
            ' $puzzlefs build -q --no-cache "$out/x" "$out/images:x"; sync',
        ),
        (
            "tar -x; build -c",
            'mkdir "$out/x"; tar -C "$out/x" --xattrs --xattrs-include=\'*\' -xf $archive;'
            ' $puzzlefs build -q -c --no-cache "$out/x" "$out/images:x"; sync',
        ),
    ):
        out = work / f"{name} {number}"
        out.mkdir()
        os.sync()
        times[name].append(timed(script, archive=work / "tree.tar", out=out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, required=True, help="the tree")
    parser.add_argument(
        "--work", type=Path, help="where there is room for six times the tree in each round (default: a new directory)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    times: Times = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=args.work) as directory:
        work = Path(directory)
        (work / "mnt").mkdir()
        timed("$puzzlefs build -q --no-cache --timestamps keep $tree $images:x", tree=args.tree, images=work / "images")
        timed("$puzzlefs export -q -o $archive $images:x", images=work / "images", archive=work / "tree.tar")
        plain = ["-quiet", "-no-progress", "-noI", "-noD", "-noF", "-noX"]
        subprocess.run(["mksquashfs", args.tree, work / "tree.sqfs", *plain], check=True)
        size = (work / "tree.tar").stat().st_size
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            measure_export(args.tree, work, times)
            measure_import(work, number, times)
    if args.json:
        print(json.dumps({"archive": size, "seconds": times}))
        return
    print(f"archive of {size / 1e6:.0f} MB; seconds, median (least) of {args.rounds}")
    for name, seconds in times.items():
        print(f"{name:32} {median(seconds):6.2f} ({min(seconds):.2f})")


if __name__ == "__main__":
    main()
