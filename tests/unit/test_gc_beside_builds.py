"""Garbage collection while others build: nobody loses what they need, or waits for long."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import trees
from support.forge import Forge
from support.layouts import blob_names, shown
from support.sharing_trees import KINDS, write_tree

from puzzlefs import collect
from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder import build
from puzzlefs.collect import GarbageReport, collect_garbage
from puzzlefs.delta import build_from_tree
from puzzlefs.digest import Digest
from puzzlefs.errors import (
    NotFoundError,
)
from puzzlefs.image import open_image
from puzzlefs.tags import untag

pytestmark = pytest.mark.unit


@pytest.fixture(params=KINDS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


class TestBesideBuilds:
    """Paused at every step that matters, while a collection without any grace runs."""

    def collected_at(
        self,
        monkeypatch: pytest.MonkeyPatch,
        place: Any,
        name: str,
        layout: Path,
        *,
        before: Callable[[], None] | None = None,
    ) -> list[int]:
        """Run ``gc`` whenever ``place.name`` is called; how many blobs it removed."""
        removed: list[int] = []
        real = getattr(place, name)

        def paused(*args: Any, **named: Any) -> Any:
            if before is not None:
                before()
            removed.append(collect_garbage(layout, grace=0).removed_blobs)
            return real(*args, **named)

        monkeypatch.setattr(place, name, paused)
        return removed

    @pytest.mark.parametrize("step", ["commit", "adopt", "put", "update_index"])
    def test_a_build_that_adopts_garbage(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], step: str
    ) -> None:
        layout = tmp_path / "oci"
        tree = write_tree(tmp_path / "a", 1)
        time.sleep(0.1)  # or its times are not trusted
        build(tree, f"{layout}:a", cache=tmp_path / "cache", **options)
        (tree / "new").write_bytes(b"new" * 50_000)
        untag(f"{layout}:a")  # all of its blobs are garbage now, and old enough
        removed = self.collected_at(monkeypatch, Layout if step == "update_index" else BlobWriter, step, layout)
        build(tree, f"{layout}:b", cache=tmp_path / "cache", workers=1, **options)
        monkeypatch.undo()
        assert removed
        if step in ("commit", "update_index"):
            assert removed[0] > 0  # what the new image does not need
        assert shown(f"{layout}:b") == trees.on_disk(tree)
        assert collect_garbage(layout, grace=0).leases == 0
        assert shown(f"{layout}:b") == trees.on_disk(tree)

    def test_a_build_of_a_tree_that_did_not_change(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = tmp_path / "oci"
        tree = write_tree(tmp_path / "a", 1)
        time.sleep(0.1)  # or its times are not trusted
        build(tree, f"{layout}:a", cache=tmp_path / "cache")
        build(tree, f"{layout}:a", cache=tmp_path / "cache")
        untag(f"{layout}:a")
        removed = self.collected_at(monkeypatch, Layout, "update_index", layout)
        report = build(tree, f"{layout}:b", cache=tmp_path / "cache")
        monkeypatch.undo()
        assert report.bytes_read == 0
        assert removed == [0]
        assert shown(f"{layout}:b") == trees.on_disk(tree)

    def test_a_delta_whose_base_loses_its_tag(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for kind, options in KINDS.items():
            layout = tmp_path / kind
            tree = write_tree(tmp_path / f"tree-{kind}", 1)
            build(tree, f"{layout}:base", **options)
            (tree / "new").write_bytes(b"new" * 50_000)
            with open_image(f"{layout}:base") as base, monkeypatch.context() as patch:
                removed = self.collected_at(
                    patch, Layout, "update_index", layout, before=lambda layout=layout: untag(f"{layout}:base")
                )
                build_from_tree(tree, base, "delta")
            assert removed == [0]
            assert shown(f"{layout}:delta") == trees.on_disk(tree)

    def test_a_delta_whose_base_is_gone_already(self, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        tree = write_tree(tmp_path / "a", 1)
        build(tree, f"{layout}:base")
        with open_image(f"{layout}:base") as base:
            untag(f"{layout}:base")
            collect_garbage(layout, grace=0)
            for change in (False, True):
                if change:
                    (tree / "new").write_bytes(b"new")
                with pytest.raises(NotFoundError):
                    build_from_tree(tree, base, "delta")
        with Layout.open(layout) as opened:
            assert opened.read_index().tags() == []

    @pytest.mark.parametrize("is_slow", [False, True])
    def test_who_comes_while_blobs_are_removed_finds_them_gone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_slow: bool
    ) -> None:
        """A claim waits for the collection, and then sees what it left."""
        if is_slow:
            monkeypatch.setattr(collect, "_SLACK", -1)
        forge = Forge(tmp_path / "oci")
        digests = [forge.blob(b"%d" % number) for number in range(50)]
        answers: list[bool] = []
        threads: list[threading.Thread] = []
        call = "rename" if is_slow else "unlink"
        real = getattr(os, call)

        def adopt() -> None:
            with Layout.open(forge.path) as layout, BlobWriter(layout) as writer:
                found = [writer.adopt(digest, len(b"%d" % number)) for number, digest in enumerate(digests)]
                answers.append(any(found))

        def take_away(*args: Any, **named: Any) -> None:
            if not threads:
                threads.append(threading.Thread(target=adopt))
                threads[0].start()
                time.sleep(0.2)
                assert not answers
            real(*args, **named)

        monkeypatch.setattr(collect.os, call, take_away)
        collect_garbage(forge.path, grace=0)
        monkeypatch.undo()
        threads[0].join()
        assert answers == [False]

    def test_nobody_waits_while_what_lost_its_name_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor is another collection in the way, which takes it for left-over files."""
        forge = Forge(tmp_path / "oci")
        for number in range(50):
            forge.blob(b"%d" % number)
        monkeypatch.setattr(collect, "_SLACK", -1)
        reports: list[GarbageReport] = []
        real = os.unlink

        def unlink(*args: Any, **named: Any) -> None:
            if not reports:
                monkeypatch.undo()
                with Layout.open(forge.path) as layout, BlobWriter(layout) as writer:
                    assert not writer.adopt(Digest.of(b"7"), 1)
                reports.append(collect_garbage(forge.path, grace=0))
            real(*args, **named)

        monkeypatch.setattr(collect.os, "unlink", unlink)
        report = collect_garbage(forge.path, grace=0)
        assert (report.removed_blobs, report.temporary_files) == (50, 0)
        assert [(second.removed_blobs, second.temporary_files) for second in reports] == [(0, 50)]
        assert blob_names(forge.path) == set()

    def test_what_an_interruption_leaves_is_collected(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        layout = tmp_path / "oci"
        build(write_tree(tmp_path / "a", 1), f"{layout}:a")
        build(write_tree(tmp_path / "b", 2), f"{layout}:b")
        untag(f"{layout}:a")

        def interrupted(*_args: Any, **_named: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(collect, "_SLACK", -1)
        monkeypatch.setattr(collect.os, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect_garbage(layout, grace=0)
        monkeypatch.undo()
        report = collect_garbage(layout, grace=0)
        assert report.removed_blobs == 0
        assert report.temporary_files > 5
        assert shown(f"{layout}:b") == trees.on_disk(tmp_path / "b")
        assert len(blob_names(layout)) == report.kept_blobs

    def test_what_takes_long_is_only_set_aside_under_the_locks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forge = Forge(tmp_path / "oci")
        for number in range(50):
            forge.blob(b"%d" % number)
        clock = itertools.count()
        calls: list[str] = []
        for call in ("unlink", "rename"):
            real = getattr(os, call)

            def counted(*args: Any, real: Any = real, call: str = call, **named: Any) -> None:
                calls.append(call)
                real(*args, **named)

            monkeypatch.setattr(collect.os, call, counted)
        monkeypatch.setattr(collect, "_SLACK", 5)
        monkeypatch.setattr(collect.time, "monotonic", lambda: next(clock))
        report = collect_garbage(forge.path, grace=0)
        assert report.removed_blobs == 50
        assert calls == ["unlink"] * 5 + ["rename"] * 45 + ["unlink"] * 45
        assert blob_names(forge.path) == set()

    def test_builds_and_collections_at_once(self, tmp_path: Path) -> None:
        """Tags come and go, a collection without grace runs all the time: whatever has a tag is whole."""
        layout = tmp_path / "oci"
        source = [write_tree(tmp_path / f"{number}", number) for number in range(3)]
        build(source[0], f"{layout}:stays")
        end = time.monotonic() + 4
        failures: list[BaseException] = []
        rounds = [0, 0, 0]

        def builds(number: int) -> None:
            try:
                while time.monotonic() < end:
                    build(source[number], f"{layout}:{number}", cache=tmp_path / "cache", workers=1)
                    assert shown(f"{layout}:{number}") == trees.on_disk(source[number])
                    untag(f"{layout}:{number}")
                    rounds[number] += 1
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        threads = [threading.Thread(target=builds, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end and not failures:
            collect_garbage(layout, grace=0)
            rounds[0] += 1
        for thread in threads:
            thread.join()
        assert failures == []
        assert min(rounds) > 3
        assert shown(f"{layout}:stays") == trees.on_disk(source[0])
