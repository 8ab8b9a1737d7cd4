"""fsspec: its own abstract tests, as far as they fit what cannot be written, and what programs do with it."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import pickle
import random
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.forge import Forge

import puzzlefs
from puzzlefs.errors import IntegrityError, InvalidArgumentError, PathNotFoundError, TagNotFoundError, UnsupportedError

fsspec = pytest.importorskip("fsspec", reason="the package fsspec is not installed")
abstract = pytest.importorskip("fsspec.tests.abstract", reason="this fsspec has no abstract tests")

from puzzlefs.fsspec_filesystem import PuzzlefsFileSystem  # noqa: E402  it needs fsspec

pytestmark = pytest.mark.interop

_BIG = random.Random(5).randbytes(600_000)


_SCENARIOS = (
    "bulk_operations_scenario_0",
    "glob_edge_cases_files",
    "dir_and_file_with_same_name_prefix",
    "10_files_with_hashed_names",
)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of the trees that the suite's fixtures write to a file system which can be written."""
    place = tmp_path_factory.mktemp("scenarios")
    local = fsspec.filesystem("file", auto_mkdir=True)
    for name in _SCENARIOS:
        make = getattr(abstract.AbstractFixtures(), f"_{name}")
        source = make(local, lambda *parts: "/".join(parts), f"{place}/tree/{name}")
        assert source == f"{place}/tree/{name}/source"
    local.touch(f"{place}/tree/src/file")
    puzzlefs.build(place / "tree", f"{place}/images:scenarios", workers=1)
    return f"{place}/images:scenarios"


class Prepared(PuzzlefsFileSystem):
    """An image in which a test of the suite that makes something first finds it made."""

    def mkdir(self, path: str, **_options: Any) -> None:
        assert self.isdir(path)

    def touch(self, path: str, **_options: Any) -> None:
        assert self.isfile(path)


class PuzzlefsFixtures(abstract.AbstractFixtures):  # type: ignore[misc, name-defined]
    """The fixtures of the suite; what they would write is in the image already."""

    @pytest.fixture
    def fs(self, scenarios: str) -> PuzzlefsFileSystem:
        return Prepared(scenarios)

    @pytest.fixture
    def fs_path(self) -> str:
        return "/"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self) -> str:
        return "/bulk_operations_scenario_0/source"

    @pytest.fixture
    def fs_glob_edge_cases_files(self) -> str:
        return "/glob_edge_cases_files/source"

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self) -> str:
        return "/dir_and_file_with_same_name_prefix/source"

    @pytest.fixture
    def fs_10_files_with_hashed_names(self) -> str:
        return "/10_files_with_hashed_names/source"


class TestGet(PuzzlefsFixtures, abstract.AbstractGetTests):  # type: ignore[misc, name-defined]
    """Copying out: the part of the suite that does not write to the file system itself."""


# ---- what the suite does not ask


@pytest.fixture(scope="module", params=[1, 2, 3])
def image(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> str:
    forge = Forge(tmp_path_factory.mktemp("images") / "lay!out", request.param)
    big = forge.chunk(_BIG[:300_000]), forge.chunk(_BIG[300_000:], compressed=True)
    table = forge.chunk(b"name,size\na,1\nb,2\n")
    return forge.image(
        [
            f.directory(1, {b"data": 2, b"link": 3, b"up": 4, b"nothing": 5, b"odd!/name"[:4]: 8}, mtime_ns=0),
            f.directory(2, {b"big": 6, b"table.csv": 7, b"up": 9}, mtime_ns=0),
            f.symlink(3, b"data/table.csv", mtime_ns=0),
            f.symlink(4, b"data", mtime_ns=0),
            f.symlink(5, b"no/where", mtime_ns=0),
            f.regular(6, *big, uid=7, gid=8, permissions=0o640, mtime_ns=1_600_000_000_500_000_000),
            f.regular(7, table, mtime_ns=0),
            f.directory(8, {b"x": 7}, mtime_ns=0),
            f.symlink(9, b"..", mtime_ns=0),
        ],
        tag="data",
    )


@pytest.fixture
def fs(image: str) -> Iterator[PuzzlefsFileSystem]:
    made = fsspec.filesystem("puzzlefs", image=image, skip_instance_cache=True)
    yield made
    made.close()


def test_it_is_found_by_its_entry_point() -> None:
    assert "puzzlefs" in fsspec.available_protocols()
    assert fsspec.get_filesystem_class("puzzlefs") is PuzzlefsFileSystem


def test_urls(image: str) -> None:
    layout, _, tag = image.rpartition(":")
    for url in (
        f"puzzlefs://{image}!/data/table.csv",
        f"puzzlefs://{image}!data/table.csv",
        f"puzzlefs://{image}!/up/table.csv",
        f"puzzlefs://data/table.csv::{image}",
        f"puzzlefs:///data/table.csv::file://{image}",
        f"puzzlefs://odd!/x::{image}",
    ):
        with fsspec.open(url, "rt", newline="") as file:
            assert list(csv.DictReader(file)) == [{"name": "a", "size": "1"}, {"name": "b", "size": "2"}]
    files = fsspec.open_files(f"puzzlefs://{image}!/data/*")
    assert [file.path for file in files] == ["/data/big", "/data/table.csv"]
    fs, path = fsspec.url_to_fs(f"puzzlefs://{image}!/")
    assert (path, fs.unstrip_protocol("data/")) == ("/", f"puzzlefs://{layout}:{tag}!/data")
    assert fsspec.url_to_fs(fs.unstrip_protocol("/odd!/x"))[1] == "/odd!/x"


def test_an_image_in_longer_chains(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with zipfile.ZipFile(tmp_path / "tree" / "out.zip", "w") as archive:
        archive.writestr("in.txt", "deep inside")
    puzzlefs.build(tmp_path / "tree", f"{tmp_path}/images:t", workers=1)
    with fsspec.open(f"zip://in.txt::puzzlefs://{tmp_path}/images:t!/out.zip", "rt") as file:
        assert file.read() == "deep inside"
    with fsspec.open(f"simplecache::puzzlefs://{tmp_path}/images:t!/out.zip") as file:
        assert file.read() == (tmp_path / "tree" / "out.zip").read_bytes()


def test_info(fs: PuzzlefsFileSystem) -> None:
    assert fs.info("/data/big") == {
        "name": "/data/big",
        "type": "file",
        "size": len(_BIG),
        "mode": 0o100640,
        "uid": 7,
        "gid": 8,
        "nlink": 1,
        "ino": 6,
        "mtime": 1_600_000_000.5,
        "islink": False,
    }
    assert fs.modified("data/big") == datetime(2020, 9, 13, 12, 26, 40, 500_000, UTC)
    assert fs.size("/link") == len(b"name,size\na,1\nb,2\n")
    link = fs.info("/link")
    assert (link["type"], link["islink"], link["destination"]) == ("file", True, "data/table.csv")
    assert (fs.info("/up")["type"], fs.info("/nothing")["type"]) == ("directory", "link")
    assert [fs.isdir("/up"), fs.isfile("/link"), fs.exists("/nothing"), fs.lexists("/nothing")] == [True] * 4
    assert not fs.exists("/data/none")
    assert not fs.lexists("/link/none")
    assert fs.info("")["name"] == "/"


def test_listings_do_not_lead_in_circles(fs: PuzzlefsFileSystem) -> None:
    assert {item["name"]: item["type"] for item in fs.ls("/")} == {
        "/data": "directory",
        "/link": "file",
        "/nothing": "link",
        "/odd!": "directory",
        "/up": "link",
    }
    assert fs.ls("/up/", detail=False) == ["/up/big", "/up/table.csv", "/up/up"]
    assert fs.ls("/data/big", detail=False) == ["/data/big"]
    assert fs.find("/") == ["/data/big", "/data/table.csv", "/data/up", "/link", "/nothing", "/odd!/x", "/up"]
    assert fs.glob("/**/*.csv") == ["/data/table.csv"]
    assert [path for path, _, _ in fs.walk("/")] == ["/", "/data", "/odd!"]
    assert fs.du("/data") == len(_BIG) + 18
    with pytest.raises(FileNotFoundError):
        fs.ls("/none")


def test_reading(fs: PuzzlefsFileSystem, tmp_path: Path) -> None:
    assert fs.cat("/data/big") == _BIG
    assert fs.cat_file("/data/big", 299_990, 300_010) == _BIG[299_990:300_010]
    assert fs.cat_ranges(["/data/big"] * 2, [0, 5], [4, -1]) == [_BIG[:4], _BIG[5:-1]]
    assert fs.head("/data/big", 7) == _BIG[:7]
    assert fs.tail("/data/big", 7) == _BIG[-7:]
    assert fs.read_text("/link", newline="") == "name,size\na,1\nb,2\n"
    with fs.open("/data/big", block_size=4096) as file:
        file.seek(-10, 2)
        assert file.read() == _BIG[-10:]
    fs.get("/data/big", str(tmp_path / "big"))
    assert (tmp_path / "big").read_bytes() == _BIG
    with pytest.raises(IsADirectoryError):
        fs.open("/data")
    with pytest.raises(PathNotFoundError):
        fs.open("/nothing")


def test_many_threads_read_one_image(fs: PuzzlefsFileSystem) -> None:
    found: list[str] = []

    def read() -> None:
        for _ in range(5):
            found.append(hashlib.sha256(fs.cat_file("/data/big")).hexdigest())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [hashlib.sha256(_BIG).hexdigest()] * 40


@pytest.mark.parametrize(
    "action",
    [
        lambda fs, _: fs.open("/x", "wb"),
        lambda fs, _: fs.open("/data/big", "ab"),
        lambda fs, _: fs.open("/x", "xb"),
        lambda fs, _: fs.open("/x", "w"),
        lambda fs, _: fs.write_text("/x", "text"),
        lambda fs, _: fs.pipe("/x", b"text"),
        lambda fs, _: fs.touch("/x"),
        lambda fs, _: fs.mkdir("/x"),
        lambda fs, _: fs.makedirs("/x/y"),
        lambda fs, _: fs.rm("/data/big"),
        lambda fs, _: fs.rm("/data", recursive=True),
        lambda fs, _: fs.rm_file("/data/big"),
        lambda fs, _: fs.rmdir("/data"),
        lambda fs, _: fs.cp("/data/big", "/x"),
        lambda fs, _: fs.mv("/data/big", "/x"),
        lambda fs, file: fs.put(str(file), "/x"),
        lambda fs, file: fs.put_file(str(file), "/x"),
    ],
)
def test_nothing_can_be_written(
    fs: PuzzlefsFileSystem, tmp_path: Path, action: Callable[[PuzzlefsFileSystem, Path], Any]
) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError, match="read-only") as caught:
        action(fs, tmp_path / "file")
    assert caught.value.errno == errno.EROFS
    assert not fs.exists("/x")


def test_instances_are_kept_and_can_be_sent(image: str) -> None:
    fs = fsspec.filesystem("puzzlefs", image=image)
    assert fsspec.filesystem("puzzlefs", image=image) is fs
    assert pickle.loads(pickle.dumps(fs)).cat("/link") == fs.cat("/link")
    assert fsspec.AbstractFileSystem.from_json(json.dumps(json.loads(fs.to_json()))).ls("/") == fs.ls("/")


def test_keys_of_caches_tell_images_and_paths_apart(fs: PuzzlefsFileSystem, scenarios: str) -> None:
    other = fsspec.filesystem("puzzlefs", image=scenarios)
    assert fs.fsid != other.fsid
    keys = {fs.ukey("/link"), fs.ukey("/data/big"), fs.ukey("/"), other.ukey("/")}
    assert len(keys) == 4
    assert fs.ukey("data/big/") in keys
    with pytest.raises(PathNotFoundError):
        fs.ukey("/none")


def test_what_is_no_image_says_so(image: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no image is named"):
        fsspec.open("puzzlefs:///etc/passwd").open()
    with pytest.raises(TagNotFoundError):
        fsspec.open(f"puzzlefs://{image}-not!/x").open()
    with pytest.raises(UnsupportedError, match="through memory"):
        fsspec.open("puzzlefs://etc/passwd::memory://images:t").open()
    with pytest.raises(IntegrityError):
        fsspec.filesystem("puzzlefs", image=image, digest="0" * 64)
