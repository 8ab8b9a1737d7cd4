"""Real mounts through the real command.

A mount is made in the background, so the command's return is the readiness; it is always taken away again; and a line
in its log that nobody expected fails the test.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from mounting import (
    COMMAND,
    ENGINES,
    VARIANTS,
    Built,
    Foreground,
    Mount,
    Mounted,
    build,
    is_mounted,
    read_fifo,
    run_puzzlefs,
    wait_for_end,
)
from odd_tree import make_odd_tree


@pytest.fixture(autouse=True, scope="session")
def _can_mount() -> None:
    if os.geteuid() != 0:
        pytest.skip("mount tests need root: they make devices, foreign owners and trusted xattrs")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("this machine has no /dev/fuse")


@contextlib.contextmanager
def _mounted(
    image: str, path: Path, log_file: Path, *options: str, bad_lines: bool = False, env: dict[str, str] | None = None
) -> Iterator[Mounted]:
    path.mkdir(exist_ok=True)
    made = Mounted(path, log_file)
    run_puzzlefs("mount", "--log-file", log_file, *options, image, path, env=env and {**os.environ, **env})
    pid = made.pid
    try:
        yield made
    finally:
        if is_mounted(path):
            taken = run_puzzlefs("umount", path, check=False)
            if taken.returncode:
                subprocess.run(["umount", "-l", path], check=False)
            assert taken.returncode == 0, taken.stderr
        wait_for_end(pid)
        assert not is_mounted(path)
    if not bad_lines:
        assert made.bad_lines() == []


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Who speaks to the kernel."""
    return str(request.param)


@pytest.fixture
def mounted(tmp_path: Path, engine: str) -> Mount:
    """``with mounted(image, *options) as mount:``; ``bad_lines=True`` where the test looks at the log itself."""
    count = 0

    def mount(image: str, *options: str, at: Path | None = None, **named: Any) -> AbstractContextManager[Mounted]:
        nonlocal count
        count += 1
        path, log_file = at or tmp_path / f"mount-{count}", tmp_path / f"mount-{count}.log"
        return _mounted(image, path, log_file, "--engine", engine, *options, **named)

    return mount


@pytest.fixture(scope="module")
def shared_mount(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[Callable[..., Path]]:
    """``shared_mount(image)`` mounts for all tests of a module."""
    with contextlib.ExitStack() as stack:

        def mount(image: str, *options: str, at: Path | None = None) -> Path:
            base = tmp_path_factory.mktemp("shared")
            path, log_file = at or base / "mount", base / "log"
            return stack.enter_context(_mounted(image, path, log_file, "--engine", engine, *options)).path

        yield mount


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The odd tree, built in several ways."""
    base = tmp_path_factory.mktemp("odd")
    built = Built(base / "tree", base, {})
    make_odd_tree(built.source)
    for tag, options in VARIANTS.items():
        built.digests[tag] = build(built.source, built.image(tag), *options)
    return built


@pytest.fixture(scope="session")
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="puzzlefs-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    left = is_mounted(path)
    if left:
        subprocess.run(["umount", "-l", path], check=False)
    assert not left, "something was left mounted"


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "ready"
    os.mkfifo(path)
    return path


@pytest.fixture
def foreground(point: Path, fifo: Path, engine: str) -> Foreground:
    """``with foreground(image, *options) as process:`` is a mount at ``point`` in the foreground that is ready."""

    @contextlib.contextmanager
    def serve(image: str, *options: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        command = [*COMMAND, "mount", "-f", "-i", str(fifo), "--engine", engine, *options, image, str(point)]
        environment = {**os.environ, **(env or {})}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
            try:
                assert read_fifo(fifo) == b"s"
                assert is_mounted(point)
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                    subprocess.run(["umount", "-l", point], check=False)

    return serve
