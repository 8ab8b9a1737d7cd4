"""An image without any xattr answers like one that has some elsewhere."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from mounting import Mount, build

pytestmark = pytest.mark.mount


def test_no_xattrs_is_an_answer_and_not_a_refusal(tmp_path: Path, mounted: Mount) -> None:
    (tmp_path / "source" / "d").mkdir(parents=True)
    (tmp_path / "source" / "f").write_text("x")
    image = f"{tmp_path}/images:plain"
    build(tmp_path / "source", image)
    with mounted(image) as mount:
        for path in (mount.path, mount.path / "d", mount.path / "f"):
            for _ in range(2):  # a refusal would be remembered by the kernel
                assert os.listxattr(path) == []
                with pytest.raises(OSError) as missing:
                    os.getxattr(path, "user.none")
                assert missing.value.errno == errno.ENODATA
