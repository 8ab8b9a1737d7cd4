"""Tar archives as images: what each kind of member, and each way of writing one, becomes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import threading
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trees
from support.archives import archive, content_of, digest_of, exported, imported, member, odd_tree, pax, summed

from puzzlefs.builder import StorageOptions, build
from puzzlefs.errors import (
    FormatError,
    InvalidArgumentError,
    NotFoundError,
    PuzzlefsError,
    SourceError,
    StorageError,
    UnsafePathError,
)
from puzzlefs.image import open_image
from puzzlefs.tar import import_tar
from puzzlefs.tar.acl import acl_xattr, mode_with_acl
from puzzlefs.tar.records import parse_time

pytestmark = pytest.mark.unit


@pytest.fixture
def reference(tmp_path: Path) -> str:
    return f"{tmp_path}/images:x"


def shown(reference: str, *, mtime: bool = False) -> trees.Tree:
    with open_image(reference) as image:
        return trees.in_image(image, mtime=mtime)


def content(reference: str, name: str) -> bytes:
    return content_of(exported(reference), f"./{name}")


def tree_of(reference: str, *members: bytes, **options: Any) -> trees.Tree:
    """What an archive of these members becomes."""
    imported(archive(*members), reference, **options)
    return shown(reference)


class TestSources:
    """Where an archive comes from makes no difference."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> bytes:
        source = odd_tree(tmp_path / "source")
        build(source, f"{tmp_path}/images:built")
        return exported(f"{tmp_path}/images:built")

    @pytest.mark.parametrize(
        "wrap",
        [
            bytes,
            gzip.compress,
            bz2.compress,
            lambda data: bz2.compress(data, 1),
            lzma.compress,
            zstandard.compress,
            lambda data: gzip.compress(data[:100_000]) + gzip.compress(data[100_000:]),
            lambda data: lzma.compress(data[:777]) + bytes(8) + lzma.compress(data[777:]),
            lambda data: zstandard.compress(data[:1]) + zstandard.compress(data[1:]),
            lambda data: bz2.compress(b"") + bz2.compress(data[:70_000]) + bz2.compress(data[70_000:]),
            lambda data: gzip.compress(data) + bytes(1000),
            lambda data: b"\x50\x2a\x4d\x18\3\0\0\0abc" + zstandard.compress(data) + b"\x5e\x2a\x4d\x18" + bytes(4),
        ],
        ids=[
            "none",
            "gzip",
            "bzip2",
            "bzip2-1",
            "xz",
            "zstd",
            "gzip-2",
            "xz-2",
            "zstd-2",
            "bzip2-2",
            "gzip-padded",
            "zstd-skippable",
        ],
    )
    def test_wrappings(self, tmp_path: Path, data: bytes, wrap: Any) -> None:
        expected = digest_of(f"{tmp_path}/images:built")
        wrapped = wrap(data)
        assert imported(wrapped, f"{tmp_path}/images:memory").digest == expected
        path = tmp_path / "archive"
        path.write_bytes(wrapped)
        assert import_tar(path, f"{tmp_path}/images:path").digest == expected
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as file:

            def write() -> None:
                with file:
                    file.write(wrapped)

            thread = threading.Thread(target=write)
            thread.start()
            assert import_tar(source, f"{tmp_path}/images:pipe").digest == expected
            thread.join()

    @pytest.mark.parametrize(
        "wrap", [gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor(write_checksum=True).compress]
    )
    def test_damaged_wrappings(self, reference: str, data: bytes, wrap: Any) -> None:
        wrapped = wrap(data)
        for broken in (
            wrapped[:-20],
            wrapped[: len(wrapped) // 2],
            wrapped[:-9] + b"\xff" * 9,
            wrapped[:5000] + bytes(100) + wrapped[5100:],
            wrapped + b"something else",
        ):
            with pytest.raises(
                FormatError,
                match=r"^the archive, byte \d+: the .* stream (ends early|is damaged)|something else behind",
            ) as raised:
                imported(broken, reference)
            assert raised.value.hint != "this is not a tar archive"
        with pytest.raises(NotFoundError):
            open_image(reference)

    def test_a_name_that_begins_as_bzip2_does(self, reference: str) -> None:
        assert b"BZh9" in tree_of(reference, member(b"BZh9"))

    def test_a_file_stands_anywhere(self, tmp_path: Path, reference: str, data: bytes) -> None:
        path = tmp_path / "archive"
        path.write_bytes(b"before" + data)
        with open(path, "rb") as file:
            file.read(6)
            assert import_tar(file, reference).digest == digest_of(f"{tmp_path}/images:built")

    def test_a_pipe_stands_behind_what_was_read_of_it(self, tmp_path: Path, reference: str, data: bytes) -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as file:

            def write() -> None:
                with file:
                    file.write(b"before" + data)

            thread = threading.Thread(target=write)
            thread.start()
            source.read(6)
            assert import_tar(source, reference).digest == digest_of(f"{tmp_path}/images:built")
            thread.join()

    def test_what_decodes_a_file_stands_anywhere(self, tmp_path: Path, reference: str, data: bytes) -> None:
        path = tmp_path / "archive.gz"
        path.write_bytes(gzip.compress(b"before" + data))
        with gzip.open(path) as file:
            file.read(6)
            assert import_tar(cast(BinaryIO, file), reference).digest == digest_of(f"{tmp_path}/images:built")

    def test_what_gives_a_little_at_a_time(self, tmp_path: Path, reference: str, data: bytes) -> None:
        class Hesitant(io.BytesIO):
            def readinto(self, buffer: Any, /) -> int:
                return super().readinto(memoryview(buffer)[: 3 if self.tell() < 9 else None])

        assert import_tar(Hesitant(data), reference).digest == digest_of(f"{tmp_path}/images:built")

    def test_a_file_that_changes_meanwhile(self, tmp_path: Path, reference: str, data: bytes) -> None:
        path = tmp_path / "archive"
        path.write_bytes(data)

        def change(_: object) -> None:
            with open(path, "r+b") as file:
                file.seek(5000)
                file.write(b"x")
            os.utime(path, (0, 0))

        with pytest.raises(SourceError, match="archive changed while it was read"):
            import_tar(path, reference, progress=change)
        with pytest.raises(NotFoundError):
            open_image(reference)

    def test_a_file_that_gets_shorter(self, tmp_path: Path, reference: str, data: bytes) -> None:
        path = tmp_path / "archive"
        path.write_bytes(data)
        with pytest.raises(SourceError, match="archive changed while it was read"):
            import_tar(path, reference, progress=lambda _: os.truncate(path, 2000))

    @pytest.mark.parametrize("data", [b"", b"\0", b"text" * 200, b"\x7fELF" + bytes(2000), gzip.compress(b"", mtime=0)])
    def test_what_is_no_archive(self, tmp_path: Path, reference: str, data: bytes) -> None:
        path = tmp_path / "archive"
        path.write_bytes(data)
        for source in (path, io.BytesIO(data)):
            with pytest.raises(FormatError) as raised:
                import_tar(source, reference)
            assert raised.value.hint

    def test_what_is_not_there(self, tmp_path: Path, reference: str) -> None:
        with pytest.raises(NotFoundError, match=f"{tmp_path}/none does not exist"):
            import_tar(tmp_path / "none", reference)
        with pytest.raises(SourceError, match="cannot open"):
            import_tar(tmp_path, reference)
        with pytest.raises(InvalidArgumentError):
            import_tar([], reference)

    def test_nothing_is_left_behind(self, tmp_path: Path, reference: str) -> None:
        imported(archive(member(b"file", data=os.urandom(100_000))), reference)
        before = sorted(path.name for path in (tmp_path / "images").rglob("*"))
        with pytest.raises(FormatError):
            imported(archive(member(b"other", data=os.urandom(100_000)), member(b"x", b"1", target=b"none")), reference)
        assert sorted(path.name for path in (tmp_path / "images").rglob("*")) == before
        assert content(reference, "file")

    def test_progress(self, reference: str) -> None:
        seen: list[Any] = []
        imported(archive(*(member(b"%d" % n, data=b"x" * 600) for n in range(600))), reference, progress=seen.append)
        assert [step.stage for step in seen] == sorted(
            (step.stage for step in seen), key=["scan", "chunks", "commit"].index
        )
        assert {step.stage for step in seen} == {"scan", "chunks", "commit"}
        assert seen[-1].bytes_done == seen[-1].bytes_total == 360_000

    def test_progress_of_what_is_compressed(self, tmp_path: Path, reference: str) -> None:
        path = tmp_path / "archive.gz"
        path.write_bytes(gzip.compress(archive(*(member(b"%d" % n) for n in range(600)))))
        seen: list[Any] = []
        import_tar(path, reference, progress=seen.append)
        scanned = [(step.bytes_done, step.bytes_total) for step in seen if step.stage == "scan"]
        assert scanned == [(256 * 512, 0), (512 * 512, 0)]  # how much it will be is not known


class TestStorage:
    @pytest.mark.parametrize(
        "options",
        [
            {"format_version": 1},
            {"format_version": 2, "compression": True},
            {"compression": True},
            {"compression": True, "storage": StorageOptions(level=1, chunk_size=64 << 10, cut_at_files=8 << 10)},
            {"compression": True, "storage": StorageOptions(compress_metadata=True)},
            {"chunker": "ronomon"},
            {"timestamps": "keep"},
            {"timestamps": "clamp", "clamp_ns": 4 * 10**9},
            {"workers": 1},
        ],
        ids=str,
    )
    def test_the_image_is_that_of_a_build(self, tmp_path: Path, options: dict[str, Any]) -> None:
        source = odd_tree(tmp_path / "source")
        for number in range(20):
            (source / f"z{number}").write_bytes(random.Random(number).randbytes(30_000 + 1000 * number))
        build(source, f"{tmp_path}/plain:x", timestamps="keep")
        expected = build(source, f"{tmp_path}/built:x", **options)
        report = imported(exported(f"{tmp_path}/plain:x"), f"{tmp_path}/imported:x", **options)
        assert report.digest == expected.digest
        assert (report.inodes, report.content_size, report.chunks) == (
            expected.inodes, expected.content_size, expected.chunks,
        )  # fmt: skip
        assert report.new_chunks == report.chunks

    @pytest.mark.parametrize("options", [{"format_version": 4}, {"workers": 0}, {"timestamps": "clamp"}])
    def test_arguments_that_make_no_sense(self, reference: str, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgumentError):
            imported(archive(member(b"x")), reference, **options)


class TestMembers:
    def test_an_empty_archive(self, reference: str) -> None:
        tree = tree_of(reference)
        assert tree == {b".": {"type": "dir", "permissions": 0o755, "uid": 0, "gid": 0}}

    def test_missing_parents_are_made(self, reference: str) -> None:
        tree = tree_of(reference, member(b"a/b/c", uid=b"0000007\0"))
        assert tree[b"a/b"] == tree[b"a"] == {"type": "dir", "permissions": 0o755, "uid": 0, "gid": 0}
        assert tree[b"a/b/c"]["uid"] == 7

    def test_a_directory_may_come_after_what_is_in_it(self, reference: str) -> None:
        tree = tree_of(
            reference, member(b"a/b"), member(b"a/", b"5", mode=b"0000700\0"), member(b"./", b"5", mode=b"0001777\0")
        )
        assert tree[b"a"]["permissions"] == 0o700
        assert tree[b"."]["permissions"] == 0o1777
        assert b"a/b" in tree

    def test_names(self, reference: str) -> None:
        report = imported(
            archive(
                member(b"/abs"),
                member(b".//./a//b"),
                member(b"c/.", b"5"),
                member(b"old-directory/"),
                member(b"d" * 100),
            ),
            reference,
        )
        assert set(shown(reference)) == {b".", b"abs", b"a", b"a/b", b"c", b"old-directory", b"d" * 100}
        assert report.ignored == {"slashes in front of names": 1}
        assert report.members == 5

    def test_v7_has_no_prefix_and_gnu_something_else_there(self, reference: str) -> None:
        gnu = bytearray(member(b"name", magic=b"ustar  \0"))
        gnu[345:357] = b"01234567012\0"  # the time of access in GNU's format
        assert b"name" in tree_of(reference, summed(gnu))

    def test_later_members_win(self, reference: str) -> None:
        tree = tree_of(
            reference,
            member(b"file", data=b"old"), member(b"name", b"1", target=b"file"), member(b"file", data=b"new!"),
            member(b"dir/", b"5", mode=b"0000700\0"), member(b"dir/kept"), member(b"dir/", b"5", mode=b"0000711\0"),
            member(b"was-dir/x"), member(b"was-dir", b"2", target=b"file"),
            member(b"was-file"), member(b"was-file", b"5"),
        )  # fmt: skip
        assert tree[b"file"]["size"] == 4
        assert tree[b"name"]["size"] == 3
        assert tree[b"name"]["nlink"] == 1
        assert tree[b"dir"]["permissions"] == 0o711
        assert b"dir/kept" in tree
        assert tree[b"was-dir"]["type"] == "symlink"
        assert b"was-dir/x" not in tree
        assert tree[b"was-file"]["type"] == "dir"

    def test_hard_links(self, reference: str) -> None:
        tree = tree_of(
            reference,
            member(b"f", data=b"x", uid=b"0000005\0"), member(b"d/g", b"1", target=b"./f", uid=b"0000006\0"),
            member(b"h", b"1", target=b"/d/g", size=b"00000001000\0"), member(b"s", b"2", target=b"f"),
            member(b"t", b"1", target=b"s"), member(b"f", b"1", target=b"f"),
        )  # fmt: skip
        assert tree[b"f"]["nlink"] == 3
        assert tree[b"h"]["same_as"] == tree[b"d/g"]["same_as"] == b"d/g"
        assert tree[b"d/g"]["uid"] == 5
        assert tree[b"t"]["nlink"] == 2

    def test_sizes_of_what_has_no_data_mean_nothing(self, reference: str) -> None:
        odd = {"size": b"00000010000\0"}
        tree = tree_of(
            reference,
            member(b"d", b"5", **odd), member(b"s", b"2", target=b"x", **odd), member(b"p", b"6", **odd),
            member(b"c", b"3", major=b"0000005\0", minor=b"0000001\0", **odd), member(b"end"),
        )  # fmt: skip
        assert tree[b"c"]["device"] == (5, 1)
        assert b"end" in tree

    def test_numbers_in_binary(self, reference: str) -> None:
        tree = tree_of(
            reference,
            member(
                b"x",
                uid=b"\x80" + (3_000_000_000).to_bytes(7, "big"),
                mtime=b"\x80" + bytes(3) + (1 << 40).to_bytes(8, "big"),
            ),
            member(b"y", uid=b"    12 \0", mtime=(-5).to_bytes(12, "big", signed=True)),
        )
        assert tree[b"x"]["uid"] == 3_000_000_000
        assert tree[b"y"]["uid"] == 0o12
        imported(archive(member(b"y", mtime=(-5).to_bytes(12, "big", signed=True))), reference, timestamps="keep")
        assert shown(reference, mtime=True)[b"y"]["mtime_ns"] == -5 * 10**9

    def test_a_checksum_of_signed_bytes(self, reference: str) -> None:
        block = bytearray(member(b"\xe4\xf6"))
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % (sum(block) - 2 * 256)
        assert b"\xe4\xf6" in tree_of(reference, bytes(block))

    def test_extended_headers(self, reference: str) -> None:
        tree = tree_of(
            reference,
            pax((b"uid", b"11"), (b"path", b"global"), (b"comment", b"x"), kind=b"g"),
            pax((b"path", b"first\n=1"), (b"uid", b"12"), (b"uid", b"13"), (b"size", b"3")),
            member(b"x", data=b"abc", size=b"\0"),
            pax((b"uid", b""), (b"path", b"")), member(b"second"),
            member(b"third"),
        )  # fmt: skip
        assert tree[b"first\n=1"]["uid"] == 13
        assert tree[b"first\n=1"]["size"] == 3
        assert tree[b"second"]["uid"] == 0
        assert tree[b"global"]["uid"] == 11

    def test_long_names_of_gnu(self, reference: str) -> None:
        name, target = b"n" * 200, b"t" * 300
        tree = tree_of(
            reference,
            member(b"././@LongLink", b"L", data=name + b"\0"), member(b"././@LongLink", b"K", data=target + b"\0"),
            member(name[:100], b"2", target=target[:100]), member(b"after"),
        )  # fmt: skip
        assert tree[name]["target"] == target
        assert b"after" in tree

    def test_xattrs(self, reference: str) -> None:
        tree = tree_of(
            reference,
            pax((b"SCHILY.xattr.user.a%3Db%25", b"\0\n\xff"), (b"SCHILY.xattr.user.e", b"")), member(b"gnu"),
            pax((b"LIBARCHIVE.xattr.user.%C3%A4%3D", b"AAr/"), (b"SCHILY.xattr.user.%C3%A4%3D", b"\0\n\xff")),
            member(b"bsd"),
        )  # fmt: skip
        assert tree[b"gnu"]["xattrs"] == {b"user.a=b%": b"\0\n\xff", b"user.e": b""}
        assert tree[b"bsd"]["xattrs"] == {"user.ä=".encode(): b"\0\n\xff"}

    def test_what_cannot_be_is_counted(self, reference: str) -> None:
        report = imported(
            member(b"label", b"V")
            + pax(
                (b"RHT.security.selinux", b"label"),
                (b"SCHILY.acl.access", b"user::rw-,user:tux:r--,group::r--,mask::r,other::-"),
            )
            + member(b"x"),
            reference,
        )
        assert report.ignored == {
            "volume labels": 1,
            "SELinux labels": 1,
            "ACLs that cannot be understood, or name users without their numbers": 1,
            "missing end of the archive": 1,
        }
        assert imported(archive(member(b"x")) + b"more", reference).ignored == {
            "bytes behind the end of the archive": 1
        }

    def test_times(self) -> None:
        assert parse_time(b"1.5") == 1_500_000_000
        assert parse_time(b"-1.5") == -1_500_000_000
        assert parse_time(b"1.7e-08") == 17
        assert parse_time(b"1.0000000019999") == 1_000_000_001
        assert parse_time(b"99999999999999999999") == (1 << 63) - 1
        for text in (b"", b"x", b"1.5.", b"1e999", b"--1", b"nan", b"1" * 100):
            with pytest.raises(FormatError, match="is not a time"):
                parse_time(text)

    def test_acls(self) -> None:
        value = acl_xattr(
            b"user::rwx,user:bin:r-x:2,user:1000:--x,group::r--,group:x:w:5,mask::r-x\nother::---", is_default=False
        )
        nobody = 0xFFFFFFFF
        entries = [(1, 7, nobody), (2, 5, 2), (2, 1, 1000), (4, 4, nobody), (8, 2, 5), (16, 5, nobody), (32, 0, nobody)]
        assert value == struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        assert mode_with_acl(0o4644, value) == 0o4750
        assert acl_xattr(b"user::rwx,group::r--,other::---", is_default=False) == b""
        assert acl_xattr(b"user::rwx,group::r--,other::---", is_default=True)
        for text in (b"user", b"nobody::rwx", b"user:tux:rwx", b"user:1:rwx:99999999999,user::r,group::r,other::r"):
            with pytest.raises(FormatError):
                acl_xattr(text, is_default=False)
        with pytest.raises(FormatError, match="is not a user or a group"):
            acl_xattr(b"user:x:rwx:" + b"9" * 5000, is_default=False)

    def test_an_acl_that_says_nothing_is_none(self, reference: str) -> None:
        tree = tree_of(reference, pax((b"SCHILY.acl.default", b"")), member(b"d", b"5"))
        assert tree[b"d"] == {"type": "dir", "permissions": 0o644, "uid": 0, "gid": 0}


class TestHoles:
    DATA = b"a" * 600 + b"b" * 500

    @pytest.mark.parametrize(
        "blocks",
        [
            pax((b"GNU.sparse.size", b"10000"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.offset", b"512"),
                (b"GNU.sparse.numbytes", b"600"), (b"GNU.sparse.offset", b"9500"), (b"GNU.sparse.numbytes", b"500"))
            + member(b"x", data=DATA),
            pax((b"GNU.sparse.size", b"10000"), (b"GNU.sparse.map", b"512,600,9500,500"), (b"GNU.sparse.name", b"x"))
            + member(b"GNUSparseFile.1/x", data=DATA),
            pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"10000"),
                (b"GNU.sparse.name", b"x"))
            + member(b"GNUSparseFile.1/x", data=b"3\n512\n600\n9500\n500\n10000\n0\n".ljust(512, b"\0") + DATA),
        ],
        ids=["0.0", "0.1", "1.0"],
    )  # fmt: skip
    def test_formats(self, reference: str, blocks: bytes) -> None:
        assert tree_of(reference, blocks, member(b"after", data=b"y"))[b"after"]["size"] == 1
        assert content(reference, "x") == bytes(512) + b"a" * 600 + bytes(9500 - 1112) + b"b" * 500

    @pytest.mark.parametrize(
        ("size", "text", "stored"),
        [
            (b"10", b"0,5,3,5", 10),  # goes backwards
            (b"10", b"0,5,6,5", 10),  # beyond the end
            (b"10", b"0,5", 6),  # less than there is
            (b"10", b"0,5", 4),
            (b"10", b"0,5,7", 5),
            (b"10", b"0,-5", 5),
            (b"10", b"0,x", 5),
            (b"-1", b"", 0),
            (b"9223372036854775808", b"", 0),
            (b"10", b"9223372036854775807,9223372036854775807", 10),
        ],
    )
    def test_maps_that_do_not_fit(self, reference: str, size: bytes, text: bytes, stored: int) -> None:
        data = pax((b"GNU.sparse.size", size), (b"GNU.sparse.map", text)) + member(b"x", data=bytes(stored))
        with pytest.raises(FormatError, match=r"the archive, byte \d+: "):
            imported(archive(data), reference)

    @pytest.mark.parametrize("text", [b"", b"\n", b"x\n", b"5\n1\n", b"999999999\n", b"1\n0\n0\n" * 100, b"-1\n"])
    def test_malformed_maps_in_the_data(self, reference: str, text: bytes) -> None:
        records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"10"))
        with pytest.raises(FormatError):
            imported(archive(pax(*records) + member(b"x", data=text.ljust(1024, b"\0"))), reference)

    def test_a_file_that_is_one_hole(self, reference: str) -> None:
        data = pax((b"GNU.sparse.size", b"%d" % (1 << 36)), (b"GNU.sparse.map", b"")) + member(b"x")
        assert imported(archive(data), reference).content_size == 1 << 36
        with open_image(reference) as image:
            assert image.read(image.tree.lookup(1, b"x").ino, 1 << 35, 100) == bytes(100)


class TestWays:
    """Symbolic links on the way to a member are followed within the tree."""

    def test_followed(self, reference: str) -> None:
        tree = tree_of(
            reference,
            member(b"usr/lib/", b"5"), member(b"lib", b"2", target=b"usr/lib"), member(b"lib/a"),
            member(b"abs", b"2", target=b"/usr/lib"), member(b"abs/new/b"),
            member(b"up", b"2", target=b"../../../usr/./lib/"), member(b"up/c"),
            member(b"usr/deep", b"2", target=b"../abs"), member(b"usr/deep/d"), member(b"e", b"1", target=b"up/a"),
        )  # fmt: skip
        assert {path for path in tree if path.startswith(b"usr/lib/")} == {
            b"usr/lib/a", b"usr/lib/new", b"usr/lib/new/b", b"usr/lib/c", b"usr/lib/d",
        }  # fmt: skip
        assert tree[b"e"]["same_as"] == b"e"
        assert tree[b"usr/lib/a"]["same_as"] == b"e"

    @pytest.mark.parametrize(
        ("members", "message"),
        [
            (
                [member(b"l", b"2", target=b"none"), member(b"l/x")],
                "through a symbolic link to none, which is not there",
            ),
            ([member(b"l", b"2", target=b"l"), member(b"l/x")], "too many symbolic links"),
            ([member(b"l", b"2", target=b"m"), member(b"m", b"2", target=b"/l"), member(b"l/x")], "too many symbolic"),
            ([member(b"f"), member(b"f/x")], "f, which is on the way to it, is not a directory"),
            ([member(b"f"), member(b"l", b"2", target=b"f"), member(b"l/x")], "f, which is on the way to it, is not a"),
            ([member(b"f"), member(b"x", b"1", target=b"none/f")], "the archive has no none"),
        ],
    )
    def test_leading_nowhere(self, reference: str, members: list[bytes], message: str) -> None:
        with pytest.raises(FormatError, match=message):
            imported(archive(*members), reference)


class TestRefusals:
    @pytest.mark.parametrize(
        ("data", "kind", "message"),
        [
            (member(b"../x"), UnsafePathError, r"\.\./x: there is '\.\.' in the name"),
            (member(b"a/../../x"), UnsafePathError, "there is '..' in the name"),
            (member(b"/.."), UnsafePathError, "there is '..' in the name"),
            (member(b"f") + member(b"x", b"1", target=b"../f"), UnsafePathError, "x: there is '..' in the name"),
            (pax((b"path", b"a\0b")) + member(b"x"), FormatError, "NUL"),
            (pax((b"path", b"a" * 256)) + member(b"x"), FormatError, "more than 255 bytes"),
            (pax((b"path", b"a/" * 10_000)) + member(b"x"), FormatError, "it has a name of 20000 bytes"),
            (member(b"x", b"1", target=b"none"), FormatError, "x: it is a hard link to none, which the archive does"),
            (member(b"d", b"5") + member(b"x", b"1", target=b"d"), FormatError, "hard link to d, which is a directory"),
            (member(b"x", b"1", target=b"/"), FormatError, "which can only be a directory"),
            (member(b"x", b"1"), FormatError, "hard link to 'nothing'"),
            (member(b"./"[:1]), FormatError, "the root can only be a directory"),
            (member(b"x", b"2"), FormatError, "cannot point to"),
            (pax((b"linkpath", b"t" * 4096)) + member(b"x", b"2"), FormatError, "cannot point to"),
            (pax((b"uid", b"4294967295")) + member(b"x"), FormatError, "x: no file can belong to 4294967295"),
            (pax((b"gid", b"-1")) + member(b"x"), FormatError, "is not a user or a group"),
            (member(b"x", uid=b"9999999\0"), FormatError, "is not an octal number: the owner is malformed"),
            (member(b"x", uid=b"-000001\0"), FormatError, "is not an octal number"),
            (member(b"x", size=b"\xff" * 12), FormatError, "the size is negative"),
            (member(b"x", size=b"\x80" + b"\xff" * 11), FormatError, "bytes cannot be"),
            (pax((b"size", b"-5")) + member(b"x"), FormatError, "is not a size"),
            (pax((b"SCHILY.xattr." + b"k" * 256, b"")) + member(b"x"), FormatError, "cannot be the name of an ext"),
            (pax((b"SCHILY.xattr.", b"")) + member(b"x"), FormatError, "cannot be the name of an ext"),
            (pax((b"LIBARCHIVE.xattr.user.x", b"A")) + member(b"x"), FormatError, "is not base 64"),
            (member(b"x", b"3", major=b"\x80" + bytes(5) + b"\x10\0"), FormatError, "/x: device"),
            (member(b"x", b"M"), FormatError, "is a part of a multi-volume archive"),
            (member(b"x", b"?"), FormatError, "is of an unknown type"),
            (member(b"x", b"x", data=b"5 a=b\n"), FormatError, "an extended header is malformed"),
            (member(b"x", b"x", data=b"99999 a=b\n"), FormatError, "an extended header is malformed"),
            (member(b"x", b"x", data=b"6 =bb\n"), FormatError, "an extended header is malformed"),
            (member(b"x", b"x", size=b"77777777777\0"), FormatError, "is larger than the"),
            (pax((b"path", b"x")), FormatError, "an extended header has no member behind it"),
            (member(b"x") + b"\1" * 512, FormatError, "byte 512: there is no tar header: the checksum is wrong"),
            (member(b".wh.x"), FormatError, r"\.wh\.x: it is a white-out of a container layer"),
        ],
    )  # fmt: skip
    def test_members(
        self, tmp_path: Path, reference: str, data: bytes, kind: type[PuzzlefsError], message: str
    ) -> None:
        path = tmp_path / "archive.tar"
        path.write_bytes(archive(data))
        for source in (path, io.BytesIO(archive(data))):
            with pytest.raises(kind, match=message) as raised:
                import_tar(source, reference)
            assert type(raised.value) is kind
        with pytest.raises(NotFoundError):
            open_image(reference)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.tar", "images"]

    @pytest.mark.parametrize("size", [1, 511, 513, 1023, 2000, 70_000])
    def test_archives_that_end_early(self, tmp_path: Path, reference: str, size: int) -> None:
        data = pax((b"comment", b"x" * 600)) + member(b"x", data=b"x" * 100_000)
        path = tmp_path / "archive.tar"
        path.write_bytes(data[:size])
        for source in (path, io.BytesIO(data[:size])):
            with pytest.raises(FormatError, match=r", byte \d+: the archive ends early"):
                import_tar(source, reference)

    def test_a_full_disk(self, tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("puzzlefs.tar.spool.os.pwrite", full)
        with pytest.raises(StorageError, match=r"cannot keep what is in .*No space left"):
            imported(archive(member(b"x", data=b"y" * 1000)), reference)


class TestWhiteouts:
    LOWER = archive(
        member(b"dir/a"), member(b"dir/b"), member(b"dir/sub/c"), member(b"gone"), member(b"replaced/old"),
        member(b"kept"),
    )  # fmt: skip

    def over(self, reference: str, *members: bytes) -> set[bytes]:
        import_tar([io.BytesIO(self.LOWER), io.BytesIO(archive(*members))], reference, whiteouts="apply")
        return set(shown(reference)) - {b"."}

    def test_a_name(self, reference: str) -> None:
        assert self.over(reference, member(b".wh.gone"), member(b"dir/.wh.b"), member(b".wh.never")) == {
            b"dir", b"dir/a", b"dir/sub", b"dir/sub/c", b"replaced", b"replaced/old", b"kept",
        }  # fmt: skip

    def test_a_directory_that_is_made_again(self, reference: str) -> None:
        for members in (
            (member(b".wh.replaced"), member(b"replaced/new")),
            (member(b"replaced/"), member(b"replaced/new"), member(b".wh.replaced")),
        ):
            assert {path for path in self.over(reference, *members) if path.startswith(b"replaced")} == {
                b"replaced", b"replaced/new",
            }  # fmt: skip

    def test_an_opaque_directory(self, reference: str) -> None:
        for members in (
            (member(b"dir/"), member(b"dir/.wh..wh..opq"), member(b"dir/sub/"), member(b"dir/sub/new")),
            (member(b"dir/sub/"), member(b"dir/sub/new"), member(b"dir/.wh..wh..opq")),
        ):
            assert {path for path in self.over(reference, *members) if path.startswith(b"dir")} == {
                b"dir", b"dir/sub", b"dir/sub/new",
            }  # fmt: skip

    def test_what_is_in_a_directory_that_the_layer_does_not_mention(self, reference: str) -> None:
        for members in (
            (member(b"dir/.wh..wh..opq"), member(b"dir/sub/new")),
            (member(b"dir/sub/new"), member(b"dir/.wh..wh..opq")),
            (member(b"dir/sub/new"), member(b".wh.dir")),
            (member(b"link", b"2", target=b"dir/sub"), member(b"link/new"), member(b"dir/.wh..wh..opq")),
        ):
            assert {path for path in self.over(reference, *members) if path.startswith(b"dir")} == {
                b"dir", b"dir/sub", b"dir/sub/new",
            }  # fmt: skip

    def test_white_outs_do_not_keep_directories(self, reference: str) -> None:
        found = self.over(reference, member(b"dir/sub/.wh.c"), member(b".wh.dir"), member(b"x", b"1", target=b"kept"))
        assert found == {b"gone", b"replaced", b"replaced/old", b"kept", b"x"}

    def test_further_names_in_the_same_layer_stay(self, reference: str) -> None:
        found = self.over(
            reference, member(b"more", b"1", target=b"kept"), member(b".wh.kept"), member(b"here"), member(b".wh.here")
        )
        assert {b"more", b"here"} < found
        assert b"kept" not in found

    def test_kept_as_files(self, reference: str) -> None:
        assert b".wh.x" in tree_of(reference, member(b".wh.x"), whiteouts="keep")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255 and not name.startswith(".wh.")
)
INFOS = st.lists(
    st.tuples(
        st.lists(NAMES, min_size=1, max_size=4, unique=True),
        st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]),
        st.binary(max_size=1500),
        st.integers(0, 0xFFFFFFFE),
        st.integers(0, 0o7777),
        st.integers(-(10**9), 10**10),
    ),
    max_size=8,
    unique_by=lambda item: item[0][0],
)


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(items=INFOS, form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_what_python_writes_is_read_as_python_reads_it(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], form: int
) -> None:
    """Any archive that Python's own module can write, of whatever names and numbers."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as file:
        for path, kind, data, owner, mode, mtime in items:
            info = tarfile.TarInfo("/".join(path))
            info.type, info.uid, info.gid, info.mode, info.mtime = kind, owner, owner // 2, mode, mtime
            info.linkname = "/".join(reversed(path)) if kind == tarfile.SYMTYPE else ""
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(data))
    reference = f"{tmp_path_factory.mktemp('property')}/images:x"
    imported(output.getvalue(), reference, timestamps="keep")
    found = shown(reference, mtime=True)
    for path, kind, data, owner, mode, mtime in items:
        node = found["/".join(path).encode()]
        assert node["type"] == {b"0": "file", b"5": "dir", b"2": "symlink", b"6": "fifo", b"3": "char"}[kind]
        assert (node["uid"], node["gid"], node["mtime_ns"]) == (owner, owner // 2, min(mtime * 10**9, (1 << 63) - 1))
        if kind == tarfile.SYMTYPE:
            assert node["target"] == "/".join(reversed(path)).encode()
        else:
            assert node["permissions"] == stat.S_IMODE(mode)
        if kind == tarfile.REGTYPE:
            assert content(reference, "/".join(path)) == data
    assert len(found) >= 1 + len(items)
