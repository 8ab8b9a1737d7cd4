"""Converting images: chunks in other frames, blobs in other layouts, what is missing, what cannot be."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from support import forge as f
from support import trees

import puzzlefs
from puzzlefs.blobs import BlobWriter, Layout, transfer
from puzzlefs.builder import StorageOptions, build
from puzzlefs.compression import compress_chunk, decompress_chunk
from puzzlefs.compression.frames import SeekEntry, frames_of, seek_table
from puzzlefs.compression.framing import has_same_framing, reframed
from puzzlefs.convert import convert
from puzzlefs.delta import build_from_tree
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    PuzzlefsError,
    TagNotFoundError,
)
from puzzlefs.image import open_image
from puzzlefs.model import BlobRef, RegularFile
from puzzlefs.oci import Dialect, media_types
from puzzlefs.verity import verity_digest
from puzzlefs_cli.convert import two_images
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit

NOISE = random.Random(11).randbytes(600_000)
LIMIT = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    place.mkdir()
    (place / "text").write_bytes(b"text " * 60_000)
    (place / "noise").write_bytes(NOISE)
    (place / "zeros").write_bytes(bytes(1 << 20))
    (place / "again").write_bytes(bytes(600_000))
    (place / "empty").touch()
    return place


@pytest.fixture
def stack(tree: Path, tmp_path: Path) -> Callable[..., str]:
    """Builds a stack of three layers."""

    def make(version: int, *, compression: bool = False) -> str:
        reference = f"{tmp_path}/oci{version}:three"
        build(
            tree,
            f"{tmp_path}/oci{version}:one",
            format_version=version,
            compression=compression,
            timestamps="keep",
        )
        (tree / "new").write_bytes(NOISE[:200_000] + b"more text" * 30_000)
        (tree / "noise").chmod(0o600)
        with open_image(f"{tmp_path}/oci{version}:one") as one:
            build_from_tree(tree, one, "two")
        (tree / "text").write_bytes(b"other text " * 60_000)
        (tree / "zeros").unlink()
        with open_image(f"{tmp_path}/oci{version}:two") as two:
            build_from_tree(tree, two, "three")
        return reference

    return make


def blobs_of(layout: Path) -> set[str]:
    return set(os.listdir(layout / "blobs" / "sha256"))


class TestFraming:
    CONTENT = b"some text that is repeated " * 5000

    def test_a_seek_table_is_added_and_cut_off(self) -> None:
        plain, seekable = compress_chunk(self.CONTENT, 1), compress_chunk(self.CONTENT, 3)
        assert reframed(plain, 2, limit=LIMIT) == plain
        assert reframed(seekable, 3, limit=LIMIT) == seekable
        with_table = reframed(plain, 3, limit=LIMIT)
        assert with_table == plain + seek_table([SeekEntry(len(plain), len(self.CONTENT))])
        assert reframed(with_table, 1, limit=LIMIT) == plain
        without = reframed(seekable, 1, limit=LIMIT)
        assert len(frames_of(without)) == 1
        assert reframed(without, 3, limit=LIMIT) == seekable
        for stored in (with_table, without):
            assert decompress_chunk(stored, limit=LIMIT) == self.CONTENT

    def test_many_frames_become_one_before_version_3(self) -> None:
        pieces = [self.CONTENT[start : start + 4096] for start in range(0, len(self.CONTENT), 4096)]
        frames = [zstandard.compress(piece) for piece in pieces]
        table = seek_table([SeekEntry(len(one), len(piece)) for one, piece in zip(frames, pieces, strict=True)])
        several = b"".join(frames) + table
        assert reframed(several, 3, limit=LIMIT) == several
        assert reframed(several, 2, limit=LIMIT) == compress_chunk(self.CONTENT, 2)
        assert reframed(b"".join(frames), 3, limit=LIMIT) == several

    def test_skippable_frames_count_as_empty(self) -> None:
        skipped = bytes.fromhex("502a4d18 03000000") + b"abc"
        frame = zstandard.compress(self.CONTENT)
        stored = reframed(skipped + frame, 3, limit=LIMIT)
        assert stored == skipped + frame + seek_table([SeekEntry(11, 0), SeekEntry(len(frame), len(self.CONTENT))])
        assert decompress_chunk(stored, limit=LIMIT) == self.CONTENT

    @pytest.mark.parametrize("version", [1, 3])
    def test_malformed_or_too_long(self, version: int) -> None:
        for stored, limit in ((b"no zstd at all", LIMIT), (zstandard.compress(self.CONTENT), 1000)):
            with pytest.raises(FormatError):
                reframed(stored, version, limit=limit)

    def test_who_stores_alike(self) -> None:
        alike = [(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if has_same_framing(a, b)]
        assert alike == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3)]


class TestImages:
    @pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("target", [1, 2, 3])
    def test_there_and_back(
        self, stack: Callable[..., str], tmp_path: Path, version: int, target: int, compression: bool
    ) -> None:
        source = stack(version, compression=compression)
        there = convert(source, f"{tmp_path}/there:t", format_version=target)
        back = convert(f"{tmp_path}/there:t", f"{tmp_path}/back:t", format_version=version)
        assert there.metadata_layers == 3
        assert (there.changed_chunks > 0) == (compression and not has_same_framing(version, target))
        with open_image(source) as image, open_image(f"{tmp_path}/there:t", digest=there.digest) as other:
            assert back.digest == image.verity_digest()
            assert other.version == target
            assert trees.in_image(image, mtime=True) == trees.in_image(other, mtime=True)
            for digest, verity in other.rootfs.verity.items():
                assert verity_digest(other.layout.blob_path(digest).read_bytes()) == verity

    @pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("target", [1, 2, 3])
    def test_an_image_of_one_layer_is_what_a_build_makes(
        self, tree: Path, tmp_path: Path, version: int, target: int, compression: bool
    ) -> None:
        """Compressed ones, if they are compressed and cut alike."""
        storage = StorageOptions(level=3, chunk_size=64 << 10, cut_at_files=0) if compression else None
        for one in {version, target}:
            how = storage if one == 3 else None
            build(tree, f"{tmp_path}/{one}:t", format_version=one, compression=compression, storage=how)
        report = convert(f"{tmp_path}/{version}:t", f"{tmp_path}/new:t", format_version=target)
        if has_same_framing(version, target) or not compression:
            with open_image(f"{tmp_path}/{target}:t") as image:
                assert report.digest == image.verity_digest()
        else:  # a frame of version 3 says how long its content is
            assert report.changed_chunks > 0

    def test_the_manifest_lists_all_chunks_of_all_layers(self, stack: Callable[..., str], tmp_path: Path) -> None:
        convert(stack(2), f"{tmp_path}/new:t", format_version=3)
        with open_image(f"{tmp_path}/new:t") as image:
            assert image.manifest is not None
            listed = {layer.digest: layer for layer in list(image.manifest.layers())[1:]}
            used = {
                part.blob.digest
                for layer in image.rootfs.metadata_layers
                for inode in layer
                if isinstance(inode.content, RegularFile)
                for part in inode.content.chunks
            }
            assert listed.keys() == used == image.rootfs.verity.keys()
            assert all(layer.size == image.layout.blob_size(digest) for digest, layer in listed.items())
            assert {layer.media_type for layer in listed.values()} == {media_types.FILE_DATA}

    def test_versions_1_and_2_share_a_directory_and_its_chunks(self, stack: Callable[..., str], tmp_path: Path) -> None:
        source = stack(1, compression=True)
        before = blobs_of(tmp_path / "oci1")
        chunk = next(
            path
            for path in (tmp_path / "oci1" / "blobs" / "sha256").iterdir()
            if path.read_bytes()[:4] == bytes.fromhex("28b52ffd")
        )
        data = chunk.read_bytes()
        chunk.write_bytes(bytes(len(data)))  # nobody looks into it
        report = convert(source, f"{tmp_path}/oci1:two", format_version=2)
        chunk.write_bytes(data)
        assert report.changed_chunks == 0
        assert len(blobs_of(tmp_path / "oci1") - before) == 4  # three layers and the rootfs
        with open_image(source) as image, open_image(f"{tmp_path}/oci1:two") as other:
            assert (image.version, other.version) == (1, 2)
            assert trees.in_image(image, mtime=True) == trees.in_image(other, mtime=True)

    @pytest.mark.parametrize("version", [1, 3])
    def test_the_same_version_is_a_copy(self, stack: Callable[..., str], tmp_path: Path, version: int) -> None:
        source = stack(version, compression=True)
        report = convert(source, f"{tmp_path}/copy:t", format_version=version)
        again = convert(source, f"{tmp_path}/oci{version}:other", format_version=version)
        with open_image(source) as image:
            assert report.digest == again.digest == image.verity_digest()
        assert again.stored_bytes == 0
        assert blobs_of(tmp_path / "copy") < blobs_of(tmp_path / f"oci{version}")
        with open_image(source) as image, open_image(f"{tmp_path}/copy:t") as other:
            assert trees.in_image(image, mtime=True) == trees.in_image(other, mtime=True)

    def test_compressed_metadata_are_uncompressed_once(self, tree: Path, tmp_path: Path) -> None:
        options = StorageOptions(compress_metadata=True)
        build(tree, f"{tmp_path}/a:t", compression=True, storage=options)
        plain = build(tree, f"{tmp_path}/b:t", compression=True)
        convert(f"{tmp_path}/a:t", f"{tmp_path}/c:t", format_version=2)
        assert convert(f"{tmp_path}/c:t", f"{tmp_path}/d:t", format_version=3).digest == plain.digest

    def test_one_blob_meant_both_ways(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci", 2)
        packed = forge.chunk(b"a" * 50_000, compressed=True)
        raw = f.recompressed(packed._replace(length=forge.blob_path(packed.blob.digest).stat().st_size), False)
        forge.image([f.directory(1, {b"f": 2, b"g": 3}), f.regular(2, packed), f.regular(3, raw)])
        report = convert(forge.reference(), f"{tmp_path}/new:t", format_version=3)
        assert (report.chunks, report.changed_chunks) == (2, 1)
        with open_image(forge.reference()) as image, open_image(f"{tmp_path}/new:t") as other:
            assert trees.in_image(image) == trees.in_image(other)

    def test_recorded_verity_digests_are_kept_and_missing_ones_computed(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci", 2)
        known, unknown = forge.chunk(b"known"), forge.chunk(b"unknown")
        layer = [f.directory(1, {b"f": 2, b"g": 3}), f.regular(2, known), f.regular(3, unknown)]
        vector = forge.codec.encode_inode_vector(layer)
        ref = BlobRef(forge.blob(vector), 0, False)
        odd = VerityDigest(bytes(32))
        verity = {known.blob.digest: odd, ref.digest: verity_digest(vector), Digest(b"\1" * 32): odd}
        forge.raw_rootfs(forge.codec.encode_rootfs(layers=(), metadata_refs=[ref], verity=verity))
        convert(forge.reference(), f"{tmp_path}/new:t", format_version=3)
        with open_image(f"{tmp_path}/new:t") as image:
            assert dict(image.rootfs.verity) == {known.blob.digest: odd, unknown.blob.digest: verity_digest(b"unknown")}


class TestLayouts:
    def test_the_other_kind_of_directory_is_refused(self, stack: Callable[..., str], tmp_path: Path) -> None:
        source = stack(3)
        index = (tmp_path / "oci3" / "index.json").read_bytes()
        with pytest.raises(InvalidArgumentError) as caught:
            convert(source, f"{tmp_path}/oci3:old", format_version=1)
        assert str(tmp_path / "oci3") in caught.value.message
        assert caught.value.hint
        assert (tmp_path / "oci3" / "index.json").read_bytes() == index

    @pytest.mark.parametrize("version", [2, 3])
    def test_chunks_are_linked(self, stack: Callable[..., str], tmp_path: Path, version: int) -> None:
        convert(stack(3), f"{tmp_path}/new:t", format_version=version)
        new = tmp_path / "new" / "blobs" / "sha256"
        shared = blobs_of(tmp_path / "new") & blobs_of(tmp_path / "oci3")
        assert len(shared) > 10
        for name in shared - {Digest.of(b"{}").hex()}:
            assert (new / name).samefile(tmp_path / "oci3" / "blobs" / "sha256" / name)

    def test_what_others_may_write_to_is_copied(self, stack: Callable[..., str], tmp_path: Path) -> None:
        source = stack(3)
        for name in blobs_of(tmp_path / "oci3"):
            (tmp_path / "oci3" / "blobs" / "sha256" / name).chmod(0o666)
        convert(source, f"{tmp_path}/new:t", format_version=2)
        for name in blobs_of(tmp_path / "new"):
            assert (tmp_path / "new" / "blobs" / "sha256" / name).stat().st_nlink == 1

    def test_a_shared_directory_of_blobs_needs_no_copy(self, stack: Callable[..., str], tmp_path: Path) -> None:
        source = stack(3, compression=True)
        Layout.open_or_create(tmp_path / "new", Dialect.PUZZLEFS_DEV).close()
        (tmp_path / "new" / "blobs" / "sha256").rmdir()
        (tmp_path / "new" / "blobs" / "sha256").symlink_to(tmp_path / "oci3" / "blobs" / "sha256")
        convert(source, f"{tmp_path}/new:t", format_version=1)
        with open_image(source) as image, open_image(f"{tmp_path}/new:t") as other:
            assert trees.in_image(image, mtime=True) == trees.in_image(other, mtime=True)

    def test_twice_is_once(self, stack: Callable[..., str], tmp_path: Path) -> None:
        source = stack(3, compression=True)
        first = convert(source, f"{tmp_path}/new:t", format_version=1)
        second = convert(source, f"{tmp_path}/new:t", format_version=1)
        assert first.digest == second.digest
        assert second.stored_bytes == 0

    def test_another_file_system(self, stack: Callable[..., str], tmp_path: Path) -> None:
        memory = Path("/dev/shm")
        if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
            pytest.skip("there is no other file system to write to")
        source = stack(3)
        place = memory / f"puzzlefs-test-{os.getpid()}"
        try:
            report = convert(source, f"{place}:t", format_version=2)
            with open_image(source) as image, open_image(f"{place}:t", digest=report.digest) as other:
                assert trees.in_image(image, mtime=True) == trees.in_image(other, mtime=True)
        finally:
            for path in sorted(place.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            place.rmdir()


class TestTransfer:
    """The three ways by which a blob gets into another layout."""

    DATA = NOISE + bytes(3 << 20)

    def layouts(self, place: Path) -> tuple[f.Forge, Layout]:
        return f.Forge(place / "from"), Layout.open_or_create(place / "to", Dialect.OCI)

    def bring(self, forge: f.Forge, layout: Layout, digest: Digest) -> int:
        with Layout.open(forge.path) as source, BlobWriter(layout) as writer:
            size = writer.put_from(source, digest)
            assert writer.put_from(source, digest) == size
            assert (writer.new_blobs, writer.stored_bytes) == (1, size)
            writer.commit()
        assert layout.blob_path(digest).read_bytes() == self.DATA
        assert os.listdir(layout.path / "blobs" / "sha256") == [digest.hex()]
        return layout.blob_path(digest).stat().st_nlink

    def test_a_link(self, tmp_path: Path) -> None:
        forge, layout = self.layouts(tmp_path)
        with layout:
            assert self.bring(forge, layout, forge.blob(self.DATA)) == 2

    @pytest.mark.parametrize("clones", [False, True])
    def test_a_copy_or_a_clone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clones: bool) -> None:
        def no_link(*_: object, **__: object) -> None:
            raise OSError(errno.EXDEV, "another file system")

        def clone(target: int, request: int, source: int) -> int:
            assert request == 0x40049409
            if not clones:
                raise OSError(errno.EOPNOTSUPP, "no clones")
            return os.pwrite(target, os.pread(source, len(self.DATA), 0), 0)

        monkeypatch.setattr(os, "link", no_link)
        monkeypatch.setattr(fcntl, "ioctl", clone)
        forge, layout = self.layouts(tmp_path)
        with layout:
            assert self.bring(forge, layout, forge.blob(self.DATA)) == 1

    @pytest.mark.parametrize("linked", [False, True])
    def test_a_corrupt_blob_leaves_nothing(self, tmp_path: Path, linked: bool) -> None:
        forge, layout = self.layouts(tmp_path)
        digest = forge.blob(self.DATA)
        path = forge.blob_path(digest)
        path.write_bytes(self.DATA[:-1] + b"x")
        path.chmod(0o644 if linked else 0o666)
        with layout, Layout.open(forge.path) as source, BlobWriter(layout) as writer:
            with pytest.raises(IntegrityError) as caught:
                writer.put_from(source, digest)
            assert str(path) in caught.value.message
            assert not [name for name in os.listdir(layout.path / "blobs" / "sha256") if ".lease-" not in name]

    def test_a_link_that_is_there_already_when_it_gets_its_name(self, tmp_path: Path) -> None:
        """Two writers at once: rename(2) does nothing then, and leaves the temporary name."""
        forge, layout = self.layouts(tmp_path)
        digest = forge.blob(self.DATA)
        with layout, Layout.open(forge.path) as source, BlobWriter(layout) as one, BlobWriter(layout) as other:
            one.put_from(source, digest)
            other.put_from(source, digest)
            one.commit()
            other.commit()
        assert os.listdir(layout.path / "blobs" / "sha256") == [digest.hex()]

    def test_nothing_stays_without_commit(self, tmp_path: Path) -> None:
        forge, layout = self.layouts(tmp_path)
        digest = forge.blob(self.DATA)
        with layout:
            with Layout.open(forge.path) as source, BlobWriter(layout) as writer:
                writer.put_from(source, digest)
            assert os.listdir(layout.path / "blobs" / "sha256") == []
        assert forge.blob_path(digest).stat().st_nlink == 1

    def test_the_host_fails(self, tmp_path: Path) -> None:
        forge, layout = self.layouts(tmp_path)
        fd = os.open(forge.blob_path(forge.blob(b"x")), os.O_RDONLY)
        try:
            with layout, pytest.raises(OSError):
                transfer.transfer(fd, Digest.of(b"x"), layout.blobs_fd, "no/such/place", "a blob")
        finally:
            os.close(fd)


class TestDamage:
    def stack_with_hidden(self, place: Path, version: int) -> tuple[f.Forge, Path, Path]:
        """An image, and the blobs of a file that it shows and of one that it hides."""
        forge = f.Forge(place / "oci", version)
        shown, hidden = forge.chunk(b"shown"), forge.chunk(b"hidden", compressed=True)
        lower = [f.directory(1, {b"a": 2, b"b": 3}), f.regular(2, shown), f.regular(3, hidden)]
        forge.image([f.directory(1, {b"a": 2})], lower)
        return forge, forge.blob_path(shown.blob.digest), forge.blob_path(hidden.blob.digest)

    @pytest.mark.parametrize("version", [1, 3])
    @pytest.mark.parametrize("target", [1, 2, 3])
    def test_what_only_hidden_files_use_may_be_missing(self, tmp_path: Path, version: int, target: int) -> None:
        forge, _, hidden = self.stack_with_hidden(tmp_path, version)
        hidden.unlink()
        convert(forge.reference(), f"{tmp_path}/new:t", format_version=target)
        with open_image(forge.reference()) as image, open_image(f"{tmp_path}/new:t") as other:
            assert len(other.rootfs.metadata_layers) == 2
            assert trees.in_image(image) == trees.in_image(other)

    @pytest.mark.parametrize("version", [1, 3])
    @pytest.mark.parametrize("target", [1, 2, 3])
    def test_what_can_be_read_may_not(self, tmp_path: Path, version: int, target: int) -> None:
        forge, shown, _ = self.stack_with_hidden(tmp_path, version)
        shown.unlink()
        self.expect(forge, tmp_path, target, BlobNotFoundError)

    @pytest.mark.parametrize("version", [1, 3])
    @pytest.mark.parametrize("target", [1, 2, 3])
    def test_corrupt(self, tmp_path: Path, version: int, target: int) -> None:
        forge, shown, _ = self.stack_with_hidden(tmp_path, version)
        shown.write_bytes(b"SHOWN")
        self.expect(forge, tmp_path, target, IntegrityError)

    def test_not_zstd(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci", 2)
        forge.image([f.directory(1, {b"f": 2}), f.regular(2, f.recompressed(forge.chunk(b"good content"), True))])
        self.expect(forge, tmp_path, 3, FormatError)

    def test_malformed_metadata(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci", 2)
        digest = bytes(forge.blob(b"x" * 50))
        layer = [f.directory(1, {b"f": 2}), f.regular(2, forge.chunk(b"x" * 50))]
        vector = forge.codec.encode_inode_vector(layer)
        at = vector.index(digest) - 8  # the pointer to the digest stands right before it
        forge.raw_vectors(vector[:at] + bytes(8) + vector[at + 8 :])
        self.expect(forge, tmp_path, 3, FormatError)

    def expect(self, forge: f.Forge, place: Path, target: int, error: type[PuzzlefsError]) -> None:
        with pytest.raises(error):
            convert(forge.reference(), f"{place}/new:t", format_version=target)
        with pytest.raises(TagNotFoundError):
            open_image(f"{place}/new:t")
        assert not [name for name in blobs_of(place / "new") if name.startswith(".tmp-")]


class TestArguments:
    @pytest.fixture(autouse=True)
    def _as_before(self) -> Iterator[None]:
        """A command that is run changes its process, which is this one here."""
        handler = signal.getsignal(signal.SIGTERM)
        yield
        signal.signal(signal.SIGTERM, handler)
        gc.enable()

    def test_what_makes_no_sense(self, tmp_path: Path) -> None:
        forge = f.Forge(tmp_path / "oci")
        forge.image([f.directory(1)])
        with pytest.raises(InvalidArgumentError, match="no format version 4"):
            convert(forge.reference(), f"{tmp_path}/new:t", format_version=4)
        with pytest.raises(InvalidArgumentError, match="0 workers"):
            convert(forge.reference(), f"{tmp_path}/new:t", format_version=1, workers=0)
        with pytest.raises(InvalidArgumentError, match="name an image"):
            convert(forge.reference(), "new", format_version=1)
        with pytest.raises(IntegrityError):
            convert(forge.reference(), f"{tmp_path}/new:t", format_version=1, digest="0" * 64)
        assert not (tmp_path / "new").exists()

    def test_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        forge = f.Forge(tmp_path / "oci")
        forge.image([f.directory(1, {b"f": 2}), f.regular(2, forge.chunk(b"x"))])
        assert main(["convert", "--format-version", "2", forge.reference(), f"{tmp_path}/new:t"]) == 0
        line = capsys.readouterr().out
        with open_image(f"{tmp_path}/new:t") as image:
            assert line == f"puzzlefs image manifest digest: {image.verity_digest()}\n"
        assert main(["convert", "--json", f"{tmp_path}/new", "t", "--format-version", "1", f"{tmp_path}/new", "u"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["metadata_layers"], report["chunks"], report["changed_chunks"]) == (1, 1, 0)
        assert main(["convert", "--format-version", "3", f"{tmp_path}/new:t", f"{tmp_path}/new:v"]) == 2
        assert "name another directory" in capsys.readouterr().err

    def test_words(self, tmp_path: Path) -> None:
        def said(*words: str) -> tuple[str, str]:
            source, target = two_images(words)
            return str(source), str(target)

        both = ("a:x", "b:y")
        assert said("a:x", "b:y") == said("a", "x", "b:y") == said("a:x", "b", "y") == said("a", "x", "b", "y") == both
        (tmp_path / "o:ci").mkdir()
        assert said(f"{tmp_path}/o:ci", "t", "b:y") == (f"{tmp_path}/o:ci:t", "b:y")
        for wrong in ([], ["a:x"], ["a", "b", "c", "d", "e"]):
            with pytest.raises(InvalidArgumentError, match=r"few|many"):
                two_images(wrong)

    def test_the_library_has_it(self) -> None:
        assert puzzlefs.convert.__doc__
        assert puzzlefs.ConvertReport.__doc__
