"""Blobs that get their names while something else is done: ``BlobWriter.begin_commit``."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.digest import Digest
from puzzlefs.errors import StorageError
from puzzlefs.oci import Dialect

pytestmark = pytest.mark.unit

BLOBS = [b"one", b"two", b"three"]
Names = Callable[[Sequence[tuple[Digest, int]]], None]


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    with Layout.open_or_create(tmp_path / "layout", Dialect.OCI) as opened:
        yield opened


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puzzlefs.blobs.writer._WORTH_NAMING", 1)


def names(layout: Layout) -> set[str]:
    return set(os.listdir(layout.blobs_fd))


def blobs(*contents: bytes) -> set[str]:
    return {Digest.of(content).hex() for content in contents}


def delegated(writer: BlobWriter) -> BlobWriter:
    """A delegate that has written ``BLOBS``, of which the writer knows."""
    delegate = writer.delegate(0, 1)
    for content in BLOBS:
        delegate.put(content)
    for digest, size, number in delegate.take_written():
        writer.take_over(digest, size, number)
    return delegate


def test_names_are_there_before_commit_and_what_comes_later_with_it(layout: Layout) -> None:
    with BlobWriter(layout) as writer:
        delegate = delegated(writer)
        writer.begin_commit(delegate.give_names)
        writer.end_naming()
        assert names(layout) >= blobs(*BLOBS)
        writer.put(b"metadata")
        writer.put(BLOBS[0])
        assert not names(layout) & blobs(b"metadata")
        writer.commit()
        assert writer.new_blobs == 4
    assert names(layout) == blobs(*BLOBS, b"metadata")


def test_the_data_are_on_disk_and_leased_before_a_name_is_given(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    monkeypatch.setattr("puzzlefs.blobs.writer.sync_file_system", lambda fd: happened.append("sync"))
    with BlobWriter(layout) as writer:
        delegate = delegated(writer)
        (lease,) = (name for name in names(layout) if name.startswith(".lease-"))

        def give_names(written: Sequence[tuple[Digest, int]]) -> None:
            happened.append("names")
            text = (layout.path / "blobs" / "sha256" / lease).read_text()
            assert all(f"blob {digest.hex()}\n" in text for digest, _ in written)
            assert threading.current_thread() is not threading.main_thread()
            delegate.give_names(written)

        writer.begin_commit(give_names)
        writer.commit()
    assert happened == ["sync", "names", "sync", "sync"]
    assert names(layout) == blobs(*BLOBS)


def test_few_blobs_get_their_names_with_commit(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puzzlefs.blobs.writer._WORTH_NAMING", len(BLOBS) + 1)
    with BlobWriter(layout) as writer:
        delegated(writer)
        writer.begin_commit(_never)
        assert not names(layout) & blobs(*BLOBS)
        writer.commit()
    assert names(layout) == blobs(*BLOBS)


def test_where_no_thread_can_be_started(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with BlobWriter(layout) as writer:
        delegated(writer)
        monkeypatch.setattr(threading.Thread, "start", start)
        writer.begin_commit(_never)
        writer.commit()
    assert names(layout) == blobs(*BLOBS)


@pytest.mark.parametrize("way", ["naming", "sync"])
def test_what_fails_meanwhile_is_an_error_of_commit(layout: Layout, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with BlobWriter(layout) as writer:
        delegate = delegated(writer)
        give_names: Names = delegate.give_names
        if way == "naming":
            monkeypatch.setattr(os, "rename", _full)
        else:
            monkeypatch.setattr("puzzlefs.blobs.writer.sync_file_system", _full)
            give_names = _never
        writer.begin_commit(give_names)
        writer.end_naming()
        monkeypatch.undo()
        with pytest.raises(StorageError, match=r"cannot write blobs to .*layout: No space left on device"):
            writer.commit()
    assert names(layout) == set()


def test_leaving_waits_for_it_and_removes_the_rest(layout: Layout) -> None:
    release = threading.Event()
    with BlobWriter(layout) as writer:
        delegate = delegated(writer)

        def give_names(written: Sequence[tuple[Digest, int]]) -> None:
            release.wait()
            delegate.give_names(written[:1])
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        writer.begin_commit(give_names)
        threading.Timer(0.05, release.set).start()
    assert names(layout) == blobs(BLOBS[0])


def _never(written: object) -> None:
    raise AssertionError("nobody should be asked")


def _full(*args: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
