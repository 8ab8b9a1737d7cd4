"""From build to a mount that the kernel vouches for, as a user types it, and what happens when somebody interferes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import puzzlefs
from disks import Disk, Kind, MakeDisk, fs_verity_of

from puzzlefs import open_image

pytestmark = pytest.mark.verity

INTEGRITY, NOT_SUPPORTED = 5, 6

PLAIN = 600_000
"""Bytes of the file ``plain``, which is several chunks long."""

PATIENCE = 120
"""Seconds after which something counts as hanging; everything is slow in an emulated machine."""

KERNEL = ("--verity", "kernel")

VARIANTS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "version 1": ("ext4", ("--format-version=1",)),
    "version 2, zstd": ("ext4", ("--format-version=2", "-c")),
    "version 3": ("ext4", ()),
    "btrfs": ("btrfs", ()),
}
"""On which kind of disk, and how, images are made."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree of several chunks."""
    root = tmp_path_factory.mktemp("source")
    (root / "directory").mkdir()
    (root / "directory" / "empty").touch()
    (root / "directory" / "one").write_bytes(b"1")
    (root / "plain").write_bytes(os.urandom(PLAIN))
    (root / "text").write_bytes(b"all work and no play " * 10_000)
    (root / "link").symlink_to("directory/one")
    os.link(root / "plain", root / "second name")
    os.mkfifo(root / "fifo")
    return root


@pytest.fixture(scope="module")
def disk(make_module_disk: MakeDisk) -> Disk:
    return make_module_disk()


@pytest.fixture(scope="module")
def btrfs(make_module_disk: MakeDisk) -> Disk:
    return make_module_disk(kind="btrfs")


class Sealed:
    """An image on a disk with fs-verity.

    Attributes:
        log_file: what the servers of its mounts have to say.
    """

    def __init__(self, layout: Path, digest: str) -> None:
        self.layout = layout
        self.log_file = Path(tempfile.mkdtemp()) / "log"
        self.reference = f"{layout}:tag"
        self.digest = digest

    def blobs(self) -> list[Path]:
        return sorted((self.layout / "blobs" / "sha256").iterdir())

    def blob_of(self, name: bytes, offset: int) -> Path:
        """The blob that holds a byte of a file in the root directory."""
        with open_image(self.reference) as image:
            ino = image.tree.lookup(image.tree.root, name).ino
            return image.layout.blob_path(image.tree.plan(ino, offset, 1).pieces[0].blob)

    @contextlib.contextmanager
    def mounted(self, *options: str) -> Iterator[Path]:
        mountpoint = self.layout.with_name(f"{self.layout.name}-mounted")
        mountpoint.mkdir()
        try:
            puzzlefs("mount", "--log-file", self.log_file, *options, self.reference, mountpoint)
            try:
                yield mountpoint
            finally:
                puzzlefs("umount", mountpoint)
                self._wait_for_servers()
        finally:
            mountpoint.rmdir()

    def _wait_for_servers(self) -> None:
        """Wait until what has served is gone: its lease is the last that it takes away."""
        deadline = time.monotonic() + PATIENCE
        while any((self.layout / "blobs" / "sha256").glob(".lease-*")):
            if time.monotonic() > deadline:
                raise AssertionError("a server does not end")
            time.sleep(0.02)

    def has_logged(self, *words: str) -> bool:
        """Whether there is a line about an error that has all these words."""
        lines = self.log_file.read_text().splitlines()
        return any(" ERROR " in line and all(word in line for word in words) for line in lines)


def build(disk: Disk, source: Path, name: str, *options: str, enable: bool = True) -> Sealed:
    layout = disk.root / name
    printed = puzzlefs("build", *options, source, f"{layout}:tag").stdout
    image = Sealed(layout, printed.removeprefix("puzzlefs image manifest digest: ").strip())
    if enable:
        puzzlefs("enable-fs-verity", image.reference, image.digest)
    return image


@pytest.fixture
def image(disk: Disk, source: Path) -> Iterator[Sealed]:
    """A sealed image of version 3, for one test."""
    sealed = build(disk, source, "image")
    yield sealed
    shutil.rmtree(sealed.layout)


def replace(path: Path, data: bytes) -> None:
    """Puts another file in the place of a sealed one, which cannot be written to."""
    new = path.with_name("new")
    new.write_bytes(data)
    new.rename(path)


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def assert_same(source: Path, mounted: Path) -> None:
    """Compares what readers see: names, types, sizes, modes, targets, contents."""

    def tree(root: Path) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for path in [root, *sorted(root.rglob("*"))]:
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = path.readlink()
            elif path.is_file():
                content = path.read_bytes()
            links = None if path.is_dir() else status.st_nlink
            size = None if path.is_dir() else status.st_size
            found[str(path.relative_to(root))] = (status.st_mode, status.st_uid, size, links, content)
        return found

    assert len(tree(source)) == 9
    assert tree(mounted) == tree(source)


def assert_eio(path: Path, offset: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Input/output error") as error:
            os.pread(fd, 1, offset)
        assert error.value.errno == errno.EIO
    finally:
        os.close(fd)


@pytest.mark.parametrize("variant", VARIANTS)
def test_session(request: pytest.FixtureRequest, source: Path, variant: str) -> None:
    kind, options = VARIANTS[variant]
    disk: Disk = request.getfixturevalue("disk" if kind == "ext4" else kind)
    image = build(disk, source, f"session {variant}".replace(" ", "-"), *options, enable=False)
    kernel = ("--digest", image.digest, "--verity", "kernel")
    wrong = image.digest[::-1]
    nowhere = image.layout.with_name("nowhere")
    nowhere.mkdir(exist_ok=True)

    refused = puzzlefs("mount", *kernel, image.reference, nowhere, code=NOT_SUPPORTED)
    assert "does not have fs-verity enabled" in refused.stderr
    refused = puzzlefs("enable-fs-verity", image.reference, wrong, code=INTEGRITY)
    assert wrong in refused.stderr
    assert image.digest in refused.stderr
    assert not any(map(fs_verity_of, image.blobs()))

    enabled = json.loads(puzzlefs("enable-fs-verity", "--json", image.reference, image.digest).stdout)
    again = json.loads(puzzlefs("enable-fs-verity", "--json", image.layout, "tag", image.digest).stdout)
    assert (enabled["enabled"], enabled["already_enabled"]) == (len(image.blobs()), 0)
    assert (again["enabled"], again["already_enabled"]) == (0, len(image.blobs()))
    for path in image.blobs():
        with pytest.raises(PermissionError):
            path.open("r+b")

    with image.mounted(*kernel) as mounted:
        assert_same(source, mounted)
    for mode in ("kernel", "auto", "user"):
        refused = puzzlefs("mount", "-d", wrong, "--verity", mode, image.reference, nowhere, code=INTEGRITY)
        assert len(refused.stderr.splitlines()) == 1
        assert image.digest in refused.stderr
    assert not nowhere.is_mount()


def test_blob_without_fs_verity(image: Sealed, source: Path) -> None:
    path = image.blob_of(b"plain", PLAIN // 2)
    replace(path, path.read_bytes())
    with image.mounted("-d", image.digest, "--verity", "kernel") as mounted:
        assert_eio(mounted / "plain", PLAIN // 2)
        assert (mounted / "directory" / "one").read_bytes() == b"1"
    with image.mounted("-d", image.digest, "--verity", "auto") as mounted:
        assert_same(source, mounted)

    replace(path, flip(path.read_bytes(), 0))
    for mode in ("auto", "user"):
        with image.mounted("-d", image.digest, "--verity", mode) as mounted:
            assert_eio(mounted / "plain", PLAIN // 2)


def test_blob_with_other_content_and_fs_verity(image: Sealed, disk: Disk) -> None:
    path = image.blob_of(b"plain", PLAIN // 2)
    replace(path, flip(path.read_bytes(), 0))
    disk.enable(path)
    for mode in ("kernel", "auto", "user"):
        with image.mounted("-d", image.digest, "--verity", mode) as mounted:
            assert_eio(mounted / "plain", PLAIN // 2)
            assert (mounted / "directory" / "one").read_bytes() == b"1"


def test_blob_replaced_by_another_blob_of_the_image(image: Sealed) -> None:
    """Good bytes with a good fs-verity digest, but in the wrong place."""
    path, other = image.blob_of(b"plain", PLAIN // 2), image.blob_of(b"plain", 0)
    assert path != other
    path.unlink()
    os.link(other, path)
    assert fs_verity_of(path) is not None
    for mode in ("kernel", "auto"):
        with image.mounted("-d", image.digest, "--verity", mode) as mounted:
            assert_eio(mounted / "plain", PLAIN // 2)


def test_metadata_without_fs_verity_is_not_mounted_by_the_kernels_word(image: Sealed, tmp_path: Path) -> None:
    with open_image(image.reference) as opened:
        assert opened.manifest is not None
        layout = opened.layout
        metadata = [layout.blob_path(opened.manifest.rootfs().digest), layout.blob_path(opened.manifest_digest)]
    for path in metadata:
        good = path.read_bytes()
        replace(path, good)
        for mode, code in (("kernel", NOT_SUPPORTED), ("auto", 0)):
            puzzlefs("mount", "-d", image.digest, "--verity", mode, image.reference, tmp_path, code=code)
            if not code:
                puzzlefs("umount", tmp_path)
        replace(path, flip(good, len(good) // 2))
        for mode in ("auto", "user"):
            puzzlefs("mount", "-d", image.digest, "--verity", mode, image.reference, tmp_path, code=INTEGRITY)
        replace(path, good)
        puzzlefs("enable-fs-verity", image.reference, image.digest)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "version 3"])
def test_blobs_that_are_not_sealed_or_others(request: pytest.FixtureRequest, source: Path, variant: str) -> None:
    """The tests above, in short, for the other versions and file systems."""
    kind, options = VARIANTS[variant]
    disk: Disk = request.getfixturevalue("disk" if kind == "ext4" else kind)
    image = build(disk, source, f"touched {variant}".replace(" ", "-"), *options)
    bare, other = image.blob_of(b"plain", PLAIN // 2), image.blob_of(b"text", 100_000)
    assert bare != other
    replace(bare, bare.read_bytes())
    replace(other, flip(other.read_bytes(), 0))
    disk.enable(other)
    with image.mounted("-d", image.digest, *KERNEL) as mounted:
        assert_eio(mounted / "plain", PLAIN // 2)
        assert_eio(mounted / "text", 100_000)
        assert (mounted / "link").readlink() == Path("directory/one")
    assert image.has_logged(bare.name, "'/plain'", "does not have fs-verity enabled")
    assert image.has_logged(other.name, "'/text'", "measured by the kernel")
    with image.mounted("-d", image.digest) as mounted:
        with open(mounted / "plain", "rb") as shown, open(source / "plain", "rb") as expected:
            assert os.pread(shown.fileno(), 100, PLAIN // 2) == os.pread(expected.fileno(), 100, PLAIN // 2)
        assert_eio(mounted / "text", 100_000)


@pytest.mark.parametrize("variant", VARIANTS)
def test_corruption_under_the_file_system_reaches_the_reader(make_disk: MakeDisk, source: Path, variant: str) -> None:
    kind, options = VARIANTS[variant]
    disk = make_disk(kind=kind)
    image = build(disk, source, "image", *options)
    path = image.blob_of(b"plain", PLAIN // 2)
    with open_image(image.reference) as opened:
        piece = opened.tree.plan(opened.tree.lookup(1, b"plain").ino, PLAIN // 2, 1).pieces[0]
    block = min(piece.offset, path.stat().st_size - 1) // 4096 * 4096  # an offset in what zstd was made of, if it was
    stored = path.read_bytes()[block : block + 4096]
    disk.corrupt(stored, flip(stored, len(stored) // 2))

    assert fs_verity_of(path) is not None
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    for mode in ("kernel", "auto") if variant == "version 3" else ("kernel",):
        with image.mounted("-d", image.digest, "--verity", mode) as mounted:
            assert_eio(mounted / "plain", PLAIN // 2)
            assert (mounted / "directory" / "one").read_bytes() == b"1"
        assert image.has_logged(path.name, "'/plain'", "Input/output error")
        image.log_file.unlink()


def test_extract_by_the_kernels_word(image: Sealed, source: Path, tmp_path: Path) -> None:
    puzzlefs("extract", "-d", image.digest, image.reference, tmp_path / "copy")
    assert_same(source, tmp_path / "copy")


def test_where_there_is_no_fs_verity(source: Path, tmp_path: Path) -> None:
    printed = puzzlefs("build", source, f"{tmp_path / 'image'}:tag").stdout.split()[-1]
    refused = puzzlefs("enable-fs-verity", tmp_path / "image", "tag", printed, code=NOT_SUPPORTED)
    assert refused.stderr == (
        "puzzlefs: the tmpfs file system at /run has no fs-verity; "
        "copy the image to ext4 made with `mkfs.ext4 -O verity`, btrfs or f2fs\n"
    )
