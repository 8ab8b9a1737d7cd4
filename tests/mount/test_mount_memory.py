"""The server stays small and gets ready quickly, however many inodes an image has."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import Mount
from support.forge import Forge, directory, regular

from puzzlefs.model import Inode

pytestmark = pytest.mark.mount

_DIRECTORIES = 1_000
_FILES_EACH = 99
_INODES = 1 + _DIRECTORIES * (1 + _FILES_EACH)
_MEBIBYTE = 1 << 20


def _memory(pid: int, field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def _inodes(forge: Forge) -> Iterator[Inode]:
    chunk = forge.chunk(b"the same in every file")
    first = 2 + _DIRECTORIES
    yield directory(1, {b"directory-%04d" % number: 2 + number for number in range(_DIRECTORIES)})
    for number in range(_DIRECTORIES):
        begin = first + number * _FILES_EACH
        yield directory(2 + number, {b"file-%02d" % place: begin + place for place in range(_FILES_EACH)})
    for ino in range(first, first + _DIRECTORIES * _FILES_EACH):
        yield regular(ino, chunk, uid=ino % 7)


def test_a_hundred_thousand_inodes(tmp_path: Path, mounted: Mount) -> None:
    forge = Forge(tmp_path / "layout")
    image = forge.image(list(_inodes(forge)))
    began = time.monotonic()
    with mounted(image) as mount:
        ready = time.monotonic() - began
        assert _memory(mount.server, "VmRSS") < 80 * _MEBIBYTE
        found = subprocess.run(["find", mount.path, "-printf", "%n %U\n"], capture_output=True, text=True, check=True)
        assert found.stdout.count("\n") == _INODES
        assert os.statvfs(mount.path).f_files == _INODES
        count = sum(len(path.read_bytes()) for path in (mount.path / "directory-0500").iterdir())
        assert count == _FILES_EACH * len(b"the same in every file")
        assert _memory(mount.server, "VmHWM") < 100 * _MEBIBYTE
        first = _memory(mount.server, "VmRSS")
        Path("/proc/sys/vm/drop_caches").write_text("2")  # forget names and attributes, so that all is asked again
        subprocess.run(["find", mount.path, "-newer", "/"], capture_output=True, check=True)
        assert _memory(mount.server, "VmRSS") < first + 10 * _MEBIBYTE
    assert ready < 5  # some tenths of a second on a quiet machine; a walk over all inodes takes more
