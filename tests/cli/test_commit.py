"""``puzzlefs commit``: the new image shows what the mount showed, whatever was done to it."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rootfs import DebootstrapUnavailableError, cache_dir, debootstrapped_tree, os_release
from support.edits import Editor
from support.layouts import copy_layout
from support.writable import (
    below,
    differences,
    digest_of,
    kill_all,
    mounts_at,
    needs_root,
    puzzlefs,
    read_only,
    writable,
)

pytestmark = [pytest.mark.cli, pytest.mark.mount, needs_root]

_CACHE = cache_dir()  # here: tests have a cache of their own

_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep
_MANY = 300


def _acl(user: int) -> bytes:
    """rwx for the owner and for one more user, r-x for the group, --- for others (posix_acl_xattr(5))."""
    nobody = 0xFFFFFFFF
    entries = [(1, 7, nobody), (2, 7, user), (4, 5, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with something to change in every way."""
    root = tmp_path_factory.mktemp("commit") / "source"
    for name in ("etc", "bin", "full/deep/deeper", "many", "same", "moved/inner", "attributes", "file-to-be"):
        (root / name).mkdir(parents=True)
    for name in ("one", "two", "three"):
        (root / "full" / name).write_text(name)
        (root / "full" / "deep" / name).write_text(name * 1000)
    (root / "full" / "deep" / "deeper" / "bottom").write_text("x")
    for number in range(_MANY):
        (root / "many" / f"file-{number}").write_text(str(number))
    (root / "same" / "a").write_text("three names")
    for name in ("b", "c"):
        os.link(root / "same" / "a", root / "same" / name)
    (root / "moved" / "inner" / "file").write_text("moved")
    (root / "moved" / "link").symlink_to("inner/file")
    (root / "attributes" / "file").write_text("attributes")
    os.setxattr(root / "attributes" / "file", "user.kept", b"kept")
    os.setxattr(root / "attributes" / "file", "user.removed", b"removed")
    os.setxattr(root / "attributes", "system.posix_acl_default", _acl(1000))
    (root / "bin" / "ping").write_text("#!/bin/sh\n")
    (root / "bin" / "ping").chmod(0o755)
    os.setxattr(root / "bin" / "ping", "security.capability", _CAPABILITY)
    (root / "bin" / "su").write_text("#!/bin/sh\n")
    (root / "bin" / "su").chmod(0o4755)
    (root / "directory-to-be").write_text("a file")
    (root / "link-to-be").write_text("a file")
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(root / "fifo")
    (root / "big").write_bytes(os.urandom(1_000_000))
    return root


@pytest.fixture(scope="module", params=["3", "3 -c", "1"])
def image(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tree as an image, by format version and compression."""
    version, *options = request.param.split()
    image = f"{tmp_path_factory.mktemp('images')}/images:base"
    digest_of(puzzlefs("build", "--timestamps", "keep", "--format-version", version, *options, source, image))
    return image


def _tag(image: str, tag: str) -> str:
    return f"{image.rpartition(':')[0]}:{tag}"


def _nothing(root: Path) -> None:
    assert root.is_dir()


def _create(root: Path) -> None:
    (root / "etc" / "new").write_text("new")
    (root / "new" / "directory" / "empty").mkdir(parents=True)
    (root / "new" / "directory" / "file").write_bytes(os.urandom(300_000))
    (root / "new" / "link").symlink_to("nowhere")
    os.mkfifo(root / "new" / "fifo", 0o640)
    os.mknod(root / "new" / "device", 0o600 | stat.S_IFBLK, os.makedev(7, 300))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "new" / "socket"))
    (root / os.fsdecode(b"odd \xff\n,name")).write_text("odd")


def _delete(root: Path) -> None:
    subprocess.run(["rm", "-rf", root / "full", root / "many" / "file-7", root / "fifo", root / "null"], check=True)
    assert not (root / "full").exists()


def _delete_and_make_again(root: Path) -> None:
    """Makes an opaque directory: nothing of the old one may come through."""
    shutil.rmtree(root / "full")
    (root / "full" / "deep").mkdir(parents=True)
    (root / "full" / "deep" / "fresh").write_text("fresh")
    shutil.rmtree(root / "many")
    (root / "many").mkdir()


def _change_kinds(root: Path) -> None:
    (root / "directory-to-be").unlink()
    (root / "directory-to-be").mkdir()
    (root / "directory-to-be" / "inside").write_text("x")
    (root / "file-to-be").rmdir()
    (root / "file-to-be").write_text("a file now")
    (root / "link-to-be").unlink()
    (root / "link-to-be").symlink_to("etc")
    shutil.rmtree(root / "moved")
    (root / "moved").symlink_to("full")


def _change_kinds_and_back(root: Path) -> None:
    shutil.rmtree(root / "full" / "deep")
    (root / "full" / "deep").write_text("a file for a while")
    (root / "full" / "deep").unlink()
    (root / "full" / "deep").mkdir()
    (root / "directory-to-be").unlink()
    (root / "directory-to-be").mkdir()
    (root / "directory-to-be").rmdir()
    (root / "directory-to-be").write_text("a file again")


def _link(root: Path) -> None:
    (root / "same" / "b").write_text("cut off from the others")
    os.link(root / "same" / "c", root / "etc" / "c")
    (root / "etc" / "first").write_text("two names")
    os.link(root / "etc" / "first", root / "bin" / "second")
    os.link(root / "big", root / "etc" / "big")


def _move(root: Path) -> None:
    subprocess.run(["mv", root / "moved", root / "etc" / "moved"], check=True)
    subprocess.run(["mv", root / "many", root / "many-more"], check=True)
    (root / "full" / "one").rename(root / "full" / "ONE")
    (root / "big").rename(root / "bigger")
    (root / "full" / "two").rename(root / "full" / "three")


def _change_attributes(root: Path) -> None:
    (root / "full").chmod(0o700)
    os.chown(root / "full" / "deep", 1234, 5678)
    os.chown(root / "big", 1, 2)
    os.setxattr(root / "attributes" / "file", "user.added", b"added" * 100)
    os.removexattr(root / "attributes" / "file", "user.removed")
    os.setxattr(root / "full" / "one", "trusted.mine", b"trusted")
    os.setxattr(root / "full" / "two", "security.capability", _CAPABILITY)
    os.setxattr(root / "etc", "system.posix_acl_access", _acl(1000))
    os.setxattr(root / "many" / "file-1", "system.posix_acl_access", _acl(2000))
    (root / "attributes" / "inherits").write_text("the default ACL")
    subprocess.run(["chattr", "+i", root / "attributes" / "file"], check=False)  # a matter of the mount
    os.utime(root / "bin" / "ping", ns=(1, 1_234_567_890_123_456_789))
    os.utime(root / "moved" / "link", ns=(1, 987_654_321), follow_symlinks=False)
    root.chmod(0o711)


def _edit(root: Path) -> None:
    with open(root / "big", "r+b") as file:
        file.seek(500_000)
        file.write(b"in the middle")
    with open(root / "many" / "file-2", "ab") as file:
        file.write(b" and more")
    os.truncate(root / "full" / "deep" / "one", 7)
    with open(root / "sparse", "wb") as file:
        file.truncate(3_000_000)
        file.seek(2_000_000)
        file.write(b"after the hole")


def _everything(root: Path) -> None:
    for change in (_create, _edit, _change_attributes, _link, _change_kinds_and_back, _move):
        change(root)


_CHANGES: list[Callable[[Path], None]] = [
    _create,
    _delete,
    _delete_and_make_again,
    _change_kinds,
    _change_kinds_and_back,
    _link,
    _move,
    _change_attributes,
    _edit,
]


@pytest.mark.parametrize("change", [*_CHANGES, _nothing], ids=lambda change: change.__name__.strip("_"))
def test_the_new_image_shows_what_the_mount_showed(
    image: str, source: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    with writable(image, tmp_path / "mnt") as mount:
        assert differences(source, mount.path) == []
        change(mount.path)
        assert (differences(source, mount.path) == []) == (change is _nothing)
        digest = digest_of(puzzlefs("commit", mount.path, "new"))
        with read_only(_tag(image, "new"), tmp_path / "new") as shown:
            assert differences(mount.path, shown) == []
            assert not any(
                name.startswith("trusted.overlay")
                for path in shown.iterdir()
                for name in os.listxattr(path, follow_symlinks=False)
            )
        assert len(mounts_at(mount.path)) == 2
    assert puzzlefs("mount", "-d", digest, _tag(image, "new"), tmp_path / "new").returncode == 0
    puzzlefs("umount", tmp_path / "new")


def test_commit_after_commit(image: str, source: Path, tmp_path: Path) -> None:
    """Generations: what was committed is mounted, changed and committed; and one mount is committed twice."""
    tag = "base"
    for number, change in enumerate([_everything, _delete_everything, _create]):
        with writable(_tag(image, tag), tmp_path / "mnt", how=tmp_path / f"upper-{number}") as mount:
            change(mount.path)
            digest_of(puzzlefs("commit", mount.path, "early"))
            (mount.path / f"late-{number}").write_text("late")
            tag = f"generation-{number}"
            digest_of(puzzlefs("commit", mount.path, tag))
            with read_only(_tag(image, tag), tmp_path / "new") as shown:
                assert differences(mount.path, shown) == []
            with read_only(_tag(image, "early"), tmp_path / "new") as shown:
                found = differences(mount.path, shown, mtime=False)
                assert len(found) == 1
                assert f"late-{number}" in found[0]


def _delete_everything(root: Path) -> None:
    subprocess.run(["rm", "-rf", *root.iterdir()], check=True)
    assert os.listdir(root) == []
    (root / "etc").mkdir()


def test_a_persistent_directory_in_the_next_mount(image: str, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    with writable(image, tmp_path / "mnt", how=upper) as mount:
        _everything(mount.path)
    with writable(image, tmp_path / "mnt", how=upper) as mount:
        _delete_and_make_again_what_is_left(mount.path)
        digest_of(puzzlefs("commit", mount.path, "new"))
        with read_only(_tag(image, "new"), tmp_path / "new") as shown:
            assert differences(mount.path, shown) == []


def _delete_and_make_again_what_is_left(root: Path) -> None:
    shutil.rmtree(root / "etc")
    (root / "etc").mkdir()
    (root / "bin" / "more").write_text("more")


def test_the_manifest_that_is_mounted_counts(image: str, source: Path, tmp_path: Path) -> None:
    """The tag has moved, or is gone: the new image is on top of what is mounted all the same."""
    layout = tmp_path / "images"
    copy_layout(image.rpartition(":")[0], layout)
    other = tmp_path / "other"
    other.mkdir()
    (other / "other").write_text("other")
    version = json.loads((layout / "oci-layout").read_bytes())["imageLayoutVersion"]
    with writable(f"{layout}:base", tmp_path / "mnt") as mount:
        (mount.path / "etc" / "new").write_text("new")
        puzzlefs("build", "--format-version", "3" if version == "1.0.0" else "1", other, f"{layout}:base")
        digest_of(puzzlefs("commit", mount.path, "new"))
        with read_only(f"{layout}:new", tmp_path / "new") as shown:
            assert differences(mount.path, shown) == []
            assert differences(source, shown, mtime=False) == ["etc/new: name: only in B"]
        index = json.loads((layout / "index.json").read_bytes())
        index["manifests"] = []
        (layout / "index.json").write_text(json.dumps(index))
        digest_of(puzzlefs("commit", mount.path, "newer"))


def test_only_what_was_written_is_stored(image: str, tmp_path: Path) -> None:
    with writable(image, tmp_path / "mnt") as mount:
        (mount.path / "etc" / "new").write_bytes(os.urandom(10_000))
        report = json.loads(puzzlefs("commit", "--json", mount.path, "new").stdout)
    assert report["bytes_read"] == 10_000
    assert report["new_chunks"] == 1


def test_from_where_one_is_and_through_a_link(image: str, tmp_path: Path) -> None:
    with writable(image, tmp_path / "mnt", how=tmp_path / "upper") as mount:
        (mount.path / "new").write_text("new")
        (tmp_path / "link").symlink_to("mnt")
        digests = {
            digest_of(puzzlefs("commit", "link/../mnt", "a", cwd=tmp_path)),
            digest_of(puzzlefs("commit", tmp_path / "link", "b")),
            digest_of(puzzlefs("commit", ".", "c", cwd=mount.path)),
        }
        assert len(digests) == 1


def _refused(code: int, *words: str | Path) -> str:
    result = puzzlefs("commit", *words, check=False)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_what_is_refused(image: str, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    assert "is not a mount point" in _refused(3, tmp_path / "nothing", "new")
    assert "proc" in _refused(7, "/proc", "new")
    with read_only(image, tmp_path / "ro") as shown:
        assert "--writable" in _refused(7, shown, "new")
    with writable(image, tmp_path / "mnt") as mount:
        assert "not a valid tag" in _refused(2, mount.path, "no tag")


def test_an_upper_directory_that_was_moved(image: str, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    with writable(image, tmp_path / "mnt", how=upper) as mount:
        (mount.path / "new").write_text("new")
        upper.rename(tmp_path / "elsewhere")
        assert str(upper) in _refused(3, mount.path, "new")
        upper.mkdir()
        assert str(upper) in _refused(3, mount.path, "new")
        upper.rmdir()
        (tmp_path / "elsewhere").rename(upper)
        digest_of(puzzlefs("commit", mount.path, "new"))


def test_after_the_server_died(image: str, tmp_path: Path) -> None:
    """What was written is not lost with it."""
    with writable(image, tmp_path / "mnt") as mount:
        (mount.path / "etc" / "new").write_text("new")
        kill_all(mount.path)
        digest_of(puzzlefs("commit", mount.path, "new"))
    with read_only(_tag(image, "new"), tmp_path / "new") as shown:
        assert (shown / "etc" / "new").read_text() == "new"


@pytest.mark.parametrize("is_persistent", [False, True])
def test_what_cannot_be_committed_is_named(image: str, tmp_path: Path, is_persistent: bool) -> None:
    upper = tmp_path / "upper" if is_persistent else tmp_path / "mnt" / "upper"
    with writable(image, tmp_path / "mnt", how=upper if is_persistent else "-w") as mount:
        (mount.path / "etc" / "new").write_text("new")
        mark = f"setfattr -n trusted.overlay.metacopy -v y {upper}/etc/new"
        assert below(mount.path, mark).returncode == 0
        message = _refused(7, mount.path, "new")
        assert f"{upper}/etc/new: " in message
        assert "/proc/" not in message


def test_a_layout_that_was_moved(image: str, tmp_path: Path) -> None:
    layout = tmp_path / "images"
    copy_layout(image.rpartition(":")[0], layout)
    with writable(f"{layout}:base", tmp_path / "mnt") as mount:
        layout.rename(tmp_path / "elsewhere")
        assert str(layout) in _refused(3, mount.path, "new")
        (tmp_path / "elsewhere").rename(layout)


def _mounts_below(path: Path) -> list[str]:
    """What the kernel says of mounts in a directory; other tests mount elsewhere at the same time."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [line.split(" ", 3)[3] for line in lines if line.split(" ")[4].startswith(f"{path}/")]


def test_mounts_of_others_are_left_alone(image: str, tmp_path: Path) -> None:
    """The private view of what is below the overlay must not reach anybody else."""
    with writable(image, tmp_path / "mnt") as mount:
        (mount.path / "etc" / "sub").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount.path / "etc" / "sub"], check=True)
        (mount.path / "etc" / "sub" / "in-tmpfs").write_text("x")
        before = _mounts_below(tmp_path)
        digest_of(puzzlefs("commit", mount.path, "new"))
        assert _mounts_below(tmp_path) == before
        subprocess.run(["umount", mount.path / "etc" / "sub"], check=True)
        with read_only(_tag(image, "new"), tmp_path / "new") as shown:
            assert os.listdir(shown / "etc" / "sub") == []


# ---- real programs in a real root file system


def _cached_rootfs() -> Path:
    release = os_release(Path("/etc/os-release").read_text(encoding="utf-8", errors="replace"))
    tree = _CACHE / f"rootfs-{release.get('VERSION_CODENAME', '')}-{platform.machine()}"
    if not tree.is_dir() and os.environ.get("CI"):
        try:
            return debootstrapped_tree(_CACHE)[0]
        except DebootstrapUnavailableError as error:
            pytest.skip(f"no root file system can be made here: {error}")
    if not tree.is_dir():
        pytest.skip(f"there is no root file system at {tree}; make demo makes one")
    return tree


def _package(directory: Path) -> Path:
    """A package of our own: files, a hard link, a directory, and a script that runs when it is installed."""
    root = directory / "package"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: puzzlefs-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
        "Description: for a test\n"
    )
    script = root / "DEBIAN" / "postinst"
    script.write_text("#!/bin/sh\nset -e\necho installed > /etc/puzzlefs-test\nchown daemon /usr/lib/puzzlefs-test\n")
    script.chmod(0o755)
    (root / "usr" / "lib" / "puzzlefs-test").mkdir(parents=True)
    (root / "usr" / "lib" / "puzzlefs-test" / "data").write_bytes(os.urandom(100_000))
    (root / "usr" / "bin").mkdir()
    (root / "usr" / "bin" / "puzzlefs-test").write_text("#!/bin/sh\necho it runs\n")
    (root / "usr" / "bin" / "puzzlefs-test").chmod(0o755)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, directory / "test.deb"], check=True, timeout=60)
    return directory / "test.deb"


def test_real_programs(tmp_path: Path) -> None:
    tree = _cached_rootfs()
    image = f"{tmp_path}/images:debian"
    digest_of(puzzlefs("build", "--timestamps", "keep", "--no-cache", "-q", tree, image))
    with writable(image, tmp_path / "mnt", "-o", "dev,suid") as mount:

        def run(*command: str) -> str:
            done = subprocess.run(
                ["chroot", mount.path, *command], capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        shutil.copy(_package(tmp_path), mount.path / "tmp" / "test.deb")
        run("dpkg", "-i", "/tmp/test.deb")
        run("rm", "/tmp/test.deb")
        run("useradd", "-m", "-s", "/bin/bash", "somebody")
        run("sh", "-c", "echo somebody:secret | chpasswd")
        run("rm", "-rf", "/usr/share/doc", "/var/cache/apt")
        run("mkdir", "-p", "/var/cache/apt/archives/partial")
        run("mv", "/usr/share/zoneinfo", "/usr/share/zones")
        run("cp", "-a", "/etc", "/etc.old")
        run("chmod", "-R", "go-rx", "/usr/share/common-licenses")
        run("find", "/etc/cron.daily", "-type", "f", "-delete")
        run("ldconfig")
        run("su", "somebody", "-c", "ln ~/.bashrc ~/linked && echo 'alias x=y' >> ~/linked")
        assert run("puzzlefs-test") == "it runs\n"
        started = time.monotonic()
        report = json.loads(puzzlefs("commit", "--json", mount.path, "changed").stdout)
        assert time.monotonic() - started < 30
        with read_only(f"{tmp_path}/images:changed", tmp_path / "new") as shown:
            assert differences(mount.path, shown) == []
            done = subprocess.run(
                ["chroot", shown, "sh", "-c", "id somebody && dpkg -s puzzlefs-test && puzzlefs-test"],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            assert "install ok installed" in done.stdout
        assert report["new_chunks"] < 1000


# ---- whatever programs do


@pytest.mark.parametrize("seed", range(4))
def test_generations_of_random_edits(tmp_path: Path, seed: int) -> None:
    """Edits in mount after mount; each commit shows what the mount shows, and so does its upper directory over it."""
    rnd = random.Random(seed)
    source = tmp_path / "source"
    source.mkdir()
    Editor(source, rnd).run(80)
    layout = tmp_path / "images"
    version = rnd.choice(["1", "2", "3"])
    digest_of(puzzlefs("build", "--timestamps", "keep", "--format-version", version, source, f"{layout}:0"))
    for generation in range(3):
        upper, base, tag = tmp_path / f"upper-{generation}", f"{layout}:{generation}", f"{layout}:{generation + 1}"
        for count in (20, 10):  # the second time over what the first left
            with writable(base, tmp_path / "mnt", how=upper) as mount:
                Editor(mount.path, rnd).run(count)
                digest_of(puzzlefs("commit", mount.path, str(generation + 1)))
                with read_only(tag, tmp_path / "new") as shown:
                    assert differences(mount.path, shown) == []
        with writable(tag, tmp_path / "mnt", how=upper) as mount, read_only(tag, tmp_path / "new") as shown:
            assert differences(mount.path, shown) == []
