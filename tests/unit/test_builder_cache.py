"""The build cache: what it saves, what it is not trusted with, and that it is never an error to have a bad one."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from puzzlefs.builder import BuildReport, build
from puzzlefs.errors import IntegrityError, InvalidArgumentError
from puzzlefs.image import open_image
from puzzlefs.image_commit import CommittedImage, commit_image

pytestmark = pytest.mark.unit

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing owners and mounting are for root")

SIZE = 40 * 50_000


class Place:
    """A tree of 40 files that are old enough not to be racy, a layout and a cache."""

    def __init__(self, place: Path) -> None:
        self.root, self.layout, self.cache = place / "root", place / "oci", place / "cache"
        self.root.mkdir()
        for number in range(40):
            (self.root / f"{number:02}").write_bytes(random.Random(number).randbytes(50_000))
        time.sleep(0.03)

    def build(self, **options: object) -> BuildReport:
        options.setdefault("cache", self.cache)
        return build(self.root, f"{self.layout}:tag", **options)  # type: ignore[arg-type]

    @property
    def file(self) -> Path:
        (path,) = self.cache.iterdir()
        return path

    def rewrite(self, name: str) -> None:
        """Other bytes of the same size, and the old time of modification."""
        path = self.root / name
        times = path.stat()
        path.write_bytes(random.Random(name).randbytes(times.st_size))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class TestMetadata:
    """Metadata of a tree in which nothing changed are those of the last build, if the layout has them."""

    @pytest.fixture(autouse=True)
    def encoded(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """One item for each time that metadata are made."""
        calls: list[int] = []

        def commit(*args: object, **options: object) -> CommittedImage:
            calls.append(1)
            return commit_image(*args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr("puzzlefs.builder.finish.commit_image", commit)
        return calls

    @pytest.mark.parametrize("version", [1, 2, 3])
    def test_nothing_is_made_the_second_time(self, place: Place, encoded: list[int], version: int) -> None:
        first = place.build(format_version=version)
        second = build(place.root, f"{place.layout}:other", cache=place.cache, format_version=version)
        assert encoded == [1]
        assert second.digest == first.digest
        with open_image(f"{place.layout}:other", digest=str(first.digest)) as image:
            assert len(image.tree.entries(1)) == 40

    def test_another_version_has_others(self, place: Place, encoded: list[int], tmp_path: Path) -> None:
        place.build(format_version=1)
        assert place.build(format_version=2).digest == place.build(format_version=2, cache=None).digest
        assert len(encoded) == 3

    def test_times_count_where_they_are_stored(self, place: Place, encoded: list[int]) -> None:
        digests = {place.build(timestamps=kind).digest for kind in ("none", "keep", "none", "keep")}
        assert len(digests) == 2
        assert len(encoded) == 4

    @pytest.mark.parametrize("which", ["manifest", "rootfs"])
    def test_a_missing_blob_is_made_again(self, place: Place, encoded: list[int], which: str) -> None:
        first = place.build()
        with open_image(f"{place.layout}:tag") as image:
            assert image.manifest is not None
            digest = image.manifest_digest if which == "manifest" else image.manifest.rootfs().digest
            path = image.layout.blob_path(digest)
        data = path.read_bytes()
        path.unlink()
        assert place.build().digest == first.digest
        assert path.read_bytes() == data
        assert len(encoded) == 2

    def test_xattrs_of_a_known_file_are_seen(self, place: Place) -> None:
        place.build()
        os.setxattr(place.root / "07", "user.new", b"value")
        time.sleep(0.03)
        for _ in range(3):
            place.build()
            with open_image(f"{place.layout}:tag") as image:
                assert image.tree.xattrs(image.tree.lookup(1, b"07").ino) == {b"user.new": b"value"}
        assert place.build(verify_cache=True).digest == place.build(cache=None).digest


class TestWhatIsRead:
    def test_nothing_the_second_time(self, place: Place) -> None:
        first, second = place.build(), place.build()
        assert (first.bytes_read, second.bytes_read) == (SIZE, 0)
        assert second.digest == first.digest
        assert (second.chunks, second.new_chunks, second.stored_bytes) == (first.chunks, 0, 0)

    def test_everything_without_a_cache(self, place: Place) -> None:
        place.build()
        assert place.build(cache=None).bytes_read == SIZE

    def test_everything_into_an_empty_layout(self, place: Place, tmp_path: Path) -> None:
        place.build()
        other = build(place.root, f"{tmp_path}/other:tag", cache=place.cache)
        assert other.bytes_read == SIZE
        assert other.new_chunks == other.chunks

    def test_one_cache_serves_all_layouts_of_a_tree(self, place: Place, tmp_path: Path) -> None:
        place.build()
        build(place.root, f"{tmp_path}/other:tag", cache=place.cache)
        assert place.build().bytes_read == 0
        assert build(place.root, f"{tmp_path}/other:tag", cache=place.cache).bytes_read == 0

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({}, {"chunker": "ronomon"}),
            ({}, {"compression": True}),
            ({"compression": True, "format_version": 1}, {"compression": True, "format_version": 3}),
        ],
        ids=str,
    )
    def test_everything_when_chunks_are_made_in_another_way(
        self, place: Place, tmp_path: Path, first: dict[str, object], second: dict[str, object]
    ) -> None:
        place.build(**first)
        place.layout = tmp_path / "other"
        place.build(cache=None, **second)
        assert place.build(**second).bytes_read == SIZE
        assert place.build(**second).bytes_read == 0
        assert len(list(place.cache.iterdir())) == 2

    def test_names_and_attributes_are_always_those_of_now(self, place: Place) -> None:
        place.build()
        (place.root / "00").rename(place.root / "000")
        time.sleep(0.03)
        report = place.build(timestamps="keep", format_version=3)
        assert report.digest == place.build(timestamps="keep", cache=None).digest

    def test_a_missing_blob_is_made_again(self, place: Place) -> None:
        place.build()
        chunk = sorted((place.layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)[-1]
        data = chunk.read_bytes()
        chunk.unlink()
        report = place.build()
        assert chunk.read_bytes() == data
        assert len(data) <= report.bytes_read < len(data) + 1000
        assert report.new_chunks == 1

    def test_a_blob_of_a_wrong_size_is_made_again(self, place: Place) -> None:
        place.build()
        chunk = sorted((place.layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)[-1]
        data = chunk.read_bytes()
        chunk.write_bytes(data[:-1])
        assert place.build().new_chunks == 1
        assert chunk.read_bytes() == data

    def test_existing_blobs_are_hashed_when_asked_for(self, place: Place) -> None:
        place.build()
        chunk = sorted((place.layout / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)[-1]
        data = chunk.read_bytes()
        chunk.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert place.build().new_chunks == 0
        assert place.build(check_existing=True).new_chunks == 1
        assert chunk.read_bytes() == data

    def test_progress_tells_of_all_bytes(self, place: Place) -> None:
        place.build()
        (place.root / "20").write_bytes(b"changed")
        steps: list[int] = []
        report = place.build(progress=lambda step: steps.append(step.bytes_done))
        assert steps == sorted(steps)
        assert steps[-1] == report.content_size


class TestRacyFiles:
    def test_are_read_again(self, place: Place) -> None:
        (place.root / "20").write_bytes(random.Random(1).randbytes(50_000))  # in the tick of the build, or nearly
        place.build()
        again = place.build()
        assert 50_000 <= again.bytes_read < SIZE / 2
        time.sleep(0.03)
        place.build()
        assert place.build().bytes_read == 0  # it was seen again, when it was old

    def test_a_rewrite_in_the_same_tick_is_seen(self, place: Place) -> None:
        for _ in range(20):
            place.rewrite("20")
            place.build()
            place.rewrite("20")
            assert place.build().digest == place.build(cache=None).digest

    def test_whole_seconds_are_long_ticks(self, place: Place) -> None:
        os.utime(place.root / "20", ns=(0, (time.time_ns() // 10**9 - 1) * 10**9))
        time.sleep(0.03)
        place.build()
        assert place.build().bytes_read >= 50_000

    def test_times_to_come_are_never_trusted(self, place: Place) -> None:
        os.utime(place.root / "20", ns=(0, time.time_ns() + 10**12))
        time.sleep(0.03)
        place.build()
        assert place.build().bytes_read >= 50_000


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


class TestBadCaches:
    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda _: b"", id="empty"),
            pytest.param(lambda data: data[:50], id="a-part-of-the-head"),
            pytest.param(lambda data: data[:96], id="the-head-alone"),
            pytest.param(lambda data: data[:-1], id="short"),
            pytest.param(lambda data: data + b"\0", id="long"),
            pytest.param(flip(0), id="magic"),
            pytest.param(flip(7), id="version"),
            pytest.param(flip(8), id="key"),
            pytest.param(flip(40), id="checksum"),
            pytest.param(flip(72), id="count"),
            pytest.param(flip(79), id="absurd-count"),
            pytest.param(flip(200), id="content"),
            pytest.param(lambda data: random.Random(1).randbytes(len(data)), id="noise"),
            pytest.param(lambda data: data[:72] + struct.pack("=3Q", 0, 0, 0), id="counts-of-nothing"),
        ],
    )
    def test_are_no_caches(self, place: Place, damage: Callable[[bytes], bytes]) -> None:
        first = place.build()
        good = place.file.read_bytes()
        place.file.write_bytes(damage(good))
        second = place.build()
        assert (second.digest, second.bytes_read) == (first.digest, SIZE)
        assert place.file.read_bytes() == good

    @pytest.mark.parametrize("position", range(96, 96 + 40 * 40 + 200, 97))
    def test_contents_that_make_no_sense_are_no_caches(self, place: Place, position: int) -> None:
        """With a checksum that is right, so that it is the content that is looked at: the worst is a wrong digest
        for an own file of the cache's owner, never a crash."""
        import hashlib

        place.build()
        data = flip(position)(place.file.read_bytes())
        place.file.write_bytes(data[:40] + hashlib.sha256(data[104:]).digest() + data[72:])
        assert place.build().content_size == SIZE

    def test_of_others_are_no_caches(self, place: Place) -> None:
        place.build()
        place.file.chmod(0o622)
        assert place.build().bytes_read == SIZE
        assert place.file.stat().st_mode & 0o777 == 0o600

    @needs_root
    def test_that_belong_to_others_are_no_caches(self, place: Place) -> None:
        place.build()
        os.chown(place.file, 65534, -1)
        assert place.build().bytes_read == SIZE

    def test_links_and_fifos_are_no_caches(self, place: Place, tmp_path: Path) -> None:
        place.build()
        path = place.file
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert place.build().bytes_read == SIZE
        assert not path.is_symlink()
        path.unlink()
        os.mkfifo(path)
        assert place.build().bytes_read == SIZE
        assert place.build().bytes_read == 0

    def test_a_place_where_none_can_be_is_no_error(self, place: Place) -> None:
        place.cache.write_bytes(b"a file")
        assert place.build().bytes_read == SIZE
        assert place.build(cache="/proc/puzzlefs").bytes_read == SIZE

    def test_a_failed_build_leaves_the_cache_alone(self, place: Place) -> None:
        place.build()
        good = place.file.read_bytes()
        (place.root / "20").write_bytes(b"changed")

        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            place.build(progress=interrupt)
        assert place.file.read_bytes() == good

    def test_there_are_not_too_many(self, place: Place) -> None:
        place.cache.mkdir()
        for number in range(100):
            (place.cache / f"{number}.cache").write_bytes(b"")
            os.utime(place.cache / f"{number}.cache", (number, number))
        (place.cache / "README").write_bytes(b"not ours")
        place.build()
        names = {path.name for path in place.cache.iterdir()}
        assert len(names) == 65
        assert {"README", "99.cache"} <= names
        assert "0.cache" not in names

    def test_inside_of_the_tree_is_refused(self, place: Place) -> None:
        with pytest.raises(InvalidArgumentError, match=r"cache lies inside of .*; name a cache directory outside"):
            place.build(cache=place.root / "cache")
        assert not place.layout.exists()


class TestVerify:
    def test_reads_everything_and_is_content(self, place: Place) -> None:
        first = place.build()
        (place.root / "20").write_bytes(b"changed")
        (place.root / "10").unlink()
        report = place.build(verify_cache=True)
        assert report.bytes_read == report.content_size < first.content_size

    def lie(self, place: Place, name: str) -> None:
        """Have the cache believe that a file is as it was."""
        before = (place.root / name).stat()
        place.rewrite(name)
        after = (place.root / name).stat()
        old, new = (struct.pack("=4Q", *words[1:]) for words in map(self.words, (before, after)))
        data = place.file.read_bytes()
        assert data.count(old) == 1
        body = data.replace(old, new)[104:]
        import hashlib

        place.file.write_bytes(data[:40] + hashlib.sha256(body).digest() + data[72:104] + body)

    @staticmethod
    def words(status: os.stat_result) -> tuple[int, ...]:
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def test_finds_a_cache_that_lies(self, place: Place) -> None:
        first = place.build()
        self.lie(place, "20")
        index = (place.layout / "index.json").read_bytes()
        with pytest.raises(IntegrityError, match=r"cache, in the chunk that begins in (18|19|20), .*; a file changed"):
            place.build(verify_cache=True)
        assert (place.layout / "index.json").read_bytes() == index
        assert place.build().digest == first.digest  # it lies, and is believed
        assert place.build(cache=None).digest != first.digest


@needs_root
class TestFileSystems:
    def test_a_read_only_image_is_not_remembered(self, place: Place, tmp_path: Path) -> None:
        """Another image, mounted in its place, can have the same devices, numbers, sizes and times."""
        mount = tmp_path / "mounted"
        mount.mkdir()
        digests = []
        for number in range(2):
            (place.root / "20").write_bytes(random.Random(number).randbytes(50_000))
            image = tmp_path / f"{number}.squashfs"
            times = ["-all-time", "0", "-mkfs-time", "0", "-noI", "-noD", "-noF", "-noX", "-quiet", "-no-progress"]
            subprocess.run(["mksquashfs", place.root, image, *times], check=True, stdout=subprocess.DEVNULL)
            subprocess.run(["mount", "-o", "loop,ro", image, mount], check=True)
            try:
                with_cache = build(mount, f"{tmp_path}/oci:tag", cache=place.cache)
                assert with_cache.digest == build(mount, f"{tmp_path}/oci:tag").digest
                digests.append(with_cache.digest)
            finally:
                subprocess.run(["umount", mount], check=True)
        assert digests[0] != digests[1]
