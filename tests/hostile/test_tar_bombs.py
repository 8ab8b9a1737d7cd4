"""Archives and images that were made to hurt: an error in bounded time and memory, and nothing anywhere else."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import random
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import zstandard
from support import forge as f
from support.archives import archive, exported, imported, member, odd_tree, pax, summed
from support.examine import limited
from support.forge import Forge

from puzzlefs.builder import build
from puzzlefs.errors import PuzzlefsError
from puzzlefs.image import open_image
from puzzlefs.model import Fifo
from puzzlefs.tar import export_tar, import_tar
from puzzlefs.tar.records import MAX_RECORDS, MAX_SEGMENTS

pytestmark = pytest.mark.hostile

_MIB = 1 << 20


def outcome(action: Callable[[], object], *, memory: int = 768 * _MIB, seconds: float = 60) -> str:
    """What comes of something, in a process with limits: the class and the text of the error."""

    def run() -> str:
        try:
            action()
        except PuzzlefsError as error:
            return f"{type(error).__name__}: {error}"
        return "done"

    return limited(run, memory=memory, seconds=seconds)


def gzipped(parts: Iterator[bytes]) -> bytes:
    """Parts as one gzip stream, compressed as well as can be."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(map(compressor.compress, parts)) + compressor.flush()


class TestBombs:
    def test_gigabytes_of_zeros_in_a_file(self, tmp_path: Path) -> None:
        """Zeros take no room in the temporary file, and no time to be stored."""
        size = 1 << 30
        data = gzipped(part for part in (member(b"x", size=b"%011o\0" % size), *[bytes(_MIB)] * 1024, bytes(1024)))
        assert len(data) < 3 * _MIB
        assert outcome(lambda: imported(data, f"{tmp_path}/images:x"), memory=384 * _MIB) == "done"
        with open_image(f"{tmp_path}/images:x") as image:
            assert image.tree.totals().size == size

    def test_gigabytes_behind_the_end(self, tmp_path: Path) -> None:
        data = gzipped(part for part in (archive(member(b"x")), *[b"x" * _MIB] * 512))
        assert outcome(lambda: imported(data, f"{tmp_path}/images:x"), memory=384 * _MIB) == "done"

    def test_a_size_that_is_not_there(self, tmp_path: Path) -> None:
        data = member(b"x", size=b"\x80" + bytes(3) + (1 << 62).to_bytes(8, "big"))
        path = tmp_path / "archive.tar"
        path.write_bytes(data)
        assert "ends early" in outcome(lambda: import_tar(path, f"{tmp_path}/images:x"))
        assert "ends early" in outcome(lambda: imported(data, f"{tmp_path}/images:x"))

    @pytest.mark.parametrize("size", [(1 << 63) - 1, 1 << 62, 1 << 50])
    def test_holes_of_any_size(self, tmp_path: Path, size: int) -> None:
        hole = pax((b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.map", b""))
        for number in (1, 3):
            data = archive(*(hole + member(b"%d" % name) for name in range(number)))
            assert outcome(partial(imported, data, f"{tmp_path}/images:x")).startswith("FormatError: ")

    def test_maps_of_holes(self, tmp_path: Path) -> None:
        """A map of millions of segments of nothing, in each of the formats; and as many as there may be."""
        records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"10"))

        def in_data(count: int) -> bytes:
            text = b"%d\n" % count + b"0\n0\n" * count
            return archive(pax(*records) + member(b"x", data=text + bytes(-len(text) % 512)))

        def in_header(count: int) -> bytes:
            said = ((b"GNU.sparse.size", b"1"), (b"GNU.sparse.map", b"0,0," * (count - 1) + b"0,0"))
            return archive(pax(*said) + member(b"x"))

        for make in (in_data, in_header):
            fitting, beyond = make(MAX_SEGMENTS), gzipped(iter([make(2_000_000)]))
            assert len(beyond) < 64 << 10
            assert outcome(partial(imported, fitting, f"{tmp_path}/images:x"), memory=200 * _MIB) == "done"
            assert "runs of data" in outcome(partial(imported, beyond, f"{tmp_path}/images:x"), memory=200 * _MIB)
        old = bytearray(member(b"x", b"S"))
        old[386:410] = b"%011o\0%011o\0" % (0, 0)
        old[482:483] = b"\1"
        old[483:495] = b"%011o\0" % 10
        extension = bytes(504) + b"\1" + bytes(7)
        many = gzipped(part for part in (summed(old), *[extension * 2048] * 64))
        assert "ends early" in outcome(lambda: imported(many, f"{tmp_path}/images:x"))

    def test_millions_of_records(self, tmp_path: Path) -> None:
        def records(count: int) -> bytes:
            return archive(member(b"pax", b"x", data=b"5 a=\n" * count), member(b"x"))

        fitting, beyond = records(MAX_RECORDS), gzipped(iter([records(3_000_000)]))
        assert len(beyond) < 64 << 10
        assert outcome(partial(imported, fitting, f"{tmp_path}/images:x"), memory=200 * _MIB) == "done"
        assert "records" in outcome(partial(imported, beyond, f"{tmp_path}/images:x"), memory=200 * _MIB)

    def test_extended_headers_without_end(self, tmp_path: Path) -> None:
        """More of them than any image has room for, from a few megabytes."""
        block = pax((b"SCHILY.xattr.user.x", bytes(8 * _MIB)))
        data = gzipped(part for number in range(140) for part in (block, member(b"%d" % number)))
        assert len(data) < 4 * _MIB
        assert "bytes of extended headers" in outcome(lambda: imported(data, f"{tmp_path}/images:x"), memory=2 << 30)

    def test_nothing_but_extended_headers(self, tmp_path: Path) -> None:
        block = pax((b"comment", b"x" * 100)) * 1000
        data = gzipped(part for part in [block] * 200)
        assert "has no member behind it" in outcome(lambda: imported(data, f"{tmp_path}/images:x"))

    def test_a_path_of_many_directories(self, tmp_path: Path) -> None:
        deep = b"d/" * 8_000
        data = archive(pax((b"path", deep + b"x")) + member(b"x"), pax((b"path", deep + b"y")) + member(b"y"))
        assert outcome(lambda: imported(data, f"{tmp_path}/images:x")) == "done"
        with open_image(f"{tmp_path}/images:x") as image:
            assert image.tree.totals().inodes == 8_003
        assert outcome(lambda: exported(f"{tmp_path}/images:x")) == "done"
        too_deep = archive(pax((b"path", deep * 2 + b"x")) + member(b"x"))
        assert "it has a name of 32001 bytes" in outcome(lambda: imported(too_deep, f"{tmp_path}/images:x"))

    def test_a_maze_of_links(self, tmp_path: Path) -> None:
        """Each link leads twice through the one before it: 2 to the power of 40 steps, if nobody counts."""
        links = [member(b"l0", b"2", target=b".")]
        links += [member(b"l%d" % n, b"2", target=b"l%d/l%d" % (n - 1, n - 1)) for n in range(1, 40)]
        data = archive(*links, member(b"l39/x"))
        assert "too many symbolic links" in outcome(lambda: imported(data, f"{tmp_path}/images:x"))

    def test_many_files(self, tmp_path: Path) -> None:
        """As many files as an image cannot hold."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("puzzlefs.tar.tree._MAX_INODES", 20_000)
            data = gzipped(member(b"%d" % number) for number in range(25_000))
            assert "there are more than 20000 files" in outcome(lambda: imported(data, f"{tmp_path}/images:x"))


class TestWrappings:
    def test_a_bomb_of_zstd(self, tmp_path: Path) -> None:
        """128 KiB in four bytes, again and again: what comes out is not held."""
        head = member(b"x", size=b"%011o\0" % (3 << 30))
        data = zstandard.ZstdCompressor(level=19).compress(head + bytes(8 * _MIB))
        frames = data + zstandard.ZstdCompressor(level=19).compress(bytes(64 * _MIB)) * 48
        assert len(frames) < _MIB
        result = outcome(lambda: imported(frames, f"{tmp_path}/images:x"), memory=512 * _MIB)
        assert result == "done" or "ends early" in result

    def test_a_window_of_zstd(self, tmp_path: Path) -> None:
        parameters = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        data = compressor.compress(archive(member(b"x"))) + compressor.flush()
        assert "the zstd stream is damaged" in outcome(lambda: imported(data, f"{tmp_path}/images:x"))

    def test_a_dictionary_of_xz(self, tmp_path: Path) -> None:
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
        data = bytearray(lzma.compress(archive(member(b"x")), filters=filters))
        position = data.index(b"\x21\x01")  # the filter, and the size of its properties
        data[position + 2] = 40  # 4 GiB - 1
        header = data[12 : 12 + (data[12] + 1) * 4 - 4]
        data[12 + len(header) : 16 + len(header)] = zlib.crc32(header).to_bytes(4, "little")
        assert "the xz stream is damaged: Memory usage limit" in outcome(
            lambda: imported(bytes(data), f"{tmp_path}/images:x")
        )


class TestNoise:
    """Random damage: an image or an error of the tree, and nothing outside of the layout."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> bytes:
        source = odd_tree(tmp_path / "source")
        for name in ("large", "holes", "all-hole"):
            os.truncate(source / name, 5000)
        build(source, f"{tmp_path}/built:x", timestamps="keep")
        return exported(f"{tmp_path}/built:x")

    @pytest.mark.parametrize("seed", range(4))
    def test_of_any_kind(self, tmp_path: Path, data: bytes, seed: int) -> None:
        rnd = random.Random(seed)
        before = sorted(path for path in tmp_path.rglob("*") if "images" not in path.parts)

        def run() -> int:
            failed = 0
            for _ in range(150):
                damaged = damage(data, rnd)
                try:
                    imported(damaged, f"{tmp_path}/images:x")
                except PuzzlefsError:
                    failed += 1
                else:
                    exported(f"{tmp_path}/images:x")
            return failed

        assert 0 < limited(run, seconds=120) < 150
        assert sorted(path for path in tmp_path.rglob("*") if "images" not in path.parts) == before

    @pytest.mark.parametrize("wrap", [gzip.compress, lzma.compress, zstandard.compress])
    def test_of_the_wrapping(self, tmp_path: Path, data: bytes, wrap: Callable[[bytes], bytes]) -> None:
        rnd = random.Random(7)
        wrapped = wrap(data)

        def run() -> int:
            failed = 0
            for _ in range(100):
                try:
                    imported(damage(wrapped, rnd), f"{tmp_path}/images:x")
                except PuzzlefsError:
                    failed += 1
            return failed

        assert limited(run, seconds=120) > 20


def damage(data: bytes, rnd: random.Random) -> bytes:
    """The archive with a few changes; half of the time with checksums that are right again."""
    changed = bytearray(data)
    for _ in range(rnd.choice((1, 1, 2, 5))):
        place = rnd.randrange(len(changed))
        match rnd.randrange(5):
            case 0:
                changed[place] = rnd.randrange(256)
            case 1:
                block = place - place % 512
                changed[block : block + 512] = changed[:512] if rnd.random() < 0.5 else rnd.randbytes(512)
            case 2:
                del changed[place : place + rnd.choice((1, 512, 5120))]
            case 3:
                block = place - place % 512
                field = rnd.choice((100, 108, 124, 136, 156, 257, 345, 386, 482))
                changed[block + field : block + field + 4] = rnd.choice(
                    (b"\xff\xff\xff\xff", b"\x80\0\0\0", b"7777", b"\0\0\0\0")
                )
            case _:
                del changed[place:]
    if rnd.random() < 0.5:
        for start in range(0, len(changed) - 511, 512):
            block_of = changed[start : start + 512]
            if block_of[257:262] == b"ustar":
                changed[start : start + 512] = summed(block_of)
    return bytes(changed)


class TestImages:
    """Images that were made to hurt, exported."""

    def test_a_file_whose_parts_cost_more_than_they_are(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        chunks = [forge.chunk(bytes([number]) * (4 * _MIB), compressed=True, length=1) for number in range(200)]
        reference = forge.image([f.directory(1, {b"x": 2}), f.regular(2, *chunks)])
        result = outcome(lambda: export_tar(reference, io.BytesIO()))
        assert result.startswith("FormatError: cannot export /x of ")
        assert "absurdly small" in result

    def test_large_chunks_do_not_add_up(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        chunks = [forge.chunk(bytes([number]) * (40 * _MIB), compressed=True) for number in range(1, 30)]
        reference = forge.image([f.directory(1, {b"x": 2}), f.regular(2, *chunks)])

        class Nowhere:
            def write(self, _data: bytes) -> None:
                return None

        assert outcome(lambda: export_tar(reference, Nowhere()), memory=640 * _MIB) == "done"

    def test_a_directory_in_itself(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        reference = forge.image([f.directory(1, {b"a": 2}), f.directory(2, {b"b": 2, b"root": 1})])
        assert "cannot export /a/b" in outcome(lambda: exported(reference))

    def test_what_is_missing(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        reference = forge.image([f.directory(1, {b"a": 2, b"b": 3}), f.inode(2, Fifo())])
        assert "cannot export /b of" in outcome(lambda: exported(reference))

    @pytest.mark.parametrize("name", [b"a/b", b"..", b"", b"a\0b", b"n" * 256])
    def test_names_that_cannot_be(self, tmp_path: Path, name: bytes) -> None:
        forge = Forge(tmp_path / "images")
        reference = forge.image([f.directory(1, {b"d": 2}), f.directory(2, {name: 3}), f.inode(3, Fifo())])
        result = outcome(lambda: exported(reference))
        assert result.startswith("FormatError: cannot export /d of ")
        assert "cannot be a name" in result

    def test_a_tree_that_is_too_deep(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        name = b"n" * 255
        reference = forge.image([*(f.directory(ino, {name: ino + 1}) for ino in range(1, 400)), f.directory(400)])
        result = outcome(lambda: exported(reference))
        assert result.startswith("FormatError: cannot export /nnn")
        assert "its path has more than" in result
        assert len(result) < 2000

    def test_links_that_lead_outside_stay_links(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        reference = forge.image([f.directory(1, {b"etc": 2}), f.symlink(2, b"/etc")])
        with pytest.raises(PuzzlefsError, match=r"does not exist in the image|symbolic links"):
            exported(reference, "/etc/passwd")
