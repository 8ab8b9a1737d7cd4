"""Stacks of metadata layers, mounted: layer after layer of random edits, the mount shows the tree."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from mounting import Mount, build, run_puzzlefs
from support import trees
from support.edits import Editor

pytestmark = [pytest.mark.mount]

_LAYERS = 6


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_mounted_is_the_tree(tmp_path: Path, mounted: Mount, seed: int) -> None:
    root, layout = tmp_path / "root", tmp_path / "oci"
    root.mkdir()
    editor = Editor(root, random.Random(seed))
    editor.run(60)
    build(root, f"{layout}:0", *(("-c",) if seed == 2 else ()))
    for number in range(1, _LAYERS):
        editor.run(15)
        build(root, f"{layout}:{number}", "--base-layer", str(number - 1))
        if number in (1, _LAYERS - 1):
            with mounted(f"{layout}:{number}", "-o", "dev,suid") as mount:
                assert trees.on_disk(mount.path) == trees.on_disk(root)
    run_puzzlefs("canonicalize", f"{layout}:{_LAYERS - 1}", "one")
    with mounted(f"{layout}:one", "-o", "dev,suid") as mount:
        assert trees.on_disk(mount.path) == trees.on_disk(root)


def test_the_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    root, layout = tmp_path / "root", tmp_path / "oci"
    root.mkdir()
    build(root, f"{layout}:a")
    for words, expected in (
        (["build", "--upper", root, f"{layout}:b"], "--base-layer TAG"),
        (["build", "--base-layer", "nope", root, f"{layout}:b"], "nope"),
        (["build", "--base-layer", "a", "--format-version", "1", root, f"{layout}:b"], "of format version 3"),
        (["build", "--base-layer", "a", "--upper", root, root, f"{layout}:b"], "tag"),
        (["build", "--base-layer", "a", "--upper", tmp_path / "no", f"{layout}:b"], "does not exist"),
        (["build", "--base-layer", "a", "--upper", root, "--cross-mounts", f"{layout}:b"], "--cross-mounts"),
        (["build", "--base-layer", "a", "--verify-cache", root, f"{layout}:b"], "--verify-cache"),
    ):
        result = run_puzzlefs(*words, check=False)
        assert result.returncode in (2, 3)
        assert expected in result.stderr
        assert result.stderr.count("\n") == 1
