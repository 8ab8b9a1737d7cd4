"""Layouts, and the atomic writer."""

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
from support.blobs import reader, store
from support.examine import limited, together
from support.trees import let_everybody_in

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.blobs.host import storage_errors
from puzzlefs.digest import Digest
from puzzlefs.errors import (
    InvalidArgumentError,
    StorageError,
)
from puzzlefs.oci import Descriptor, Dialect, media_types

pytestmark = pytest.mark.unit

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
