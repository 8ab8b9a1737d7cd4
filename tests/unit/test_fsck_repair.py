"""Mending: what is damaged is made again from other layouts, from trees, or from the format itself."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.forge import Forge
from support.fsck_layouts import (
    DAMAGES,
    assert_clean,
    chunks_of,
    roles_of,
    write_tree,
)
from support.layouts import blobs_of, copy_layout, damaged, layouts_in

from puzzlefs.blobs import Layout
from puzzlefs.builder import build
from puzzlefs.convert import convert
from puzzlefs.digest import Digest
from puzzlefs.errors import InvalidArgumentError, NotFoundError, StorageError
from puzzlefs.extract import extract
from puzzlefs.fsck import State, fsck
from puzzlefs.fsck.report import RemarkKind
from puzzlefs.image import open_image

pytestmark = pytest.mark.unit


class TestRepairFromLayouts:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_every_kind_of_blob(self, layout: Path, pristine: tuple[Path, Path], damage: str, tmp_path: Path) -> None:
        before = blobs_of(layout)
        roles = roles_of(layout)
        names = [next(name for name, role in sorted(roles.items()) if role == wanted) for wanted in set(roles.values())]
        for name in names:
            damaged(layout / "blobs" / "sha256" / name, damage)
        empty = Forge(tmp_path / "empty", 3 if "manifest" in roles.values() else 1).path
        report = fsck(layout, repair=True, sources=[empty, pristine[0]])
        assert_clean(report)
        assert report.bytes == fsck(layout).bytes  # what was bad does not count, and nothing counts twice
        repaired = dict(report.repaired)
        assert set(repaired) == {f"sha256:{name}" for name in names}
        for name in names:
            source = "the format itself" if roles[name] == "config" else str(pristine[0])
            assert repaired[f"sha256:{name}"] == source
        assert blobs_of(layout) == before
        assert_clean(fsck(layout))

    def test_all_blobs_at_once(self, layout: Path, pristine: tuple[Path, Path]) -> None:
        """What a manifest names is known only when it is back."""
        before = blobs_of(layout)
        for name in before:
            (layout / "blobs" / "sha256" / name).unlink()
        assert_clean(fsck(layout, repair=True, sources=[pristine[0]]))
        assert blobs_of(layout) == before

    def test_bad_sources_are_not_trusted(self, layout: Path, pristine: tuple[Path, Path], tmp_path: Path) -> None:
        roles = roles_of(layout)
        name = next(name for name, role in sorted(roles.items()) if role == "chunk")
        path = layout / "blobs" / "sha256" / name
        good = path.read_bytes()
        sources = []
        for damage in ("flipped", "truncated", "link", "directory", "missing"):
            sources.append(tmp_path / damage)
            shutil.copytree(pristine[0], sources[-1])
            damaged(sources[-1] / "blobs" / "sha256" / name, damage)
        damaged(path, "flipped")
        bad = path.read_bytes()
        report = fsck(layout, repair=True, sources=sources)
        assert report.state is State.LOST
        assert report.repaired == ()
        assert [blob.digest for blob in report.bad] == [f"sha256:{name}"]
        assert path.read_bytes() == bad  # kept until there is something better
        assert set(os.listdir(layout / "blobs" / "sha256")) == set(roles)
        assert_clean(fsck(layout, repair=True, sources=[*sources, pristine[0]]))
        assert path.read_bytes() == good

    def test_a_good_blob_is_not_touched(self, layout: Path, pristine: tuple[Path, Path]) -> None:
        before = {path: path.stat().st_ino for path in (layout / "blobs" / "sha256").iterdir()}
        path = next(iter(sorted(before)))
        damaged(path, "flipped")
        fsck(layout, repair=True, sources=[pristine[0]])
        after = {path: path.stat().st_ino for path in (layout / "blobs" / "sha256").iterdir()}
        assert {name for name in before if before[name] != after[name]} == {path}

    def test_a_directory_with_files_in_it_is_kept(self, layout: Path, pristine: tuple[Path, Path]) -> None:
        path = next(iter(sorted((layout / "blobs" / "sha256").iterdir())))
        path.unlink()
        path.mkdir()
        (path / "mine").write_bytes(b"mine")
        assert_clean(fsck(layout, repair=True, sources=[pristine[0]]))
        assert path.is_file()
        (kept,) = (layout / "blobs" / "sha256").glob(".tmp-*/mine")
        assert kept.read_bytes() == b"mine"

    def test_what_goes_wrong_in_the_middle_changes_nothing(
        self, layout: Path, pristine: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths = sorted((layout / "blobs" / "sha256").iterdir())[:3]
        for path in paths:
            damaged(path, "flipped")
        before = blobs_of(layout)
        real = os.rename

        def rename(source: str, target: str, **named: Any) -> None:
            if target == paths[1].name:
                raise OSError(5, "Input/output error")
            real(source, target, **named)

        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(StorageError):
            fsck(layout, repair=True, sources=[pristine[0]])
        monkeypatch.undo()
        after = blobs_of(layout)
        assert set(after) == set(before)
        assert all(after[name] == before[name] or Digest.of(after[name]).hex() == name for name in before)
        assert_clean(fsck(layout, repair=True, sources=[pristine[0]]))

    def test_arguments(self, layout: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgumentError):
            fsck(layout, sources=[layout])
        with pytest.raises(NotFoundError):
            fsck(layout, repair=True, sources=[tmp_path / "none"])
        with pytest.raises(NotFoundError):
            fsck(layout, repair=True, trees=[tmp_path / "none"])
        with pytest.raises(InvalidArgumentError):
            fsck(layout, workers=0)
        with pytest.raises(NotFoundError):
            fsck(tmp_path / "none")


class TestRepairFromTrees:
    @pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
    def test_every_chunk(self, layout: Path, pristine: tuple[Path, Path], damage: str) -> None:
        before = blobs_of(layout)
        with open_image(f"{layout}:one") as image:
            wanted = chunks_of(image)
        assert len(wanted) > 8
        for name in wanted:
            damaged(layout / "blobs" / "sha256" / name, damage)
        report = fsck(layout, repair=True, trees=[pristine[1]])
        assert_clean(report)
        assert {digest for digest, _ in report.repaired} == {f"sha256:{name}" for name in wanted}
        assert str(pristine[1]) in report.repaired[0][1]
        assert blobs_of(layout) == before

    def test_chunks_that_only_a_lower_layer_shows(self, layout: Path, pristine: tuple[Path, Path]) -> None:
        """The tree that the delta shows has not got the file any more; the tree below has."""
        index = json.loads((layout / "index.json").read_text())
        index["manifests"] = index["manifests"][2:]
        (layout / "index.json").write_text(json.dumps(index))
        with open_image(f"{layout}:delta") as image:
            (ino,) = (entry.ino for entry in image.tree.entries(image.tree.root) if entry.name == b"sub")
            assert b"5" not in [entry.name for entry in image.tree.entries(ino)]
            is_listed = image.manifest is not None
        with open_image(f"{pristine[0]}:one") as image:
            wanted = chunks_of(image)
        before = blobs_of(layout)
        for name in wanted:
            (layout / "blobs" / "sha256" / name).unlink()
        report = fsck(layout, repair=True, trees=[pristine[1]])
        assert_clean(report)
        missing = set(before) - set(blobs_of(layout))
        assert missing <= wanted
        if is_listed:  # tools that copy images want all of them
            assert not missing
        else:
            assert {remark.kind for remark in report.remarks} == {RemarkKind.NOT_NEEDED}

    def test_metadata_and_chunks(self, layout: Path, pristine: tuple[Path, Path], tmp_path: Path) -> None:
        """The manifest comes from a layout that has no chunk, and the chunks from the tree."""
        before = blobs_of(layout)
        roles = roles_of(layout)
        source = tmp_path / "source"
        shutil.copytree(pristine[0], source)
        with open_image(f"{layout}:one") as image:
            wanted = chunks_of(image)
        for name, role in roles.items():
            if role != "chunk" or name in wanted:
                (layout / "blobs" / "sha256" / name).unlink()
            if role == "chunk":
                (source / "blobs" / "sha256" / name).unlink()
        assert_clean(fsck(layout, repair=True, sources=[source], trees=[pristine[1]]))
        assert blobs_of(layout) == before

    def test_a_tree_that_changed_is_not_trusted(
        self, layout: Path, pristine: tuple[Path, Path], tmp_path: Path
    ) -> None:
        tree = tmp_path / "tree"
        shutil.copytree(pristine[1], tree, symlinks=True)
        data = bytearray((tree / "sub" / "1").read_bytes())
        data[100] ^= 1
        (tree / "sub" / "1").write_bytes(data)
        (tree / "sub" / "2").unlink()
        (tree / "sub" / "2").symlink_to(pristine[1] / "sub" / "2")  # leads out of the tree
        before = blobs_of(layout)
        with open_image(f"{layout}:one") as image:
            for name in chunks_of(image):
                (layout / "blobs" / "sha256" / name).unlink()
        report = fsck(layout, repair=True, trees=[tree])
        assert report.state is State.LOST
        assert 0 < len(report.bad) < len(report.repaired)
        hit = {path for blob in report.bad for entry in blob.hits for path in entry.files}
        assert {b"/sub/1", b"/sub/2"} <= hit
        assert all(before[name] == data for name, data in blobs_of(layout).items())
        assert_clean(fsck(layout, repair=True, trees=[tree, pristine[1]]))

    def test_another_name_of_the_same_bytes(self, tmp_path: Path) -> None:
        """Two files share a chunk, and one of them has changed."""
        noise = random.Random(1).randbytes(200_000)
        tree = tmp_path / "tree"
        tree.mkdir()
        for name in ("a", "b"):
            (tree / name).write_bytes(noise)
        layout = tmp_path / "oci"
        build(tree, f"{layout}:t", compression=True)
        before = blobs_of(layout)
        with open_image(f"{layout}:t") as image:
            wanted = chunks_of(image)
        for changed in ("a", "b"):
            for name in wanted:
                (layout / "blobs" / "sha256" / name).unlink()
            (tree / changed).write_bytes(noise[::-1])
            assert_clean(fsck(layout, repair=True, trees=[tree]))
            assert blobs_of(layout) == before
            (tree / changed).write_bytes(noise)

    def test_images_of_the_original(self, vectors: Path, tmp_path: Path) -> None:
        """Its frames of 4 KiB, and its deltas."""
        repaired = 0
        for name in layouts_in(vectors):
            layout = tmp_path / name
            copy_layout(vectors / name, layout)
            before = blobs_of(layout)
            with Layout.open(layout) as opened:
                tags = opened.read_index().tags()
            wanted: set[str] = set()
            for tag in tags:
                extract(f"{layout}:{tag}", tmp_path / f"{name}-{tag}")
                with open_image(f"{layout}:{tag}") as image:
                    wanted |= chunks_of(image)
            for chunk in wanted:
                (layout / "blobs" / "sha256" / chunk).unlink()
            report = fsck(layout, repair=True, trees=[tmp_path / f"{name}-{tag}" for tag in tags])
            assert_clean(report)
            assert blobs_of(layout) == before
            repaired += len(report.repaired)
        assert repaired > 100

    def test_converted_images(self, tmp_path: Path) -> None:
        """Their frames are those of another version."""
        tree = write_tree(tmp_path / "tree")
        for version, to in ((1, 3), (3, 1)):
            layout = tmp_path / f"{version}-{to}"
            build(tree, f"{tmp_path}/{version}:t", format_version=version, compression=True)
            convert(f"{tmp_path}/{version}:t", f"{layout}:t", format_version=to)
            before = blobs_of(layout)
            with open_image(f"{layout}:t") as image:
                for name in chunks_of(image):
                    (layout / "blobs" / "sha256" / name).unlink()
            assert_clean(fsck(layout, repair=True, trees=[tree]))
            assert blobs_of(layout) == before
