"""Who is read beside whom: how each contestant packs a tree, and how it mounts the result.

Pure data: ``arena`` runs the commands.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import original

PUZZLEFS = str(Path(sys.executable).with_name("puzzlefs"))


@dataclass(frozen=True)
class Contestant:
    """A way to pack a tree and to mount the result.

    Attributes:
        name: in the table.
        needs: the program that must be installed.
        pack: the commands that make ``{image}`` of ``{tree}``.
        mount: the command that mounts ``{image}`` at ``{point}``.
        image: contestants with the same word share what was packed.
        serves: whether a process in user space serves it.
        stays: the mount command is that process and does not return.
        measures: the only measures in which it takes part; empty: all.
        most_rounds: no goal refers to it, so it takes part in this many rounds only.
        passes: how many times all of it is read to see what its server holds; 0: nobody asks.
    """

    name: str
    needs: str
    pack: tuple[tuple[str, ...], ...]
    mount: tuple[str, ...]
    image: str
    serves: bool
    stays: bool = False
    measures: tuple[str, ...] = ()
    most_rounds: int | None = None
    passes: int = 1

    def takes_part(self, measure: str) -> bool:
        """Whether it is measured so."""
        return not self.measures or measure in self.measures


def the_original() -> str | None:
    """The original implementation's program: the one that ``$PEER_PUZZLEFS`` names, or that ``make bench`` built."""
    program = os.environ.get("PEER_PUZZLEFS") or original.built(3)
    return str(program) if program else None


def contestants() -> list[Contestant]:
    """Everybody; the first is the one that ratios refer to.

    All of them keep modification times, as the peers do by default, because Python compares those with what is written
    in .pyc files; ``puzzlefs, no times`` is the default build, for what that costs.
    """
    squash = ("mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress")
    plain = (*squash, "-noI", "-noD", "-noF", "-noX")
    zstd = (*squash, "-comp", "zstd", "-Xcompression-level", "3")
    no_times = (PUZZLEFS, "build", "--no-cache", "{tree}", "{image}:t")
    build = (*no_times, "--timestamps", "keep")
    ext4 = (("truncate", "-s", "{ext4_size}", "{image}"), ("mkfs.ext4", "-q", "-d", "{tree}", "{image}"))
    erofs = ("mkfs.erofs", "{image}", "{tree}")
    casync = ("casync", "make", "--store={image}/store.castr", "{image}/image.caidx", "{tree}")
    casync_mount = ("casync", "mount", "--store={image}/store.castr", "{image}/image.caidx", "{point}")
    loop = ("mount", "-o", "loop,ro")

    def mount(engine: str) -> tuple[str, ...]:
        return (PUZZLEFS, "mount", "--engine", engine, "{image}:t", "{point}")

    fuse = ("squashfuse_ll", "{image}", "{point}")
    squashfs = (*loop, "-t", "squashfs", "{image}", "{point}")
    everybody = [
        Contestant("puzzlefs", PUZZLEFS, (build,), mount("kernel"), "puzzlefs", True, passes=3),
        Contestant("puzzlefs pyfuse3", PUZZLEFS, (build,), mount("pyfuse3"), "puzzlefs", True, most_rounds=1, passes=0),
        Contestant(
            "puzzlefs, no times", PUZZLEFS, (no_times,), mount("kernel"), "puzzlefs-no-times", True,
            measures=("python",), most_rounds=2,
        ),
        Contestant("squashfuse_ll", fuse[0], (plain,), fuse, "sqfs", True),
        Contestant("erofsfuse", "erofsfuse", (erofs,), ("erofsfuse", "{image}", "{point}"), "erofs", True),
        Contestant("squashfs", "mksquashfs", (plain,), squashfs, "sqfs", False),
        Contestant("ext4", "mkfs.ext4", ext4, (*loop, "-t", "ext4", "{image}", "{point}"), "ext4", False),
        Contestant(
            "casync", "casync", (("mkdir", "{image}"), casync), casync_mount, "casync", True, stays=True,
            measures=("ready", "file"),  # find of this tree takes it 20 s, and tar minutes
        ),
        Contestant("puzzlefs zstd", PUZZLEFS, ((*build, "-c"),), mount("kernel"), "puzzlefs-zstd", True),
        Contestant("squashfuse_ll zstd", fuse[0], (zstd,), fuse, "sqfs-zstd", True, passes=0),
        Contestant("squashfs zstd", "mksquashfs", (zstd,), squashfs, "sqfs-zstd", False, most_rounds=1),
    ]  # fmt: skip
    if program := the_original():
        # In the background it insists on a syslog.
        pack, serve = (program, "build", "{tree}", "{image}:t"), (program, "mount", "-f", "{image}:t", "{point}")
        everybody.append(
            Contestant("the original", program, (pack,), serve, "original", True, stays=True, most_rounds=1)
        )
    return everybody
