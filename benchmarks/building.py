#!/usr/bin/env python3
"""How long a build takes and how much memory, beside its peers, in one run.

    python benchmarks/building.py ROOTFS [--rounds 5] [--work DIR] [--out FILE.json]

Every round runs every contestant once, in turn, each into an empty directory on the same file system. What counts is
the median, and the ratio to puzzlefs, because the machine's speed drifts. There is no round that only warms up: ROOTFS
has been read before the first one, and a median leaves that one out where it is slower. Contestants that are not
installed are left out and named; one that takes longer than --patience seconds runs in two rounds. What they wrote is
emptied at once and removed at the very end: ext4 without a journal looks at every inode number that was freed in the
last minutes before it gives out another one, and who comes after a removal of thousands of files pays for it.

``write floor`` writes the blobs of the finished image from memory as files (temporary name, then rename): what no
builder of this format can beat on this file system.

The rebuilds are of a copy of ROOTFS that was built before: as it is, and after every hundredth file was written to,
other files each round (with a share of the data read, which the same command reports). ``find -ls`` on the copy is what
it takes to see that nothing changed.

Memory is the largest resident size of the largest process of a contestant; what is shown for ``find`` is this program's
own, below which nothing can be seen. $PEER_PUZZLEFS is the original's program; without it, what
``scripts/original.py`` has built.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from contestants import the_original
from figures import Figures, load, measured_now, save
from goals import BUILDING
from tables import ratio_table, verdict_table

_SLOW_ROUNDS = 2
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Outcome(NamedTuple):
    """What a contestant cost, besides the time on the clock.

    Attributes:
        mib: of its largest process.
        seconds: what counts instead of the time on the clock, if something else does.
    """

    mib: float
    seconds: float | None = None


Contestant = Callable[[Path], Outcome]
"""Does its work once, given an empty directory for its output."""


def execute(*words: str) -> tuple[str, float]:
    """Run a command; what it prints, and the MiB of the largest process in it.

    A new process inherits the high-water mark of the one that starts it, so this one stays small.
    """
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(words, stdout=said, stderr=complained, env=_ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complained.seek(0)
            raise SystemExit(f"{words[0]} failed: {complained.read().strip()[-500:]}")
        said.seek(0)
        return said.read(), usage.ru_maxrss / 1024


def command(*words: str) -> Contestant:
    """A contestant that is a command; ``{out}`` in a word is its empty output directory."""

    def run(out: Path) -> Outcome:
        return Outcome(execute(*(word.replace("{out}", str(out)) for word in words))[1])

    return run


class Rebuild:
    """A build of a tree that was built before, after a share of its files was written to.

    Attributes:
        share_read: the share of the data that the last build read.
    """

    def __init__(self, puzzlefs: str, tree: Path, place: Path, share: float) -> None:
        self._words = (puzzlefs, "build", "--json", "--cache", str(place / "cache"), str(tree), f"{place}/image:t")
        self._share = share
        self._random = random.Random(str(share))
        self._files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
        self.share_read = 0.0
        self.prepare()
        execute(*self._words)

    def prepare(self) -> None:
        """Append a few bytes to some files."""
        for path in self._random.sample(self._files, int(len(self._files) * self._share)):
            with path.open("ab") as file:
                file.write(b"changed")
        time.sleep(0.1)  # what was changed in the last moment is read again by the build after the next

    def __call__(self, out: Path) -> Outcome:
        printed, mib = execute(*self._words)
        report = json.loads(printed)
        self.share_read = report["bytes_read"] / report["bytes"]
        return Outcome(mib)


def write_floor(blobs: Path) -> Contestant:
    """A plain loop, in a process of its own, that writes ``blobs`` as files; only the writing counts."""

    def run(out: Path) -> Outcome:
        printed, mib = execute(sys.executable, str(Path(__file__).with_name("write_floor.py")), str(blobs), str(out))
        return Outcome(mib, float(printed))

    return run


def contestants(rootfs: Path, work: Path, left_out: dict[str, str]) -> dict[str, Contestant]:
    """Everybody who is installed, by name; the first is the one that ratios refer to."""
    puzzlefs = str(Path(sys.executable).with_name("puzzlefs"))
    root = str(rootfs)
    image = work / "floor"
    execute(puzzlefs, "build", "--no-cache", root, f"{image}:floor")
    cache = "--cache={out}/cache"
    copy, same = work / "copy", work / "same"
    subprocess.run(["cp", "-a", root, copy], check=True)
    subprocess.run(["cp", "-a", root, same], check=True)
    found: dict[str, Contestant] = {
        "puzzlefs": command(puzzlefs, "build", cache, root, "{out}/image:t"),
        "write floor": write_floor(image / "blobs" / "sha256"),
        "puzzlefs zstd": command(puzzlefs, "build", "-c", cache, root, "{out}/image:t"),
        "puzzlefs, nothing changed": Rebuild(puzzlefs, same, work / "again", 0),
        "puzzlefs, 1 % changed": Rebuild(puzzlefs, copy, work / "changed", 0.01),
        "find -ls": command("find", str(same), "-ls"),
    }
    squash = ("mksquashfs", root, "{out}/image", "-quiet", "-no-progress")
    peers: dict[str, tuple[str, ...]] = {
        "mksquashfs plain": (*squash, "-noI", "-noD", "-noF", "-noX"),
        "mksquashfs zstd-3": (*squash, "-comp", "zstd", "-Xcompression-level", "3"),
        "mkfs.erofs": ("mkfs.erofs", "{out}/image", root),
        "casync make": ("casync", "make", "--store={out}/store.castr", "{out}/image.caidx", root),
    }
    if program := the_original():
        peers["the original"] = (program, "build", root, "{out}/image:t")
        peers["the original -c"] = (program, "build", "-c", root, "{out}/image:t")
    for name, words in peers.items():
        if shutil.which(words[0]):
            found[name] = command(*words)
        else:
            left_out[name] = "not installed"
            print(f"left out, not installed: {name}", file=sys.stderr)
    return found


def measure_all(everybody: dict[str, Contestant], work: Path, rounds: int, patience: float, figures: Figures) -> None:
    """Round-robin: every round, every contestant."""
    slow: set[str] = set()
    for number in range(rounds):
        for index, (name, run) in enumerate(everybody.items()):
            if name in slow and number >= _SLOW_ROUNDS:
                continue
            out = work / f"out-{number}-{index}"
            out.mkdir()
            if isinstance(run, Rebuild):
                run.prepare()
            os.sync()
            start = time.perf_counter()
            outcome = run(out)
            seconds = time.perf_counter() - start if outcome.seconds is None else outcome.seconds
            print(f"round {number}: {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
            if seconds > patience:
                slow.add(name)
            figures.note(name, "seconds", seconds)
            figures.note(name, "MiB", outcome.mib)
            if isinstance(run, Rebuild):
                figures.note(name, "% read", 100 * run.share_read)
            empty(out)


def empty(out: Path) -> None:
    """Give the space of all files back, but not their inodes."""
    for top, _, names in os.walk(out):
        for name in names:
            os.truncate(os.path.join(top, name), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rootfs", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--patience", type=float, default=10, help="seconds for a build (default 10)")
    parser.add_argument("--work", type=Path, help="where images are written (default: the temporary directory)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--add", action="store_true", help="keep the figures that are in --out: one run in parts")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up
    with tempfile.TemporaryDirectory(dir=args.work) as directory:
        work = Path(directory)
        # An installed program has its bytecode; a checkout need not, and would compile itself each time.
        _ENVIRONMENT["PYTHONPYCACHEPREFIX"] = f"{work}/bytecode"
        rootfs = args.rootfs.resolve()
        figures = measured_now("building", rootfs)
        everybody = contestants(rootfs, work, figures.left_out)
        measure_all(everybody, work, args.rounds, args.patience, figures)
    if args.out and args.add and args.out.exists():
        figures.take_over(load(args.out))
    print(ratio_table(figures, "puzzlefs"), verdict_table(figures, BUILDING), sep="\n\n")
    if args.out:
        save(figures, args.out)


if __name__ == "__main__":
    main()
