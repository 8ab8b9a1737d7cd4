"""The canonical form: numbering, what is taken over and what is not, what is inferred, what goes wrong."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support import forge as f

import puzzlefs
from puzzlefs.builder import StorageOptions, build
from puzzlefs.canonicalize import canonicalize
from puzzlefs.canonicalize.content import USUAL_CONTENT
from puzzlefs.delta import build_from_tree
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    PuzzlefsError,
    TagNotFoundError,
)
from puzzlefs.extract import extract
from puzzlefs.image import open_image
from puzzlefs.model import Directory, Inode, Symlink, Whiteout
from puzzlefs.oci import media_types
from puzzlefs.verity import verity_digest
from puzzlefs_cli.canonicalize import image_and_tag
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit

ME = {"uid": os.geteuid(), "gid": os.getegid()}
NOISE = random.Random(7).randbytes(1 << 20)


def inodes_of(reference: str) -> list[Inode]:
    with open_image(reference) as image:
        (layer,) = image.rootfs.metadata_layers
        return list(layer)


def tree_of(place: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place


def rebuilt(place: Path, reference: str, **how: object) -> str:
    """The digest of a fresh build of the extracted tree."""
    extract(reference, place / "extracted")
    return str(build(place / "extracted", f"{place}/rebuilt:t", **how).digest)  # type: ignore[arg-type]


class TestNumbers:
    def test_entries_are_numbered_by_name_before_subdirectories_and_links_use_numbers_up(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        data = forge.chunk(b"content")
        other = forge.chunk(b"other")
        forge.image(
            [
                f.directory(1, {b"b": 90, b"a": 70, b"c": 50, b"z": 12}),
                f.regular(12, other),
                f.regular(30, other),
                f.directory(50, {b"inner": 30}),
                f.regular(70, data),
                f.directory(90, {b"y": 70, b"x": 12}),
            ]
        )
        canonicalize(forge.reference(), "flat")
        shown = {inode.ino: inode.content for inode in inodes_of(forge.reference("flat"))}
        names = {
            ino: [(entry.name, entry.ino) for entry in content.entries]
            for ino, content in shown.items()
            if isinstance(content, Directory)
        }
        assert names == {
            1: [(b"a", 2), (b"b", 3), (b"c", 4), (b"z", 5)],
            3: [(b"x", 5), (b"y", 2)],  # 6 and 7 are used up
            4: [(b"inner", 8)],
        }
        assert sorted(shown) == [1, 2, 3, 4, 5, 8]

    def test_what_is_hidden_is_gone(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        lower = [f.directory(1, {b"a": 2, b"b": 3}), f.regular(2, forge.chunk(b"a" * 100)), f.symlink(3, b"old")]
        upper = [f.directory(1, {b"a": 9}, look_below=True), f.symlink(3, b"new"), f.inode(9, Whiteout())]
        forge.image(upper, lower)
        report = canonicalize(forge.reference(), "flat")
        assert [inode.content for inode in inodes_of(forge.reference("flat"))][1:] == [Symlink(b"new")]
        assert (report.inodes, report.content_size, report.chunks) == (2, 0, 0)
        with open_image(forge.reference("flat")) as image:
            assert image.manifest is not None
            assert [layer.media_type for layer in image.manifest.layers()] == [media_types.ROOTFS]
            assert not image.rootfs.verity

    def test_a_symbolic_link_has_the_mode_that_every_link_has(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        forge.image([f.directory(1, {b"l": 2}, **ME), f.symlink(2, b"x", permissions=0o644, **ME)])
        digest = canonicalize(forge.reference(), "flat").digest
        assert inodes_of(forge.reference("flat"))[1].permissions == 0o777
        assert str(digest) == rebuilt(tmp_path, forge.reference())

    @pytest.mark.parametrize("times", [(None, None), (None, 5), (7, None), (0, 0)])
    def test_times_are_kept_where_there_are_any(self, tmp_path: Path, times: Sequence[int | None]) -> None:
        forge = f.Forge(tmp_path / "oci")
        forge.image([f.symlink(2, b"x", mtime_ns=times[0], **ME)], [f.directory(1, {b"l": 2}, mtime_ns=times[1], **ME)])
        digest = canonicalize(forge.reference(), "flat").digest
        kept = "none" if times == (None, None) else "keep"
        assert str(digest) == rebuilt(tmp_path, forge.reference(), timestamps=kept)

    @pytest.mark.parametrize(
        ("layer", "path"),
        [
            ([f.directory(1, {b"d": 2}), f.directory(2, {b"gone": 7})], "/d/gone"),
            ([f.directory(1, {b"a": 2, b"b": 2}), f.directory(2)], "/b"),
            ([f.directory(1, {b"d": 2}), f.directory(2, [(b"no/name", 3)]), f.symlink(3, b"x")], "/d"),
            ([f.directory(1, {b"l": 2}), f.symlink(2, b"")], "/l"),
            ([f.directory(1, {b"f": 2}), f.regular(2, uid=0xFFFFFFFF)], "/f"),
        ],
        ids=["nowhere", "two places", "name", "target", "owner"],
    )
    def test_a_malformed_tree_is_refused_with_its_path(self, tmp_path: Path, layer: list[Inode], path: str) -> None:
        forge = f.Forge(tmp_path / "oci")
        forge.image(layer)
        before = sorted(os.listdir(forge.path / "blobs" / "sha256"))
        with pytest.raises(FormatError) as caught:
            canonicalize(forge.reference())
        assert f"{forge.reference()}: {path}: " in caught.value.message
        assert sorted(os.listdir(forge.path / "blobs" / "sha256")) == before


class TestContent:
    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
    def test_an_image_of_its_own_is_itself_and_nothing_is_written(
        self, tmp_path: Path, version: int, compression: bool
    ) -> None:
        files = {"a": NOISE[:300_000], "b/c": b"text " * 100_000, "b/d": b"", "e": bytes(900_000), "f": b"x"}
        tree = tree_of(tmp_path / "tree", files)
        built = build(tree, f"{tmp_path}/oci:t", format_version=version, compression=compression)
        report = canonicalize(f"{tmp_path}/oci:t")
        assert report.digest == built.digest
        assert (report.new_chunks, report.stored_bytes) == (0, 0)
        assert report.content_size == sum(map(len, files.values()))
        assert report.reused_chunks > 0

    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
    def test_layers_that_were_built_on_one_another(self, tmp_path: Path, version: int, compression: bool) -> None:
        def how(tag: str) -> dict[str, Any]:
            times = {"format_version": version, "compression": compression, "timestamps": "keep"}
            return {"rootfs": tree, "reference": f"{tmp_path}/oci:{tag}", **times}

        files = {f"d{n % 3}/{n}": NOISE[n * 1000 :][: n * 9000] + b"text " * n * 500 for n in range(40)}
        tree = tree_of(tmp_path / "tree", files)
        build(**how("0"))
        for layer in range(1, 5):
            (tree / f"d{layer % 3}" / f"{layer * 3}").unlink(missing_ok=True)
            (tree / "d0" / f"{layer * 6}").write_bytes(b"new text" * layer * 9000)
            (tree / "d1" / "7").chmod(0o600 + layer)
            (tree / f"d{(layer + 1) % 3}").rename(tree / "moved")
            (tree / "moved").rename(tree / f"d{(layer + 1) % 3}")
            (tree / "d2" / f"link{layer}").hardlink_to(tree / "d1" / "13")
            with open_image(f"{tmp_path}/oci:{layer - 1}") as base:
                build_from_tree(tree, base, f"{layer}")
        with open_image(f"{tmp_path}/oci:4") as image:
            assert len(image.rootfs.metadata_layers) == 5
        report = canonicalize(f"{tmp_path}/oci:4", "flat")
        assert report.digest == build(**how("fresh")).digest

    def test_only_what_does_not_line_up_is_stored(self, tmp_path: Path) -> None:
        tree = tree_of(tmp_path / "tree", {name: NOISE[n << 17 :][:200_000] for n, name in enumerate("abcdef")})
        build(tree, f"{tmp_path}/oci:t")
        with open_image(f"{tmp_path}/oci:t") as image:
            whole = list(image.rootfs.metadata_layers[0])
        forge = f.Forge(tmp_path / "oci")
        without_c = whole[0]._replace(content=Directory([e for e in whole[0].content.entries if e.name != b"c"]))  # type: ignore[union-attr]
        stack = forge.image([without_c], whole, tag="stack")
        report = canonicalize(stack, "flat")
        assert str(report.digest) == rebuilt(tmp_path, stack)
        assert 0 < report.new_chunks <= 4
        assert report.reused_chunks == report.chunks - report.new_chunks

    def test_pieces_of_anything_become_the_stream_of_a_build(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        chunk = forge.chunk(NOISE[:500_000])
        parts = [
            chunk._replace(blob=chunk.blob._replace(offset=offset), length=length)
            for offset, length in [(400_000, 100_000), (0, 0), (3, 250_000), (3, 1)]
        ]
        forge.image([f.directory(1, {b"f": 2, b"g": 3}, **ME), f.regular(2, *parts, **ME), f.regular(3, chunk, **ME)])
        report = canonicalize(forge.reference(), "flat")
        assert str(report.digest) == rebuilt(tmp_path, forge.reference())
        assert report.reused_chunks == 0

    @pytest.mark.parametrize("compressed", [False, True])
    def test_chunks_that_are_larger_than_any_builder_makes_them(self, tmp_path: Path, compressed: bool) -> None:
        forge = f.Forge(tmp_path / "oci")
        data = NOISE * 3 + bytes(USUAL_CONTENT)
        whole = forge.chunk(data, compressed=compressed)
        part = whole._replace(blob=whole.blob._replace(offset=5), length=len(data) - 9)
        forge.image([f.directory(1, {b"f": 2, b"g": 3}, **ME), f.regular(2, whole, **ME), f.regular(3, part, **ME)])
        report = canonicalize(forge.reference(), "flat", compression=False)
        assert str(report.digest) == rebuilt(tmp_path, forge.reference())

    def test_holes_are_zeros_and_cost_nothing(self, tmp_path: Path) -> None:
        """40 GiB of zeros, as holes and in a stack; what is cut is what a build cuts around real holes."""
        tree = tree_of(tmp_path / "tree", {"a": NOISE[:100_000], "c": NOISE[:70_001]})
        with (tree / "b").open("wb") as file:
            file.seek(20 << 30)
            file.write(b"end")
            file.truncate(40 << 30)
        built = build(tree, f"{tmp_path}/oci:t")
        started = time.process_time()  # not the clock: other tests run beside this one
        report = canonicalize(f"{tmp_path}/oci:t", "flat")
        assert report.digest == built.digest
        assert time.process_time() - started < 10

    @pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
    def test_written_zeros_and_holes_give_one_digest(self, tmp_path: Path, compression: bool) -> None:
        sizes = [(0, 300_001), (4096, 262_144), (100_000, 2_000_003), (7, 16_384)]
        written = tree_of(
            tmp_path / "written", {f"{n}": NOISE[:data] + bytes(zeros) for n, (data, zeros) in enumerate(sizes)}
        )
        holes = tree_of(tmp_path / "holes", {f"{n}": NOISE[:data] for n, (data, _) in enumerate(sizes)})
        for n, (data, zeros) in enumerate(sizes):
            os.truncate(holes / f"{n}", data + zeros)
        digests = {
            report.digest
            for tag, tree in (("w", written), ("h", holes))
            for report in (
                build(tree, f"{tmp_path}/oci:{tag}", compression=compression),
                canonicalize(f"{tmp_path}/oci:{tag}"),
            )
        }
        assert len(digests) == 1

    def test_one_chunk_raw_and_compressed(self, tmp_path: Path) -> None:
        """A file that is the compressed form of another file has the same blob, meant another way."""
        forge = f.Forge(tmp_path / "oci")
        packed = forge.chunk(b"a" * 50_000, compressed=True)
        raw = f.recompressed(packed._replace(length=forge.blob_path(packed.blob.digest).stat().st_size), False)
        forge.image([f.directory(1, {b"f": 2, b"g": 3}, **ME), f.regular(2, packed, **ME), f.regular(3, raw, **ME)])
        report = canonicalize(forge.reference(), "flat", compression=False)
        assert str(report.digest) == rebuilt(tmp_path, forge.reference())

    def test_verity_digests_are_those_of_the_bytes(self, tmp_path: Path) -> None:
        """Also where the old image records none; those of the original's compressed images can be wrong."""
        forge = f.Forge(tmp_path / "oci")
        forge.image([f.directory(1, {b"f": 2}), f.regular(2, forge.chunk(b"x" * 100))])
        canonicalize(forge.reference(), "flat")
        with open_image(forge.reference("flat")) as image:
            assert {verity_digest(b"x" * 100)} == set(image.rootfs.verity.values())


class TestWay:
    def built(self, place: Path, version: int = 3, **how: object) -> tuple[str, str]:
        tree = tree_of(place / "tree", {"a": b"some text " * 90_000, "b": NOISE[:500_000], "c": b"line\n" * 30_000})
        report = build(tree, f"{place}/oci:t", format_version=version, **how)  # type: ignore[arg-type]
        return f"{place}/oci:t", str(report.digest)

    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.parametrize("level", [1, 9, 19])
    def test_the_level_is_that_of_the_chunks(self, tmp_path: Path, version: int, level: int) -> None:
        image, digest = self.built(tmp_path, version, compression=True, storage=StorageOptions(level=level))
        report = canonicalize(image, "flat")
        assert (str(report.digest), report.new_chunks) == (digest, 0)

    def test_a_level_that_is_named_counts(self, tmp_path: Path) -> None:
        image, _ = self.built(tmp_path / "19", compression=True, storage=StorageOptions(level=19))
        _, digest = self.built(tmp_path / "5", compression=True)
        report = canonicalize(image, "flat", storage=StorageOptions(level=5))
        assert str(report.digest) == digest
        assert report.reused_chunks == 0

    def test_frames_of_another_program_are_made_anew(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        chunk = forge.chunk(b"some text " * 9_000, compressed=True)  # without a seek table
        forge.image([f.directory(1, {b"f": 2}, **ME), f.regular(2, chunk, **ME)])
        report = canonicalize(forge.reference(), "flat")
        assert str(report.digest) == rebuilt(tmp_path, forge.reference(), compression=True)
        assert report.reused_chunks == 0

    def test_raw_chunks_below_a_compressed_layer_are_compressed(self, tmp_path: Path) -> None:
        image, _ = self.built(tmp_path)
        forge = f.Forge(tmp_path / "oci")
        with open_image(image) as opened:
            lower = list(opened.rootfs.metadata_layers[0])
        new = f.regular(3, forge.chunk(b"new text " * 9_000, compressed=True), **ME)
        stack = forge.image([new], lower, tag="stack")
        report = canonicalize(stack, "flat")
        assert str(report.digest) == rebuilt(tmp_path, stack, compression=True)

    def test_compression_can_be_asked_for_and_refused(self, tmp_path: Path) -> None:
        image, plain = self.built(tmp_path / "plain")
        _, packed = self.built(tmp_path / "packed", compression=True)
        assert str(canonicalize(image, "packed", compression=True).digest) == packed
        assert str(canonicalize(f"{tmp_path}/plain/oci:packed", "plain", compression=False).digest) == plain

    def test_compressed_metadata_stay_compressed(self, tmp_path: Path) -> None:
        options = StorageOptions(compress_metadata=True)
        image, digest = self.built(tmp_path, compression=True, storage=options)
        assert str(canonicalize(image, "flat").digest) == digest

    def test_a_compressed_image_without_a_compressed_chunk_is_known_by_its_metadata(self, tmp_path: Path) -> None:
        tree = tree_of(tmp_path / "tree", {"d/noise": NOISE[:100], "e/noise": NOISE[:200]})
        built = build(tree, f"{tmp_path}/oci:t", compression=True)
        assert canonicalize(f"{tmp_path}/oci:t").digest == built.digest
        assert built.digest != build(tree, f"{tmp_path}/oci:u").digest

    @pytest.mark.parametrize(
        ("how", "chunker"),
        [
            (StorageOptions(chunk_size=32 << 10), "fastcdc2020"),
            (StorageOptions(cut_at_files=0), "fastcdc2020"),
            (StorageOptions(), "ronomon"),
        ],
        ids=["size", "borders", "chunker"],
    )
    def test_how_it_was_cut_can_be_said(self, tmp_path: Path, how: StorageOptions, chunker: str) -> None:
        image, digest = self.built(tmp_path, compression=True, storage=how, chunker=chunker)
        report = canonicalize(image, "flat", storage=how, chunker=chunker)  # type: ignore[arg-type]
        assert (str(report.digest), report.new_chunks) == (digest, 0)
        assert str(canonicalize(image, "default").digest) != digest

    def test_options_that_make_no_sense(self, tmp_path: Path) -> None:
        image, _ = self.built(tmp_path)
        with pytest.raises(InvalidArgumentError, match="uncompressed"):
            canonicalize(image, storage=StorageOptions(level=9))
        with pytest.raises(InvalidArgumentError, match="0 workers"):
            canonicalize(image, workers=0)
        with pytest.raises(InvalidArgumentError, match="not a valid tag"):
            canonicalize(image, "no tag")
        with pytest.raises(InvalidArgumentError, match="no chunker"):
            canonicalize(image, chunker="other")  # type: ignore[arg-type]


class TestTags:
    def test_the_tag_moves_or_another_one_is_made(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        forge.image([f.directory(1, {b"a": 7}), f.symlink(7, b"x")])
        with open_image(forge.reference()) as image:
            old = image.manifest_digest
        report = canonicalize(forge.reference(), "new")
        with open_image(forge.reference()) as image:
            assert image.manifest_digest == old
        with open_image(forge.reference("new"), digest=report.digest) as image:
            assert image.manifest_digest != old
        assert canonicalize(forge.reference()).digest == report.digest
        with open_image(forge.reference(), digest=report.digest):
            pass

    def test_only_the_image_with_the_digest(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        forge.image([f.directory(1)])
        with pytest.raises(IntegrityError):
            canonicalize(forge.reference(), digest="0" * 64)
        with pytest.raises(TagNotFoundError):
            canonicalize(forge.reference("other"))


class TestDamage:
    def damaged(self, place: Path) -> tuple[f.Forge, Path]:
        forge = f.Forge(place / "oci")
        chunk = forge.chunk(b"good content")
        forge.image([f.directory(1, {b"dir": 2}), f.directory(2, {b"file": 3}), f.regular(3, chunk)])
        return forge, forge.blob_path(chunk.blob.digest)

    def expect(self, forge: f.Forge, error: type[PuzzlefsError]) -> None:
        index = (forge.path / "index.json").read_bytes()
        with pytest.raises(error) as caught:
            canonicalize(forge.reference())
        assert caught.value.message.startswith(f"cannot read /dir/file of {forge.reference()}: ")
        assert (forge.path / "index.json").read_bytes() == index
        assert not [name for name in os.listdir(forge.path / "blobs" / "sha256") if name.startswith(".tmp-")]

    def test_missing(self, tmp_path: Path) -> None:
        forge, blob = self.damaged(tmp_path)
        blob.unlink()
        self.expect(forge, BlobNotFoundError)

    def test_corrupt(self, tmp_path: Path) -> None:
        forge, blob = self.damaged(tmp_path)
        blob.write_bytes(b"evil content")
        self.expect(forge, IntegrityError)

    def test_too_short(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        chunk = forge.chunk(b"good content")._replace(length=13)
        forge.image([f.directory(1, {b"dir": 2}), f.directory(2, {b"file": 3}), f.regular(3, chunk)])
        self.expect(forge, FormatError)

    def test_not_zstd(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        chunk = f.recompressed(forge.chunk(b"good content"), True)
        forge.image([f.directory(1, {b"dir": 2}), f.directory(2, {b"file": 3}), f.regular(3, chunk)])
        self.expect(forge, FormatError)

    def test_parts_that_are_absurdly_small(self, tmp_path: Path) -> None:
        """Two chunks of 60 MiB of zeros, taken byte by byte in turn."""
        forge = f.Forge(tmp_path / "oci")
        chunks = [
            forge.chunk(bytes(60 << 20) + tail, compressed=True)._replace(length=1) for tail in (b"a", b"b", b"c")
        ]
        forge.image([f.directory(1, {b"dir": 2}), f.directory(2, {b"file": 3}), f.regular(3, *(chunks * 2000))])
        self.expect(forge, FormatError)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _as_before(self) -> Iterator[None]:
        """A command that is run changes its process, which is this one here."""
        handler = signal.getsignal(signal.SIGTERM)
        yield
        signal.signal(signal.SIGTERM, handler)
        gc.enable()

    def test_it_prints_the_digest(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        tree = tree_of(tmp_path / "tree", {"a": b"a"})
        built = build(tree, f"{tmp_path}/oci:t", timestamps="keep")
        assert main(["canonicalize", f"{tmp_path}/oci:t", "flat"]) == 0
        assert capsys.readouterr().out == f"puzzlefs image manifest digest: {built.digest}\n"
        assert main(["canonicalize", "--json", f"{tmp_path}/oci", "t"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["digest"] == str(built.digest)
        assert (report["chunks"], report["reused_chunks"], report["new_chunks"]) == (1, 1, 0)

    @pytest.mark.parametrize("quiet", [[], ["-q"]])
    def test_it_says_when_hardly_a_chunk_fits(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: list[str]
    ) -> None:
        tree = tree_of(tmp_path / "tree", {"a": random.Random(3).randbytes(3 << 20)})
        small = StorageOptions(chunk_size=16 << 10)
        build(tree, f"{tmp_path}/oci:t", compression=True, storage=small, format_version=2)
        command = ["canonicalize", "-c", "--chunk-size", "16K", *quiet, f"{tmp_path}/oci:t", "same"]
        assert main(command) == 0
        assert capsys.readouterr().err == ""
        command[3] = "32K"
        assert main(command) == 0
        assert ("--chunk-size" in capsys.readouterr().err) is (not quiet)

    def test_words(self, tmp_path: Path) -> None:
        def said(*words: str) -> tuple[str, str | None]:
            reference, tag = image_and_tag(words)
            return str(reference), tag

        assert said("oci:t") == ("oci:t", None)
        assert said("oci:t", "new") == ("oci:t", "new")
        assert said("oci", "t") == ("oci:t", None)
        assert said("oci", "t", "new") == ("oci:t", "new")
        (tmp_path / "o:ci").mkdir()
        assert said(f"{tmp_path}/o:ci", "t") == (f"{tmp_path}/o:ci:t", None)
        for wrong in ([], ["oci"], ["a", "b", "c", "d"]):
            with pytest.raises(InvalidArgumentError):
                image_and_tag(wrong)

    def test_the_library_has_it(self) -> None:
        assert puzzlefs.canonicalize.__doc__
        assert puzzlefs.CanonicalReport.__doc__
