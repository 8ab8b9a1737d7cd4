"""Writable mounts, from ``puzzlefs mount`` to ``puzzlefs umount``: what is where, and what is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import read_fifo
from support.layouts import copy_layout
from support.writable import below, digest_of, kill_all, mounts_at, needs_root, puzzlefs, wait_for_end, writable

pytestmark = [pytest.mark.mount, needs_root]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small image, whose root directory has attributes of its own."""
    base = tmp_path_factory.mktemp("writable")
    source = base / "source"
    (source / "etc").mkdir(parents=True)
    (source / "ro").mkdir()  # a name that a mount uses below the overlay
    (source / "ro" / "inside").write_text("of the image")
    (source / "etc" / "hostname").write_text("image\n")
    (source / "suid").write_text("#!/bin/sh\n")
    (source / "suid").chmod(0o4755)
    os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chown(source, 7, 8)
    source.chmod(0o751)
    os.setxattr(source, "user.colour", b"blue")
    digest_of(puzzlefs("build", "--timestamps", "keep", source, f"{base}/images:t"))
    return f"{base}/images:t"


def _shown_root(path: Path) -> tuple[int, int, int, int, bytes]:
    status = path.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o7777, status.st_mtime_ns, os.getxattr(path, "user.colour")


def test_what_is_written_is_there_until_umount(image: str, tmp_path: Path, engine: str) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    (path / "hidden").write_text("was here before")
    with writable(image, path, "--engine", engine) as mount:
        assert sorted(kind for kind, _ in mounts_at(path)) == ["fuse.puzzlefs", "overlay"]
        assert sorted(os.listdir(path)) == ["etc", "null", "ro", "suid"]
        assert (path / "ro" / "inside").read_text() == "of the image"
        assert _shown_root(path) == (7, 8, 0o751, *_shown_root(Path(image.partition(":")[0]).parent / "source")[3:])
        (path / "etc" / "hostname").write_text("mine\n")
        (path / "new").write_text("new")
        assert (path / "etc" / "hostname").read_text() == "mine\n"
        pid = mount.pid
        puzzlefs("umount", path)
        assert mounts_at(path) == []
        assert os.listdir(path) == ["hidden"]
        wait_for_end(pid)
    with writable(image, path, "--engine", engine):
        assert (path / "etc" / "hostname").read_text() == "image\n"
        assert not (path / "new").exists()
    assert (path / "hidden").read_text() == "was here before"


def test_as_the_template_of_lxc_does(image: str, tmp_path: Path) -> None:
    """Mount, write, unmount; mount again from a hook, with ``..`` in the path; unmount."""
    container = tmp_path / "container"
    rootfs, upper = container / "rootfs", container / "overlay"
    rootfs.mkdir(parents=True)
    (container / "hooks").mkdir()
    puzzlefs("mount", "--persist", upper, image, rootfs)
    (rootfs / "etc" / "hostname").write_text("container\n")
    puzzlefs("umount", rootfs)
    assert mounts_at(container) == []
    assert os.listdir(rootfs) == []
    assert (upper / "etc" / "hostname").read_text() == "container\n"

    crooked = container / "hooks" / ".." / "rootfs"
    puzzlefs("mount", "--persist", container / "hooks" / ".." / "overlay", image, crooked)
    assert (rootfs / "etc" / "hostname").read_text() == "container\n"
    puzzlefs("umount", rootfs)
    assert mounts_at(container) == []

    puzzlefs("mount", "--persist", "overlay", image, "rootfs", cwd=container)
    assert (rootfs / "etc" / "hostname").read_text() == "container\n"
    puzzlefs("umount", "hooks/../rootfs", cwd=container)
    assert mounts_at(container) == []
    assert (upper / "etc" / "hostname").read_text() == "container\n"


def test_attributes_of_the_root_persist(image: str, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir(mode=0o700)
    with writable(image, tmp_path / "mnt", how=upper) as mount:
        assert _shown_root(mount.path)[:3] == (7, 8, 0o751)
        mount.path.chmod(0o700)
    assert os.listdir(upper) == []
    with writable(image, tmp_path / "mnt", how=upper) as mount:
        assert stat.S_IMODE(mount.path.stat().st_mode) == 0o700


def test_a_persistent_directory_over_another_image(image: str, tmp_path: Path) -> None:
    """The kernel notes in an upper directory which lower files it comes from; other files have their numbers then."""
    names = [f"file-{number}" for number in range(20)]
    for tag, prefix in (("one", "a"), ("two", "b")):
        source = tmp_path / tag
        (source / "dir").mkdir(parents=True)
        for name in names:
            (source / "dir" / f"{prefix}-{name}").write_text(f"{prefix} {name}")
            (source / f"{prefix}-{name}").symlink_to("target")
        puzzlefs("build", source, f"{tmp_path}/images:{tag}")
    upper, path = tmp_path / "upper", tmp_path / "mnt"
    with writable(f"{tmp_path}/images:one", path, how=upper):
        for name in names:
            with open(path / "dir" / f"a-{name}", "a") as file:
                file.write(" and more")
            os.chown(path / f"a-{name}", 1, 1, follow_symlinks=False)
    for tag, prefixes in (("two", "ab"), ("one", "a"), ("two", "ab")):
        with writable(f"{tmp_path}/images:{tag}", path, how=upper):
            shown = {path / "dir" / f"{prefix}-{name}" for prefix in prefixes for name in names}
            assert set((path / "dir").iterdir()) == shown
            assert (
                len({(file.lstat().st_dev, file.lstat().st_ino) for file in shown | set(path.iterdir())})
                == len(shown) * 2 + 1
            )
            assert {file.read_text() for file in shown} == {
                f"{prefix} {name}{' and more' if prefix == 'a' else ''}" for prefix in prefixes for name in names
            }
            digest_of(puzzlefs("commit", path, "committed"))


@pytest.mark.parametrize("name", ["a,b", "c:d", "e\\f", 'g"h', "i j\n", "ü\udcff", "k,lowerdir=x,upperdir=y"])
def test_odd_names(image: str, tmp_path: Path, name: str) -> None:
    base = tmp_path / name
    base.mkdir()
    layout = base / "images"
    os.symlink(image.partition(":")[0], layout)
    with writable(f"{layout}:t", base / "mnt,:\\", how=base / "up,:\\") as mount:
        (mount.path / "etc" / "new").write_text("new")
        digest_of(puzzlefs("commit", mount.path, "odd"))
    assert (base / "up,:\\" / "etc" / "new").read_text() == "new"
    with writable(f"{layout}:odd", base / "mnt") as mount:
        assert (mount.path / "etc" / "new").read_text() == "new"


def test_a_path_that_is_longer_than_options_may_be(image: str, tmp_path: Path) -> None:
    base = tmp_path
    for _ in range(7):
        base = base / ("long" * 60)
    base.mkdir(parents=True)
    with writable(image, base / "mnt", how=base / "up") as mount:
        (mount.path / "new").write_text("new")
    assert (base / "up" / "new").read_text() == "new"


def test_a_mount_point_that_is_a_mount_itself(image: str, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    try:
        puzzlefs("mount", "-w", image, path)
        (path / "new").write_text("new")
        digest_of(puzzlefs("commit", path, "stacked"))
        puzzlefs("umount", path)
        assert [kind for kind, _ in mounts_at(path)] == ["tmpfs"]
        assert os.listdir(path) == []
    finally:
        while mounts_at(path):
            subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize(("options", "wanted"), [((), "nosuid,nodev"), (("-o", "dev,suid,noexec"), "noexec")])
def test_options_hold_for_what_a_user_sees(image: str, tmp_path: Path, options: tuple[str, ...], wanted: str) -> None:
    with writable(image, tmp_path / "mnt", *options) as mount:
        words = dict(mounts_at(mount.path))
        for kind in ("overlay", "fuse.puzzlefs"):
            assert wanted in words[kind]
            assert ("nodev" in words[kind]) == (not options)
        if options:
            assert (mount.path / "null").read_bytes() == b""
            with pytest.raises(PermissionError):
                subprocess.run([mount.path / "suid"], check=False)
        else:
            with pytest.raises(PermissionError):
                (mount.path / "null").read_bytes()


def test_programs_that_stay_on_one_file_system(image: str, tmp_path: Path) -> None:
    """They see what was written and what was not: all files report the same device."""
    with writable(image, tmp_path / "mnt") as mount:
        (mount.path / "etc" / "new").write_text("new")
        listed = subprocess.run(
            ["tar", "--one-file-system", "-cf", "-", "-C", mount.path, "."], check=True, capture_output=True
        )
        names = subprocess.run(["tar", "-tf", "-"], input=listed.stdout, check=True, capture_output=True).stdout
        assert {b"./etc/new", b"./etc/hostname"} <= set(names.splitlines())
        for command in (["find", mount.path, "-xdev"], ["du", "-a", "-x", mount.path]):
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            assert "etc/new" in found
            assert "etc/hostname" in found


def test_ready_is_told_when_it_can_be_written_to(image: str, tmp_path: Path, engine: str) -> None:
    fifo, path = tmp_path / "ready", tmp_path / "mnt"
    path.mkdir()
    os.mkfifo(fifo)
    command = ["mount", "-w", "-i", str(fifo), "--engine", engine, image, str(path)]
    puzzlefs(*command)
    try:
        (path / "new").write_text("new")
        assert read_fifo(fifo) == b"s"
    finally:
        puzzlefs("umount", path)


# ---- how it ends


def test_busy_is_left_whole(image: str, tmp_path: Path) -> None:
    with writable(image, tmp_path / "mnt") as mount, open(mount.path / "etc" / "hostname", "rb"):
        result = puzzlefs("umount", mount.path, check=False)
        assert result.returncode == 7
        assert "busy" in result.stderr
        assert len(mounts_at(mount.path)) == 2
        (mount.path / "still").write_text("writable")


def test_busy_because_of_a_mount_in_it(image: str, tmp_path: Path) -> None:
    with writable(image, tmp_path / "mnt") as mount:
        inside = mount.path / "etc"
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inside], check=True)
        try:
            result = puzzlefs("umount", mount.path, check=False)
            assert result.returncode == 7
            assert f"umount {inside};" in result.stderr
        finally:
            subprocess.run(["umount", inside], check=True)


def test_what_cannot_be_removed(image: str, tmp_path: Path) -> None:
    with writable(image, tmp_path / "mnt") as mount:
        stubborn = mount.path / "etc" / "stubborn"
        stubborn.write_text("x")
        left = mount.path / "upper" / "etc" / "stubborn"
        if below(mount.path, f"chattr +i {left}").returncode != 0:
            pytest.skip("the file system has no immutable files")
        result = puzzlefs("umount", mount.path, check=False)
        try:
            assert result.returncode == 7
            assert f"{mount.path}/upper cannot be removed: stubborn: " in result.stderr
            assert mounts_at(mount.path) == []
        finally:
            subprocess.run(["chattr", "-i", left], check=True)
        mount.log_file.write_text("")  # the server complained, too
        puzzlefs("umount", mount.path)
        assert os.listdir(mount.path) == []


@pytest.mark.parametrize("propagation", ["shared", "private", "slave"])
def test_however_mounts_propagate(image: str, tmp_path: Path, propagation: str) -> None:
    """With systemd everything is shared: a second view of the directory gets all mounts, and must lose them."""
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", one], check=True)
    try:
        subprocess.run(["mount", "--make-shared", one], check=True)
        subprocess.run(["mount", "--bind", one, two], check=True)
        subprocess.run(["mount", f"--make-{propagation}", one], check=True)
        with writable(image, one / "mnt") as mount:
            (mount.path / "new").write_text("new")
            before = mounts_at(tmp_path)
            digest_of(puzzlefs("commit", mount.path, "propagated"))
            assert mounts_at(tmp_path) == before
            assert (two / "mnt" / "new").exists() == (propagation == "shared")
        assert [kind for kind, _ in mounts_at(tmp_path)] == ["tmpfs", "tmpfs"]
        assert os.listdir(one / "mnt") == []
    finally:
        for path in (two, one):
            subprocess.run(["umount", "-R", "-l", path], check=False)


def test_umount_through_a_link(image: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    with writable(image, tmp_path / "mnt") as mount:
        link.symlink_to(mount.path)
        puzzlefs("umount", link)
        assert mounts_at(mount.path) == []
        assert os.listdir(mount.path) == []


def test_the_overlay_is_unmounted_by_hand(image: str, tmp_path: Path, engine: str) -> None:
    with writable(image, tmp_path / "mnt", "--engine", engine) as mount:
        subprocess.run(["umount", mount.path], check=True)
        wait_for_end(mount.pid)
        assert mounts_at(mount.path) == []
        assert os.listdir(mount.path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_server_is_told_to_end(image: str, tmp_path: Path, engine: str, number: int) -> None:
    upper = tmp_path / "upper"
    with writable(image, tmp_path / "mnt", "--engine", engine, how=upper) as mount:
        user = os.open(mount.path / "etc", os.O_PATH)
        try:
            (mount.path / "new").write_text("new")
            os.kill(mount.pid, number)
            wait_for_end(mount.pid)
            assert mounts_at(mount.path) == []
            assert os.listdir(mount.path) == []
        finally:
            os.close(user)
    assert (upper / "new").read_text() == "new"


@pytest.mark.parametrize("by_hand", [(), ("mnt",), ("mnt", "mnt/ro")])
def test_the_server_died(image: str, tmp_path: Path, by_hand: tuple[str, ...]) -> None:
    with writable(image, tmp_path / "mnt") as mount:
        kill_all(mount.path)
        for name in by_hand:
            subprocess.run(["umount", tmp_path / name], check=True)
        assert len(mounts_at(mount.path)) == 2 - len(by_hand)
        puzzlefs("umount", mount.path)
        assert mounts_at(mount.path) == []
        assert os.listdir(mount.path) == []
        again = puzzlefs("umount", mount.path, check=False)
        assert again.returncode == 3
        assert "is not a mount point" in again.stderr


def test_what_a_crash_left_is_in_nobodys_way(image: str, tmp_path: Path) -> None:
    path, upper = tmp_path / "mnt", tmp_path / "upper"
    for how in ("-w", upper):
        with writable(image, path, how=how) as mount:
            (path / "written").write_text("before the crash")
            kill_all(mount.path)
            subprocess.run(["umount", path], check=True)
            subprocess.run(["umount", path / "ro"], check=True)
            assert "puzzlefs.json" in os.listdir(path)
            with writable(image, path, how=how):
                assert (path / "written").exists() == (how == upper)
        assert os.listdir(path) == []


def test_users_that_remain_are_served(image: str, tmp_path: Path) -> None:
    """A container has the mount in a namespace of its own: it must go on there after it was unmounted here."""
    with writable(image, tmp_path / "mnt", how=tmp_path / "upper") as mount:
        script = f"echo here; read line; cat {mount.path}/etc/hostname; echo inside > {mount.path}/inside"
        command = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
            assert container.stdin is not None
            assert container.stdout is not None
            assert container.stdout.readline() == "here\n"
            puzzlefs("umount", mount.path)
            assert mounts_at(mount.path) == []
            for other in (mount.path, tmp_path / "other"):
                other.mkdir(exist_ok=True)
                refused = puzzlefs("mount", "-p", tmp_path / "upper", image, other, check=False)
                assert refused.returncode == 7
                assert str(other if other == mount.path else tmp_path / "upper") in refused.stderr
                assert mounts_at(other) == []
            assert container.communicate("go\n")[0] == "image\n"
        wait_for_end(mount.pid)
        assert os.listdir(mount.path) == []
        assert os.listdir(tmp_path / "other") == []
    assert (tmp_path / "upper" / "inside").read_text() == "inside\n"


# ---- what is refused


def _refused(code: int, *words: str | Path) -> str:
    result = puzzlefs("mount", *words, check=False)
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_in_the_foreground(image: str, tmp_path: Path) -> None:
    for option in (["-w"], ["-p", "upper"]):
        message = _refused(2, "-f", *option, image, tmp_path)
        assert "--foreground" in message
    assert os.listdir(tmp_path) == []


def test_options_that_make_no_sense(image: str, tmp_path: Path) -> None:
    assert "'ro'" in _refused(2, "-w", "-o", "dev,ro", image, tmp_path)
    assert "auto_unmount" in _refused(2, "-w", "-o", "auto_unmount", image, tmp_path)
    assert "--persist" in _refused(2, "-p", "", image, tmp_path)
    assert "no tag" in _refused(3, "-w", f"{image.partition(':')[0]}:nope", tmp_path)
    assert os.listdir(tmp_path) == []


def test_twice_at_the_same_place(image: str, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    with writable(image, tmp_path / "mnt", how=upper) as mount:
        (tmp_path / "other").mkdir()
        message = _refused(7, "-p", upper, image, tmp_path / "other")
        assert str(upper) in message
        assert str(mount.path) in message
        assert os.listdir(tmp_path / "other") == []
        message = _refused(7, "-w", image, mount.path)
        assert f"{mount.path} is a writable mount already" in message
        assert len(mounts_at(mount.path)) == 2


@pytest.mark.parametrize("name", ["ro", "upper", "work", "puzzlefs.json"])
def test_names_that_are_taken(image: str, tmp_path: Path, name: str) -> None:
    path = tmp_path / "mnt"
    (path / name).mkdir(parents=True)
    (path / name / "precious").write_text("x")
    assert str(path / name) in _refused(7, "-w", image, path)
    assert os.listdir(path) == [name]
    assert (path / name / "precious").exists()
    assert mounts_at(path) == []


def test_a_work_directory_that_is_somebody_elses(image: str, tmp_path: Path) -> None:
    path, upper, work = tmp_path / "mnt", tmp_path / "upper", tmp_path / "upper.work"
    path.mkdir()
    work.mkdir()
    (work / "precious").write_text("x")
    assert str(work) in _refused(7, "-p", upper, image, path)
    assert (work / "precious").exists()
    assert not upper.exists()
    assert os.listdir(path) == []


def test_an_upper_directory_that_is_a_mount_point(image: str, tmp_path: Path) -> None:
    path, upper = tmp_path / "mnt", tmp_path / "upper"
    path.mkdir()
    upper.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", upper], check=True)
    try:
        message = _refused(2, "-p", upper, image, path)
        assert f"--persist {upper / 'upper'}" in message
        with writable(image, path, how=upper / "upper") as mount:
            (mount.path / "new").write_text("new")
        assert sorted(os.listdir(upper)) == ["upper", "upper.work"]
    finally:
        subprocess.run(["umount", upper], check=True)


def test_directories_in_one_another(image: str, tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    path.mkdir()
    for upper in (path, path / "upper", tmp_path):
        assert str(path) in _refused(2, "-p", upper, image, path)
    layout = path / "images"
    copy_layout(image.partition(":")[0], layout)
    assert str(layout) in _refused(2, "-w", f"{layout}:t", path)
    assert os.listdir(path) == ["images"]


def test_a_file_system_that_cannot_hold_changes(image: str, tmp_path: Path, engine: str) -> None:
    """The overlay is refused when the image is mounted already: that is taken back."""
    with writable(image, tmp_path / "lower") as lower:
        (lower.path / "mnt").mkdir()
        message = _refused(7, "-w", "--engine", engine, image, lower.path / "mnt")
        assert "--persist" in message
        assert os.listdir(lower.path / "mnt") == []
        assert len(mounts_at(lower.path)) == 2
        fifo = tmp_path / "ready"
        os.mkfifo(fifo)
        with subprocess.Popen(["head", "-c1", fifo], stdout=subprocess.PIPE) as reader:
            _refused(7, "-w", "--engine", engine, "-i", fifo, image, lower.path / "mnt")
            assert reader.communicate(timeout=20)[0] == b"f"
        upper = lower.path / "upper"
        (tmp_path / "mnt").mkdir()
        assert str(upper) in _refused(7, "-p", upper, image, tmp_path / "mnt")
        assert not upper.exists()
        assert os.listdir(tmp_path / "mnt") == []


def test_a_mount_point_that_cannot_be_written_to(image: str, tmp_path: Path) -> None:
    with writable(image, tmp_path / "lower") as lower:
        (lower.path / "mnt").mkdir()
        subprocess.run(["mount", "-o", "remount,ro,bind", lower.path], check=True)
        message = _refused(7, "-w", image, lower.path / "mnt")
        assert "Read-only file system" in message
        assert str(lower.path / "mnt") in message


@contextlib.contextmanager
def _in_memory(path: Path, *options: str) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_mount_point_on_a_full_file_system(image: str, tmp_path: Path) -> None:
    with _in_memory(tmp_path / "mnt", "-o", "size=4k") as path:
        (path / "full").write_bytes(bytes(4096))
        assert f"{path} cannot be mounted writable: " in _refused(7, "-p", tmp_path / "upper", image, path)
        assert os.listdir(path) == ["full"]
    assert not (tmp_path / "upper").exists()


def test_attributes_of_the_root_that_the_host_cannot_store(tmp_path: Path) -> None:
    with _in_memory(tmp_path / "source") as source:
        os.setxattr(source, "user.large", bytes(20_000))
        (source / "file").write_text("x")
        puzzlefs("build", source, f"{tmp_path}/images:t")
    path = tmp_path / "mnt"
    path.mkdir()
    try:
        os.setxattr(path, "user.large", bytes(20_000))
    except OSError:
        pass
    else:
        pytest.skip("the file system of temporary files stores large attributes")
    message = _refused(7, "-w", f"{tmp_path}/images:t", path)
    assert f"{path / 'upper'} cannot have the attributes of the image's root directory: " in message
    assert os.listdir(path) == []
    assert mounts_at(path) == []


def test_an_upper_directory_that_holds_what_cannot_be_changed(image: str, tmp_path: Path) -> None:
    path, upper = tmp_path / "mnt", tmp_path / "upper"
    for directory in (path, upper):
        directory.mkdir()
    stubborn = upper / "stubborn"
    stubborn.write_text("x")
    if subprocess.run(["chattr", "+i", stubborn], capture_output=True, check=False).returncode != 0:
        pytest.skip("the file system has no immutable files")
    try:
        assert f"puzzlefs: {stubborn} cannot forget " in _refused(7, "-p", upper, image, path)
    finally:
        subprocess.run(["chattr", "-i", stubborn], check=True)
    assert os.listdir(path) == []
    assert os.listdir(upper) == ["stubborn"]
    assert not (tmp_path / "upper.work").exists()


def test_without_root(image: str, tmp_path: Path) -> None:
    if subprocess.run(["setpriv", "--version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("setpriv is not installed")
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    program = (
        "import puzzlefs\n"
        "try:\n"
        "    puzzlefs.mount_writable('nowhere:t', '/tmp')\n"
        "except puzzlefs.UnsupportedError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([*command, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "puzzlefs shell" in result.stdout, result.stderr


def test_another_overlay_is_not_ours(image: str, tmp_path: Path) -> None:
    for name in ("ro", "upper", "work", "mnt"):
        (tmp_path / name).mkdir()
    data = f"lowerdir={tmp_path}/ro,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", data, tmp_path / "mnt"], check=True)
    try:
        for verb in (["umount", tmp_path / "mnt"], ["commit", tmp_path / "mnt", "tag"]):
            result = puzzlefs(*verb, check=False)
            assert result.returncode == 7
            assert "overlay" in result.stderr
        assert [kind for kind, _ in mounts_at(tmp_path)] == ["overlay"]
    finally:
        subprocess.run(["umount", tmp_path / "mnt"], check=True)


def test_the_record(image: str, tmp_path: Path) -> None:
    """What lies below the overlay says what is mounted; other programs may read it."""
    with writable(image, tmp_path / "mnt", how=tmp_path / "upper") as mount:
        record = json.loads(below(mount.path, f"cat {mount.path}/puzzlefs.json").stdout)
        layout, _, tag = image.partition(":")
        manifest = json.loads(Path(layout, "index.json").read_bytes())["manifests"][0]["digest"]
        assert (record["layout"], record["tag"], "sha256:" + record["manifest"]) == (layout, tag, manifest)
        assert record["upper"] == str(tmp_path / "upper")
        assert len(mounts_at(mount.path)) == 2
