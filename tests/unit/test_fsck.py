"""Checking: every kind of damage to every kind of blob is found, and named with what it hits."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.examine import limited
from support.forge import Forge
from support.fsck_layouts import (
    DAMAGES,
    TAGS,
    assert_clean,
    chunks_of,
    roles_of,
    unreadable_files,
    write_tree,
)
from support.layouts import blobs_of, damaged, layouts_in

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder import build
from puzzlefs.digest import Digest
from puzzlefs.errors import PuzzlefsError, TagNotFoundError
from puzzlefs.fsck import Fault, FsckReport, State, fsck
from puzzlefs.fsck.report import RemarkKind
from puzzlefs.image import open_image
from puzzlefs.oci import Descriptor, media_types, parse_reference
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit


class TestCheck:
    def test_a_sound_layout(self, layout: Path) -> None:
        before = blobs_of(layout)
        for quick in (False, True):
            report = fsck(layout, quick=quick)
            assert_clean(report, images=("one", "two", "delta"), blobs=len(before), unreachable_blobs=0, remarks=())
            assert report.bytes == (0 if quick else sum(map(len, before.values())))
        assert blobs_of(layout) == before

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_every_kind_of_blob(self, layout: Path, pristine: tuple[Path, Path], damage: str) -> None:
        """Exactly that blob is bad, in exactly those images, and hits exactly the files that cannot be read."""
        roles = roles_of(layout)
        chosen: dict[str, list[str]] = {}
        for name, role in sorted(roles.items()):
            chosen.setdefault(role, []).append(name)
        for role, names in chosen.items():
            for name in names[:: max(1, len(names) // 3)]:
                path = layout / "blobs" / "sha256" / name
                whole = path.read_bytes()
                damaged(path, damage)
                report = fsck(layout)
                (bad,) = report.bad
                assert (bad.digest, bad.role) == (f"sha256:{name}", role)
                assert bad.fault in (DAMAGES[damage], Fault.CORRUPT if DAMAGES[damage] is Fault.WRONG_SIZE else None)
                assert report.state is State.REPAIRABLE
                if role == "chunk":
                    hits = {hit.image: set(hit.files) for hit in bad.hits}
                    assert not any(hit.is_whole for hit in bad.hits)
                    for tag in TAGS:
                        assert hits.get(tag, set()) == unreadable_files(f"{layout}:{tag}")
                elif role != "config":
                    assert all(hit.is_whole for hit in bad.hits)
                    for tag in TAGS:
                        try:
                            open_image(f"{layout}:{tag}").close()
                        except PuzzlefsError:
                            assert tag in [hit.image for hit in bad.hits]
                        else:
                            assert tag not in [hit.image for hit in bad.hits]
                quick = fsck(layout, quick=True)
                if damage in ("missing", "empty", "directory", "link", "fifo") or role not in ("chunk", "config"):
                    assert [blob.digest for blob in quick.bad] == [bad.digest]
                elif damage == "flipped":
                    assert_clean(quick)
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
                path.write_bytes(whole)
        assert_clean(fsck(layout))

    def test_one_image(self, layout: Path) -> None:
        roles = roles_of(layout)
        with open_image(f"{layout}:two") as image:
            manifest = image.layout.blob_path(image.manifest_digest)
        assert roles[manifest.name] in ("manifest", "rootfs")
        manifest.unlink()
        assert_clean(fsck(parse_reference(f"{layout}:one")), images=("one",), unreachable_blobs=None)
        (bad,) = fsck(parse_reference(f"{layout}:two")).bad
        assert bad.digest == f"sha256:{manifest.name}"
        report = fsck(layout)
        assert report.unreachable_blobs is None  # who knows what it names
        with pytest.raises(TagNotFoundError):
            fsck(parse_reference(f"{layout}:three"))

    def test_garbage_and_left_over_files(self, layout: Path) -> None:
        blobs = layout / "blobs" / "sha256"
        (blobs / Digest.of(b"garbage").hex()).write_bytes(b"garbage")
        (blobs / ("f" * 64)).write_bytes(b"bad garbage")
        (blobs / ".tmp-1234567890abcdef-1").write_bytes(b"123")
        (layout / ".tmp-index.json-1").write_bytes(b"4")
        for quick in (False, True):
            report = fsck(layout, quick=quick)
            assert_clean(report, unreachable_blobs=2, unreachable_bytes=18, left_over_files=2, left_over_bytes=4)

    def test_progress(self, layout: Path) -> None:
        seen: list[tuple[int, int]] = []
        report = fsck(layout, progress=lambda done, total: seen.append((done, total)))
        assert seen == sorted(seen)
        assert seen[-1] == (report.bytes, report.bytes)

    def test_an_image_that_is_removed_meanwhile(self, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its blobs may be gone, and nothing is wrong."""
        from puzzlefs.fsck import check

        with open_image(f"{layout}:two") as image:
            manifest = image.layout.blob_path(image.manifest_digest)
        real = check.Surveyor.add_entries

        def add_entries(self: Any, descriptors: Any) -> None:
            index = json.loads((layout / "index.json").read_text())
            del index["manifests"][1]
            (layout / "index.json").write_text(json.dumps(index))
            manifest.unlink()
            real(self, descriptors)

        monkeypatch.setattr(check.Surveyor, "add_entries", add_entries)
        assert_clean(fsck(layout))


def test_images_of_the_original(vectors: Path, tmp_path: Path) -> None:
    """Deltas, compressed images with their other digests: all clean, and said so."""
    remarked = 0
    for name in layouts_in(vectors):
        for quick in (False, True):
            report = fsck(vectors / name, quick=quick)
            assert_clean(report, unreachable_blobs=0)
            kinds = {remark.kind for remark in report.remarks}
            wanted = {RemarkKind.VERITY_OF_OTHER_BYTES} if name.endswith("zstd") and not quick else set()
            assert kinds == wanted
            remarked += len(report.remarks)
    assert remarked > 5


class TestOtherImages:
    def test_nested_indexes_and_several_names(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "tree"), f"{layout}:a")
        with Layout.open(layout) as opened, BlobWriter(opened) as writer:
            (entry,) = opened.read_index().manifests
            inner = json.dumps({"schemaVersion": 2, "manifests": [entry.to_json()]}).encode()
            digest = writer.put(inner)
            writer.commit()
            nested = Descriptor(media_types.INDEX, digest, len(inner), {media_types.REF_NAME: "nested"})
            again = entry._replace(annotations={media_types.REF_NAME: "b"})
            opened.update_index(lambda index: index._replace(manifests=(*index.manifests, again, nested)))
        assert_clean(fsck(layout), images=("a", "b", "nested"), unreachable_blobs=0)
        with open_image(f"{layout}:a") as image:
            name = min(chunks_of(image))
        (layout / "blobs" / "sha256" / name).unlink()
        (bad,) = fsck(layout).bad
        assert [hit.image for hit in bad.hits] == ["a", "b", "nested"]
        assert len({hit.files for hit in bad.hits}) == 1
        (layout / "blobs" / "sha256" / digest.hex()).unlink()
        assert [blob.role for blob in fsck(layout).bad] == ["index", "chunk"]

    def test_images_of_other_programs(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "oci")
        layer, config = forge.blob(b"layer.tar"), forge.blob(b"{ }")
        manifest = {
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.oci, "size": 3},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.oci, "size": 9}],
        }
        forge.raw_manifest(json.dumps(manifest).encode())
        report = fsck(forge.path)
        assert_clean(report, unreachable_blobs=0)
        assert [remark.kind for remark in report.remarks] == [RemarkKind.OTHER_IMAGE]
        damaged(forge.blob_path(layer), "flipped")
        assert [(blob.role, blob.fault) for blob in fsck(forge.path).bad] == [("layer", Fault.CORRUPT)]

    def test_sizes_of_release_0_2_0(self, tmp_path: Path) -> None:
        """Descriptors of compressed chunks have the size of the content: a remark, quick or not."""
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "tree"), f"{layout}:t", compression=True)
        with open_image(f"{layout}:t") as image:
            assert image.manifest is not None
            manifest = json.loads(image.manifest.encode())
            sizes: dict[str, int] = {}
            for table in image.rootfs.metadata_layers:
                for inode in table:
                    for part in getattr(inode.content, "chunks", ()):
                        key = part.blob.digest.oci
                        sizes[key] = max(sizes.get(key, 0), part.blob.offset + part.length)
        for layer in manifest["layers"][1:]:
            layer["size"] = sizes[layer["digest"]]
        Forge(layout).raw_manifest(json.dumps(manifest).encode())
        assert_clean(fsck(layout, quick=True))
        report = fsck(layout)
        assert_clean(report)
        assert [remark.kind for remark in report.remarks] == [RemarkKind.DESCRIPTOR_SIZE]

    def test_indexes_without_end(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "oci")
        below = forge.blob(b'{"schemaVersion":2,"manifests":[]}')
        for _ in range(10):
            entry = {"mediaType": media_types.INDEX, "digest": below.oci, "size": 1}
            below = forge.blob(json.dumps({"schemaVersion": 2, "manifests": [entry] * 100}).encode())
        forge.raw_index(forge.index(below, 1, media_types.INDEX))
        report: FsckReport = limited(lambda: fsck(forge.path), seconds=30)
        assert report.state is State.LOST
        assert "indexes lead to" in report.malformed[0].message


class TestCommand:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        build(write_tree(tmp_path / "tree"), f"{tmp_path}/oci:t")
        shutil.copytree(tmp_path / "oci", tmp_path / "backup")
        return tmp_path / "oci"

    def chunk(self, layout: Path) -> Path:
        with open_image(f"{layout}:t") as image:
            return image.layout.blob_path(image.tree.plan(*self.place(image)).pieces[0].blob)

    def place(self, image: Any) -> tuple[int, int, int]:
        return image.tree.lookup(image.tree.root, b"a small one").ino, 0, 1

    def test_clean(self, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
        count = len(blobs_of(image))
        assert main(["fsck", str(image)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"clean: 1 image, {count} blobs, ")
        assert main(["fsck", f"{image}:t", "--quick"]) == 0
        assert "contents were not read" in capsys.readouterr().out
        assert main(["fsck", "-q", str(image), "t"]) == 0
        assert capsys.readouterr() == ("", "")

    def test_damage_and_repair(self, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = self.chunk(image)
        damaged(path, "flipped")
        assert main(["fsck", str(image)]) == 5
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith(f"corrupt: chunk sha256:{path.name} (sha256:")
        assert "  hits t: '/a small one'" in out
        assert out[-1].startswith("repairable: 1 image, ")
        assert "; 1 blob is bad: puzzlefs fsck --repair" in out[-1]
        assert main(["fsck", str(image), "--repair"]) == 4
        assert capsys.readouterr().out.splitlines()[-1].startswith("lost: ")
        assert main(["fsck", str(image), "--repair", "--from", str(image.parent / "backup")]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[0] == f"repaired: sha256:{path.name}, from {image.parent / 'backup'}"
        assert out[-1].startswith("clean: ")
        path.unlink()
        tree = image.parent / "tree"
        assert main(["fsck", "--repair", "--from-rootfs", str(tree), "--from", str(image), str(image), "t"]) == 0
        assert str(tree) in capsys.readouterr().out
        assert main(["fsck", str(image)]) == 0

    def test_numbers_of_things(self, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
        roles = roles_of(image, ("t",))
        chunk, other = [name for name, role in roles.items() if role == "chunk"][:2]
        (image / "blobs" / "sha256" / ("a" * 64)).write_bytes(b"x")
        (image / "blobs" / "sha256" / chunk).unlink()
        assert main(["fsck", "--quick", str(image)]) == 5
        out = capsys.readouterr().out.splitlines()
        assert out[-2] == "note: 1 blob (1 B) is in no image: puzzlefs gc removes it"
        assert out[-1].startswith(f"repairable: 1 image, {len(roles)} blobs; 1 blob is bad: ")
        (image / "blobs" / "sha256" / other).unlink()
        (image / "blobs" / "sha256" / ("b" * 64)).write_bytes(b"x")
        for number in range(2):
            (image / "blobs" / "sha256" / f".tmp-{number}").touch()
        assert main(["fsck", str(image), "--quick", "--repair"]) == 4
        out = capsys.readouterr().out.splitlines()
        assert out[-3] == "note: 2 blobs (2 B) are in no image: puzzlefs gc removes them"
        assert out[-2] == "note: 2 temporary files (0 B) were left behind: puzzlefs gc removes them"
        assert out[-1] == f"lost: 1 image, {len(roles)} blobs; 2 blobs are bad, 0 places malformed: build it again"

    def test_json(self, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = self.chunk(image)
        path.unlink()
        assert main(["fsck", "--json", str(image)]) == 5
        report = json.loads(capsys.readouterr().out)
        assert list(report) == [
            *("state", "quick", "images", "blobs", "bytes", "inodes", "bad", "malformed", "remarks"),
            *("unreachable_blobs", "unreachable_bytes", "left_over_files", "left_over_bytes", "repaired", "seconds"),
        ]
        (bad,) = report["bad"]
        assert bad["digest"] == f"sha256:{path.name}"
        assert (report["state"], bad["fault"], bad["role"]) == ("repairable", "missing", "chunk")
        assert bad["hits"][0]["image"] == "t"
        assert "/a small one" in bad["hits"][0]["files"]

    def test_malformed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        forge = Forge(tmp_path / "oci")
        forge.image([f.directory(1, {b"a\n\xff": 9})])
        assert main(["fsck", str(forge.path)]) == 4
        out = capsys.readouterr().out
        assert out.startswith(f"malformed: {f.TAG}: ")
        assert "\\377" in out
        assert len(out.splitlines()) == 2
        assert main(["fsck", str(forge.path), "--json"]) == 4
        assert json.loads(capsys.readouterr().out)["malformed"][0]["path"] == os.fsdecode(b"/a\n\xff")

    def test_errors(self, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fsck", str(image.parent / "none")]) == 3
        assert main(["fsck", f"{image}:none"]) == 3
        assert main(["fsck", "a", "b", "c"]) == 2
        assert main(["fsck", str(image), "--from", str(image)]) == 2
        (image / "index.json").write_bytes(b"{")
        assert main(["fsck", str(image)]) == 4


def test_a_check_is_the_same_with_any_number_of_threads(layout: Path) -> None:
    for name in sorted(blobs_of(layout))[::5]:
        damaged(layout / "blobs" / "sha256" / name, "flipped")
    one, many = (fsck(layout, workers=workers) for workers in (1, 6))
    assert replace(one, seconds=0.0) == replace(many, seconds=0.0)
    assert one.bad
