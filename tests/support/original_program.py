"""The original implementation's own program, as ``scripts/original.py`` builds it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import original
import pytest

from support.writable import digest_of

VERSIONS: Final = tuple(original.RELEASES)
"""The format versions that one of its programs writes."""

each_original = pytest.mark.parametrize("theirs", VERSIONS, indirect=True)
"""Runs a test with each program, as the fixture ``theirs``."""

# Looked for while tests are collected: where it is kept depends on XDG_CACHE_HOME, which a fixture changes.
_PROGRAMS: Final = {version: original.built(version) for version in VERSIONS}
_TIMEOUT: Final = 300


class Original:
    """The program that writes one format version, and reads only that."""

    def __init__(self, version: int, program: Path) -> None:
        self.version = version
        self._program = program

    def build(self, root: Path, layout: Path, tag: str, *options: str) -> str:
        """Build an image; its digest."""
        return digest_of(self._run("build", *options, root, *self._image(layout, tag)))

    def extract(self, layout: Path, tag: str, target: Path) -> None:
        """Extract an image."""
        self._run("extract", *self._image(layout, tag), target)

    def enable_verity(self, layout: Path, tag: str, digest: str) -> None:
        """Have the kernel protect the files of an image."""
        self._run("enable-fs-verity", *self._image(layout, tag), digest)

    @contextmanager
    def mounted(self, layout: Path, tag: str, point: Path, *options: str) -> Iterator[Path]:
        """A mount of an image, in the foreground: in the background it insists on a syslog."""
        point.mkdir()
        words = [self._program, "mount", "-f", *options, *self._image(layout, tag), point]
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT) as server,
        ):
            try:
                deadline = time.monotonic() + _TIMEOUT
                while not os.path.ismount(point):
                    if server.poll() is not None:
                        said.seek(0)
                        raise AssertionError(f"{words}: {said.read()}")
                    assert time.monotonic() < deadline, words
                    time.sleep(0.01)
                yield point
            finally:
                if os.path.ismount(point):
                    subprocess.run(["umount", point], check=True)
                server.wait(_TIMEOUT)

    def _image(self, layout: Path, tag: str) -> list[str]:
        return [str(layout), tag] if self.version == 2 else [f"{layout}:{tag}"]

    def _run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([self._program, *words], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done


def original_program(version: int) -> Original:
    """The program that writes a format version; skips the test where it is not built."""
    program = _PROGRAMS[version]
    if program is None:
        pytest.skip("the original is not built; `make setup-original` builds it and says what it lacks")
    return Original(version, program)
