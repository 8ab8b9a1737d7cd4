#!/usr/bin/env python3
"""All benchmarks, one after the other, and their report: what ``make bench`` runs.

    python benchmarks/suite.py [ROOTFS] [--quick] [--only building,reading,space]

Each benchmark is a program of its own in this directory, which writes ``results/<date>-<name>.json``; one that is not
there, or that fails, is named, and the others go on. Without ROOTFS the tree is that of ``trees.py``.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from report import RESULTS, write_report
from trees import default_tree


@dataclass(frozen=True)
class Benchmark:
    """A program to run.

    Attributes:
        name: of the program, without ``.py``.
        takes_tree: whether it wants the tree as an argument.
        quick: what makes it a smoke test.
    """

    name: str
    takes_tree: bool
    quick: tuple[str, ...]

    @property
    def program(self) -> Path:
        """Where it is, or would be."""
        return Path(__file__).with_name(f"{self.name}.py")

    def words(self, rootfs: Path, out: Path, work: Path | None, is_quick: bool) -> list[str]:
        """The command."""
        return [
            sys.executable,
            str(self.program),
            *([str(rootfs)] if self.takes_tree else []),
            *(["--work", str(work)] if work is not None and self.takes_tree else []),
            *(self.quick if is_quick else ()),
            "--out",
            str(out),
        ]


ORDER: Final = (
    Benchmark("building", True, ("--rounds", "1")),
    Benchmark("reading", True, ("--rounds", "1", "--measures", "ready,find,tar,random")),
    Benchmark("space", False, ("--quick",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rootfs", type=Path, nargs="?", help="default: a Debian that is made once and kept")
    parser.add_argument("--quick", action="store_true", help="one round of the most telling measures")
    parser.add_argument("--only", help="benchmarks, separated by commas")
    parser.add_argument("--work", type=Path, help="where images are written (default: the temporary directory)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rootfs = args.rootfs or default_tree()
    date = datetime.date.today().isoformat()
    failed = []
    for benchmark in ORDER:
        if args.only is not None and benchmark.name not in args.only.split(","):
            continue
        if not benchmark.program.exists():
            print(f"bench: left out: there is no {benchmark.program.name}", file=sys.stderr)
            continue
        print(f"bench: {benchmark.name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        out = args.results / f"{date}-{benchmark.name}.json"
        if subprocess.run(benchmark.words(rootfs, out, args.work, args.quick), check=False).returncode:
            failed.append(benchmark.name)
        print(f"bench: {benchmark.name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(f"bench: {write_report(date, args.results)}")
    if failed:
        sys.exit(f"bench: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
