"""Checking and mending: every kind of damage to every kind of blob is found, named with what it hits, and undone."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.examine import limited
from support.forge import Forge
from support.layouts import blobs_of, damaged

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder import StorageOptions, build
from puzzlefs.convert import convert
from puzzlefs.delta import build_from_tree
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import InvalidArgumentError, NotFoundError, PuzzlefsError, StorageError, TagNotFoundError
from puzzlefs.extract import extract
from puzzlefs.fsck import Fault, FsckReport, State, fsck
from puzzlefs.fsck.report import RemarkKind
from puzzlefs.image import open_image
from puzzlefs.image_commit import commit_image
from puzzlefs.model import Fifo, Inode
from puzzlefs.oci import Descriptor, media_types, parse_reference
from puzzlefs.verity import verity_digest
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit

KINDS: dict[str, dict[str, Any]] = {
    "v1": {"format_version": 1},
    "v1-zstd": {"format_version": 1, "compression": True},
    "v2-zstd": {"format_version": 2, "compression": True, "storage": StorageOptions(level=9)},
    "v3": {},
    "v3-zstd": {"compression": True, "storage": StorageOptions(level=12, cut_at_files=0, chunk_size=32 << 10)},
    "v3-small-metadata": {"compression": True, "storage": StorageOptions(compress_metadata=True)},
}


def write_tree(root: Path, seed: int = 0) -> Path:
    """Files that share chunks, span some, have holes, several names, or nothing in them."""
    (root / "sub" / "dir").mkdir(parents=True)
    for number in range(6):
        noise = random.Random(f"{seed}/{number}").randbytes(30_000)
        (root / "sub" / f"{number}").write_bytes(noise + noise[:5_000] * number)
    (root / "a small one").write_bytes(b"text\n" * (seed + 1))
    (root / "sub" / "dir" / "zeros").write_bytes(bytes(700_000))
    (root / "sub" / "dir" / "text").write_bytes(b"".join(b"line %d\n" % number for number in range(60_000)))
    os.link(root / "sub" / "3", root / "third name")
    (root / "empty").touch()
    (root / "link").symlink_to("sub/3")
    return root


DAMAGES = {
    "missing": Fault.MISSING,
    "truncated": Fault.WRONG_SIZE,
    "flipped": Fault.CORRUPT,
    "longer": Fault.WRONG_SIZE,
    "empty": Fault.WRONG_SIZE,
    "directory": Fault.NO_FILE,
    "link": Fault.NO_FILE,
    "fifo": Fault.NO_FILE,
}


def unreadable_files(reference: str) -> set[bytes]:
    """Which files of an image cannot be read: what a reader meets, found without ``fsck``."""
    found: set[bytes] = set()
    with open_image(reference) as image:
        stack = [(image.tree.root, b"")]
        while stack:
            directory, path = stack.pop()
            for entry in image.tree.entries(directory):
                below = path + b"/" + entry.name
                if entry.kind.name == "DIRECTORY":
                    stack.append((entry.ino, below))
                elif entry.kind.name == "REGULAR":
                    try:
                        for offset in range(0, image.tree.attributes(entry.ino).size, 1 << 20):
                            image.read(entry.ino, offset, 1 << 20)
                    except PuzzlefsError:
                        found.add(below)
    return found


@pytest.fixture(scope="module", params=KINDS)
def pristine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A layout with two images and a delta, and the tree of the first."""
    base = tmp_path_factory.mktemp(request.param)
    layout, options = base / "oci", KINDS[request.param]
    build(write_tree(base / "one"), f"{layout}:one", **options)
    shutil.copytree(base / "one", base / "two", symlinks=True)
    (base / "two" / "sub" / "new").write_bytes(random.Random(5).randbytes(90_000))
    (base / "two" / "sub" / "4").unlink()
    build(base / "two", f"{layout}:two", **options)
    (base / "two" / "sub" / "dir" / "text").write_bytes(b"".join(b"other %d\n" % number for number in range(9_000)))
    (base / "two" / "sub" / "5").unlink()
    layering = {name: value for name, value in options.items() if name == "storage"}
    with open_image(f"{layout}:one") as image:
        build_from_tree(base / "two", image, "delta", **layering)
    return layout, base / "one"


@pytest.fixture
def layout(pristine: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(pristine[0], tmp_path / "oci")
    return tmp_path / "oci"


TAGS = ["one", "two", "delta"]


def roles_of(layout: Path, tags: Sequence[str] = TAGS) -> dict[str, str]:
    """What each blob is, as far as a test has to know."""
    roles: dict[str, str] = {}
    for tag in tags:
        with open_image(f"{layout}:{tag}") as image:
            if image.manifest is None:
                roles[image.manifest_digest.hex()] = "rootfs"
            else:
                roles[image.manifest_digest.hex()] = "manifest"
                roles[image.manifest.config.digest.hex()] = "config"
                roles[image.manifest.rootfs().digest.hex()] = "rootfs"
            roles |= {ref.digest.hex(): "metadata" for ref in image.metadata_refs}
    return {name: roles.get(name, "chunk") for name in blobs_of(layout)}


def assert_clean(report: FsckReport, **others: object) -> None:
    assert report.bad == ()
    assert report.malformed == ()
    assert report.state is State.CLEAN
    assert {name: getattr(report, name) for name in others} == others


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
    for name in sorted(os.listdir(vectors)):
        if (vectors / name / "index.json").exists():
            for quick in (False, True):
                report = fsck(vectors / name, quick=quick)
                assert_clean(report, unreachable_blobs=0)
                kinds = {remark.kind for remark in report.remarks}
                wanted = {RemarkKind.VERITY_OF_OTHER_BYTES} if name.endswith("zstd") and not quick else set()
                assert kinds == wanted
                remarked += len(report.remarks)
    assert remarked > 5


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
        for name in sorted(os.listdir(vectors)):
            if not (vectors / name / "index.json").exists():
                continue
            layout = tmp_path / name
            shutil.copytree(vectors / name, layout)
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


def chunks_of(image: Any) -> set[str]:
    """The chunks that visible files have bytes in."""
    found: set[str] = set()
    for _, _, entry in image.tree.walk():
        if entry.kind.name == "REGULAR":
            found |= {piece.blob.hex() for piece in image.tree.plan(entry.ino, 0, 1 << 40).pieces}
    return found


class TestMalformed:
    """Bytes that are what their digests say, and cannot be."""

    @pytest.fixture(params=[1, 2, 3])
    def forge(self, request: pytest.FixtureRequest, tmp_path: Path) -> Forge:
        return Forge(tmp_path / "oci", request.param)

    def check(self, forge: Forge, *layers: list[Inode], verity: dict[Digest, VerityDigest] | None = None) -> FsckReport:
        with Layout.open(forge.path) as layout, BlobWriter(layout) as writer:
            commit_image(
                layout, f.TAG, version=forge.version, layers=layers, chunks=(), verity=verity or {}, writer=writer
            )
        report = fsck(forge.path)
        assert report.bad == ()
        if report.malformed:
            assert report.state is State.LOST
            assert {found.image for found in report.malformed} == {f.TAG}
        return report

    def test_a_sound_one(self, forge: Forge) -> None:
        chunk = forge.chunk(b"data" * 1000)
        unused = [f.directory(1, {b"f": 7, b"g": 7}), f.regular(7, chunk), f.inode(9, Fifo())]
        report = self.check(forge, [f.directory(1, {b"f": 7}), f.regular(7, chunk)], unused)
        assert_clean(report, inodes=5)
        assert {remark.kind for remark in report.remarks} == {RemarkKind.NOT_RECORDED}

    @pytest.mark.parametrize(
        ("entries", "inodes", "path", "message"),
        [
            ({b"d": 2}, [f.directory(2, {b"gone": 99})], b"/d/gone", "missing"),
            ({b"d": 2, b"e": 2}, [f.directory(2)], b"/e", "second name"),
            ({b"d": 2}, [f.directory(2, {b"up": 1})], b"/d/up", "root directory"),
            ({b"d": 2}, [f.directory(2, {b"x": 3, b"x/y": 3}), f.inode(3, Fifo())], b"/d", "cannot be a name"),
            ({b"d": 2}, [f.directory(2, [(b"x", 3), (b"x", 4)]), f.inode(3, Fifo()), f.inode(4, Fifo())], b"/d", "two"),
            ({b"l": 2}, [f.symlink(2, b"")], b"/l", "cannot point to"),
            ({b"o": 2}, [f.inode(2, Fifo(), uid=0xFFFFFFFF)], b"/o", "belong to"),
            ({b"x": 2}, [f.inode(2, Fifo(), xattrs={b"a\0b": b""})], b"/x", "extended attribute"),
        ],
    )
    def test_trees(
        self, forge: Forge, entries: dict[bytes, int], inodes: list[Inode], path: bytes, message: str
    ) -> None:
        report = self.check(forge, [f.directory(1, entries), *inodes])
        assert path in [found.path for found in report.malformed]
        assert any(message in found.message for found in report.malformed)

    @pytest.mark.parametrize("compressed", [False, True])
    def test_a_chunk_that_is_too_short(self, forge: Forge, compressed: bool) -> None:
        chunk = forge.chunk(b"data" * 1000, compressed=compressed, length=4001)
        report = self.check(forge, [f.directory(1, {b"f": 2}), f.regular(2, chunk)])
        (found,) = report.malformed
        assert "4000 bytes" in found.message
        assert chunk.blob.digest.hex() in found.message

    def test_a_chunk_that_is_no_zstd(self, forge: Forge) -> None:
        chunk = f.recompressed(forge.chunk(b"data" * 1000), True)
        (found,) = self.check(forge, [f.directory(1, {b"f": 2}), f.regular(2, chunk)]).malformed
        assert "zstd" in found.message

    def test_a_wrong_fs_verity_digest(self, forge: Forge) -> None:
        good, bad = forge.chunk(b"good" * 1000), forge.chunk(b"data" * 1000)
        verity = {good.blob.digest: verity_digest(b"good" * 1000), bad.blob.digest: verity_digest(b"other")}
        layer = [f.directory(1, {b"f": 2}), f.regular(2, good, bad)]
        (found,) = self.check(forge, layer, verity=verity).malformed
        assert bad.blob.digest.hex() in found.message
        assert verity_digest(b"data" * 1000).hex() in found.message
        assert verity_digest(b"other").hex() in found.message

    def test_chunk_references_that_are_none(self, forge: Forge) -> None:
        chunk = forge.chunk(b"data" * 1000)
        digest = bytes(chunk.blob.digest)
        inodes = [f.directory(1, {b"f": 2}), f.regular(2, chunk)]

        def patch(data: bytes) -> bytes:
            for position in range(0, len(data), 8):  # the pointer to the digest: a list of bytes, 32 of them
                word = int.from_bytes(data[position : position + 8], "little")
                target = position + 8 + 8 * (word >> 2 & 0x3FFFFFFF)
                if word & 3 == 1 and word >> 32 == 32 << 3 | 2 and target == data.index(digest):
                    return data[:position] + (word - (1 << 35)).to_bytes(8, "little") + data[position + 8 :]
            raise AssertionError("no pointer")

        forge.patched(inodes, patch)
        report = fsck(forge.path)
        assert any("31 bytes instead of 32" in found.message for found in report.malformed)

    def test_documents(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "oci")
        for data in (b"[]", b"{}", b'{"schemaVersion":2}', forge.manifest(forge.blob(b"\0" * 16), 16)):
            forge.raw_manifest(data)
            report = fsck(forge.path)
            assert report.state is State.LOST
            assert report.malformed
        layers = [{"mediaType": media_types.FILE_DATA, "digest": "sha256:zz", "size": 1}, {"mediaType": 7}, 5]
        layers += [{"mediaType": []}, {"mediaType": {}}]
        rootfs = forge.blob(forge.codec.encode_rootfs(layers=[[f.directory(1)]], metadata_refs=(), verity={}))
        entry = {"mediaType": media_types.ROOTFS, "digest": rootfs.oci, "size": 1}
        forge.raw_manifest(forge.manifest(rootfs, 1, layers=[entry, *layers]))
        assert len(fsck(forge.path).malformed) >= 5

    def test_digests_that_are_some_only_together(self, tmp_path: Path) -> None:
        """Two that are cut in the wrong place are malformed, though there is nothing wrong one behind the other."""
        forge = Forge(tmp_path / "oci")
        texts = [forge.chunk(data * 5000).blob.digest.oci for data in (b"a", b"b")]
        cut = [texts[0][:-1], texts[0][-1:] + texts[1]]
        rootfs = forge.blob(forge.codec.encode_rootfs(layers=[[f.directory(1)]], metadata_refs=(), verity={}))
        entry = {"mediaType": media_types.ROOTFS, "digest": rootfs.oci, "size": forge.blob_path(rootfs).stat().st_size}
        for words, count in ((texts, 0), (cut, 2)):
            layers = [{"mediaType": media_types.FILE_DATA, "digest": text, "size": 5000} for text in words]
            forge.raw_manifest(forge.manifest(rootfs, 1, layers=[entry, *layers]))
            assert len(fsck(forge.path).malformed) == count

    def test_a_hidden_chunk_may_be_missing(self, forge: Forge) -> None:
        seen, hidden = forge.chunk(b"seen" * 1000), forge.chunk(b"hidden" * 1000)
        forge.image(
            [f.directory(1, {b"f": 2}), f.regular(2, seen)],
            [f.directory(1, {b"f": 2, b"g": 3}), f.regular(2, hidden), f.regular(3, hidden)],
        )
        forge.blob_path(hidden.blob.digest).unlink()
        report = fsck(forge.path)
        assert_clean(report)
        assert RemarkKind.NOT_NEEDED in {remark.kind for remark in report.remarks}
        forge.blob_path(seen.blob.digest).unlink()
        assert [hit.files for hit in fsck(forge.path).bad[0].hits] == [(b"/f",)]

    def test_deep_and_wide_trees_take_little(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "oci", 2)
        depth = 3000
        chain = [f.directory(number, {b"d" * 200: number + 1}) for number in range(1, depth)]
        forge.image([*chain, f.directory(depth, {b"x": depth + 5})])

        def run() -> int:
            report = fsck(forge.path)
            return max(len(found.path or b"") for found in report.malformed)

        assert 4000 < limited(run, memory=300 << 20, seconds=30) < 5000


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


@pytest.mark.parametrize("version", [1, 2, 3])
def test_hostile_metadata(tmp_path: Path, version: int) -> None:
    """Whatever is wrong in a message, the check ends, and finds what readers find."""
    forge = Forge(tmp_path / "oci", version)
    chunk, small = forge.chunk(b"data" * 5000), forge.chunk(b"compress me" * 500, compressed=True)
    inodes = [
        f.directory(1, {b"d": 2, b"f": 3, b"l": 4}),
        f.directory(2, {b"x": 5, b"f": 3}),
        f.regular(3, chunk, small, xattrs={b"user.a": b"b"}),
        f.symlink(4, b"target"),
        f.inode(5, Fifo()),
    ]

    def run() -> tuple[int, int]:
        chance = random.Random(version)
        found = 0
        for _ in range(400):

            def patch(data: bytes) -> bytes:
                words = [data[at : at + 8] for at in range(0, len(data), 8)]
                for _ in range(chance.randrange(1, 3)):
                    words[chance.randrange(1, len(words))] = chance.choice([*words, chance.randbytes(8), bytes(8)])
                return b"".join(words)

            forge.patched(inodes, patch)
            report = fsck(forge.path, workers=1)
            found += report.state is not State.CLEAN
            shutil.rmtree(forge.path / "blobs")
            (forge.path / "blobs" / "sha256").mkdir(parents=True)
            forge.blob(b"data" * 5000)
            forge.chunk(b"compress me" * 500, compressed=True)
        return found, 400

    found, tried = limited(run, seconds=120)
    assert tried // 4 < found < tried


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
