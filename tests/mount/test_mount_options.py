"""What -o does: how the mount is shown, and what the kernel allows in it."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from mounting import Built, Mount, build, is_mounted, run_puzzlefs

pytestmark = pytest.mark.mount


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, str]:
    """A small tree and an image of it."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content")
    return source, f"{tmp_path / 'layout'}:small"


def _shown(path: Path) -> tuple[str, str, set[str]]:
    """Source, type and options of a mount as the kernel lists it."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    source, _, kind, options, _, _ = next(line.split(" ") for line in lines if line.split(" ")[1] == str(path))
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), source), kind, set(options.split(","))


def test_as_mount_shows_it(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        source, kind, options = _shown(mount.path)
        listed = subprocess.run(["mount"], capture_output=True, text=True, check=True).stdout
    assert source == odd.image("v3")
    assert kind == "fuse.puzzlefs"
    assert {"ro", "nosuid", "nodev", "default_permissions", "allow_other"} <= options
    assert f"{odd.image('v3')} on {mount.path} type fuse.puzzlefs (ro,nosuid,nodev," in listed


@pytest.mark.parametrize("name", ["a,b", "a\\b", "a:b", "a b", "a\\101", "ä", "-o ro,rw", "a#b", "trailing\\"])
def test_the_image_is_the_source_whatever_its_name(tmp_path: Path, mounted: Mount, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    layout = tmp_path / name
    build(source, f"{layout}:t")
    with mounted(f"{layout}:t") as mount:
        assert _shown(mount.path)[0] == f"{layout}:t"


@pytest.mark.parametrize(
    ("options", "source", "kind"),
    [
        (("-o", "fsname=other"), "other", "fuse.puzzlefs"),
        (("-o", r"fsname=a\,b\\c"), r"a,b\c", "fuse.puzzlefs"),
        (("-o", "fsname=host:/path:tag"), "host:/path:tag", "fuse.puzzlefs"),
    ],
)
def test_names(odd: Built, mounted: Mount, options: Sequence[str], source: str, kind: str) -> None:
    with mounted(odd.image("v3"), *options) as mount:
        assert _shown(mount.path)[:2] == (source, kind)


def test_subtype(odd: Built, tmp_path: Path, engine: str) -> None:
    path = tmp_path / "mount"
    path.mkdir()
    run_puzzlefs("mount", "--engine", engine, "-o", "subtype=other", odd.image("v3"), path)
    try:
        assert _shown(path)[1] == "fuse.other"
        refused = run_puzzlefs("umount", path, check=False)
        assert refused.returncode == 7
        assert f"umount {path}" in refused.stderr
    finally:
        subprocess.run(["umount", path], check=True)


def test_words_without_effect(odd: Built, mounted: Mount) -> None:
    words = (
        "rw,defaults,atime,noatime,relatime,norelatime,strictatime,nostrictatime,lazytime,nolazytime,diratime,"
        "nodiratime,user,users,nouser,noauto,auto,nofail,_netdev,x-systemd.automount,comment=mine,allow_other,ro"
    )
    with mounted(odd.image("v3"), "-o", words, "-o", "default_permissions,,") as mount:
        _, _, options = _shown(mount.path)
    assert "ro" in options
    assert "rw" not in options


@pytest.mark.parametrize("word", ["max_read=4096", "allow_root", "bogus", "fsname=", "ro=1", "uid=1000", "RO"])
def test_words_that_are_refused(odd: Built, tmp_path: Path, word: str) -> None:
    result = run_puzzlefs("mount", "-o", f"noatime,{word}", odd.image("v3"), tmp_path, check=False)
    assert result.returncode == 2
    assert word.partition("=")[0] in result.stderr
    assert result.stderr.count("\n") == 1
    assert not is_mounted(tmp_path)


def test_devices(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount, pytest.raises(PermissionError):
        os.open(mount.path / "dev" / "null", os.O_RDONLY)
    with mounted(odd.image("v3"), "-o", "dev") as mount:
        assert "nodev" not in _shown(mount.path)[2]
        assert (mount.path / "dev" / "null").read_bytes() == b""
    with mounted(odd.image("v3"), "-o", "dev,nodev") as mount:
        assert "nodev" in _shown(mount.path)[2]


def test_programs(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3"), "-o", "noexec") as mount:
        assert "noexec" in _shown(mount.path)[2]
        with pytest.raises(PermissionError):
            subprocess.run([mount.path / "bin" / "program"], check=False)


def test_set_user_id(small: tuple[Path, str], mounted: Mount, open_directory: Path) -> None:
    source, image = small
    program = source / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    build(source, image)
    effective = {}
    for option in ("nosuid", "suid"):
        with mounted(image, "-o", option, at=open_directory / "suid") as mount:
            command = ["setpriv", "--reuid=4001", "--regid=4001", "--clear-groups", "--", mount.path / "id", "-u"]
            effective[option] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert effective == {"nosuid": "4001", "suid": "0"}


def test_auto_unmount(odd: Built, mounted: Mount, engine: str) -> None:
    # fusermount3 looks once whether the server is gone (should_auto_unmount in util/fusermount.c), and one that is
    # killed closes the socket that tells it before the queue: it may be too early, and then it leaves the mount alone
    for tries_left in range(3 if engine == "pyfuse3" else 1)[::-1]:
        with mounted(odd.image("v3"), "-o", "auto_unmount") as mount:
            mount.kill()
            deadline = time.monotonic() + 20
            while is_mounted(mount.path) and time.monotonic() < deadline:
                time.sleep(0.01)  # the helper gives no other sign
            if is_mounted(mount.path) and tries_left:
                continue
            assert not is_mounted(mount.path)
            assert mount.path.is_dir()
            break


def test_auto_unmount_after_an_ordinary_unmount(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3"), "-o", "auto_unmount") as mount:
        assert (mount.path / "big" / "1").stat().st_size == 1
