"""Versions of one application image: a Debian with four Python packages that move on release by release.

What a registry really holds: most of each version is as before, some files change a little, some are new. The trees
depend on nothing but the Debian they start from and on PyPI: packages are pinned, installed without their bytecode and
stamped with one time. Each tree is a whole copy, made once and kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

RELEASES: Final = (
    ("Django==4.2.1", "numpy==1.23.2", "botocore==1.31.0", "cryptography==39.0.0"),
    ("Django==4.2.2", "numpy==1.23.3", "botocore==1.31.1", "cryptography==39.0.1"),
    ("Django==4.2.3", "numpy==1.23.4", "botocore==1.31.2", "cryptography==39.0.2"),
    ("Django==4.2.4", "numpy==1.23.5", "botocore==1.31.3", "cryptography==40.0.1"),
    ("Django==4.2.5", "numpy==1.24.0", "botocore==1.31.4", "cryptography==40.0.2"),
    ("Django==4.2.6", "numpy==1.24.1", "botocore==1.31.5", "cryptography==41.0.1"),
    ("Django==4.2.7", "numpy==1.24.2", "botocore==1.31.6", "cryptography==41.0.2"),
    ("Django==4.2.8", "numpy==1.24.3", "botocore==1.31.7", "cryptography==41.0.3"),
    ("Django==4.2.9", "numpy==1.24.4", "botocore==1.31.8", "cryptography==41.0.4"),
    ("Django==4.2.10", "numpy==1.25.0", "botocore==1.31.9", "cryptography==41.0.5"),
)
"""What is installed in each version."""

APPLICATION: Final = "opt/app"
"""Where in a tree the packages are."""

_EPOCH: Final = 1_700_000_000
_PLATFORM: Final = (
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux2014_x86_64",
)


def make_series(base: Path, work: Path, releases: Sequence[tuple[str, ...]] = RELEASES) -> list[Path]:
    """The trees of all versions below ``work``, made where they are missing.

    Args:
        base: the Debian: an unpacked root file system.
        work: a directory that keeps the trees.
        releases: what is installed in each: ``RELEASES``, or the first of them.
    """
    work.mkdir(parents=True, exist_ok=True)
    trees = []
    for number, packages in enumerate(releases, 1):
        tree = work / f"v{number:02}"
        if not tree.is_dir():
            partial = work / f".v{number:02}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            subprocess.run(["cp", "-a", base, partial], check=True)
            _install(packages, partial / APPLICATION)
            partial.rename(tree)
            print(f"made {tree}", file=sys.stderr)
        trees.append(tree)
    return trees


def _install(packages: tuple[str, ...], target: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--no-deps",
    ]
    environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
    subprocess.run([*pip, *_PLATFORM, "--target", target, *packages], check=True, env=environment)
    for directory, names, files in os.walk(target):
        for name in (*names, *files):
            os.utime(os.path.join(directory, name), (_EPOCH, _EPOCH), follow_symlinks=False)
    os.utime(target, (_EPOCH, _EPOCH))
