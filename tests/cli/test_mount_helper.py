"""``mount.puzzlefs``: what mount(8) says is understood, and mount(8) itself mounts an image from an fstab."""

from __future__ import annotations

import getopt
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puzzlefs_cli.mount_helper import translate

pytestmark = [pytest.mark.cli, pytest.mark.mount]

HELPER = Path(sys.executable).with_name("mount.puzzlefs")
INSTALLED = Path("/sbin/mount.puzzlefs")


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["i:t", "/m"], ["mount", "-o", "dev,suid", "--", "i:t", "/m"]),
        (["i:t", "/m", "-o", "ro,nodev"], ["mount", "-o", "dev,suid,ro,nodev", "--", "i:t", "/m"]),
        (["i:t", "/m", "-sn", "-v", "-o", "a", "-o", "b"], ["mount", "-o", "dev,suid,a,b", "--", "i:t", "/m"]),
        (["-o", "ro", "i:t", "/m"], ["mount", "-o", "dev,suid,ro", "--", "i:t", "/m"]),
        (["i:t", "/m", "-t", "puzzlefs", "-N", "ns"], ["mount", "-o", "dev,suid", "--", "i:t", "/m"]),
        (
            ["i:t", "/m", "-o", "rw,writable,nodev"],
            ["mount", "--writable", "-o", "dev,suid,rw,nodev", "--", "i:t", "/m"],
        ),
        (["i:t", "/m", "-o", "persist=/u,rw"], ["mount", "--persist=/u", "-o", "dev,suid,rw", "--", "i:t", "/m"]),
        (
            ["i:t", "/m", "-o", r"persist=-a\,b,fsname=c\,d"],
            ["mount", "--persist=-a,b", "-o", r"dev,suid,fsname=c\,d", "--", "i:t", "/m"],
        ),
        (["i:t", "/m", "-f"], None),
    ],
)
def test_what_mount_says_is_understood(words: list[str], command: list[str] | None) -> None:
    assert translate(words) == command


@pytest.mark.parametrize("words", [[], ["i:t"], ["i:t", "/m", "more"], ["i:t", "/m", "-x"]])
def test_other_calls_are_refused(words: list[str]) -> None:
    with pytest.raises(getopt.GetoptError):
        translate(words)


@pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) with an fstab of one's own needs root")
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse")
@pytest.mark.skipif(INSTALLED.exists() or INSTALLED.is_symlink(), reason=f"{INSTALLED} is there already")
def test_mount_finds_the_image_in_an_fstab(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_text("content")
    puzzlefs = str(Path(sys.executable).with_name("puzzlefs"))
    subprocess.run([puzzlefs, "build", source, f"{tmp_path}/images:t"], check=True, capture_output=True)
    table = tmp_path / "fstab"
    table.write_text(f"{tmp_path}/images:t {target} puzzlefs ro,nodev,nofail,x-test=1 0 0\n")
    INSTALLED.symlink_to(HELPER)
    try:
        subprocess.run(["mount", "-T", table, target], check=True, timeout=60)
        try:
            assert (target / "file").read_text() == "content"
            line = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {target} " in line)
            assert " fuse.puzzlefs ro,nodev,relatime," in line
        finally:
            subprocess.run(["umount", target], check=True, timeout=60)
        _a_line_that_persists(tmp_path, target)
        missing = subprocess.run(
            ["mount", "-t", "puzzlefs", f"{tmp_path}/images:nope", target],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert missing.returncode != 0
        assert "has no tag 'nope'" in missing.stderr
    finally:
        INSTALLED.unlink()


def _a_line_that_persists(tmp_path: Path, target: Path) -> None:
    table = tmp_path / "fstab.persist"
    table.write_text(f"{tmp_path}/images:t {target} puzzlefs rw,persist={tmp_path}/upper 0 0\n")
    for _ in range(2):
        subprocess.run(["mount", "-T", table, target], check=True, timeout=60)
        with open(target / "file", "a") as file:
            file.write(" and more")
        subprocess.run(["umount", target], check=True, timeout=60)
    assert (tmp_path / "upper" / "file").read_text() == "content and more and more"
    deadline = time.monotonic() + 20
    while os.listdir(target):  # what umount(8) does not know of goes by itself
        assert time.monotonic() < deadline, os.listdir(target)
        time.sleep(0.02)
