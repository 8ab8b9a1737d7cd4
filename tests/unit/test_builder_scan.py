"""What a scan finds: numbers and their order, every kind of file, xattrs, mount points, trees of any depth."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from puzzlefs.builder.chunks import FileStream
from puzzlefs.builder.scan import ScannedTree, identity_of, scan
from puzzlefs.builder.source import SourceTree, printable
from puzzlefs.errors import InvalidArgumentError, NotFoundError, SourceError
from puzzlefs.model import (
    BlockDevice,
    CharDevice,
    Directory,
    Fifo,
    Inode,
    RegularFile,
    Socket,
    Symlink,
    Xattr,
)

pytestmark = pytest.mark.unit

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="devices, owners and mounts are for root")


def found_in(root: Path, *, cross_mounts: bool = False, progress: Callable[[int], None] | None = None) -> ScannedTree:
    with SourceTree(root) as tree:
        return scan(tree, FileStream(), mtime_of=lambda ns: ns, cross_mounts=cross_mounts, progress=progress)


def content_of(root: Path) -> bytes:
    """The content of all files, one after the other, opened as a build opens them."""
    content = b""
    with SourceTree(root) as tree:
        for file in scan(tree, FileStream(), mtime_of=lambda _: None).files:
            fd = tree.open_file(file.directory, file.name)
            assert identity_of(os.fstat(fd)) == file.identity
            content += os.read(fd, file.size + 1)
            os.close(fd)
    return content


def by_number(found: ScannedTree) -> dict[int, Inode]:
    return {inode.ino: inode for inode in found.inodes}


def names(found: ScannedTree) -> dict[bytes, int]:
    """Every path and its inode number."""
    inodes = by_number(found)
    result = {b"": 1}
    stack = [(b"", 1)]
    while stack:
        path, ino = stack.pop()
        content = inodes[ino].content
        if isinstance(content, Directory):
            below = [(path + b"/" + entry.name, entry.ino) for entry in content.entries]
            result.update(below)
            stack += below
    return result


def at(found: ScannedTree, path: bytes) -> Inode:
    return by_number(found)[names(found)[path]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    place.mkdir()
    return place


class TestNumbers:
    def test_an_empty_directory_is_inode_1(self, root: Path) -> None:
        found = found_in(root)
        assert [(inode.ino, inode.content) for inode in found.inodes] == [(1, Directory(()))]

    def test_a_directory_numbers_its_entries_before_any_of_them_is_visited(self, root: Path) -> None:
        for path in ("b/x", "b/a/deep", "a/y", "c"):
            (root / path).mkdir(parents=True)
        (root / "aa").write_bytes(b"")
        assert names(found_in(root)) == {
            b"": 1,
            b"/a": 2,
            b"/aa": 3,
            b"/b": 4,
            b"/c": 5,
            b"/a/y": 6,
            b"/b/a": 7,
            b"/b/x": 8,
            b"/b/a/deep": 9,
        }

    def test_order_is_that_of_raw_bytes(self, root: Path) -> None:
        order = [b"\x01", b"B", b"a", b"a\xff", b"aa", b"\xc3\xa9", b"\xff"]
        for name in reversed(order):
            os.mkdir(os.path.join(os.fsencode(root), name))
        found = found_in(root)
        assert sorted(order) == [b"\x01", b"B", b"a", b"aa", b"a\xff", b"\xc3\xa9", b"\xff"]
        assert [names(found)[b"/" + name] for name in sorted(order)] == list(range(2, 9))

    def test_a_hard_link_keeps_its_first_number_and_uses_one_up(self, root: Path) -> None:
        (root / "b").write_bytes(b"linked")
        os.link(root / "b", root / "d")
        (root / "e").write_bytes(b"")
        (root / "a").mkdir()
        os.link(root / "b", root / "a" / "again")
        (root / "a" / "last").write_bytes(b"")
        found = found_in(root)
        assert names(found) == {b"": 1, b"/a": 2, b"/b": 3, b"/d": 3, b"/e": 5, b"/a/again": 3, b"/a/last": 7}
        assert [inode.ino for inode in found.inodes] == [1, 2, 3, 5, 7]
        assert [(file.name, file.size) for file in found.files] == [(b"b", 6)]

    def test_everything_but_directories_can_have_several_names(self, root: Path) -> None:
        os.symlink(b"target", root / "symlink")
        os.mkfifo(root / "fifo")
        for kind in ("symlink", "fifo"):
            os.link(root / kind, root / f"{kind}-2", follow_symlinks=False)
        found = names(found_in(root))
        assert found[b"/symlink"] == found[b"/symlink-2"]
        assert found[b"/fifo"] == found[b"/fifo-2"]

    def test_inodes_are_sorted_whatever_the_tree(self, root: Path) -> None:
        for number in range(30):
            (root / f"d{number % 7}" / f"e{number % 3}").mkdir(parents=True, exist_ok=True)
            (root / f"d{number % 7}" / f"f{number}").write_bytes(b"x")
        numbers = [inode.ino for inode in found_in(root).inodes]
        assert numbers == list(range(1, len(numbers) + 1))


class TestKinds:
    def test_files_and_links(self, root: Path) -> None:
        (root / "file").write_bytes(b"12345")
        (root / "empty").write_bytes(b"")
        os.symlink(b"/no where/\xff", os.path.join(os.fsencode(root), b"link"))
        found = found_in(root)
        file, empty, link = (at(found, path).content for path in (b"/file", b"/empty", b"/link"))
        assert isinstance(file, RegularFile)
        assert isinstance(empty, RegularFile)
        assert (file.size, empty.size, list(empty.chunks)) == (5, 0, [])
        assert link == Symlink(b"/no where/\xff")

    def test_fifos_and_sockets(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        os.mkfifo(root / "fifo")
        monkeypatch.chdir(root)  # the address of a socket is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
        found = found_in(root)
        assert at(found, b"/fifo").content == Fifo()
        assert at(found, b"/socket").content == Socket()

    @needs_root
    def test_devices_with_large_numbers(self, root: Path) -> None:
        os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(4095, 1_048_575))
        os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
        found = found_in(root)
        assert at(found, b"/char").content == CharDevice(4095, 1_048_575)
        assert at(found, b"/block").content == BlockDevice(259, 70_000)

    @pytest.mark.parametrize("mode", [0o0000, 0o0644, 0o7777, 0o4755, 0o1777])
    def test_all_twelve_permission_bits(self, root: Path, mode: int) -> None:
        (root / "file").write_bytes(b"")
        (root / "file").chmod(mode)
        assert at(found_in(root), b"/file").permissions == mode

    @needs_root
    def test_owners_up_to_the_last_one(self, root: Path) -> None:
        (root / "file").write_bytes(b"")
        os.chown(root / "file", 4_294_967_294, 4_294_967_293)
        os.chown(root, 1000, 2000)
        found = found_in(root)
        assert (at(found, b"/file").uid, at(found, b"/file").gid) == (4_294_967_294, 4_294_967_293)
        assert (at(found, b"").uid, at(found, b"").gid) == (1000, 2000)

    def test_times_are_what_the_rule_makes_of_them(self, root: Path) -> None:
        (root / "file").write_bytes(b"")
        os.utime(root / "file", ns=(0, 1_234_567_890_123_456_789))
        assert at(found_in(root), b"/file").mtime_ns == 1_234_567_890_123_456_789

    @pytest.mark.parametrize(("name", "noticed"), [("a.pyc", True), ("a.py", False), (".pyc", True)])
    def test_compiled_python_is_noticed(self, root: Path, name: str, noticed: bool) -> None:
        (root / "lib").mkdir()
        (root / "lib" / name).write_bytes(b"")
        assert found_in(root).has_pyc is noticed

    def test_a_directory_called_pyc_is_not_compiled_python(self, root: Path) -> None:
        (root / "x.pyc").mkdir()
        assert not found_in(root).has_pyc


class TestXattrs:
    def test_are_sorted_by_key(self, root: Path) -> None:
        for key in ("user.z", "user.a", "user.M"):
            os.setxattr(root, key, key.encode())
        (root / "file").write_bytes(b"")
        os.setxattr(root / "file", "user.empty", b"")
        found = found_in(root)
        assert at(found, b"").xattrs == (
            Xattr(b"user.M", b"user.M"),
            Xattr(b"user.a", b"user.a"),
            Xattr(b"user.z", b"user.z"),
        )
        assert at(found, b"/file").xattrs == (Xattr(b"user.empty", b""),)

    @needs_root
    def test_of_every_name_space_and_kind(self, root: Path) -> None:
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        (root / "file").write_bytes(b"")
        os.setxattr(root / "file", "security.capability", capability)
        subprocess.run(["setfacl", "-m", "u:1234:r", root / "file"], check=True)
        os.symlink("nowhere", root / "link")
        os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        for name in ("link", "device"):
            os.setxattr(root / name, "trusted.mark", name.encode(), follow_symlinks=False)
        found = found_in(root)
        keys = [xattr.key for xattr in at(found, b"/file").xattrs]
        assert keys == [b"security.capability", b"system.posix_acl_access"]
        assert at(found, b"/file").xattrs[0].value == capability
        assert at(found, b"/link").xattrs == (Xattr(b"trusted.mark", b"link"),)
        assert at(found, b"/device").xattrs == (Xattr(b"trusted.mark", b"device"),)

    def test_a_file_system_without_any(self) -> None:
        # sysfs has no user xattrs, and says so by an error where it has none at all
        found = found_in(Path("/sys/kernel/mm"))
        assert len(found.inodes) > 1


class TestMounts:
    @pytest.fixture
    def mounted(self, root: Path) -> Iterator[Path]:
        (root / "a" / "mnt").mkdir(parents=True)
        (root / "z").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0711", "none", root / "a" / "mnt"], check=True)
        (root / "a" / "mnt" / "inside").write_bytes(b"mounted")
        (root / "a" / "mnt" / "below").mkdir()
        yield root
        subprocess.run(["umount", root / "a" / "mnt"], check=True)

    @needs_root
    def test_a_mount_point_becomes_an_empty_directory(self, mounted: Path) -> None:
        found = found_in(mounted)
        assert found.mount_points == [b"a/mnt"]
        assert names(found) == {b"": 1, b"/a": 2, b"/z": 3, b"/a/mnt": 4}
        assert at(found, b"/a/mnt").content == Directory(())
        assert at(found, b"/a/mnt").permissions == 0o711

    @needs_root
    def test_cross_mounts_goes_in(self, mounted: Path) -> None:
        found = found_in(mounted, cross_mounts=True)
        assert found.mount_points == []
        assert set(names(found)) == {b"", b"/a", b"/z", b"/a/mnt", b"/a/mnt/inside", b"/a/mnt/below"}

    @needs_root
    def test_a_file_of_another_device_is_a_file(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        (root / "file").write_bytes(b"below")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path / "other"], check=True)
        try:
            (tmp_path / "other" / "file").write_bytes(b"on top")
            subprocess.run(["mount", "--bind", tmp_path / "other" / "file", root / "file"], check=True)
            try:
                found = found_in(root)
            finally:
                subprocess.run(["umount", root / "file"], check=True)
        finally:
            subprocess.run(["umount", tmp_path / "other"], check=True)
        assert found.mount_points == []
        content = at(found, b"/file").content
        assert isinstance(content, RegularFile)
        assert content.size == len(b"on top")

    @needs_root
    def test_equal_inode_numbers_on_two_devices_are_not_one_file(self, root: Path) -> None:
        for name in ("a", "b"):
            (root / name).mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", root / name], check=True)
        try:
            for name in ("a", "b"):
                (root / name / "file").write_bytes(name.encode())
                os.link(root / name / "file", root / name / "link")
            assert (root / "a" / "file").stat().st_ino == (root / "b" / "file").stat().st_ino
            found = names(found_in(root, cross_mounts=True))
        finally:
            for name in ("a", "b"):
                subprocess.run(["umount", root / name], check=True)
        assert found[b"/a/file"] == found[b"/a/link"] != found[b"/b/file"] == found[b"/b/link"]


@needs_root
def test_an_overlay_has_no_mount_points_and_keeps_its_hard_links(root: Path, tmp_path: Path) -> None:
    """Files and directories of one overlay report different devices, and files of its layers equal numbers."""
    lower, upper, work = (tmp_path / name for name in ("lower", "upper", "work"))
    for place in (lower, upper, work):
        place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", lower], check=True)
    try:
        for place, name in ((lower, "low"), (upper, "up")):
            (place / name).mkdir()
            (place / name / "file").write_bytes(name.encode())
            os.link(place / name / "file", place / name / "link")
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)
        try:
            assert (root / "low" / "file").stat().st_dev != root.stat().st_dev
            stream = content_of(root)
            found = found_in(root)
        finally:
            subprocess.run(["umount", root], check=True)
    finally:
        subprocess.run(["umount", lower], check=True)
    assert found.mount_points == []
    assert names(found) == {
        b"": 1,
        b"/low": 2,
        b"/up": 3,
        b"/low/file": 4,
        b"/low/link": 4,
        b"/up/file": 6,
        b"/up/link": 6,
    }
    assert stream == b"lowup"


class TestDepth:
    @pytest.fixture
    def deep(self, tmp_path: Path) -> Iterator[tuple[Path, int, bytes]]:
        """A chain of directories, with a file and an xattr at its end, and a sibling at every level."""
        name, levels = b"d" * 20, 1000
        root = tmp_path / "deep"
        root.mkdir()
        fd = os.open(root, os.O_RDONLY)
        for _ in range(levels):
            os.mkdir(name, dir_fd=fd)
            os.mkdir(b"sibling", dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        with open(os.open(b"file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd), "wb") as file:
            file.write(b"at the bottom")
            os.setxattr(file.fileno(), "user.deep", b"yes")
        os.close(fd)
        yield root, levels, name
        subprocess.run(["rm", "-rf", root], check=True)

    def test_is_not_limited_by_the_length_of_a_path(self, deep: tuple[Path, int, bytes]) -> None:
        root, levels, name = deep
        found = found_in(root)
        assert len(found.inodes) == 1 + 2 * levels + 1
        (file,) = found.files
        assert file.directory.path() == b"/".join([name] * levels)
        inode = at(found, b"/" + file.directory.path(b"file"))
        assert inode.xattrs == (Xattr(b"user.deep", b"yes"),)

    def test_an_error_down_there_is_still_a_line(self, deep: tuple[Path, int, bytes]) -> None:
        root, _, _ = deep
        with SourceTree(root) as tree:
            found = scan(tree, FileStream(), mtime_of=lambda _: None)
            (file,) = found.files
            with pytest.raises(SourceError) as caught:
                tree.open_file(file.directory, b"missing")
        assert caught.value.message.endswith("/missing: No such file or directory")
        assert len(caught.value.message) < 5000


class TestTrouble:
    def test_no_such_tree(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="missing does not exist"):
            SourceTree(tmp_path / "missing")

    def test_a_tree_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(InvalidArgumentError, match="file is not a directory"):
            SourceTree(tmp_path / "file")

    def test_the_root_may_be_a_link(self, root: Path, tmp_path: Path) -> None:
        (root / "file").write_bytes(b"x")
        (tmp_path / "link").symlink_to(root)
        assert names(found_in(tmp_path / "link")) == {b"": 1, b"/file": 2}

    def test_a_directory_that_vanishes(self, root: Path) -> None:
        (root / "gone").mkdir()
        with pytest.raises(SourceError, match=r"cannot open the directory .*/gone: No such file"):
            found_in(root, progress=lambda _: (root / "gone").rmdir())

    def test_a_directory_swapped_for_a_link_is_not_followed(self, root: Path, tmp_path: Path) -> None:
        (root / "sub").mkdir()
        (tmp_path / "secret").mkdir()

        def swap(_: int) -> None:
            (root / "sub").rmdir()
            (root / "sub").symlink_to(tmp_path / "secret")

        with pytest.raises(SourceError, match=r"cannot open the directory .*/sub: "):
            found_in(root, progress=swap)

    def test_a_directory_swapped_for_another_is_noticed(self, root: Path, tmp_path: Path) -> None:
        (root / "sub").mkdir()
        (tmp_path / "other").mkdir()

        def swap(_: int) -> None:
            (root / "sub").rename(tmp_path / "was-sub")
            (tmp_path / "other").rename(root / "sub")

        with pytest.raises(SourceError, match="/sub changed while it was read"):
            found_in(root, progress=swap)

    def test_no_descriptor_is_left_open(self, root: Path) -> None:
        for number in range(20):
            (root / f"{number}" / "below").mkdir(parents=True)
        before = len(os.listdir("/proc/self/fd"))
        found_in(root)
        assert len(os.listdir("/proc/self/fd")) == before


def test_paths_are_shown_as_one_line() -> None:
    assert printable(b"plain/\xc3\xa9") == "plain/é"
    assert printable(b"a\nb\x1b[31m\xff") == "a\\nb\\x1b[31m\\xff"
