#!/usr/bin/env python3
"""The original implementation's program, to stand beside ours in tests and benchmarks.

Its authors released it on crates.io: 0.1.0 writes format version 2, 0.2.0 version 3. ``cargo`` builds them, once, into
``${XDG_CACHE_HOME:-~/.cache}/puzzlefs-demo/original-<release>-<machine>``; that name exists only for a whole build.

Standard library only. Run as ``original.py`` it builds both if need be and prints their paths; messages go to stderr.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rootfs import cache_dir, locked, remove_tree

RELEASES = {2: "0.1.0", 3: "0.2.0"}
"""The newest release that writes a format version. (None that writes version 1 is on crates.io.)"""

# The dependencies that 0.1.0 was released with include a `time` that compilers since 1.80 refuse.
_LOCKED = {"0.2.0"}
_NEEDED = ("cargo", "capnp", "cc")
_LOG_TAIL_LINES = 8


class OriginalUnavailableError(Exception):
    """It is not built, or cannot be built here; the text says why."""


def built(version: int) -> Path | None:
    """The program that writes a format version, if it has been built."""
    try:
        program = _home(version) / "bin" / "puzzlefs"
        return program if program.is_file() else None
    except OSError:  # nowhere to keep it
        return None


def build(version: int) -> Path:
    """The program that writes a format version, built now if it has not been; that takes one to two minutes.

    Raises:
        OriginalUnavailableError: if it cannot be built here.
    """
    if program := built(version):
        return program
    missing = [tool for tool in _NEEDED if shutil.which(tool) is None]
    if missing:
        raise OriginalUnavailableError(f"building the original needs {' and '.join(missing)}; see https://rustup.rs")
    cache = cache_dir()
    home = _home(version)
    partial = home.with_name(home.name + ".partial")
    with locked(cache / "original.lock") as lock:
        if program := built(version):
            return program
        remove_tree(partial)
        try:
            _install(RELEASES[version], partial, cache / "original-target", cache / "original.log", lock)
            partial.rename(home)
        finally:
            remove_tree(partial)
    return home / "bin" / "puzzlefs"


def _home(version: int) -> Path:
    return cache_dir() / f"original-{RELEASES[version]}-{platform.machine()}"


def _install(release: str, root: Path, target: Path, log_path: Path, lock: int) -> None:
    command = ["cargo", "install", "puzzlefs", "--version", release, "--root", str(root)]
    if release in _LOCKED:
        command.append("--locked")
    # It says where errors arose by a feature that a stable compiler has, but hides.
    environment = {**os.environ, "RUSTC_BOOTSTRAP": "1", "CARGO_TARGET_DIR": str(target)}
    print(f"  $ {' '.join(command)}   (log: {log_path})", file=sys.stderr, flush=True)
    with log_path.open("wb") as log:
        status = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=(lock,), check=False
        ).returncode
    if status != 0:
        tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        raise OriginalUnavailableError("\n    ".join([f"cargo failed (exit code {status}):", *tail]))


def main() -> int:
    """Build both; 1 if one of them cannot be built."""
    status = 0
    for version in RELEASES:
        try:
            print(build(version))
        except (OriginalUnavailableError, OSError) as error:
            print(f"the original that writes format version {version} is not there: {error}", file=sys.stderr)
            status = 1
    with suppress(OSError):
        remove_tree(cache_dir() / "original-target")
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
