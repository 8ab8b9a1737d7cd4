"""Where contestants are packed, mounted and measured: one directory, one mount point, one of them at a time.

Whatever is mounted is unmounted again, also when a measure fails.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from contestants import Contestant
from measures import ONLY_COLD, RANDOM_READS, Tree, drop_caches, is_running, resident_mib, run, server_of, timed

_PATIENCE_S = 60.0


class Arena:
    """A work directory with images and a mount point."""

    def __init__(self, tree: Tree, work: Path) -> None:
        self._tree = tree
        self._work = work
        self._point = work / "mount"
        self._point.mkdir(exist_ok=True)
        # An installed program has its bytecode; a checkout need not, and would compile itself each time. What is
        # started in a mount has its own.
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._environment["PYTHONPYCACHEPREFIX"] = str(work / "bytecode")

    def pack(self, contestant: Contestant) -> None:
        """Make the image, if nobody has yet."""
        image = self._work / contestant.image
        if image.exists():
            return
        for words in contestant.pack:
            run(self._filled(words, image), environment=self._environment)
        os.sync()

    @contextlib.contextmanager
    def mounted(self, contestant: Contestant, image: str | None = None) -> Iterator[tuple[float, int | None]]:
        """Mount; gives the seconds until the mount point answered, and the process that serves it.

        Args:
            contestant: how.
            image: another image than the one that the contestant packed.
        """
        words = self._filled(contestant.mount, self._work / (image or contestant.image))
        outside = self._work.stat().st_dev
        resident: subprocess.Popen[bytes] | None = None
        start = time.perf_counter()
        if contestant.stays:
            resident = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        else:
            run(words, environment=self._environment)
        while os.stat(self._point).st_dev == outside:
            if time.perf_counter() - start > _PATIENCE_S or (resident is not None and resident.poll() is not None):
                raise SystemExit(f"{contestant.name} has mounted nothing")
            time.sleep(0.001)
        seconds = time.perf_counter() - start
        server = None
        if contestant.serves:
            server = resident.pid if resident is not None else server_of(str(self._point))
        try:
            yield seconds, server
        finally:
            self._unmount()
            if resident is not None:
                resident.wait()
            while server is not None and is_running(server):
                time.sleep(0.002)

    def _unmount(self) -> None:
        # What a program says about it is not what counts, and something of the machine's may be looking at a new mount.
        for number in range(50):
            words = ["umount", "-l"] if number > 20 else ["umount"]
            subprocess.run([*words, self._point], stderr=subprocess.DEVNULL, check=False)
            if not os.path.ismount(self._point):
                return
            time.sleep(0.1)
        raise SystemExit(f"{self._point} cannot be unmounted")

    def measure(self, contestant: Contestant, measure: str) -> dict[str, float]:
        """One measure of one contestant, by name of the column."""
        if measure == "ready":
            with self.mounted(contestant):  # whatever dropped the caches before, the program is in memory now
                pass
            with self.mounted(contestant) as (ready, _):
                return {"ready": ready}
        with self.mounted(contestant) as (_, server):
            if measure == "memory":
                return {} if server is None else self._memory(server, contestant.passes)
            drop_caches()
            cold = self._timed(measure)
            if measure == "random":
                return {"random": RANDOM_READS / cold}
            if measure in ONLY_COLD:
                return {f"{measure} cold": cold}
            return {f"{measure} cold": cold, f"{measure} warm": self._timed(measure)}

    def ready(self, contestant: Contestant, image: str) -> float:
        """Seconds until a mount of another image answers."""
        with self.mounted(contestant, image) as (seconds, _):
            return seconds

    def _memory(self, server: int, passes: int) -> dict[str, float]:
        """What the server holds after each of several passes, each of which has to ask it for everything."""
        result = {}
        for number in range(1, passes + 1):
            drop_caches()
            self._timed("find")
            self._timed("tar")
            result["memory" if number == 1 else f"memory {number}"] = resident_mib(server)
        return result

    def _timed(self, measure: str) -> float:
        return timed(measure, self._point, self._tree)

    def _filled(self, words: Sequence[str], image: Path) -> list[str]:
        values = {"tree": self._tree.path, "image": image, "point": self._point, "ext4_size": ""}
        if "{ext4_size}" in words:
            used = int(subprocess.check_output(["du", "-sk", str(self._tree.path)]).split()[0])
            values["ext4_size"] = f"{used * 5 // 4 + 65536}K"
        return [word.format_map(values) for word in words]
