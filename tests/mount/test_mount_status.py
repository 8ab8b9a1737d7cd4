"""A live mount says how it is, and whether all of it is sound."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounting import (
    Built,
    Foreground,
    Mount,
    as_user,
    blob_with,
    copy_packages,
    flipped,
    python_for,
    run_puzzlefs,
)
from support.layouts import copy_layout

from puzzlefs.image import open_image
from puzzlefs.mount.control import address_of
from puzzlefs.mount.mountinfo import mounted_at
from puzzlefs.mount.status import mount_status
from puzzlefs_cli.status import as_json

pytestmark = pytest.mark.mount

_NAME = "big/file"
_OFFSET = 2_500_000
_USER = 65534

AsUser = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def broken(odd: Built) -> Iterator[Path]:
    """A blob of the image v3 in which one bit is wrong."""
    blob = blob_with(odd.image("v3"), _NAME, _OFFSET)
    with flipped(blob):
        yield blob


def _status(point: Path | str) -> dict[str, Any]:
    return as_json(mount_status(point))


def _verified(target: Path | str, *options: str) -> tuple[int, dict[str, Any], str]:
    result = run_puzzlefs("verify", "--json", *options, target, check=False)
    return result.returncode, json.loads(result.stdout), result.stderr


def _read(path: Path) -> int:
    with open(path, "rb") as file:
        return len(file.read())


@pytest.mark.parametrize(("tag", "with_digest"), [("v1", True), ("v2-zstd", False), ("v3-zstd", True)])
def test_a_sound_mount(odd: Built, mounted: Mount, engine: str, tag: str, with_digest: bool) -> None:
    options = ["--digest", odd.digests[tag]] if with_digest else []
    with mounted(odd.image(tag), *options) as mount:
        first = json.loads(run_puzzlefs("status", "--json", mount.path).stdout)
        assert first["image"] == odd.image(tag)
        assert first["mountpoint"] == str(mount.path)
        assert (first["digest"], first["digest_required"]) == (odd.digests[tag], with_digest)
        assert first["verity"] == ("auto" if with_digest else "user")
        assert (first["writable"], first["corruptions"], first["events"]) == (False, 0, [])
        assert first["engine"] == engine
        assert 0 < first["blobs_checked"] < first["blobs_to_check"]
        assert _read(mount.path / _NAME) == (odd.source / _NAME).stat().st_size
        second = _status(mount.path)
        assert second["blobs_checked"] > first["blobs_checked"]
        assert second["requests"]["read"] > first["requests"].get("read", 0)
        assert second["requests"]["lookup"] >= 2
        assert second["uptime"] > first["uptime"]
        assert second["caches"]["contents"]["bytes"] > 0
        code, report, _ = _verified(mount.path)
        assert (code, report["sound"], report["bad"], report["kind"]) == (0, True, [], "mount")
        assert report["blobs"] == second["blobs_to_check"]
        third = _status(mount.path)
        assert third["blobs_checked"] == third["blobs_to_check"] == report["blobs"]


def test_a_bad_blob_that_was_read(odd: Built, mounted: Mount, broken: Path) -> None:
    with mounted(odd.image("v3"), bad_lines=True) as mount:
        for _ in range(2):
            with open(mount.path / _NAME, "rb") as file, pytest.raises(OSError, match="Input/output error"):
                os.pread(file.fileno(), 10, _OFFSET)
        status = _status(mount.path)
        (event,) = status["events"]
        assert (event["kind"], event["path"], event["blob"]) == ("corrupt", f"/{_NAME}", broken.name)
        assert status["corruptions"] == 1
        assert status["failed_requests"] >= 2
        shown = run_puzzlefs("status", mount.path).stdout
        assert f"corrupt: read of /{_NAME}: blob " in shown
        assert broken.name in shown


def test_a_bad_blob_that_nobody_has_read(odd: Built, mounted: Mount, broken: Path) -> None:
    with mounted(odd.image("v3"), bad_lines=True) as mount:
        assert _status(mount.path)["corruptions"] == 0
        code, report, said = _verified(mount.path, "--progress=json")
        assert (code, report["sound"], report["bad_blobs"]) == (5, False, 1)
        (bad,) = report["bad"]
        assert (bad["digest"], bad["role"], bad["fault"]) == (f"sha256:{broken.name}", "chunk", "corrupt")
        assert f"/{_NAME}" in bad["files"]
        steps = [json.loads(line) for line in said.splitlines()]
        assert steps[-1]["done"] == steps[-1]["total"] == report["blobs"]
        status = _status(mount.path)
        assert f"/{_NAME}" in {event["path"] for event in status["events"]}
        assert status["blobs_checked"] == status["blobs_to_check"] - 1
        assert any(broken.name in line and "verification of" in line for line in mount.bad_lines())
        shown = run_puzzlefs("verify", mount.path, check=False)
        assert shown.returncode == 5
        assert f"  hits /{_NAME}\n" in shown.stdout
        assert shown.stdout.splitlines()[-1].startswith("not sound: ")


def test_an_image_that_is_not_mounted(odd: Built, broken: Path) -> None:
    code, report, said = _verified(odd.image("v3"), "--progress=json")
    assert (code, report["sound"], report["kind"], report["bad_blobs"]) == (5, False, "image", 1)
    assert report["bad"][0]["digest"] == f"sha256:{broken.name}"
    assert f"/{_NAME}" in report["bad"][0]["files"]
    assert json.loads(said.splitlines()[-1])["stage"] == "checking"
    assert run_puzzlefs("verify", "-q", odd.image("v3-zstd"), "--digest", odd.digests["v3-zstd"]).stdout == ""
    assert run_puzzlefs("verify", odd.image("v3-zstd")).stdout.startswith("sound: ")
    another = run_puzzlefs("verify", odd.image("v3-zstd"), "--digest", odd.digests["v1"], check=False)
    assert (another.returncode, another.stdout) == (5, "")


def test_the_manifest_is_held_against_the_digest(odd: Built, mounted: Mount) -> None:
    image = odd.image("v3")
    with open_image(image) as opened:
        manifest = opened.layout.path / "blobs" / "sha256" / opened.manifest_digest.hex()
    good = manifest.read_bytes()
    with mounted(image, "--digest", odd.digests["v3"], bad_lines=True) as mount:
        manifest.unlink()
        try:
            assert _status(mount.path)["digest"] == odd.digests["v3"]
            code, report, _ = _verified(mount.path)
        finally:
            manifest.write_bytes(good)
        assert code == 5
        assert [(bad["role"], bad["fault"], bad["whole"]) for bad in report["bad"]] == [("manifest", "missing", True)]
        assert _verified(mount.path)[0] == 0


def test_ways_to_write_a_mount_point(odd: Built, mounted: Mount, tmp_path: Path) -> None:
    link = tmp_path / "link"
    with mounted(odd.image("v3")) as mount:
        link.symlink_to(mount.path)
        for path in (link, f"{mount.path}/", f"{mount.path}/bin/..", f"{mount.path}/../{mount.path.name}"):
            assert _status(path)["mountpoint"] == str(mount.path)
        inside = run_puzzlefs("status", mount.path / "bin", check=False)
        assert inside.returncode == 3
        assert f"it lies in the mount at {mount.path}" in inside.stderr
    outside = run_puzzlefs("status", mount.path, check=False)
    assert outside.returncode == 3
    assert "is not a mount point" in outside.stderr
    layout = run_puzzlefs("verify", odd.layout / "new", check=False)
    assert layout.returncode == 2
    assert "puzzlefs fsck" in layout.stderr


def test_a_writable_mount(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3"), "--writable") as mount:
        (mount.path / "new").write_text("new")
        for path in (mount.path, mount.path / "ro"):
            status = _status(path)
            assert (status["image"], status["mountpoint"]) == (odd.image("v3"), str(path))
        assert _status(mount.path)["writable"] is True
        assert _verified(mount.path)[0] == 0


def test_in_the_foreground(odd: Built, foreground: Foreground, point: Path) -> None:
    with foreground(odd.image("v3")) as process:
        status = _status(point)
        assert (status["server_pid"], status["supervised"], status["guardian_pid"]) == (process.pid, False, None)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize("engine", ["kernel"], indirect=True)  # libfuse cannot take over a mount
def test_what_outlives_a_server(odd: Built, mounted: Mount, broken: Path) -> None:
    """Counts, checked blobs and failures, where a guardian puts another server in the place of one that dies."""
    with mounted(odd.image("v3"), bad_lines=True) as mount:
        with open(mount.path / _NAME, "rb") as file, pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 10, _OFFSET)
        before = _status(mount.path)
        os.kill(before["server_pid"], signal.SIGKILL)
        after = _status(mount.path)
        assert after["server_pid"] != before["server_pid"]
        assert (before["restarts"], after["restarts"]) == (0, 1)
        assert after["server_uptime"] < after["uptime"]
        assert after["events"] == before["events"] != []
        assert after["corruptions"] == 1
        assert after["blobs_checked"] == before["blobs_checked"]
        assert after["requests"]["read"] >= before["requests"]["read"]
        code, report, _ = _verified(mount.path)
        assert (code, report["bad_blobs"]) == (5, 1)


def test_a_dead_mount(odd: Built, foreground: Foreground, point: Path) -> None:
    with foreground(odd.image("v3")) as process:
        process.kill()
        process.wait(30)
        for verb in ("status", "verify"):
            result = run_puzzlefs(verb, point, check=False)
            assert result.returncode == 7
            assert f"the server of {point} is dead; remove the mount: puzzlefs umount {point}" in result.stderr
        run_puzzlefs("umount", point)


def test_garbage_does_not_disturb(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        found = mounted_at(mount.path)
        assert found is not None
        for garbage in (b"", b"\0" * 10_000, b"{}\n", b"[" * 4000 + b"\n", b'{"request": "verify"}\n'):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(address_of(found.device))
                connection.sendall(garbage)
        assert _read(mount.path / _NAME) == (odd.source / _NAME).stat().st_size
        assert _status(mount.path)["corruptions"] == 0


@pytest.fixture(scope="module")
def other_user(open_directory: Path) -> AsUser:
    """``other_user("status", …)`` runs the command as somebody who has mounted nothing."""
    packages = open_directory / "packages-status"
    copy_packages(packages)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    python = python_for(as_user(_USER), environment, "puzzlefs.image, puzzlefs_cli.main")

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*as_user(_USER), python, "-m", "puzzlefs_cli", *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd="/", timeout=60, check=False
        )

    return run


def test_whoever_mounted_may_ask(
    odd: Built, engine: str, other_user: AsUser, open_directory: Path, tmp_path: Path
) -> None:
    layout, point = open_directory / f"layout-{engine}", open_directory / f"own-{engine}"
    copy_layout(odd.layout / "new", layout)
    subprocess.run(["chmod", "-R", "a+rX", layout], check=True)
    point.mkdir()
    os.chown(point, _USER, _USER)
    made = other_user("mount", "--engine", engine, f"{layout}:v3-zstd", point)
    assert made.returncode == 0, made.stderr
    try:
        asked = other_user("status", "--json", point)
        assert asked.returncode == 0, asked.stderr
        assert json.loads(asked.stdout)["image"] == f"{layout}:v3-zstd"
        assert other_user("verify", point).stdout.startswith("sound: ")
        assert _status(point)["blobs_checked"] == _status(point)["blobs_to_check"]  # root may ask, too
    finally:
        taken = other_user("umount", point)
    assert taken.returncode == 0, taken.stderr


def test_another_user_is_refused(odd: Built, mounted: Mount, other_user: AsUser, open_directory: Path) -> None:
    with mounted(odd.image("v3"), at=open_directory / "mount") as mount:
        assert other_user("ls", odd.image("v3")).returncode != 0  # (pytest's directories are private)
        for verb in ("status", "verify"):
            result = other_user(verb, mount.path)
            assert result.returncode == 7
            assert "only root and the user that mounted it may ask" in result.stderr
        assert _status(mount.path)["requests"]
