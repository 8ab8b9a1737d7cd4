"""Layouts, the atomic writer, the reader that verifies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import zstandard
from support.examine import limited, together
from support.trees import let_everybody_in

from puzzlefs.blobs import BlobVerifier, BlobWriter, Layout, LoadBudget, VerifiedBlobs
from puzzlefs.blobs.host import read_bounded, storage_errors
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    StorageError,
    VerityNotEnabledError,
    VerityUnavailableError,
)
from puzzlefs.oci import Descriptor, Dialect, media_types
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.unit

MEBI = 1 << 20
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become somebody else")


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    with Layout.open_or_create(tmp_path / "layout", Dialect.OCI) as opened:
        yield opened


def names(layout: Layout) -> list[str]:
    """What lies beside the leases of writers."""
    found = os.listdir(layout.path / "blobs" / "sha256")
    return sorted(name for name in found if not name.startswith(".lease-"))


def reader(layout: Layout) -> VerifiedBlobs:
    return VerifiedBlobs(layout, BlobVerifier("user"))


def store(layout: Layout, data: bytes) -> Digest:
    with BlobWriter(layout) as writer:
        digest = writer.put(data)
        writer.commit()
    return digest


# ---- making layouts


@pytest.mark.parametrize("dialect", Dialect)
def test_a_new_layout(tmp_path: Path, dialect: Dialect) -> None:
    path = tmp_path / "a" / "b" / "layout"
    with Layout.open_or_create(path, dialect) as layout:
        assert layout.read_index().manifests == ()
    assert sorted(os.listdir(path)) == ["blobs", "index.json", "oci-layout"]
    assert json.loads((path / "oci-layout").read_bytes()) == {"imageLayoutVersion": dialect.value}
    with Layout.open(path) as layout:
        assert layout.dialect is dialect


def test_a_layout_holds_one_kind_of_image(tmp_path: Path) -> None:
    Layout.open_or_create(tmp_path, Dialect.OCI).close()
    with pytest.raises(
        InvalidArgumentError, match=r"holds images of format version 3, and cannot hold .* versions 1 and 2"
    ):
        Layout.open_or_create(tmp_path, Dialect.PUZZLEFS_DEV)
    Layout.open_or_create(tmp_path, Dialect.OCI).close()


def test_a_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"")
    with pytest.raises(InvalidArgumentError, match="holds 'mine'"):
        Layout.open_or_create(tmp_path, Dialect.OCI)
    with pytest.raises(InvalidArgumentError, match="a file is in the way"):
        Layout.open_or_create(tmp_path / "mine", Dialect.OCI)
    with pytest.raises(InvalidArgumentError, match="a file is in the way"):
        Layout.open_or_create(tmp_path / "mine" / "below", Dialect.OCI)
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize("left", [[], ["blobs"], ["blobs", "index.json"], ["index.json", ".tmp-oci-layout-1"]])
@pytest.mark.parametrize("dialect", Dialect)
def test_making_a_layout_can_be_interrupted(tmp_path: Path, left: list[str], dialect: Dialect) -> None:
    """What an interrupted attempt left, also one of the other kind, is in nobody's way."""
    other = next(kind for kind in Dialect if kind is not dialect)
    Layout.open_or_create(tmp_path / "made", other).close()
    path = tmp_path / "left"
    path.mkdir()
    for name in left:
        if name.startswith("."):
            (path / name).write_bytes(b"{")
        else:
            (tmp_path / "made" / name).rename(path / name)
    with Layout.open_or_create(path, dialect) as layout:
        assert layout.read_index().dialect is dialect
        store(layout, b"x")


def test_an_index_with_images_is_not_overwritten(tmp_path: Path, layout: Layout) -> None:
    layout.update_index(lambda index: index.with_tag("t", Descriptor(media_types.MANIFEST, Digest.of(b""), 0)))
    before = (layout.path / "index.json").read_bytes()
    (layout.path / "oci-layout").unlink()
    with pytest.raises(InvalidArgumentError, match="names images"):
        Layout.open_or_create(layout.path, Dialect.OCI)
    assert (layout.path / "index.json").read_bytes() == before


def _create_layout(path: Path) -> str:
    with Layout.open_or_create(path, Dialect.OCI) as layout:
        return layout.dialect.value


def test_many_processes_make_one_layout(tmp_path: Path) -> None:
    assert together([lambda: _create_layout(tmp_path / "layout")] * 16) == ["1.0.0"] * 16
    assert sorted(os.listdir(tmp_path / "layout")) == ["blobs", "index.json", "oci-layout"]


def test_the_blobs_may_be_shared(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    layouts = []
    for name in ("one", "two"):
        (tmp_path / name / "blobs").mkdir(parents=True)
        (tmp_path / name / "blobs" / "sha256").symlink_to(tmp_path / "shared")
        layouts.append(Layout.open_or_create(tmp_path / name, Dialect.OCI))
    digest = store(layouts[0], b"shared by both")
    assert reader(layouts[1]).read(digest, limit=100) == b"shared by both"
    with BlobWriter(layouts[1]) as writer:
        writer.put(b"shared by both")
        writer.commit()
        assert writer.new_blobs == 0
    assert os.listdir(tmp_path / "shared") == [digest.hex()]
    assert (tmp_path / "one" / "blobs" / "sha256").is_symlink()
    for layout in layouts:
        layout.close()


def test_a_layout_that_is_moved_stays_readable(tmp_path: Path, layout: Layout) -> None:
    digest = store(layout, b"data")
    layout.path.rename(tmp_path / "elsewhere")
    assert reader(layout).read(digest, limit=10) == b"data"


@needs_root
def test_a_read_only_layout_can_be_read_and_not_written(tmp_path: Path, layout: Layout) -> None:
    digest = store(layout, b"data")
    for path in [*tmp_path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    let_everybody_in(tmp_path)

    def run() -> tuple[bytes, str, str]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with Layout.open(layout.path) as opened:
            data = reader(opened).read(digest, limit=10)
            with BlobWriter(opened) as writer, pytest.raises(StorageError) as put:
                writer.put(b"new")
            with pytest.raises(StorageError) as update:
                opened.update_index(lambda index: index)
        return data, str(put.value), str(update.value)

    data, put, update = limited(run)
    assert data == b"data"
    assert "Permission denied" in put
    assert "index.json" in update


def test_closing_twice_is_fine(layout: Layout) -> None:
    layout.close()
    layout.close()


# ---- the index


def test_the_index_is_replaced_and_not_rewritten(layout: Layout) -> None:
    with open(layout.path / "index.json", "rb") as before:
        layout.update_index(lambda index: index.with_tag("t", Descriptor(media_types.MANIFEST, Digest.of(b""), 0)))
        assert b'"t"' not in before.read()
    assert layout.read_index().tags() == ["t"]
    assert sorted(os.listdir(layout.path)) == ["blobs", "index.json", "oci-layout"]


def test_a_change_that_fails_leaves_the_index(layout: Layout) -> None:
    before = (layout.path / "index.json").read_bytes()

    def fail(index: object) -> object:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        layout.update_index(fail)  # type: ignore[arg-type]
    assert (layout.path / "index.json").read_bytes() == before
    layout.update_index(lambda index: index)  # the lock is free


def test_a_temporary_index_of_a_killed_process_is_in_nobodys_way(tmp_path: Path, layout: Layout) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (layout.path / f".tmp-index.json-{os.getpid()}").symlink_to(tmp_path / "victim")
    layout.update_index(lambda index: index)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (layout.path / "index.json").is_symlink()


def _add_tags(path: Path, process: int) -> None:
    with Layout.open(path) as layout:
        for number in range(10):
            descriptor = Descriptor(media_types.MANIFEST, Digest.of(b"%d" % process), number)
            layout.update_index(lambda index, name=f"p{process}-{number}", it=descriptor: index.with_tag(name, it))  # type: ignore[misc]


def test_processes_that_update_at_once_lose_nothing(layout: Layout) -> None:
    together([partial(_add_tags, layout.path, process) for process in range(4)])
    assert sorted(layout.read_index().tags()) == sorted(f"p{p}-{n}" for p in range(4) for n in range(10))


def test_threads_that_update_at_once_lose_nothing(layout: Layout) -> None:
    threads = [threading.Thread(target=_add_tags, args=(layout.path, number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(layout.read_index().tags()) == 40


def test_the_lock_keeps_others_out(layout: Layout) -> None:
    with layout.locked():
        fd = os.open(layout.path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


# ---- writing


def test_blobs_get_their_names_with_commit(layout: Layout) -> None:
    with BlobWriter(layout) as writer:
        digests = [writer.put(data) for data in (b"one", b"", b"two", b"one", memoryview(b"two"), bytearray(b"three"))]
        assert all(name.startswith(".tmp-") for name in names(layout))
        writer.commit()
        assert names(layout) == sorted({digest.hex() for digest in digests})
        assert (writer.new_blobs, writer.stored_bytes) == (4, 11)
        late = writer.put(b"late")
        writer.commit()
    assert late.hex() in names(layout)
    assert [reader(layout).read(digest, limit=5) for digest in digests[:3]] == [b"one", b"", b"two"]


def test_data_is_on_disk_before_names_and_names_before_commit_returns(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names given before the data is on disk are empty files after a power cut."""
    steps: list[str] = []
    rename = os.rename
    monkeypatch.setattr("puzzlefs.blobs.writer.sync_file_system", lambda fd: steps.append("sync"))
    monkeypatch.setattr(os, "rename", lambda *args, **where: (steps.append("rename"), rename(*args, **where)))
    with BlobWriter(layout) as writer:
        writer.put(b"one")
        writer.put(b"two")
        assert steps == []
        writer.commit()
        assert steps == ["sync", "rename", "rename", "sync"]


def test_the_index_is_on_disk_before_it_has_its_name(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr("puzzlefs.blobs.layout.sync_file_system", lambda fd: steps.append("sync"))
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda *words, **named: (steps.append("rename"), rename(*words, **named)))
    layout.update_index(lambda index: index)
    assert steps == ["fsync", "rename", "sync"]


def test_views_of_other_items_are_bytes(layout: Layout) -> None:
    with BlobWriter(layout) as writer:
        digest = writer.put(memoryview(bytes(range(80))).cast("Q"))
        writer.commit()
        assert writer.stored_bytes == 80
    assert reader(layout).read(digest, limit=80) == bytes(range(80))


def test_much_data_is_put_on_disk_before_commit(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puzzlefs.blobs.writer._WRITE_OUT_SIZE", 100)
    synced = threading.Event()
    monkeypatch.setattr("puzzlefs.blobs.writer.sync_file_system", lambda fd: synced.set())
    with BlobWriter(layout) as writer:
        writer.put(b"a" * 99)
        assert not synced.is_set()
        writer.put(b"b")
        assert synced.wait(10)
        assert all(name.startswith(".tmp-") for name in names(layout))
        writer.commit()
    assert len(names(layout)) == 2


def test_a_failure_to_put_data_on_disk_is_told_once_and_counts(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does it: whoever asks first is told of a failed write-back, and nobody after that."""
    monkeypatch.setattr("puzzlefs.blobs.writer._WORTH_A_THREAD", 1)
    failures = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def sync(fd: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr("puzzlefs.blobs.writer.sync_file_system", sync)
    with BlobWriter(layout) as writer:
        writer.put(b"a")
        writer.begin_write_out()
        writer.put(b"b")
        with pytest.raises(StorageError, match="Input/output error"):
            writer.commit()
    assert not failures
    assert names(layout) == []


def test_little_data_waits_for_commit(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    monkeypatch.setattr("puzzlefs.blobs.writer.sync_file_system", syncs.append)
    with BlobWriter(layout) as writer:
        writer.put(b"a")
        writer.begin_write_out()
    assert syncs == []
    assert names(layout) == []


def test_leaving_without_commit_leaves_nothing(layout: Layout) -> None:
    with pytest.raises(KeyError), BlobWriter(layout) as writer:
        writer.put(b"one")
        assert len(names(layout)) == 1
        raise KeyError
    assert names(layout) == []


def test_a_good_blob_is_never_rewritten(layout: Layout) -> None:
    digest = store(layout, b"data")
    before = os.stat(layout.blob_path(digest))
    for check in (False, True):
        with BlobWriter(layout, check_existing=check) as writer:
            assert writer.put(b"data") == digest
            writer.commit()
            assert (writer.new_blobs, writer.stored_bytes) == (0, 0)
    after = os.stat(layout.blob_path(digest))
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


@pytest.mark.parametrize("content", [b"", b"dat", b"data and more"])
def test_a_blob_of_a_wrong_size_is_replaced_by_rename(layout: Layout, content: bytes) -> None:
    digest = store(layout, b"data")
    path = layout.blob_path(digest)
    path.write_bytes(content)
    with open(path, "rb") as old:
        with BlobWriter(layout) as writer:
            writer.put(b"data")
            assert path.read_bytes() == content
            writer.commit()
            assert writer.new_blobs == 1
        assert old.read() == content
    assert path.read_bytes() == b"data"


def test_a_blob_of_wrong_content_is_replaced_when_it_is_checked(layout: Layout) -> None:
    digest = store(layout, b"data")
    path = layout.blob_path(digest)
    path.write_bytes(b"dada")
    for check, expected in ((False, b"dada"), (True, b"data")):
        with BlobWriter(layout, check_existing=check) as writer:
            writer.put(b"data")
            writer.commit()
        assert path.read_bytes() == expected


def test_what_is_no_file_under_a_blobs_name_is_replaced(tmp_path: Path, layout: Layout) -> None:
    (tmp_path / "elsewhere").write_bytes(b"data")
    path = layout.blob_path(Digest.of(b"data"))
    for make in (lambda: path.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(path)):
        make()
        store(layout, b"data")
        assert path.read_bytes() == b"data"
        assert not path.is_symlink()
        path.unlink()
    path.mkdir()
    with BlobWriter(layout) as writer, pytest.raises(StorageError, match="directory"):
        writer.put(b"data")
        writer.commit()
    assert names(layout) == [path.name]


def test_threads_that_put_the_same_blobs(layout: Layout) -> None:
    with BlobWriter(layout) as writer:

        def work(seed: int) -> None:
            for number in range(100):
                writer.put(b"%d" % ((number * 7 + seed) % 100))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        writer.commit()
        assert writer.new_blobs == 100
    assert names(layout) == sorted(Digest.of(b"%d" % number).hex() for number in range(100))


def test_two_writers_at_once(layout: Layout) -> None:
    with BlobWriter(layout) as one, BlobWriter(layout) as two:
        one.put(b"both")
        two.put(b"both")
        one.put(b"one")
        one.commit()
        assert len(names(layout)) == 3
        two.commit()
    assert names(layout) == sorted(Digest.of(data).hex() for data in (b"both", b"one"))


def test_a_put_that_failed_is_not_taken_for_done(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with BlobWriter(layout) as writer:
        writer.put(b"before")
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            writer.put(b"data")
        with pytest.raises(StorageError):
            writer.put(b"data")
        monkeypatch.setattr(os, "write", real)
        with pytest.raises(StorageError, match=Digest.of(b"data").hex()):
            writer.commit()
        assert all(name.startswith(".tmp-") for name in names(layout))
        writer.put(b"data")
        writer.commit()
    assert names(layout) == sorted(Digest.of(data).hex() for data in (b"before", b"data"))


def test_writes_that_take_only_a_part(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    digest = store(layout, bytes(range(100)))
    assert layout.blob_path(digest).read_bytes() == bytes(range(100))


# ---- reading


def test_the_host_of_a_blob_is_named(layout: Layout) -> None:
    missing = Digest.of(b"missing")
    with pytest.raises(BlobNotFoundError) as caught:
        reader(layout).read(missing, limit=1)
    assert str(layout.blob_path(missing)) in str(caught.value)
    assert caught.value.digest == missing.hex()
    assert layout.blob_size(missing) is None


def test_a_limit_is_a_limit(layout: Layout) -> None:
    digest = store(layout, bytes(100))
    assert reader(layout).read(digest, limit=100) == bytes(100)
    with pytest.raises(FormatError, match="100 bytes, more than the 99"):
        reader(layout).read(digest, limit=99)


def test_reading_has_a_bound_while_a_file_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    fd = os.open(path, os.O_RDONLY)
    real = os.read

    def growing(fd: int, size: int) -> bytes:
        with open(path, "ab") as file:
            file.write(b"y" * 10)
        return real(fd, size)

    monkeypatch.setattr(os, "read", growing)
    with pytest.raises(FormatError, match="more than the 50"):
        read_bounded(fd, "it", 50)
    os.close(fd)


def test_parts_of_chunks(layout: Layout) -> None:
    content = os.urandom(100_000)
    raw = store(layout, content)
    packed = store(layout, zstandard.compress(content))
    blobs = reader(layout)
    for digest, compressed in ((raw, False), (packed, True)):
        assert not blobs.is_cached(digest)
        assert blobs.read_chunk(digest, compressed, 5, 10) == content[5:15]
        assert blobs.is_cached(digest)
        layout.blob_path(digest).write_bytes(b"changed underneath")
        assert blobs.read_chunk(digest, compressed, 99_999, 1) == content[-1:]
        assert blobs.read_chunk(digest, compressed, 100_000, 0) == b""
        with pytest.raises(FormatError, match="100000 bytes, but a file uses it up to byte 100001"):
            blobs.read_chunk(digest, compressed, 99_999, 2)


def test_one_blob_used_both_as_zstd_and_as_it_is(layout: Layout) -> None:
    """A tree may hold a file that happens to be the compressed form of a chunk."""
    stored = zstandard.compress(b"content" * 100)
    digest = store(layout, stored)
    blobs = reader(layout)
    for _ in range(2):
        assert blobs.read_chunk(digest, True, 0, 7) == b"content"
        assert blobs.read_chunk(digest, False, 0, len(stored)) == stored


@pytest.mark.parametrize("size", [4 * MEBI, 4 * MEBI + 1, 9 * MEBI, 9 * MEBI + 12_345])
def test_large_raw_chunks(layout: Layout, size: int) -> None:
    content = os.urandom(size)
    digest = store(layout, content)
    blobs = reader(layout)
    for offset, length in ((0, 1), (MEBI - 1, 2), (size - 5, 5), (3, 2 * MEBI), (0, size), (size, 0), (MEBI, MEBI)):
        assert blobs.read_chunk(digest, False, offset, length) == content[offset : offset + length]
    for offset, length in ((size, 1), (size + MEBI, 1), (1 << 62, 1), (0, size + 1)):
        with pytest.raises(FormatError):
            blobs.read_chunk(digest, False, offset, length)


def test_a_large_chunk_that_changes_after_it_was_verified(layout: Layout) -> None:
    """Each block is compared again, so not even a change that keeps the times goes unnoticed."""
    content = bytearray(os.urandom(9 * MEBI))
    digest = store(layout, bytes(content))
    blobs = reader(layout)
    path = layout.blob_path(digest)
    assert blobs.read_chunk(digest, False, 0, 10) == content[:10]
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(5 * MEBI)
        file.write(bytes([content[5 * MEBI] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(IntegrityError):
        blobs.read_chunk(digest, False, 5 * MEBI + 100, 10)
    assert blobs.read_chunk(digest, False, 0, 10) == content[:10]
    os.truncate(path, 6 * MEBI)
    with pytest.raises((FormatError, IntegrityError)):
        blobs.read_chunk(digest, False, 8 * MEBI, 10)


@pytest.mark.parametrize("size", [10, 5 * MEBI])
def test_a_corrupt_chunk_is_never_returned(layout: Layout, size: int) -> None:
    digest = store(layout, bytes(size))
    path = layout.blob_path(digest)
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(b"\1")
    blobs = reader(layout)
    for _ in range(2):
        with pytest.raises(IntegrityError) as caught:
            blobs.read_chunk(digest, False, 0, 1)
        assert (caught.value.expected, caught.value.subject) == (digest.hex(), f"blob {path}")
        assert not blobs.is_cached(digest)
    path.write_bytes(bytes(size))
    assert blobs.read_chunk(digest, False, 0, 1) == b"\0"


def test_the_cache_is_bounded(layout: Layout) -> None:
    blobs = reader(layout)
    digests = [store(layout, bytes([number]) * (2 * MEBI)) for number in range(12)]
    for digest in digests:
        blobs.read_chunk(digest, False, 0, 1)
    cached = [blobs.is_cached(digest) for digest in digests]
    assert cached == [False] * 9 + [True] * 3  # 8 MiB with what the items take themselves


def test_a_budget_ends(layout: Layout) -> None:
    blobs = reader(layout)
    digests = [store(layout, bytes([number]) * MEBI) for number in range(4)]
    budget = LoadBudget(3 * MEBI)
    for digest in digests[:3]:
        blobs.read_chunk(digest, False, 0, 1, budget)
        blobs.read_chunk(digest, False, 0, 1, budget)  # from the cache: free
    with pytest.raises(FormatError, match="absurdly small"):
        blobs.read_chunk(digests[3], False, 0, 1, budget)


# ---- what verified means


RECORDED = VerityDigest(bytes(32))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Stands in for the kernel (the real one is asked in tests/verity): what it answers for any file."""
    answer: dict[str, object] = {}

    def measure(fd: int) -> VerityDigest:
        value = answer["value"]
        if isinstance(value, Exception):
            raise value
        assert isinstance(value, VerityDigest)
        return value

    def find_measurement(fd: int) -> VerityDigest | None:
        try:
            return measure(fd)
        except (VerityNotEnabledError, VerityUnavailableError):
            return None

    monkeypatch.setattr("puzzlefs.blobs.verified.measure", measure)
    monkeypatch.setattr("puzzlefs.blobs.verified.find_measurement", find_measurement)
    return answer


@pytest.mark.parametrize("error", [VerityNotEnabledError("off"), VerityUnavailableError("none")])
def test_without_fs_verity(layout: Layout, measured: dict[str, object], error: Exception) -> None:
    digest = store(layout, b"data")
    measured["value"] = error
    recorded = {digest: RECORDED}
    for mode in ("auto", "user"):
        assert VerifiedBlobs(layout, BlobVerifier(mode, recorded)).read(digest, limit=9) == b"data"
    with pytest.raises(type(error), match=digest.hex()):
        VerifiedBlobs(layout, BlobVerifier("kernel", recorded)).read(digest, limit=9)


def test_the_measurement_must_be_the_recorded_one(layout: Layout, measured: dict[str, object]) -> None:
    digest = store(layout, b"data")
    measured["value"] = verity_digest(b"data")
    for mode in ("auto", "kernel"):
        good = VerifiedBlobs(layout, BlobVerifier(mode, {digest: verity_digest(b"data")}))
        assert good.read(digest, limit=9) == b"data"
        bad = VerifiedBlobs(layout, BlobVerifier(mode, {digest: RECORDED}))
        with pytest.raises(IntegrityError) as caught:
            bad.read(digest, limit=9)
        assert (caught.value.expected, caught.value.actual) == (RECORDED.hex(), verity_digest(b"data").hex())
        with pytest.raises(IntegrityError):
            bad.read_chunk(digest, False, 0, 1)
    assert VerifiedBlobs(layout, BlobVerifier("user", {digest: RECORDED})).read(digest, limit=9) == b"data"


def test_in_kernel_mode_every_blob_needs_a_record(layout: Layout, measured: dict[str, object]) -> None:
    digest = store(layout, b"data")
    measured["value"] = verity_digest(b"data")
    with pytest.raises(IntegrityError):
        VerifiedBlobs(layout, BlobVerifier("kernel", {})).read(digest, limit=9)
    assert VerifiedBlobs(layout, BlobVerifier("auto", {})).read(digest, limit=9) == b"data"
    given = VerifiedBlobs(layout, BlobVerifier("kernel"))
    assert given.read(digest, limit=9, expected=verity_digest(b"data")) == b"data"


@pytest.mark.parametrize("available", [False, True])
def test_a_host_without_fs_verity_is_not_asked_for_each_chunk(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, available: bool
) -> None:
    asked: list[str] = []

    def find_measurement(fd: int) -> None:
        asked.append("measurement")

    def is_available(fd: int) -> bool:
        asked.append("host")
        return available

    monkeypatch.setattr("puzzlefs.blobs.verified.find_measurement", find_measurement)
    monkeypatch.setattr("puzzlefs.blobs.verified.is_available", is_available)
    digests = [store(layout, bytes([number])) for number in range(3)]
    blobs = VerifiedBlobs(layout, BlobVerifier("auto", dict.fromkeys(digests, RECORDED)))
    for number, digest in enumerate(digests):
        assert blobs.read_chunk(digest, False, 0, 1) == bytes([number])
        assert blobs.read(digest, limit=9) == bytes([number])
    assert asked == ["measurement", "host"] + 5 * ["measurement"] * available


def test_in_kernel_mode_a_chunk_is_what_the_kernel_vouches_for(layout: Layout, measured: dict[str, object]) -> None:
    """It is not hashed; and no chunk is shown for which nothing is recorded, whatever its bytes."""
    digest = store(layout, b"data")
    path = layout.blob_path(digest)
    path.chmod(0o600)
    path.write_bytes(b"DATA")  # what the stand-in for a kernel does not find out
    measured["value"] = verity_digest(b"data")
    for mode in ("auto", "kernel"):
        assert (
            VerifiedBlobs(layout, BlobVerifier(mode, {digest: verity_digest(b"data")})).load(digest, False) == b"DATA"
        )
    good = store(layout, b"good")
    with pytest.raises(IntegrityError, match="recorded"):
        VerifiedBlobs(layout, BlobVerifier("kernel", {})).load(good, False)
    measured["value"] = VerityNotEnabledError("off")
    with pytest.raises(VerityNotEnabledError, match=good.hex()):
        VerifiedBlobs(layout, BlobVerifier("kernel", {good: verity_digest(b"good")})).load(good, False)


def test_large_chunks_with_fs_verity(layout: Layout, measured: dict[str, object]) -> None:
    digest = store(layout, bytes(5 * MEBI))
    measured["value"] = RECORDED
    blobs = VerifiedBlobs(layout, BlobVerifier("kernel", {digest: RECORDED}))
    assert blobs.read_chunk(digest, False, 5 * MEBI - 1, 1) == b"\0"
    with pytest.raises(FormatError):
        blobs.read_chunk(digest, False, 5 * MEBI, 1)


@pytest.mark.parametrize("mode", ["auto", "kernel"])
def test_the_anchor_by_the_kernel(layout: Layout, measured: dict[str, object], mode: str) -> None:
    verifier = BlobVerifier("auto" if mode == "auto" else "kernel")
    measured["value"] = RECORDED
    verifier.check_anchor(0, b"whatever: the kernel vouches", "it", RECORDED)
    with pytest.raises(IntegrityError):
        verifier.check_anchor(0, b"data", "it", verity_digest(b"data"))


def test_the_anchor_in_user_space(measured: dict[str, object]) -> None:
    measured["value"] = VerityNotEnabledError("off")
    for mode in ("auto", "user"):
        BlobVerifier(mode).check_anchor(0, b"data", "it", verity_digest(b"data"))
        with pytest.raises(IntegrityError):
            BlobVerifier(mode).check_anchor(0, b"date", "it", verity_digest(b"data"))
    with pytest.raises(VerityNotEnabledError):
        BlobVerifier("kernel").check_anchor(0, b"data", "it", verity_digest(b"data"))


# ---- errors of the host


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "who may"),
        (errno.EIO, "kernel's log"),
        (errno.EXDEV, ""),
    ],
)
def test_errors_of_the_host_name_the_object_and_the_next_step(number: int, hint: str) -> None:
    with pytest.raises(StorageError) as caught, storage_errors("write", "/some/where"):
        raise OSError(number, os.strerror(number))
    assert caught.value.message == f"cannot write /some/where: {os.strerror(number)}"
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)
    assert isinstance(caught.value.__cause__, OSError)


def test_an_error_while_a_blob_is_read(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store(layout, b"data")

    def failing(fd: int, size: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "read", failing)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageError, match=rf"{digest.hex()}: Input/output error"):
        reader(layout).read(digest, limit=10)
    assert len(os.listdir("/proc/self/fd")) == open_before
