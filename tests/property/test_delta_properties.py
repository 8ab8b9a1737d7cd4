"""Layer after layer of random edits: the stack shows the tree, and folded into one it is what a fresh build makes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import trees
from support.edits import Editor

from puzzlefs.builder import build
from puzzlefs.canonicalize import canonicalize
from puzzlefs.delta import build_from_tree, build_from_upper
from puzzlefs.image import open_image

pytestmark = [
    pytest.mark.property,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes devices and mounts overlays, which takes root"),
]

_LAYERS = 4
_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2

OPTIONS = [{}, {"timestamps": "keep"}, {"compression": True}, {"format_version": 1}, {"format_version": 2}]
seeds = st.integers(0, 1 << 32)
slow = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory that is gone afterwards. (``TemporaryDirectory`` follows links when it fails: CVE-2023-6597.)"""
    name = tempfile.mkdtemp(dir="/var/tmp")
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name)


def check(root: Path, layout: Path, tag: str, options: dict[str, object], *, mtime: bool) -> None:
    """What the tag shows is the tree, and its canonical form is the fresh build of it."""
    with open_image(f"{layout}:{tag}") as image:
        assert trees.in_image(image, mtime=mtime) == trees.on_disk(root, mtime=mtime)
    fresh = build(root, f"{layout}:fresh", **options)  # type: ignore[arg-type]
    compression = options.get("compression") is True
    assert canonicalize(f"{layout}:{tag}", "canonical", compression=compression).digest == fresh.digest


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@slow
@given(seed=seeds)
def test_layers_from_whole_trees(options: dict[str, object], seed: int) -> None:
    with place() as work:
        root, layout = work / "root", work / "oci"
        root.mkdir()
        editor = Editor(root, random.Random(seed))
        editor.run(25)
        build(root, f"{layout}:l0", **options)  # type: ignore[arg-type]
        for number in range(1, _LAYERS):
            editor.run(10)
            with open_image(f"{layout}:l{number - 1}") as base:
                build_from_tree(root, base, f"l{number}", compression=options.get("compression"))  # type: ignore[arg-type]
            check(root, layout, f"l{number}", options, mtime="timestamps" in options)


@contextlib.contextmanager
def overlay(work: Path, lower: Path) -> Iterator[tuple[Path, Path]]:
    """An overlay over ``lower``: its upper directory, and where it is mounted."""
    upper, inner, point = (work / name for name in ("upper", "work", "merged"))
    for directory in (upper, inner, point):
        directory.mkdir()
    shutil.copystat(lower, upper)
    status = lower.stat()
    os.chown(upper, status.st_uid, status.st_gid)
    upper.chmod(status.st_mode & 0o7777)
    options = f"lowerdir={lower},upperdir={upper},workdir={inner}".encode()
    if _libc.mount(b"overlay", os.fsencode(point), b"overlay", 0, options) != 0:
        pytest.skip(f"no overlay can be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield upper, point
    finally:
        _libc.umount2(os.fsencode(point), _MNT_DETACH)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@slow
@given(seed=seeds)
def test_layers_from_real_overlays(options: dict[str, object], seed: int) -> None:
    """Each overlay's lower directory is what the last one showed."""
    with place() as work:
        lower, layout = work / "lower0", work / "oci"
        lower.mkdir()
        rnd = random.Random(seed)
        Editor(lower, rnd).run(30)
        build(lower, f"{layout}:l0", **options)  # type: ignore[arg-type]
        for number in range(1, _LAYERS):
            with place() as inner, overlay(inner, lower) as (upper, merged):
                Editor(merged, rnd).run(10)
                with open_image(f"{layout}:l{number - 1}") as base:
                    build_from_upper(upper, base, f"l{number}", compression=options.get("compression"))  # type: ignore[arg-type]
                after = work / f"lower{number}"
                os.system(f"cp -a {merged} {after}")
            check(after, layout, f"l{number}", options, mtime="timestamps" in options)
            lower = after
