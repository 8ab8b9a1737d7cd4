"""Images made to hurt: each bad entry fails by itself, with EIO and a line in the log; all beside it works."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import zstandard
from fuzz.mutation import words_of_message
from mounting import Mount
from support.examine import examine
from support.forge import Forge, directory, inode, regular, symlink

from puzzlefs.digest import Digest
from puzzlefs.errors import PuzzlefsError
from puzzlefs.image import Image, open_image
from puzzlefs.model import BlobRef, BlockDevice, CharDevice, Fifo, FileChunk, Inode, Socket

pytestmark = [pytest.mark.mount, pytest.mark.hostile]


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "layout")


def _errno(path: Path) -> str:
    try:
        found = path.lstat()
        if found.st_mode >> 12 == 0o10:
            path.read_bytes()
        elif found.st_mode >> 12 == 0o04:
            os.listdir(path)
        elif found.st_mode >> 12 == 0o12:
            os.readlink(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "fine"


def test_a_directory_with_two_places(forge: Forge, mounted: Mount) -> None:
    shared, file = 4, 5
    image = forge.image(
        [
            directory(1, {b"a": 2, b"b": 3}),
            directory(2, {b"shared": shared, b"sound": file}),
            directory(3, {b"again": shared, b"sound": file}),
            directory(shared, {b"inside": file}),
            regular(file, forge.chunk(b"sound")),
        ]
    )
    for first in ("a", "b"):  # whichever is looked at first, the same place counts
        with mounted(image, bad_lines=True) as mount:
            order = [mount.path / first, mount.path / ("b" if first == "a" else "a")]
            for path in order:
                assert "sound" in os.listdir(path)
                assert (path / "sound").read_bytes() == b"sound"
            assert sorted(os.listdir(mount.path / "a")) == ["shared", "sound"]
            assert sorted(os.listdir(mount.path / "b")) == ["again", "sound"]
            assert _errno(mount.path / "b" / "again") == "EIO"
            assert _errno(mount.path / "a" / "shared") == "fine"
            assert (mount.path / "a" / "shared" / "inside").read_bytes() == b"sound"
            assert (mount.path / "a" / "sound").stat().st_nlink == 3
        (line,) = mount.bad_lines()
        assert "again" in line


def test_entries_for_the_root(forge: Forge, mounted: Mount) -> None:
    image = forge.image([directory(1, {b"root": 1, b"sub": 2}), directory(2, {b"up": 1, b"file": 3}), regular(3)])
    with mounted(image, bad_lines=True) as mount:
        assert sorted(os.listdir(mount.path)) == ["root", "sub"]
        assert sorted(os.listdir(mount.path / "sub")) == ["file", "up"]
        assert _errno(mount.path / "root") == "EIO"
        assert _errno(mount.path / "sub" / "up") == "EIO"
        assert _errno(mount.path / "sub" / "file") == "fine"
        assert mount.path.stat().st_ino == 1
        # a walk ends, and complains about exactly those two
        found = subprocess.run(["find", mount.path, "-ls"], capture_output=True, text=True, check=False, timeout=30)
        assert found.stderr.count("Input/output error") == 2
    assert len(mount.bad_lines()) == 2


def test_a_cycle_of_directories(forge: Forge, mounted: Mount) -> None:
    image = forge.image([directory(1, {b"a": 2}), directory(2, {b"b": 3}), directory(3, {b"a": 2})])
    with mounted(image, bad_lines=True) as mount:
        assert _errno(mount.path / "a" / "b") == "fine"
        assert _errno(mount.path / "a" / "b" / "a") == "EIO"
    assert len(mount.bad_lines()) == 1


def _sound_neighbours(forge: Forge, *bad: Inode, entries: Sequence[tuple[bytes, int]] = ()) -> str:
    """An image whose root has the bad inodes as ``bad-<number>`` between two sound files."""
    names = {b"aa-sound": 2, b"zz-sound": 3} | {b"bad-%d" % one.ino: one.ino for one in bad} | dict(entries)
    good = [regular(number, forge.chunk(b"sound"), permissions=0o600) for number in (2, 3)]
    return forge.image([directory(1, sorted(names.items())), *good, *bad])


def test_each_bad_entry_alone(forge: Forge, mounted: Mount) -> None:
    huge = (1 << 64) - 1
    missing = FileChunk(BlobRef(Digest.of(b"not there"), 0, False), 10)
    short = FileChunk(forge.chunk(b"short").blob, 100)
    no_zstd = FileChunk(BlobRef(forge.chunk(b"not zstd at all").blob.digest, 0, True), 10)
    expected = {
        10: (inode(10, CharDevice(1 << 20, 1)), "EIO"),
        11: (inode(11, BlockDevice(8, 1 << 21)), "EIO"),
        12: (inode(12, CharDevice(huge, huge)), "EIO"),
        13: (regular(13, FileChunk(missing.blob, 1 << 63)), "EIO"),
        14: (regular(14, FileChunk(missing.blob, huge), FileChunk(missing.blob, huge)), "EIO"),
        15: (regular(15, missing), "EIO"),
        16: (regular(16, short), "EIO"),
        17: (regular(17, no_zstd), "EIO"),
        18: (regular(18, FileChunk(BlobRef(short.blob.digest, huge, False), 5)), "EIO"),
        19: (symlink(19, b""), "EIO"),
        20: (symlink(20, b"x" * 5000), "EIO"),
        21: (symlink(21, b"a\0b"), "EIO"),
        22: (directory(22, {b"a/b": 2}), "EIO"),
        23: (directory(23, {b"..": 2}), "EIO"),
        24: (directory(24, [(b"twice", 2), (b"twice", 3)]), "EIO"),
        25: (directory(25, {b"n" * 256: 2}), "EIO"),
        26: (directory(26, {b"": 2}), "EIO"),
        27: (inode(27, CharDevice(4095, (1 << 20) - 1)), "fine"),
        huge: (regular(huge, forge.chunk(b"the last number")), "fine"),
    }
    image = _sound_neighbours(
        forge, *(one for one, _ in expected.values()), entries=[(b"dangling", 999), (b"dangling-0", 0)]
    )
    with mounted(image, bad_lines=True) as mount:
        names = {f"bad-{number}" for number in expected} | {"aa-sound", "zz-sound", "dangling", "dangling-0"}
        assert set(os.listdir(mount.path)) == names
        shown = {number: _errno(mount.path / f"bad-{number}") for number in expected}
        assert shown == {number: wanted for number, (_, wanted) in expected.items()}
        assert _errno(mount.path / "dangling") == _errno(mount.path / "dangling-0") == "EIO"
        assert (mount.path / "aa-sound").read_bytes() == (mount.path / "zz-sound").read_bytes() == b"sound"
        assert (mount.path / f"bad-{huge}").read_bytes() == b"the last number"
        assert (mount.path / f"bad-{huge}").stat().st_ino == huge
    text = "\n".join(mount.bad_lines())
    for number, (_, wanted) in expected.items():
        assert (f"bad-{number}'" in text) is (wanted != "fine"), number


def test_bad_xattrs(forge: Forge, mounted: Mount) -> None:
    image = _sound_neighbours(
        forge,
        regular(10, xattrs={b"": b"no name"}),
        regular(11, xattrs={b"user.a\0b": b"NUL"}),
        regular(12, xattrs={b"user." + b"n" * 256: b"long name"}),
        regular(13, xattrs={b"user.large": b"x" * 70_000}),
    )
    with mounted(image, bad_lines=True) as mount:
        for number in (10, 11, 12):
            with pytest.raises(OSError) as caught:
                os.listxattr(mount.path / f"bad-{number}")
            assert caught.value.errno == errno.EIO
        assert os.listxattr(mount.path / "bad-13") == ["user.large"]
        with pytest.raises(OSError):
            os.getxattr(mount.path / "bad-13", "user.large")
        assert _errno(mount.path / "aa-sound") == "fine"


def test_a_thousand_failures_are_not_a_thousand_lines(forge: Forge, mounted: Mount) -> None:
    image = forge.image([directory(1, {b"%04d" % number: 10_000 + number for number in range(1000)})])
    with mounted(image, bad_lines=True) as mount:
        assert len(os.listdir(mount.path)) == 1000
        assert all(_errno(mount.path / f"{number:04}") == "EIO" for number in range(1000))
    assert 50 <= len(mount.bad_lines()) < 200


def test_many_directories_that_share_everything(forge: Forge, mounted: Mount) -> None:
    # a tree in which each level names the next one twice: 2 ** 40 paths, if one followed them
    depth = 40
    levels = [directory(number, {b"a": number + 1, b"b": number + 1}) for number in range(1, depth)]
    image = forge.image([*levels, directory(depth)])
    with mounted(image, bad_lines=True) as mount:
        path = mount.path
        for _ in range(depth - 1):
            assert _errno(path / "b") == "EIO"
            path = path / "a"
            assert _errno(path) == "fine"


def test_a_name_that_would_break_a_line_of_the_log(forge: Forge, mounted: Mount) -> None:
    image = forge.image([directory(1, {b"a\nERROR forged\x1b[31m": 99})])
    with mounted(image, bad_lines=True) as mount:
        (name,) = os.listdir(mount.path)
        assert _errno(mount.path / name) == "EIO"
    assert len(mount.log_lines()) == 3
    assert "\x1b" not in mount.log_file.read_text()


def test_white_outs_and_layers(forge: Forge, mounted: Mount) -> None:
    upper = [
        directory(1, {b"changed": 3, b"added": 5}, look_below=True),
        regular(3, forge.chunk(b"new content")),
        regular(5, forge.chunk(b"added")),
    ]
    lower = [
        directory(1, {b"kept": 2, b"changed": 3}),
        regular(2, forge.chunk(b"kept")),
        regular(3, forge.chunk(b"old content")),
    ]
    with mounted(forge.image(upper, lower)) as mount:
        shown = {name: (mount.path / name).read_bytes() for name in os.listdir(mount.path)}
    assert shown == {"kept": b"kept", "changed": b"new content", "added": b"added"}


def test_more_bytes_than_a_host_can_count(forge: Forge, mounted: Mount) -> None:
    """Files that share a chunk cost nothing: together they have more bytes than statfs has bits for."""
    huge = FileChunk(forge.chunk(b"x").blob, (1 << 63) - 1)
    numbers = range(2, 8300)
    image = forge.image(
        [directory(1, {b"%d" % number: number for number in numbers}), *(regular(number, huge) for number in numbers)]
    )
    with mounted(image, bad_lines=True) as mount:
        whole = os.statvfs(mount.path)
        assert (whole.f_blocks, whole.f_files) == (1 << 51, len(numbers) + 1)
        assert _errno(mount.path / "2") == "EIO"
        assert os.statvfs(mount.path).f_blocks == 1 << 51  # and there is somebody who says so


# ---- any damage: metadata changed at random, the digests above them made right again

_SHOWN: Final = (b"one chunk, " * 2000, b"another one, " * 9000)
_OUTSIDE: Final = b"what lies outside of the image"
_DAMAGED: Final = 2
"""Images of each version and engine."""


def _damaged_images(forge: Forge) -> Iterator[str]:
    """Images that can be opened and in which something is wrong, the same ones every time."""
    rnd = random.Random(f"damage {forge.version}")
    whole, part = forge.chunk(_SHOWN[0]), forge.chunk(_SHOWN[1], compressed=True, offset=500)
    sound = [
        directory(1, {b"dir": 2, b"file": 3, b"link": 4, b"odd": 5, b"again": 3, b"%d" % 10: 10}),
        directory(2, {b"file": 6, b"sub": 7, b"name %d" % 8: 8}, xattrs={b"user.x": b"of a directory"}),
        regular(3, whole, part, xattrs={b"user.x": b"value", b"trusted.y": b"other"}),
        symlink(4, b"dir/file"),
        inode(5, CharDevice(1, 3)),
        regular(6, part, part, whole),
        directory(7, {b"deep": 9}),
        inode(8, Fifo()),
        directory(9, {b"%03d" % number: number for number in range(20, 60)}),
        inode(10, Socket()),
        *(regular(number, whole if number % 2 else part) for number in range(20, 60)),
    ]
    found = 0
    while found < _DAMAGED:

        def damage(data: bytes) -> bytes:
            for _ in range(rnd.randrange(1, 12)):
                data = words_of_message(data, rnd)
            return data

        reference = forge.patched(sound, damage)
        outcome = examine(reference)
        if outcome.opening is not None or not outcome.problems or len(outcome.paths) < 2:
            continue
        # Where a file cannot be read, tar writes zeros up to the size that it says: so nothing immense here.
        if outcome.totals is not None and outcome.totals[1] <= 16 << 20:
            found += 1
            yield reference


@pytest.mark.parametrize("version", [1, 2, 3])
def test_damaged_images_hurt_nobody(tmp_path: Path, mounted: Mount, version: int) -> None:
    forge = Forge(tmp_path / "images", version)
    (forge.path / "secret").write_bytes(_OUTSIDE)
    forge.blob(_OUTSIDE)  # a blob of the layout, but of no file
    for number, reference in enumerate(_damaged_images(forge)):
        with mounted(reference, bad_lines=True) as mount, open_image(reference) as image:
            os.statvfs(mount.path)
            expected = {entry.name for entry in image.tree.entries(1)}
            assert set(os.listdir(os.fsencode(mount.path))) == expected
            _run("find", mount.path, "-ls")
            _run("ls", "-lR", "--time-style=full-iso", mount.path)
            archive = tmp_path / f"{number}.tar"
            _run("tar", "--xattrs", "--acls", "-C", mount.path, "-cf", archive, ".")
            copy = tmp_path / f"copy-{number}"
            _run("cp", "-a", mount.path, copy)
            _compare_readable(mount.path, image)
            assert _OUTSIDE not in archive.read_bytes()
            _run("chmod", "-R", "u+rwX", copy)
            shutil.rmtree(copy)
            archive.unlink()
            assert os.path.exists(f"/proc/{mount.pid}")
        assert not any("Traceback" in line for line in mount.log_lines())


def _run(*command: str | Path) -> None:
    """A program that may complain, but has to end."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert done.returncode >= 0, done.stderr


def _compare_readable(root: Path, image: Image) -> None:
    """What can be read of files are parts of the chunks, as the image says; what the image says is wrong, cannot."""
    chunks = {Digest.of(_SHOWN[0]): _SHOWN[0], Digest.of(zstandard.compress(_SHOWN[1])): _SHOWN[1]}
    for directory_name, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = os.path.join(directory_name, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if not stat.S_ISREG(status.st_mode):
                continue
            try:
                with open(path, "rb") as file:
                    content = file.read()
            except OSError:
                content = None
            try:
                parts = image.tree.parts(status.st_ino)
                said = b"".join([_part(chunks[part.blob.digest], part) for part in parts])
            except (PuzzlefsError, LookupError):
                said = None
            assert content == said, path


def _part(content: bytes, part: FileChunk) -> bytes:
    found = content[part.blob.offset : part.blob.offset + part.length]
    if len(found) < part.length:
        raise LookupError
    return found
