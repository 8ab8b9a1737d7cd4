"""How compressed images are stored: what may be chosen, what is refused, what readers make of it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import zstandard
from support import trees

from puzzlefs.builder import StorageOptions, build
from puzzlefs.builder.storage import (
    COMPRESSED_CUT_AT_FILES,
    COMPRESSED_LEVEL,
    COMPRESSED_SIZES,
    Storage,
    storage_of,
)
from puzzlefs.chunking import USUAL_SIZES, ChunkSizes
from puzzlefs.compression.frames import frames_of
from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, IntegrityError, InvalidArgumentError
from puzzlefs.image import open_image
from puzzlefs.model import RegularFile
from puzzlefs.oci import media_types
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.unit


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    (place / "sub").mkdir(parents=True)
    generator = random.Random(7)
    for number, size in enumerate([10, 3000, 50_000, 100, 700_000, 200, 0, 33_000]):
        words = generator.choices([generator.randbytes(length) for length in range(1, 40)], k=size)
        (place / "sub" / f"{number}").write_bytes(b"".join(words)[:size])
    (place / "link").symlink_to("sub/1")
    return place


class TestChoices:
    def test_defaults(self) -> None:
        nothing = StorageOptions()
        assert storage_of(3, compression=False, options=nothing) == Storage()
        assert storage_of(3, compression=True, options=nothing) == Storage(
            True, COMPRESSED_LEVEL, COMPRESSED_SIZES, COMPRESSED_CUT_AT_FILES, compact_metadata=True
        )
        for version in (1, 2):  # what the original writes
            assert storage_of(version, compression=True, options=nothing) == Storage(True, 3, USUAL_SIZES, 0)

    @pytest.mark.parametrize(
        ("average", "sizes"),
        [
            (16, (4, 16, 64)),
            (32, (8, 32, 128)),
            (64, (16, 64, 256)),
            (128, (32, 128, 256)),
            (256, (64, 256, 512)),
            (512, (128, 512, 1024)),
        ],
    )
    def test_sizes(self, average: int, sizes: tuple[int, int, int]) -> None:
        assert ChunkSizes.around(average << 10) == ChunkSizes(*(size << 10 for size in sizes))

    def test_the_usual_sizes_are_the_originals(self) -> None:
        assert ChunkSizes.around(64 << 10) == USUAL_SIZES

    @pytest.mark.parametrize(
        ("version", "options", "message"),
        [
            (3, StorageOptions(level=0), "no compression level 0"),
            (3, StorageOptions(level=23), "no compression level 23"),
            (1, StorageOptions(level=-1), "no compression level -1"),
            (3, StorageOptions(chunk_size=100_000), "chunks cannot be 100000 bytes"),
            (3, StorageOptions(chunk_size=8 << 10), "chunks cannot be 8192 bytes"),
            (3, StorageOptions(chunk_size=1 << 20), "chunks cannot be 1048576 bytes"),
            (3, StorageOptions(chunk_size=0), "chunks cannot be 0 bytes"),
            (3, StorageOptions(chunk_size=-65536), "chunks cannot be -65536 bytes"),
            (3, StorageOptions(cut_at_files=4095), "files of 4095 bytes are too small"),
            (3, StorageOptions(cut_at_files=-1), "files of -1 bytes are too small"),
            (2, StorageOptions(compress_metadata=True), "format version 2 has no compressed metadata"),
        ],
    )
    def test_what_makes_no_sense(self, version: int, options: StorageOptions, message: str) -> None:
        with pytest.raises(InvalidArgumentError, match=message) as caught:
            storage_of(version, compression=True, options=options)
        assert caught.value.hint

    @pytest.mark.parametrize(
        "options",
        [
            StorageOptions(level=3),
            StorageOptions(chunk_size=64 << 10),
            StorageOptions(cut_at_files=0),
            StorageOptions(compress_metadata=True),
        ],
    )
    def test_uncompressed_images_have_no_choice(self, root: Path, tmp_path: Path, options: StorageOptions) -> None:
        with pytest.raises(InvalidArgumentError, match="uncompressed image"):
            build(root, f"{tmp_path}/oci:tag", storage=options)
        assert not (tmp_path / "oci").exists()


class TestImages:
    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize(
        "options",
        [
            StorageOptions(),
            StorageOptions(level=1, chunk_size=16 << 10, cut_at_files=4 << 10),
            StorageOptions(level=19, chunk_size=512 << 10, cut_at_files=0),
        ],
    )
    def test_all_of_them_show_the_tree(self, root: Path, tmp_path: Path, version: int, options: StorageOptions) -> None:
        report = build(root, f"{tmp_path}/oci:tag", format_version=version, compression=True, storage=options)
        with open_image(f"{tmp_path}/oci:tag", digest=report.digest) as image:
            assert trees.in_image(image) == trees.on_disk(bytes(root))

    def test_large_files_have_chunks_of_their_own(self, root: Path, tmp_path: Path) -> None:
        build(root, f"{tmp_path}/oci:tag", compression=True)
        with open_image(f"{tmp_path}/oci:tag") as image:
            files = [inode.content for inode in image.rootfs.metadata_layers[0]]
            contents = [content for content in files if isinstance(content, RegularFile) and content.size]
        users: dict[Digest, int] = {}
        for content in contents:
            for digest in {chunk.blob.digest for chunk in content.chunks}:
                users[digest] = users.get(digest, 0) + 1
        for content in contents:
            alone = all(users[chunk.blob.digest] == 1 for chunk in content.chunks)
            first_offset = content.chunks[0].blob.offset
            assert content.size < COMPRESSED_CUT_AT_FILES or (alone and first_offset == 0)
        assert max(users.values()) > 1  # the small ones that are neighbours

    def test_a_higher_level_is_smaller(self, root: Path, tmp_path: Path) -> None:
        sizes = [
            build(root, f"{tmp_path}/{level}:tag", compression=True, storage=StorageOptions(level=level)).stored_bytes
            for level in (1, 19)
        ]
        assert sizes[1] < sizes[0]


class TestCompressedMetadata:
    @pytest.fixture
    def layout(self, root: Path, tmp_path: Path) -> Path:
        build(root, f"{tmp_path}/plain:tag", compression=True)
        self.report = build(
            root, f"{tmp_path}/oci:tag", compression=True, storage=StorageOptions(compress_metadata=True)
        )
        return tmp_path / "oci"

    def rootfs_blob(self, layout: Path) -> Path:
        with open_image(f"{layout}:tag") as image:
            assert image.manifest is not None
            return layout / "blobs" / "sha256" / image.manifest.rootfs().digest.hex()

    def test_is_one_frame_of_what_is_stored_otherwise(self, layout: Path) -> None:
        stored = self.rootfs_blob(layout).read_bytes()
        plain = self.rootfs_blob(layout.parent / "plain").read_bytes()
        assert len(frames_of(stored)) == 1
        assert zstandard.ZstdDecompressor().decompress(stored) == plain
        assert len(stored) < len(plain)

    def test_its_type_says_so_and_the_verity_digest_is_that_of_the_file(self, layout: Path) -> None:
        with open_image(f"{layout}:tag", digest=self.report.digest) as image:
            assert image.manifest is not None
            descriptor = image.manifest.rootfs()
        stored = self.rootfs_blob(layout).read_bytes()
        assert descriptor.media_type == "application/vnd.puzzlefs.image.rootfs.v1+zstd"
        assert descriptor.size == len(stored)
        assert descriptor.annotation(media_types.VERITY_ROOT_HASH) == verity_digest(stored).hex()

    def test_the_same_tree_is_shown(self, layout: Path, root: Path) -> None:
        with open_image(f"{layout}:tag", digest=self.report.digest) as image:
            assert trees.in_image(image) == trees.on_disk(bytes(root))

    def test_damage_is_found_before_anything_is_decompressed(self, layout: Path) -> None:
        path = self.rootfs_blob(layout)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=path.name):
            open_image(f"{layout}:tag")

    @pytest.mark.parametrize(
        ("blob", "message"),
        [
            (zstandard.compress(bytes(200 << 20), 3), "more than"),
            (zstandard.ZstdCompressor().compress(b"x" * 100)[:-3], "middle of a zstd frame"),
            (b"plain bytes of no frame", "not a zstd frame"),
        ],
        ids=["bomb", "torn", "plain"],
    )
    def test_hostile_metadata(self, layout: Path, blob: bytes, message: str) -> None:
        index = json.loads((layout / "index.json").read_text())
        blobs = layout / "blobs" / "sha256"
        top = index["manifests"][0]
        manifest = json.loads((blobs / top["digest"].removeprefix("sha256:")).read_text())
        digest = Digest.of(blob)
        (blobs / digest.hex()).write_bytes(blob)
        manifest["layers"][0] |= {"digest": digest.oci, "size": len(blob)}
        text = json.dumps(manifest).encode()
        (blobs / Digest.of(text).hex()).write_bytes(text)
        top |= {"digest": Digest.of(text).oci, "size": len(text)}
        (layout / "index.json").write_text(json.dumps(index))
        with pytest.raises(FormatError, match=message):
            open_image(f"{layout}:tag")
