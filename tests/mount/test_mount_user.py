"""Mounting without being root: through fusermount3, for oneself."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounting import Built, as_user, copy_packages, is_mounted, python_for, read_fifo, wait_for_end
from support.layouts import copy_layout

pytestmark = pytest.mark.mount

_USER = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants somebody with a name

AsUser = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python(open_directory: Path) -> tuple[list[str], dict[str, str]]:
    """An interpreter with our packages that any user can start, and its environment."""
    packages = open_directory / "packages"
    copy_packages(packages)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    name = python_for(as_user(_USER), environment, "puzzlefs.image, puzzlefs_cli.main, pyfuse3")
    return [name, "-m", "puzzlefs_cli"], environment


@pytest.fixture
def user(python: tuple[list[str], dict[str, str]]) -> AsUser:
    """``user("mount", …)`` runs the command as an ordinary user."""
    command, environment = python

    def run(*words: str | Path, uid: int = _USER) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*as_user(uid), *command, *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            cwd="/",
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def home(open_directory: Path, tmp_path: Path) -> Iterator[Path]:
    """A directory of the user's, with a directory ``mnt`` in it."""
    path = open_directory / tmp_path.name
    (path / "mnt").mkdir(parents=True)
    for made in (path, path / "mnt"):
        os.chown(made, _USER, _USER)
    yield path
    if is_mounted(path / "mnt"):
        subprocess.run(["umount", "-l", path / "mnt"], check=False)
        pytest.fail("something was left mounted")


@pytest.fixture(scope="module")
def image(odd: Built, open_directory: Path) -> str:
    """A copy of an image that everybody can read."""
    layout = open_directory / "layout"
    copy_layout(odd.layout / "new", layout)
    subprocess.run(["chmod", "-R", "a+rX", layout], check=True)
    return f"{layout}:v3"


def _see(path: Path, uid: int) -> bool:
    result = subprocess.run([*as_user(uid), "ls", path], capture_output=True, text=True, check=False)
    return result.returncode == 0


def test_a_mount_of_ones_own(user: AsUser, home: Path, image: str, engine: str) -> None:
    point, log = home / "mnt", home / "log"
    made = user("mount", "--engine", engine, "--log-file", log, image, point)
    assert made.returncode == 0, made.stderr
    pid = int(re.findall(r"puzzlefs\[(\d+)\]", log.read_text())[0])
    try:
        line = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {point} " in line)
        source, _, kind, options, *_ = line.split(" ")
        assert (source, kind) == (image, "fuse.puzzlefs")
        assert {"ro", "nosuid", "nodev", "default_permissions", f"user_id={_USER}"} <= set(options.split(","))
        assert "allow_other" not in options
        assert _see(point / "links", _USER)
        assert not _see(point / "links", 4003)
        shown = subprocess.run([*as_user(_USER), "cat", point / "big" / "text"], capture_output=True, check=True)
        assert shown.stdout.startswith(b"line 0000000\n")
        private = subprocess.run([*as_user(_USER), "cat", point / "acl" / "private"], capture_output=True, check=False)
        assert b"Permission denied" in private.stderr
    finally:
        taken = user("umount", point)
    assert taken.returncode == 0, taken.stderr
    assert not is_mounted(point)
    wait_for_end(pid)
    assert "ERROR" not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(
    python: tuple[list[str], dict[str, str]], home: Path, image: str, engine: str, number: signal.Signals
) -> None:
    command, environment = python
    fifo = home / "ready"
    os.mkfifo(fifo)
    os.chown(fifo, _USER, _USER)
    words = [*as_user(_USER), *command, "mount", "-f", "-i", fifo, "--engine", engine, image, home / "mnt"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment, cwd="/") as process:
        assert read_fifo(fifo) == b"s"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert not is_mounted(home / "mnt")


def test_allow_other_needs_permission(user: AsUser, home: Path, image: str, engine: str) -> None:
    configuration = Path("/etc/fuse.conf")
    if configuration.exists() and re.search(r"^user_allow_other", configuration.read_text(), re.MULTILINE):
        pytest.skip("this machine lets users pass allow_other")
    result = user("mount", "--engine", engine, "-o", "allow_other", image, home / "mnt")
    assert result.returncode == 7
    assert "user_allow_other" in result.stderr
    assert result.stderr.count("\n") == 1


def test_somebody_elses_directory(user: AsUser, home: Path, image: str, engine: str) -> None:
    foreign = home.parent / f"{home.name}-foreign"
    foreign.mkdir()
    result = user("mount", "--engine", engine, image, foreign)
    assert result.returncode == 7
    assert "no write access" in result.stderr
    assert not is_mounted(foreign)


def test_umount_of_a_mount_in_use_and_by_somebody_else(user: AsUser, home: Path, image: str) -> None:
    point = home / "mnt"
    assert user("mount", image, point).returncode == 0
    try:
        with subprocess.Popen([*as_user(_USER), "sleep", "60"], cwd="/") as idle:
            idle.kill()
        stay = ["sh", "-c", 'cd "$1" && echo in && exec sleep 60', "sh", point / "links"]
        with subprocess.Popen([*as_user(_USER), *stay], stdout=subprocess.PIPE, cwd="/") as sleeper:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == b"in\n"
            busy = user("umount", point)
            sleeper.kill()
        assert busy.returncode == 7
        assert f"fusermount3 -u -z {point}" in busy.stderr
        refused = user("umount", point, uid=4003)
        assert refused.returncode == 7
        assert is_mounted(point)
    finally:
        assert user("umount", point).returncode == 0
