"""Fixtures of more than one module of unit tests."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest
from support.fsck_layouts import KINDS, three_images

from puzzlefs.mount.control_client import LiveMount
from puzzlefs.mount.mountinfo import IMAGE_FS_TYPE, Mount

_devices = itertools.count()


@pytest.fixture
def device() -> str:
    """A device number that no mount has."""
    return f"test-{os.getpid()}:{next(_devices)}"


@pytest.fixture
def live(device: str, tmp_path: Path) -> LiveMount:
    """What a client finds in the kernel's table."""
    owner = b"user_id=%d" % os.getuid()
    return LiveMount(tmp_path, Mount(0, device, tmp_path, IMAGE_FS_TYPE, "image", super_options=owner), False)


@pytest.fixture(scope="session", params=KINDS)
def pristine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A layout with two images and a delta, and the tree of the first."""
    return three_images(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def layout(pristine: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(pristine[0], tmp_path / "oci")
    return tmp_path / "oci"
