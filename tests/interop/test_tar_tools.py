"""GNU tar, bsdtar and Python's tarfile read what ``export`` writes, and ``import`` reads what they write.

The measure of an import is the image that ``build`` makes of what the same tool unpacks: both have one digest.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from support import trees
from support.archives import IS_ROOT, digest_of, exported, imported, odd_tree
from support.edits import Editor
from test_container_tools import PUZZLEFS, needs, run
from test_layered_sources import edit, shown

from puzzlefs.builder import Timestamps, build
from puzzlefs.extract import extract
from puzzlefs.tar import import_tar

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not IS_ROOT, reason="owners and devices are unpacked by root alone"),
]

GNU_UNPACK = ["tar", "--numeric-owner", "--same-owner", "-p", "--xattrs", "--xattrs-include=*", "-x"]
BSD_UNPACK = ["bsdtar", "--numeric-owner", "--same-owner", "-p", "--xattrs", "-x"]
TOOLS = [pytest.param(GNU_UNPACK, id="gnu"), pytest.param(BSD_UNPACK, id="bsd", marks=needs("bsdtar"))]


def unpack(command: list[str], data: bytes, target: Path) -> Path:
    """What a tool makes of an archive."""
    target.mkdir()
    done = subprocess.run([*command, "-C", target], input=data, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return target


def packed(*command: str | Path) -> bytes:
    """What a tool writes to stdout."""
    done = subprocess.run([*map(str, command)], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def remove_sockets(root: Path) -> None:
    """Remove what no archive can hold."""
    for path in list(root.rglob("*")):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


@pytest.mark.parametrize("command", TOOLS)
def test_others_unpack_what_is_exported(tmp_path: Path, command: list[str]) -> None:
    source = odd_tree(tmp_path / "source")
    expected = trees.on_disk(source, mtime=True)
    build(source, f"{tmp_path}/images:x", timestamps="keep")
    found = trees.on_disk(unpack(command, exported(f"{tmp_path}/images:x"), tmp_path / "unpacked"), mtime=True)
    assert found.keys() == expected.keys()
    if command is BSD_UNPACK:  # the root was there, and keeps its time; keys of xattrs stay escaped
        found[b"."]["mtime_ns"] = expected[b"."]["mtime_ns"]
        xattrs = found[b"etc/hostname"]["xattrs"]
        xattrs[b"user.p%3Dq=r"] = xattrs.pop(b"user.p%253Dq%3Dr")
        for name in (b"large", b"etc/large-again"):  # "-1.5" becomes half a second later than -1 s
            assert found[name].pop("mtime_ns") == -500_000_000
            expected[name].pop("mtime_ns")
    for path, node in expected.items():
        assert found[path] == node, path


@pytest.mark.parametrize("command", TOOLS)
def test_holes_are_holes_again(tmp_path: Path, command: list[str]) -> None:
    source = odd_tree(tmp_path / "source")
    build(source, f"{tmp_path}/images:x")
    target = unpack(command, exported(f"{tmp_path}/images:x"), tmp_path / "unpacked")
    assert (target / "holes").stat().st_blocks * 512 < 1 << 20
    assert (target / "all-hole").stat().st_size == 9 << 20


def test_python_unpacks_what_is_exported(tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source")
    build(source, f"{tmp_path}/images:x", timestamps="keep")
    (tmp_path / "x.tar").write_bytes(exported(f"{tmp_path}/images:x"))
    with tarfile.open(tmp_path / "x.tar", encoding="utf-8", errors="surrogateescape") as file:
        file.extractall(tmp_path / "unpacked", numeric_owner=True, filter="fully_trusted")
    # It knows of no xattrs, and copies a link whose target is not there yet instead of giving it one more name.
    left_out = ("xattrs", "nlink", "same_as")
    found = trees.on_disk(tmp_path / "unpacked")
    assert trees.without(found, *left_out) == trees.without(trees.on_disk(source), *left_out)
    assert found[b"etc/large-again"]["same_as"] == b"large" or found[b"large"]["same_as"] == b"etc/large-again"


@pytest.mark.parametrize(
    "options",
    [
        ("--format=posix", "--xattrs"),
        ("--format=posix", "--xattrs", "-S"),
        ("--format=posix", "--xattrs", "-S", "--sparse-version=0.0"),
        ("--format=posix", "--xattrs", "-S", "--sparse-version=0.1"),
        ("--format=posix", "--xattrs", "-S", "--sparse-version=1.0"),
        ("--format=gnu",),
        ("--format=gnu", "-S"),
        ("--format=oldgnu", "-S"),
        ("--format=gnu", "--label=a label"),
    ],
    ids=" ".join,
)
def test_archives_of_gnu_tar(tmp_path: Path, options: tuple[str, ...]) -> None:
    source = odd_tree(tmp_path / "source")
    with open(source / "many-holes", "wb") as file:  # more than the header of an old format has room for
        for number in range(100):
            file.seek(number * 50_000)
            file.write(b"x")
    if "--format=posix" not in options:
        os.utime(source / "large", (0, 0))
    data = packed("tar", *options, "--sort=none", "-c", "-C", source, ".")
    unpacked = unpack(GNU_UNPACK, data, tmp_path / "unpacked")
    expected = build(unpacked, f"{tmp_path}/images:built")
    assert imported(data, f"{tmp_path}/images:imported").digest == expected.digest
    if "--xattrs" in options:
        assert build(source, f"{tmp_path}/images:source").digest == expected.digest
        again = import_tar(_on_disk(tmp_path, data), f"{tmp_path}/images:kept", timestamps="keep")
        assert again.digest == build(source, f"{tmp_path}/images:source", timestamps="keep").digest


@needs("bsdtar")
@pytest.mark.parametrize("form", ["pax", "gnutar"])
def test_archives_of_bsdtar(tmp_path: Path, form: str) -> None:
    source = odd_tree(tmp_path / "source")
    os.removexattr(source / "etc/hostname", "user.p%3Dq=r")  # it would unpack one under both of its two spellings
    if form == "gnutar":
        os.utime(source / "large", (0, 0))
    data = packed("bsdtar", f"--format={form}", "-c", "-C", source, ".")
    unpacked = unpack(BSD_UNPACK, data, tmp_path / "unpacked")
    expected = build(unpacked, f"{tmp_path}/images:built")
    assert imported(data, f"{tmp_path}/images:imported").digest == expected.digest
    if form == "pax":
        assert build(source, f"{tmp_path}/images:source").digest == expected.digest


@needs("bsdtar")
@pytest.mark.parametrize(
    "tool", [["bsdtar", "--acls"], ["tar", "--format=posix", "--xattrs", "--acls"]], ids=["bsd", "gnu"]
)
def test_access_control_lists(tmp_path: Path, tool: list[str]) -> None:
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    (source / "file").touch()
    try:
        run("setfacl", "-m", "u:12345:rwx,g:54321:r,g:3:-", source / "file")
        run("setfacl", "-m", "u:12345:rx,d:u:12345:rwx,d:g:77:r,d:o:-", source / "dir")
    except AssertionError:
        pytest.skip("the file system of the tests has no ACLs")
    expected = build(source, f"{tmp_path}/images:built")
    report = imported(packed(*tool, "-c", "-C", source, "."), f"{tmp_path}/images:imported")
    assert report.digest == expected.digest
    assert not report.ignored


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_python(tmp_path: Path, form: int) -> None:
    source = odd_tree(tmp_path / "source")
    for key in os.listxattr(source / "etc/hostname"):
        os.removexattr(source / "etc/hostname", key)
    os.removexattr(source / "etc", "user.on-a-directory")
    (source / "link-again").unlink()  # of links it takes every name for a file of its own
    if form == tarfile.USTAR_FORMAT:
        (source / "long-link").unlink()
        (source / ("n" * 255)).unlink()
        shutil.rmtree(source / ("d" * 90))
        os.chown(source / "large", 1, 2)
    if form != tarfile.PAX_FORMAT:
        os.utime(source / "large", (0, 0))
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as file:
        file.add(source, ".")
    expected = build(source, f"{tmp_path}/images:built")
    assert import_tar(path, f"{tmp_path}/images:imported").digest == expected.digest


@pytest.mark.parametrize("seed", range(12))
def test_random_trees(tmp_path: Path, seed: int) -> None:
    """A tree that was edited at random is packed by GNU tar; what is imported is what would be built."""
    rnd = random.Random(seed)
    source = tmp_path / "source"
    source.mkdir()
    Editor(source, rnd).run(150)
    remove_sockets(source)
    data = packed("tar", "--format=posix", "--xattrs", "--xattrs-include=*", "-c", "-C", source, ".")
    ways: tuple[Timestamps, ...] = ("none", "keep")
    for timestamps in ways:
        expected = build(source, f"{tmp_path}/images:built", timestamps=timestamps)
        report = imported(data, f"{tmp_path}/images:imported", timestamps=timestamps)
        assert report.digest == expected.digest
    first = exported(f"{tmp_path}/images:imported")
    imported(first, f"{tmp_path}/images:again", timestamps="keep")
    assert digest_of(f"{tmp_path}/images:again") == digest_of(f"{tmp_path}/images:imported")
    assert exported(f"{tmp_path}/images:again") == first


def test_random_updates_of_an_archive(tmp_path: Path) -> None:
    """``tar -r`` puts what a tree is later behind what it was: the later members win, as when it is unpacked."""
    compared = 0
    for seed in range(24):
        rnd = random.Random(seed)
        here = tmp_path / str(seed)
        source, path, target = here / "source", here / "x.tar", here / "unpacked"
        source.mkdir(parents=True)
        target.mkdir()
        for mode in ("-c", "-r", "-r"):
            Editor(source, rnd).run(40)
            remove_sockets(source)
            for directory in (source, *(path for path in source.rglob("*") if not path.is_symlink() and path.is_dir())):
                for key in os.listxattr(directory):  # unpacking adds those of a directory to what it has
                    os.removexattr(directory, key)
            packed("tar", "--format=posix", "--xattrs", "--xattrs-include=*", mode, "-f", path, "-C", source, ".")
        done = subprocess.run([*GNU_UNPACK, "-P", "-f", path, "-C", target], check=False, capture_output=True)
        if done.returncode:  # it does not put anything in the place of a directory that is not empty
            continue
        expected = build(target, f"{here}/images:built")
        report = import_tar(path, f"{here}/images:imported")
        assert shown(f"{here}/images:imported") == shown(f"{here}/images:built"), seed
        assert report.digest == expected.digest
        compared += 1
    assert compared >= 8


@needs("umoci")
def test_layers_of_umoci(tmp_path: Path) -> None:
    """The layers of a container image, one on top of the other, make the tree that umoci unpacks."""
    image = f"{tmp_path}/theirs:v"
    run("umoci", "init", "--layout", tmp_path / "theirs")
    run("umoci", "new", "--image", image)
    for number in range(4):
        bundle = tmp_path / f"bundle{number}"
        run("umoci", "unpack", "--image", image, bundle)
        edit(bundle / "rootfs", number)
        run("umoci", "repack", "--image", image, bundle)
    run("umoci", "unpack", "--image", image, tmp_path / "final")
    layers = layers_of(tmp_path / "theirs", "v")
    assert len(layers) == 4
    words = [word for layer in layers for word in ("-f", str(layer))]
    printed = run(*PUZZLEFS, "import", "--whiteouts", "apply", *words, f"{tmp_path}/ours:v")
    expected = build(tmp_path / "final/rootfs", f"{tmp_path}/ours:built")
    assert shown(f"{tmp_path}/ours:v") == trees.on_disk(tmp_path / "final/rootfs")
    assert printed.strip().endswith(str(expected.digest))
    refused = subprocess.run(
        [*PUZZLEFS, "import", *words, f"{tmp_path}/ours:no"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 4
    assert "is a white-out of a container layer" in refused.stderr


def layers_of(layout: Path, tag: str) -> list[Path]:
    """The blobs of an image's layers, lowest first."""

    def blob(descriptor: dict[str, str]) -> Path:
        return layout / "blobs" / descriptor["digest"].replace(":", "/")

    index = json.loads((layout / "index.json").read_bytes())
    (entry,) = [
        entry for entry in index["manifests"] if entry["annotations"]["org.opencontainers.image.ref.name"] == tag
    ]
    return [blob(layer) for layer in json.loads(blob(entry).read_bytes())["layers"]]


# ---- the commands


def test_through_pipes(tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source", sockets=True)
    built = build(source, f"{tmp_path}/images:x", timestamps="keep")
    script = (
        f"{' '.join(PUZZLEFS)} export {tmp_path}/images:x | gzip -1 |"
        f" {' '.join(PUZZLEFS)} import --stdin --timestamps keep {tmp_path}/images y"
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert done.stderr == "puzzlefs: a socket was left out: a tar archive cannot hold any\n"
    assert str(built.digest) not in done.stdout
    mtime_ns = source.stat().st_mtime_ns
    (source / "socket").unlink()
    os.utime(source, ns=(0, mtime_ns))
    assert done.stdout.strip().endswith(str(build(source, f"{tmp_path}/images:z", timestamps="keep").digest))


def test_an_archive_from_standard_input_that_is_a_file(tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source")
    built = build(source, f"{tmp_path}/images:x")
    (tmp_path / "x.tar").write_bytes(b"something before" + exported(f"{tmp_path}/images:x"))
    with open(tmp_path / "x.tar", "rb") as file:
        file.seek(16)
        done = subprocess.run(
            [*PUZZLEFS, "import", f"{tmp_path}/images:y"], stdin=file, capture_output=True, check=True
        )
    assert done.stdout.decode().strip().endswith(str(built.digest))


def test_reports(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"x" * 1000)
    build(source, f"{tmp_path}/images:x")
    report = json.loads(run(*PUZZLEFS, "export", "--json", "-o", tmp_path / "x.tar", f"{tmp_path}/images:x"))
    assert report == {"members": 2, "bytes": 10_240, "content_size": 1000, "sockets": 0}
    assert (tmp_path / "x.tar").stat().st_size == 10_240
    report = json.loads(run(*PUZZLEFS, "import", "--json", "-f", tmp_path / "x.tar", f"{tmp_path}/images:y"))
    assert report.pop("digest") == str(digest_of(f"{tmp_path}/images:x"))
    assert report.pop("seconds") > 0
    assert report == {
        "members": 2, "inodes": 2, "content_size": 1000, "chunks": 1, "new_chunks": 0, "stored_bytes": 0, "ignored": {},
    }  # fmt: skip


def test_an_export_that_fails_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(3_000_000))
    build(source, f"{tmp_path}/images:x")
    sizes = {blob: blob.stat().st_size for blob in (tmp_path / "images/blobs/sha256").iterdir()}
    max(sizes, key=lambda blob: sizes[blob]).write_bytes(b"damaged")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x.tar").write_text("what was there before")
    done = subprocess.run(
        [*PUZZLEFS, "export", "-o", tmp_path / "out/x.tar", f"{tmp_path}/images:x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert "cannot export /file of" in done.stderr
    assert os.listdir(tmp_path / "out") == ["x.tar"]
    assert (tmp_path / "out/x.tar").read_text() == "what was there before"


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(8_000_000))
    build(source, f"{tmp_path}/images:x")
    with subprocess.Popen(
        [*PUZZLEFS, "export", f"{tmp_path}/images:x"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == 7
        assert process.stderr.read() == b""


def test_a_terminal_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    build(source, f"{tmp_path}/images:x")
    for verb, message in (
        ("export", "an archive is not for a terminal"),
        ("import", "there is no archive on a terminal"),
    ):
        leader, follower = os.openpty()
        try:
            done = subprocess.run(
                [*PUZZLEFS, verb, f"{tmp_path}/images:x"],
                stdin=follower, stdout=follower, stderr=subprocess.PIPE, timeout=60, check=False,
            )  # fmt: skip
        finally:
            os.close(leader)
            os.close(follower)
        assert done.returncode == 2
        assert message in done.stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_that_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(3_000_000))
    expected = build(source, f"{tmp_path}/images:x")
    data = exported(f"{tmp_path}/images:x")
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "images").rglob("*"))
    for _ in range(5):  # the signal comes while it waits, or in the middle of a read
        with subprocess.Popen(
            [*PUZZLEFS, "import", f"{tmp_path}/images:y"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write(data[:2_500_000])
            process.stdin.flush()  # more than the pipe holds: it is reading
            process.send_signal(number)
            assert process.wait(60) == 130
            assert b"interrupted" in process.stderr.read()
        assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "images").rglob("*")) == before
    assert imported(data, f"{tmp_path}/images:y").digest == expected.digest


def test_what_is_exported_is_what_is_extracted(tmp_path: Path) -> None:
    source = odd_tree(tmp_path / "source")
    build(source, f"{tmp_path}/images:x", timestamps="keep")
    extract(f"{tmp_path}/images:x", tmp_path / "extracted")
    unpacked = unpack(GNU_UNPACK, exported(f"{tmp_path}/images:x"), tmp_path / "unpacked")
    assert trees.on_disk(unpacked, mtime=True) == trees.on_disk(tmp_path / "extracted", mtime=True)


def _on_disk(directory: Path, data: bytes) -> Path:
    path = directory / "archive.tar"
    path.write_bytes(data)
    return path
