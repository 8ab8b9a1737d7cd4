#!/usr/bin/env python3
"""One Markdown file and the plots from the figures of a day.

    python benchmarks/report.py [DATE] [--results DIR]

Reads ``<date>-reading.json``, ``<date>-building.json`` and ``<date>-space.json`` in ``results/``, as far as they are
there, and writes ``<date>.md`` and ``<date>-*.svg`` beside them. It measures nothing; the same figures give the same
files.

Of ``space.json`` it needs ``{"stored": {CONTESTANT: [bytes after version 1, 2, …]}}``; the rest belongs to
``space.py``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from figures import Figures, load
from goals import BUILDING, READING, Goal
from plots import bars, draw_bars, draw_lines, lines
from tables import about, ratio_table, stored_table, tally, verdict_table

RESULTS: Final = Path(__file__).with_name("results")

_READING_TABLES: Final = (
    ("Listing", ("find cold", "find warm", "stat cold", "stat warm")),
    ("Reading data", ("tar cold", "tar warm", "file cold", "random")),
    ("Starting programs", ("python cold", "python warm", "g++ cold", "g++ warm")),
    ("Mounting", ("ready", "ready 10", "ready 1,000,000", "hash", "hash 10", "hash 1,000,000")),
    ("Memory of the server", ("memory", "memory 2", "memory 3")),
)
_READING_BARS: Final = {
    "find cold": "find, cold (s)",
    "stat cold": "stat of every file, cold (s)",
    "tar cold": "tar, cold (s)",
    "find warm": "find, warm (s)",
    "stat warm": "stat of every file, warm (s)",
    "tar warm": "tar, warm (s)",
    "file cold": "one large file, cold (s)",
    "random": "random 4 KiB reads, cold (per second: more is better)",
    "python cold": "start of python3, cold (s)",
    "g++ cold": "g++ -c, cold (s)",
    "ready": "mount to ready (s)",
    "memory": "memory of the server after find and tar (MiB)",
}
_BUILDING_BARS: Final = {"seconds": "time of a build (s)", "MiB": "memory of the largest process (MiB)"}


def document(date: str, reading: Figures | None, building: Figures | None, space: dict[str, list[float]]) -> str:
    """The Markdown file, without the pictures' bytes but with their names."""
    parts = [
        f"# Benchmarks of {date}",
        "Medians; in brackets the median of puzzlefs divided by it (of reads: more is better).",
    ]
    if reading is not None:
        parts += ["## Reading", about(reading), *_left_out(reading)]
        for title, columns in _READING_TABLES:
            if any(column in reading.columns() for column in columns):
                parts += [f"### {title}", ratio_table(reading, "puzzlefs", columns)]
        parts += [*_goals(reading, READING), f"![time by peer]({date}-reading.svg)"]
    if building is not None:
        parts += ["## Building", about(building), *_left_out(building), ratio_table(building, "puzzlefs")]
        parts += [*_goals(building, BUILDING), f"![time by peer]({date}-building.svg)"]
    if space:
        parts += ["## Space", stored_table(space), f"![stored bytes by version]({date}-space.svg)"]
    return "\n\n".join(parts) + "\n"


def _left_out(figures: Figures) -> list[str]:
    if not figures.left_out:
        return []
    return ["Left out: " + ", ".join(f"{name} ({why})" for name, why in figures.left_out.items()) + "."]


def _goals(figures: Figures, goals: Sequence[Goal]) -> list[str]:
    return [f"### Goals: {tally(figures, goals)}", verdict_table(figures, goals)]


def write_report(date: str, results: Path) -> Path:
    """Write what the figures of ``date`` say; the path of the Markdown file."""

    def figures(what: str) -> Figures | None:
        path = results / f"{date}-{what}.json"
        return load(path) if path.exists() else None

    reading, building = figures("reading"), figures("building")
    space_path = results / f"{date}-space.json"
    space = stored_bytes(space_path.read_text()) if space_path.exists() else {}
    path = results / f"{date}.md"
    path.write_text(document(date, reading, building, space))
    if reading is not None:
        draw_bars(bars(reading, _READING_BARS), f"Reading: {about(reading)}", results / f"{date}-reading.svg")
    if building is not None:
        panels = bars(building, _BUILDING_BARS)
        draw_bars(panels, f"Building: {about(building)}", results / f"{date}-building.svg", across=2)
    if space:
        draw_lines(lines(space), f"Stored after each version, MB; {date}", results / f"{date}-space.svg")
    return path


def stored_bytes(text: str) -> dict[str, list[float]]:
    """What ``space.json`` says about the series; nothing if it is of another shape."""
    found = json.loads(text)
    stored = found.get("stored") if isinstance(found, dict) else None
    if not isinstance(stored, dict):
        return {}
    return {
        str(name): [float(value) for value in values]
        for name, values in stored.items()
        if isinstance(values, list) and values and all(isinstance(value, int | float) for value in values)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("date", nargs="?", help="default: the newest there is")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    dates = sorted(path.name[:10] for path in args.results.glob("????-??-??-*.json"))
    if not dates:
        parser.error(f"no figures in {args.results}")
    print(write_report(args.date or dates[-1], args.results))


if __name__ == "__main__":
    main()
