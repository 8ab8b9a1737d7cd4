"""Images as tar archives: every kind of member as Python's tarfile reads it, exact to the byte."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.archives import content_of, exported, listed, odd_tree
from support.forge import Forge

from puzzlefs.builder import StorageOptions, build
from puzzlefs.errors import BlobNotFoundError, FormatError, IntegrityError, NotFoundError
from puzzlefs.image import open_image
from puzzlefs.model import BlockDevice, CharDevice, Fifo, Socket
from puzzlefs.tar import export_tar
from puzzlefs.tar.encode import member_header
from puzzlefs.tar.export import SMALLEST_HOLE

pytestmark = pytest.mark.unit


def one_file(forge: Forge, *parts: Any, **fields: Any) -> str:
    """An image with one file."""
    return forge.image([f.directory(1, {b"file": 2}), f.regular(2, *parts, **fields)])


class TestHeaders:
    @pytest.mark.parametrize("length", [1, 98, 99, 100, 101, 154, 155, 156, 157, 254, 255, 256, 257, 258, 1000, 70_000])
    @pytest.mark.parametrize("is_directory", [False, True])
    @pytest.mark.parametrize("every", [7, 90, 100, 160, 300])
    def test_names_of_any_length(self, length: int, is_directory: bool, every: int) -> None:
        name = bytes(0x2F if place % every == every - 1 else 0x61 for place in range(length - 1)) + b"b"
        if is_directory:
            name += b"/"
        header = member_header(b"5" if is_directory else b"0", name, mode=0, uid=0, gid=0, mtime_ns=0)
        assert len(header) % 512 == 0
        assert list(listed(header + bytes(1024))) == [name.decode().rstrip("/")]

    @pytest.mark.parametrize("name", [b"\xff\xfe", b"a\nb", "ä".encode(), "ü".encode() * 60, b"\xff" * 200])
    def test_names_of_any_bytes(self, name: bytes) -> None:
        header = member_header(b"2", name, mode=0, uid=0, gid=0, mtime_ns=0, target=name)
        info = listed(header + bytes(1024))[os.fsdecode(name)]
        assert os.fsencode(info.linkname) == name

    @pytest.mark.parametrize(
        ("mtime_ns", "text"),
        [
            (0, None),
            (5 * 10**9, None),
            (8**11 * 10**9 - 10**9, None),
            (8**11 * 10**9, "8589934592"),
            (1, "0.000000001"),
            (1_500_000_000, "1.5"),
            (-1, "-0.000000001"),
            (-1_500_000_000, "-1.5"),
            (-(10**9), "-1"),
            ((1 << 63) - 1, "9223372036.854775807"),
        ],
    )
    def test_times(self, mtime_ns: int, text: str | None) -> None:
        header = member_header(b"0", b"x", mode=0, uid=0, gid=0, mtime_ns=mtime_ns)
        info = listed(header + bytes(1024))["x"]
        assert info.pax_headers.get("mtime") == text
        assert info.mtime == pytest.approx(mtime_ns / 10**9)

    def test_large_numbers(self) -> None:
        header = member_header(b"5", b"x/", mode=0o7777, uid=0xFFFFFFFE, gid=2_097_151, mtime_ns=0, size=0)
        info = listed(header + bytes(1024))["x"]
        assert (info.uid, info.gid, info.mode) == (0xFFFFFFFE, 2_097_151, 0o7777)
        assert set(info.pax_headers) == {"uid"}
        huge = member_header(b"0", b"x", mode=0, uid=0, gid=0, mtime_ns=0, size=8**11)
        assert b"19 size=8589934592\n" in huge

    def test_record_lengths_count_themselves(self) -> None:
        for length in (*range(80, 100), *range(975, 1000), *range(9970, 10_000)):
            header = member_header(b"0", b"x", mode=0, uid=0, gid=0, mtime_ns=0, xattrs={b"user.x": b"v" * length})
            info = listed(header + bytes(1024))["x"]
            assert info.pax_headers == {"SCHILY.xattr.user.x": "v" * length}


class TestKinds:
    def test_a_built_tree(self, tmp_path: Path) -> None:
        source = odd_tree(tmp_path / "source", sockets=True)
        build(source, f"{tmp_path}/images:x", timestamps="keep")
        output = io.BytesIO()
        report = export_tar(f"{tmp_path}/images:x", output)
        assert report.sockets == 1
        data = output.getvalue()
        found = listed(data)
        assert report.members == len(found)
        paths = {
            os.path.relpath(path, os.fsencode(source)): path
            for top, directories, files in os.walk(os.fsencode(source))
            for path in (top, *(os.path.join(top, name) for name in directories + files))
        }
        assert {os.fsencode(name).removeprefix(b"./") for name in found} == {*paths} - {b"socket"}
        first: dict[int, str] = {}
        for name, info in found.items():
            path = paths[os.fsencode(name).removeprefix(b"./") or b"."]
            status = os.lstat(path)
            assert info.mode == status.st_mode & 0o7777
            assert (info.uid, info.gid) == (status.st_uid, status.st_gid)
            if info.islnk():
                assert info.linkname == first[status.st_ino]
                continue
            first[status.st_ino] = name
            assert info.mtime == pytest.approx(status.st_mtime_ns / 10**9)
            xattrs = {
                key.removeprefix("SCHILY.xattr.").replace("%3D", "=").replace("%25", "%"): os.fsencode(value)
                for key, value in info.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            assert xattrs == {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            if info.isreg():
                with open(path, "rb") as file:
                    assert content_of(data, name) == file.read()
            elif info.issym():
                assert os.fsencode(info.linkname) == os.readlink(path)
            elif info.isdev() and not info.isfifo():
                assert (info.devmajor, info.devminor) == (os.major(status.st_rdev), os.minor(status.st_rdev))

    def test_devices_and_others(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        reference = forge.image([
            f.directory(1, {b"b": 2, b"c": 3, b"f": 4, b"l": 2, b"s": 5, b"t": 5, b"y": 6}),
            f.inode(2, BlockDevice(0xFFF, 0xFFFFF)),
            f.inode(3, CharDevice(0, 0)),
            f.inode(4, Fifo()),
            f.inode(5, Socket()),
            f.symlink(6, b"target", permissions=0o600),
        ])  # fmt: skip
        found = listed(exported(reference))
        assert [(name, info.type) for name, info in found.items()] == [
            (".", b"5"), ("./b", b"4"), ("./c", b"3"), ("./f", b"6"), ("./l", b"1"), ("./y", b"2"),
        ]  # fmt: skip
        assert (found["./b"].devmajor, found["./b"].devminor) == (0xFFF, 0xFFFFF)
        assert found["./y"].mode == 0o777

    def test_files_come_before_directories_and_those_with_what_is_in_them(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        reference = forge.image([
            f.directory(1, {b"a": 2, b"b": 3, b"c": 4, b"d": 5}),
            f.directory(2, {b"x": 6}),
            f.inode(3, Fifo()),
            f.directory(4),
            f.inode(5, Fifo()),
            f.directory(6),
        ])  # fmt: skip
        assert list(listed(exported(reference))) == [".", "./b", "./d", "./a", "./a/x", "./c"]

    def test_the_same_bytes_from_every_version_and_storage(self, tmp_path: Path) -> None:
        source = odd_tree(tmp_path / "source")
        archives = set()
        ways: list[dict[str, Any]] = [
            {}, {"compression": True}, {"format_version": 1}, {"format_version": 2, "compression": True},
            {"chunker": "ronomon"}, {"compression": True, "storage": StorageOptions(chunk_size=512 << 10)},
        ]  # fmt: skip
        for number, options in enumerate(ways):
            reference = f"{tmp_path}/images{number}:x"
            build(source, reference, timestamps="keep", **options)
            archives.add(hashlib.sha256(exported(reference)).hexdigest())
        assert len(archives) == 1

    def test_metadata_layers(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        below = [f.directory(1, {b"old": 2, b"same": 3}), f.regular(2, forge.chunk(b"old")), f.inode(3, Fifo())]
        above = [f.directory(1, {b"new": 4, b"same": 3}), f.regular(4, forge.chunk(b"new"))]
        data = exported(forge.image(above, below))
        assert list(listed(data)) == [".", "./new", "./same"]
        assert content_of(data, "./new") == b"new"

    def test_the_original_images(self, vectors: Path, expected: dict[str, Any]) -> None:
        compared = 0
        for layout in sorted({path.parent for path in vectors.rglob("index.json")}):
            digests = expected["digests"].get(layout.relative_to(vectors).as_posix(), {})
            for tag in digests:
                tree = expected["trees"][tag]
                data = exported(f"{layout}:{tag}")
                found = {name.removeprefix("./"): info for name, info in listed(data).items()}
                assert set(found) == {path for path, node in tree.items() if node["type"] != "socket"}
                compared += len(found)
        assert compared > 0

    def test_pinned_bytes(self, tmp_path: Path) -> None:
        """Archives are signed and compared: whatever changes these bytes changes all of them."""
        forge = Forge(tmp_path / "images")
        reference = forge.image([
            f.directory(1, {b"dir": 2, b"file": 3, b"hard": 3, b"n" * 101: 4, b"\xff": 5, b"link": 6}),
            f.directory(2),
            f.regular(3, forge.chunk(b"content\n"), uid=1 << 24, mtime_ns=1_500_000_000, xattrs={b"user.a=": b"\0"}),
            f.inode(4, CharDevice(1, 3), permissions=0o666),
            f.inode(5, Fifo()),
            f.symlink(6, b"file"),
        ])  # fmt: skip
        data = exported(reference)
        assert len(data) == 10_240
        assert hashlib.sha256(data).hexdigest() == PINNED


PINNED = "298ee4cdb27de1001fe9e59aa1d9295ea779c38f1005a625c91111c8c90798ca"


class TestHoles:
    def sparse_image(self, forge: Forge, pieces: list[bytes | int]) -> tuple[str, bytes]:
        """An image of one file of data and zeros (numbers of bytes), in chunks as a builder cuts zeros."""
        parts = []
        content = b""
        for piece in pieces:
            data = bytes(piece) if isinstance(piece, int) else piece
            content += data
            parts += [forge.chunk(data[start : start + (256 << 10)]) for start in range(0, len(data), 256 << 10)]
        return one_file(forge, *parts), content

    @pytest.mark.parametrize(
        ("pieces", "segments"),
        [
            ([b"a", SMALLEST_HOLE, b"b"], [(0, 1), (SMALLEST_HOLE + 1, 1)]),
            ([b"a", SMALLEST_HOLE - 1, b"b"], None),
            ([SMALLEST_HOLE], []),
            ([SMALLEST_HOLE - 1], None),
            ([SMALLEST_HOLE + 777, b"xyz"], [(SMALLEST_HOLE + 777, 3)]),
            ([b"xyz", SMALLEST_HOLE + 777], [(0, 3)]),
            ([b"a" * 600_000, 9 << 20, b"\0b\0", 5 << 20, b"c" * 1000], None),
        ],
    )
    def test_long_runs_of_zeros(
        self, tmp_path: Path, pieces: list[bytes | int], segments: list[tuple[int, int]] | None
    ) -> None:
        forge = Forge(tmp_path / "images")
        reference, content = self.sparse_image(forge, pieces)
        data = exported(reference)
        info = listed(data)["./file"]
        assert info.size == len(content)
        assert content_of(data, "./file") == content
        if segments is not None:
            assert info.sparse is not None
            assert [segment for segment in info.sparse if segment[1]] == segments
        elif len(pieces) < 4:
            assert info.sparse is None
        else:
            assert info.sparse is not None
            assert len(data) < 700_000

    def test_a_hole_costs_nothing(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        zeros = forge.chunk(bytes(256 << 10))
        reference = one_file(forge, *[zeros] * 400_000, forge.chunk(b"end"))  # 100 GB
        data = exported(reference)
        info = listed(data)["./file"]
        assert info.size == 400_000 * (256 << 10) + 3
        assert len(data) == 10_240


class TestPaths:
    @pytest.fixture
    def reference(self, tmp_path: Path) -> str:
        source = tmp_path / "source"
        (source / "usr/share/doc").mkdir(parents=True)
        (source / "usr/share/doc/README").write_text("read me")
        os.link(source / "usr/share/doc/README", source / "usr/before")
        os.link(source / "usr/share/doc/README", source / "usr/share/doc/z")
        (source / "share").symlink_to("/usr/share")
        build(source, f"{tmp_path}/images:x")
        return f"{tmp_path}/images:x"

    def test_a_directory(self, reference: str) -> None:
        data = exported(reference, "/usr/share")
        assert list(listed(data)) == [".", "./doc", "./doc/README", "./doc/z"]
        assert content_of(data, "./doc/README") == b"read me"  # its first name in the image is elsewhere
        assert listed(data)["./doc/z"].linkname == "./doc/README"

    def test_links_on_the_way_are_followed(self, reference: str) -> None:
        assert exported(reference, "/share/doc") == exported(reference, "usr/share/doc")

    def test_a_link_at_the_end_is_exported(self, reference: str) -> None:
        assert [info.type for info in listed(exported(reference, "/share")).values()] == [b"2"]
        assert exported(reference, "/share/") == exported(reference, "/usr/share")

    def test_a_file(self, reference: str) -> None:
        data = exported(reference, "/usr/before")
        assert list(listed(data)) == ["before"]
        assert content_of(data, "before") == b"read me"

    def test_nothing(self, reference: str) -> None:
        with pytest.raises(NotFoundError, match=r"/usr/nope does not exist in the image"):
            exported(reference, "/usr/nope")


class TestErrors:
    def test_a_damaged_chunk(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        chunk = forge.chunk(b"content")
        reference = one_file(forge, chunk)
        f.put_file(forge.blob_path(chunk.blob.digest), b"CONTENT")
        with pytest.raises(IntegrityError, match=r"cannot export /file of .*images:hostile") as raised:
            exported(reference)
        assert raised.value.hint
        assert raised.value.__cause__ is not raised.value
        forge.blob_path(chunk.blob.digest).unlink()
        with pytest.raises(BlobNotFoundError, match="cannot export /file"):
            exported(reference)

    def test_the_damaged_one_of_many_is_named(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        chunks = [forge.chunk(b"%d" % number) for number in range(100)]
        names = {b"%03d" % number: number + 2 for number in range(100)}
        reference = forge.image(
            [f.directory(1, names), *(f.regular(number + 2, chunk) for number, chunk in enumerate(chunks))]
        )
        forge.blob_path(chunks[57].blob.digest).write_bytes(b"other")
        with pytest.raises(IntegrityError, match="cannot export /057 of"):
            exported(reference)

    def test_a_part_that_is_longer_than_its_chunk(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        reference = one_file(forge, forge.chunk(b"short", length=100))
        with pytest.raises(FormatError, match="cannot export /file"):
            exported(reference)

    def test_errors_of_the_output_come_through(self, tmp_path: Path) -> None:
        class Full:
            def write(self, _data: bytes) -> int:
                raise BrokenPipeError

        forge = Forge(tmp_path / "images")
        with pytest.raises(BrokenPipeError):
            export_tar(one_file(forge, forge.chunk(b"x")), Full())

    def test_an_output_that_takes_a_little_at_a_time(self, tmp_path: Path) -> None:
        class Slow(io.RawIOBase):
            data = b""

            def write(self, data: Any) -> int:
                self.data += bytes(data[:1000])
                return min(len(data), 1000)

        forge = Forge(tmp_path / "images")
        reference = one_file(forge, forge.chunk(os.urandom(100_000)))
        slow = Slow()
        report = export_tar(reference, slow)
        assert slow.data == exported(reference)
        assert report.content_size == 100_000

    def test_progress(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        reference = one_file(forge, *(forge.chunk(os.urandom(200_000)) for _ in range(20)))
        seen: list[tuple[int, int]] = []
        with open_image(reference) as image:
            export_tar(image, io.BytesIO(), progress=lambda members, size: seen.append((members, size)))
        assert seen == sorted(seen)
        assert seen[-1] == (2, 4_000_000)
        assert len(seen) > 2


class TestUnusualChunks:
    @pytest.mark.parametrize("size", [4 << 20, (4 << 20) + 1, 9 << 20])
    @pytest.mark.parametrize("compressed", [False, True])
    def test_large_ones(self, tmp_path: Path, size: int, compressed: bool) -> None:
        forge = Forge(tmp_path / "images")
        content = os.urandom(1 << 20) * (size >> 20) + b"x" * (size % (1 << 20))
        chunk = forge.chunk(content, compressed=compressed)
        data = exported(one_file(forge, chunk, chunk))
        assert content_of(data, "./file") == content * 2

    def test_parts_in_any_order_and_empty_ones(self, tmp_path: Path) -> None:
        forge = Forge(tmp_path / "images")
        one, two = b"abcdefgh", b"12345678"
        parts = [
            forge.chunk(one, offset=3, length=2), forge.chunk(two, compressed=True, offset=8, length=0),
            forge.chunk(two, compressed=True, offset=1, length=3), forge.chunk(one, offset=0, length=8),
            forge.chunk(two, compressed=False), forge.chunk(one, offset=7),
        ]  # fmt: skip
        assert content_of(exported(one_file(forge, *parts)), "./file") == b"de234abcdefgh12345678h"
