"""The comparison that other tests and the demonstration rely on must see every kind of difference."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from compare_trees import Options, Statistics, compare

pytestmark = pytest.mark.unit

ODD = os.fsdecode(b"odd \xff\n name")


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal trees."""
    a, b = tmp_path / "a", tmp_path / "b"
    (a / "dir" / "sub").mkdir(parents=True)
    (a / "dir" / "file").write_bytes(b"0123456789" * 300_000)
    os.link(a / "dir" / "file", a / "dir" / "same")
    (a / ODD).write_bytes(b"x")
    os.mkfifo(a / "fifo")
    (a / "link").symlink_to("dir/file")
    os.setxattr(a / "dir" / "file", "user.colour", b"blue")
    shutil.copytree(a, b, symlinks=True, copy_function=_copy, ignore=lambda *_: {"fifo", "same"})
    os.mkfifo(b / "fifo")
    os.link(b / "dir" / "file", b / "dir" / "same")
    return a, b


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target, follow_symlinks=False)


def _rewrite(path: Path, data: bytes) -> None:
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_equal_trees(trees: tuple[Path, Path]) -> None:
    statistics = Statistics()
    assert list(compare(*trees, statistics=statistics)) == []
    assert statistics.entries == 8
    assert statistics.content_bytes == 3_000_001
    assert statistics.by_type == {"directory": 3, "regular file": 3, "fifo": 1, "symlink": 1}


def _flip(b: Path) -> None:
    data = bytearray((b / "dir" / "file").read_bytes())
    data[2_500_000] ^= 1
    _rewrite(b / "dir" / "file", bytes(data))


def _split(b: Path) -> None:
    (b / "dir" / "same").unlink()
    _copy(str(b / "dir" / "file"), str(b / "dir" / "same"))


def _join(b: Path) -> None:
    (b / ODD).unlink()
    os.link(b / "dir" / "file", b / ODD)


def _retarget(b: Path) -> None:
    (b / "link").unlink()
    (b / "link").symlink_to("dir/same")


def _retype(b: Path) -> None:
    (b / "fifo").unlink()
    (b / "fifo").touch()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_flip, [("dir/file", "content")]),
        (_split, [("dir/same", "links"), ("dir/file", "links")]),
        (_join, [(ODD, "links"), (ODD, "size"), (ODD, "xattrs"), ("dir/file", "links")]),
        (_retarget, [("link", "target")]),
        (_retype, [("fifo", "type")]),
        (lambda b: (b / "fifo").unlink(), [("fifo", "name")]),
        (lambda b: (b / "dir" / "sub" / "new").touch(), [("dir/sub/new", "name")]),
        (lambda b: (b / "dir").chmod(0o1777), [("dir", "mode")]),
        (lambda b: b.chmod(0o700), [("", "mode")]),
        (lambda b: _rewrite(b / ODD, b""), [(ODD, "size")]),
        (
            lambda b: os.setxattr(b / "dir" / "same", "user.colour", b"red"),
            [("dir/file", "xattrs"), ("dir/same", "xattrs")],
        ),
        (lambda b: os.removexattr(b / "dir" / "same", "user.colour"), [("dir/file", "xattrs"), ("dir/same", "xattrs")]),
        (lambda b: os.setxattr(b / "dir", "user.new", b""), [("dir", "xattrs")]),
        (lambda b: os.link(b / "link", b.parent / "outside", follow_symlinks=False), [("link", "links")]),
    ],
)
def test_each_difference_is_seen(
    trees: tuple[Path, Path], change: Callable[[Path], object], found: list[tuple[str, str]]
) -> None:
    a, b = trees
    change(b)
    assert {(os.fsdecode(difference.path), difference.aspect) for difference in compare(a, b)} == set(found)


def test_links_out_of_the_reference_tree_do_not_count(trees: tuple[Path, Path]) -> None:
    a, b = trees
    os.link(a / ODD, a.parent / "outside")
    assert list(compare(a, b)) == []


def test_mtime_only_on_request(trees: tuple[Path, Path]) -> None:
    a, b = trees
    before = (b / "fifo").stat()
    os.utime(b / "fifo", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert [entry for entry in compare(a, b) if entry.path == b"fifo"] == []
    assert [entry.aspect for entry in compare(a, b, Options(mtime=True)) if entry.path == b"fifo"] == ["mtime"]


@pytest.mark.skipif(os.geteuid() != 0, reason="changing owners and making devices needs root")
def test_owner_and_device(trees: tuple[Path, Path]) -> None:
    a, b = trees
    os.mknod(a / "device", 0o20600, os.makedev(300, 70_000))
    os.mknod(b / "device", 0o20600, os.makedev(300, 70_001))
    os.chown(b / "link", 0, 4_000_000_000, follow_symlinks=False)
    assert [(entry.path, entry.aspect, entry.detail) for entry in compare(a, b)] == [
        (b"device", "device", "300:70000 in A, 300:70001 in B"),
        (b"link", "owner", "0:0 in A, 0:4000000000 in B"),
    ]
    assert list(compare(a, b, Options(ignore=frozenset({"owner", "device"})))) == []


def test_an_absent_root_is_an_error(trees: tuple[Path, Path]) -> None:
    a, b = trees
    with pytest.raises(FileNotFoundError):
        compare(a, b / "absent")


def test_command_line(trees: tuple[Path, Path]) -> None:
    a, b = trees
    script = Path(__file__).resolve().parents[2] / "scripts" / "compare_trees.py"

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)

    equal = run(a, b)
    assert (equal.returncode, equal.stdout) == (0, "8 entries, 3000001 bytes: no differences\n")
    (b / ODD).write_bytes(b"y")
    different = run(a, b)
    assert different.returncode == 1
    assert r"odd \xff\n name: content: byte 0 is 0x78 in A, 0x79 in B" in different.stdout
    assert run(a, b, "--ignore", "content").returncode == 0
    assert run(a, b / "absent").returncode == 2
