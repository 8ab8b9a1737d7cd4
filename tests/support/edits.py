"""Random things that are done to a tree: what programs do, in any order, with few names, so that they meet often."""

from __future__ import annotations

import os
import random
import shutil
import stat
from pathlib import Path

_NAMES = ("a", "b", "C", "c", "long-name-of-a-file", "ä")
_DIRECTORIES = ("", "d", "d/e", "f", "f/g/h")


class Editor:
    """Edits one tree. Whatever the kernel refuses is no edit."""

    def __init__(self, root: Path, rnd: random.Random) -> None:
        self._root = root
        self._rnd = rnd
        self._edits = (
            self._create, self._create, self._write_into, self._truncate, self._append, self._link, self._unlink,
            self._rename, self._rename_directory, self._chmod, self._chown, self._set_xattr, self._remove_xattr,
            self._make_node, self._symlink, self._replace_kind, self._remove_tree, self._touch,
        )  # fmt: skip

    def run(self, count: int) -> None:
        """Do ``count`` things."""
        for _ in range(count):
            try:
                self._rnd.choice(self._edits)()
            except OSError:
                continue

    def _place(self) -> Path:
        """A path, whose parent is made if it can be."""
        parent = self._directory(self._rnd.choice(_DIRECTORIES))
        parent.mkdir(parents=True, exist_ok=True)
        return parent / self._rnd.choice(_NAMES)

    def _directory(self, name: str) -> Path:
        """A directory that is there or can be made; never one behind a symlink, which could lead anywhere."""
        path = self._root
        for part in Path(name).parts:
            path /= part
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise NotADirectoryError(path)
        return path

    def _old(self) -> Path:
        """Something that is there."""
        found = sorted(path for path in self._root.rglob("*"))
        return self._rnd.choice(found or [self._root])

    def _file(self) -> Path:
        """A regular file. Nothing else is ever opened."""
        found = sorted(path for path in self._root.rglob("*") if path.is_file() and not path.is_symlink())
        if not found:
            raise FileNotFoundError
        return self._rnd.choice(found)

    def _bytes(self) -> bytes:
        return self._rnd.randbytes(self._rnd.choice((0, 1, 100, 5000, 200_000)))

    def _create(self) -> None:
        path = self._place()
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            path.unlink()  # it may be a device of this machine, or a pipe that nobody reads
        path.write_bytes(self._bytes())

    def _write_into(self) -> None:
        with open(self._file(), "r+b") as file:
            file.seek(self._rnd.randrange(1000))
            file.write(self._bytes())

    def _append(self) -> None:
        with open(self._file(), "ab") as file:
            file.write(self._bytes())

    def _truncate(self) -> None:
        os.truncate(self._file(), self._rnd.choice((0, 10, 3000, 300_000)))

    def _link(self) -> None:
        os.link(self._old(), self._place(), follow_symlinks=False)

    def _unlink(self) -> None:
        self._old().unlink()

    def _rename(self) -> None:
        self._old().rename(self._place())

    def _rename_directory(self) -> None:
        found = sorted(path for path in self._root.rglob("*") if path.is_dir() and not path.is_symlink())
        if found:
            os.rename(self._rnd.choice(found), self._place())

    def _chmod(self) -> None:
        path = self._old()
        if not path.is_symlink():
            path.chmod(self._rnd.choice((0o600, 0o755, 0o4755, 0o1777, 0o000)))

    def _chown(self) -> None:
        os.chown(self._old(), self._rnd.randrange(3), self._rnd.randrange(3), follow_symlinks=False)

    def _set_xattr(self) -> None:
        name = self._rnd.choice(("user.x", "user.y", "trusted.z"))
        os.setxattr(self._old(), name, self._rnd.randbytes(5), follow_symlinks=False)

    def _remove_xattr(self) -> None:
        path = self._old()
        for name in os.listxattr(path, follow_symlinks=False):
            os.removexattr(path, name, follow_symlinks=False)

    def _make_node(self) -> None:
        kind = self._rnd.choice((stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK))
        os.mknod(self._place(), kind | 0o640, os.makedev(self._rnd.randrange(1, 4), self._rnd.randrange(4)))

    def _symlink(self) -> None:
        os.symlink(self._rnd.choice(("a", "../x", "/nowhere", "t" * 300)), self._place())

    def _replace_kind(self) -> None:
        path = self._old()
        if path == self._root:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            self._rnd.choice((path.touch, lambda: path.symlink_to("b"), lambda: os.mkfifo(path)))()
        else:
            path.unlink()
            path.mkdir()
            (path / "inside").write_bytes(self._bytes())

    def _remove_tree(self) -> None:
        if self._rnd.random() < 0.3:
            path = self._directory(self._rnd.choice(_DIRECTORIES[1:]))
            shutil.rmtree(path)
            if self._rnd.random() < 0.5:
                path.mkdir()

    def _touch(self) -> None:
        os.utime(self._old(), ns=(0, self._rnd.randrange(1 << 60)), follow_symlinks=False)
