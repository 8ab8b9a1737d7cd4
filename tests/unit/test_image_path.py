"""``ImagePath``: what ``pathlib.Path`` says of a tree on the host, it says of the image of that tree."""

from __future__ import annotations

import importlib.resources
import io
import os
import random
import stat
from collections.abc import Callable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import forge as f
from support.forge import Forge

import puzzlefs
from puzzlefs.errors import (
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    PathError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
    PuzzlefsError,
)
from puzzlefs.image import Image, open_image
from puzzlefs.image_file import WINDOW, ImageFile, content_of
from puzzlefs.image_owners import Owners
from puzzlefs.image_path import ImagePath
from puzzlefs.model import CharDevice, Fifo
from puzzlefs.vfs.paths import MAX_PATH, resolve

pytestmark = pytest.mark.unit

_TEXT = "first line\nzweite Zeile: ä\r\nlast"
_BIG = random.Random(11).randbytes(700_001)

_PATHS = [
    "",
    "etc",
    "etc/passwd",
    "etc/motd",
    "etc/.hidden",
    "etc/conf.d/10.conf",
    "etc/conf.d/none",
    "link-to-file",
    "link-to-dir",
    "link-to-dir/10.conf",
    "link-to-dir/..",
    "etc/conf.d/../motd",
    "dangling",
    "loop",
    "loop/x",
    "etc/motd/x",
    "fifo",
    "empty",
    os.fsdecode(b"etc/\xff\xfe.conf"),
    "nothing",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree on the host; its links are relative, so they lead to the same there as in the image."""
    top = tmp_path_factory.mktemp("image-path") / "tree"
    (top / "etc" / "conf.d").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "usr" / "lib" / "deep").mkdir(parents=True)
    (top / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534:::\n")
    (top / "etc" / "group").write_text("root:x:0:\nbad line\nother:x:0:\nodd name:x:7:\n")
    (top / "etc" / "motd").write_bytes(_TEXT.encode())
    (top / "etc" / ".hidden").write_bytes(b"")
    (top / "top.conf").write_bytes(b"")
    for name in (b"10.conf", b"20.conf", b"readme", b"A.CONF"):
        Path(os.fsdecode(os.fsencode(top / "etc" / "conf.d") + b"/" + name)).write_bytes(name)
    Path(os.fsdecode(os.fsencode(top) + b"/etc/\xff\xfe.conf")).write_bytes(b"odd")
    (top / "usr" / "lib" / "deep" / "big.conf").write_bytes(_BIG)
    os.link(top / "etc" / "motd", top / "usr" / "same")
    (top / "link-to-file").symlink_to("etc/motd")
    (top / "link-to-dir").symlink_to("etc/conf.d")
    (top / "usr" / "up").symlink_to("..")
    (top / "dangling").symlink_to("etc/nothing")
    (top / "loop").symlink_to("loop")
    os.mkfifo(top / "fifo")
    os.utime(top / "etc" / "motd", ns=(1, 1_600_000_000_123_456_789))
    return top


@pytest.fixture(scope="module", params=["1", "3", "3c"])
def image(root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Image]:
    reference = f"{tmp_path_factory.mktemp('images')}/layout:tree"
    compression = request.param.endswith("c")
    puzzlefs.build(
        root, reference, format_version=int(request.param[0]), timestamps="keep", compression=compression, workers=1
    )
    with open_image(reference) as opened:
        yield opened


def _said(action: Callable[[], Any]) -> Any:
    """What is returned, or the kind of error that pathlib raises."""
    try:
        return action()
    except FileNotFoundError:
        return FileNotFoundError
    except NotADirectoryError:
        return NotADirectoryError
    except IsADirectoryError:
        return IsADirectoryError
    except (OSError, RuntimeError) as error:  # pathlib of 3.11 raises RuntimeError for a loop in resolve
        return "loop" if isinstance(error, RuntimeError) or error.errno == 40 else error


@pytest.mark.parametrize("text", _PATHS)
@pytest.mark.parametrize(
    "question",
    ["exists", "is_dir", "is_file", "is_symlink", "is_fifo", "is_socket", "is_char_device", "is_block_device"],
)
def test_questions_are_answered_as_on_the_host(image: Image, root: Path, text: str, question: str) -> None:
    assert getattr(image.path(text), question)() is getattr(root / text, question)()


@pytest.mark.parametrize("text", _PATHS)
def test_attributes_and_content_are_those_on_the_host(image: Image, root: Path, text: str) -> None:
    here, there = image.path(text), root / text
    for follow in (True, False):
        found = _said(lambda follow=follow: here.stat(follow_symlinks=follow))
        expected = _said(lambda follow=follow: there.stat(follow_symlinks=follow))
        if not isinstance(expected, os.stat_result):
            assert found == expected
            continue
        for name in ("st_mode", "st_uid", "st_gid", "st_rdev", "st_mtime_ns", "st_mtime"):
            assert getattr(found, name) == getattr(expected, name), name
        if not stat.S_ISDIR(found.st_mode):
            assert (found.st_size, found.st_nlink) == (expected.st_size, expected.st_nlink)
        assert found.st_atime_ns == found.st_ctime_ns == found.st_mtime_ns
        assert found.st_mtime_ns // 10**9 == found[stat.ST_MTIME]
        assert found.st_blocks == -(-found.st_size // 512)
    if text != "fifo":
        assert _said(here.read_bytes) == _said(there.read_bytes)
    assert _said(lambda: sorted(child.name for child in here.iterdir())) == _said(lambda: sorted(os.listdir(there)))
    if there.is_symlink():
        assert str(here.readlink()) == str(there.readlink())
    resolved = _said(lambda: here.resolve(strict=True))
    expected = _said(lambda: there.resolve(strict=True))
    if isinstance(expected, Path):
        assert resolved.relative_to("/") == expected.relative_to(root.resolve())
    else:
        assert resolved == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*.conf",
        "etc/*.conf",
        "etc/conf.d/[0-9]*",
        "*/*.conf",
        "**/*.conf",
        "**/deep/**/*",
        "etc/**/1?.conf",
        "link-to-dir/*.conf",
        "etc/.*",
        "nothing/*",
        "etc/motd/*",
        "dangling",
        "loop",
        "etc/../etc/motd",
    ],
)
def test_globs_find_what_they_find_on_the_host(image: Image, root: Path, pattern: str) -> None:
    expected = {str(path.relative_to(root)) for path in root.glob(pattern)}
    found = [str(path.relative_to("/")) for path in image.path().glob(pattern)]
    if pattern in ("dangling", "loop"):
        expected = {pattern}  # versions of Python differ in whether a link to nothing is found by its name
    assert set(found) == expected
    assert len(set(found)) == len(found)
    if pattern not in ("nothing/*", "etc/motd/*"):
        assert found


def test_more_of_globs(image: Image) -> None:
    etc = image.path("etc")
    assert [path.name for path in etc.rglob("1*.conf")] == ["10.conf"]
    assert [str(path) for path in image.path("usr").glob("**")] == [
        "/usr",
        "/usr/lib",
        "/usr/lib/deep",
        "/usr/lib/deep/big.conf",
        "/usr/same",
        "/usr/up",
    ]
    assert list(etc.glob("**/**/10.conf")) == [etc / "conf.d" / "10.conf"]
    for bad in ("", ".", "/etc/*"):
        with pytest.raises(InvalidArgumentError):
            etc.glob(bad)


def test_walks(image: Image, root: Path) -> None:
    def on_host(top_down: bool) -> dict[str, tuple[set[str], set[str]]]:
        rows = os.walk(root, topdown=top_down)
        found = {}
        for path, names, files in rows:
            links = {name for name in names if os.path.islink(os.path.join(path, name))}
            found[os.path.join("/", os.path.relpath(path, root)).removesuffix("/.") or "/"] = (
                set(names) - links,
                set(files) | links,
            )
        return found

    for top_down in (True, False):
        found = {str(path): (set(names), set(files)) for path, names, files in image.path().walk(top_down)}
        assert found == on_host(top_down)
    order = [str(path) for path, _, _ in image.path("usr").walk(top_down=False)]
    assert order == ["/usr/lib/deep", "/usr/lib", "/usr"]
    pruned = []
    for path, names, _ in image.path().walk():
        pruned.append(str(path))
        names[:] = [name for name in names if name != "usr"]
    assert pruned == ["/", "/empty", "/etc", "/etc/conf.d"]
    assert [str(path) for path, _, _ in image.path().walk(follow_symlinks=True)][:3] == ["/", "/empty", "/etc"]
    errors: list[object] = []
    assert list(image.path("nothing").walk(on_error=errors.append)) == []
    assert [type(error) for error in errors] == [PathNotFoundError]


def test_deep_trees_are_walked(tmp_path: Path) -> None:
    depth = 3000
    inodes = [f.directory(ino, {b"d": ino + 1}) for ino in range(1, depth)]
    with open_image(
        Forge(tmp_path / "layout").image([*inodes, f.directory(depth, {b"file": depth + 1}), f.regular(depth + 1)])
    ) as image:
        for top_down in (True, False):
            walked = list(image.path().walk(top_down))
            assert [len(path.parts) for path, _, _ in walked[:: 1 if top_down else -1]] == list(range(1, depth + 1))
            assert [others for _, _, others in walked if others] == [["file"]]


def test_links_to_what_is_missing_far_below(tmp_path: Path) -> None:
    inodes = [f.directory(1, {b"link": 2}), f.symlink(2, b"x/" * 2000 + b"x")]
    with open_image(Forge(tmp_path / "layout").image(inodes)) as image:
        assert image.path("link").resolve() == image.path().joinpath(*["x"] * 2001)


def test_directories_too_deep_to_be_named_are_not_walked(tmp_path: Path) -> None:
    count = 2 * MAX_PATH // 250
    inodes = [f.directory(ino, {b"d" * 250: ino + 1}) for ino in range(1, count)]
    with open_image(Forge(tmp_path / "layout").image([*inodes, f.directory(count)])) as image:
        errors: list[PuzzlefsError] = []
        assert len(list(image.path().walk(on_error=errors.append))) == MAX_PATH // 251 + 1
        assert [type(error) for error in errors] == [FormatError]
        assert "too deep" in str(errors[0])


def test_walks_through_directories_with_two_places(tmp_path: Path) -> None:
    inodes = [f.directory(1, {b"a": 2, b"b": 2, b"c": 1, b"d": 3}), f.directory(2, {b"e": 3}), f.directory(3)]
    with open_image(Forge(tmp_path / "layout").image(inodes)) as image:
        errors: list[PuzzlefsError] = []
        assert [str(path) for path, _, _ in image.path().walk(on_error=errors.append)] == ["/", "/a", "/d"]
        assert [type(error) for error in errors] == [FormatError] * 3


def test_the_path_itself(image: Image) -> None:
    path = image.path("etc") / "conf.d" / "10.tar.gz"
    assert (str(path), path.name, path.stem, path.suffix, path.suffixes) == (
        "/etc/conf.d/10.tar.gz",
        "10.tar.gz",
        "10.tar",
        ".gz",
        [".tar", ".gz"],
    )
    assert path.parts == ("/", "etc", "conf.d", "10.tar.gz")
    assert [str(parent) for parent in path.parents] == ["/etc/conf.d", "/etc", "/"]
    assert path.parent.parent.parent.parent == image.path()
    assert path.with_suffix(".xz").with_stem("x").with_name("y").joinpath("z", "w") == image.path("/etc/conf.d/y/z/w")
    assert path.joinpath("/usr") == image.path(b"usr") == image.path("//usr/")
    assert path.match("conf.d/*.gz")
    assert path.is_relative_to("/etc")
    assert not path.is_relative_to("/usr")
    assert path.relative_to(image.path("etc")) == PurePosixPath("conf.d/10.tar.gz")
    assert path.is_absolute() and path.absolute() is path and path.as_posix() == str(path)
    assert repr(path) == "ImagePath('/etc/conf.d/10.tar.gz')"
    assert len({path, image.path(str(path)), image.path()}) == 2
    assert sorted([path, image.path()]) == [image.path(), path]
    assert path != str(path)
    assert bytes(image.path(b"\xff")) == b"/\xff"
    assert image.path().name == ""
    with pytest.raises(TypeError):
        os.fspath(path)  # type: ignore[call-overload]


def test_paths_of_two_images_are_two(image: Image) -> None:
    with open_image(image.reference) as other:
        assert other.path("etc") != image.path("etc")
        assert not other.path("etc").samefile(image.path("etc"))
    assert image.path("usr/same").samefile(image.path("link-to-file"))
    assert not image.path("usr/same").samefile(image.path("etc/passwd"))
    assert image.path("usr/up").is_mount()
    assert not image.path("usr").is_mount()


def test_where_nothing_is_resolve_leaves_it_as_it_is_written(image: Image) -> None:
    assert str(image.path("link-to-dir/new/er").resolve()) == "/etc/conf.d/new/er"
    assert str(image.path("dangling").resolve()) == "/etc/nothing"
    assert str(image.path("nothing/../x").resolve()) == "/x"
    with pytest.raises(PathError, match="symbolic links"):
        image.path("loop").resolve()


def test_it_is_a_traversable(image: Image) -> None:
    etc: Traversable = image.path("etc")
    assert isinstance(etc, Traversable)
    with importlib.resources.as_file(etc / "motd") as path:
        assert path.read_bytes() == _TEXT.encode()


# ---- file objects


def test_opening_is_as_on_the_host(image: Image, root: Path) -> None:
    here, there = image.path("etc/motd"), root / "etc/motd"
    assert here.read_text("utf-8") == there.read_text("utf-8")
    assert here.read_text("latin-1") == there.read_text("latin-1")
    with here.open(encoding="utf-8", newline="") as file, there.open(encoding="utf-8", newline="") as other:
        assert isinstance(file, io.TextIOWrapper)
        assert list(file) == list(other)
    with here.open("rb") as file:
        assert isinstance(file, io.BufferedReader)
        assert file.name == "/etc/motd"
        assert file.readlines() == there.read_bytes().splitlines(keepends=True)
        assert not file.writable()
    with here.open("rb", 0) as raw:
        assert isinstance(raw, ImageFile)
        assert (raw.size, raw.read(5), raw.tell(), raw.readall(), raw.read(1)) == (
            there.stat().st_size,
            b"first",
            5,
            there.read_bytes()[5:],
            b"",
        )
    for action in (raw.read, raw.tell, lambda: raw.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            action()


@pytest.mark.parametrize("mode", ["w", "a", "x", "r+", "wb", "rw", "U", "q"])
def test_an_image_cannot_be_written(image: Image, mode: str) -> None:
    with pytest.raises(InvalidArgumentError, match="read-only"):
        image.path("etc/motd").open(mode)


def test_what_has_no_content_says_what_it_is(image: Image) -> None:
    with pytest.raises(PathIsDirectoryError, match="/etc is a directory"):
        image.path("etc").open()
    with pytest.raises(IsADirectoryError):
        image.path("link-to-dir").read_bytes()
    with pytest.raises(InvalidArgumentError, match="/fifo is a FIFO, and has no content"):
        image.path("fifo").read_bytes()
    with pytest.raises(InvalidArgumentError, match="not a symbolic link"):
        image.path("etc").readlink()
    with pytest.raises(PathNotDirectoryError):
        image.path("etc/motd").iterdir()
    with pytest.raises(InvalidArgumentError, match="no encoding"):
        image.path("etc/motd").open("rb", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="without a buffer"):
        image.path("etc/motd").open("r", 0)


_STEP = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 400_000)),
    st.tuples(st.just("readinto"), st.integers(0, 400_000)),
    st.tuples(st.just("seek"), st.integers(-100, 800_000)),
    st.tuples(st.just("end"), st.integers(-800_000, 100)),
    st.tuples(st.just("readline"), st.integers(-1, 1000)),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(_STEP, max_size=8), buffering=st.sampled_from([0, -1, 4096]))
def test_a_file_object_does_what_one_in_memory_does(image: Image, steps: list[tuple[str, int]], buffering: int) -> None:
    model = io.BytesIO(_BIG)
    with image.path("usr/lib/deep/big.conf").open("rb", buffering) as file:
        for step, number in steps:
            if step == "readinto":
                ours, theirs = bytearray(number), bytearray(number)
                # a raw file and a buffered one may give less; this one gives all
                assert file.readinto(ours) == model.readinto(theirs)
                assert ours == theirs
            elif step in ("seek", "end"):
                whence = os.SEEK_SET if step == "seek" else os.SEEK_END
                if number + (0 if step == "seek" else len(_BIG)) < 0:
                    with pytest.raises(ValueError, match="seek"):
                        file.seek(number, whence)
                    model.seek(file.tell())
                else:
                    assert file.seek(number, whence) == model.seek(number, whence)
            else:
                assert getattr(file, step)(number) == getattr(model, step)(number)
            assert file.tell() == model.tell()


# ---- the image's own names


def test_owners_are_those_that_the_image_names(image: Image) -> None:
    owners = Owners(image)
    assert [owners.user(uid) for uid in (0, 65534, 7)] == ["root", "nobody", None]
    assert [owners.group(gid) for gid in (0, 7)] == ["root", None]  # the first name counts; no name has a space


def test_an_image_without_names_names_nobody(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    with open_image(forge.image([f.directory(1, {b"etc": 2}), f.directory(2, {b"passwd": 2})])) as image:
        assert Owners(image).user(0) is None


# ---- bad images


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_damaged_chunk_is_met_where_it_is_and_not_before(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    good, bad = forge.chunk(b"g" * WINDOW), forge.chunk(b"b" * 1000, compressed=True)
    reference = forge.image([f.directory(1, {b"file": 2, b"null": 3}), f.regular(2, good, bad), f.inode(3, Fifo())])
    forge.blob_path(bad.blob.digest).write_bytes(b"something else")
    with open_image(reference) as image:
        with image.path("file").open("rb") as file:
            assert file.read(WINDOW) == b"g" * WINDOW
            with pytest.raises(IntegrityError):
                file.read(1)
            file.seek(10)
            assert file.read(2) == b"gg"
        pieces = content_of(image, resolve(image.tree, b"file"))
        assert next(pieces) == b"g" * WINDOW
        with pytest.raises(IntegrityError):
            next(pieces)
        with pytest.raises(IntegrityError):
            image.path("file").read_bytes()


def test_what_is_wrong_with_an_image_is_not_a_no(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    inodes = [
        f.directory(1, {b"broken": 2, b"device": 4, b"gone": 9, b"ok": 3}),
        f.directory(2, [(b"x", 3), (b"x", 3)]),
        f.regular(3),
        f.inode(4, CharDevice(1 << 40, 0)),
    ]
    with open_image(forge.image(inodes)) as image:
        top = image.path()
        assert [path.name for path in top.iterdir()] == ["broken", "device", "gone", "ok"]
        for action in (
            top.joinpath("gone").exists,
            top.joinpath("broken/x").is_file,
            top.joinpath("broken").iterdir,
            top.joinpath("device").stat,
            lambda: list(top.rglob("*")),
            lambda: list(top.glob("*/x")),
        ):
            with pytest.raises(FormatError):
                action()
        assert [str(path) for path, _, _ in top.walk()] == ["/"]
        assert top.joinpath("ok").read_bytes() == b""
        assert isinstance(top, ImagePath)
