"""What a shell is offered for a half-typed line; and pages that say what the commands say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from puzzlefs.builder import build

pytestmark = pytest.mark.cli

_COMMAND = [sys.executable, "-m", "puzzlefs_cli"]
_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("completion")
    root = place / "rootfs"
    (root / "etc/ssl").mkdir(parents=True)
    (root / "etc/passwd").touch()
    (root / "etc/password").touch()
    for tag in ("debian", "debian-2", "fedora"):
        build(root, f"{place / 'images'}:{tag}")
    return place


def offered(line: str, place: Path) -> list[str]:
    """What stands behind the cursor at the end of ``line``."""
    answer = place / "answer"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "fish",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
        "COMP_TYPE": "9",
    }
    done = subprocess.run(_COMMAND, env=environment, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return sorted(word.split("\t")[0] for word in answer.read_text().splitlines() if word)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("puzzlefs can", ["canonicalize"]),
        ("puzzlefs mount --ver", ["--verity"]),
        ("puzzlefs mount --verity k", ["kernel"]),
        ("puzzlefs mount images:d", ["images:debian", "images:debian-2"]),
        ("puzzlefs extract images:f", ["images:fedora"]),
        ("puzzlefs build root", ["rootfs/"]),
        ("puzzlefs build rootfs images:fedora --base-layer deb", ["debian", "debian-2"]),
        ("puzzlefs mount nothing:here", []),
    ],
)
def test_what_is_offered(place: Path, line: str, expected: list[str]) -> None:
    assert offered(line, place) == expected


def test_paths_inside_of_an_image(place: Path) -> None:
    assert offered("puzzlefs cat images:debian /etc/pass", place) == ["/etc/passwd", "/etc/password"]
    assert offered("puzzlefs ls images:debian /e", place) == ["/etc/"]
    assert offered("puzzlefs ls images:debian /nope/", place) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shell: str) -> None:
    done = subprocess.run([*_COMMAND, "completion", shell], capture_output=True, text=True, timeout=60, check=True)
    assert "puzzlefs" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse writes usages otherwise in other versions")
def test_the_pages_are_what_the_commands_say() -> None:
    script = _ROOT / "scripts" / "command_pages.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
