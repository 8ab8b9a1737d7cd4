"""``puzzlefs ls``, ``stat``, ``tree``, ``find`` and ``cat``, held against the tools of these names on a mount."""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from generated_image import generate
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import forge as f
from support import trees
from support.forge import Forge
from support.writable import PUZZLEFS, needs_root, puzzlefs, read_only

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.model import Fifo
from puzzlefs_cli import find_tests
from puzzlefs_cli.arguments import image_and_paths
from puzzlefs_cli.find_tests import translate
from puzzlefs_cli.ls_format import columns
from puzzlefs_cli.quoting import octal, shell_escape

sys.path.insert(0, str(Path(__file__).parents[1] / "mount"))

pytestmark = pytest.mark.cli

_ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "America/New_York"}
_MEBIBYTE = 1 << 20


def ours(*words: str | bytes | Path, code: int = 0, tz: str = "America/New_York") -> bytes:
    """What the command writes to stdout."""
    done = subprocess.run(
        [*PUZZLEFS, *words], capture_output=True, timeout=120, check=False, env={**_ENVIRONMENT, "TZ": tz}
    )
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == bool(code), done.stderr
    return done.stdout


def said(*words: str | bytes | Path, code: int) -> str:
    """What the command writes to stderr when it fails."""
    done = subprocess.run([*PUZZLEFS, *words], capture_output=True, timeout=120, check=False, env=_ENVIRONMENT)
    assert done.returncode == code, done.stderr
    return done.stderr.decode("utf-8", "surrogateescape")


def theirs(*words: str | bytes, cwd: Path, tz: str = "America/New_York") -> bytes:
    """What a tool of the host writes to stdout."""
    done = subprocess.run(words, capture_output=True, timeout=120, check=False, env={**_ENVIRONMENT, "TZ": tz}, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_terminal(*words: str | Path, width: int = 80) -> bytes:
    """What the command writes to a terminal."""
    controller, terminal = pty.openpty()
    with open(controller, "rb", 0) as reading:
        process = subprocess.Popen(
            [*PUZZLEFS, *words],
            stdout=terminal,
            stdin=subprocess.DEVNULL,
            env={**_ENVIRONMENT, "COLUMNS": str(width)},
        )
        os.close(terminal)
        parts = []
        try:
            while part := reading.read(1 << 16):
                parts.append(part)
        except OSError:  # EIO: nobody has the terminal open any more
            pass
        assert process.wait(60) == 0
    return b"".join(parts).replace(b"\r\n", b"\n")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A tree with everything that is odd about file systems: the image, and where it is mounted."""
    from odd_tree import make_odd_tree

    place = tmp_path_factory.mktemp("odd")
    make_odd_tree(place / "tree")
    (place / "tree" / "etc").mkdir()
    (place / "tree" / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nold name:x:12:0:::\nworker:x:1000:1000:::\n")
    (place / "tree" / "etc" / "group").write_text("root:x:0:\nstaff:x:42:\n")
    (place / "tree" / "names" / "it's quoted").symlink_to("a 'target'")
    (place / "tree" / ".dotted").mkdir()
    (place / "tree" / ".dotted" / "inside").write_text("x")
    (place / "tree" / "links" / "to-directory").symlink_to("../etc")
    image = f"{place}/images:odd"
    puzzlefs("build", "--timestamps", "keep", place / "tree", image)
    with read_only(image, place / "mnt") as mount:
        yield image, mount


# ---- ls


@needs_root
@pytest.mark.mount
@pytest.mark.parametrize(
    ("options", "more"),
    [
        ("-lR", ""),
        ("-laR", ""),  # not of the root: what is above a mount belongs to the host
        ("-lAi", ""),
        ("-R", ""),
        ("-aR", ""),
        ("-iA", ""),
        ("-l", "--full-time"),
        ("-CA", ""),
        ("-1", ""),
    ],
)
@pytest.mark.parametrize("path", [".", "dev", "acl/", "bin", "xattrs", "links", "names", "empty"])
def test_ls_prints_what_gnu_ls_prints(odd: tuple[str, Path], options: str, more: str, path: str) -> None:
    image, mount = odd
    if (options, path) in (("-laR", "."), ("-aR", ".")):
        path = ".dotted"
    long = ["-n"] if "l" in options else []
    words = [options, *([more] if more else [])]
    expected = theirs("ls", *words, *long, "-w", "80", "-T", "0", path, cwd=mount)
    assert ours("ls", *words, image, path) == expected
    assert expected or path == "empty"


@needs_root
@pytest.mark.mount
def test_ls_of_several_paths(odd: tuple[str, Path]) -> None:
    image, mount = odd
    paths = ["links/to-directory", "etc/passwd", "bin", "dev/null", "links/dangling"]
    for options in ("-l", "-1", "-la"):
        expected = theirs("ls", options, *(["-n"] if "l" in options else []), *paths, cwd=mount)
        assert ours("ls", options, image, *paths) == expected
    assert ours("ls", "-lD", image, *paths, ".") == theirs("ls", "-lnd", *paths, ".", cwd=mount)


@needs_root
@pytest.mark.mount
@pytest.mark.parametrize("path", [".", "names", "links", "dev", "many", "bin"])
@pytest.mark.parametrize("width", [30, 80, 200])
def test_ls_on_a_terminal(odd: tuple[str, Path], path: str, width: int) -> None:
    image, mount = odd
    style = ["--quoting-style=shell-escape"]
    shown = on_terminal("ls", "-A", image, path, width=width)
    assert shown == theirs("ls", "-AC", "-T", "0", "-w", str(width), *style, path, cwd=mount)
    assert on_terminal("ls", "-l", image, path) == theirs("ls", "-ln", *style, path, cwd=mount)
    assert on_terminal("ls", "-0", image, path) == ours("ls", "-0", image, path)


@needs_root
@pytest.mark.mount
def test_ls_names_owners_as_the_image_does(odd: tuple[str, Path]) -> None:
    image, _ = odd
    rows = ours("ls", "-l", "--names", image, "bin").decode().splitlines()[1:]
    assert [row.split()[2:4] for row in rows] == [
        ["root", "root"],
        ["4294967294", "4294967294"],
        ["root", "root"],
        ["root", "root"],
        ["root", "staff"],
        ["root", "root"],
    ]
    assert b" worker 1000 " in ours("ls", "-l", "--names", image, "big/511")


@needs_root
@pytest.mark.mount
def test_ls_with_nul_and_as_json(odd: tuple[str, Path]) -> None:
    image, mount = odd
    names = ours("ls", "-A0", image, "names").split(b"\0")
    assert names[:-1] == sorted(os.listdir(os.fsencode(mount / "names")))
    report = json.loads(ours("ls", "-AR", "--json", image))
    assert list(report) == ["image", "entries", "errors"]
    assert (report["image"], report["errors"]) == (image, [])
    paths = {os.fsencode(entry["path"]) for entry in report["entries"]}
    assert paths == {b"/" + path for path in trees.on_disk(mount) if path != b"."}
    by_path = {entry["path"]: entry for entry in report["entries"]}
    assert by_path["/dev/sda17"]["device"] == [8, 17]
    assert by_path["/links/relative"]["target"] == "../links/first"
    status = os.lstat(mount / "links/first")
    assert by_path["/links/first"] == {
        "path": "/links/first",
        "name": "first",
        "type": "regular",
        "ino": status.st_ino,
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "nlink": status.st_nlink,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_ls_shows_old_times_and_those_to_come_with_the_year(tmp_path: Path, zone: str) -> None:
    now = time.time()
    (tmp_path / "tree").mkdir()
    for days in (-20_000, -4000, -366, -190, -184, -182, -30, -1, 1, 40, 400, 40_000):
        path = tmp_path / "tree" / f"{days}"
        path.write_text("x")
        os.utime(path, ns=(0, int((now + days * 86_400) * 1e9)))
    os.utime(tmp_path / "tree", ns=(0, -1))
    image = f"{tmp_path}/images:times"
    puzzlefs("build", "--timestamps", "keep", tmp_path / "tree", image)
    shown = ours("ls", "-l", image, tz=zone).splitlines()[1:]
    assert shown == theirs("ls", "-ln", ".", cwd=tmp_path / "tree", tz=zone).splitlines()[1:]
    assert len({len(row.split(b" x")[0].split()) for row in shown}) >= 1
    full = ours("ls", "--full-time", image, tz=zone).splitlines()[1:]
    assert full == theirs("ls", "-n", "--full-time", ".", cwd=tmp_path / "tree", tz=zone).splitlines()[1:]
    assert b"1969-12-31" in ours("stat", image, "/", tz="UTC")


_NAME = st.text(st.sampled_from("abcxyz.-"), min_size=1, max_size=30).filter(lambda name: name not in (".", ".."))


@settings(max_examples=40, deadline=None)
@example(names={"-", "a", "aa", "aaa", "b"}, width=17)  # the last column counts for three, however narrow it is
@example(names={"a", "b"}, width=5)  # and if all columns count for three, for nothing
@given(names=st.sets(_NAME, min_size=1, max_size=60), width=st.integers(1, 150))
def test_columns_are_those_of_gnu_ls(names: set[str], width: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            Path(directory, name).touch()
        shown = sorted(names)
        expected = theirs("ls", "-AC", "-T", "0", "-w", str(width), ".", cwd=Path(directory)).decode().splitlines()
        assert columns(shown, list(map(len, shown)), width) == expected


# ---- names


_BYTES = st.lists(
    st.sampled_from([bytes([byte]) for byte in range(1, 128) if byte != 0x2F] + ["ä".encode(), "日".encode(), b"\xff"]),
    min_size=1,
    max_size=12,
).map(b"".join)


@settings(max_examples=30, deadline=None)
@given(names=st.lists(_BYTES, min_size=1, max_size=60))
def test_a_quoted_name_is_that_name_to_a_shell(names: list[bytes]) -> None:
    program = "printf '%s\\0' " + " ".join(map(shell_escape, names))
    done = subprocess.run(["bash", "-c", program], capture_output=True, check=True, env=_ENVIRONMENT)
    assert done.stdout.split(b"\0")[:-1] == names
    for name in names:
        assert shell_escape(name).isprintable()
        assert octal(name).isprintable()


@pytest.mark.parametrize(
    ("name", "quoted", "in_octal"),
    [
        (b"plain-1.0_x", "plain-1.0_x", "plain-1.0_x"),
        (b"a b", "'a b'", "a b"),
        (b"it's", '"it\'s"', "it's"),
        (b"a'$b", "'a'\\''$b'", "a'$b"),
        (b"a\nb", "'a'$'\\n''b'", "a\\012b"),
        (b"\xff", "''$'\\377'", "\\377"),
        ("ü".encode(), "ü", "ü"),
        ("\u202egnp.exe".encode(), "''$'\\342\\200\\256''gnp.exe'", "\\342\\200\\256gnp.exe"),
        (b"\x1b[31m", "''$'\\033''[31m'", "\\033[31m"),
        (b"#x", "'#x'", "#x"),
        (b"x#", "x#", "x#"),
        (b"~", "'~'", "~"),
        (b"{", "'{'", "{"),
        (b"{a}", "{a}", "{a}"),
        (b"", "''", ""),
    ],
)
def test_how_names_are_quoted(name: bytes, quoted: str, in_octal: str) -> None:
    assert (shell_escape(name), octal(name)) == (quoted, in_octal)


# ---- stat


@needs_root
@pytest.mark.mount
def test_stat_prints_what_gnu_stat_prints(odd: tuple[str, Path]) -> None:
    image, mount = odd
    paths = [
        "etc",
        "etc/passwd",
        "dev/null",
        "dev/sda17",
        "dev/fifo",
        "dev/socket",
        "links/dangling",
        "big/0",
        "/",
        "bin/setuid",
    ]
    there = [path.lstrip("/") or "." for path in paths]

    def comparable(text: bytes) -> list[str]:
        lines = text.decode("utf-8", "surrogateescape").splitlines()
        kept = [line for line in lines if not re.match(r"Access: \d{4}-|Change: | Birth: |  File: [./]$", line)]
        kept = [re.sub(r"/ *[\w-]+\)", "/NAME)", line) if "Uid" in line else line for line in kept]
        return [re.sub(r"^Device: \S+", "Device: -", line) for line in kept]

    for words, option in ((["stat"], []), (["stat", "-L"], ["-L"])):
        asked = [path for path in paths if not option or path != "links/dangling"]
        found = comparable(ours(*words, image, *asked))
        expected = comparable(
            theirs("stat", *option, *[p for p in there if not option or p != "links/dangling"], cwd=mount)
        )
        assert found == expected
    text = ours("stat", image, "bin/setgid", "links/dangling").decode("utf-8", "surrogateescape")
    assert "Uid: (    0/    root)   Gid: (   42/   staff)" in text
    assert "Uid: (   12/ UNKNOWN)" in text


@needs_root
@pytest.mark.mount
def test_stat_as_json_has_extended_attributes(odd: tuple[str, Path]) -> None:
    image, mount = odd
    report = json.loads(ours("stat", "-L", "--json", image, "xattrs/file", "links/relative"))
    first, second = report["entries"]
    expected = {name: os.getxattr(mount / "xattrs/file", name).hex() for name in os.listxattr(mount / "xattrs/file")}
    assert first["xattrs"] == expected
    assert len(expected) >= 4
    assert (first["user"], first["group"]) == ("root", "root")
    assert (second["path"], second["resolved"], second["xattrs"]) == ("links/relative", "/links/first", {})


# ---- tree


@needs_root
@pytest.mark.mount
@pytest.mark.parametrize("options", [[], ["-a"], ["-L", "1"], ["-aL", "2"], ["-D"]])
@pytest.mark.parametrize("path", [".", "deep", "links", "dev", "empty", "bin"])
def test_tree_draws_what_tree_draws(odd: tuple[str, Path], options: list[str], path: str) -> None:
    if path == "." and options != ["-L", "1"]:
        path = "acl"  # tree writes bytes that are no text in several ways
    image, mount = odd
    expected = theirs("tree", "-n", *["-d" if option == "-D" else option for option in options], path, cwd=mount)
    assert ours("tree", *options, image, path) == expected


@needs_root
@pytest.mark.mount
def test_tree_as_json_and_without_utf8(odd: tuple[str, Path]) -> None:
    image, _ = odd
    report = json.loads(ours("tree", "--json", image, "links"))
    assert list(report) == ["image", "entries", "directories", "files", "errors"]
    assert (report["directories"], report["files"]) == (2, len(report["entries"]) - 2)
    assert [entry["depth"] for entry in report["entries"]] == [0] + [1] * (len(report["entries"]) - 1)
    done = subprocess.run(
        [*PUZZLEFS, "tree", image, "dev"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert b"|-- big\n" in done.stdout
    assert b"`-- wide-minor\n\n1 directory, 8 files\n" in done.stdout


# ---- find


@needs_root
@pytest.mark.mount
@pytest.mark.parametrize(
    "tests",
    [
        "",
        "-type f",
        "-type d",
        "-type l,p,s",
        "-type b -type b",
        "-type f -type d",
        "-name *.*",
        "-name *",
        "-name [!a-m]*",
        "-name [^a-m]*",
        "-name [[:digit:]]*",
        "-name \\.*",
        "-iname LINK*",
        "-path */deep/deep/*",
        "-path ./many/0000?-*",
        "-size 0",
        "-size +0",
        "-size -2",
        "-size 1k",
        "-size -5k",
        "-size +4k",
        "-size 513c",
        "-size +1M",
        "-size 2w",
        "-perm 644",
        "-perm /6000",
        "-perm -4000",
        "-perm -0",
        "-perm /0",
        "-uid 1000",
        "-uid +0",
        "-gid -43 -uid 0 -perm /2000",
        "-links +1",
        "-links 1 -type l",
        "-maxdepth 0",
        "-maxdepth 1",
        "-mindepth 1 -maxdepth 2",
        "-mindepth 61",
        "-name nothing-is-called-that",
    ],
)
def test_find_finds_what_gnu_find_finds(odd: tuple[str, Path], tests: str) -> None:
    image, mount = odd
    words = tests.split()
    first = [word for pair in pairwise(words) if pair[0].endswith("depth") for word in pair]
    done = subprocess.run(
        ["find", ".", *first, *words, "-print0"], capture_output=True, cwd=mount, check=True, env=_ENVIRONMENT
    )
    found = ours("find", image, ".", *words, "-print0").split(b"\0")[:-1]
    assert sorted(found) == sorted(done.stdout.split(b"\0")[:-1])
    assert len(found) == len(set(found))
    assert bool(found) == (tests not in ("-type f -type d", "-name nothing-is-called-that"))


@needs_root
@pytest.mark.mount
def test_find_from_other_places(odd: tuple[str, Path]) -> None:
    image, mount = odd
    for paths in (["etc"], ["etc/", "links/to-directory"], ["links/to-directory/", "./etc"], ["etc/passwd"]):
        assert ours("find", image, *paths).splitlines() == [
            line for path in paths for line in sorted(theirs("find", path, cwd=mount).splitlines())
        ]
    assert ours("find", image, "-maxdepth", "1", "-name", "etc") == b"/etc\n"
    assert b"/names/it's quoted\n" in ours("find", image, "/names")
    assert b'"/names/it\'s quoted"\n' in on_terminal("find", image, "/names")
    inode = os.lstat(mount / "etc/passwd").st_ino
    assert ours("find", image, "-inum", str(inode)) == b"/etc/passwd\n"
    report = json.loads(ours("find", "--json", image, "/etc", "-name", "p*"))
    assert [entry["path"] for entry in report["entries"]] == ["/etc/passwd"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (find_tests.size, "k"),
        (find_tests.size, "1x"),
        (find_tests.size, "1.5k"),
        (find_tests.size, "٣"),
        (find_tests.kinds, "x"),
        (find_tests.kinds, ""),
        (find_tests.kinds, "f,"),
        (find_tests.count, "+"),
        (find_tests.permissions, "u+s"),
        (find_tests.permissions, "99999"),
    ],
)
def test_what_is_no_test(kind: Any, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        kind(text)


_LIBC = ctypes.CDLL(None)
_PATTERN = st.lists(
    st.one_of(
        st.sampled_from(["*", "?", "a", "b", "-", ".", "!", "\\*", "\\a", "\\["]),
        st.sampled_from(
            ["[ab]", "[!a]", "[^b]", "[a-b]", "[]]", "[]a]", "[!]a]", "[[:alpha:]]", "[![:digit:]b]", "[*]", "["]
        ),
        st.sampled_from(
            ["[.", ".]", "[=", "=]", "[:", ":]", "[[.-.]a]", "[a-[.].]]", "[[=a=]-b]", "[b-a]", "[!", "\\"]
        ),
    ),
    max_size=7,
).map("".join)


@settings(max_examples=3000, deadline=None)
@given(pattern=_PATTERN, text=st.text(st.sampled_from("ab-.!^[]*\\7"), max_size=7))
@example(pattern="[-[=[*]", text="-")
@example(pattern="[[.[ab]", text="[")
@example(pattern="[a\\-b]", text="-")
def test_patterns_match_what_the_c_library_says(pattern: str, text: str) -> None:
    expected = _LIBC.fnmatch(pattern.encode(), text.encode(), 0) == 0
    assert (re.compile(translate(pattern)).match(text) is not None) == expected


# ---- cat


@needs_root
@pytest.mark.mount
def test_cat_writes_what_is_there(odd: tuple[str, Path]) -> None:
    image, mount = odd
    paths = sorted(ours("find", image, "-type", "f", "-size", "+0", "-print0").split(b"\0")[:-1])
    assert len(paths) > 20
    whole = hashlib.sha256(b"".join(Path(os.fsdecode(os.fsencode(mount) + path)).read_bytes() for path in paths))
    assert hashlib.sha256(ours("cat", image, *paths)).digest() == whole.digest()
    assert ours("cat", image, "links/relative") == b"one content, four names"
    assert ours("cat", image, "links/to-directory/../etc/group") == (mount / "etc/group").read_bytes()
    done = subprocess.run([*PUZZLEFS, "cat", "--json", image, "links/relative"], capture_output=True, check=True)
    assert json.loads(done.stderr) == {
        "image": image,
        "files": [{"path": "links/relative", "resolved": "/links/first", "bytes": 23}],
        "errors": [],
    }


def test_cat_ends_before_what_is_damaged_and_goes_on_with_the_next_file(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    good, bad = forge.chunk(b"g" * _MEBIBYTE), forge.chunk(b"bad")
    image = forge.image([f.directory(1, {b"a": 2, b"b": 3}), f.regular(2, good, bad), f.regular(3, good)])
    forge.blob_path(bad.blob.digest).write_bytes(b"BAD")
    done = subprocess.run([*PUZZLEFS, "cat", image, "/a", "/b"], capture_output=True, check=False)
    assert done.returncode == 5
    assert done.stdout == b"g" * 2 * _MEBIBYTE
    assert re.fullmatch(rb"puzzlefs: \S+: /a: blob \S+ is corrupt or was replaced: .*\n", done.stderr), done.stderr


def _peak(*words: str) -> tuple[int, int]:
    """MiB of memory that the command took at most, and the bytes that it wrote."""
    program = (
        "import resource, subprocess, sys\n"
        "process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\n"
        "count = sum(len(part) for part in iter(lambda: process.stdout.read(1 << 20), b''))\n"
        "assert process.wait() == 0\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024, count)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *PUZZLEFS, *words], capture_output=True, check=True, text=True
    )
    peak, count = map(int, done.stdout.split())
    return peak, count


def test_cat_of_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    part = forge.chunk(bytes(_MEBIBYTE), compressed=True)
    peak, written = _peak("cat", forge.image([f.directory(1, {b"big": 2}), f.regular(2, *[part] * 600)]), "/big")
    assert written == 600 * _MEBIBYTE
    assert peak < 150


def test_a_hundred_thousand_inodes_take_little_memory(tmp_path: Path) -> None:
    image = f"{tmp_path}/layout:many"
    generate(image, 100_000)
    for words in (["ls", "-lR"], ["find"], ["find", "-size", "+0"], ["tree"], ["ls", "-R", "--json"]):
        peak, written = _peak(words[0], *words[1:], image) if words[0] != "find" else _peak("find", image, *words[1:])
        assert written > 1_000_000, words
        assert peak < 150, words


def test_a_reader_may_stop(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    image = forge.image([f.directory(1, {b"big": 2}), f.regular(2, *[forge.chunk(bytes(_MEBIBYTE))] * 50)])
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -c 10 | wc -c; exit ${PIPESTATUS[0]}', "-", *PUZZLEFS, "cat", image, "/big"],
        capture_output=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == (b"10", b"", 7)


# ---- images of the original


@pytest.mark.parametrize("tag", ["base", "fresh", "second"])
@pytest.mark.parametrize("layout", ["v1", "v2", "v3", "v1-zstd", "v2-zstd", "v3-zstd"])
def test_images_of_the_original(vectors: Path, expected: dict[str, Any], layout: str, tag: str) -> None:
    image = f"{vectors}/{layout}:{tag}"
    tree = trees.in_json(expected["trees"][tag])
    paths = ours("find", image, ".", "-print0").split(b"\0")[:-1]
    assert sorted(path.removeprefix(b"./") for path in paths) == sorted(tree)
    names = {"file": "regular", "dir": "directory", "char": "char-device", "block": "block-device"}
    report = json.loads(ours("stat", "--json", image, *paths))
    assert report["errors"] == []
    for path, entry in zip(paths, report["entries"], strict=True):
        node = tree[path.removeprefix(b"./")]
        assert entry["type"] == names.get(node["type"], node["type"])
        assert (int(entry["mode"], 8), entry["uid"], entry["gid"]) == (node["permissions"], node["uid"], node["gid"])
        assert entry.get("target") == (os.fsdecode(node["target"]) if "target" in node else None)
        assert entry.get("device") == (list(node["device"]) if "device" in node else None)
        xattrs = {os.fsencode(name): bytes.fromhex(value) for name, value in entry["xattrs"].items()}
        assert xattrs == node.get("xattrs", {})
        if node["type"] == "file":
            assert entry["size"] == node["size"]
    files = [path for path in paths if tree[path.removeprefix(b"./")]["type"] == "file"]
    content = ours("cat", image, *files)
    for path in files:
        node = tree[path.removeprefix(b"./")]
        part, content = content[: node["size"]], content[node["size"] :]
        assert hashlib.sha256(part).hexdigest() == node["sha256"]
    assert content == b""
    assert ours("ls", "-lRA", image).count(b"\n") > len(tree)
    assert ours("tree", "-a", image).count(b"\n") == len(tree) + 2


# ---- what goes wrong


@pytest.mark.parametrize("version", [1, 2, 3])
def test_bad_entries_are_shown_as_such_and_the_rest_as_it_is(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    image = forge.image(
        [
            f.directory(1, {b"a": 2, b"again": 2, b"bad": 3, b"gone": 99, b"ok": 4}),
            f.directory(2, {b"inner": 5}),
            f.directory(3, [(b"x", 5), (b"x", 4)]),
            f.regular(4, forge.chunk(b"four")),
            f.inode(5, Fifo()),
        ]
    )
    done = subprocess.run([*PUZZLEFS, "ls", "-lR", image], capture_output=True, check=False, text=True)
    assert done.returncode == 4
    rows = [re.sub(r"\w\w\w .\d  1970", "TIME", row) for row in done.stdout.splitlines()]
    assert (
        rows
        == [
            "/:",
            "total 1",
            "drwxr-xr-x 2 0 0 0 TIME a",
            "d????????? ? ? ? ?            ? again",
            "drwxr-xr-x 2 0 0 0 TIME bad",
            "?????????? ? ? ? ?            ? gone",
            "-rw-r--r-- 2 0 0 4 TIME ok",  # the entries of the broken directory are counted, unread
            "",
            "/a:",
            "total 0",
            "prw-r--r-- 2 0 0 0 TIME inner",
        ]
        or "prw-r--r-- 1" in rows[-1]
    )
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == ["/again", "/gone", "/bad"]
    assert ours("ls", image) == b"a\nagain\nbad\ngone\nok\n"
    for words in (["find"], ["tree"], ["ls", "-R", "--json"], ["tree", "--json"]):
        text = said(*words, image, code=4)
        assert {line.split(": ")[2] for line in text.splitlines()} == {"/again", "/gone", "/bad"}
    assert "/gone" in said("stat", image, "/gone", code=4)
    assert "second name" in said("cat", image, "/again/inner", code=4)
    report = json.loads(subprocess.run([*PUZZLEFS, "find", "--json", image], capture_output=True, check=False).stdout)
    assert {error["path"] for error in report["errors"]} == {"/again", "/gone", "/bad"}
    assert {entry["path"] for entry in report["entries"]} == {"/", "/a", "/a/inner", "/bad", "/ok"}


def test_bombs_of_nesting_end(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    count = 20_000
    image = forge.image([*(f.directory(ino, {b"x": ino + 1}) for ino in range(1, count)), f.directory(count)])
    for words in (["find"], ["ls", "-R"], ["ls", "-lR"], ["tree"]):
        text = said(*words, image, code=4)
        assert text.count("\n") == 1
        assert "too deep" in text
        assert len(text) < 1000
    assert said("cat", image, b"x/" * 20_000, code=3).endswith("/x/x… does not exist in the image\n")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    forge = Forge(tmp_path_factory.mktemp("small") / "layout")
    entries = {b"d": 2, b"file": 3, b"fifo": 4, b"loop": 5, b"out": 6, b"\x1b[2J": 3}
    inodes = [f.directory(1, entries), f.directory(2), f.regular(3, forge.chunk(b"x")), f.inode(4, Fifo())]
    return forge.image([*inodes, f.symlink(5, b"loop"), f.symlink(6, b"../../../../etc/passwd")], tag="small")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["cat", "IMAGE", "/nothing"], 3, "/nothing does not exist in the image"),
        (["cat", "IMAGE", "/out"], 3, "/out leads to /etc, which does not exist in the image"),
        (["cat", "IMAGE", "/d"], 2, "/d is a directory"),
        (["cat", "IMAGE", "/fifo"], 2, "/fifo is a FIFO, and has no content in an image"),
        (["cat", "IMAGE", "/loop"], 2, "/loop leads through more than 40 symbolic links"),
        (["cat", "IMAGE", "/file/x"], 2, "/file is not a directory"),
        (["cat", "IMAGE"], 2, "too few arguments: IMAGE PATH expected"),
        (["ls", "IMAGE", "/nothing", "/d"], 3, "/nothing does not exist"),
        (["ls", "IMAGE-2"], 3, "has no tag"),
        (["ls", "-d", "0" * 64, "IMAGE"], 5, "is corrupt or was replaced"),
        (["tree", "IMAGE", "/file"], 2, "/file is not a directory"),
        (["stat", "IMAGE", "/nothing"], 3, "/nothing does not exist"),
        (["find", "IMAGE", "/nothing"], 3, "/nothing does not exist"),
        (["find", "IMAGE", "-size", "x"], 2, "'x' is no size"),
        (["tree", "-L", "x", "IMAGE"], 2, "'x' is not a whole number"),
        (["ls", "no-image"], 2, "'no-image' does not name an image"),
        (["ls", "nowhere", "tag"], 3, "nowhere"),
    ],
)
def test_errors_name_the_image_the_path_and_have_their_exit_code(
    small: str, words: list[str], code: int, message: str
) -> None:
    text = said(*[word.replace("IMAGE", small) if word.startswith("IMAGE") else word for word in words], code=code)
    assert message in text
    assert "Traceback" not in text


def test_messages_and_terminals_get_no_control_characters(small: str) -> None:
    assert "\x1b" not in said("cat", small, b"/\x1b[2J\x1b]0;x", code=3)
    assert b"''$'\\033''[2J'" in on_terminal("ls", small)
    assert b"\\033[2J" in ours("tree", small)
    assert b"\x1b[2J\n" in ours("ls", small)


def test_the_image_may_be_two_words(small: str) -> None:
    layout, _, tag = small.rpartition(":")
    assert ours("cat", layout, tag, "/file") == ours("cat", small, "/file") == b"x"
    assert ours("ls", layout, tag) == ours("ls", small)
    assert ours("ls", layout, tag, "/d", "/file") == ours("ls", small, "/d", "/file")


@pytest.mark.parametrize(
    ("given", "layout", "tag", "paths"),
    [
        (["a:t"], "a", "t", ["/"]),
        (["a", "t"], "a", "t", ["/"]),
        (["a:t", "t"], "a", "t", ["t"]),
        (["a", "t", "p", "q"], "a", "t", ["p", "q"]),
        (["x:y", "p"], "x", "y", ["p"]),
        (["d:1", "t", "p"], "d:1", "t", ["p"]),
        (["d:1:t", "p"], "d:1", "t", ["p"]),
    ],
)
def test_which_words_are_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], layout: str, tag: str, paths: list[str]
) -> None:
    (tmp_path / "d:1").mkdir()  # a directory whose name looks like an image
    monkeypatch.chdir(tmp_path)
    reference, found = image_and_paths(given, default="/")
    assert (str(reference.layout), reference.tag, found) == (layout, tag, paths)


@pytest.mark.parametrize("given", [[], ["a"], ["a", "b c"], [":t"], ["", "t"]])
def test_which_words_are_none(given: list[str]) -> None:
    with pytest.raises(InvalidArgumentError):
        image_and_paths(given, default="/")
