#!/usr/bin/env python3
"""How fast a mounted image is read, beside its peers, in one run.

    python benchmarks/reading.py ROOTFS [--rounds 5] [--only NAME,…] [--measures NAME,…] [--work DIR] [--out FILE.json]

ROOTFS is packed once for each contestant. Then every round runs every contestant once, in turn; the first round is
thrown away. What counts is the median, and the ratio of puzzlefs to each peer, because the machine's speed drifts.

*Cold* means: freshly mounted, and the kernel's caches (names, attributes, pages) dropped, so neither the kernel nor a
server in user space knows anything. *Warm* is the same again at once. Measures:

    ready    the mount command, from its start until the mount point answers
    find     find DIR
    stat     find DIR -printf %s: the attributes of every file
    tar      tar c DIR: every byte of every file
    file     the largest file, read from its beginning in pieces of 1 MiB
    random   reads of 4 KiB at random places of the largest file (shown as reads a second)
    python   chroot DIR python3 -c 'import ssl, json, asyncio'      (where the tree has it)
    g++      chroot DIR g++ -c of a small file                      (where the tree has it)
    memory   largest resident size of the server in MiB after find and tar (servers in user space only)

Needs root (it mounts file systems and drops the caches of the whole machine). Contestants that are not installed are
left out and named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PUZZLEFS = str(Path(sys.executable).with_name("puzzlefs"))
MEASURES = ("ready", "find", "stat", "tar", "file", "random", "python", "g++", "memory")
_RANDOM_READS = 2000
_RANDOM_SIZE = 4096
_PIECE = 1 << 20
_FASTER_IS_MORE = "random"


@dataclass(frozen=True)
class Contestant:
    """A way to pack a tree and to mount the result.

    Attributes:
        name: in the table.
        needs: the program that must be installed.
        pack: the commands that make ``{image}`` of ``{tree}``.
        mount: the command that mounts ``{image}`` at ``{point}`` and returns when it is mounted.
        image: contestants with the same word share what was packed.
        serves: whether a process in user space serves it.
    """

    name: str
    needs: str
    pack: tuple[tuple[str, ...], ...]
    mount: tuple[str, ...]
    image: str
    serves: bool


def contestants() -> list[Contestant]:
    """Everybody; the first is the one that ratios refer to."""
    plain = ("mksquashfs", "{tree}", "{image}", "-noI", "-noD", "-noF", "-noX", "-quiet", "-no-progress")
    zstd = ("mksquashfs", "{tree}", "{image}", "-comp", "zstd", "-Xcompression-level", "3", "-quiet", "-no-progress")
    build = (PUZZLEFS, "build", "{tree}", "{image}:t")
    build_zstd = (PUZZLEFS, "build", "-c", "{tree}", "{image}:t")
    ext4 = (("truncate", "-s", "{ext4_size}", "{image}"), ("mkfs.ext4", "-q", "-d", "{tree}", "{image}"))
    erofs = ("mkfs.erofs", "{image}", "{tree}")
    loop = ("mount", "-o", "loop,ro")

    def mount(engine: str) -> tuple[str, ...]:
        return (PUZZLEFS, "mount", "--engine", engine, "{image}:t", "{point}")

    fuse = ("squashfuse_ll", "{image}", "{point}")
    squashfs = (*loop, "-t", "squashfs", "{image}", "{point}")
    return [
        Contestant("puzzlefs", PUZZLEFS, (build,), mount("kernel"), "puzzlefs", True),
        Contestant("puzzlefs pyfuse3", PUZZLEFS, (build,), mount("pyfuse3"), "puzzlefs", True),
        Contestant("squashfuse_ll", fuse[0], (plain,), fuse, "sqfs", True),
        Contestant("erofsfuse", "erofsfuse", (erofs,), ("erofsfuse", "{image}", "{point}"), "erofs", True),
        Contestant("squashfs", "mksquashfs", (plain,), squashfs, "sqfs", False),
        Contestant("ext4", "mkfs.ext4", ext4, (*loop, "-t", "ext4", "{image}", "{point}"), "ext4", False),
        Contestant("puzzlefs zstd", PUZZLEFS, (build_zstd,), mount("kernel"), "puzzlefs-zstd", True),
        Contestant("squashfuse_ll zstd", fuse[0], (zstd,), fuse, "sqfs-zstd", True),
        Contestant("squashfs zstd", "mksquashfs", (zstd,), squashfs, "sqfs-zstd", False),
    ]


@dataclass(frozen=True)
class Tree:
    """What is packed, and which of its files are read."""

    path: Path
    largest: Path
    random_offsets: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Tree:
        size, largest = max(
            (os.lstat(os.path.join(top, name)).st_size, os.path.join(top, name))
            for top, _, names in os.walk(path)
            for name in names
            if os.path.isfile(os.path.join(top, name)) and not os.path.islink(os.path.join(top, name))
        )
        rnd = random.Random(4)
        offsets = tuple(rnd.randrange(0, max(size - _RANDOM_SIZE, 1)) & -_RANDOM_SIZE for _ in range(_RANDOM_READS))
        return cls(path, Path(largest).relative_to(path), offsets)


class Arena:
    """Where contestants are packed, mounted and measured."""

    def __init__(self, tree: Tree, work: Path) -> None:
        self._tree = tree
        self._work = work
        self._point = work / "mount"
        self._point.mkdir()

    def pack(self, contestant: Contestant) -> None:
        """Make the image, if nobody has yet."""
        image = self._work / contestant.image
        if image.exists():
            return
        for words in contestant.pack:
            run(self._filled(words, image))
        os.sync()

    @contextlib.contextmanager
    def mounted(self, contestant: Contestant) -> Iterator[tuple[float, int | None]]:
        """Mount; gives the seconds until the mount point answered, and who serves it."""
        words = self._filled(contestant.mount, self._work / contestant.image)
        start = time.perf_counter()
        run(words)
        device = os.stat(self._point).st_dev
        seconds = time.perf_counter() - start
        if device == self._work.stat().st_dev:
            raise SystemExit(f"{contestant.name} has mounted nothing")
        server = server_of(str(self._point)) if contestant.serves else None
        try:
            yield seconds, server
        finally:
            run(["umount", str(self._point)])
            while server is not None and os.path.exists(f"/proc/{server}"):
                time.sleep(0.005)

    def measure(self, contestant: Contestant, measure: str) -> dict[str, float]:
        """One measure of one contestant, by name of the column."""
        with self.mounted(contestant) as (ready, server):
            if measure == "ready":
                return {"ready": ready}
            if measure == "memory":
                if server is None:
                    return {}
                self._timed("find")
                self._timed("tar")
                return {"memory": resident_mib(server)}
            drop_caches()
            if measure == "random":
                return {"random": _RANDOM_READS / self._timed("random")}
            result = {f"{measure} cold": self._timed(measure)}
            if measure != "file":
                result[f"{measure} warm"] = self._timed(measure)
            return result

    def _timed(self, measure: str) -> float:
        actions: dict[str, Callable[[], object]] = {
            "find": lambda: run(["find", str(self._point)]),
            "stat": lambda: run(["find", str(self._point), "-printf", "%s"]),
            "tar": lambda: run(["sh", "-c", 'tar cf - "$1" 2>/dev/null | cat >/dev/null', "-", str(self._point)]),
            "file": lambda: read_through(self._point / self._tree.largest),
            "random": lambda: read_at(self._point / self._tree.largest, self._tree.random_offsets),
            "python": lambda: run(["chroot", str(self._point), "python3", "-c", "import ssl, json, asyncio"]),
            "g++": lambda: run(
                ["chroot", str(self._point), "g++", "-x", "c++", "-c", "-o", "/dev/null", "-"],
                text="#include <map>\n#include <string>\nstd::map<std::string, int> m;\n",
            ),
        }
        start = time.perf_counter()
        actions[measure]()
        return time.perf_counter() - start

    def _filled(self, words: Sequence[str], image: Path) -> list[str]:
        values = {"tree": self._tree.path, "image": image, "point": self._point, "ext4_size": ""}
        if "{ext4_size}" in words:
            used = int(subprocess.check_output(["du", "-sk", str(self._tree.path)]).split()[0])
            values["ext4_size"] = f"{used * 5 // 4 + 65536}K"
        return [word.format_map(values) for word in words]


def can_be_measured(measure: str, tree: Tree) -> bool:
    """Whether the tree has what the measure starts."""
    program = {"python": "usr/bin/python3", "g++": "usr/bin/g++"}.get(measure)
    return program is None or (tree.path / program).exists()


def read_through(path: Path) -> None:
    """Read a file from its beginning to its end."""
    buffer = bytearray(_PIECE)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_at(path: Path, offsets: Sequence[int]) -> None:
    """Read a little at each offset."""
    fd = os.open(path, os.O_RDONLY)
    for offset in offsets:
        os.pread(fd, _RANDOM_SIZE, offset)
    os.close(fd)


def run(words: Sequence[str], *, text: str | None = None) -> None:
    """Run a command without showing what it says; fail if it fails."""
    done = subprocess.run(words, input=text, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
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


def resident_mib(pid: int) -> float:
    """The resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """The medians, and what puzzlefs's are compared with each peer's."""
    columns = list(dict.fromkeys(column for values in results.values() for column in values))
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    base: dict[str, float] = {}
    for name, values in results.items():
        cells = []
        for column in columns:
            if column not in values:
                cells.append("–")
                continue
            median = statistics.median(values[column])
            shown = f"{median:,.0f}" if column in ("random", "memory") else f"{median:.3f}"
            if column in base and median:
                shown += f" ({base[column] / median:.2f})"
            cells.append(shown)
        if not base:
            base = {column: statistics.median(numbers) for column, numbers in values.items()}
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rootfs", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--only", help="contestants, separated by commas")
    parser.add_argument("--measures", default=",".join(MEASURES), help="measures, separated by commas")
    parser.add_argument("--work", type=Path, help="where images are written (default: the temporary directory)")
    parser.add_argument("--keep", action="store_true", help="leave the images in --work, and use those that are there")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: it mounts file systems and drops caches")
    with contextlib.ExitStack() as stack:
        if args.keep:
            work = args.work
            (work / "mount").rmdir() if (work / "mount").exists() else None
        else:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.work)))
        tree = Tree.of(args.rootfs.resolve())
        arena = Arena(tree, work)
        measures = [measure for measure in args.measures.split(",") if can_be_measured(measure, tree)]
        chosen = [who for who in contestants() if args.only is None or who.name in args.only.split(",")]
        for who in chosen:
            if not shutil.which(who.needs):
                print(f"left out, not installed: {who.name}", file=sys.stderr)
        chosen = [who for who in chosen if shutil.which(who.needs)]
        for who in chosen:
            arena.pack(who)
        results: dict[str, dict[str, list[float]]] = {who.name: {} for who in chosen}
        for number in range(args.rounds + 1):
            for measure in measures:
                for who in chosen:
                    for column, value in arena.measure(who, measure).items():
                        if number:
                            results[who.name].setdefault(column, []).append(value)
    print(f"{args.rootfs.name}: seconds (random: reads a second; memory: MiB), in brackets {chosen[0].name} / it\n")
    print(table(results))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"rootfs": args.rootfs.name, "results": results}, indent=1))


if __name__ == "__main__":
    main()
