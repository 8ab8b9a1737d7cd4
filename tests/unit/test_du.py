"""``du``: the weights of folders add up, and what removing a tag would free is what nothing else reaches."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import forge as f
from support.forge import Forge

from puzzlefs.collect import collect_garbage
from puzzlefs.digest import Digest
from puzzlefs.errors import IntegrityError, PathError, PathNotFoundError
from puzzlefs.image import Image, open_image
from puzzlefs.model import BlobRef, FileChunk, Inode, RegularFile, Whiteout
from puzzlefs.oci import media_types
from puzzlefs.usage import UsageReport, disk_usage

pytestmark = pytest.mark.unit

DATA = random.Random(6).randbytes(100_000)
LAYOUTS = ("v1", "v2", "v3", "v1-zstd", "v2-zstd", "v3-zstd")


@pytest.fixture(params=[1, 2, 3])
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Forge:
    return Forge(tmp_path / "layout", request.param)


def weights(report: UsageReport) -> dict[bytes, tuple[int, int]]:
    return {row.path: (row.apparent_bytes, row.stored_bytes) for row in report.rows}


def exclusive(report: UsageReport) -> dict[bytes, int | None]:
    return {row.path: row.exclusive_bytes for row in report.rows}


def parts(inode: Inode) -> Sequence[FileChunk]:
    return inode.content.chunks if isinstance(inode.content, RegularFile) else ()


def blob_size(image: Image, digest: Digest) -> int:
    return image.layout.blob_size(digest) or 0


def exact_weights(image: Image) -> dict[int, Fraction]:
    """What each visible inode carries, by the definition."""
    inodes = [image.tree.inode(ino) for ino in image.tree.links().visible]
    uses: dict[Digest, int] = {}
    for inode in inodes:
        for chunk in parts(inode):
            uses[chunk.blob.digest] = uses.get(chunk.blob.digest, 0) + chunk.length
    result: dict[int, Fraction] = {}
    taken: set[Digest] = set()
    for inode in inodes:
        weight = Fraction(0)
        for chunk in parts(inode):
            digest = chunk.blob.digest
            if uses[digest]:
                weight += Fraction(blob_size(image, digest) * chunk.length, uses[digest])
            elif digest not in taken:
                weight += blob_size(image, digest)
            taken.add(digest)
        result[inode.ino] = weight
    return result


# ---- what folders weigh


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tag", ["base", "second"])
def test_folders_of_the_originals_images(vectors: Path, expected: dict[str, Any], layout: str, tag: str) -> None:
    with open_image(f"{vectors / layout}:{tag}") as image:
        report = disk_usage(image)
        exact = exact_weights(image)
        tree = {os.fsencode(path): node for path, node in expected["trees"][tag].items()}
        folders = [b"/" + path if path != b"." else b"/" for path, node in tree.items() if node["type"] == "dir"]
        assert sorted(row.path for row in report.rows) == sorted(folders)
        assert report.rows[-1].path == b"/"
        for folder in folders:
            row = disk_usage(image, folder).rows[-1]
            prefix = folder.rstrip(b"/") + b"/"
            below = {path: node for path, node in tree.items() if (b"/" + path).startswith(prefix) and path != b"."}
            inodes = {ino_at(image, path) for path in below}
            assert row.inodes == len(inodes) + 1
            assert row.apparent_bytes == sum(
                image.tree.attributes(ino).size for ino in inodes if is_regular(image, ino)
            )
            references = sum(len(parts(image.tree.inode(ino))) for ino in inodes)
            assert abs(row.stored_bytes - sum((exact[ino] for ino in inodes), Fraction(0))) <= references
        whole = report.rows[-1]
        assert whole.stored_bytes == sum(exact.values())
        assert whole.stored_bytes + report.metadata_bytes + report.hidden_bytes == report.image_bytes
        assert report.digest == expected["digests"][layout][tag]
        assert (report.problems, report.unreadable, report.missing_blobs) == ((), (), 0)


def ino_at(image: Image, path: bytes) -> int:
    ino = 1
    for name in path.split(b"/"):
        ino = image.tree.lookup(ino, name).ino
    return ino


def is_regular(image: Image, ino: int) -> bool:
    return isinstance(image.tree.inode(ino).content, RegularFile)


def test_files_carry_what_they_use_of_a_chunk(forge: Forge) -> None:
    chunk = forge.chunk(b"text" * 1000, compressed=True)
    stored = forge.blob_path(chunk.blob.digest).stat().st_size
    half = chunk._replace(length=2000)
    rest = FileChunk(chunk.blob._replace(offset=3000), 1000)
    names = {b"a": 2, b"b": 3, b"c": 4, b"empty": 5}
    inodes = [f.directory(1, names), f.regular(2, half), f.regular(3, rest), f.regular(4, rest), f.regular(5)]
    found = weights(disk_usage(forge.image(inodes), files=True))
    assert found[b"/a"] == (2000, stored * 2000 // 4000)
    assert found[b"/b"] == (1000, stored * 3000 // 4000 - stored * 2000 // 4000)
    assert found[b"/c"] == (1000, stored - stored * 3000 // 4000)
    assert found[b"/empty"] == (0, 0)
    assert found[b"/"] == (4000, stored)


def test_a_chunk_of_which_nothing_is_used_is_the_first_files(forge: Forge) -> None:
    chunk = forge.chunk(DATA[:3000], length=0)
    inodes = [f.directory(1, {b"a": 2, b"b": 3}), f.regular(2, chunk, chunk), f.regular(3, chunk)]
    found = weights(disk_usage(forge.image(inodes), files=True))
    assert found == {b"/a": (0, 3000), b"/b": (0, 0), b"/": (0, 3000)}


def test_a_file_with_several_names_counts_once_where_it_is_met_first(forge: Forge) -> None:
    chunk = forge.chunk(DATA[:3000])
    inodes = [f.directory(1, {b"a": 2, b"b": 3}), f.directory(2, {b"x": 4, b"y": 4}), f.directory(3, {b"z": 4})]
    reference = forge.image([*inodes, f.regular(4, chunk)])
    assert weights(disk_usage(reference)) == {b"/a": (3000, 3000), b"/b": (0, 0), b"/": (3000, 3000)}
    assert weights(disk_usage(reference, b"/b")) == {b"/b": (3000, 3000)}
    assert [row.inodes for row in disk_usage(reference).rows] == [2, 1, 4]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_parts_always_add_up_to_what_is_stored(data: st.DataObject) -> None:
    """Any files over any chunks: the sum is exact, and nobody is off by more than a byte for each reference."""
    with tempfile.TemporaryDirectory() as directory:
        forge = Forge(Path(directory) / "layout", data.draw(st.sampled_from([1, 2, 3])))
        sizes = data.draw(st.lists(st.integers(1, 5000), min_size=1, max_size=5))
        blobs = [(forge.blob(bytes([number]) * size), size) for number, size in enumerate(sizes)]
        files = []
        for ino in range(2, 2 + data.draw(st.integers(1, 8))):
            chunks = []
            for _ in range(data.draw(st.integers(0, 4))):
                digest, size = data.draw(st.sampled_from(blobs))
                offset = data.draw(st.integers(0, size))
                chunks.append(FileChunk(BlobRef(digest, offset, False), data.draw(st.integers(0, size - offset))))
            files.append(f.regular(ino, *chunks))
        top = f.directory(1, {b"%d" % file.ino: file.ino for file in files})
        with open_image(forge.image([top, *files])) as image:
            report = disk_usage(image, files=True)
            exact = exact_weights(image)
        used = {chunk.blob.digest for file in files for chunk in parts(file)}
        assert report.rows[-1].stored_bytes == sum(size for digest, size in blobs if digest in used)
        for row in report.rows[:-1]:
            ino = int(row.path[1:])
            assert abs(row.stored_bytes - exact[ino]) <= len(parts(files[ino - 2]))
            assert row.apparent_bytes == sum(chunk.length for chunk in parts(files[ino - 2]))


# ---- which folders


def deep(forge: Forge) -> str:
    chunks = [forge.chunk(DATA[start : start + 1000]) for start in range(0, 4000, 1000)]
    inodes = [
        f.directory(1, {b"link": 8, b"top": 2, b"z": 4}),
        f.directory(2, {b"below": 3, b"file": 5}),
        f.directory(3, {b"x\xff": 6, b"y": 7}),
        *(f.regular(ino, chunk) for ino, chunk in zip((4, 5, 6, 7), chunks, strict=True)),
        f.symlink(8, b"/top/../top/below"),
    ]
    return forge.image(inodes)


def test_depth_files_and_order(forge: Forge) -> None:
    reference = deep(forge)
    assert [row.path for row in disk_usage(reference).rows] == [b"/top/below", b"/top", b"/"]
    assert [row.path for row in disk_usage(reference, max_depth=1).rows] == [b"/top", b"/"]
    assert [row.path for row in disk_usage(reference, max_depth=0, files=True).rows] == [b"/"]
    rows = disk_usage(reference, files=True).rows
    assert [row.path for row in rows] == [
        b"/link",
        b"/top/below/x\xff",
        b"/top/below/y",
        b"/top/below",
        b"/top/file",
        b"/top",
        b"/z",
        b"/",
    ]
    assert [row.depth for row in rows] == [1, 3, 3, 2, 2, 1, 1, 0]
    assert [row.is_directory for row in rows] == [False, False, False, True, False, True, False, True]
    for depth in (None, 0, 1, 2):
        assert disk_usage(reference, max_depth=depth).rows[-1] == rows[-1]


def test_paths(forge: Forge) -> None:
    reference = deep(forge)
    assert weights(disk_usage(reference, "top/below/")) == {b"/top/below": (2000, 2000)}
    assert weights(disk_usage(reference, b"/link")) == {b"/link": (0, 0)}
    assert weights(disk_usage(reference, b"/link/")) == {b"/top/below": (2000, 2000)}
    assert weights(disk_usage(reference, b"/link/x\xff")) == {b"/top/below/x\xff": (1000, 1000)}
    assert weights(disk_usage(reference, "/link/x\udcff")) == {b"/top/below/x\xff": (1000, 1000)}
    with pytest.raises(PathNotFoundError):
        disk_usage(reference, "/nothing")
    with pytest.raises(PathError):
        disk_usage(reference, "/z/below")


def test_what_is_malformed_is_passed_over_and_told(forge: Forge) -> None:
    chunk = forge.chunk(DATA[:1000])
    inodes = [
        f.directory(1, [(b"a", 2), (b"bad", 3), (b"gone", 77), (b"twice", 2), (b"z", 4)]),
        f.directory(2, {b"x": 4}),
        f.directory(3, [(b"same", 4), (b"same", 5)]),
        f.regular(4, chunk),
        f.regular(5, chunk),
    ]
    report = disk_usage(forge.image(inodes), files=True)
    assert weights(report)[b"/"] == (1000, 500)  # inode 5 is there, and no folder that can be read has it
    problems = "\n".join(report.problems)
    for name in ("/bad: ", "/gone: ", "/twice: "):
        assert name in problems
    assert len(report.problems) == 3


def test_files_that_cannot_be_decoded_are_told(forge: Forge) -> None:
    inodes = [f.directory(1, {b"a": 2}), f.regular(2, forge.chunk(b"0123456789", length=0x1234567))]
    report = disk_usage(forge.patched(inodes, lambda data: f.renumber(data, {0x1234567: 1 << 63})))
    assert report.problems == ("files that cannot be decoded: 1",)
    assert report.rows[-1].apparent_bytes == 0


def test_absurdly_long_paths_have_no_row(tmp_path: Path) -> None:
    depth = 30
    inodes = [f.directory(ino, {b"n" * 200: ino + 1}) for ino in range(1, depth)]
    forge = Forge(tmp_path / "layout")
    report = disk_usage(forge.image([*inodes, f.regular(depth, forge.chunk(DATA[:10]))]), files=True)
    assert max(len(row.path) for row in report.rows) < 4096
    assert len(report.rows) == 1 + 4095 // 201
    assert report.rows[-1].apparent_bytes == 10


# ---- what removing the tag would free


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_originals_images_would_free(vectors: Path, layout: str) -> None:
    """Against the blobs that the documents, or all inodes, name."""
    reached = {tag: blobs_of(vectors / layout, tag) for tag in ("base", "fresh", "second")}
    for tag, blobs in reached.items():
        others = set[Digest]().union(*(more for other, more in reached.items() if other != tag))
        report = disk_usage(f"{vectors / layout}:{tag}")
        assert report.freed_bytes == sum(size_in(vectors / layout, digest) for digest in blobs - others)
        assert report.image_bytes == sum(size_in(vectors / layout, digest) for digest in blobs)
        with open_image(f"{vectors / layout}:{tag}") as image:
            used = {c.blob.digest for ino in image.tree.links().visible for c in parts(image.tree.inode(ino))}
        whole = report.rows[-1].exclusive_bytes
        assert whole == sum(size_in(vectors / layout, digest) for digest in used - others)


def size_in(layout: Path, digest: Digest) -> int:
    return (layout / "blobs" / "sha256" / digest.hex()).stat().st_size


def blobs_of(layout: Path, tag: str) -> set[Digest]:
    with open_image(f"{layout}:{tag}") as image:
        found = {image.manifest_digest, *(ref.digest for ref in image.metadata_refs)}
        if image.manifest is not None:
            document = json.loads(image.layout.blob_path(image.manifest_digest).read_bytes())
            named = [document["config"], *document["layers"]]
            found.update(Digest.parse(descriptor["digest"]) for descriptor in named)
        return found.union(
            c.blob.digest for table in image.rootfs.metadata_layers for inode in table for c in parts(inode)
        )


@pytest.mark.parametrize("layout", ["v1", "v3", "v3-zstd"])
@pytest.mark.parametrize("tag", ["base", "fresh", "second"])
def test_what_is_freed_is_what_gc_removes(vectors: Path, tmp_path: Path, layout: str, tag: str) -> None:
    shutil.copytree(vectors / layout, tmp_path / "copy", copy_function=shutil.copyfile)
    for directory in (tmp_path / "copy", tmp_path / "copy" / "blobs", tmp_path / "copy" / "blobs" / "sha256"):
        directory.chmod(0o755)
    report = disk_usage(f"{tmp_path / 'copy'}:{tag}")
    index = json.loads((tmp_path / "copy" / "index.json").read_bytes())
    index["manifests"] = [entry for entry in index["manifests"] if entry["annotations"][media_types.REF_NAME] != tag]
    f.put_file(tmp_path / "copy" / "index.json", json.dumps(index).encode())
    garbage = collect_garbage(tmp_path / "copy", grace=0)
    assert report.freed_bytes == garbage.removed_bytes > 0


def two_tags(forge: Forge) -> tuple[str, FileChunk, FileChunk]:
    """One tag with two chunks, of which another one has the first."""
    shared, own = forge.chunk(DATA[:3000]), forge.chunk(DATA[3000:4000])
    forge.image([f.directory(1, {b"s": 2}), f.regular(2, shared)], tag="other")
    both = [f.directory(1, {b"o": 3, b"s": 2}), f.regular(2, shared), f.regular(3, own)]
    return forge.image(both, tag="one"), shared, own


def test_what_another_tag_has_is_not_freed(forge: Forge) -> None:
    reference, _, _ = two_tags(forge)
    report = disk_usage(reference, files=True)
    assert exclusive(report) == {b"/s": 0, b"/o": 1000, b"/": 1000}
    assert report.freed_bytes is not None
    config = 2 if forge.version == 3 else 0  # both have the empty configuration
    assert report.freed_bytes == 1000 + report.metadata_bytes - config


def test_a_second_tag_of_the_same_image_keeps_all_of_it(forge: Forge) -> None:
    reference, _, _ = two_tags(forge)
    index = json.loads((forge.path / "index.json").read_bytes())
    again = json.loads(json.dumps(index["manifests"][-1]))
    again["annotations"] = {}  # an untagged entry counts as well
    index["manifests"].append(again)
    f.put_file(forge.path / "index.json", json.dumps(index).encode())
    report = disk_usage(reference)
    assert (report.freed_bytes, report.rows[-1].exclusive_bytes) == (0, 0)
    assert report.rows[-1].stored_bytes == 4000


def test_beside_a_manifest_that_cannot_be_read_nothing_is_promised(forge: Forge) -> None:
    reference, _, _ = two_tags(forge)
    index = json.loads((forge.path / "index.json").read_bytes())
    forge.blob_path(Digest.parse(index["manifests"][0]["digest"])).unlink()
    report = disk_usage(reference)
    assert (report.freed_bytes, report.rows[-1].exclusive_bytes) == (None, None)
    assert report.rows[-1].stored_bytes == 4000
    (entry,) = report.unreadable
    assert entry.startswith("other: ")
    assert "missing" in entry


def test_images_of_others_and_indexes_count_too(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    reference, _, own = two_tags(forge)
    before = disk_usage(reference)
    foreign = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": forge.blob(b"c").oci, "size": 1},
        "layers": [{"mediaType": "application/x", "digest": own.blob.digest.oci, "size": 1}],
    }
    manifest = forge.blob(json.dumps(foreign).encode())  # not in the form that builders write
    nested = {
        "schemaVersion": 2,
        "manifests": [{"mediaType": media_types.MANIFEST, "digest": manifest.oci, "size": 1}],
    }
    inner = forge.blob(json.dumps(nested).encode())
    index = json.loads((forge.path / "index.json").read_bytes())
    index["manifests"].append({"mediaType": media_types.INDEX, "digest": inner.oci, "size": 1})
    f.put_file(forge.path / "index.json", json.dumps(index).encode())
    report = disk_usage(reference)
    assert report.rows[-1].exclusive_bytes == 0
    assert before.freed_bytes is not None
    assert report.freed_bytes == before.freed_bytes - 1000


def test_a_tag_that_points_to_an_index_frees_that_too(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    two_tags(forge)
    index = json.loads((forge.path / "index.json").read_bytes())
    (entry,) = (e for e in index["manifests"] if e["annotations"][media_types.REF_NAME] == "one")
    alone = disk_usage(forge.reference("one")).freed_bytes
    inner = json.dumps({"schemaVersion": 2, "manifests": [{**entry, "annotations": {}}]}).encode()
    entry.update(mediaType=media_types.INDEX, digest=forge.blob(inner).oci)
    f.put_file(forge.path / "index.json", json.dumps(index).encode())
    assert alone is not None
    assert disk_usage(forge.reference("one")).freed_bytes == alone + len(inner)


def test_hidden_chunks_and_missing_ones(forge: Forge) -> None:
    below = [
        f.directory(1, {b"a": 2, b"b": 3}),
        f.regular(2, forge.chunk(DATA[:3000])),
        f.regular(3, forge.chunk(b"x")),
    ]
    reference = forge.image([f.directory(1, {b"b": 3}), f.inode(2, Whiteout())], below)
    report = disk_usage(reference)
    assert (report.rows[-1].stored_bytes, report.hidden_bytes, report.missing_blobs) == (1, 3000, 0)
    assert report.image_bytes == 3001 + report.metadata_bytes == report.freed_bytes
    forge.blob_path(parts(below[2])[0].blob.digest).unlink()
    report = disk_usage(reference)
    assert (report.rows[-1].stored_bytes, report.hidden_bytes, report.missing_blobs) == (0, 3000, 1)


def test_a_file_that_is_also_metadata(tmp_path: Path) -> None:
    """A file whose content is that of the empty configuration has its blob."""
    forge = Forge(tmp_path / "layout")
    report = disk_usage(forge.image([f.directory(1, {b"a": 2}), f.regular(2, forge.chunk(b"{}"))]))
    assert report.rows[-1].stored_bytes == 2
    assert report.image_bytes == report.metadata_bytes + 2


def test_an_open_image_whose_tag_has_moved(forge: Forge) -> None:
    reference, _, _ = two_tags(forge)
    with open_image(reference) as image:
        forge.image([f.directory(1, {b"n": 2}), f.regular(2, forge.chunk(b"new"))], tag="one")
        report = disk_usage(image)
    assert report.rows[-1].stored_bytes == 4000
    expected = 0 if forge.version < 3 else 1000  # in the older versions an entry without its tag stays
    assert report.rows[-1].exclusive_bytes == expected


def test_the_digest_is_checked(forge: Forge) -> None:
    reference, _, _ = two_tags(forge)
    assert disk_usage(reference, digest=disk_usage(reference).digest).rows
    with pytest.raises(IntegrityError):
        disk_usage(reference, digest="0" * 64)
