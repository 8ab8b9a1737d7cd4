"""What a benchmark measured, as it lies in ``results/``: every single value, and what it was measured on.

Pure but for ``machine`` and the two functions that read and write the file. The file is JSON::

    {"what": "reading", "date": "2026-11-24", "machine": {…}, "tree": {"name": …, "inodes": …, "bytes": …},
     "left_out": {"erofsfuse": "not installed"}, "results": {CONTESTANT: {COLUMN: [VALUE, …]}}}

Units belong to columns: seconds unless ``tables.UNITS`` says something else.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Figures:
    """The values of one benchmark.

    Attributes:
        what: which benchmark.
        date: when it ran (ISO 8601).
        machine: what it ran on, for the reader of a table.
        tree: what was packed: its name, inodes and bytes.
        left_out: contestants that took no part, and why.
        results: for each contestant and column the values, a round each.
    """

    what: str
    date: str
    machine: dict[str, str]
    tree: dict[str, str | int]
    left_out: dict[str, str] = field(default_factory=dict)
    results: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def note(self, contestant: str, column: str, value: float) -> None:
        """One more value."""
        self.results.setdefault(contestant, {}).setdefault(column, []).append(value)

    def median(self, contestant: str, column: str) -> float | None:
        """What counts, if it was measured."""
        values = self.results.get(contestant, {}).get(column)
        return statistics.median(values) if values else None

    def columns(self) -> list[str]:
        """All columns, in the order in which they were measured first."""
        return list(dict.fromkeys(column for values in self.results.values() for column in values))

    def take_over(self, other: Figures) -> None:
        """Put the values of an earlier part of the same benchmark before these.

        Raises:
            ValueError: the other figures are of another benchmark or another tree.
        """
        if (other.what, other.tree) != (self.what, self.tree):
            raise ValueError(f"those are figures of {other.what} of {other.tree}, these of {self.what} of {self.tree}")
        merged: dict[str, dict[str, list[float]]] = {}
        for part in (other.results, self.results):
            for contestant, values in part.items():
                for column, numbers in values.items():
                    merged.setdefault(contestant, {}).setdefault(column, []).extend(numbers)
        self.results = merged
        self.left_out = other.left_out | self.left_out


def load(path: Path) -> Figures:
    """The figures in a file that ``save`` wrote."""
    return Figures(**json.loads(path.read_text()))


def save(figures: Figures, path: Path) -> None:
    """Write the figures; the file is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(asdict(figures), indent=1) + "\n")
    partial.rename(path)


def measured_now(what: str, tree: Path) -> Figures:
    """Figures without values yet, of ``tree``, on this machine, today."""
    inodes, size = census(tree)
    about: dict[str, str | int] = {"name": tree.name, "inodes": inodes, "bytes": size}
    return Figures(what, datetime.date.today().isoformat(), machine(tree), about)


def census(tree: Path) -> tuple[int, int]:
    """How many inodes a tree has, and how many bytes are in its files (hard links count once)."""
    seen = {tree.lstat().st_ino: 0}
    for top, directories, names in os.walk(tree):
        for name in directories + names:
            status = os.lstat(os.path.join(top, name))
            is_file = name in names and not os.path.islink(os.path.join(top, name))
            seen[status.st_ino] = status.st_size if is_file else 0
    return len(seen), sum(seen.values())


def machine(place: Path) -> dict[str, str]:
    """What a reader must know to judge the figures; ``place`` is on the file system that is used."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": f"{os.cpu_count()} × {model}",
        "kernel": platform.release().split("-")[0].split("+")[0],
        "python": platform.python_version(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "file system": _file_system(place),
    }


def _file_system(place: Path) -> str:
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        point, kind = line.split()[1:3]
        if place.resolve().is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]
