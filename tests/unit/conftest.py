"""Fixtures of more than one module of unit tests."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

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
