"""Output that cannot be written: what is said, and how it ends."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import forge as f
from support.forge import Forge

from puzzlefs.image import open_image
from puzzlefs_cli.main import describe

pytestmark = pytest.mark.cli

_WORDS = [
    ["ls", "{image}"],
    ["ls", "-l", "{image}"],
    ["cat", "{image}", "/small"],
    ["cat", "{image}", "/large"],
    ["tree", "{image}"],
    ["find", "{image}"],
    ["du", "{image}"],
    ["stat", "{image}", "/small"],
    ["inspect", "{image}"],
    ["inspect", "--json", "{image}"],
    ["stats", "{layout}"],
    ["tags", "{layout}"],
    ["history", "{image}"],
    ["fsck", "{layout}"],
    ["export", "{image}"],
    ["completion", "bash"],
]


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    forge = Forge(tmp_path / "layout")
    forge.image(
        [
            f.directory(1, {b"small": 2, b"large": 3}),
            f.regular(2, forge.chunk(b"small")),
            f.regular(3, forge.chunk(bytes(100_000))),
        ]
    )
    return forge


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", _WORDS, ids=" ".join)
def test_a_full_device(forge: Forge, words: list[str], unbuffered: str) -> None:
    command = [word.format(image=forge.reference(), layout=forge.path) for word in words]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "puzzlefs_cli", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
            check=False,
        )
    assert result.stderr == b"puzzlefs: the output cannot be written: No space left on device\n"
    assert result.returncode == 7


@pytest.mark.parametrize("words", [*_WORDS, ["--help"], ["ls", "--help"], ["--version"]], ids=" ".join)
def test_no_stdout(forge: Forge, words: list[str]) -> None:
    command = [word.format(image=forge.reference(), layout=forge.path) for word in words]
    result = closed(">&-", *command)
    assert result.stderr == b"puzzlefs: the output cannot be written: Bad file descriptor\n"
    assert result.returncode == 7
    assert closed(">&- 2>&-", *command).returncode == 7


def test_errors_do_not_go_to_stdout_where_there_is_no_stderr(tmp_path: Path) -> None:
    result = closed("2>&-", "ls", f"{tmp_path / 'nothing'}:tag")
    assert (result.stdout, result.returncode) == (b"", 3)


def test_a_build_without_standard_streams(tmp_path: Path) -> None:
    """What is built is whole: no file got the number of a stream that was closed. That its digest is lost is said."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"content")
    reference = f"{tmp_path / 'images'}:tag"
    assert closed("<&- >&- 2>&-", "build", "--no-cache", str(tmp_path / "tree"), reference).returncode == 7
    with open_image(reference) as image:
        assert (image.path("/file")).read_bytes() == b"content"


def closed(streams: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command with standard streams closed, as a shell writes it."""
    script = f'exec "$@" {streams}'
    return subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "puzzlefs_cli", *words],
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    words = [sys.executable, "-m", "puzzlefs_cli", "build", str(tmp_path / "tree"), "images:tag"]
    script = f'mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec "$@"'
    result = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, timeout=60, check=False)
    assert result.stderr == b"puzzlefs: the working directory does not exist any more; change to another one\n"
    assert result.returncode == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", b"/a\xff"), "/a\udcff: Permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files are open; raise the limit (ulimit -n)"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "/x: No space left on device"),
        (OSError(errno.EBADF, "Bad file descriptor"), "the output cannot be written: Bad file descriptor"),
        (OSError("two\nlines"), "two lines"),
    ],
)
def test_what_is_said_of_the_hosts_errors(error: OSError, said: str) -> None:
    assert describe(error) == said
