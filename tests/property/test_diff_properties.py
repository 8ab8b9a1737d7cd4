"""``diff`` of random pairs of trees, against a comparison that knows nothing of images: trees as values."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import trees
from support.differences import FIELDS, Expected, compared, told
from support.edits import Editor

from puzzlefs.builder import build
from puzzlefs.delta import build_from_tree
from puzzlefs.diff import DiffReport, diff
from puzzlefs.image import open_image

pytestmark = [
    pytest.mark.property,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes devices, which takes root"),
]

OPTIONS = [{}, {"timestamps": "keep"}, {"compression": True}, {"format_version": 1}, {"format_version": 2}]
seeds = st.integers(0, 1 << 32)
slow = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def relink(root: Path, rnd: random.Random) -> None:
    """Make names of one file names of several, or the other way round, and move one: the editor rarely does."""
    for _ in range(3):
        files = sorted(path for path in root.rglob("*") if stat.S_ISREG(path.lstat().st_mode))
        if len(files) < 3:
            return
        kept, other, moved = rnd.sample(files, 3)
        other.unlink()
        if rnd.random() < 0.5:
            os.link(kept, other)
        else:
            shutil.copy2(kept, other)
        if not moved.with_name("moved").is_dir():
            moved.rename(moved.with_name("moved"))


def without_renames(report: DiffReport, a: trees.Tree, b: trees.Tree) -> dict[bytes, str]:
    """What is in one tree only, each rename being one entry less here and one more there, with what is below it."""
    result: dict[bytes, str] = {}
    for one in report.differences:
        if one.status in ("removed", "renamed"):
            result[one.old_path] = "removed"
    for one in report.differences:
        if one.status in ("added", "renamed"):
            assert one.path not in result
            result[one.path] = "added"
    for one in report.differences:
        if one.status == "renamed" and a[one.old_path]["type"] == "dir":
            below = [path.removeprefix(one.old_path) for path in a if path.startswith(one.old_path + b"/")]
            for rest in below:
                if one.path + rest in b:
                    result[one.old_path + rest] = "removed"
                    result[one.path + rest] = "added"
    return result


def changed(what: Expected) -> dict[bytes, frozenset[str]]:
    """In what entries differ, but for links: a file that was renamed is in both trees, too."""
    found = {path: aspects - {"links"} for path, (status, aspects) in what.items() if status == "changed"}
    return {path: aspects for path, aspects in found.items() if aspects}


def in_order(report: DiffReport) -> bool:
    ways = [one.path.split(b"/") for one in report.differences]
    return ways == sorted(ways)


def check(old: str, new: str, a: trees.Tree, b: trees.Tree) -> None:
    expected = compared(a, b)
    report = diff(old, new, renames=False)
    assert told(report) == expected
    assert in_order(report)
    assert report.is_same == (not expected)
    renamed = diff(old, new)
    one_sided = {path: status for path, (status, _) in expected.items() if status != "changed"}
    assert without_renames(renamed, a, b) == one_sided
    moved = {one.path for one in renamed.differences if one.old_path != one.path}
    in_place = {path: what for path, what in told(renamed).items() if path not in moved}
    assert changed(in_place) == changed(expected)
    for one in renamed.differences:
        if one.old_path != one.path:
            before, after = a[one.old_path], b[one.path]
            if before["type"] != after["type"]:
                assert one.status == "changed"
                assert set(one.aspects) - {"links"} == {"type"}
                continue
            same = {name for name, fields in FIELDS.items() if all(before.get(n) == after.get(n) for n in fields)}
            assert set(one.aspects) - {"links"} == FIELDS.keys() - same


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@slow
@given(seed=seeds)
def test_trees_and_images_of_them(options: dict[str, object], seed: int) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        work = Path(name)
        one, other, layout = work / "one", work / "other", work / "oci"
        one.mkdir()
        rnd = random.Random(seed)
        Editor(one, rnd).run(30)
        subprocess.run(["cp", "-a", one, other], check=True)
        Editor(other, rnd).run(rnd.choice((0, 3, 12)))
        if rnd.random() < 0.6:
            relink(other, rnd)
        build(one, f"{layout}:one", **options)  # type: ignore[arg-type]
        build(other, f"{layout}:other", **options)  # type: ignore[arg-type]
        with open_image(f"{layout}:one") as base:
            build_from_tree(other, base, "stacked", compression=options.get("compression"))  # type: ignore[arg-type]
        mtime = "timestamps" in options
        a, b = trees.on_disk(one, mtime=mtime), trees.on_disk(other, mtime=mtime)
        check(f"{layout}:one", f"{layout}:other", a, b)
        check(f"{layout}:one", f"{layout}:stacked", a, b)
        check(f"{layout}:stacked", f"{layout}:one", b, a)
        check(f"dir:{one}", f"{layout}:stacked", a, b)
        check(f"{layout}:other", f"dir:{one}", b, a)
        assert diff(f"{layout}:stacked", f"{layout}:other").is_same
        assert diff(f"dir:{other}", f"{layout}:stacked").is_same
        check(f"dir:{one}", f"dir:{other}", trees.on_disk(one, mtime=True), trees.on_disk(other, mtime=True))


@slow
@given(seed=seeds)
def test_stacks_of_layers(seed: int) -> None:
    """Layers on layers, compared with each other and over versions and compression."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        work = Path(name)
        root = work / "root"
        root.mkdir()
        rnd = random.Random(seed)
        editor = Editor(root, rnd)
        editor.run(30)
        kinds: list[dict[str, object]] = [{}, {"compression": True}, {"format_version": 1}, {"format_version": 2}]
        values = []
        for number in range(3):
            for index, options in enumerate(kinds):
                tag = f"{work}/oci{index}:l{number}"
                if number:
                    with open_image(f"{work}/oci{index}:l{number - 1}") as base:
                        build_from_tree(root, base, f"l{number}", compression=options.get("compression"))  # type: ignore[arg-type]
                else:
                    build(root, tag, **options)  # type: ignore[arg-type]
            values.append(trees.on_disk(root))
            editor.run(6)
            relink(root, rnd)
        for first, second in ((0, 2), (1, 2), (2, 0), (1, 1)):
            here, there = rnd.randrange(4), rnd.randrange(4)
            check(f"{work}/oci{here}:l{first}", f"{work}/oci{here}:l{second}", values[first], values[second])
            check(f"{work}/oci{here}:l{first}", f"{work}/oci{there}:l{second}", values[first], values[second])
