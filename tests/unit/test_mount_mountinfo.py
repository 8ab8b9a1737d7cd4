"""Reading the kernel's table of mounts, and refusing to unmount what is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from puzzlefs.errors import MountError, NotFoundError
from puzzlefs.mount.mountinfo import Mount, is_still_there, mounted_at, new_mount_at, parse_mountinfo
from puzzlefs.mount.namespace import has_mount, unique_mount_id
from puzzlefs.mount.unmounting import unmount

pytestmark = pytest.mark.unit

# the first line is the example of proc(5)
TABLE = (
    rb"""36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
40 36 0:35 / /mnt\0402/a\134b rw,relatime shared:7 master:2 propagate_from:3 - fuse.puzzlefs /images:a\040b rw
41 36 0:36 / /mnt - fuse.puzzlefs one ro
not a line at all
42 36 0:37 / /mnt rw - fuse.puzzlefs two ro
43 36 0:38 / /caf"""[:-4]
    + "/café\xff rw - tmpfs none rw\n".encode("latin-1")
)


def test_parsing() -> None:
    mounts = parse_mountinfo(TABLE)
    assert mounts[0] == Mount(36, "98:0", Path("/mnt2"), "ext3", "/dev/root")
    assert mounts[1] == Mount(40, "0:35", Path("/mnt 2/a\\b"), "fuse.puzzlefs", "/images:a b")
    assert [mount.mount_id for mount in mounts[2:]] == [42, 43]  # the third lacks a field
    assert bytes(mounts[3].point).endswith(b"\xff")


def test_looking_up() -> None:
    found = mounted_at(Path("/proc"))
    assert found is not None
    assert found.fs_type == "proc"
    assert mounted_at(Path("/proc/self")) is None


def test_the_number_that_no_other_mount_gets(tmp_path: Path) -> None:
    number = unique_mount_id("/proc")
    if not number:
        pytest.skip("this kernel has no unique numbers of mounts (Linux 6.8)")
    found = new_mount_at(Path("/proc"))
    assert found is not None
    assert found.unique_id == number != unique_mount_id("/")
    assert is_still_there(found)
    assert has_mount(number)
    assert not has_mount(number + (1 << 40))
    assert not is_still_there(found._replace(unique_id=number + (1 << 40)))
    assert unique_mount_id(tmp_path / "nothing") == 0
    assert new_mount_at(tmp_path) is None


def test_unmounting_what_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="proc"):
        unmount(Path("/proc"))
    with pytest.raises(NotFoundError):
        unmount(tmp_path)
    with pytest.raises(NotFoundError):
        unmount(tmp_path / "nothing")
    assert mounted_at(Path("/proc")) is not None
