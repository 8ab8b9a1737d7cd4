"""The images of the original implementation, mounted, show exactly what ``expected.json`` says."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.golden]

_FORMATS = ("v1", "v1-zstd", "v2", "v2-zstd", "v3", "v3-zstd")
_TAGS = ("base", "fresh", "second")
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def _shown(path: str, like: dict[str, Any]) -> dict[str, Any]:
    """An entry in the form of ``expected.json``, in the fields that the expectation has."""
    found = os.lstat(path)
    kind = _TYPES[stat.S_IFMT(found.st_mode)]
    facts: dict[str, Any] = {
        "type": kind,
        "permissions": oct(stat.S_IMODE(found.st_mode)),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "nlink": found.st_nlink,
        "size": found.st_size,
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
    }
    if kind == "file":
        facts["sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if kind == "symlink":
        facts["target"] = os.readlink(path)
    names = os.listxattr(path, follow_symlinks=False)
    if names:
        facts["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    return {name: value for name, value in facts.items() if name in like or name == "xattrs"}


@pytest.mark.parametrize("tag", _TAGS)
@pytest.mark.parametrize("version", _FORMATS)
def test_vector(vectors: Path, mounted: Mount, expected: dict[str, Any], version: str, tag: str) -> None:
    tree = expected["trees"][tag]
    options = ["--digest", expected["digests"][version][tag], "--verity", "user"]
    with mounted(f"{vectors / version}:{tag}", *options) as mount:
        top = str(mount.path)
        names = {"."}
        for directory, directories, files in os.walk(top):
            names |= {os.path.relpath(os.path.join(directory, name), top) for name in (*directories, *files)}
        assert names == set(tree)
        shown = {name: _shown(os.path.join(top, name), tree[name]) for name in names}
    assert shown == tree
