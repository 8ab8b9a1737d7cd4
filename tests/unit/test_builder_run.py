"""A whole build through the library: same bytes always, timestamps, compression, what is refused, what is
reported."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import trees

from puzzlefs.builder import Progress, build
from puzzlefs.builder.describe import content_of
from puzzlefs.builder.scan import TreeScan
from puzzlefs.builder.store import ChunkStore
from puzzlefs.errors import InvalidArgumentError, NotFoundError, SourceError
from puzzlefs.image import open_image
from puzzlefs.model import ROOT_INO, RegularFile
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.unit

VERSIONS = [1, 2, 3]

each_version = pytest.mark.parametrize("version", VERSIONS)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing users and mounting are for root")


def fill(root: Path, *, backwards: bool = False) -> Path:
    """A tree of a few MiB with text, noise, zeros and repeats; ``backwards`` makes it in another order."""
    files: list[tuple[str, bytes]] = [
        ("a/noise", random.Random(1).randbytes(1_500_000)),
        ("a/text", b"".join(b"line %06d\n" % number for number in range(60_000))),
        ("b/again", random.Random(1).randbytes(1_500_000)),
        ("b/zeros", bytes(1_000_000)),
        ("empty", b""),
        *((f"many/{number:03}", b"file %d" % number) for number in range(200)),
    ]
    for name, data in reversed(files) if backwards else files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    os.symlink("a/noise", root / "link")
    os.link(root / "a" / "text", root / "b" / "text-too")
    return root


def blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}


def files_of(layout: Path) -> dict[str, bytes]:
    return {str(path.relative_to(layout)): path.read_bytes() for path in layout.rglob("*") if path.is_file()}


def _after(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return call(*args, **kwargs)

    return slowly


def _noting(callers: list[str], call: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any) -> Any:
        callers.append(sys._getframe(1).f_code.co_name)
        return call(*args)

    return noted


def _failing_at(wanted: bytes, call: Callable[..., Any]) -> Callable[..., Any]:
    def failing(tree: Any, fd: int, directory: Any, name: bytes, *args: Any) -> Any:
        if name == wanted:
            raise PermissionError(13, "Permission denied")
        return call(tree, fd, directory, name, *args)

    return failing


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("source") / "root")


class TestSameBytes:
    @each_version
    @pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
    def test_with_any_number_of_workers(self, source: Path, tmp_path: Path, version: int, compression: bool) -> None:
        layouts = []
        for workers in (1, 2, 8):
            place = tmp_path / str(workers)
            build(source, f"{place}:tag", format_version=version, compression=compression, workers=workers)
            layouts.append(files_of(place))
        assert layouts[0] == layouts[1] == layouts[2]
        assert len(layouts[0]) > 10

    @pytest.mark.parametrize("enough", [1, 2_000_000, 3_100_000])
    @pytest.mark.parametrize("storing", ["slow", "quick"])
    def test_however_much_is_looked_at_before_storing_begins(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: int, storing: str
    ) -> None:
        expected = build(source, f"{tmp_path / 'expected'}:tag")
        looked: list[str] = []
        if storing == "slow":
            monkeypatch.setattr(ChunkStore, "store", _after(0.02, ChunkStore.store))
            monkeypatch.setattr("puzzlefs.builder.pipeline._MAX_BUFFERS", 2)  # so that one is waited for
            monkeypatch.setattr(TreeScan, "step", _noting(looked, TreeScan.step))
        monkeypatch.setattr("puzzlefs.builder.run.WORTH_PROCESSES", enough)
        told: list[Progress] = []
        report = build(source, f"{tmp_path / 'other'}:tag", progress=told.append)
        assert files_of(tmp_path / "other") == files_of(tmp_path / "expected")
        assert dataclasses.replace(report, seconds=0) == dataclasses.replace(expected, seconds=0)
        stages = [progress.stage for progress in told]
        assert stages == sorted(stages, key=("scan", "chunks", "commit").index)
        assert told[-1].bytes_done == told[-1].bytes_total == report.content_size
        assert {progress.bytes_total for progress in told} == {0, report.content_size}
        if storing == "slow" and enough == 1:
            assert "_collect" in looked  # while a buffer was waited for

    def test_what_is_found_too_late_leaves_nothing_behind(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layout = tmp_path / "layout"
        build(source, f"{layout}:tag")
        before = files_of(layout)
        root = fill(tmp_path / "other")
        (root / "a" / "noise").write_bytes(random.Random(2).randbytes(1_500_000))
        monkeypatch.setattr("puzzlefs.builder.run.WORTH_PROCESSES", 1)
        monkeypatch.setattr("puzzlefs.builder.scan.content_of", _failing_at(b"100", content_of))
        with pytest.raises(SourceError, match="many/100"):
            build(root, f"{layout}:tag")
        assert files_of(layout) == before

    def test_from_any_path_in_any_order_at_any_time(self, source: Path, tmp_path: Path) -> None:
        other = fill(tmp_path / "elsewhere" / "longer", backwards=True)
        assert os.listdir(other / "many") != sorted(os.listdir(other / "many"))
        first = build(source, f"{tmp_path}/one:tag")
        second = build(other, f"{tmp_path}/two:tag")
        assert first.digest == second.digest
        assert files_of(tmp_path / "one") == files_of(tmp_path / "two")

    def test_into_a_layout_that_holds_other_things(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").write_bytes(b"something else")
        build(tmp_path / "other", f"{tmp_path}/full:other")
        digest = build(source, f"{tmp_path}/full:tag").digest
        assert digest == build(source, f"{tmp_path}/fresh:tag").digest


class TestContent:
    @each_version
    @pytest.mark.parametrize("chunker", ["fastcdc2020", "ronomon"])
    @pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
    def test_comes_back(self, source: Path, tmp_path: Path, version: int, chunker: Any, compression: bool) -> None:
        report = build(
            source,
            f"{tmp_path}/oci:tag",
            format_version=version,
            chunker=chunker,
            compression=compression,
            timestamps="keep",
        )
        with open_image(f"{tmp_path}/oci:tag", digest=report.digest) as image:
            assert image.version == version
            assert trees.in_image(image, mtime=True) == trees.on_disk(source, mtime=True)

    def test_chunkers_cut_differently(self, source: Path, tmp_path: Path) -> None:
        build(source, f"{tmp_path}/one:tag")
        build(source, f"{tmp_path}/two:tag", chunker="ronomon")
        assert len(blobs(tmp_path / "one").keys() & blobs(tmp_path / "two").keys()) < 5

    @each_version
    def test_a_chunk_is_compressed_only_where_that_is_smaller(self, source: Path, tmp_path: Path, version: int) -> None:
        build(source, f"{tmp_path}/oci:tag", format_version=version, compression=True)
        stored = blobs(tmp_path / "oci")
        with open_image(f"{tmp_path}/oci:tag") as image:
            kinds = set()
            for inode in image.rootfs.metadata_layers[0]:
                if isinstance(inode.content, RegularFile):
                    for chunk in inode.content.chunks:
                        data = stored[chunk.blob.digest.hex()]
                        kinds.add(chunk.blob.compressed)
                        assert chunk.blob.compressed is (data[:4] == b"\x28\xb5\x2f\xfd")
            assert kinds == {True, False}  # the text shrinks, the noise does not

    @each_version
    @pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
    def test_the_verity_list_is_about_the_stored_bytes(
        self, source: Path, tmp_path: Path, version: int, compression: bool
    ) -> None:
        build(source, f"{tmp_path}/oci:tag", format_version=version, compression=compression)
        stored = blobs(tmp_path / "oci")
        with open_image(f"{tmp_path}/oci:tag") as image:
            listed = dict(image.rootfs.verity)
            assert len(listed) > 10
            for digest, verity in listed.items():
                assert verity_digest(stored[digest.hex()]) == verity
            chunks = {
                chunk.blob.digest
                for inode in image.rootfs.metadata_layers[0]
                if isinstance(inode.content, RegularFile)
                for chunk in inode.content.chunks
            }
            assert listed.keys() == chunks | {ref.digest for ref in image.metadata_refs}

    @pytest.mark.parametrize("compression", [False, True])
    def test_version_3_lists_the_chunks_of_the_stream_in_order(
        self, source: Path, tmp_path: Path, compression: bool
    ) -> None:
        """Each time that they occur, as the original does, or each once in a compressed image."""
        report = build(source, f"{tmp_path}/oci:tag", compression=compression)
        with open_image(f"{tmp_path}/oci:tag") as image:
            assert image.manifest is not None
            _, *layers = image.manifest.layers()
            stream = []
            for inode in image.rootfs.metadata_layers[0]:
                if isinstance(inode.content, RegularFile):
                    for chunk in inode.content.chunks:
                        if not chunk.blob.offset:
                            stream.append((chunk.blob.digest, chunk.blob.compressed))
        listed = [(layer.digest, layer.media_type.endswith("+zstd")) for layer in layers]
        assert listed == (list(dict.fromkeys(stream)) if compression else stream)
        assert len({digest for digest, _ in listed}) == report.chunks < len(stream)
        for layer in layers:
            assert layer.size == (tmp_path / "oci" / "blobs" / "sha256" / layer.digest.hex()).stat().st_size

    def test_names_of_any_bytes(self, tmp_path: Path) -> None:
        root = os.fsencode(tmp_path / "root")
        os.mkdir(root)
        names = [b"\xff\xfe", b"new\nline", b"n" * 255, b"-rf", b" ", b"\x7f\x01", "é".encode() * 127]
        for name in names:
            with open(os.path.join(root, name), "wb") as file:
                file.write(b"content of " + name)
        build(tmp_path / "root", f"{tmp_path}/oci:tag")
        with open_image(f"{tmp_path}/oci:tag") as image:
            assert [entry.name for entry in image.tree.entries(ROOT_INO)] == sorted(names)
            assert trees.in_image(image) == trees.on_disk(root)


class TestTimestamps:
    TIMES = (0, 1, 999_999_999, 1_700_000_000_123_456_789, -1_000_000_001)

    @pytest.fixture
    def dated(self, tmp_path: Path) -> Path:
        root = tmp_path / "dated"
        root.mkdir()
        for number, time_ns in enumerate(self.TIMES):
            (root / str(number)).write_bytes(b"")
            os.utime(root / str(number), ns=(0, time_ns))
        os.utime(root, ns=(0, 77))
        return root

    def times(self, layout: Path) -> list[int | None]:
        with open_image(f"{layout}:tag") as image:
            return [inode.mtime_ns for inode in image.rootfs.metadata_layers[0]]

    @each_version
    def test_keep(self, dated: Path, tmp_path: Path, version: int) -> None:
        build(dated, f"{tmp_path}/oci:tag", format_version=version, timestamps="keep")
        assert self.times(tmp_path / "oci") == [77, *self.TIMES]

    @each_version
    def test_clamp(self, dated: Path, tmp_path: Path, version: int) -> None:
        build(dated, f"{tmp_path}/oci:tag", format_version=version, timestamps="clamp", clamp_ns=500)
        assert self.times(tmp_path / "oci") == [77, 0, 1, 500, 500, -1_000_000_001]

    @each_version
    def test_none_shows_the_epoch_and_ignores_the_source(self, dated: Path, tmp_path: Path, version: int) -> None:
        first = build(dated, f"{tmp_path}/oci:tag", format_version=version)
        os.utime(dated / "1", ns=(0, 12345))
        assert build(dated, f"{tmp_path}/oci:tag", format_version=version).digest == first.digest
        assert set(self.times(tmp_path / "oci")) <= {None, 0}
        with open_image(f"{tmp_path}/oci:tag") as image:
            assert image.tree.attributes(ROOT_INO).mtime_ns == 0

    def test_a_time_beyond_the_field_is_its_last(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        root.mkdir()
        os.utime(root, ns=(0, 10_000_000_000_000_000_000))  # in the year 2286
        assert root.stat().st_mtime_ns == 10_000_000_000_000_000_000
        build(root, f"{tmp_path}/oci:tag", timestamps="keep")
        assert self.times(tmp_path / "oci") == [(1 << 63) - 1]

    def test_clamp_without_a_time_is_refused(self, dated: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgumentError, match="SOURCE_DATE_EPOCH"):
            build(dated, f"{tmp_path}/oci:tag", timestamps="clamp")
        assert not (tmp_path / "oci").exists()


class TestReport:
    def test_of_a_first_and_a_second_build(self, source: Path, tmp_path: Path) -> None:
        first = build(source, f"{tmp_path}/oci:tag")
        stored = blobs(tmp_path / "oci")
        assert first.inodes == 1 + 3 + 205 + 1
        assert first.content_size == 1_500_000 * 2 + 1_000_000 + 12 * 60_000 + sum(
            len(b"file %d" % number) for number in range(200)
        )
        assert (first.mount_points, first.has_pyc) == ((), False)
        assert first.new_chunks == first.chunks == len(stored) - 3  # rootfs, manifest, config
        assert first.stored_bytes == sum(map(len, stored.values()))
        assert first.seconds > 0
        second = build(source, f"{tmp_path}/oci:again")
        assert second == dataclasses.replace(first, new_chunks=0, stored_bytes=0, seconds=second.seconds)

    def test_progress_goes_forward_to_the_end(self, source: Path, tmp_path: Path) -> None:
        steps: list[Progress] = []
        report = build(source, f"{tmp_path}/oci:tag", progress=steps.append)
        stages = [step.stage for step in steps]
        assert stages == sorted(stages, key=["scan", "chunks", "commit"].index)
        assert set(stages) == {"scan", "chunks", "commit"}
        done = [step.bytes_done for step in steps]
        assert done == sorted(done)
        assert done[-1] == steps[-1].bytes_total == report.content_size
        assert steps[-1].inodes == report.inodes

    def test_compiled_python(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "module.cpython-311.pyc").write_bytes(b"")
        assert build(tmp_path / "root", f"{tmp_path}/oci:tag").has_pyc

    def test_an_empty_tree(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        report = build(tmp_path / "root", f"{tmp_path}/oci:tag")
        assert (report.inodes, report.content_size, report.chunks) == (1, 0, 0)
        with open_image(f"{tmp_path}/oci:tag") as image:
            assert list(image.tree.entries(ROOT_INO)) == []


class TestLayouts:
    def test_a_tag_moves(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "small").mkdir()
        first = build(source, f"{tmp_path}/oci:tag")
        second = build(tmp_path / "small", f"{tmp_path}/oci:tag")
        assert first.digest != second.digest
        with open_image(f"{tmp_path}/oci:tag") as image:
            assert image.verity_digest() == second.digest
            assert image.layout.read_index().tags() == ["tag"]

    @pytest.mark.parametrize(("first", "second"), [(1, 3), (2, 3), (3, 1), (3, 2)])
    def test_kinds_do_not_mix(self, source: Path, tmp_path: Path, first: int, second: int) -> None:
        build(source, f"{tmp_path}/oci:tag", format_version=first)
        before = files_of(tmp_path / "oci")
        with pytest.raises(InvalidArgumentError, match="cannot hold"):
            build(source, f"{tmp_path}/oci:other", format_version=second)
        assert files_of(tmp_path / "oci") == before

    def test_versions_1_and_2_live_together(self, source: Path, tmp_path: Path) -> None:
        digests = {
            version: build(source, f"{tmp_path}/oci:v{version}", format_version=version).digest for version in (1, 2)
        }
        for version, digest in digests.items():
            with open_image(f"{tmp_path}/oci:v{version}", digest=digest) as image:
                assert image.version == version

    def damaged(self, layout: Path, source: Path, damage: bytes) -> tuple[Path, bytes]:
        build(source, f"{layout}:tag")
        chunk = next(path for path in (layout / "blobs" / "sha256").iterdir() if path.stat().st_size > 50_000)
        good = chunk.read_bytes()
        chunk.write_bytes(good[: -len(damage)] + damage if damage else good[:-1])
        return chunk, good

    def test_a_blob_of_a_wrong_size_is_replaced(self, source: Path, tmp_path: Path) -> None:
        chunk, good = self.damaged(tmp_path / "oci", source, b"")
        with open(chunk, "rb") as reader:
            build(source, f"{tmp_path}/oci:tag")
            assert chunk.read_bytes() == good
            assert reader.read() == good[:-1]  # who had it open keeps what it was

    def test_a_blob_with_a_wrong_hash_is_replaced_when_asked_for(self, source: Path, tmp_path: Path) -> None:
        chunk, good = self.damaged(tmp_path / "oci", source, b"bad")
        build(source, f"{tmp_path}/oci:tag")
        assert chunk.read_bytes() != good
        build(source, f"{tmp_path}/oci:tag", check_existing=True)
        assert chunk.read_bytes() == good

    def test_a_good_blob_is_left_alone(self, source: Path, tmp_path: Path) -> None:
        build(source, f"{tmp_path}/oci:tag")
        before = {path: path.stat() for path in (tmp_path / "oci" / "blobs" / "sha256").iterdir()}
        build(source, f"{tmp_path}/oci:tag", check_existing=True)
        for path, status in before.items():
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)

    def test_blobs_may_be_shared_by_a_link(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "shared").mkdir()
        for name in ("one", "two"):
            (tmp_path / name / "blobs").mkdir(parents=True)
            (tmp_path / name / "blobs" / "sha256").symlink_to(tmp_path / "shared")
        assert build(source, f"{tmp_path}/one:tag").new_chunks > 0
        assert build(source, f"{tmp_path}/two:tag").new_chunks == 0
        with open_image(f"{tmp_path}/two:tag") as image:
            assert trees.in_image(image) == trees.on_disk(source)


class TestRefusals:
    def refuse(self, root: Path, layout: Path, match: str) -> None:
        before = sorted(str(path) for path in root.rglob("*"))
        with pytest.raises(InvalidArgumentError, match=match):
            build(root, f"{layout}:tag")
        assert sorted(str(path) for path in root.rglob("*")) == before

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        place = tmp_path / "root"
        (place / "sub").mkdir(parents=True)
        return place

    @pytest.mark.parametrize("where", ["", "oci", "sub", "sub/not/there/yet", "sub/../oci"])
    def test_a_layout_inside_of_the_tree(self, root: Path, where: str) -> None:
        self.refuse(root, root / where, "lies inside of")

    def test_a_layout_inside_by_a_link(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(root / "sub")
        self.refuse(root, tmp_path / "link" / "oci", "lies inside of")
        self.refuse(tmp_path / "link", root / "sub" / "oci", "lies inside of")

    def test_a_layout_whose_blobs_are_inside(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "oci" / "blobs").mkdir(parents=True)
        (tmp_path / "oci" / "blobs" / "sha256").symlink_to(root / "sub")
        self.refuse(root, tmp_path / "oci", "lies inside of")

    @needs_root
    def test_a_layout_inside_by_a_bind_mount(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "bound").mkdir()
        subprocess.run(["mount", "--bind", root, tmp_path / "bound"], check=True)
        try:
            self.refuse(root, tmp_path / "bound" / "oci", "lies inside of")
        finally:
            subprocess.run(["umount", tmp_path / "bound"], check=True)

    def test_a_relative_layout_inside(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(root)
        self.refuse(root, Path("oci"), "lies inside of")

    def test_neighbours_are_fine(self, root: Path, tmp_path: Path) -> None:
        build(root, f"{tmp_path}/root2:tag")
        build(tmp_path / "root2", f"{tmp_path}/root:3/oci:tag")
        build(root / "sub", f"{tmp_path}/root/oci:tag")

    def test_a_tree_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(InvalidArgumentError, match="is not a directory"):
            build(tmp_path / "file", f"{tmp_path}/oci:tag")
        with pytest.raises(NotFoundError, match="does not exist"):
            build(tmp_path / "missing", f"{tmp_path}/oci:tag")
        assert not (tmp_path / "oci").exists()

    @pytest.mark.parametrize(
        "arguments",
        [{"format_version": 4}, {"workers": 0}, {"chunker": "rabin"}, {"timestamps": "some"}],
        ids=str,
    )
    def test_arguments_that_make_no_sense(self, root: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgumentError):
            build(root, f"{tmp_path}/oci:tag", **arguments)
        assert not (tmp_path / "oci").exists()


@contextlib.contextmanager
def as_user(number: int) -> Iterator[None]:
    """Give up root for a while."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@needs_root
class TestWithoutRoot:
    NOBODY = 65534

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Path]:
        """A directory that a user without rights may reach and write to."""
        result = subprocess.run(["mktemp", "-d", "--tmpdir", "puzzlefs-XXXXXX"], check=True, capture_output=True)
        place = Path(os.fsdecode(result.stdout.strip()))
        (place / "root").mkdir()
        for path in (place, place / "root"):
            os.chown(path, self.NOBODY, self.NOBODY)
        yield place
        subprocess.run(["rm", "-rf", place], check=True)

    def test_a_file_that_may_not_be_read(self, place: Path) -> None:
        (place / "root" / "secret").write_bytes(b"secret")
        (place / "root" / "secret").chmod(0o600)
        with as_user(self.NOBODY), pytest.raises(SourceError, match=r"cannot read .*/root/secret: Permission denied"):
            build(place / "root", f"{place}/oci:tag")

    @pytest.mark.parametrize("mode", [0o000, 0o400, 0o100])
    def test_a_directory_that_may_not_be_read(self, place: Path, mode: int) -> None:
        (place / "root" / "sub").mkdir()
        (place / "root" / "sub" / "file").write_bytes(b"")
        os.chown(place / "root" / "sub", self.NOBODY, self.NOBODY)
        (place / "root" / "sub").chmod(mode)
        with as_user(self.NOBODY), pytest.raises(SourceError, match=r"/root/sub"):
            build(place / "root", f"{place}/oci:tag")

    def test_files_of_others_that_may_be_read(self, place: Path) -> None:
        (place / "root" / "file").write_bytes(b"open to all")
        os.setxattr(place / "root" / "file", "user.note", b"seen")
        os.setxattr(place / "root" / "file", "trusted.note", b"not seen")
        with as_user(self.NOBODY):
            build(place / "root", f"{place}/oci:tag")
        with open_image(f"{place}/oci:tag") as image:
            ino = image.tree.lookup(ROOT_INO, b"file").ino
            assert dict(image.tree.xattrs(ino)) == {b"user.note": b"seen"}
            assert image.tree.attributes(ino).uid == 0


class TestMemory:
    """Peak memory of a build, measured by the kernel in a process of its own."""

    SCRIPT = """
import re, sys
from puzzlefs.builder import build
build(sys.argv[1], sys.argv[2] + ":tag", timestamps="keep")
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""

    def peak(self, root: Path, layout: Path) -> int:
        """Bytes."""
        command = [sys.executable, "-c", self.SCRIPT, root, layout]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(result.stdout) << 10

    def test_does_not_grow_with_the_data(self, tmp_path: Path) -> None:
        peaks = []
        for megabytes in (1, 256):
            root = tmp_path / f"root{megabytes}"
            root.mkdir()
            with open(root / "data", "wb") as file:
                for number in range(megabytes):
                    file.write(random.Random(number).randbytes(1 << 20))
            peaks.append(self.peak(root, tmp_path / f"oci{megabytes}"))
        assert peaks[1] - peaks[0] < 40 << 20
        assert peaks[1] < 120 << 20

    def test_is_bounded_for_each_inode(self, tmp_path: Path) -> None:
        count = 30_000
        (tmp_path / "empty").mkdir()
        base = self.peak(tmp_path / "empty", tmp_path / "oci0")
        for number in range(count):
            path = tmp_path / "root" / f"directory-{number // 100}" / f"a-file-with-a-usual-name-{number}.txt"
            if number % 100 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(b"content of file %d\n" % number)
        assert (self.peak(tmp_path / "root", tmp_path / "oci") - base) / count < 1536
