"""``puzzlefs umount``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from mounting import Built, Mount, is_mounted, run_puzzlefs, wait_for_end

pytestmark = pytest.mark.mount


def test_umount_of_what_is_not_mounted(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        result = run_puzzlefs("umount", path, check=False)
        assert result.returncode == 3
        assert result.stderr == f"puzzlefs: {path} is not a mount point\n"


def test_umount_of_another_file_system() -> None:
    result = run_puzzlefs("umount", "/proc", check=False)
    assert result.returncode == 7
    assert "type proc" in result.stderr
    assert is_mounted(Path("/proc"))


def test_umount_of_a_mount_in_use(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        with open(mount.path / "big" / "text", "rb"):
            result = run_puzzlefs("umount", mount.path, check=False)
            assert result.returncode == 7
            assert "busy" in result.stderr
            assert f"umount -l {mount.path}" in result.stderr
            assert is_mounted(mount.path)
        run_puzzlefs("umount", mount.path)
        assert not is_mounted(mount.path)


def test_umount_through_a_link_and_of_a_stack(odd: Built, mounted: Mount, tmp_path: Path) -> None:
    with mounted(odd.image("v1")) as below, mounted(odd.image("v3-zstd"), at=below.path) as above:
        assert above.path.stat().st_mtime_ns != 0
        link = tmp_path / "link"
        link.symlink_to(below.path)
        run_puzzlefs("umount", link)
        wait_for_end(above.pid)
        assert is_mounted(below.path)
        assert below.path.stat().st_mtime_ns == 0
        run_puzzlefs("umount", link)
        assert not is_mounted(below.path)


def test_umount_of_a_mount_with_another_one_in_it(odd: Built, mounted: Mount) -> None:
    with mounted(odd.image("v3")) as mount:
        inside = mount.path / "big"
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inside], check=True)
        try:
            result = run_puzzlefs("umount", mount.path, check=False)
            assert result.returncode == 7
            assert f"umount {inside};" in result.stderr
        finally:
            subprocess.run(["umount", inside], check=True)
