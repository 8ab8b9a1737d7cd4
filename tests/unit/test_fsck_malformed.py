"""Checking images that are intact and yet say something that cannot be."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from support import forge as f
from support.examine import limited
from support.forge import Forge
from support.fsck_layouts import (
    assert_clean,
)

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.fsck import FsckReport, State, fsck
from puzzlefs.fsck.report import RemarkKind
from puzzlefs.image_commit import commit_image
from puzzlefs.model import Fifo, Inode
from puzzlefs.oci import media_types
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.unit


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
