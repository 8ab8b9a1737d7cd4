"""``diff`` of random pairs of trees, against a comparison that knows nothing of images: trees as values."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import trees
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

FIELDS = {
    "content": ("size", "sha256"),
    "target": ("target",),
    "device": ("device",),
    "mode": ("permissions",),
    "owner": ("uid", "gid"),
    "xattrs": ("xattrs",),
    "mtime": ("mtime_ns",),
}

Expected = dict[bytes, tuple[str, frozenset[str]]]


def relink(root: Path, rnd: random.Random) -> None:
    """Make names of one file names of several, or the other way round, and move one: the editor rarely does."""
    files = sorted(path for path in root.rglob("*") if stat.S_ISREG(path.lstat().st_mode))
    for _ in range(3):
        if len(files) < 3:
            return
        kept, other, moved = rnd.sample(files, 3)
        other.unlink()
        if rnd.random() < 0.5:
            os.link(kept, other)
        else:
            shutil.copy2(kept, other)
        moved.rename(moved.with_name("moved"))
        files = sorted({*files, moved.with_name("moved")} - {moved})


def compared(old: trees.Tree, new: trees.Tree) -> Expected:
    """What differs, by path: in one tree only, or in what."""
    result: Expected = {path: ("removed", frozenset()) for path in old.keys() - new.keys()}
    result |= {path: ("added", frozenset()) for path in new.keys() - old.keys()}
    common = old.keys() & new.keys()
    links = linked_otherwise(old, new, common)
    for path in common:
        a, b = old[path], new[path]
        aspects = {"links"} if path in links else set()
        if a["type"] != b["type"]:
            aspects.add("type")
        else:
            aspects |= {aspect for aspect, names in FIELDS.items() if any(a.get(n) != b.get(n) for n in names)}
        if aspects:
            result[path] = ("changed", frozenset(aspects))
    return result


def linked_otherwise(old: trees.Tree, new: trees.Tree, common: set[bytes]) -> set[bytes]:
    """The paths whose files have other names, among those that both trees have."""
    files = {path for path in common if "dir" not in (old[path]["type"], new[path]["type"])}

    def names(tree: trees.Tree) -> dict[bytes, frozenset[bytes]]:
        groups: dict[bytes, set[bytes]] = defaultdict(set)
        for path in files:
            groups[tree[path].get("same_as", path)].add(path)
        return {path: frozenset(group) for group in groups.values() for path in group}

    before, after = names(old), names(new)
    return {path for path in files if before[path] != after[path]}


def told(report: DiffReport) -> Expected:
    result: Expected = {}
    for one in report.differences:
        path = one.path or b"."
        assert path not in result
        assert (one.before is None, one.after is None) == (one.status == "added", one.status == "removed")
        result[path] = (one.status, frozenset(one.aspects))
    return result


def without_renames(report: DiffReport) -> dict[bytes, str]:
    """What is in one tree only, each rename being one entry less here and one more there."""
    result: dict[bytes, str] = {}
    for one in report.differences:
        if one.status in ("removed", "renamed"):
            result[one.old_path] = "removed"
    for one in report.differences:
        if one.status in ("added", "renamed"):
            assert one.path not in result
            result[one.path] = "added"
    return result


def changed(what: Expected) -> dict[bytes, frozenset[str]]:
    """In what entries differ, but for links: a file that was renamed is in both trees, too."""
    found = {path: aspects - {"links"} for path, (status, aspects) in what.items() if status == "changed"}
    return {path: aspects for path, aspects in found.items() if aspects}


def in_order(report: DiffReport) -> bool:
    ways = [one.path.split(b"/") for one in report.differences]
    return ways == sorted(ways)


def _but_links_of_other_types(what: Expected) -> Expected:
    """Where the type is another one, whether the names that it shares are others, too, says nothing."""
    return {
        path: (status, aspects - {"links"} if "type" in aspects else aspects)
        for path, (status, aspects) in what.items()
    }


def check(old: str, new: str, a: trees.Tree, b: trees.Tree) -> None:
    expected = compared(a, b)
    report = diff(old, new, renames=False)
    assert _but_links_of_other_types(told(report)) == _but_links_of_other_types(expected)
    assert in_order(report)
    assert report.is_same == (not expected)
    renamed = diff(old, new)
    one_sided = {path: status for path, (status, _) in expected.items() if status != "changed"}
    assert without_renames(renamed) == one_sided
    assert changed(told(renamed)) == changed(expected)
    for one in renamed.differences:
        if one.status == "renamed":
            before, after = a[one.old_path], b[one.path]
            assert before["type"] == after["type"]
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
