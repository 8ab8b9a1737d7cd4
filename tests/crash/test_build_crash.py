"""Builds that end in the middle, meet each other, or run out of space: what was there before stays, what is
there is whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import trees

from puzzlefs.errors import NotFoundError
from puzzlefs.image import open_image
from puzzlefs.model import ROOT_INO
from puzzlefs_cli.exit_codes import ExitCode

pytestmark = pytest.mark.crash

PUZZLEFS = [str(Path(sys.executable).with_name("puzzlefs"))]
_SMALL_WORTH_PROCESSES = """
import sys
from puzzlefs.blobs import writer
from puzzlefs.builder import processes
from puzzlefs_cli.main import run
processes.WORTH_PROCESSES = 0
writer._WORTH_NAMING = 1
sys.argv[0] = "puzzlefs"
run()
"""
PUZZLEFS_ALONE = PUZZLEFS[0]
WITH_PROCESSES = [sys.executable, "-c", _SMALL_WORTH_PROCESSES]
BLOB_NAME = re.compile(r"[0-9a-f]{64}")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system is for root")


def start(root: Path, image: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PUZZLEFS, "build", *options, root, image], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def noise_tree(root: Path, seed: int, megabytes: int) -> Path:
    root.mkdir()
    for number in range(megabytes):
        (root / f"{number:03}").write_bytes(random.Random(f"{seed}/{number}").randbytes(1 << 20))
    return root


def check_blobs(layout: Path) -> int:
    """Every file under a blob's name is that blob; returns how many there are."""
    count = 0
    for path in (layout / "blobs" / "sha256").iterdir():
        if BLOB_NAME.fullmatch(path.name):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
            count += 1
    return count


def temporary_files(layout: Path) -> list[str]:
    names = os.listdir(layout) + os.listdir(layout / "blobs" / "sha256")
    return [name for name in names if name.startswith(".tmp-")]


def check_image(image: str, root: Path) -> None:
    with open_image(image) as opened:
        assert trees.in_image(opened) == trees.on_disk(root)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_tree(tmp_path_factory.mktemp("old") / "root", 1, 3)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_tree(tmp_path_factory.mktemp("new") / "root", 2, 24)


def build(root: Path, image: str, *options: str) -> str:
    result = subprocess.run([*PUZZLEFS, "build", *options, root, image], check=True, capture_output=True, text=True)
    return result.stdout.split()[-1]


@pytest.fixture(autouse=True, params=["threads", "processes"])
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here is run with both kinds of workers; small trees would have threads otherwise."""
    if request.param == "processes":
        monkeypatch.setattr(sys.modules[__name__], "PUZZLEFS", WITH_PROCESSES)
    return str(request.param)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class TestWorkers:
    def test_both_kinds_make_the_same_image(self, old: Path, new: Path, tmp_path: Path, workers: str) -> None:
        (new / "again").write_bytes(b"".join((old / name).read_bytes() for name in sorted(os.listdir(old)) * 2))
        try:
            for option in ("-c", "--format-version=3", "--format-version=1"):
                subprocess.run(
                    [PUZZLEFS_ALONE, "build", "--no-cache", option, new, f"{tmp_path}/alone{option}:t"], check=True
                )
                digest = build(new, f"{tmp_path}/{workers}{option}:t", option, "--no-cache")
                with open_image(f"{tmp_path}/alone{option}:t", digest=digest):
                    pass
                here, there = (tmp_path / f"{name}{option}" / "blobs" / "sha256" for name in ("alone", workers))
                assert sorted(os.listdir(here)) == sorted(os.listdir(there))
        finally:
            (new / "again").unlink()

    def test_a_worker_that_is_killed_while_it_gives_names(self, old: Path, tmp_path: Path, workers: str) -> None:
        if workers == "threads":
            return  # they leave that to the one that builds
        dying = _SMALL_WORTH_PROCESSES.replace(
            "run()\n",
            "import os, signal\n"
            "processes._MAX_NAMES = 7\n"
            "give_names, calls = writer.BlobWriter.give_names, []\n"
            "def second(self, written):\n"
            "    calls.append(os.getpid())\n"
            "    if len(calls) > 1: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    give_names(self, written)\n"
            "writer.BlobWriter.give_names = second\n"
            "run()\n",
        )
        assert dying.count("run()") == 1
        process = subprocess.run(
            [sys.executable, "-c", dying, "build", "--no-cache", old, f"{tmp_path}/oci:t"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == ExitCode.IO
        assert "a process that stores chunks has ended (SIGKILL)" in process.stderr
        assert process.stdout == ""
        assert check_blobs(tmp_path / "oci") >= 7  # whole, and of no tag
        assert temporary_files(tmp_path / "oci") == []
        with pytest.raises(NotFoundError):
            open_image(f"{tmp_path}/oci:t")
        build(old, f"{tmp_path}/oci:t", "--no-cache")
        check_image(f"{tmp_path}/oci:t", old)

    def test_a_worker_that_is_killed_ends_the_build(self, old: Path, tmp_path: Path, workers: str) -> None:
        if workers == "threads":
            return  # threads can't be killed one by one
        build(old, f"{tmp_path}/oci:old")
        root = noise_tree(tmp_path / "root", 7, 60)
        process = start(root, f"{tmp_path}/oci:new")
        count = min(len(os.sched_getaffinity(0)), 8)
        while process.poll() is None and len(found := children(process.pid)) < count:
            pass
        for pid in found:  # all: what one leaves undone before it has begun, another does
            os.kill(pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == ExitCode.IO
        assert output == ""
        assert "a process that stores chunks has ended (SIGKILL)" in errors
        assert "run the command again" in errors
        assert temporary_files(tmp_path / "oci") == []
        check_image(f"{tmp_path}/oci:old", old)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_workers_end_with_the_build(self, tmp_path: Path, workers: str, number: signal.Signals) -> None:
        root = noise_tree(tmp_path / "root", 8, 60)
        process = start(root, f"{tmp_path}/oci:new")
        blobs = tmp_path / "oci" / "blobs" / "sha256"
        while process.poll() is None and not (blobs.exists() and any(".tmp-" in name for name in os.listdir(blobs))):
            pass
        found = children(process.pid)
        assert bool(found) == (workers == "processes")
        os.kill(process.pid, number)
        process.communicate(timeout=60)
        assert process.returncode in (ExitCode.INTERRUPTED, -number)
        deadline = time.monotonic() + 10
        while any(os.path.exists(f"/proc/{pid}/fd/0") for pid in found):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if number != signal.SIGKILL:
            assert temporary_files(tmp_path / "oci") == []


class TestKill:
    """kill -9 at moments that are told by what is on disk, from the first temporary file to the index."""

    MOMENTS = (
        pytest.param(lambda blobs, _: any(name.startswith(".tmp-") for name in blobs), id="first-temporary-file"),
        pytest.param(lambda blobs, _: len(blobs) > 120, id="120-files"),
        pytest.param(lambda blobs, _: len(blobs) > 270, id="270-files"),
        pytest.param(
            lambda blobs, before: sum(1 for name in blobs if BLOB_NAME.fullmatch(name)) > before,
            id="first-final-name",
        ),
        pytest.param(
            lambda blobs, before: sum(1 for name in blobs if BLOB_NAME.fullmatch(name)) > before + 100,
            id="100-final-names",
        ),
    )

    @pytest.mark.parametrize("moment", MOMENTS)
    @pytest.mark.parametrize("version", [1, 3])
    def test_leaves_older_tags_and_no_broken_blob(
        self, old: Path, new: Path, tmp_path: Path, version: int, moment: object
    ) -> None:
        assert callable(moment)
        layout = tmp_path / "oci"
        option = f"--format-version={version}"
        build(old, f"{layout}:old", option)
        before = check_blobs(layout)
        process = start(new, f"{layout}:new", option)
        while process.poll() is None and not moment(os.listdir(layout / "blobs" / "sha256"), before):
            pass
        process.kill()
        process.communicate()
        finished = process.returncode == 0
        assert finished or process.returncode == -signal.SIGKILL
        check_image(f"{layout}:old", old)
        check_blobs(layout)
        with open_image(f"{layout}:old") as image:
            tags = image.layout.read_index().tags()
        # It may have been killed after its last step, before it could say so.
        assert tags == ["old", "new"] or (tags == ["old"] and not finished)
        if "new" in tags:
            check_image(f"{layout}:new", new)
        # The next build is not disturbed by what the killed one left, and gives what it always gives.
        digest = build(new, f"{layout}:new", option)
        assert digest == build(new, f"{tmp_path}/fresh:new", option)
        check_image(f"{layout}:new", new)
        check_image(f"{layout}:old", old)
        check_blobs(layout)

    def test_at_any_time(self, old: Path, new: Path, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(old, f"{layout}:old")
        started = time.monotonic()
        build(new, f"{tmp_path}/timing:new")
        usual = time.monotonic() - started
        generator = random.Random(3)
        killed = 0
        for attempt in range(8):
            process = start(new, f"{layout}:new{attempt}")
            try:
                process.wait(generator.uniform(0.1, 1.1) * usual)
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
            process.communicate()
            with open_image(f"{layout}:old") as image:
                tags = image.layout.read_index().tags()
            assert f"new{attempt}" in tags or process.returncode != 0
            for tag in tags:
                check_image(f"{layout}:{tag}", old if tag == "old" else new)
        assert killed
        check_blobs(layout)


@pytest.mark.parametrize("version", [1, 3])
def test_names_are_given_after_the_data_is_on_disk(old: Path, tmp_path: Path, version: int) -> None:
    """The order of system calls: data, syncfs, final names, syncfs, index."""
    trace = tmp_path / "trace"
    subprocess.run(
        [
            "strace",
            "-f",
            "-o",
            trace,
            "-e",
            "trace=openat,rename,renameat,renameat2,syncfs,fsync",
            *PUZZLEFS,
            "build",
            f"--format-version={version}",
            old,
            f"{tmp_path}/oci:tag",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    events = []
    for line in trace.read_text().splitlines():
        if "O_CREAT" in line and re.search(r'"\.tmp-[0-9a-f]+-', line):
            events.append("data")
        elif re.search(r"rename.*\.tmp-.*[0-9a-f]{64}", line):
            events.append("name")
        elif re.search(r"rename.*index\.json", line):
            events.append("index")
        elif "syncfs(" in line:
            events.append("syncfs")
    assert events.count("data") == events.count("name") > 30
    # The first index is that of the new, empty layout.
    first_index = events.index("index")
    assert "data" not in events[:first_index]
    order = re.sub(r"(data|name|syncfs)( \1)+", r"\1", " ".join(events[first_index + 1 :]))
    assert re.fullmatch(r"(syncfs )?data syncfs name syncfs index( syncfs)?", order), order


class TestTogether:
    @pytest.mark.parametrize("version", [1, 3])
    def test_builds_at_once_keep_all_tags(self, old: Path, new: Path, tmp_path: Path, version: int) -> None:
        for attempt in range(3):
            layout = tmp_path / f"oci{attempt}"  # which all of them want to make
            option = f"--format-version={version}"
            sources = {"one": new, "two": new, "three": old, "four": old}
            processes = {tag: start(root, f"{layout}:{tag}", option) for tag, root in sources.items()}
            digests = {}
            for tag, process in processes.items():
                output, errors = process.communicate(timeout=120)
                assert process.returncode == 0, errors
                digests[tag] = output.split()[-1]
            assert digests["one"] == digests["two"] != digests["three"] == digests["four"]
            for tag, digest in digests.items():
                with open_image(f"{layout}:{tag}", digest=digest) as image:
                    assert sorted(image.layout.read_index().tags()) == sorted(sources)
                check_image(f"{layout}:{tag}", sources[tag])
            check_blobs(layout)
            assert temporary_files(layout) == []

    def test_two_builds_of_one_tag_leave_one_of_them(self, old: Path, new: Path, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        processes = [start(root, f"{layout}:tag") for root in (old, new)]
        for process in processes:
            process.communicate(timeout=120)
            assert process.returncode == 0
        index = json.loads((layout / "index.json").read_bytes())
        tags = [
            entry["annotations"]["org.opencontainers.image.ref.name"]
            for entry in index["manifests"]
            if entry.get("annotations")
        ]
        assert tags == ["tag"]
        with open_image(f"{layout}:tag") as image:
            assert trees.in_image(image) in (trees.on_disk(old), trees.on_disk(new))


@needs_root
class TestFullDisk:
    @pytest.fixture(params=["tmpfs", "ext4"])
    def small(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
        """A file system of 24 MiB."""
        place = tmp_path / "small"
        place.mkdir()
        if request.param == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", place]
        else:
            with open(tmp_path / "disk", "wb") as disk:
                disk.truncate(24 << 20)
            subprocess.run(["mkfs.ext4", "-q", "-m0", tmp_path / "disk"], check=True)
            command = ["mount", "-o", "loop", tmp_path / "disk", place]
        subprocess.run(command, check=True)
        yield place
        subprocess.run(["umount", place], check=True)

    @pytest.mark.parametrize("version", [1, 3])
    def test_is_an_error_that_changes_nothing(self, small: Path, old: Path, new: Path, version: int) -> None:
        layout = small / "oci"
        option = f"--format-version={version}"
        build(old, f"{layout}:old", option)
        before = {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()}
        process = start(new, f"{layout}:new", option)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == ExitCode.IO
        assert output == ""
        (line,) = errors.splitlines()
        assert str(layout) in line
        assert "No space left on device" in line
        assert "free some space" in line
        assert temporary_files(layout) == []
        assert {path: path.read_bytes() for path in layout.rglob("*") if path.is_file()} == before
        check_image(f"{layout}:old", old)


class TestSource:
    """What the command says when the tree does not hold still; the many ways are in
    ``test_builder_stream``."""

    def test_a_file_that_changes_while_it_is_read(self, old: Path, tmp_path: Path) -> None:
        layout = tmp_path / "oci"
        build(old, f"{layout}:old")
        root = noise_tree(tmp_path / "root", 5, 30)
        (root / "zzz-last").write_bytes(b"last")
        process = start(root, f"{layout}:new")
        blobs = layout / "blobs" / "sha256"
        before = len(os.listdir(blobs))
        while process.poll() is None and len(os.listdir(blobs)) < before + 5:
            pass
        (root / "zzz-last").write_bytes(b"changed")
        output, errors = process.communicate(timeout=120)
        assert process.returncode == ExitCode.IO
        assert output == ""
        (line,) = errors.splitlines()
        assert f"{root}/zzz-last changed while it was read" in line
        assert temporary_files(layout) == []
        check_image(f"{layout}:old", old)
        with open_image(f"{layout}:old") as image:
            assert image.layout.read_index().tags() == ["old"]
            assert image.tree.entries(ROOT_INO)


class TestBesideGarbageCollection:
    @pytest.mark.parametrize("version", [1, 3])
    def test_a_build_that_is_stopped_while_garbage_is_collected(
        self, old: Path, new: Path, tmp_path: Path, version: int, workers: str
    ) -> None:
        """It relies on blobs that were garbage before; all of them are there when it goes on."""
        layout = tmp_path / "oci"
        option = f"--format-version={version}"
        build(new, f"{layout}:new", option)
        build(old, f"{layout}:stays", option)
        index = json.loads((layout / "index.json").read_bytes())
        index["manifests"] = index["manifests"][1:]
        (layout / "index.json").write_text(json.dumps(index))  # all of ``new`` is garbage
        root = tmp_path / "root"
        subprocess.run(["cp", "-a", new, root], check=True)
        for number in range(20):
            (root / f"zz{number:02}").write_bytes(random.Random(f"more/{number}").randbytes(1 << 20))
        process = start(root, f"{layout}:again", option, "--no-cache")
        blobs = layout / "blobs" / "sha256"
        removed = 0
        while process.poll() is None:
            if any(name.startswith(".tmp-") for name in os.listdir(blobs)):  # it is past what is there already
                os.kill(process.pid, signal.SIGSTOP)
                command = [PUZZLEFS_ALONE, "gc", "--grace=0", "--json", layout]
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as collection:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        collection.wait(3)  # unless it was stopped in the microseconds in which it holds the lock
                    os.kill(process.pid, signal.SIGCONT)
                    output, _ = collection.communicate(timeout=60)
                assert collection.returncode == 0
                removed += json.loads(output)["removed_blobs"]
                time.sleep(0.05)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        check_image(f"{layout}:again", root)
        check_image(f"{layout}:stays", old)
        assert temporary_files(layout) == []
        assert removed  # the metadata of the image that was dropped

    def test_one_that_is_killed_can_be_repeated(self, old: Path, new: Path, tmp_path: Path, workers: str) -> None:
        layout = tmp_path / "oci"
        build(old, f"{layout}:stays")
        build(new, f"{layout}:new")
        expected = check_blobs(layout)
        subprocess.run([PUZZLEFS_ALONE, "gc", "--grace=0", "--json", layout], check=True, stdout=subprocess.DEVNULL)
        assert check_blobs(layout) == expected
        index = json.loads((layout / "index.json").read_bytes())
        index["manifests"] = index["manifests"][:1]
        (layout / "index.json").write_text(json.dumps(index))
        process = subprocess.Popen([PUZZLEFS_ALONE, "gc", "--grace=0", layout], stdout=subprocess.DEVNULL)
        while process.poll() is None and len(os.listdir(layout / "blobs" / "sha256")) == expected:
            pass
        process.kill()
        process.wait()
        check_image(f"{layout}:stays", old)
        subprocess.run([PUZZLEFS_ALONE, "gc", "--grace=0", layout], check=True, stdout=subprocess.DEVNULL)
        check_image(f"{layout}:stays", old)
        assert check_blobs(layout) < expected

    def test_a_repair_that_is_killed_can_be_repeated(self, new: Path, tmp_path: Path, workers: str) -> None:
        """At every moment a blob is the bad one or the good one."""
        if workers == "processes":
            return  # it has none
        layout, source = tmp_path / "oci", tmp_path / "source"
        build(new, f"{source}:new")
        subprocess.run(["cp", "-a", source, layout], check=True)
        names = sorted(os.listdir(layout / "blobs" / "sha256"))
        bad = b"bad"
        for name in names:
            (layout / "blobs" / "sha256" / name).unlink()  # it is linked to nothing
            (layout / "blobs" / "sha256" / name).write_bytes(bad)
        command = [PUZZLEFS_ALONE, "fsck", "--repair", "--from", source, layout]
        generator = random.Random(4)
        killed = 0
        for _ in range(6):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            try:
                process.wait(generator.uniform(0.05, 0.6))
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
            process.communicate()
            for name in names:
                data = (layout / "blobs" / "sha256" / name).read_bytes()
                assert data == bad or hashlib.sha256(data).hexdigest() == name
        assert killed
        assert subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0
        check_image(f"{layout}:new", new)
        subprocess.run([PUZZLEFS_ALONE, "gc", "--grace=0", layout], check=True, stdout=subprocess.DEVNULL)
        assert sorted(os.listdir(layout / "blobs" / "sha256")) == names
