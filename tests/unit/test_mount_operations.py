"""What requests mean, without a kernel: over images that were really made."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.forge import Forge, directory, inode, regular, symlink

from puzzlefs.errors import FormatError
from puzzlefs.image import Image, open_image
from puzzlefs.model import CharDevice, FileChunk, Kind
from puzzlefs.mount.error_log import ErrorLog, NameCache
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.operations import Operations
from puzzlefs.vfs import Entry

pytestmark = pytest.mark.unit

_FILE, _LINK, _SUB, _DEVICE, _SHORT, _MISSING = 2, 3, 4, 5, 6, 99
_CONTENT = bytes(range(256)) * 40


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "layout")


@pytest.fixture
def image(forge: Forge) -> Iterator[Image]:
    first, second = forge.chunk(_CONTENT[:4000]), forge.chunk(_CONTENT[4000:], compressed=True)
    name = forge.image(
        [
            directory(1, {b"dangling": _MISSING, b"dev": _DEVICE, b"file": _FILE, b"link": _LINK, b"sub": _SUB}),
            regular(_FILE, first, second, xattrs={b"trusted.a": b"1", b"user.b": b""}, mtime_ns=5_000_000_007),
            symlink(_LINK, b"sub/again"),
            directory(_SUB, {b"again": _FILE, b"short": _SHORT}),
            inode(_DEVICE, CharDevice(1, 3)),
            regular(_SHORT, FileChunk(first.blob, 5000)),
        ]
    )
    with open_image(name) as opened:
        yield opened


@pytest.fixture
def operations(image: Image) -> Operations:
    return Operations(image)


def _errno(caught: pytest.ExceptionInfo[RequestError]) -> str:
    return errno.errorcode[caught.value.errno]


def test_lookup_and_getattr(operations: Operations) -> None:
    found = operations.lookup(1, b"file")
    assert found is not None
    assert found == operations.getattr(_FILE)
    assert (found.ino, found.nlink, found.size, found.blocks) == (_FILE, 2, len(_CONTENT), 20)
    assert found.mode == stat.S_IFREG | 0o644
    assert found.mtime_ns == 5_000_000_007
    assert operations.getattr(_DEVICE).rdev == os.makedev(1, 3)
    assert operations.getattr(1).nlink == 3
    assert operations.lookup(1, b"nothing") is None
    assert operations.lookup(1, b"files") is None


def test_lookups_that_fail(operations: Operations) -> None:
    for parent, name, expected in ((1, b"n" * 256, "ENAMETOOLONG"), (_FILE, b"x", "EINVAL"), (1, b"dangling", "EIO")):
        with pytest.raises(RequestError) as caught:
            operations.lookup(parent, name)
        assert _errno(caught) == expected
    with pytest.raises(RequestError) as caught:
        operations.getattr(_MISSING)
    assert _errno(caught) == "EIO"


def test_links(operations: Operations) -> None:
    assert operations.readlink(_LINK) == b"sub/again"
    with pytest.raises(RequestError) as caught:
        operations.readlink(_FILE)
    assert _errno(caught) == "EINVAL"


def test_directories(operations: Operations) -> None:
    entries = operations.entries(1)
    assert [entry.name for entry in entries] == [b"dangling", b"dev", b"file", b"link", b"sub"]
    shown = [operations.entry_attributes(1, entry) for entry in entries]
    assert [attributes and attributes.ino for attributes in shown] == [None, _DEVICE, _FILE, _LINK, _SUB]
    assert operations.parent(1) == 1
    operations.lookup(1, b"sub")
    assert operations.parent(_SUB) == 1
    with pytest.raises(RequestError) as caught:
        operations.entries(_FILE)
    assert _errno(caught) == "EINVAL"


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC]
)
def test_open_for_writing(operations: Operations, flags: int) -> None:
    with pytest.raises(RequestError) as caught:
        operations.open(_FILE, flags)
    assert _errno(caught) == "EROFS"
    operations.open(_FILE, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 10), (3990, 20), (0, 1 << 20), (4000, 1), (3999, 1), (10_239, 10), (10_240, 10), (1 << 40, 10), (5, 0)],
)
def test_reading(operations: Operations, offset: int, size: int) -> None:
    plan = operations.plan(_FILE, offset, size)
    assert operations.fetch(_FILE, plan) == _CONTENT[offset : offset + size]


def test_what_is_in_memory_is_ready(operations: Operations) -> None:
    front, back = operations.plan(_FILE, 0, 100), operations.plan(_FILE, 5000, 100)
    both = operations.plan(_FILE, 3950, 100)
    assert not operations.is_ready(front)
    operations.fetch(_FILE, front)
    assert operations.is_ready(front)
    assert operations.is_ready(operations.plan(_FILE, 100, 200))
    assert not operations.is_ready(back)
    assert not operations.is_ready(both)
    operations.fetch(_FILE, back)
    assert operations.is_ready(both)
    assert operations.is_ready(operations.plan(_FILE, 1 << 30, 10))


def test_xattrs(operations: Operations) -> None:
    assert operations.getxattr(_FILE, b"trusted.a") == b"1"
    assert operations.getxattr(_FILE, b"user.b") == b""
    assert operations.listxattr(_FILE, privileged=True) == [b"trusted.a", b"user.b"]
    assert operations.listxattr(_FILE, privileged=False) == [b"user.b"]
    for ino in (_FILE, _LINK):
        with pytest.raises(RequestError) as caught:
            operations.getxattr(ino, b"user.c")
        assert _errno(caught) == "ENODATA"


def test_totals(operations: Operations) -> None:
    totals = operations.totals()
    assert totals.size == len(_CONTENT) + 5000
    assert totals.inodes in {6, 7}  # whether a dangling number counts is nobody's business


def test_a_failure_is_logged_once_with_blob_and_file(
    image: Image, operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    plan = operations.plan(_SHORT, 0, 5000)
    for _ in range(3):
        with pytest.raises(RequestError) as caught:
            operations.fetch(_SHORT, plan)
        assert _errno(caught) == "EIO"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "'/sub/short' (inode 6)" in record.getMessage()  # never looked up: found by searching
    assert plan.pieces[0].blob.hex() in record.getMessage()
    assert record.exc_info is None


def test_a_name_in_use_is_preferred(image: Image, operations: Operations) -> None:
    names = NameCache(image.tree)
    assert names.path(_FILE) == "/file"
    names.remember(1, Entry(b"sub", _SUB, Kind.DIRECTORY))
    names.remember(_SUB, Entry(b"again", _FILE, Kind.REGULAR))
    assert names.path(_FILE) == "/sub/again"
    assert names.path(_MISSING - 1) is None
    assert names.path(1) == "/"


def test_the_search_for_a_name_goes_past_what_is_broken(forge: Forge) -> None:
    name = forge.image(
        [
            directory(1, {b"again": 3, b"bad": 2, b"cycle": 1, b"dangling": 50, b"sub": 3}),
            directory(2, {b"a/b": 4}),
            directory(3, {b"file": 4, b"up": 1}),
            regular(4),
        ]
    )
    with open_image(name) as broken:
        assert NameCache(broken.tree).path(4) in ("/again/file", "/sub/file")
        assert NameCache(broken.tree).path(99) is None


def test_the_log_is_limited(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    errors = ErrorLog(NameCache(image.tree), clock=lambda: now)
    for number in range(200):
        errors.report("read of", _FILE, FormatError(f"problem {number}"))
    written = len(caplog.records)
    assert written == 50
    now = 10.0
    errors.report("read of", _FILE, FormatError("later"))
    assert [record.getMessage() for record in caplog.records[written:]] == [
        f"{200 - written} more errors were not logged",
        "read of '/file' (inode 2): later",
    ]


def test_a_defect_is_logged_with_its_traceback(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    errors = ErrorLog(NameCache(image.tree))
    try:
        raise ZeroDivisionError("a defect")
    except ZeroDivisionError as error:
        errors.report("read of", _FILE, error)
    (record,) = caplog.records
    assert record.exc_info is not None
