#!/usr/bin/env python3
"""How fast a mounted image is read, beside its peers, in one run.

    python benchmarks/reading.py ROOTFS [--rounds 5] [--only NAME,…] [--measures NAME,…] [--work DIR] [--out FILE.json]

ROOTFS is packed once for each contestant. Then every round runs every contestant once, in turn. What counts is the
median, and the ratio of puzzlefs to each peer, because the machine's speed drifts.

*Cold* means: freshly mounted, and the kernel's caches (names, attributes, pages) dropped, so neither the kernel nor a
server in user space knows anything. *Warm* is the same again at once. Measures:

    ready    the mount command, the second time, from its start until the mount point answers; also of images of 10 and
             1,000,000 generated inodes, and beside it how long one SHA-256 of the metadata takes
    find     find DIR
    stat     find DIR -printf %s: the attributes of every file
    tar      tar c DIR: every byte of every file
    file     the largest file, read from its beginning in pieces of 1 MiB
    random   reads of 4 KiB at random places of the largest file (shown as reads a second)
    python   chroot DIR python3 -c 'import ssl, json, asyncio'      (where the tree has it)
    g++      chroot DIR g++ -c of a small file, with a tmpfs at /tmp (where the tree has it)
    memory   resident size of the server in MiB after find and tar (servers in user space); of puzzlefs also after two
             and three times, because it is to stay the same

Where no goal refers to a contestant in a measure, it takes part in one or two rounds, and in one only if that took
longer than --patience seconds. Memory does not scatter and is measured once.

Needs root (it mounts file systems and drops the caches of the whole machine). Contestants that are not installed are
left out and named. $PEER_PUZZLEFS is the original's program; without it, what ``scripts/original.py`` has built.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from arena import Arena
from contestants import Contestant, contestants
from figures import Figures, load, measured_now, save
from generated_image import generate
from goals import READING
from measures import MEASURES, Tree, hash_seconds
from tables import ratio_table, verdict_table

_GENERATED = (10, 1_000_000)
_ROUNDS_FOR_THE_TABLE = 2


def is_compared(who: Contestant, measure: str) -> bool:
    """Whether a goal refers to a contestant in a measure."""
    return any(who.name in (goal.mine, goal.peer) and goal.column.split()[0] == measure for goal in READING)


def rounds_of(who: Contestant, measure: str, rounds: int) -> range:
    """The rounds in which a contestant is measured so: all, or the first few where no goal refers to that."""
    if who.most_rounds is not None:
        return range(min(who.most_rounds, rounds))
    return range(rounds if is_compared(who, measure) else min(_ROUNDS_FOR_THE_TABLE, rounds))


def measure_all(
    arena: Arena, chosen: list[Contestant], measures: list[str], rounds: int, patience: float, figures: Figures
) -> None:
    """Round-robin: every round, every measure, every contestant."""
    slow: set[tuple[str, str]] = set()
    for number in range(rounds):
        for measure in measures:
            if measure == "memory" and number:
                continue
            for who in chosen:
                if not who.takes_part(measure) or (who.name, measure) in slow:
                    continue
                if number not in rounds_of(who, measure, rounds):
                    continue
                if measure == "memory" and not (who.serves and who.passes):
                    continue
                start = time.perf_counter()
                values = arena.measure(who, measure)
                took = time.perf_counter() - start
                print(f"round {number}: {measure}: {who.name}: {took:.1f} s", file=sys.stderr, flush=True)
                if took > patience and not is_compared(who, measure):
                    slow.add((who.name, measure))
                for column, value in values.items():
                    figures.note(who.name, column, value)


def measure_ready(arena: Arena, who: Contestant, work: Path, rounds: int, figures: Figures) -> None:
    """What mounting costs by the number of inodes, beside one hash of what has to be checked."""
    for number in _GENERATED:
        image = f"generated-{number}"
        if not (work / image).exists():
            generate(f"{work / image}:t", number)
        for index in range(rounds + 1):
            ready, hashed = arena.ready(who, image), hash_seconds(work / image)
            if index:
                figures.note(who.name, f"ready {number:,}", ready)
                figures.note(who.name, f"hash {number:,}", hashed)
    for _ in range(rounds):
        figures.note(who.name, "hash", hash_seconds(work / who.image))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rootfs", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--patience", type=float, default=10, help="seconds for a measure (default 10)")
    parser.add_argument("--only", help="contestants, separated by semicolons")
    parser.add_argument("--measures", default=",".join(MEASURES), help="measures, separated by commas")
    parser.add_argument("--work", type=Path, help="where images are written (default: the temporary directory)")
    parser.add_argument("--keep", action="store_true", help="leave the images in --work, and use those that are there")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--add", action="store_true", help="keep the figures that are in --out: one run in parts")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: it mounts file systems and drops caches")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmounts
    with contextlib.ExitStack() as stack:
        work = args.work if args.keep else Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.work)))
        rootfs = args.rootfs.resolve()
        tree, arena, figures = Tree.of(rootfs), Arena(Tree.of(rootfs), work), measured_now("reading", rootfs)
        measures = [measure for measure in args.measures.split(",") if tree.has(measure)]
        chosen = [who for who in contestants() if args.only is None or who.name in args.only.split(";")]
        figures.left_out = {who.name: "not installed" for who in chosen if not shutil.which(who.needs)}
        for name in figures.left_out:
            print(f"left out, not installed: {name}", file=sys.stderr)
        chosen = [who for who in chosen if who.name not in figures.left_out]
        if not chosen:
            parser.error("nobody takes part")
        for who in chosen:
            if any(map(who.takes_part, measures)):
                arena.pack(who)
        if "ready" in measures and chosen[0].name == "puzzlefs":
            measure_ready(arena, chosen[0], work, args.rounds, figures)
        figures.results = {who.name: figures.results.get(who.name, {}) for who in chosen}
        measure_all(arena, chosen, measures, args.rounds, args.patience, figures)
    if args.out and args.add and args.out.exists():
        figures.take_over(load(args.out))
    print(ratio_table(figures, "puzzlefs"), verdict_table(figures, READING), sep="\n\n")
    if args.out:
        save(figures, args.out)


if __name__ == "__main__":
    main()
