#!/usr/bin/env python3
"""How long a build takes, beside its peers, in one run.

    python benchmarks/building.py ROOTFS [--rounds 5] [--out FILE.json]

Every round runs every contestant once, in turn, each into an empty directory on the same file system; the first round
is thrown away. What counts is the median, and the ratio to puzzlefs, because the machine's speed drifts. Contestants
that are not installed are left out and named. What they wrote is removed at the very end (so --work needs room for all
rounds): ext4 without a journal looks at every inode number that was freed in the last minutes before it gives out
another one, and who comes after a removal of thousands of files pays for it.

``write floor`` writes the blobs of the finished image from memory as files (temporary name, then rename): what no
builder of this format can beat on this file system.

The rebuilds are of a copy of ROOTFS that was built before: as it is, and after every hundredth file was written to,
other files each round (with a share of the data read, which the same command reports). ``find -ls`` on the copy is what
it takes to see that nothing changed.
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
from collections.abc import Callable
from pathlib import Path

Contestant = Callable[[Path], None]
"""Does its work once, given an empty directory for its output."""


_ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def execute(*words: str) -> str:
    """Run a command; what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=_ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def command(*words: str) -> Contestant:
    """A contestant that is a command; ``{out}`` in a word is its empty output directory."""

    def run(out: Path) -> None:
        execute(*(word.replace("{out}", str(out)) for word in words))

    return run


class Rebuild:
    """A build of a tree that was built before, after a share of its files was written to.

    Attributes:
        shares: the share of the data that each build read.
    """

    def __init__(self, puzzlefs: str, tree: Path, place: Path, share: float) -> None:
        self._words = (puzzlefs, "build", "--json", "--cache", str(place / "cache"), str(tree), f"{place}/image:t")
        self._share = share
        self._random = random.Random(str(share))
        self._files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
        self.shares: list[float] = []
        self.prepare()
        execute(*self._words)

    def prepare(self) -> None:
        """Append a few bytes to some files."""
        for path in self._random.sample(self._files, int(len(self._files) * self._share)):
            with path.open("ab") as file:
                file.write(b"changed")
        time.sleep(0.1)  # what was changed in the last moment is read again by the build after the next

    def __call__(self, out: Path) -> None:
        report = json.loads(execute(*self._words))
        self.shares.append(report["bytes_read"] / report["bytes"])


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
    subprocess.run(
        [puzzlefs, "build", "--no-cache", root, f"{image}:floor"], check=True, capture_output=True, env=_ENVIRONMENT
    )
    blobs = [path.read_bytes() for path in sorted((image / "blobs" / "sha256").iterdir())]
    cache = "--cache={out}/cache"
    copy, same = work / "copy", work / "same"
    subprocess.run(["cp", "-a", root, copy], check=True)
    subprocess.run(["cp", "-a", root, same], check=True)
    found: dict[str, Contestant] = {
        "puzzlefs": command(puzzlefs, "build", cache, root, "{out}/image:t"),
        "write floor": write_floor(blobs),
        "puzzlefs zstd": command(puzzlefs, "build", "-c", cache, root, "{out}/image:t"),
        "puzzlefs, nothing changed": Rebuild(puzzlefs, same, work / "again", 0),
        "puzzlefs, 1 % changed": Rebuild(puzzlefs, copy, work / "changed", 0.01),
        "find -ls": command("find", str(same), "-ls"),
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
        # An installed program has its bytecode; a checkout need not, and would compile itself each time.
        _ENVIRONMENT["PYTHONPYCACHEPREFIX"] = f"{work}/bytecode"
        everybody = contestants(args.rootfs, work)
        seconds: dict[str, list[float]] = {name: [] for name in everybody}
        for number in range(args.rounds + 1):
            for index, (name, run) in enumerate(everybody.items()):
                out = work / f"out-{number}-{index}"
                out.mkdir()
                if isinstance(run, Rebuild):
                    run.prepare()
                os.sync()
                start = time.perf_counter()
                run(out)
                if number:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians["puzzlefs"]
    print("| build of " + args.rootfs.name + " | median s | puzzlefs / it |")
    print("|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {base / median:.2f} |")
    shares = {name: run.shares[1:] for name, run in everybody.items() if isinstance(run, Rebuild)}
    for name, values in shares.items():
        print(f"\n{name}: reads {100 * statistics.median(values):.1f} % of the data")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps({"rootfs": args.rootfs.name, "seconds": seconds, "median": medians, "read": shares}, indent=1)
        )


if __name__ == "__main__":
    main()
