"""Extracting where something is in the way: full disks, limits, no root, attributes that get in one another's way."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from support import forge as f
from support import trees
from support.examine import limited
from support.forge import Forge

from puzzlefs.errors import InvalidArgumentError, PuzzlefsError, StorageError, UnsafePathError
from puzzlefs.extract import ExtractReport, extract
from puzzlefs.image import Image, open_image
from puzzlefs.model import BlobRef, BlockDevice, CharDevice, Fifo, FileChunk, Inode, Socket

pytestmark = pytest.mark.hostile

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to mount, or to become somebody else")


def as_nobody(forge: Forge, target: Path, reference: str) -> ExtractReport:
    """Extract without any privilege."""
    trees.let_everybody_in(forge.path)
    target.parent.chmod(0o777)

    def run() -> ExtractReport:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return extract(reference, target)

    return limited(run)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel stores it: version 2, then tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ANYBODY = 0xFFFFFFFF
ACL = acl((1, 7, ANYBODY), (2, 5, 1234), (4, 5, ANYBODY), (0x10, 5, ANYBODY), (0x20, 0, ANYBODY))


# ---- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB and 200 inodes."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=200", "puzzlefs-test", path],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """Content without end is an error that says so, not a crash; what made it small in the image does not matter."""
    forge = Forge(tmp_path / "layout")
    digest = forge.blob(zstandard.compress(b"a" * (32 << 20)))
    reference = forge.image(
        [f.directory(1, {b"huge": 2}), f.regular(2, *[FileChunk(BlobRef(digest, 0, True), 32 << 20)] * 10_000)]
    )

    def run() -> str:
        with pytest.raises(StorageError) as caught:
            extract(reference, small_disk / "out")
        return str(caught.value)

    message = limited(run)
    assert f"{small_disk}/out/huge: No space left on device" in message
    assert f"{small_disk}/out is incomplete" in message


def test_no_inodes_left(tmp_path: Path, small_disk: Path) -> None:
    names = {b"%04d" % number: number for number in range(2, 1000)}
    inodes = [f.directory(1, names), *(f.inode(number, Fifo()) for number in names.values())]
    with pytest.raises(StorageError, match="No space left on device"):
        extract(Forge(tmp_path / "layout").image(inodes), small_disk / "out")


def test_a_hole_larger_than_the_disk(tmp_path: Path, small_disk: Path) -> None:
    forge = Forge(tmp_path / "layout")
    hole = FileChunk(BlobRef(forge.blob(zstandard.compress(bytes(32 << 20))), 0, True), 32 << 20)
    report = extract(forge.image([f.directory(1, {b"sparse": 2}), f.regular(2, *[hole] * 1000)]), small_disk / "out")
    assert report.bytes == 32_000 << 20
    assert (small_disk / "out" / "sparse").stat().st_blocks == 0


def test_no_descriptors_left(tmp_path: Path) -> None:
    """Extracting needs few descriptors, however deep and linked the tree is."""
    inodes = [
        *(f.directory(number, {b"d": number + 1, b"link": 500}) for number in range(1, 300)),
        f.directory(300, {b"link": 500}),
        f.inode(500, Fifo()),
    ]
    reference = Forge(tmp_path / "layout").image(inodes)

    def run() -> int:
        used = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, used + 12))
        return extract(reference, tmp_path / "out").entries

    assert limited(run) == 599
    assert (tmp_path / "out" / "link").stat().st_nlink == 300


# ---- the target


def small_image(tmp_path: Path) -> str:
    forge = Forge(tmp_path / "layout")
    return forge.image([f.directory(1, {b"a": 2}), f.regular(2, forge.chunk(b"content"))])


def test_a_target_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / ".hidden").write_bytes(b"mine")
    with pytest.raises(InvalidArgumentError, match="not empty"):
        extract(small_image(tmp_path), target)
    assert trees.on_disk(target).keys() == {b".", b".hidden"}


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    reference = small_image(tmp_path)
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for target in ("file", "file/below", "missing/below", "dangling"):
        with pytest.raises(InvalidArgumentError):
            extract(reference, tmp_path / target)
    with pytest.raises(StorageError, match="File name too long"):
        extract(reference, tmp_path / ("n" * 300))
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


@needs_root
def test_a_target_that_may_not_be_written(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    reference = forge.image([f.directory(1, {b"a": 2}), f.inode(2, Fifo())])
    trees.let_everybody_in(forge.path)
    target = tmp_path / "out"
    target.mkdir(mode=0o755)
    tmp_path.chmod(0o755)

    def run(where: Path) -> str:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with pytest.raises(StorageError) as caught:
            extract(reference, where)
        return str(caught.value)

    assert "Permission denied" in limited(lambda: run(target))
    assert "Permission denied" in limited(lambda: run(tmp_path / "other"))
    assert list(target.iterdir()) == []


def test_a_directory_that_is_moved_away_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody moves the directory that is being filled: ``..`` must not lead to where it was moved to."""
    forge = Forge(tmp_path / "layout")
    reference = forge.image(
        [
            f.directory(1, {b"a": 2, b"z": 5}),
            f.directory(2, {b"b": 3, b"c": 5}),
            f.directory(3, {b"file": 4}),
            f.regular(4, forge.chunk(b"content")),
            f.inode(5, Fifo()),
        ]
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def move(entries: int, written: int) -> None:
        if written and not (elsewhere / "b").exists():
            (tmp_path / "out" / "a" / "b").rename(elsewhere / "b")

    with pytest.raises(UnsafePathError, match="moved"):
        extract(reference, tmp_path / "out", progress=move)
    assert trees.on_disk(elsewhere).keys() == {b".", b"b", b"b/file"}


@pytest.mark.parametrize("what", ["file", "directory", "fifo", "link", "twice"])
@pytest.mark.parametrize("plant", ["symlink", "hard link"])
def test_what_somebody_plants_meanwhile_is_not_written_through(tmp_path: Path, what: str, plant: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    forge = Forge(tmp_path / "layout")
    inodes: dict[str, Inode] = {
        "file": f.regular(2, forge.chunk(b"content"), permissions=0o777),
        "directory": f.directory(2, {b"below": 3}),
        "fifo": f.inode(2, Fifo()),
        "link": f.symlink(2, b"x"),
        "twice": f.regular(2, forge.chunk(b"content")),
    }
    names = {b"name": 2, b"other": 2} if what == "twice" else {b"name": 2}
    reference = forge.image([f.directory(1, names), inodes[what], f.inode(3, Fifo())])

    def planting(entries: int, written: int) -> None:
        name = tmp_path / "out" / "name"
        if not os.path.lexists(name):
            name.symlink_to(victim) if plant == "symlink" else os.link(victim, name)

    before = victim.stat()
    with pytest.raises(StorageError, match="name: File exists"):
        extract(reference, tmp_path / "out", progress=planting)
    assert victim.read_bytes() == b"precious"
    assert victim.stat().st_mode == before.st_mode


def test_what_failed_leaves_no_staging_directory(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    chunk = forge.chunk(b"content")
    reference = forge.image([f.directory(1, {b"a": 2, b"b": 2, b"c": 3}), f.regular(2, chunk), f.regular(3, chunk)])
    with open_image(reference) as image:
        real = Image.fetch
        calls = []

        def failing(self: Image, plan: object) -> bytes:
            calls.append(plan)
            if len(calls) > 1:
                raise StorageError("the disk is gone")
            return real(self, plan)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image, "fetch", failing)
            with pytest.raises(StorageError, match="c: the disk is gone"):
                extract(image, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b", "c"]


# ---- attributes


@needs_root
def test_attributes_do_not_undo_one_another(tmp_path: Path) -> None:
    """Owner, capabilities, set-id bits, ACLs, read-only modes and times, each as the image says."""
    forge = Forge(tmp_path / "layout")
    chunk = forge.chunk(b"content")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    second = 10**9
    inodes = [
        f.directory(1, {b"acl": 2, b"closed": 3, b"setid": 4, b"cap": 5, b"one": 6}, mtime_ns=11 * second),
        f.directory(
            2,
            {b"plain": 7, b"sub": 8},
            xattrs={b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL},
            permissions=0o750,
            mtime_ns=12 * second,
        ),
        f.directory(3, {b"file": 9, b"inner": 10, b"two": 6}, permissions=0, mtime_ns=13 * second),
        f.regular(4, chunk, permissions=0o6755, uid=1000, gid=1001, mtime_ns=14 * second),
        f.regular(5, chunk, uid=1000, xattrs={b"security.capability": capability}, mtime_ns=15 * second),
        f.regular(6, chunk, permissions=0o4711, uid=7, xattrs={b"trusted.t": b"x"}, mtime_ns=-16 * second + 1),
        f.regular(7, chunk, permissions=0o666, mtime_ns=1_700_000_000_987_654_321),
        f.directory(8, permissions=0o7777, mtime_ns=0),
        f.symlink(9, b"nowhere", uid=1000, gid=1001, xattrs={b"trusted.l": b"y"}, mtime_ns=17 * second),
        f.directory(10, permissions=0o555, mtime_ns=18 * second),
    ]
    reference = forge.image(inodes)
    # What the place where DIR is made hands down must not end up in the tree.
    tmp_path.joinpath("parent").mkdir()
    os.setxattr(tmp_path / "parent", "system.posix_acl_default", ACL)
    os.chmod(tmp_path / "parent", 0o2770)
    report = extract(reference, tmp_path / "parent" / "out")
    assert report.not_restored == {}
    with open_image(reference) as image:
        assert trees.on_disk(tmp_path / "parent" / "out", mtime=True) == trees.in_image(image, mtime=True)


@pytest.mark.parametrize("mtime_ns", [(1 << 63) - 1, -(1 << 63), 1, -1, 1_700_000_000_123_456_789])
def test_any_time_can_be_given_to_the_host(tmp_path: Path, mtime_ns: int) -> None:
    """File systems bring times into their range; those within it come back to the nanosecond."""
    inodes = [
        f.directory(1, {b"a": 2, b"l": 3}),
        f.inode(2, Fifo(), mtime_ns=mtime_ns),
        f.symlink(3, b"x", mtime_ns=mtime_ns),
    ]
    extract(Forge(tmp_path / "layout").image(inodes), tmp_path / "out")
    reference = tmp_path / "reference"
    reference.write_bytes(b"")
    os.utime(reference, ns=(mtime_ns, mtime_ns))
    expected = reference.stat().st_mtime_ns
    assert {os.lstat(tmp_path / "out" / name).st_mtime_ns for name in "al"} == {expected}
    if 0 <= mtime_ns < 1 << 62:
        assert expected == mtime_ns


@needs_root
def test_an_xattr_that_the_file_system_has_no_room_for_is_reported(tmp_path: Path) -> None:
    inodes = [f.directory(1, {b"a": 2}), f.directory(2, xattrs={b"user.large": b"x" * 70_000, b"user.small": b"y"})]
    report = extract(Forge(tmp_path / "layout").image(inodes), tmp_path / "out")
    assert report.not_restored == {"user.* xattrs": 1}
    assert os.getxattr(tmp_path / "out" / "a", "user.small") == b"y"


@needs_root
def test_xattrs_of_namespaces_that_do_not_exist_are_reported(tmp_path: Path) -> None:
    inodes = [f.directory(1, {b"a": 2}), f.inode(2, Fifo(), xattrs={b"nonsense": b"x", b"os2.x": b"y", b"user.": b"z"})]
    report = extract(Forge(tmp_path / "layout").image(inodes), tmp_path / "out")
    assert report.not_restored == {"other xattrs": 2, "user.* xattrs": 1}


@needs_root
def test_device_numbers_to_their_limits(tmp_path: Path) -> None:
    numbers = [(0, 0), (4095, 1048575), (259, 1048575), (4095, 0)]
    inodes: list[Inode] = [f.directory(1, {b"%d" % n: n + 2 for n in range(8)})]
    for number, (major, minor) in enumerate(numbers):
        inodes += [
            f.inode(2 * number + 2, CharDevice(major, minor)),
            f.inode(2 * number + 3, BlockDevice(major, minor)),
        ]
    reference = Forge(tmp_path / "layout").image(inodes)
    extract(reference, tmp_path / "out")
    with open_image(reference) as image:
        assert trees.on_disk(tmp_path / "out") == trees.in_image(image)
    status = os.lstat(tmp_path / "out" / "2")
    assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (4095, 1048575)


# ---- without root


@needs_root
def test_without_root_what_could_not_be_restored_is_said(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    chunk = forge.chunk(b"content")
    mine = {"uid": NOBODY, "gid": NOBODY}
    inodes = [
        f.directory(1, {b"dev": 2, b"bin": 3, b"ro": 4, b"s": 5}, **mine),
        f.directory(2, {b"null": 6, b"sda": 7, b"fifo": 8, b"sock": 9}, **mine),
        f.directory(3, {b"su": 10, b"su2": 10, b"own": 11, b"link": 12}, uid=0, gid=0, permissions=0o2755),
        f.directory(4, {b"inner": 13, b"su3": 10}, permissions=0o555, **mine),
        f.regular(5, chunk, xattrs={b"trusted.t": b"x", b"user.u": b"y"}, **mine),
        f.inode(6, CharDevice(1, 3)),
        f.inode(7, BlockDevice(8, 0)),
        f.inode(8, Fifo(), **mine),
        f.inode(9, Socket(), **mine),
        f.regular(10, chunk, permissions=0o6755, uid=0, gid=0),
        f.regular(11, chunk, permissions=0o4755, **mine),
        f.symlink(12, b"su", uid=0),
        f.directory(13, {b"deep": 14}, permissions=0, **mine),
        f.regular(14, chunk, permissions=0o400, mtime_ns=5, **mine),
    ]
    reference = forge.image(inodes)
    target = tmp_path / "open" / "out"
    target.parent.mkdir()
    report = as_nobody(forge, target, reference)
    assert report.not_restored == {
        "devices": 2,
        "owners": 3,  # bin, su, link
        "set-id bits": 1,
        "trusted.* xattrs": 1,
    }
    found = trees.on_disk(target)
    with open_image(reference) as image:
        wanted = trees.in_image(image)
    for path in (b"dev/null", b"dev/sda"):
        del wanted[path]
    for node in wanted.values():
        node.update(uid=NOBODY, gid=NOBODY)
    del wanted[b"s"]["xattrs"][b"trusted.t"]
    for name in (b"bin/su", b"bin/su2", b"ro/su3"):
        wanted[name]["permissions"] = 0o755  # somebody else's program must not run as whoever extracted it
    found[b"bin"]["permissions"] |= 0o2000  # the kernel drops it from directories of groups one is not in
    wanted[b"bin"]["permissions"] |= 0o2000
    assert found == wanted
    assert (target / "ro" / "inner" / "deep").stat().st_mtime_ns == 5
    assert stat.S_IMODE((target / "bin" / "own").stat().st_mode) == 0o4755


@needs_root
def test_without_root_names_in_directories_that_let_nobody_in(tmp_path: Path) -> None:
    """The first name of a hard link is in a directory that is finished and closed when the second one is made."""
    forge = Forge(tmp_path / "layout")
    mine = {"uid": NOBODY, "gid": NOBODY}
    inodes = [
        f.directory(1, {b"a": 2, b"z": 3}, permissions=0o711, **mine),
        f.directory(2, {b"first": 4}, permissions=0, **mine),
        f.directory(3, {b"second": 4}, permissions=0o111, **mine),
        f.regular(4, forge.chunk(b"content"), permissions=0, **mine),
    ]
    reference = forge.image(inodes)
    target = tmp_path / "open" / "out"
    target.parent.mkdir()
    assert as_nobody(forge, target, reference).not_restored == {}
    with open_image(reference) as image:
        assert trees.on_disk(target) == trees.in_image(image)


@needs_root
def test_without_root_every_vector_can_be_extracted(vectors: Path, tmp_path: Path) -> None:
    target = tmp_path / "open" / "out"
    target.parent.mkdir()
    trees.let_everybody_in(target.parent)
    target.parent.chmod(0o777)
    layout = tmp_path / "open" / "v3"  # the checkout need not be where everybody may go
    shutil.copytree(vectors / "v3", layout)

    def run() -> ExtractReport:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return extract(f"{layout}:base", target)

    report = limited(run)
    assert report.not_restored["devices"] == 3
    assert report.not_restored["set-id bits"] == 1
    assert report.not_restored["security.* xattrs"] == 1
    assert report.not_restored["trusted.* xattrs"] == 1
    with open_image(f"{vectors / 'v3'}:base") as image:
        wanted = trees.in_image(image)
    ignored = ("permissions", "uid", "gid", "xattrs")
    missing = {b"dev/null", b"dev/sdb1", b"dev/big"}
    shown = {path: node for path, node in wanted.items() if path not in missing}
    assert trees.without(trees.on_disk(target), *ignored) == trees.without(shown, *ignored)


@needs_root
def test_without_the_capability_for_devices(tmp_path: Path) -> None:
    """Root in a container: owners can be given, devices cannot be made."""
    forge = Forge(tmp_path / "layout")
    reference = forge.image(
        [f.directory(1, {b"null": 2, b"same": 2, b"file": 3}), f.inode(2, CharDevice(1, 3)), f.regular(3, uid=1000)]
    )

    def run() -> ExtractReport:
        assert ctypes.CDLL(None, use_errno=True).prctl(24, 27, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_MKNOD
        drop_capability(27)
        return extract(reference, tmp_path / "out")

    report = limited(run)
    assert report.not_restored == {"devices": 2}
    assert os.listdir(tmp_path / "out") == ["file"]
    assert (tmp_path / "out" / "file").stat().st_uid == 1000


def drop_capability(number: int) -> None:
    """Take a capability out of this process's effective and permitted sets (capset(2), version 3)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    word, bit = divmod(number, 32)
    data[3 * word] &= ~(1 << bit)
    data[3 * word + 1] &= ~(1 << bit)
    assert libc.capset(header, data) == 0


def test_the_error_tree_is_all_that_comes_out(tmp_path: Path) -> None:
    """A progress callback that fails is the caller's own error and comes back as it is."""

    def fail(entries: int, written: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        extract(small_image(tmp_path), tmp_path / "out", progress=fail)
    assert not issubclass(KeyError, PuzzlefsError)
