"""Trees as comparable values: path → what is there. One form for a directory on disk, an image, and ``expected.json``.

Paths are bytes, relative, ``b"."`` for the root. Link counts of directories are left out: file systems differ in them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puzzlefs.image import Image
from puzzlefs.model import ROOT_INO, Kind

Node = dict[str, Any]
Tree = dict[bytes, Node]

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
_HOST_XATTRS = (b"security.selinux", b"security.ima", b"security.evm")
_WINDOW = 1 << 20


def on_disk(root: str | os.PathLike[str], *, mtime: bool = False) -> Tree:
    """The tree below a directory."""
    tree: Tree = {}
    first_names: dict[tuple[int, int], bytes] = {}

    def visit(path: bytes, shown: bytes) -> None:
        status = os.lstat(path)
        node = _common(status.st_mode, status.st_uid, status.st_gid)
        if mtime:
            node["mtime_ns"] = status.st_mtime_ns
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in names
            if os.fsencode(name) not in _HOST_XATTRS
        }
        if xattrs:
            node["xattrs"] = xattrs
        if not stat.S_ISDIR(status.st_mode):
            node["nlink"] = status.st_nlink
            if status.st_nlink > 1:
                node["same_as"] = first_names.setdefault((status.st_dev, status.st_ino), shown)
        if stat.S_ISREG(status.st_mode):
            node["size"] = status.st_size
            with open(path, "rb") as file:
                node["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            node["target"] = os.readlink(path)
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            node["device"] = os.major(status.st_rdev), os.minor(status.st_rdev)
        tree[shown] = node
        if stat.S_ISDIR(status.st_mode):
            for name in sorted(os.listdir(path)):
                visit(os.path.join(path, name), _join(shown, name))

    visit(os.fsencode(root), b".")
    return tree


def in_image(image: Image, *, mtime: bool = False) -> Tree:
    """The tree that an image shows."""
    tree: Tree = {}
    first_names: dict[int, bytes] = {}

    def visit(ino: int, kind: Kind, shown: bytes) -> None:
        attributes = image.tree.attributes(ino)
        assert attributes.ino == ino
        assert attributes.blocks == (attributes.size + 511) // 512
        node = _common(attributes.mode, attributes.uid, attributes.gid)
        if mtime:
            node["mtime_ns"] = attributes.mtime_ns
        xattrs = image.tree.xattrs(ino)
        if xattrs:
            node["xattrs"] = dict(xattrs)
        if kind is not Kind.DIRECTORY:
            node["nlink"] = attributes.nlink
            if attributes.nlink > 1:
                node["same_as"] = first_names.setdefault(ino, shown)
        if kind is Kind.REGULAR:
            hasher = hashlib.sha256()
            for offset in range(0, attributes.size, _WINDOW):
                hasher.update(image.read(ino, offset, _WINDOW))
            assert image.read(ino, attributes.size, _WINDOW) == b""
            node["size"] = attributes.size
            node["sha256"] = hasher.hexdigest()
        elif kind is Kind.SYMLINK:
            node["target"] = image.tree.readlink(ino)
        elif kind in (Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE):
            node["device"] = os.major(attributes.rdev), os.minor(attributes.rdev)
        tree[shown] = node
        if kind is Kind.DIRECTORY:
            for entry in image.tree.entries(ino):
                assert image.tree.lookup(ino, entry.name) == entry
                visit(entry.ino, entry.kind, _join(shown, entry.name))

    visit(ROOT_INO, Kind.DIRECTORY, b".")
    return tree


def in_json(entries: Mapping[str, Mapping[str, Any]]) -> Tree:
    """A tree of ``expected.json``; it does not say which names are one file."""
    tree: Tree = {}
    for path, fields in entries.items():
        node: Node = dict(fields)
        node["permissions"] = int(node["permissions"], 8)
        if "xattrs" in node:
            node["xattrs"] = {os.fsencode(name): bytes.fromhex(value) for name, value in node["xattrs"].items()}
        if "target" in node:
            node["target"] = os.fsencode(node["target"])
        if "major" in node:
            node["device"] = node.pop("major"), node.pop("minor")
        tree[os.fsencode(path)] = node
    return tree


def without(tree: Tree, *fields: str) -> Tree:
    """The tree without some of its fields."""
    return {path: {name: value for name, value in node.items() if name not in fields} for path, node in tree.items()}


def _common(mode: int, uid: int, gid: int) -> Node:
    return {"type": _TYPES[stat.S_IFMT(mode)], "permissions": stat.S_IMODE(mode), "uid": uid, "gid": gid}


def _join(directory: bytes, name: bytes) -> bytes:
    return name if directory == b"." else directory + b"/" + name


def let_everybody_in(path: Path) -> None:
    """Have other users reach ``path``, which is below the directory for temporary files; pytest's are for one user."""
    top = Path(tempfile.gettempdir()).resolve()
    for directory in (path.resolve(), *path.resolve().parents):
        if directory == top:
            return
        directory.chmod(directory.stat().st_mode | 0o055)
    raise AssertionError(f"{path} is not below {top}")
