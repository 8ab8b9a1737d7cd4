"""What is done with a mounted tree while the clock runs, and what a server in user space weighs.

Each action takes the mount point and reads it once, in the way of its measure.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMED = ("find", "stat", "tar", "file", "random", "python", "g++")
MEASURES = ("ready", *TIMED, "memory")
ONLY_COLD = ("file", "random")
"""What is there twice would be answered by the page cache, which says nothing about a contestant."""

RANDOM_READS = 2000
_RANDOM_SIZE = 4096
_PIECE = 1 << 20
_COMPILE = 'mount -t tmpfs tmpfs "$1/tmp"; exec chroot "$1" g++ -x c++ -c -o /tmp/a.o -'
"""The compiler wants a place to write to; what is mounted there is seen by nobody else and goes with it."""
_PROGRAM = "#include <map>\n#include <string>\nstd::map<std::string, int> m;\n"


@dataclass(frozen=True)
class Tree:
    """What is packed, and which of its files are read."""

    path: Path
    largest: Path
    random_offsets: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Tree:
        """Look for the largest file below ``path``; the same places in it are read every time."""
        size, largest = max(
            (os.lstat(os.path.join(top, name)).st_size, os.path.join(top, name))
            for top, _, names in os.walk(path)
            for name in names
            if os.path.isfile(os.path.join(top, name)) and not os.path.islink(os.path.join(top, name))
        )
        rnd = random.Random(4)
        offsets = tuple(rnd.randrange(0, max(size - _RANDOM_SIZE, 1)) & -_RANDOM_SIZE for _ in range(RANDOM_READS))
        return cls(path, Path(largest).relative_to(path), offsets)

    def has(self, measure: str) -> bool:
        """Whether the tree has what the measure starts."""
        program = {"python": "usr/bin/python3", "g++": "usr/bin/g++"}.get(measure)
        return program is None or (self.path / program).exists()


def timed(measure: str, point: Path, tree: Tree) -> float:
    """The seconds that a measure takes."""
    actions: dict[str, Callable[[], object]] = {
        "find": lambda: run(["find", str(point)]),
        "stat": lambda: run(["find", str(point), "-printf", "%s"]),
        "tar": lambda: run(["sh", "-c", 'tar cf - "$1" 2>/dev/null | cat >/dev/null', "-", str(point)]),
        "file": lambda: _read_through(point / tree.largest),
        "random": lambda: _read_at(point / tree.largest, tree.random_offsets),
        "python": lambda: run(["chroot", str(point), "python3", "-c", "import ssl, json, asyncio"]),
        "g++": lambda: run(["unshare", "-m", "sh", "-ec", _COMPILE, "-", str(point)], text=_PROGRAM),
    }
    start = time.perf_counter()
    actions[measure]()
    return time.perf_counter() - start


def _read_through(path: Path) -> None:
    buffer = bytearray(_PIECE)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _read_at(path: Path, offsets: Sequence[int]) -> None:
    fd = os.open(path, os.O_RDONLY)
    for offset in offsets:
        os.pread(fd, _RANDOM_SIZE, offset)
    os.close(fd)


def run(words: Sequence[str], *, text: str | None = None, environment: Mapping[str, str] | None = None) -> None:
    """Run a command without showing what it says; fail if it fails."""
    done = subprocess.run(
        words,
        input=text,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()[-500:]}")


def drop_caches() -> None:
    """Make the kernel forget pages, names and attributes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def server_of(point: str) -> int:
    """The process that serves the mount at ``point``: the newest one that was told to."""
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                if os.fsencode(point) in words:
                    found = max(found, int(name))
    return found


def is_running(pid: int) -> bool:
    """Whether a process has not ended yet, whoever has to be told of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def resident_mib(pid: int) -> float:
    """The resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def hash_seconds(layout: Path) -> float:
    """How long one SHA-256 of the metadata blob of the only image in an OCI layout takes, read from the page cache."""
    blobs = layout / "blobs" / "sha256"
    (tag,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((blobs / tag["digest"].removeprefix("sha256:")).read_text())
    data = (blobs / manifest["layers"][0]["digest"].removeprefix("sha256:")).read_bytes()
    start = time.perf_counter()
    hashlib.sha256(data).hexdigest()
    return time.perf_counter() - start
