"""One target under atheris (libFuzzer): ``python -m fuzz.coverage_guided TARGET --seconds N --corpus DIR --found DIR``.

The program is instrumented while it is imported, so this is a process of its own, and nothing of it may be imported
before. An input that breaks the target is written to ``--found``, one for each place in the code, and the run goes on.
Instrumented code is several times slower, so the bound on time is wider here; what comes near it is written down too,
and ``__main__`` judges every find again without atheris.

The last line of the output is a JSON object: how many inputs there were, how many ended with an error of the image, how
many places were found, and what the slowest input took.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["puzzlefs"], enable_loader_override=False):
    from fuzz.targets import TARGETS

from fuzz.bounds import CPU_SECONDS, judge

SLOWED: Final = 4
"""How many times longer than without instrumentation an input may take here."""

_SUSPICIOUS: Final = 0.5
_OWN_MUTATIONS: Final = 0.6


def main() -> None:
    """Run one target for a while."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--found", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    target = TARGETS[words.target]
    words.corpus.mkdir(parents=True, exist_ok=True)
    words.found.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (words.corpus / f"seed-{number:03}").write_bytes(data)
    known: set[str] = set()
    runs = refused = 0
    slowest = 0.0

    def tell() -> None:
        sys.stdout.write(
            json.dumps({"runs": runs, "refused": refused, "found": len(known), "slowest": round(slowest, 3)}) + "\n"
        )
        sys.stdout.flush()

    # libFuzzer's own way to stop, -max_total_time, leaves no room to say how it went
    def finish() -> None:
        tell()
        atexit._run_exitfuncs()
        os._exit(0)

    deadline = time.monotonic() + words.seconds

    def run(data: bytes) -> None:
        nonlocal runs, refused, slowest
        if time.monotonic() > deadline:
            finish()
        verdict = judge(target.run, data, cpu_seconds=SLOWED * CPU_SECONDS)
        runs += 1
        refused += verdict.refused
        place = verdict.place
        if not place and verdict.seconds > max(_SUSPICIOUS, slowest):
            place = f"slow {verdict.seconds:.1f}"
        slowest = max(slowest, verdict.seconds)
        if place and place not in known:
            known.add(place)
            name = f"{len(known):03}"
            (words.found / name).write_bytes(data)
            (words.found / f"{name}.txt").write_text(f"{place}\n{verdict.violation}\n")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rnd = random.Random(seed)
        if rnd.random() > _OWN_MUTATIONS:
            return bytes(atheris.Mutate(data, max_size))
        for _ in range(rnd.choice((1, 1, 2))):
            data = target.mutate(bytes(data), rnd)
        return data[:max_size]

    options = [f"-max_len={target.max_size}", "-timeout=60", "-rss_limit_mb=4096", f"-seed={words.seed or 1}"]
    atheris.Setup([sys.argv[0], str(words.corpus), *options], run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
