"""Permissions hold for third users, ACLs included: the kernel has to know about them, or it lets the wrong people
in."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import Built

pytestmark = pytest.mark.mount

_GRANTED, _OTHER = 4001, 4003
_DENIED_GROUP, _OTHER_GROUP = 4002, 4003


@pytest.fixture(scope="module")
def image(odd: Built, open_directory: Path, shared_mount: Callable[..., Path]) -> Path:
    return shared_mount(odd.image("v3"), at=open_directory / "mount")


def _can_read(path: Path, uid: int, gid: int) -> bool:
    command = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--", "cat", str(path)]
    result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 0 or "Permission denied" in result.stderr, result.stderr
    return result.returncode == 0


@pytest.mark.parametrize(
    ("name", "uid", "gid", "allowed"),
    [
        ("acl/granted", _GRANTED, _OTHER_GROUP, True),
        ("acl/granted", _OTHER, _OTHER_GROUP, False),
        # without ACLs the kernel would read the mask as the rights of the owning group
        ("acl/group-denied", _OTHER, _DENIED_GROUP, False),
        ("acl/group-denied", _OTHER, _OTHER_GROUP, True),
        ("acl/group-denied", _OTHER, 0, True),
        ("acl/private", _GRANTED, _OTHER_GROUP, False),
        ("acl/private", 0, 0, True),
        ("big/512", 1000, 1000, True),
        ("big/512", _OTHER, 1000, True),
        ("big/512", _OTHER, _OTHER_GROUP, False),
        ("big/text", _OTHER, _OTHER_GROUP, True),
    ],
)
def test_who_may_read(image: Path, name: str, uid: int, gid: int, allowed: bool) -> None:
    assert _can_read(image / name, uid, gid) is allowed


def test_getfacl_shows_what_the_source_has(odd: Built, image: Path) -> None:
    for name in ("acl/granted", "acl/group-denied", "acl/default", "big/text"):
        shown, expected = (
            subprocess.run(
                ["getfacl", "--numeric", "--omit-header", "--absolute-names", str(top / name)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for top in (image, odd.source)
        )
        assert shown == expected
        assert shown


def test_trusted_attributes_are_for_root(image: Path) -> None:
    command = ["getfattr", "--absolute-names", "-m", "-", str(image / "xattrs" / "file")]
    as_root = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    as_user = subprocess.run(
        ["setpriv", "--reuid=4003", "--regid=4003", "--clear-groups", "--", *command],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "trusted.secret" in as_root
    assert "trusted.secret" not in as_user
    assert "user.binary" in as_root
    assert "user.binary" in as_user
