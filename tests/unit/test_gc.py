"""Garbage collection: what is needed stays, whoever needs it and whatever it is; everything else goes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support import trees
from support.forge import Forge
from support.layouts import blob_names, copy_layout, damaged, layouts_in, shown
from support.sharing_trees import KINDS, write_tree

from puzzlefs import collect
from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.blobs.lease import Lease, Root
from puzzlefs.builder import StorageOptions, build
from puzzlefs.collect import collect_garbage
from puzzlefs.digest import Digest
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    NotFoundError,
    PuzzlefsError,
)
from puzzlefs.image import open_image
from puzzlefs.oci import Descriptor, Dialect, media_types
from puzzlefs.tags import untag
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit


def add_entry(layout: Path, descriptor: Descriptor) -> None:
    with Layout.open(layout) as opened:
        opened.update_index(lambda index: index._replace(manifests=(*index.manifests, descriptor)))


@pytest.fixture(params=KINDS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


class TestWhatGoes:
    def test_what_only_a_removed_tag_needed(self, tmp_path: Path, options: dict[str, Any]) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a", **options)
        only_a = blob_names(layout)
        build(write_tree(tmp_path / "b", 2), f"{layout}:b", **options)
        both = blob_names(layout)
        report = collect_garbage(layout, grace=0)
        assert (report.removed_blobs, report.kept_blobs, report.young_blobs) == (0, len(both), 0)
        assert blob_names(layout) == both
        untag(f"{layout}:a")
        sizes = {path.name: path.stat().st_size for path in (layout / "blobs" / "sha256").iterdir()}
        report = collect_garbage(layout, grace=0)
        left = blob_names(layout)
        assert shown(f"{layout}:b") == trees.on_disk(tmp_path / "b")
        assert left < both
        assert left & only_a  # what both have stays
        # Exactly what a layout with that image alone holds.
        build(tmp_path / "b", f"{tmp_path}/alone:b", **options)
        assert left == blob_names(tmp_path / "alone")
        assert report.removed_blobs == len(both - left)
        assert report.removed_bytes == sum(sizes[name] for name in both - left)
        assert (report.kept_blobs, report.kept_bytes) == (len(left), sum(sizes[name] for name in left))

    def test_everything_if_there_is_no_entry(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        untag(f"{layout}:a")
        assert collect_garbage(layout, grace=0).kept_blobs == 0
        assert blob_names(layout) == set()
        build(tmp_path / "a", f"{layout}:a")
        assert shown(f"{layout}:a") == trees.on_disk(tmp_path / "a")

    def test_a_dry_run_says_the_same_and_touches_nothing(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        build(write_tree(tmp_path / "b", 2), f"{layout}:b")
        add_entry(layout, Layout.open(layout).read_index().manifests[0]._replace(annotations=None))
        untag(f"{layout}:a")
        (layout / "blobs" / "sha256" / ".tmp-0000000000000000-1").write_bytes(b"left over")
        before = {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()}
        dry = collect_garbage(layout, grace=0, untagged=True, dry_run=True)
        assert {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()} == before
        wet = collect_garbage(layout, grace=0, untagged=True)
        assert dry.removed_blobs > 5
        assert dry.dropped_entries == 1
        assert (dry.temporary_files, dry.temporary_bytes) == (1, 9)
        assert replace(dry, dry_run=False, seconds=wet.seconds) == wet

    @pytest.mark.parametrize("version", [1, 3])
    def test_entries_without_a_tag(self, tmp_path: Path, version: int) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a", format_version=version)
        build(write_tree(tmp_path / "b", 2), f"{layout}:b", format_version=version)
        with Layout.open(layout) as opened:
            opened.update_index(
                lambda index: index._replace(
                    manifests=(index.manifests[0]._replace(annotations={}), *index.manifests[1:])
                )
            )
        everything = blob_names(layout)
        assert collect_garbage(layout, grace=0).removed_blobs == 0
        assert blob_names(layout) == everything
        report = collect_garbage(layout, grace=0, untagged=True)
        assert report.dropped_entries == 1
        assert report.removed_blobs == len(everything - blob_names(layout)) > 5
        with Layout.open(layout) as opened:
            index = opened.read_index()
            assert (len(index.manifests), index.tags()) == (1, ["b"])
        assert shown(f"{layout}:b") == trees.on_disk(tmp_path / "b")

    def test_left_over_temporary_files(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        blobs = layout / "blobs" / "sha256"
        good = blob_names(layout)
        (blobs / ".tmp-1111111111111111-1").write_bytes(b"x" * 10)
        (blobs / ".lease-2222222222222222").write_bytes(b"blob of a build that was killed\n")
        (layout / ".tmp-index.json-123").write_bytes(b"x" * 5)
        (layout / "mine.txt").write_bytes(b"not ours")
        (blobs / "notes").write_bytes(b"not ours")
        with Layout.open(layout) as opened, BlobWriter(opened) as writer:
            writer.put(b"under way")
            (mine,) = (name for name in os.listdir(blobs) if name.startswith(".tmp-") and "1111" not in name)
            young = collect_garbage(layout)  # with an hour of grace
            assert (young.temporary_files, young.leases) == (0, 1)
            report = collect_garbage(layout, grace=0)
            assert (report.temporary_files, report.temporary_bytes, report.leases) == (2, 15, 1)
            assert (blobs / mine).exists()
            writer.commit()
        assert blob_names(layout) == good | {"notes", Digest.of(b"under way").hex()}
        assert sorted(os.listdir(layout)) == ["blobs", "index.json", "mine.txt", "oci-layout"]

    def test_what_is_no_file_is_left_alone(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        untag(f"{layout}:a")
        blobs = layout / "blobs" / "sha256"
        outside = tmp_path / "outside"
        outside.write_bytes(b"mine")
        (blobs / ("0" * 64)).symlink_to(outside)
        (blobs / ("1" * 64)).mkdir()
        os.mkfifo(blobs / ".lease-1")
        (blobs / ".lease-2").symlink_to(outside)
        collect_garbage(layout, grace=0)
        assert blob_names(layout) == {"0" * 64, "1" * 64}
        assert outside.read_bytes() == b"mine"


class TestWhatStays:
    def test_vectors(self, tmp_path: Path, vectors: Path, expected: dict[str, Any]) -> None:
        """Images of the original: deltas, compressed ones, all versions."""
        checked = 0
        for name in layouts_in(vectors):
            layout = tmp_path / name
            copy_layout(vectors / name, layout)
            with Layout.open(layout) as opened:
                tags = opened.read_index().tags()
            before = {tag: shown(f"{layout}:{tag}") for tag in tags}
            collect_garbage(layout, grace=0, untagged=True)
            for tag in tags:
                assert shown(f"{layout}:{tag}") == before[tag]
                checked += 1
            for tag in tags[1:]:
                untag(f"{layout}:{tag}")
            assert collect_garbage(layout, grace=0).removed_blobs > 0
            assert shown(f"{layout}:{tags[0]}") == before[tags[0]]
        assert checked > 10

    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("compressed", [False, True])
    def test_chunks_that_only_inodes_name(self, tmp_path: Path, version: int, compressed: bool) -> None:
        """No manifest and no list of verity digests does; and a hidden inode counts, too."""
        forge = Forge(tmp_path / "oci", version)
        seen, hidden = (forge.chunk(text * 500, compressed=compressed) for text in (b"seen", b"hidden"))
        forge.image(
            [f.directory(1, {b"seen": 2}), f.regular(2, seen)], [f.directory(1, {b"x": 3}), f.regular(3, hidden)]
        )
        garbage = forge.blob(b"garbage" * 1000)
        report = collect_garbage(forge.path, grace=0)
        assert report.removed_blobs == 1
        assert not forge.blob_path(garbage).exists()
        assert forge.blob_path(seen.blob.digest).exists()
        assert forge.blob_path(hidden.blob.digest).exists()

    @pytest.mark.parametrize("offset", [8, 24, 33])
    def test_vectors_at_an_offset_of_a_compressed_blob(self, tmp_path: Path, offset: int) -> None:
        forge = Forge(tmp_path / "oci", 2)
        chunk = forge.chunk(b"content" * 100)
        import zstandard

        vector = forge.codec.encode_inode_vector([f.directory(1, {b"f": 2}), f.regular(2, chunk)])
        forge.raw_vectors(zstandard.compress(bytes(offset) + vector), compressed=True, offset=offset)
        forge.blob(b"garbage")
        assert collect_garbage(forge.path, grace=0).removed_blobs == 1
        assert shown(forge.reference())[b"f"]["size"] == 700

    def test_compressed_metadata(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        storage = StorageOptions(compress_metadata=True)
        build(write_tree(tmp_path / "a", 1), f"{layout}:a", compression=True, storage=storage)
        collect_garbage(layout, grace=0)
        assert shown(f"{layout}:a") == trees.on_disk(tmp_path / "a")

    def test_nested_indexes(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        build(write_tree(tmp_path / "b", 2), f"{layout}:b")
        before = blob_names(layout)
        with Layout.open(layout) as opened, BlobWriter(opened) as writer:
            inner = json.dumps(
                {"schemaVersion": 2, "manifests": [entry.to_json() for entry in opened.read_index().manifests]}
            ).encode()
            outer = json.dumps(
                {
                    "schemaVersion": 2,
                    "manifests": [
                        {"mediaType": media_types.INDEX, "digest": writer.put(inner).oci, "size": len(inner)}
                    ],
                }
            ).encode()
            digest = writer.put(outer)
            writer.commit()
        untag(f"{layout}:a")
        untag(f"{layout}:b")
        add_entry(layout, Descriptor(media_types.INDEX, digest, len(outer), {media_types.REF_NAME: "all"}))
        assert collect_garbage(layout, grace=0).removed_blobs == 0
        assert before < blob_names(layout)
        assert shown(f"{layout}:all")

    def test_images_of_other_programs(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "oci")
        forge.image([f.directory(1)])
        layer, config, script = (forge.blob(data) for data in (b"layer.tar", b'{"os":"linux"}', b"#!/bin/sh"))
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/json", "digest": config.oci, "size": 14},
            # written in an odd but legal way
            "layers": [{"mediaType": "application/x", "digest": "@", "size": 9}],
        }
        text = json.dumps(manifest).replace("@", layer.oci.replace("s", "\\u0073", 1)).encode()
        add_entry(forge.path, Descriptor(str(manifest["mediaType"]), forge.blob(text), len(text)))
        add_entry(forge.path, Descriptor("text/x-shellscript", script, 9))
        listing = json.dumps({"anything": [{"here": script.oci}]}).encode()
        add_entry(forge.path, Descriptor("application/vnd.example+json", forge.blob(listing), len(listing)))
        before = blob_names(forge.path)
        assert collect_garbage(forge.path, grace=0).removed_blobs == 0
        assert blob_names(forge.path) == before

    def test_no_chunk_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        build(write_tree(tmp_path / "b", 2), f"{layout}:b")
        untag(f"{layout}:b")
        with open_image(f"{layout}:a") as image:
            metadata = {image.manifest_digest, image.manifest.rootfs().digest}  # type: ignore[union-attr]
        opened: set[Digest] = set()
        real = Layout.open_blob
        monkeypatch.setattr(Layout, "open_blob", lambda self, digest: (opened.add(digest), real(self, digest))[1])
        assert collect_garbage(layout, grace=0).removed_blobs > 5
        assert opened == metadata

    def test_what_is_young(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        before = blob_names(layout)
        untag(f"{layout}:a")
        report = collect_garbage(layout)
        assert (report.removed_blobs, report.young_blobs) == (0, len(before))
        assert report.young_bytes == report.kept_bytes > 100_000

    @pytest.mark.parametrize("version", [1, 2, 3])
    def test_what_a_young_manifest_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
        """A build of another program is about to write the index; its chunks have been there for long."""
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a", format_version=version)
        with open_image(f"{layout}:a") as image:
            manifest = image.layout.blob_path(image.manifest_digest)
        untag(f"{layout}:a")
        old = {name for name in blob_names(layout) if name != manifest.name}
        time.sleep(0.05)
        manifest.touch()
        newest = max((layout / "blobs" / "sha256" / name).stat().st_ctime for name in old)
        now = manifest.stat().st_ctime + 100
        monkeypatch.setattr(collect.time, "time", lambda: now)
        grace = now - (newest + manifest.stat().st_ctime) / 2
        report = collect_garbage(layout, grace=grace)
        assert (report.removed_blobs, report.young_blobs) == (0, 1)
        assert blob_names(layout) == old | {manifest.name}
        report = collect_garbage(layout, grace=50)
        assert report.removed_blobs == len(old) + 1


class TestRefusal:
    @pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "directory"])
    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("which", ["manifest", "metadata"])
    def test_nothing_is_removed_if_something_cannot_be_read(
        self, tmp_path: Path, version: int, which: str, damage: str
    ) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a", format_version=version)
        build(write_tree(tmp_path / "b", 2), f"{layout}:b", format_version=version)
        untag(f"{layout}:b")
        with open_image(f"{layout}:a") as image:
            digest = image.manifest_digest
            if which == "metadata":
                digest = image.manifest.rootfs().digest if image.manifest else image.metadata_refs[0].digest
            path = image.layout.blob_path(digest)
        damaged(path, damage)
        before = blob_names(layout)
        with pytest.raises(PuzzlefsError) as caught:
            collect_garbage(layout, grace=0)
        assert isinstance(caught.value, (NotFoundError, IntegrityError, FormatError))
        assert "nothing was removed" in str(caught.value)
        assert f"{layout}: a" in str(caught.value)
        assert digest.hex() in str(caught.value)
        assert "fsck" in caught.value.hint
        assert blob_names(layout) == before

    def test_an_entry_without_a_tag_that_is_dropped_need_not_be_read(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        add_entry(layout, Descriptor(media_types.MANIFEST, Digest.of(b"never there"), 5))
        with pytest.raises(BlobNotFoundError):
            collect_garbage(layout, grace=0)
        assert collect_garbage(layout, grace=0, untagged=True).dropped_entries == 1
        assert collect_garbage(layout, grace=0).removed_blobs == 0

    def test_indexes_that_name_one_another_without_end(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "oci")
        below = forge.blob(b'{"schemaVersion":2,"manifests":[]}')
        for _ in range(40):
            entry = {"mediaType": media_types.INDEX, "digest": below.oci, "size": 1}
            below = forge.blob(json.dumps({"schemaVersion": 2, "manifests": [entry] * 50}).encode())
        forge.raw_index(forge.index(below, 1, media_types.INDEX))
        with pytest.raises(FormatError, match="name one another"):
            collect_garbage(forge.path, grace=0)

    def test_a_grace_that_makes_no_sense(self, tmp_path: Path) -> None:
        for grace in (-1.0, float("nan")):
            with pytest.raises(InvalidArgumentError):
                collect_garbage(Forge(tmp_path / "oci").path, grace=grace)


class TestSharedFolder:
    def layouts(self, tmp_path: Path) -> tuple[Path, Path]:
        shared = tmp_path / "shared"
        shared.mkdir()
        for name in ("one", "two"):
            (tmp_path / name / "blobs").mkdir(parents=True)
            (tmp_path / name / "blobs" / "sha256").symlink_to(shared)
            build(write_tree(tmp_path / f"tree-{name}", ord(name[0])), f"{tmp_path / name}:t")
        return tmp_path / "one", tmp_path / "two"

    def test_all_have_to_be_named(self, tmp_path: Path) -> None:
        one, two = self.layouts(tmp_path)
        before = blob_names(one)
        with pytest.raises(InvalidArgumentError, match=str(tmp_path / "shared")) as caught:
            collect_garbage(one, grace=0)
        assert "--sole" in caught.value.hint
        assert blob_names(one) == before
        for order in ([one, two], [two, one], [one, two, one]):
            assert collect_garbage(order[0], others=order[1:], grace=0).removed_blobs == 0
        untag(f"{two}:t")
        with pytest.raises(InvalidArgumentError):
            collect_garbage(one, others=[one], grace=0)  # named twice is not two
        report = collect_garbage(two, others=[one], grace=0)
        assert report.removed_blobs > 0
        assert shown(f"{one}:t") == trees.on_disk(tmp_path / "tree-one")

    def test_one_alone(self, tmp_path: Path) -> None:
        one, two = self.layouts(tmp_path)
        shutil.rmtree(two)
        assert collect_garbage(one, is_sole=True, grace=0).removed_blobs > 0
        assert shown(f"{one}:t") == trees.on_disk(tmp_path / "tree-one")

    def test_who_does_not_share_is_refused(self, tmp_path: Path) -> None:
        one, two = self.layouts(tmp_path)
        other = Forge(tmp_path / "other").path
        with pytest.raises(InvalidArgumentError, match="does not share"):
            collect_garbage(one, others=[two, other], grace=0)

    def test_both_indexes_lose_their_entries_without_tags(self, tmp_path: Path) -> None:
        one, two = self.layouts(tmp_path)
        for layout in (one, two):
            add_entry(layout, Descriptor(media_types.MANIFEST, Digest.of(b"gone"), 5))
        assert collect_garbage(one, others=[two], grace=0, untagged=True).dropped_entries == 2

    def test_a_lease_of_whoever_shares_it_counts(self, tmp_path: Path) -> None:
        one, two = self.layouts(tmp_path)
        with open_image(f"{two}:t") as image:
            lease = Lease(image.layout.blobs_fd)
            lease.name([image.manifest_digest], Root.MANIFEST)
        untag(f"{two}:t")
        assert collect_garbage(one, is_sole=True, grace=0).removed_blobs == 0
        lease.close()
        assert collect_garbage(one, is_sole=True, grace=0).removed_blobs > 0


class TestCommand:
    def test_report(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        count = len(blob_names(layout))
        untag(f"{layout}:a")
        assert main(["gc", str(layout)]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("removed 0 blobs (0 B); ")
        assert f"{count} of those" in err
        assert "--grace" in err
        assert main(["gc", "--dry-run", "--grace", "0", str(layout)]) == 0
        assert capsys.readouterr().out.startswith(f"would remove {count} blobs (")
        assert main(["gc", str(layout), "--grace=0", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["removed_blobs"] == count
        assert set(document) == {
            *("dry_run", "removed_blobs", "removed_bytes", "dropped_entries", "temporary_files", "temporary_bytes"),
            *("kept_blobs", "kept_bytes", "young_blobs", "young_bytes", "leases", "seconds"),
        }
        assert main(["gc", "-q", str(layout)]) == 0
        assert capsys.readouterr() == ("", "")

    def test_errors(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["gc", str(tmp_path / "none")]) == 3
        assert main(["gc", "--grace=-1", str(Forge(tmp_path / "oci").path)]) == 2
        assert "grace" in capsys.readouterr().err


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "oci")
    digest = forge.blob(b"data")
    program = (
        "import sys, os; from pathlib import Path; from puzzlefs.blobs import Layout, BlobWriter; "
        "from puzzlefs.digest import Digest; "
        f"w = BlobWriter(Layout.open(Path({str(forge.path)!r}))); print(w.adopt(Digest.of(b'data'), 4), flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [os.sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,  # type: ignore[attr-defined]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert collect_garbage(forge.path, grace=0).leases == 1
        assert forge.blob_path(digest).exists()
        process.kill()
        process.wait()
    assert any(name.startswith(".lease-") for name in blob_names(forge.path))
    report = collect_garbage(forge.path, grace=0)
    assert (report.leases, report.removed_blobs) == (0, 1)
    assert blob_names(forge.path) == set()


def test_removing_needs_no_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may have room for one or two more processes only."""
    layout = tmp_path / "oci"
    with Layout.open_or_create(layout, Dialect.OCI) as opened, BlobWriter(opened) as writer:
        for number in range(600):
            writer.put(b"%d" % number)
        writer.commit()
    start, started = threading.Thread.start, []

    def start_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    steps: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_one)
        patch.setattr(collect, "_SLACK", -1)
        report = collect_garbage(layout, grace=0, progress=lambda done, total: steps.append((done, total)))
    assert report.removed_blobs == 600
    assert blob_names(layout) == set()
    assert [thread.is_alive() for thread in started] == [False]
    assert steps == [(250, 600), (500, 600), (600, 600)]


@pytest.mark.parametrize("slack", [-1, 60])
def test_many_blobs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slack: float) -> None:
    """By threads where that is slow, else at once."""
    monkeypatch.setattr(collect, "_SLACK", slack)
    layout = tmp_path / "oci"
    with Layout.open_or_create(layout, Dialect.OCI) as opened, BlobWriter(opened) as writer:
        for number in range(600):
            writer.put(b"%d" % number)
        writer.commit()
    steps: list[tuple[int, int]] = []
    report = collect_garbage(layout, grace=0, progress=lambda done, total: steps.append((done, total)))
    assert (report.removed_blobs, blob_names(layout)) == (600, set())
    assert steps == [(250, 600), (500, 600), (600, 600)]
