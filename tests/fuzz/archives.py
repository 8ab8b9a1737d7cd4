"""Target: tar archives: headers, extended headers, maps of holes, what they are wrapped in, the tree that they make."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import tempfile
from pathlib import Path

import zstandard
from support.archives import archive, member, pax, summed

from fuzz.mutation import any_bytes, blocks_of_archive
from fuzz.target import Target
from puzzlefs.builder.chunks import FileStream
from puzzlefs.canonicalize.renumber import renumber
from puzzlefs.errors import PuzzlefsError
from puzzlefs.tar.archive import MemberReader
from puzzlefs.tar.spool import Archive
from puzzlefs.tar.tree import UnpackedTree, WhiteoutRule
from puzzlefs.vfs import Tree

_RULES: tuple[WhiteoutRule, ...] = ("refuse", "apply", "keep")
_SCRATCH = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


def archives(data: bytes) -> None:
    """An archive as an import reads it, up to the metadata; its contents are looked at where it says that they lie."""
    unpacked = UnpackedTree(_RULES[len(data) // 512 % 3])
    with Archive(io.BytesIO(data), "an archive", _SCRATCH) as source:
        unpacked.next_archive()
        reader = MemberReader(source)
        for read in reader:
            assert read.size >= 0
            end = 0
            for extent in read.extents:
                assert end <= extent.offset
                end = extent.offset + extent.length
                assert extent.position + extent.length <= source.position
            assert end <= read.size
            try:
                unpacked.add(read)
            except PuzzlefsError:
                if len(data) % 2:
                    raise
                # an import ends here; going on shows more of what reads
        total = source.position
        found = renumber(Tree([unpacked.layer(lambda mtime_ns: mtime_ns)]), FileStream())
        for file in found.files:
            for extent in unpacked.content(file.ino)[1]:
                assert extent.position + extent.length <= total


def _old_sparse() -> bytes:
    block = bytearray(member(b"sparse", b"S", size=b"%011o\0" % 512)[:512])
    block[386:410] = b"%011o\0%011o\0" % (4096, 512)
    block[483:495] = b"%011o\0" % 8192
    block[257:265] = b"ustar  \0"
    return summed(bytes(block)) + bytes(512)


def _seeds() -> list[bytes]:
    plain = archive(
        member(b"dir/", b"5", mode=b"0000755\0"),
        member(b"dir/file", data=b"content"),
        member(b"dir/link", b"2", target=b"file"),
        member(b"dir/hard", b"1", target=b"dir/file"),
        member(b"null", b"3", major=b"0000001\0", minor=b"0000003\0"),
        member(b"fifo", b"6"),
    )
    extended = archive(
        pax((b"path", b"a/" * 40 + b"x"), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.k", b"v"), (b"uid", b"70000")),
        member(b"short", data=b"1"),
        pax((b"SCHILY.acl.access", b"user::rw-,user:5:r--:5,group::r--,mask::r--,other::---"), kind=b"x"),
        member(b"acl", data=b"2"),
        pax((b"comment", b"all"), kind=b"g"),
        pax((b"LIBARCHIVE.xattr.user.k", b"dg")),
        member(b"last", data=b"3"),
    )
    sparse = archive(
        pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s"),
            (b"GNU.sparse.realsize", b"9000")),
        member(b"GNUSparseFile/s", data=b"1\n4096\n5\n".ljust(512, b"\0") + b"hello"),
        pax((b"GNU.sparse.size", b"9000"), (b"GNU.sparse.map", b"0,3,4096,2")),
        member(b"t", data=b"hello"),
        _old_sparse(),
    )  # fmt: skip
    gnu = archive(
        member(b"././@LongLink", b"L", data=b"long/" * 50 + b"x\0"),
        member(b"cut", data=b"x"),
        member(b"././@LongLink", b"K", data=b"target/" * 50 + b"\0"),
        member(b"link", b"2", target=b"cut"),
        member(b".wh.gone"),
        member(b"d/.wh..wh..opq"),
    )
    found = [plain, extended, sparse, gnu, archive()]
    found += [gzip.compress(plain, mtime=0), lzma.compress(plain), zstandard.compress(plain)]
    return [*found, 2 * gzip.compress(gnu, mtime=0)]


def _mutate(data: bytes, rnd: random.Random) -> bytes:
    if len(data) % 512:
        return any_bytes(data, rnd)
    return blocks_of_archive(data, rnd)


TARGETS = (Target("archives", archives, _seeds, _mutate, max_size=1 << 16),)
