"""What goes wrong below a mount while it is used: who reads what is lost gets an errno, and everybody else reads on.

The host gives and takes back: blobs, the layout, its file system, its medium, memory, descriptors, processor time. In
the end the mount serves everything again, and it is the same server that does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mounting import COMMAND, Mount, Mounted, build, is_mounted, run_puzzlefs, wait_for_end
from support import host_faults, readers
from support.layouts import copy_layout, damaged

from puzzlefs.image import open_image

pytestmark = pytest.mark.mount

FILES = 24
FILE_SIZE = 700_000
MIDDLE = FILE_SIZE // 2
PATIENCE = 30
"""Seconds after which something counts as hanging."""

DAMAGES = ("missing", "truncated", "flipped", "longer", "empty", "directory", "link", "fifo")
BURST, LINES_PER_SECOND = 50, 5
"""How many lines the log may grow at once, and by how many a second then."""


@dataclass(frozen=True)
class Made:
    """A tree of files of noise, and its image, which no test may change.

    Attributes:
        contents: what is in the files, by name.
    """

    source: Path
    layout: Path
    contents: dict[str, bytes]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("faults")
    rnd = random.Random(4)
    contents = {f"{number:02}": rnd.randbytes(FILE_SIZE) for number in range(FILES)}
    (base / "tree").mkdir()
    for name, data in contents.items():
        (base / "tree" / name).write_bytes(data)
    build(base / "tree", f"{base / 'layout'}:t")
    return Made(base / "tree", base / "layout", contents)


@pytest.fixture
def image(made: Made, tmp_path: Path) -> str:
    """A copy that a test may take to pieces."""
    copy_layout(made.layout, tmp_path / "layout")
    return f"{tmp_path / 'layout'}:t"


def blob_of(image: str, name: str, offset: int = MIDDLE) -> Path:
    """The blob that holds a byte of a file, and nothing of another one."""
    with open_image(image) as opened:
        (piece,) = opened.tree.plan(opened.tree.lookup(opened.tree.root, os.fsencode(name)).ino, offset, 1).pieces
        return opened.layout.blob_path(piece.blob)


def blobs_in(image: str) -> list[Path]:
    return sorted((Path(image.rpartition(":")[0]) / "blobs" / "sha256").glob("[0-9a-f]*"))


def read(path: Path, offset: int = MIDDLE, size: int = 10) -> bytes | int:
    """What is read at a place of a file, or the errno."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, size, offset)
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(fd)


def serves_all(mount: Mounted, made: Made) -> bool:
    """Whether every byte can be read, and is right."""
    return all((mount.path / name).read_bytes() == data for name, data in made.contents.items())


def in_time(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a reader hangs"


def reading(answers: dict[str, bytes | int], root: Path, names: Iterable[str]) -> list[threading.Thread]:
    """Threads that put what they read in the middle of files, one each, into ``answers``."""

    def take(name: str) -> None:
        answers[name] = read(root / name)

    threads = [threading.Thread(target=take, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    return threads


# ---- blobs


def test_blobs_that_go_bad(image: str, made: Made, mounted: Mount) -> None:
    with mounted(image, bad_lines=True) as mount:
        for number, damage in enumerate((*DAMAGES, "socket")):
            last = FILES - 1 - 2 * number  # backwards: nobody can have read ahead what goes bad
            name, good, expected = f"{last - 1:02}", f"{last:02}", made.contents
            blob, seen = blob_of(image, name), blob_of(image, good)
            kept = {path: path.read_bytes() for path in (blob, seen)}
            assert (mount.path / good).read_bytes() == expected[good]
            for path in (blob, seen):
                if damage == "socket":
                    path.unlink()
                    os.mknod(path, stat.S_IFSOCK | 0o644)
                else:
                    damaged(path, damage)
            assert [read(mount.path / name) for _ in range(3)] == [errno.EIO] * 3, damage
            assert read(mount.path / name, 0) == expected[name][:10]
            assert (mount.path / good).read_bytes() == expected[good]  # it was verified when it was read first
            (line,) = mount.bad_lines()[number:]
            assert blob.name in line
            assert f"'/{name}'" in line
            for path, data in kept.items():
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
                path.write_bytes(data)
            assert (mount.path / name).read_bytes() == expected[name], damage
        assert serves_all(mount, made)


def test_a_blob_that_may_not_be_read_any_more(image: str, made: Made, tmp_path: Path, engine: str) -> None:
    """The server is one that permissions hold for: root without the capabilities to read everything."""
    path, log_file, blob = tmp_path / "mnt", tmp_path / "log", blob_of(image, "03")
    path.mkdir()
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", "--"]
    command = [*bound, *COMMAND, "mount", "--engine", engine, "--log-file", str(log_file), image, str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    mount = Mounted(path, log_file)
    try:
        blob.chmod(0)
        assert read(path / "03") == errno.EIO
        assert read(path / "04") == made.contents["04"][MIDDLE : MIDDLE + 10]
        (line,) = mount.bad_lines()
        assert "Permission denied" in line
        assert blob.name in line
        assert "'/03'" in line
        blob.chmod(0o644)
        assert serves_all(mount, made)
    finally:
        run_puzzlefs("umount", path)
        wait_for_end(mount.pid)


def test_all_blobs_vanish_and_come_back(image: str, made: Made, mounted: Mount, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    with mounted(image, bad_lines=True) as mount:
        began = time.monotonic()
        blobs = blobs_in(image)
        for blob in blobs:
            blob.rename(aside / blob.name)
        failed = 0
        for name in made.contents:
            for offset in range(0, FILE_SIZE, 60_000):
                failed += read(mount.path / name, offset) == errno.EIO
        assert failed > 3 * BURST
        assert len(os.listdir(mount.path)) == FILES
        lines = mount.bad_lines()
        assert BURST <= len(lines) <= BURST + 2 * LINES_PER_SECOND * (time.monotonic() - began) + 2
        for blob in blobs:
            (aside / blob.name).rename(blob)
        assert serves_all(mount, made)
        damaged(blob_of(image, "00"), "flipped")  # what was read of it is long forgotten
        host_faults.drop_pages(mount.path / "00")
        time.sleep(2 / LINES_PER_SECOND)  # until the log may say something again
        assert read(mount.path / "00") == errno.EIO
    *_, left_out, last = mount.bad_lines()
    assert "more errors were not logged" in left_out
    assert "'/00'" in last


# ---- the layout


def test_the_layout_is_moved_replaced_and_removed(image: str, made: Made, mounted: Mount, tmp_path: Path) -> None:
    layout, moved = tmp_path / "layout", tmp_path / "moved"
    with mounted(image, bad_lines=True) as mount:
        layout.rename(moved)
        assert (mount.path / "00").read_bytes() == made.contents["00"]
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "01").write_bytes(b"something else")
        build(tmp_path / "other", image)
        assert (mount.path / "01").read_bytes() == made.contents["01"]
        assert mount.bad_lines() == []
        shutil.rmtree(moved)
        assert read(mount.path / "23") == errno.EIO
        assert (mount.path / "00").read_bytes() == made.contents["00"]
        assert sorted(os.listdir(mount.path)) == sorted(made.contents)
    assert mount.bad_lines()


def test_the_file_system_below_becomes_read_only_and_is_detached(made: Made, mounted: Mount, tmp_path: Path) -> None:
    with host_faults.small_disk(tmp_path) as disk:
        copy_layout(made.layout, disk.root / "layout")
        with mounted(f"{disk.root / 'layout'}:t") as mount:
            disk.remount("ro")  # refused if anybody had a file open for writing
            assert (mount.path / "00").read_bytes() == made.contents["00"]
            disk.remount("rw")
            disk.fail()
            with pytest.raises(OSError, match="Read-only file system"):
                (disk.root / "new").touch()
            assert (mount.path / "01").read_bytes() == made.contents["01"]
            disk.detach()
            assert list(disk.root.iterdir()) == []
            assert serves_all(mount, made)


def test_the_medium_fails(made: Made, mounted: Mount, tmp_path: Path) -> None:
    with host_faults.small_disk(tmp_path) as disk:
        image = f"{disk.root / 'layout'}:t"
        copy_layout(made.layout, disk.root / "layout")
        with mounted(image, bad_lines=True) as mount:
            blob = blob_of(image, "05")
            with disk.broken_at(blob):
                with pytest.raises(OSError, match=r"Errno 5\b"):
                    blob.read_bytes()
                assert read(mount.path / "05") == errno.EIO
                assert len(os.listdir(mount.path)) == FILES
            assert any(blob.name in line and "'/05'" in line for line in mount.bad_lines())
            host_faults.drop_pages(blob)
            assert serves_all(mount, made)


# ---- memory and descriptors


def test_no_descriptor_is_left(image: str, made: Made, mounted: Mount) -> None:
    with mounted(image, bad_lines=True) as mount:
        os.listdir(mount.path)
        assert read(mount.path / "00") == made.contents["00"][MIDDLE : MIDDLE + 10]
        with host_faults.without_descriptors(host_faults.processes_of(mount.pid)):
            assert read(mount.path / "09") == errno.EIO
            assert len(os.listdir(mount.path)) == FILES
        (line, *_) = mount.bad_lines()
        assert "Too many open files" in line
        assert "'/09'" in line
        assert serves_all(mount, made)


def test_no_memory_is_left(image: str, made: Made, mounted: Mount, engine: str) -> None:
    """Each answer is right, or says that there is no memory; when there is some again, all is well."""
    answers: dict[str, bytes | int] = {}
    with mounted(image, bad_lines=True) as mount:
        os.listdir(mount.path)
        for name in made.contents:
            with host_faults.without_room(host_faults.processes_of(mount.pid)):
                takers = reading(answers, mount.path, [name])
                if engine == "kernel":  # libfuse cannot even read a request before there is memory again
                    in_time(*takers)
                else:
                    time.sleep(0.02)
            in_time(*takers)
        assert serves_all(mount, made)
    assert len(answers) == FILES
    for name, answer in answers.items():
        assert answer in (made.contents[name][MIDDLE : MIDDLE + 10], errno.EIO, errno.ENOMEM)
    for line in mount.bad_lines():
        assert "memory" in line.lower() or "failed to map" in line  # the second is what ld.so says


def test_no_thread_can_be_started(image: str, made: Made, mounted: Mount, tmp_path: Path, engine: str) -> None:
    """Reads that have to wait for the host want threads of the server; nobody may hang because there is none."""
    names = ("02", "03", "04")
    answers: dict[str, bytes | int] = {}
    build(tmp_path / "layout", f"{tmp_path / 'outer'}:t")
    with mounted(f"{tmp_path / 'outer'}:t") as outer, mounted(f"{outer.path}:t", bad_lines=True) as inner:
        assert len(os.listdir(inner.path)) == FILES
        with host_faults.without_room(host_faults.processes_of(inner.pid), 1 << 20):
            with host_faults.paused(host_faults.processes_of(outer.pid)):
                takers = reading(answers, inner.path, names)
                time.sleep(0.3)  # for the watchman to find that the server waits
            if engine == "kernel":  # libfuse cannot even read a request before there is memory again
                in_time(*takers)
        in_time(*takers)
        assert answers.keys() == set(names)
        for name, answer in answers.items():
            assert answer in (made.contents[name][MIDDLE : MIDDLE + 10], errno.EIO, errno.ENOMEM)
        assert serves_all(inner, made)


def test_a_control_group_without_memory(made: Made, mounted: Mount) -> None:
    with (
        mounted(f"{made.layout}:t") as mount,
        host_faults.squeezed(host_faults.processes_of(mount.pid), 12 << 20),
    ):
        for _ in range(2):
            assert serves_all(mount, made)
            for name in made.contents:
                host_faults.drop_pages(mount.path / name)


# ---- many at once


def test_64_readers_at_once(tmp_path: Path, made: Made, mounted: Mount) -> None:
    """``PUZZLEFS_SOAK_SECONDS`` makes it longer than a moment."""
    source = tmp_path / "tree"
    shutil.copytree(made.source, source)
    for number in range(40):
        directory = source / "small" / f"{number}"
        directory.mkdir(parents=True)
        (directory / "link").symlink_to("../0/file-0")
        for other in range(20):
            (directory / f"file-{other}").write_bytes(b"%d " % number * other * 100)
    kinds = 4 if readers.lay_out_for_fio(source) else 3
    build(source, f"{tmp_path / 'many'}:t")
    seconds = float(os.environ.get("PUZZLEFS_SOAK_SECONDS", "2"))
    with mounted(f"{tmp_path / 'many'}:t") as mount:
        passes = readers.run(mount.path, source, seconds=seconds, count=64)
    assert len(passes) == kinds
    assert all(passes.values())


def test_ten_thousand_open_files(made: Made, mounted: Mount) -> None:
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 1000:
        pytest.skip(f"this process may open {hard} files at most")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 1000, hard))
    names = list(made.contents)
    try:
        with mounted(f"{made.layout}:t") as mount, contextlib.ExitStack() as stack:
            fds = []
            for number in range(count):
                fds.append(os.open(mount.path / names[number % FILES], os.O_RDONLY))
                stack.callback(os.close, fds[-1])
            for pid in host_faults.processes_of(mount.pid):
                assert len(os.listdir(f"/proc/{pid}/fd")) < 100
            for number in range(0, count, 37):
                data = made.contents[names[number % FILES]]
                assert os.pread(fds[number], 100, number * 50) == data[number * 50 :][:100]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- the server


def test_a_server_that_stops_for_a_while(made: Made, mounted: Mount) -> None:
    names = ("02", "03", "04")
    answers: dict[str, bytes | int] = {}
    with mounted(f"{made.layout}:t") as mount:
        os.listdir(mount.path)
        with host_faults.paused(host_faults.processes_of(mount.pid)):
            takers = reading(answers, mount.path, names)
            killed = subprocess.Popen(["cat", mount.path / "05"], stdout=subprocess.DEVNULL)
            time.sleep(0.2)  # until they wait
            assert answers == {}
            assert killed.poll() is None
            killed.kill()
            killed.wait(PATIENCE)  # nobody has taken its request yet, so it need not wait
        in_time(*takers)
        assert answers == {name: made.contents[name][MIDDLE : MIDDLE + 10] for name in names}
        assert serves_all(mount, made)


def test_a_lazy_unmount_leaves_open_files_to_their_users(made: Made, tmp_path: Path, engine: str) -> None:
    path, log_file = tmp_path / "mnt", tmp_path / "log"
    path.mkdir()
    run_puzzlefs("mount", "--engine", engine, "--log-file", log_file, f"{made.layout}:t", path)
    mount = Mounted(path, log_file)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(path / name, "rb")) for name in made.contents}
        assert files["00"].read(10) == made.contents["00"][:10]
        subprocess.run(["umount", "-l", path], check=True)
        assert not is_mounted(path)
        assert list(path.iterdir()) == []
        for name, file in files.items():
            file.seek(0)
            assert file.read() == made.contents[name]
        assert Path(f"/proc/{mount.pid}").exists()
    wait_for_end(mount.pid)
    assert mount.bad_lines() == []
    assert list((made.layout / "blobs" / "sha256").glob(".lease-*")) == []
