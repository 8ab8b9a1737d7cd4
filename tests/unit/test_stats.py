"""``stats``: what the tags of a layout take, share and have for themselves, against sets of blobs."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import forge as f
from support.forge import Forge

from puzzlefs.blobs import Layout
from puzzlefs.builder import build
from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, NotFoundError
from puzzlefs.image import open_image
from puzzlefs.model import RegularFile
from puzzlefs.oci import media_types
from puzzlefs.usage import disk_usage, inspect_image, layout_statistics
from puzzlefs.usage.statistics import MAX_COMPARED, EntryStatistics, LayoutStatistics

pytestmark = pytest.mark.unit

DATA = random.Random(7).randbytes(100_000)
LAYOUTS = ("v1", "v2", "v3", "v1-zstd", "v2-zstd", "v3-zstd")


@pytest.fixture(params=[1, 2, 3])
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Forge:
    return Forge(tmp_path / "layout", request.param)


def by_tag(report: LayoutStatistics) -> dict[str | None, EntryStatistics]:
    return {entry.tag: entry for entry in report.entries}


def image_of(forge: Forge, tag: str, *contents: bytes) -> str:
    """An image with a file, in a chunk of its own, for each of these contents."""
    files = [f.regular(ino, forge.chunk(content)) for ino, content in enumerate(contents, 2)]
    return forge.image([f.directory(1, {b"%d" % file.ino: file.ino for file in files}), *files], tag=tag)


def change_index(forge: Forge, change: object) -> None:
    index = json.loads((forge.path / "index.json").read_bytes())
    change(index["manifests"])  # type: ignore[operator]
    f.put_file(forge.path / "index.json", json.dumps(index).encode())


def blobs_of(reference: str) -> set[str]:
    """The blobs of an image, from its documents and all of its inodes."""
    with open_image(reference) as image:
        found = {image.manifest_digest, *(ref.digest for ref in image.metadata_refs)}
        if image.manifest is not None:
            found |= {image.manifest.config.digest, *(layer.digest for layer in image.manifest.layers())}
        for inode in (inode for table in image.rootfs.metadata_layers for inode in table):
            if isinstance(inode.content, RegularFile):
                found |= {chunk.blob.digest for chunk in inode.content.chunks}
    return {digest.hex() for digest in found}


def check_against_sets(layout: Path, tags: list[str]) -> LayoutStatistics:
    """Compare everything that is about stored bytes with what sets say."""
    report = layout_statistics(layout)
    directory = layout / "blobs" / "sha256"
    sizes = {name: (directory / name).stat().st_size for name in os.listdir(directory)}
    sets = [blobs_of(f"{layout}:{tag}") for tag in tags]

    def total(names: set[str]) -> int:
        return sum(sizes.get(name, 0) for name in names)

    assert [entry.tag for entry in report.entries] == tags
    before: set[str] = set()
    for number, (entry, blobs) in enumerate(zip(report.entries, sets, strict=True)):
        others = set[str]().union(*(more for other, more in enumerate(sets) if other != number))
        assert entry.stored_bytes == total(blobs)
        assert entry.added_bytes == total(blobs - before)
        assert entry.exclusive_bytes == total(blobs - others)
        assert entry.missing_blobs == len(blobs - sizes.keys())
        before |= blobs
    assert [list(row) for row in report.shared_bytes] == [[total(one & other) for other in sets] for one in sets]
    assert (report.blobs, report.blob_bytes) == (len(sizes), total(set(sizes)))
    unreached = sizes.keys() - before
    assert (report.unreachable_blobs, report.unreachable_bytes) == (len(unreached), total(set(unreached)))
    return report


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_original(vectors: Path, layout: str) -> None:
    report = layout_statistics(vectors / layout)
    tags = [entry.tag for entry in report.entries if entry.tag is not None]
    assert sorted(tags) == ["base", "fresh", "second"]
    check_against_sets(vectors / layout, tags)
    for tag, entry in by_tag(report).items():
        alone = inspect_image(f"{vectors / layout}:{tag}")
        assert entry.format_version == alone.format_version
        assert entry.manifest == alone.manifest
        assert (entry.inodes, entry.apparent_bytes) == (alone.inodes, alone.apparent_bytes)
        assert (entry.unique_bytes, entry.chunk_bytes) == (alone.unique_bytes, alone.stored_bytes)
        assert entry.metadata_bytes == alone.manifest_bytes + alone.metadata_bytes
        usage = disk_usage(f"{vectors / layout}:{tag}")
        assert entry.exclusive_bytes == usage.freed_bytes
        assert entry.stored_bytes == usage.image_bytes
    assert report.images == 3
    assert report.apparent_bytes == sum(entry.apparent_bytes or 0 for entry in report.entries)
    assert report.deduplication == round(report.apparent_bytes / report.unique_bytes, 3)
    assert report.compression == round(report.unique_bytes / report.chunk_bytes, 3)
    assert (report.compression > 1) is ("zstd" in layout)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_images_over_any_chunks(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        forge = Forge(Path(directory) / "layout", data.draw(st.sampled_from([1, 2, 3])))
        contents = [bytes([number]) * size for number, size in enumerate((10, 200, 3000, 40_000))]
        tags = [f"t{number}" for number in range(data.draw(st.integers(1, 6)))]
        for tag in tags:
            image_of(forge, tag, *data.draw(st.lists(st.sampled_from(contents), max_size=4)))
        report = check_against_sets(forge.path, tags)
        assert sum(entry.added_bytes for entry in report.entries) == report.blob_bytes


def test_numbers_of_a_layout(forge: Forge) -> None:
    image_of(forge, "a", DATA[:3000], DATA[:3000], DATA[3000:4000])
    image_of(forge, "b", DATA[:3000])
    report = layout_statistics(str(forge.path))
    a, b = report.entries
    assert (a.inodes, a.apparent_bytes, a.unique_bytes, a.chunk_bytes) == (4, 7000, 4000, 4000)
    assert (b.inodes, b.apparent_bytes, b.unique_bytes, b.chunk_bytes) == (2, 3000, 3000, 3000)
    assert (report.images, report.apparent_bytes, report.unique_bytes, report.chunk_bytes) == (2, 10_000, 4000, 4000)
    assert (report.deduplication, report.compression) == (2.5, 1.0)
    assert report.blob_bytes == 4000 + report.metadata_bytes
    assert report.shared_bytes[0][1] == 3000 + (2 if forge.version == 3 else 0)


def test_two_tags_of_one_image_are_one_image(forge: Forge) -> None:
    image_of(forge, "a", DATA[:3000])
    image_of(forge, "b", DATA[:3000])
    report = layout_statistics(forge.path)
    assert report.images == 1
    assert report.apparent_bytes == 3000
    assert [entry.exclusive_bytes for entry in report.entries] == [0, 0]
    assert [entry.added_bytes for entry in report.entries] == [report.blob_bytes, 0]


def test_a_tag_that_moved_leaves_an_entry_in_older_versions(forge: Forge) -> None:
    image_of(forge, "a", DATA[:3000])
    image_of(forge, "a", DATA[3000:5000])
    report = layout_statistics(forge.path)
    if forge.version == 3:
        assert [entry.tag for entry in report.entries] == ["a"]
        assert report.unreachable_bytes is not None
        assert report.unreachable_bytes > 3000
    else:
        assert [entry.tag for entry in report.entries] == [None, "a"]
        assert report.unreachable_blobs == 0
        assert by_tag(report)[None].chunk_bytes == 3000


def test_an_entry_that_a_later_one_replaces_has_no_tag(forge: Forge) -> None:
    image_of(forge, "a", DATA[:3000])
    image_of(forge, "b", DATA[3000:5000])
    change_index(forge, lambda entries: entries[0]["annotations"].update({media_types.REF_NAME: "b"}))
    report = layout_statistics(forge.path)
    assert [(entry.tag, entry.chunk_bytes) for entry in report.entries] == [(None, 3000), ("b", 2000)]


def test_an_empty_layout(forge: Forge) -> None:
    report = layout_statistics(forge.path)
    assert (report.entries, report.shared_bytes, report.images) == ((), (), 0)
    assert (report.deduplication, report.compression, report.unreachable_blobs) == (None, None, 0)


# ---- what is wrong in a layout


def test_a_manifest_that_cannot_be_read(forge: Forge) -> None:
    image_of(forge, "a", DATA[:3000])
    image_of(forge, "b", DATA[3000:5000])
    with open_image(forge.reference("a")) as image:
        f.put_file(forge.blob_path(image.manifest_digest), b"something else")
    report = layout_statistics(forge.path)
    a, b = report.entries
    assert a.problem is not None
    assert "corrupt" in a.problem
    assert (a.stored_bytes, a.apparent_bytes, a.format_version) == (0, None, None)
    assert b.problem is None
    assert (b.apparent_bytes, b.exclusive_bytes, b.exclusive_linked_bytes) == (2000, None, None)
    assert (report.unreachable_blobs, report.unreachable_bytes, report.images) == (None, None, 1)


def test_metadata_that_cannot_be_read_below_a_good_manifest(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    image_of(forge, "a", DATA[:3000])
    image_of(forge, "b", DATA[3000:5000])
    with open_image(forge.reference("a")) as image:
        assert image.manifest is not None
        forge.blob_path(image.manifest.rootfs().digest).unlink()
    a, b = layout_statistics(forge.path).entries
    assert a.problem is not None
    assert "missing" in a.problem
    assert b.exclusive_bytes is None


def test_an_image_that_is_malformed_still_reaches_its_blobs(forge: Forge) -> None:
    image_of(forge, "good", DATA[:3000])
    forge.image([f.regular(1, forge.chunk(DATA[:3000]), forge.chunk(DATA[3000:4000]))], tag="no-root")
    report = layout_statistics(forge.path)
    good, malformed = report.entries
    assert malformed.problem is not None
    assert "no root directory" in malformed.problem
    assert (malformed.format_version, malformed.apparent_bytes) == (None, None)
    assert malformed.stored_bytes > 4000
    assert report.images == 1
    assert good.exclusive_bytes == (good.metadata_bytes or 0) - (2 if forge.version == 3 else 0)


def test_missing_chunks_and_foreign_files(forge: Forge) -> None:
    image_of(forge, "a", DATA[:3000], DATA[3000:5000])
    forge.blob_path(Digest.of(DATA[:3000])).unlink()
    directory = forge.path / "blobs" / "sha256"
    (directory / ".tmp-1234").write_bytes(DATA[:500])
    (directory / ("A" * 64)).write_bytes(DATA[:500])
    (directory / ("a" * 64)).mkdir()
    (directory / ("b" * 64)).symlink_to(directory / ".tmp-1234")
    (directory / ("c" * 64)).write_bytes(DATA[:700])
    report = layout_statistics(forge.path)
    (entry,) = report.entries
    assert (entry.missing_blobs, entry.chunk_bytes) == (1, 2000)
    assert (report.unreachable_blobs, report.unreachable_bytes) == (1, 700)


def test_images_of_others(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    image_of(forge, "a", DATA[:3000])
    document = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": forge.blob(b"c").oci, "size": 1},
        "layers": [{"mediaType": "application/x", "digest": Digest.of(DATA[:3000]).oci, "size": 1}],
    }
    foreign = forge.blob(json.dumps(document).encode())
    unknown = forge.blob(b"unknown")

    def add(entries: list[object]) -> None:
        entries.append({"mediaType": media_types.MANIFEST, "digest": foreign.oci, "size": 1})

    change_index(forge, add)
    report = layout_statistics(forge.path)
    entry = by_tag(report)[None]
    assert (entry.problem, entry.format_version, entry.apparent_bytes) == (None, None, None)
    assert entry.stored_bytes == 3001 + len(json.dumps(document))
    assert report.shared_bytes[0][1] == 3000
    change_index(forge, lambda entries: entries[-1].update(mediaType="application/unknown", digest=unknown.oci))
    entry = by_tag(layout_statistics(forge.path))[None]
    assert (entry.problem, entry.format_version, entry.stored_bytes) == (None, None, 7)


def test_an_index_of_images(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    image_of(forge, "a", DATA[:3000])
    image_of(forge, "b", DATA[:3000], DATA[3000:5000])
    entries = json.loads((forge.path / "index.json").read_bytes())["manifests"]
    inner = forge.blob(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
    annotations = {media_types.REF_NAME: "both"}

    def wrap(manifests: list[object]) -> None:
        manifests[:] = [
            {"mediaType": media_types.INDEX, "digest": inner.oci, "size": 1, "annotations": annotations},
            manifests[0],
        ]

    change_index(forge, wrap)
    report = layout_statistics(forge.path)
    both = by_tag(report)["both"]
    assert (both.apparent_bytes, both.unique_bytes, both.chunk_bytes) == (8000, 5000, 5000)
    assert both.stored_bytes == report.blob_bytes
    assert both.exclusive_bytes == report.blob_bytes - report.entries[1].stored_bytes
    assert report.images == 2


def test_indexes_without_end(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    reference = image_of(forge, "a", DATA[:3000])
    with open_image(reference) as image:
        digest, media_type = image.manifest_digest, media_types.MANIFEST
    for _ in range(6):
        document = {"schemaVersion": 2, "manifests": [{"mediaType": media_type, "digest": digest.oci, "size": 1}] * 3}
        digest, media_type = forge.blob(json.dumps(document).encode()), media_types.INDEX
    change_index(forge, lambda entries: entries[0].update(mediaType=media_type, digest=digest.oci))
    (entry,) = layout_statistics(forge.path).entries
    assert entry.problem is not None
    assert "indexes" in entry.problem


def test_what_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        layout_statistics(tmp_path)
    forge = Forge(tmp_path / "layout")
    f.put_file(forge.path / "index.json", b"{")
    with pytest.raises(FormatError):
        layout_statistics(forge.path)


# ---- sharing with what is outside


def test_hard_links_elsewhere(forge: Forge, tmp_path: Path) -> None:
    image_of(forge, "a", DATA[:3000], DATA[3000:5000])
    os.link(forge.blob_path(Digest.of(DATA[:3000])), tmp_path / "another-name")
    (entry,) = layout_statistics(forge.path).entries
    assert entry.exclusive_linked_bytes == 3000
    assert entry.exclusive_bytes == entry.stored_bytes


def test_a_folder_of_blobs_that_several_layouts_share(forge: Forge, tmp_path: Path) -> None:
    image_of(forge, "a", DATA[:3000])
    assert not layout_statistics(forge.path).shares_blobs
    before = layout_statistics(forge.path)
    shutil.move(forge.path / "blobs" / "sha256", tmp_path / "shared")
    (forge.path / "blobs" / "sha256").symlink_to(tmp_path / "shared")
    report = layout_statistics(forge.path)
    assert report.shares_blobs
    assert report.entries == before.entries


def test_progress_and_contents_are_not_read(forge: Forge) -> None:
    for number in range(3):
        image_of(forge, f"t{number}", DATA[:3000], bytes([number]))
    steps: list[tuple[int, int]] = []
    before = layout_statistics(forge.path, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    chunk = forge.blob_path(Digest.of(DATA[:3000]))
    chunk.unlink()
    chunk.write_bytes(bytes(3000))
    assert layout_statistics(forge.path) == before


def test_too_many_entries_are_not_compared(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    image_of(forge, "t", DATA[:3000])

    def many(entries: list[dict[str, object]]) -> None:
        first = entries[0]
        entries[:] = [{**first, "annotations": {media_types.REF_NAME: f"t{n}"}} for n in range(MAX_COMPARED + 1)]

    change_index(forge, many)
    report = layout_statistics(forge.path)
    assert (len(report.entries), report.shared_bytes) == (MAX_COMPARED + 1, ())
    change_index(forge, lambda entries: entries.pop())
    report = layout_statistics(forge.path)
    assert len(report.shared_bytes) == MAX_COMPARED
    assert {size for row in report.shared_bytes for size in row} == {report.blob_bytes}


def test_an_image_that_was_really_built(tmp_path: Path) -> None:
    """What the builder's report says is new is what the layout grew by."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(DATA)
    reports = []
    for tag in ("one", "two"):
        (tree / "b").write_text(tag * 1000)
        reports.append(build(tree, f"{tmp_path / 'images'}:{tag}", compression=True, cache=None))
    report = check_against_sets(tmp_path / "images", ["one", "two"])
    with Layout.open(tmp_path / "images") as layout:
        assert len(layout.read_index().tags()) == 2
    assert report.entries[1].added_bytes == reports[1].stored_bytes
