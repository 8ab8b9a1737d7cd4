"""``enable_fs_verity``: every file of an image is sealed, or none is touched."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import Disk, MakeDisk, fs_verity_of

from puzzlefs import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    StorageError,
    VerityNotEnabledError,
    VerityUnavailableError,
    build,
    enable_fs_verity,
    open_image,
)
from puzzlefs.enable_verity import EnableReport
from puzzlefs.model import Kind, RegularFile
from puzzlefs.verity import verity_digest

pytestmark = pytest.mark.verity

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"
EXPECTED: dict[str, Any] = json.loads((VECTORS / "expected.json").read_bytes())
DIGESTS: dict[str, dict[str, str]] = EXPECTED["digests"]


@pytest.fixture(scope="module")
def disk(make_module_disk: MakeDisk) -> Disk:
    return make_module_disk()


@functools.cache
def nearby(name: str) -> Path:
    """One of the vectors' layouts in the machine's memory: its disk for this machine's files is slow."""
    place = Path(tempfile.mkdtemp()) / name
    copy_layout(VECTORS / name, place)
    return place


def copy_layout(source: Path, target: Path) -> None:
    """Copies a layout's files; not their modes, which are read-only in the vectors."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)


@pytest.fixture
def copy(disk: Disk, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A copy of one of the vectors' layouts on a disk with fs-verity."""
    layout = disk.root / request.param
    copy_layout(nearby(request.param), layout)
    yield layout
    shutil.rmtree(layout)


def blobs(layout: Path) -> list[Path]:
    return sorted((layout / "blobs" / "sha256").iterdir())


def sealed(layout: Path) -> list[Path]:
    return [path for path in blobs(layout) if fs_verity_of(path) is not None]


def contents(reference: str, digest: str) -> dict[str, str]:
    """The sha256 of every regular file of an image, as the kernel's fs-verity lets it be read."""
    found: dict[str, str] = {}
    with open_image(reference, digest=digest, verity="kernel") as image:

        def visit(directory: int, path: bytes) -> None:
            for entry in image.tree.entries(directory):
                below = path + entry.name
                if entry.kind is Kind.DIRECTORY:
                    visit(entry.ino, below + b"/")
                elif entry.kind is Kind.REGULAR:
                    size = image.tree.attributes(entry.ino).size
                    found[os.fsdecode(below)] = hashlib.sha256(image.read(entry.ino, 0, size)).hexdigest()

        visit(image.tree.root, b"")
    return found


@pytest.mark.parametrize("copy", ["v1", "v2", "v3"], indirect=True)
def test_every_file_is_sealed_and_serves_a_kernel_verified_reader(copy: Path) -> None:
    digests = DIGESTS[copy.name]
    with pytest.raises(VerityNotEnabledError):
        open_image(f"{copy}:second", digest=digests["second"], verity="kernel")

    first = enable_fs_verity(f"{copy}:second", digests["second"])
    again = enable_fs_verity(f"{copy}:second", digests["second"])
    others = [enable_fs_verity(f"{copy}:{tag}", digests[tag]) for tag in ("base", "fresh")]

    assert (first.enabled, first.already_enabled) == (len(sealed(copy)) - sum(o.enabled for o in others), 0)
    assert again == EnableReport(0, first.enabled, first.size)
    for other in others:
        assert other.enabled > 0
        assert other.already_enabled > 0
    assert sealed(copy) == blobs(copy)
    for path in blobs(copy):
        assert fs_verity_of(path) == verity_digest(path.read_bytes())
        with pytest.raises(PermissionError):
            path.open("r+b")
        with pytest.raises(PermissionError):
            os.truncate(path, 0)
    for tag, digest in digests.items():
        tree = EXPECTED["trees"]["second" if tag == "fresh" else tag]
        files = {path: entry["sha256"] for path, entry in tree.items() if entry["type"] == "file"}
        assert len(files) > 100
        assert contents(f"{copy}:{tag}", digest) == files


@pytest.mark.parametrize(("version", "compression"), [(1, True), (2, True), (3, True), (3, False)])
def test_images_that_we_build(disk: Disk, tmp_path: Path, version: int, compression: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "random").write_bytes(os.urandom(300_000))
    (source / "text").write_bytes(b"all work and no play " * 40_000)
    layout = disk.root / f"built-{version}-{compression}"
    report = build(source, f"{layout}:tag", format_version=version, compression=compression)

    done = enable_fs_verity(f"{layout}:tag", str(report.digest))

    assert done.enabled == len(blobs(layout)) == len(sealed(layout))
    assert done.size == sum(path.stat().st_size for path in blobs(layout))
    assert contents(f"{layout}:tag", str(report.digest)) == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()
    }


@pytest.mark.parametrize("copy", ["v1", "v3"], indirect=True)
def test_nothing_is_touched_when_the_digest_is_of_another_image(copy: Path) -> None:
    with pytest.raises(IntegrityError, match=r"^manifest "):
        enable_fs_verity(f"{copy}:base", DIGESTS[copy.name]["fresh"])
    assert sealed(copy) == []


@pytest.mark.parametrize("copy", ["v1-zstd", "v3-zstd"], indirect=True)
def test_nothing_is_touched_when_the_image_records_wrong_digests(copy: Path) -> None:
    with pytest.raises(IntegrityError, match=r"that the image records for chunk .* the file itself is intact"):
        enable_fs_verity(f"{copy}:base", DIGESTS[copy.name]["base"])
    assert sealed(copy) == []


def chunk_of(layout: Path) -> Path:
    """The largest blob, which is a chunk."""
    return max(blobs(layout), key=lambda path: path.stat().st_size)


def replace(path: Path, data: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(data)
    new.rename(path)


@pytest.mark.parametrize("copy", ["v3"], indirect=True)
def test_nothing_is_touched_when_a_chunk_is_corrupt_or_missing(copy: Path) -> None:
    path = chunk_of(copy)
    good = path.read_bytes()
    replace(path, bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(IntegrityError, match=f"chunk {path} is corrupt .*restore it from a good copy"):
        enable_fs_verity(f"{copy}:fresh", DIGESTS["v3"]["fresh"])
    assert sealed(copy) == []

    path.unlink()
    with pytest.raises(BlobNotFoundError, match=path.name):
        enable_fs_verity(f"{copy}:fresh", DIGESTS["v3"]["fresh"])
    assert sealed(copy) == []

    replace(path, good)
    with path.open("r+b"), pytest.raises(StorageError, match=rf"{path}: .*open for writing"):
        enable_fs_verity(f"{copy}:fresh", DIGESTS["v3"]["fresh"])
    assert enable_fs_verity(f"{copy}:fresh", DIGESTS["v3"]["fresh"]).enabled > 0


@pytest.mark.parametrize("copy", ["v1", "v3"], indirect=True)
def test_chunks_that_only_hidden_inodes_use_may_be_missing(copy: Path) -> None:
    """Copying tools leave them behind in the deltas of the original, and no reader asks for them."""
    used: list[set[Path]] = []
    with open_image(f"{copy}:second") as image:
        for table in image.rootfs.metadata_layers:
            files = [inode.content for inode in table if isinstance(inode.content, RegularFile)]
            chunks = {chunk.blob.digest for file in files for chunk in file.chunks}
            used.append({image.layout.blob_path(digest) for digest in chunks})
    top, base = used
    hidden = sorted(base - top)
    hidden[0].unlink()

    done = enable_fs_verity(f"{copy}:second", DIGESTS[copy.name]["second"])

    assert all(map(fs_verity_of, [*top, *hidden[1:]]))
    assert done.enabled == len(sealed(copy))
    assert contents(f"{copy}:second", DIGESTS[copy.name]["second"])


@pytest.mark.parametrize("copy", ["v2"], indirect=True)
def test_fs_verity_over_wrong_content_is_found(copy: Path, disk: Disk) -> None:
    path = chunk_of(copy)
    good = path.read_bytes()
    replace(path, good[:-1])
    disk.enable(path)
    with pytest.raises(IntegrityError, match=f"chunk {path} \\(measured by the kernel\\)"):
        enable_fs_verity(f"{copy}:fresh", DIGESTS["v2"]["fresh"])
    assert sealed(copy) == [path]


@pytest.mark.parametrize("copy", ["v2"], indirect=True)
def test_fs_verity_with_other_parameters_is_found(copy: Path, disk: Disk) -> None:
    path = chunk_of(copy)
    disk.enable(path, "--salt=00ff")
    with pytest.raises(IntegrityError, match=r"was enabled with .*its content is good"):
        enable_fs_verity(f"{copy}:fresh", DIGESTS["v2"]["fresh"])
    assert sealed(copy) == [path]


@pytest.mark.parametrize("copy", ["v3"], indirect=True)
def test_an_image_without_recorded_digests_is_refused(copy: Path) -> None:
    """The rootfs's digest stands in an annotation; a manifest without it is the image's fault."""
    index = json.loads((copy / "index.json").read_bytes())
    (entry,) = [
        entry for entry in index["manifests"] if entry["annotations"].get("org.opencontainers.image.ref.name") == "base"
    ]
    directory = copy / "blobs" / "sha256"
    manifest = json.loads((directory / entry["digest"].removeprefix("sha256:")).read_bytes())
    del manifest["layers"][0]["annotations"]
    data = json.dumps(manifest).encode()
    entry["digest"] = f"sha256:{hashlib.sha256(data).hexdigest()}"
    entry["size"] = len(data)
    (directory / entry["digest"].removeprefix("sha256:")).write_bytes(data)
    (copy / "index.json").write_text(json.dumps(index))

    with pytest.raises(FormatError, match="records no fs-verity digest for its rootfs"):
        enable_fs_verity(f"{copy}:base", verity_digest(data))
    assert sealed(copy) == []


def test_where_it_is_not_available_the_error_says_why(tmp_path: Path, make_disk: MakeDisk) -> None:
    without = make_disk(verity=False)
    for place, blamed in ((tmp_path, "the tmpfs file system"), (without.root, "the ext4 file system")):
        layout = place / "v3"
        copy_layout(nearby("v3"), layout)
        with pytest.raises(VerityUnavailableError, match=f"^{blamed}"):
            enable_fs_verity(f"{layout}:base", DIGESTS["v3"]["base"])
        with pytest.raises(VerityUnavailableError, match=blamed):
            open_image(f"{layout}:base", digest=DIGESTS["v3"]["base"], verity="kernel")
        open_image(f"{layout}:base", digest=DIGESTS["v3"]["base"]).close()
