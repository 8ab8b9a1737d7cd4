"""``puzzlefs build`` as it is typed."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puzzlefs.image import open_image
from puzzlefs.model import ROOT_INO
from puzzlefs_cli.exit_codes import ExitCode

pytestmark = pytest.mark.cli

PUZZLEFS = [str(Path(sys.executable).with_name("puzzlefs"))]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting is for root")


def puzzlefs(*words: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    return subprocess.run(
        [*PUZZLEFS, *words],
        capture_output=True,
        text=True,
        env=variables | (environment or {}),
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "root"
    place.mkdir()
    (place / "file").write_bytes(b"content")
    (place / "zeros").write_bytes(bytes(200_000))
    return place


class TestOutput:
    def test_is_the_digest_and_nothing_else(self, root: Path, tmp_path: Path) -> None:
        result = puzzlefs("build", root, f"{tmp_path}/oci:tag")
        assert result.returncode == 0
        assert result.stderr == ""
        match = re.fullmatch(r"puzzlefs image manifest digest: ([0-9a-f]{64})\n", result.stdout)
        assert match is not None
        with open_image(f"{tmp_path}/oci:tag", digest=match[1]) as image:
            assert image.version == 3

    def test_two_words_name_the_same_image(self, root: Path, tmp_path: Path) -> None:
        one = puzzlefs("build", root, f"{tmp_path}/oci:tag")
        two = puzzlefs("build", root, f"{tmp_path}/oci", "tag")
        assert one.returncode == two.returncode == 0
        assert one.stdout == two.stdout
        assert [path.name for path in tmp_path.iterdir() if path.name != "root"] == ["oci"]

    def test_a_directory_with_colons(self, root: Path, tmp_path: Path) -> None:
        assert puzzlefs("build", root, f"{tmp_path}/a:b/c:d:tag").returncode == 0
        assert (tmp_path / "a:b" / "c:d" / "index.json").exists()

    def test_json(self, root: Path, tmp_path: Path) -> None:
        plain = puzzlefs("build", root, f"{tmp_path}/plain:tag")
        result = puzzlefs("build", "--json", root, f"{tmp_path}/oci:tag")
        report = json.loads(result.stdout)
        assert result.stdout.count("\n") == 1
        assert report.pop("seconds") >= 0
        assert report.pop("stored_bytes") == sum(
            path.stat().st_size for path in (tmp_path / "oci" / "blobs" / "sha256").iterdir()
        )
        assert report == {
            "digest": plain.stdout.split()[-1],
            "inodes": 3,
            "bytes": 200_007,
            "bytes_read": 200_007,
            "chunks": 1,
            "new_chunks": 1,
            "mount_points": [],
        }

    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("compression", [[], ["-c"], ["--compression"]], ids=str)
    def test_versions_and_compression(self, root: Path, tmp_path: Path, version: int, compression: list[str]) -> None:
        result = puzzlefs("build", *compression, "--format-version", str(version), root, f"{tmp_path}/oci:tag")
        assert result.returncode == 0
        with open_image(f"{tmp_path}/oci:tag", digest=result.stdout.split()[-1]) as image:
            assert image.version == version
            (part,) = image.tree.plan(image.tree.lookup(ROOT_INO, b"zeros").ino, 0, 10).pieces
            assert part.compressed is bool(compression)

    def test_ronomon_says_nothing_more(self, root: Path, tmp_path: Path) -> None:
        result = puzzlefs("build", "--chunker", "ronomon", root, f"{tmp_path}/oci:tag")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("puzzlefs image manifest digest: ")
        assert result.stdout.count("\n") == 1

    def test_help_explains_every_option_with_an_example(self) -> None:
        result = puzzlefs("build", "-h")
        assert result.returncode == 0
        for option in (
            "--compression",
            "--format-version",
            "--chunker",
            "--timestamps",
            "--cross-mounts",
            "--check-existing",
            "--cache",
            "--no-cache",
            "--verify-cache",
            "--json",
            "--quiet",
        ):
            assert re.search(rf"{option}\b.*\s+\S.{{20}}", result.stdout), option
        assert "puzzlefs build rootfs images:debian" in result.stdout


class TestStorage:
    @pytest.mark.parametrize(
        "options",
        [
            [],
            ["--compression-level", "19"],
            ["--chunk-size", "16K"],
            ["--cut-at-files", "4096"],
            ["--cut-at-files", "0"],
            ["--compression-level=1", "--chunk-size=1KIB", "--chunk-size=512K", "--compress-metadata"],
        ],
        ids=" ".join,
    )
    def test_every_way_is_read_back(self, root: Path, tmp_path: Path, options: list[str]) -> None:
        (root / "large").write_bytes(b"".join(b"%d\n" % number for number in range(100_000)))
        first = puzzlefs("build", "-c", *options, root, f"{tmp_path}/oci:tag")
        again = puzzlefs("build", "-c", "--no-cache", *options, root, f"{tmp_path}/other:tag")
        assert (first.returncode, first.stderr) == (0, "")
        assert first.stdout == again.stdout
        assert puzzlefs("extract", f"{tmp_path}/oci:tag", tmp_path / "copy").returncode == 0
        for path in root.iterdir():
            assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--compression-level", "9"], "puzzlefs: how an uncompressed image is stored cannot be chosen"),
            (["--compress-metadata"], "puzzlefs: how an uncompressed image is stored cannot be chosen"),
            (["-c", "--compression-level", "23"], "puzzlefs: there is no compression level 23; say 1"),
            (["-c", "--chunk-size", "100000"], "puzzlefs: chunks cannot be 100000 bytes long on average; say a power"),
            (["-c", "--chunk-size", "many"], "'many' is no size"),
            (["-c", "--cut-at-files", "10"], "puzzlefs: files of 10 bytes are too small for chunks of their own; say"),
            (["-c", "--compress-metadata", "--format-version=2"], "puzzlefs: format version 2 has no compressed meta"),
        ],
    )
    def test_what_makes_no_sense_is_a_usage_error(
        self, root: Path, tmp_path: Path, options: list[str], message: str
    ) -> None:
        result = puzzlefs("build", *options, root, f"{tmp_path}/oci:tag")
        assert result.returncode == ExitCode.USAGE
        assert message in result.stderr
        assert result.stdout == ""
        assert not (tmp_path / "oci").exists()


class TestCache:
    def read(self, *words: str | Path, environment: dict[str, str] | None = None) -> int:
        result = puzzlefs("build", "--json", *words, environment=environment)
        assert (result.returncode, result.stderr) == (0, "")
        return int(json.loads(result.stdout)["bytes_read"])

    @pytest.fixture(autouse=True)
    def old(self, root: Path) -> None:
        time.sleep(0.03)

    def test_is_in_the_users_cache_directory(self, root: Path, tmp_path: Path) -> None:
        home = {"XDG_CACHE_HOME": f"{tmp_path}/caches"}
        image = f"{tmp_path}/oci:tag"
        assert [self.read(root, image, environment=home) for _ in range(2)] == [200_007, 0]
        assert len(os.listdir(tmp_path / "caches" / "puzzlefs" / "builds")) == 1
        assert sorted(os.listdir(tmp_path / "oci")) == ["blobs", "index.json", "oci-layout"]
        assert self.read(root, image, environment={"XDG_CACHE_HOME": f"{tmp_path}/others"}) == 200_007

    @pytest.mark.parametrize("variable", ["", "relative"])
    def test_or_in_the_home(self, root: Path, tmp_path: Path, variable: str) -> None:
        home = {"XDG_CACHE_HOME": variable, "HOME": f"{tmp_path}/home"}
        assert self.read(root, f"{tmp_path}/oci:tag", environment=home) == 200_007
        assert self.read(root, f"{tmp_path}/oci:tag", environment=home) == 0
        assert len(os.listdir(tmp_path / "home" / ".cache" / "puzzlefs" / "builds")) == 1

    def test_or_where_it_is_told(self, root: Path, tmp_path: Path) -> None:
        words = ["--cache", f"{tmp_path}/here", str(root), f"{tmp_path}/oci:tag"]
        assert [self.read(*words) for _ in range(2)] == [200_007, 0]
        assert len(os.listdir(tmp_path / "here")) == 1

    def test_or_nowhere(self, root: Path, tmp_path: Path) -> None:
        home = {"XDG_CACHE_HOME": f"{tmp_path}/caches"}
        words = ["--no-cache", str(root), f"{tmp_path}/oci:tag"]
        assert [self.read(*words, environment=home) for _ in range(2)] == [200_007, 200_007]
        assert not (tmp_path / "caches").exists()

    def test_not_where_it_would_be_in_the_image(self, root: Path, tmp_path: Path) -> None:
        home = {"XDG_CACHE_HOME": str(root), "HOME": str(root)}
        assert [self.read(root, f"{tmp_path}/oci:tag", environment=home) for _ in range(2)] == [200_007, 200_007]
        assert sorted(os.listdir(root)) == ["file", "zeros"]
        result = puzzlefs("build", "--cache", root / "cache", root, f"{tmp_path}/oci:tag")
        assert result.returncode == ExitCode.USAGE
        assert "name a cache directory outside of it" in result.stderr

    @needs_root
    def test_a_home_that_is_read_only_is_no_error(self, root: Path, tmp_path: Path) -> None:
        home = {"XDG_CACHE_HOME": "/proc/nowhere"}
        assert [self.read(root, f"{tmp_path}/oci:tag", environment=home) for _ in range(2)] == [200_007, 200_007]
        result = puzzlefs("--debug", "build", root, f"{tmp_path}/oci:tag", environment=home)
        assert re.search(r"^puzzlefs: the build cache /proc/nowhere/\S+ is not written: ", result.stderr, re.M)

    def test_a_bad_one_is_a_line_for_debugging(self, root: Path, tmp_path: Path) -> None:
        words = ["--cache", f"{tmp_path}/here", str(root), f"{tmp_path}/oci:tag"]
        self.read(*words)
        (path,) = (tmp_path / "here").iterdir()
        path.write_bytes(b"nonsense")
        result = puzzlefs("--debug", "build", *words)
        assert result.stderr == f"puzzlefs: the build cache {path} is not used: it is too short\n"
        path.write_bytes(b"nonsense")
        assert self.read(*words) == 200_007

    def test_is_verified_when_asked_for(self, root: Path, tmp_path: Path) -> None:
        words = [str(root), f"{tmp_path}/oci:tag"]
        home = {"XDG_CACHE_HOME": f"{tmp_path}/caches"}
        assert self.read("--verify-cache", *words, environment=home) == 200_007
        assert self.read("--verify-cache", *words, environment=home) == 200_007
        assert self.read(*words, environment=home) == 0
        result = puzzlefs("build", "--verify-cache", "--no-cache", *words)
        assert result.returncode == ExitCode.USAGE


class TestTimestamps:
    @pytest.fixture
    def dated(self, root: Path) -> Path:
        os.utime(root / "file", ns=(0, 2_000_000_000_000_000_007))
        os.utime(root / "zeros", ns=(0, 5))
        return root

    def times(self, layout: Path) -> list[int]:
        with open_image(f"{layout}:tag") as image:
            names = (b"file", b"zeros")
            return [image.tree.attributes(image.tree.lookup(ROOT_INO, name).ino).mtime_ns for name in names]

    def test_none_is_the_default(self, dated: Path, tmp_path: Path) -> None:
        assert puzzlefs("build", dated, f"{tmp_path}/oci:tag").returncode == 0
        assert self.times(tmp_path / "oci") == [0, 0]

    def test_keep(self, dated: Path, tmp_path: Path) -> None:
        assert puzzlefs("build", "--timestamps", "keep", dated, f"{tmp_path}/oci:tag").returncode == 0
        assert self.times(tmp_path / "oci") == [2_000_000_000_000_000_007, 5]

    def test_clamp_reads_source_date_epoch(self, dated: Path, tmp_path: Path) -> None:
        result = puzzlefs(
            "build",
            "--timestamps",
            "clamp",
            dated,
            f"{tmp_path}/oci:tag",
            environment={"SOURCE_DATE_EPOCH": "1700000000"},
        )
        assert result.returncode == 0
        assert self.times(tmp_path / "oci") == [1_700_000_000_000_000_000, 5]

    @pytest.mark.parametrize("value", [None, "", "yesterday", "1.5", "-1", "٣"])
    def test_clamp_without_a_usable_one_is_a_usage_error(self, dated: Path, tmp_path: Path, value: str | None) -> None:
        environment = {} if value is None else {"SOURCE_DATE_EPOCH": value}
        result = puzzlefs("build", "--timestamps", "clamp", dated, f"{tmp_path}/oci:tag", environment=environment)
        assert result.returncode == ExitCode.USAGE
        assert "SOURCE_DATE_EPOCH" in result.stderr
        assert not (tmp_path / "oci").exists()

    def test_compiled_python_without_times_is_remarked_once(self, root: Path, tmp_path: Path) -> None:
        for number in range(3):
            (root / f"{number}.pyc").write_bytes(b"")
        result = puzzlefs("build", root, f"{tmp_path}/oci:tag")
        assert result.returncode == 0
        (line,) = result.stderr.splitlines()
        assert "--timestamps keep" in line
        for quiet in (["--timestamps", "keep"], ["-q"]):
            assert puzzlefs("build", *quiet, root, f"{tmp_path}/oci:tag").stderr == ""


@needs_root
def test_mount_points_are_named(root: Path, tmp_path: Path) -> None:
    for name in ("mnt", "odd\nname"):
        (root / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", root / name], check=True)
        (root / name / "inside").write_bytes(b"")
    try:
        result = puzzlefs("build", root, f"{tmp_path}/oci:tag")
        report = json.loads(puzzlefs("build", "--json", root, f"{tmp_path}/oci:tag").stdout)
        crossing = puzzlefs("build", "--cross-mounts", root, f"{tmp_path}/oci:all")
    finally:
        for name in ("mnt", "odd\nname"):
            subprocess.run(["umount", root / name], check=True)
    assert [line.split(" is a mount point")[0] for line in result.stderr.splitlines()] == [
        "puzzlefs: /mnt",
        "puzzlefs: /odd\\nname",
    ]
    assert report["mount_points"] == ["/mnt", "/odd\nname"]
    assert crossing.stderr == ""
    with open_image(f"{tmp_path}/oci:tag") as image:
        assert not image.tree.entries(image.tree.lookup(ROOT_INO, b"mnt").ino)
    with open_image(f"{tmp_path}/oci:all") as image:
        assert [entry.name for entry in image.tree.entries(image.tree.lookup(ROOT_INO, b"mnt").ino)] == [b"inside"]


@needs_root
def test_without_proc_the_image_is_the_same(root: Path, tmp_path: Path) -> None:
    (root / "sub").mkdir()
    os.setxattr(root / "sub", "user.note", b"yes")
    usual = puzzlefs("build", root, f"{tmp_path}/usual:tag")
    script = 'mount -t tmpfs none /proc && exec "$@"'
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *PUZZLEFS, "build", root, f"{tmp_path}/oci:tag"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == usual.stdout


class TestProgress:
    def run_in_terminal(self, *words: str | Path) -> tuple[str, str]:
        """stdout, and what a terminal on stderr got."""
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [*PUZZLEFS, *words],
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
        )
        os.close(terminal)
        seen = b""
        while select.select([controller], [], [], 60)[0]:
            try:
                data = os.read(controller, 65536)
            except OSError:  # the other side is closed
                break
            seen += data
        os.close(controller)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return output, seen.decode(errors="replace")

    def test_a_terminal_gets_a_bar(self, root: Path, tmp_path: Path) -> None:
        output, seen = self.run_in_terminal("build", root, f"{tmp_path}/oci:tag")
        assert re.fullmatch(r"puzzlefs image manifest digest: [0-9a-f]{64}\n", output)
        assert "inodes" in seen

    def test_quiet_leaves_it_out(self, root: Path, tmp_path: Path) -> None:
        output, seen = self.run_in_terminal("build", "--quiet", root, f"{tmp_path}/oci:tag")
        assert seen == ""
        assert output.startswith("puzzlefs image manifest digest: ")


class TestTrouble:
    def test_usage(self, root: Path, tmp_path: Path) -> None:
        for words in (
            [],
            [root],
            [root, "no-tag"],
            [root, f"{tmp_path}/oci", "tag", "more"],
            ["--format-version", "4", root, f"{tmp_path}/oci:tag"],
            ["--chunker", "rabin", root, f"{tmp_path}/oci:tag"],
            ["--timestamps", "some", root, f"{tmp_path}/oci:tag"],
            [root, f"{tmp_path}/oci", "not a tag"],
            [root, f"{root}/oci:tag"],
            [root / "file", f"{tmp_path}/oci:tag"],
        ):
            result = puzzlefs("build", *words)
            assert result.returncode == ExitCode.USAGE, words
            assert result.stdout == ""
            assert "Traceback" not in result.stderr
        assert os.listdir(tmp_path) == ["root"]
        assert sorted(os.listdir(root)) == ["file", "zeros"]

    def test_a_missing_tree(self, tmp_path: Path) -> None:
        result = puzzlefs("build", tmp_path / "missing", f"{tmp_path}/oci:tag")
        assert result.returncode == ExitCode.NOT_FOUND
        assert result.stderr.count("\n") == 1
        assert "missing does not exist" in result.stderr

    def test_mixing_kinds_of_layout(self, root: Path, tmp_path: Path) -> None:
        assert puzzlefs("build", "--format-version", "1", root, f"{tmp_path}/oci:tag").returncode == 0
        result = puzzlefs("build", root, f"{tmp_path}/oci:other")
        assert result.returncode == ExitCode.USAGE
        assert "versions 1 and 2" in result.stderr

    def test_a_place_that_cannot_be_written(self, root: Path) -> None:
        result = puzzlefs("build", root, "/sys/oci:tag")
        assert result.returncode == ExitCode.IO
        assert result.stderr.startswith("puzzlefs: cannot create the image layout /sys/oci: ")

    def test_being_told_to_end_leaves_nothing_behind(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        for number in range(60):
            (tmp_path / "root" / f"{number}").write_bytes(os.urandom(1 << 20))
        process = subprocess.Popen([*PUZZLEFS, "build", tmp_path / "root", f"{tmp_path}/oci:tag"])
        blobs = tmp_path / "oci" / "blobs" / "sha256"
        deadline = time.monotonic() + 60
        while not (blobs.is_dir() and len(os.listdir(blobs)) > 5):
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == ExitCode.INTERRUPTED
        assert os.listdir(blobs) == []


def test_progress_for_programs(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(os.urandom(500_000))
    done = subprocess.run(
        [sys.executable, "-m", "puzzlefs_cli", "build", "--no-cache", "--progress=json", root, f"{tmp_path}/oci:t"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    stages = [line["stage"] for line in lines]
    assert list(dict.fromkeys(stages)) == ["scan", "chunks", "commit"]
    assert stages == sorted(stages, key="scan chunks commit".index)
    assert lines[-1] == {
        "stage": "commit", "inodes": 2, "bytes_done": 500_000, "bytes_total": 500_000, "seconds": lines[-1]["seconds"]
    }  # fmt: skip


def test_progress_of_what_is_counted(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(os.urandom(500_000))
    puzzlefs("build", "--no-cache", root, f"{tmp_path}/oci:t")
    for stage, words in (
        ("checking", ["fsck", tmp_path / "oci"]),
        ("removing", ["gc", "--grace", "0", tmp_path / "oci"]),
        ("copying", ["copy", f"{tmp_path}/oci:t", tmp_path / "other"]),
        ("looking around", ["stats", tmp_path / "oci"]),
    ):
        done = puzzlefs(*words, "--progress=json")
        assert done.returncode == 0
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert all(line.keys() == {"stage", "done", "total", "seconds"} for line in lines)
        assert all(line["stage"] == stage and line["done"] <= line["total"] for line in lines)
        assert not lines or lines[-1]["done"] == lines[-1]["total"]
        assert puzzlefs(*words, "--progress=json", "--quiet").stderr == ""
    assert puzzlefs("fsck", tmp_path / "oci", "--progress=json").stderr
