"""No byte is shown that is not what its digest says: EIO, and one line that names the blob and the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from mounting import VARIANTS, Built, Mount, blob_with, flipped, is_mounted, read_fifo, run_puzzlefs

from puzzlefs.image import open_image

pytestmark = pytest.mark.mount

_NAME = "big/file"
_OFFSET = 2_500_000


def _fails(path: Path, offset: int) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.pread(fd, 10, offset)
    except OSError as error:
        assert error.errno == errno.EIO
        return True
    finally:
        os.close(fd)
    return False


@pytest.mark.parametrize("with_digest", [False, True])
@pytest.mark.parametrize("tag", VARIANTS)
def test_a_flipped_bit_in_ablob_with(odd: Built, mounted: Mount, tag: str, with_digest: bool) -> None:
    image = odd.image(tag)
    blob = blob_with(image, _NAME, _OFFSET)
    options = ["--digest", odd.digests[tag]] if with_digest else []
    with flipped(blob), mounted(image, *options, bad_lines=True) as mount:
        for _ in range(3):
            assert _fails(mount.path / _NAME, _OFFSET)
        data = (odd.source / _NAME).read_bytes()
        with open(mount.path / _NAME, "rb") as file:
            assert file.read(1000) == data[:1000]
            file.seek(-1000, os.SEEK_END)
            assert file.read() == data[-1000:]
        assert (mount.path / "big" / "text").read_bytes() == (odd.source / "big" / "text").read_bytes()
    (line,) = mount.bad_lines()
    assert "ERROR" in line
    assert blob.name in line
    assert f"'/{_NAME}'" in line


def test_every_byte_of_a_corrupt_chunk_is_refused(odd: Built, mounted: Mount) -> None:
    image = odd.image("v3")
    data = (odd.source / _NAME).read_bytes()
    blob = blob_with(image, _NAME, _OFFSET)
    content = blob.read_bytes()
    begin = data.index(content)
    with flipped(blob), mounted(image, bad_lines=True) as mount:
        for offset in (begin, begin + 1, begin + len(content) - 1):
            assert _fails(mount.path / _NAME, offset)


def test_a_restored_chunk_can_be_read_again(odd: Built, mounted: Mount) -> None:
    image = odd.image("v3")
    with mounted(image, bad_lines=True) as mount:
        with flipped(blob_with(image, _NAME, _OFFSET)):
            assert _fails(mount.path / _NAME, _OFFSET)
        assert not _fails(mount.path / _NAME, _OFFSET)


@pytest.mark.parametrize("how", ["missing", "truncated", "emptied", "longer", "a directory", "a link"])
def test_other_damage(odd: Built, mounted: Mount, tmp_path: Path, how: str) -> None:
    image = odd.image("v3-zstd")
    blob = blob_with(image, "big/text", 100)
    good = blob.read_bytes()
    copy = tmp_path / "copy"
    copy.write_bytes(good)
    blob.unlink()
    if how == "a directory":
        blob.mkdir()
    elif how == "a link":
        blob.symlink_to(copy)
    elif how != "missing":
        blob.write_bytes({"truncated": good[:-1], "emptied": b"", "longer": good + b"\0"}[how])
    try:
        with mounted(image, bad_lines=True) as mount:
            assert _fails(mount.path / "big" / "text", 100)
            assert (mount.path / "bin" / "script").read_bytes() == (odd.source / "bin" / "script").read_bytes()
        (line,) = mount.bad_lines()
        assert blob.name in line
        assert "'/big/text'" in line
    finally:
        if blob.is_dir() and not blob.is_symlink():
            blob.rmdir()
        else:
            blob.unlink(missing_ok=True)
        blob.write_bytes(good)


def test_the_line_names_the_file_also_after_its_name_was_forgotten(odd: Built, mounted: Mount) -> None:
    image = odd.image("v3")
    blob = blob_with(image, _NAME, _OFFSET)
    with flipped(blob), mounted(image, bad_lines=True) as mount:
        fd = os.open(mount.path / _NAME, os.O_RDONLY)
        try:
            for _ in range(2):  # more names than the server remembers
                for entry in os.scandir(mount.path / "many"):
                    entry.stat(follow_symlinks=False)
            with pytest.raises(OSError) as caught:
                os.pread(fd, 10, _OFFSET)
            assert caught.value.errno == errno.EIO
        finally:
            os.close(fd)
    (line,) = mount.bad_lines()
    assert f"'/{_NAME}'" in line


@pytest.mark.parametrize("tag", VARIANTS)
def test_the_right_digest(odd: Built, mounted: Mount, tag: str) -> None:
    for verity in ("auto", "user"):
        with mounted(odd.image(tag), "-d", odd.digests[tag], "--verity", verity) as mount:
            assert (mount.path / "big" / "text").read_bytes() == (odd.source / "big" / "text").read_bytes()


@pytest.mark.parametrize("tag", VARIANTS)
def test_a_wrong_digest_mounts_nothing(odd: Built, tag: str, point: Path, fifo: Path) -> None:
    wrong = odd.digests[tag][:-1] + ("0" if odd.digests[tag][-1] != "0" else "1")
    result = run_puzzlefs("mount", "-i", fifo, "-d", wrong, odd.image(tag), point, check=False)
    assert result.returncode == 5
    assert wrong in result.stderr
    assert not is_mounted(point)
    assert read_fifo(fifo) == b"f"


@pytest.mark.parametrize("with_digest", [False, True])
@pytest.mark.parametrize("tag", VARIANTS)
def test_a_flipped_bit_in_the_metadata_mounts_nothing(odd: Built, point: Path, tag: str, with_digest: bool) -> None:
    image = odd.image(tag)
    with open_image(image) as opened:
        blobs = opened.layout.path / "blobs" / "sha256"
        digests = [opened.manifest_digest, *(ref.digest for ref in opened.metadata_refs)]
        if opened.manifest is not None:
            digests.append(opened.manifest.rootfs().digest)
    assert len(digests) == 2
    options = ["-d", odd.digests[tag]] if with_digest else []
    for digest in digests:
        with flipped(blobs / digest.hex()):
            result = run_puzzlefs("mount", *options, image, point, check=False)
        assert result.returncode == 5, result.stderr
        assert digest.hex() in result.stderr
        assert not is_mounted(point)
