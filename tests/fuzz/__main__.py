"""``python -m fuzz --seconds N [TARGET ...]``: run targets under atheris, then judge what was found without it.

``make fuzz SECONDS=N TARGET=name`` calls this. Each target is a process of its own; ``--jobs`` run at a time. The
corpus grows in ``--corpus`` from run to run. What breaks a target is put into ``found/TARGET/``, so that the test suite
fails until it is fixed, and from then on guards it. Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fuzz.bounds import judge
from fuzz.regressions import DIRECTORY
from fuzz.targets import TARGETS

_TESTS = Path(__file__).resolve().parents[1]
_CACHE = _TESTS.parent / ".cache" / "fuzz"
_GRACE = 120


def main() -> int:
    """Run, judge, tell."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all of them by default: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at a time")
    parser.add_argument("--corpus", type=Path, default=_CACHE, help="where inputs that reach something new are kept")
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 31), help="of libFuzzer's choices")
    words = parser.parse_args()
    unknown = [name for name in words.targets if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; there are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: there are wheels of it for Linux on x86-64")
    names = words.targets or list(TARGETS)
    with ThreadPoolExecutor(words.jobs) as pool:
        outcomes = list(pool.map(lambda name: _run(name, words.seconds, words.corpus, words.seed), names))
    failed = False
    for name, outcome in zip(names, outcomes, strict=True):
        failed |= "error" in outcome
        broken = _judge_again(name, words.corpus / f"{name}.found")
        failed |= bool(broken)
        sys.stdout.write(f"{name}: {json.dumps(outcome)}\n" + "".join(f"  {line}\n" for line in broken))
    return int(failed)


def _run(name: str, seconds: int, corpus: Path, seed: int) -> dict[str, Any]:
    """Run one target; what it said of itself."""
    log_file = corpus / f"{name}.log"
    corpus.mkdir(parents=True, exist_ok=True)
    found = corpus / f"{name}.found"
    for old in found.glob("*"):
        old.unlink()
    command = [sys.executable, "-m", "fuzz.coverage_guided", name, "--seconds", str(seconds), "--seed", str(seed)]
    command += ["--corpus", str(corpus / name), "--found", str(found)]
    with log_file.open("wb") as log:
        result = subprocess.run(command, cwd=_TESTS, stdout=log, stderr=log, check=False, timeout=2 * seconds + _GRACE)
    text = log_file.read_text("utf-8", "replace")
    lines = text.splitlines()
    if result.returncode or not lines or not lines[-1].startswith("{"):
        return {"error": f"ended with {result.returncode}, see {log_file}"}
    outcome: dict[str, Any] = json.loads(lines[-1])
    for key in ("cov", "corp"):
        values = re.findall(rf" {key}: (\d+)", text)
        outcome[key] = int(values[-1]) if values else 0
    return outcome


def _judge_again(name: str, found: Path) -> list[str]:
    """Which of the inputs that atheris complained about break the target without instrumentation, too."""
    told = []
    for path in sorted(found.glob("[0-9][0-9][0-9]")):
        data = path.read_bytes()
        verdict = judge(TARGETS[name].run, data)
        if verdict.violation:
            kept = DIRECTORY / name / hashlib.sha256(data).hexdigest()[:16]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(data)
            told.append(f"{verdict.place}: kept as {kept}")
    return told


if __name__ == "__main__":
    sys.exit(main())
