"""Layouts on file systems with too little room: every command with hardly any to almost enough."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import CASES, Stage
from faulty_calls import FaultyCommand
from own_mounts import in_own_mounts
from stage import NOTHING

from puzzlefs.blobs.lease import Lease, Root, read_lease
from puzzlefs.digest import Digest
from puzzlefs_cli.exit_codes import ExitCode

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system is for root"),
]

SIZE = 12 << 20
ROOM = (0, 24, 80, 150, 240, 330, 420, 1200)
"""KiB that are free when the command begins. Most take some 400."""
if "PUZZLEFS_TEST_ALL_FAULTS" in os.environ:
    ROOM = (*range(0, 480, 8), 1200)
_FULL = {"build": "build", "build-new-layout": "build", "copy-all": "copy", "import-compressed": "import"}
_ALL = tuple(CASES) if "PUZZLEFS_TEST_ALL_FAULTS" in os.environ else (*_FULL, "build-base-layer", "repair-from", "tag")


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_command_on_a_file_system_that_is_full(tmp_path: Path, kind: str) -> None:
    in_own_mounts(lambda: _fill(tmp_path, kind))


def _fill(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", place], check=True)
    else:
        with open(tmp_path / "disk", "wb") as disk:
            disk.truncate(SIZE)
        words = ["mkfs.ext4", "-q", "-b1024", "-m0", "-Jsize=1", tmp_path / "disk"]
        subprocess.run(words, check=True)
        subprocess.run(["mount", "-o", "loop", tmp_path / "disk", place], check=True)
    problems = []
    with FaultyCommand(tmp_path) as command:
        for name in _ALL:
            problems += [f"{name}: {problem}" for problem in _try_room(place, name, command)]
    subprocess.run(["umount", place], check=True)
    if problems:
        raise AssertionError("\n".join(problems))


def _try_room(place: Path, name: str, command: FaultyCommand) -> Iterator[str]:
    """What is wrong about a command with more and more room."""
    directory = place / name
    directory.mkdir()
    case = CASES[name](Stage(directory))
    case.prepare(command)
    filler = place / "filler"
    ends = []
    for room in ROOM:
        os.sync()  # blocks that were freed are free then
        _fill_up(filler, room << 10)
        done = command.run(case.layout, NOTHING, *case.words, stdin=case.stdin)
        where = f"with {room} KiB"
        ends.append(done.code)
        if done.code != 0:
            for part in (os.strerror(28), str(case.layout), "; "):
                if part not in done.stderr:
                    yield f"{where}: it says {done.stderr!r}"
            if done.code != ExitCode.IO or done.stdout or done.stderr.count("\n") != 1:
                yield f"{where}: it ended with {done}"
        filler.unlink()
        problems = [*case.check(command, done.code == 0), *case.check_again(command)]
        yield from (f"{where}: {problem}" for problem in problems)
        case.restore()
    if ends[-1] != 0 or (name in _FULL and ends[0] == 0):
        yield f"it ended with {ends}"
    subprocess.run(["rm", "-rf", directory], check=True)


def _fill_up(filler: Path, room: int) -> None:
    """Take all of the room but ``room`` bytes."""
    with open(filler, "wb") as file:
        status = os.fstatvfs(file.fileno())
        length = max(status.f_bavail * status.f_frsize - room, 1)
        while length:
            try:
                os.posix_fallocate(file.fileno(), 0, length)
            except OSError:  # a file takes a little more than its length
                length = max(length - 4096, 0)
            else:
                return


@pytest.mark.parametrize("torn", ["b", "manifes", "blob 12ab", "rootfs " + "0" * 63, "blob " + "0" * 64])
def test_a_line_of_a_lease_that_was_not_written_whole(tmp_path: Path, torn: str) -> None:
    """What was not written is not relied on, and what is written afterwards is."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    lease = Lease(fd)
    digest = Digest.of(b"relied on")
    with open(tmp_path / lease.name_on_disk, "a") as file:
        file.write(torn)
    lease.name([digest], Root.MANIFEST)
    lease.name([digest])
    assert read_lease(fd, lease.name_on_disk) == [(Root.MANIFEST, digest), (Root.BLOB, digest)]
    lease.close()
    os.close(fd)
