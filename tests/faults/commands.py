"""The commands that change a layout, each with trees and layouts for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from stage import Case, make_tree, tar_of

from puzzlefs.builder import build
from puzzlefs.copy_image import copy_all
from puzzlefs.delta import build_from_tree
from puzzlefs.image import open_image
from puzzlefs.tags import untag
from puzzlefs_cli.exit_codes import ExitCode


class Stage:
    """Trees and layouts for the commands: ``images`` is what they change."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.old = make_tree(place / "old", 1)
        self.new = make_tree(place / "new", 2)
        shutil.copy(self.old / "file-0", self.new / "kept")
        self.layout = place / "images"
        self.with_build("old", self.old)

    def with_build(self, tag: str, tree: Path, *, format_version: int = 3, layout: Path | None = None) -> Path:
        """Build an image."""
        layout = layout or self.layout
        build(tree, f"{layout}:{tag}", format_version=format_version, workers=1)
        return layout


def build_case(stage: Stage) -> Case:
    return Case("build", ["build", "--no-cache", stage.new, f"{stage.layout}:new"], stage.layout)


def build_over_a_tag_case(stage: Stage) -> Case:
    return Case("build", ["build", "--no-cache", "-c", stage.new, f"{stage.layout}:old"], stage.layout)


def build_new_layout_case(stage: Stage) -> Case:
    layout = stage.place / "fresh"
    return Case("build", ["build", "--no-cache", stage.new, f"{layout}:new"], layout, makes_layout=True)


def build_v1_case(stage: Stage) -> Case:
    layout = stage.with_build("old", stage.old, format_version=1, layout=stage.place / "images-1")
    return Case("build", ["build", "--no-cache", "--format-version=1", stage.new, f"{layout}:new"], layout)


def build_with_cache_case(stage: Stage) -> Case:
    words = ["build", "--cache", stage.place / "cache", stage.new, f"{stage.layout}:new"]
    return Case("build", words, stage.layout)


def build_checking_case(stage: Stage) -> Case:
    words = ["build", "--no-cache", "--check-existing", stage.new, f"{stage.layout}:new"]
    return Case("build", words, stage.layout)


def build_base_layer_case(stage: Stage) -> Case:
    words = ["build", "--base-layer", "old", stage.new, f"{stage.layout}:new"]
    return Case("build", words, stage.layout)


def copy_case(stage: Stage) -> Case:
    other = stage.with_build("new", stage.new, layout=stage.place / "other")
    return Case("copy", ["copy", f"{other}:new", stage.layout], stage.layout)


def copy_all_case(stage: Stage) -> Case:
    other = stage.with_build("new", stage.new, layout=stage.place / "other")
    stage.with_build("old-again", stage.old, layout=other)
    for path in (other / "blobs" / "sha256").iterdir():
        path.chmod(0o666)  # such a blob is not linked
    return Case("copy", ["copy", "--all", other, stage.layout], stage.layout)


def gc_case(stage: Stage) -> Case:
    stage.with_build("new", stage.new)
    untag(f"{stage.layout}:new")
    return Case("gc", ["gc", "--grace=0", stage.layout], stage.layout)


def gc_untagged_case(stage: Stage) -> Case:
    other = stage.with_build("new", stage.new, layout=stage.place / "other")
    build(stage.new, f"{other}:second", format_version=3, compression=True, workers=1)
    copy_all(other, stage.layout)
    index = (stage.layout / "index.json").read_text()
    (stage.layout / "index.json").write_text(index.replace(".ref.name", ".ref.none", 1))
    return Case("gc", ["gc", "--grace=0", "--untagged", stage.layout], stage.layout)


def import_case(stage: Stage) -> Case:
    archive = tar_of(stage.new, stage.place / "new.tar")
    return Case("import", ["import", "-f", archive, f"{stage.layout}:new"], stage.layout)


def import_compressed_case(stage: Stage) -> Case:
    archive = tar_of(stage.new, stage.place / "new.tar.gz", "-z")
    return Case("import", ["import", f"{stage.layout}:new"], stage.layout, stdin=archive)


def _damage(layout: Path) -> frozenset[str]:
    blobs = sorted((layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    chosen = [blobs[-1], blobs[-2], blobs[-3]]
    chosen[0].unlink()
    chosen[1].write_bytes(chosen[1].read_bytes()[:-1])
    chosen[2].write_bytes(b"x" + chosen[2].read_bytes()[1:])
    return frozenset(path.name for path in chosen)


def repair_from_case(stage: Stage) -> Case:
    good = stage.place / "good"
    copy_all(stage.layout, good)
    for path in (good / "blobs" / "sha256").iterdir():  # what is linked would be damaged, too
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    words = ["fsck", "--quiet", "--repair", "--from", good, stage.layout]
    # of a fault in reading, the report says what cannot be read
    codes = frozenset({int(ExitCode.INTEGRITY), int(ExitCode.BAD_IMAGE)})
    return Case("fsck", words, stage.layout, bad=_damage(stage.layout), codes=codes)


def repair_from_rootfs_case(stage: Stage) -> Case:
    words = ["fsck", "--quiet", "--repair", "--from-rootfs", stage.old, stage.layout]
    codes = frozenset({int(ExitCode.INTEGRITY), int(ExitCode.BAD_IMAGE)})
    return Case("fsck", words, stage.layout, bad=_damage(stage.layout), codes=codes)


def convert_case(stage: Stage) -> Case:
    layout = stage.with_build("old", stage.old, format_version=1, layout=stage.place / "images-1")
    return Case(
        "convert", ["convert", "--format-version=3", f"{layout}:old", f"{stage.layout}:converted"], stage.layout
    )


def canonicalize_case(stage: Stage) -> Case:
    with open_image(f"{stage.layout}:old") as base:
        build_from_tree(stage.new, base, "layered", workers=1)
    words = ["canonicalize", f"{stage.layout}:layered", "canonical"]
    return Case("canonicalize", words, stage.layout)


def tag_case(stage: Stage) -> Case:
    return Case("tag", ["tag", f"{stage.layout}:old", "older"], stage.layout)


def untag_case(stage: Stage) -> Case:
    stage.with_build("new", stage.new)
    return Case("untag", ["untag", f"{stage.layout}:new"], stage.layout, has_no_again=True)


CASES: dict[str, Callable[[Stage], Case]] = {
    "build": build_case,
    "build-over-a-tag": build_over_a_tag_case,
    "build-new-layout": build_new_layout_case,
    "build-v1": build_v1_case,
    "build-with-cache": build_with_cache_case,
    "build-check-existing": build_checking_case,
    "build-base-layer": build_base_layer_case,
    "copy": copy_case,
    "copy-all": copy_all_case,
    "gc": gc_case,
    "gc-untagged": gc_untagged_case,
    "import": import_case,
    "import-compressed": import_compressed_case,
    "repair-from": repair_from_case,
    "repair-from-rootfs": repair_from_rootfs_case,
    "convert": convert_case,
    "canonicalize": canonicalize_case,
    "tag": tag_case,
    "untag": untag_case,
}
