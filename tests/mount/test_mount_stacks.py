"""Mounts of many metadata layers: they show the tree; where layers contradict each other, one reader gets an error."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from pathlib import Path

import pytest
from mounting import Mount
from support.forge import Forge, directory, inode, regular, symlink

from puzzlefs.model import BlobRef, Fifo, FileChunk, Inode, Whiteout

pytestmark = [pytest.mark.mount, pytest.mark.hostile]

COUNT = 300
LAYERS = 20


def _errno(path: Path) -> str:
    try:
        path.lstat()
        if path.is_dir() and not path.is_symlink():
            os.listdir(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "fine"


def test_layers_that_contradict_each_other(tmp_path: Path, mounted: Mount) -> None:
    image = Forge(tmp_path / "layout").image(
        [
            inode(3, Whiteout()),
            directory(5, {b"again": 6, b"sound": 9}),
            inode(7, Fifo()),
            directory(8, [(b"twice", 9), (b"twice", 10)]),
            inode(77, Whiteout()),
        ],
        [directory(3, {b"x": 9}), directory(5), inode(8, Fifo()), inode(10, Fifo())],
        [
            directory(1, {b"a": 6, b"dead": 3, b"double": 5, b"ghost": 99, b"other": 7, b"sound": 9, b"zz": 8}),
            directory(6, {b"file": 9}),
            directory(7, {b"below": 9}),
            symlink(9, b"target"),
        ],
    )
    with mounted(image, bad_lines=True) as mount:
        assert sorted(os.listdir(mount.path)) == ["a", "double", "ghost", "other", "sound", "zz"]
        found = {name: _errno(mount.path / name) for name in os.listdir(mount.path)}
        assert found == {
            "a": "fine",
            "double": "fine",
            "ghost": "EIO",
            "other": "fine",
            "sound": "fine",
            "zz": "EIO",
        }
        assert _errno(mount.path / "dead") == "ENOENT"
        assert _errno(mount.path / "double" / "again") == "EIO"
        assert (mount.path / "other").is_fifo()
        assert os.readlink(mount.path / "double" / "sound") == "target"
        # the names in a directory that cannot be listed count: counting reads numbers
        assert (mount.path / "a" / "file").lstat().st_nlink == 4
        complaints = subprocess.run(
            ["find", mount.path], capture_output=True, text=True, check=False, timeout=30
        ).stderr
        assert complaints.count("Input/output error") == 3
    assert len(mount.bad_lines()) == 3


def test_many_small_layers_show_what_is_in_them(tmp_path: Path, mounted: Mount) -> None:
    """Contents too: files that an upper layer changed share chunks with those that it did not."""
    forge = Forge(tmp_path / "layout")
    rnd = random.Random(20)
    contents: dict[int, bytes] = {}

    def files(numbers: list[int]) -> list[Inode]:
        """New files, one behind the other in one chunk, as a build stores them."""
        new = {ino: rnd.randbytes(rnd.randrange(1, 300)) for ino in sorted(numbers)}
        contents.update(new)
        chunk = forge.chunk(b"".join(new.values()))
        offset, made = 0, []
        for ino, data in new.items():
            part = FileChunk(BlobRef(chunk.blob.digest, offset, False), len(data))
            made.append(regular(ino, part))
            offset += len(data)
        return made

    first = 10
    layers = [[directory(1, {b"%04d" % ino: ino for ino in range(first, first + COUNT)})]]
    layers[0] += files(list(range(first, first + COUNT)))
    live = set(range(first, first + COUNT))
    for number in range(LAYERS):
        fresh = first + COUNT + number
        gone = rnd.choice(sorted(live))
        live = live - {gone} | {fresh}
        changed = rnd.sample(sorted(live - {fresh}), 12)
        names = {b"%04d" % ino: ino for ino in sorted(live)}
        layers.insert(0, [directory(1, names), *files([*changed, fresh])])
    expected = {f"{ino:04}": contents[ino] for ino in live}
    for order in (sorted(expected), sorted(expected, reverse=True), rnd.sample(sorted(expected), len(expected))):
        with mounted(forge.image(*layers)) as mount:
            assert {name: (mount.path / name).read_bytes() for name in order} == expected
            assert sorted(os.listdir(mount.path)) == sorted(expected)
            assert all((mount.path / name).stat().st_size == len(data) for name, data in expected.items())
