"""``puzzlefs copy``: what arrives in the other layout, what is not touched there, and what happens when it fails."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support import layouts
from support.archives import digest_of
from support.forge import Forge
from support.layouts import blobs_of

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.builder import build
from puzzlefs.collect import collect_garbage
from puzzlefs.copy_image import copy_all, copy_image, run
from puzzlefs.copy_image.run import parse_target
from puzzlefs.delta import build_from_tree
from puzzlefs.digest import Digest
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    StorageError,
    TagNotFoundError,
)
from puzzlefs.image import open_image
from puzzlefs.oci import media_types
from puzzlefs.tags import tags, untag
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit

DATA = random.Random(8).randbytes(5000)
NAME = media_types.REF_NAME

shown = partial(layouts.shown, mtime=True)


@pytest.fixture(params=[1, 2, 3])
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Forge:
    return Forge(tmp_path / "layout", request.param)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def example(forge: Forge, tag: str = "t", *more: bytes) -> str:
    parts = [forge.chunk(data, compressed=data[0] % 2 == 0) for data in (DATA[:3000], DATA[3000:], *more)]
    return forge.image([f.directory(1, {b"a": 2}), f.regular(2, *parts)], tag=tag)


# ---- what arrives


def test_everything_of_an_image(forge: Forge, target: Path) -> None:
    source = example(forge)
    forge.blob(b"somebody else's")
    report = copy_image(source, f"{target}:copy")
    assert shown(f"{target}:copy") == shown(source)
    assert digest_of(f"{target}:copy") == digest_of(source)
    arrived = blobs_of(target)
    assert arrived.items() <= blobs_of(forge.path).items()
    assert Digest.of(b"somebody else's").hex() not in arrived
    assert report.images == (f"{target}:copy",)
    assert (report.blobs, report.new_blobs, report.skipped_blobs) == (len(arrived), len(arrived), 0)
    assert report.bytes == sum(map(len, arrived.values()))
    assert report.copied_bytes + report.cloned_bytes + report.linked_bytes == report.bytes
    assert (report.referrers, report.missing_blobs, report.skipped_bytes) == (0, 0, 0)


def test_only_what_is_not_there(forge: Forge, target: Path) -> None:
    copy_image(example(forge, "one"), target)
    before = {name: (target / "blobs" / "sha256" / name).stat().st_mtime_ns for name in blobs_of(target)}
    source = example(forge, "two", b"more of it")
    report = copy_image(source, target)
    assert [info.tag for info in tags(target).tags] == ["one", "two"]
    assert shown(f"{target}:two") == shown(source)
    new = blobs_of(target).keys() - before.keys()
    assert report.new_blobs == len(new)
    assert report.skipped_blobs == report.blobs - len(new) >= 2
    assert report.skipped_bytes + report.linked_bytes + report.copied_bytes + report.cloned_bytes == report.bytes
    again = copy_image(source, target)
    assert (again.new_blobs, again.skipped_bytes) == (0, again.bytes)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["v1", "v2", "v3", "v1-zstd", "v2-zstd", "v3-zstd"])
def test_vectors(vectors: Path, target: Path, name: str) -> None:
    """Deltas of the original, whose hidden inodes may use blobs that are not there, included."""
    report = copy_all(vectors / name, target)
    assert report.images == tuple(f"{target}:{tag}" for tag in ("base", "fresh", "second"))
    for tag in ("base", "fresh", "second"):
        assert shown(f"{target}:{tag}") == shown(f"{vectors / name}:{tag}")
        assert digest_of(f"{target}:{tag}") == digest_of(f"{vectors / name}:{tag}")
    assert json.loads((target / "index.json").read_bytes()) == json.loads((vectors / name / "index.json").read_bytes())


@pytest.mark.parametrize("options", [{}, {"compression": True}, {"format_version": 1}, {"format_version": 2}], ids=str)
def test_layers_that_were_built(tmp_path: Path, target: Path, options: dict[str, Any]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "kept").write_bytes(DATA * 100)
    (root / "hidden").write_bytes(random.Random(1).randbytes(300_000))
    build(root, f"{tmp_path}/oci:one", **options)
    (root / "hidden").unlink()
    (root / "new").write_bytes(DATA[:77])
    with open_image(f"{tmp_path}/oci:one") as base:
        build_from_tree(root, base, "two")
    copy_image(f"{tmp_path}/oci:two", target)
    assert shown(f"{target}:two") == shown(f"{tmp_path}/oci:two")
    with open_image(f"{target}:two") as image:
        assert len(image.rootfs.metadata_layers) == 2


def test_chunks_that_no_manifest_lists(tmp_path: Path, target: Path) -> None:
    """The list in the OCI manifest is for tools; what counts is what inodes refer to."""
    forge = Forge(tmp_path / "layout")
    source = example(forge)
    with open_image(source) as image:
        assert image.manifest is not None
        assert len(image.manifest.layer_objects) == 1
    copy_image(source, target)
    assert shown(f"{target}:t")[b"a"]["size"] == len(DATA)


def test_hidden_chunks_may_be_missing(forge: Forge, target: Path) -> None:
    seen, hidden = forge.chunk(DATA), forge.chunk(DATA[:99])
    top = [f.directory(1, {b"a": 2})]
    source = forge.image(top, [f.directory(1, {b"a": 2, b"b": 3}), f.regular(2, seen), f.regular(3, hidden)], tag="t")
    copy_image(source, f"{target}-whole")
    assert hidden.blob.digest.hex() in blobs_of(Path(f"{target}-whole"))
    forge.blob_path(hidden.blob.digest).unlink()
    report = copy_image(source, target)
    assert report.missing_blobs == 1
    assert shown(f"{target}:t") == shown(source)
    forge.blob_path(seen.blob.digest).unlink()
    with pytest.raises(BlobNotFoundError, match=seen.blob.digest.hex()):
        copy_image(source, f"{target}:again")
    assert [info.tag for info in tags(target).tags] == ["t"]


# ---- how


def test_links(forge: Forge, target: Path) -> None:
    source = example(forge)
    report = copy_image(source, target)
    assert report.linked_bytes == report.bytes
    for name in blobs_of(target):
        assert (target / "blobs" / "sha256" / name).stat().st_nlink == 2
    forge.blob_path(next(iter(map(Digest.from_hex, blobs_of(target))))).chmod(0o666)
    other = copy_image(source, f"{target}-2")
    assert other.linked_bytes < other.bytes
    assert other.linked_bytes + other.cloned_bytes + other.copied_bytes == other.bytes


def test_another_file_system(forge: Forge) -> None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == forge.path.stat().st_dev:
        pytest.skip("there is no other file system to copy to")
    target = shm / f"puzzlefs-copy-{os.getpid()}"
    try:
        report = copy_image(example(forge), target)
        assert (report.linked_bytes, report.cloned_bytes, report.copied_bytes) == (0, 0, report.bytes)
        assert shown(f"{target}:t") == shown(forge.reference("t"))
    finally:
        subprocess.run(["rm", "-rf", target], check=True)


def test_what_is_there_and_damaged(forge: Forge, target: Path) -> None:
    source = example(forge)
    copy_image(source, target)
    part, wrong_size = forge.chunk(DATA[:3000]), forge.chunk(DATA[3000:])
    if part.blob.digest.hex() not in blobs_of(target):
        part = forge.chunk(DATA[:3000], compressed=True)
    if wrong_size.blob.digest.hex() not in blobs_of(target):
        wrong_size = forge.chunk(DATA[3000:], compressed=True)
    whole = blobs_of(target)
    where = target / "blobs" / "sha256"
    f.put_file(where / part.blob.digest.hex(), b"?" * len(whole[part.blob.digest.hex()]))
    f.put_file(where / wrong_size.blob.digest.hex(), b"short")
    assert copy_image(source, target).new_blobs == 1
    damaged = blobs_of(target)
    assert {name for name in whole if whole[name] != damaged[name]} == {part.blob.digest.hex()}
    assert copy_image(source, target, check_existing=True).new_blobs == 1
    assert blobs_of(target) == whole


def test_a_damaged_source(forge: Forge, target: Path) -> None:
    copy_image(example(forge), f"{target}:before")
    part = forge.chunk(b"new")
    newer = forge.image([f.directory(1, {b"a": 2}), f.regular(2, part)], tag="newer")
    f.put_file(forge.blob_path(part.blob.digest), b"bad")
    index = (target / "index.json").read_bytes()
    with pytest.raises(IntegrityError):
        copy_image(newer, f"{target}:before")
    assert (target / "index.json").read_bytes() == index
    for name, data in blobs_of(target).items():
        assert Digest.of(data).hex() == name


def test_it_goes_on_where_it_ended(tmp_path: Path, target: Path, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [forge.chunk(bytes([number]) * 10) for number in range(40)]
    source = forge.image([f.directory(1, {b"a": 2}), f.regular(2, *parts)], tag="t")
    monkeypatch.setattr(run, "_BATCH_BLOBS", 10)
    real = BlobWriter.put_from
    count = 0

    def put_from(self: BlobWriter, layout: Layout, digest: Digest) -> int:
        nonlocal count
        count += 1
        if count == 25:
            raise StorageError("no space left")
        return real(self, layout, digest)

    monkeypatch.setattr(BlobWriter, "put_from", put_from)
    with pytest.raises(StorageError):
        copy_image(source, target, workers=1)
    assert tags(target).tags == ()
    assert len(blobs_of(target)) == 20  # two whole batches, and nothing else
    report = copy_image(source, target, workers=1)
    assert report.skipped_blobs == 20
    assert report.new_blobs == report.blobs - 20
    assert shown(f"{target}:t") == shown(source)


def test_garbage_is_collected_meanwhile(forge: Forge, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already, and named by nothing, is relied on from the moment on that it is found."""
    source = example(forge)
    copy_image(source, target)
    untag(f"{target}:t")
    garbage = Path(target, "blobs", "sha256", Digest.of(b"garbage").hex())
    garbage.write_bytes(b"garbage")
    newer = example(forge, "t", b"more", b"and more")
    real = BlobWriter.put_from
    removed: list[int] = []

    def put_from(self: BlobWriter, layout: Layout, digest: Digest) -> int:
        size = real(self, layout, digest)
        removed.append(collect_garbage(target, grace=0).removed_blobs)
        return size

    monkeypatch.setattr(run, "_BATCH_BLOBS", 1)
    monkeypatch.setattr(BlobWriter, "put_from", put_from)
    report = copy_image(newer, target, workers=1)
    assert report.skipped_blobs > 0
    assert sum(removed) > 0
    assert not garbage.exists()
    assert shown(f"{target}:t") == shown(newer)
    assert len(blobs_of(target)) == report.blobs


@pytest.mark.crash
def test_killed(tmp_path: Path, target: Path) -> None:
    """What it leaves does no harm; run again, it ends as if nothing had been."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(40):
        (root / f"{number}").write_bytes(random.Random(number).randbytes(1_000_000))
    build(root, f"{tmp_path}/oci:t")
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "puzzlefs_cli", "copy", "-q", f"{tmp_path}/oci:t", str(target)]
        )
        try:
            process.wait(0.25)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if (target / "oci-layout").exists() and tags(target).tags:
            break
        for name, data in blobs_of(target).items() if (target / "blobs" / "sha256").is_dir() else ():
            assert name.startswith(".") or Digest.of(data).hex() == name
    copy_image(f"{tmp_path}/oci:t", target)
    assert shown(f"{target}:t") == shown(f"{tmp_path}/oci:t")


# ---- what else there is in layouts


def test_very_many_tags(tmp_path: Path, target: Path) -> None:
    """Indexes are gone through a few times, not once for each tag."""
    forge = Forge(tmp_path / "oci")
    digest, size = foreign(forge, "all")
    write(forge, *(described(digest, size, **{NAME: f"t{number}"}) for number in range(20_000)))
    started = time.process_time()
    for _ in range(2):
        assert len(copy_all(forge.path, target).images) == 20_000
    assert time.process_time() - started < 15
    assert [info.tag for info in tags(target).tags] == [f"t{number}" for number in range(20_000)]


def put_json(forge: Forge, **fields: Any) -> tuple[Digest, int]:
    data = json.dumps({"schemaVersion": 2, **fields}).encode()
    return forge.blob(data), len(data)


def described(digest: Digest, size: int, media_type: str = media_types.MANIFEST, **annotations: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest.oci, "size": size, "annotations": annotations}


def foreign(forge: Forge, name: str, **fields: Any) -> tuple[Digest, int]:
    """A manifest of another program."""
    config = described(forge.blob(f"config {name}".encode()), 1, "application/vnd.example.config")
    layer = described(forge.blob(f"layer {name}".encode()), 1, "application/vnd.example.layer")
    return put_json(forge, config=config, layers=[layer], **fields)


def write(forge: Forge, *entries: dict[str, Any]) -> None:
    forge.raw_index(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())


def test_indexes_and_images_of_other_programs(tmp_path: Path, target: Path) -> None:
    forge = Forge(tmp_path / "layout")
    mine = example(forge)
    with open_image(mine) as image:
        ours = described(image.manifest_digest, 1, platform="no annotation, but kept")
        ours["platform"] = {"architecture": "amd64", "os": "linux"}
    other = described(*foreign(forge, "one"))
    inner = described(*put_json(forge, manifests=[ours, other]), media_types.INDEX)
    outer = described(*put_json(forge, manifests=[inner]), media_types.INDEX, **{NAME: "all", "note": "kept"})
    docker = described(
        *foreign(forge, "docker"), "application/vnd.docker.distribution.manifest.v2+json", **{NAME: "docker"}
    )
    script = described(forge.blob(b"#!/bin/sh"), 9, "text/x-shellscript", **{NAME: "script"})
    unrelated = described(*foreign(forge, "unrelated"), **{NAME: "unrelated"})
    write(forge, {**outer, "x-field": 1}, docker, script, unrelated)
    report = copy_image(f"{forge.path}:all", f"{target}:here")
    assert shown(f"{target}:here") == shown(f"{forge.path}:all")
    for data in (b"config one", b"layer one"):
        assert Digest.of(data).hex() in blobs_of(target)
    assert Digest.of(b"layer unrelated").hex() not in blobs_of(target)
    index = json.loads((target / "index.json").read_bytes())
    assert index["manifests"] == [{**outer, "x-field": 1, "annotations": {NAME: "here", "note": "kept"}}]
    assert report.blobs == len(blobs_of(target))
    copy_all(forge.path, target)
    assert {name for name in blobs_of(forge.path) if name not in blobs_of(target)} == set()
    assert {info.tag for info in tags(target).tags} == {"all", "docker", "script", "unrelated", "here"}


def test_what_refers_to_an_image_goes_along(tmp_path: Path, target: Path) -> None:
    forge = Forge(tmp_path / "layout")
    with open_image(example(forge)) as image:
        subject = described(image.manifest_digest, 1)
    signature, size = foreign(forge, "signature", subject=subject)
    of_signature = foreign(forge, "of the signature", subject=described(signature, size))
    elsewhere = foreign(forge, "elsewhere", subject=described(Digest.of(b"something else"), 1))
    cosign = foreign(forge, "cosign")
    tag = f"sha256-{subject['digest'].removeprefix('sha256:')}.sig"
    untagged = {**described(*of_signature), "artifactType": "application/vnd.example"}
    write(
        forge,
        {**subject, "annotations": {NAME: "t"}},
        untagged,
        described(signature, size),
        described(*elsewhere),
        described(Digest.of(b"not there"), 5),
        described(forge.blob(b"no JSON"), 7),
        described(*cosign, **{NAME: tag}),
    )
    report = copy_image(f"{forge.path}:t", target)
    assert report.referrers == 3
    index = json.loads((target / "index.json").read_bytes())["manifests"]
    assert untagged in index
    assert described(signature, size) in index
    assert {entry["annotations"].get(NAME) for entry in index} == {None, "t", tag}
    assert len(index) == 4
    for name in ("signature", "of the signature", "cosign"):
        assert Digest.of(f"layer {name}".encode()).hex() in blobs_of(target)
    assert Digest.of(b"layer elsewhere").hex() not in blobs_of(target)
    copy_image(f"{forge.path}:t", target)
    assert json.loads((target / "index.json").read_bytes())["manifests"] == index
    # the other way round: what a manifest refers to is copied with it, if it is there
    write(forge, described(signature, size, **{NAME: "signature"}), described(*elsewhere, **{NAME: "lost"}))
    copy_all(forge.path, f"{target}-2")
    assert subject["digest"].removeprefix("sha256:") in blobs_of(Path(f"{target}-2"))


def test_malformed_documents(tmp_path: Path, target: Path) -> None:
    forge = Forge(tmp_path / "layout")
    bad: list[dict[str, Any]] = [
        {"manifests": [{"digest": Digest.of(b"x").oci, "size": 1}]},
        {"manifests": "none"},
        {"manifests": [5]},
        {"manifests": [{"mediaType": "x", "digest": "sha256:../../etc/passwd", "size": 1}]},
    ]
    for fields in bad:
        write(forge, described(*put_json(forge, **fields), media_types.INDEX, **{NAME: "t"}))
        with pytest.raises(FormatError):
            copy_image(f"{forge.path}:t", target)
    nested = put_json(forge, manifests=[])
    for _ in range(20):
        nested = put_json(forge, manifests=[described(*nested, media_types.INDEX)])
    write(forge, described(*nested, media_types.INDEX, **{NAME: "t"}))
    with pytest.raises(FormatError, match="name one another"):
        copy_image(f"{forge.path}:t", target)
    assert not target.exists()


# ---- names


def test_targets(forge: Forge, tmp_path: Path) -> None:
    source = example(forge)
    odd = tmp_path / "odd:name"
    odd.mkdir()
    copy_image(source, odd)
    assert shown(f"{odd}:t") == shown(source)
    copy_image(source, str(odd))
    copy_image(source, f"{odd}:u")
    assert [info.tag for info in tags(odd).tags] == ["t", "u"]
    assert str(parse_target("some/where", "t")) == "some/where:t"
    assert str(parse_target("some/where:u", "t")) == "some/where:u"
    for bad in ("", "a:b c", ":"):
        with pytest.raises(InvalidArgumentError):
            parse_target(bad, "t")


def test_within_one_layout(forge: Forge) -> None:
    source = example(forge)
    before = blobs_of(forge.path)
    report = copy_image(source, forge.reference("u"))
    assert (report.new_blobs, report.skipped_blobs) == (0, report.blobs)
    assert blobs_of(forge.path) == before
    assert shown(forge.reference("u")) == shown(source)


def test_layouts_of_the_other_kind_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = Forge(tmp_path / "old", 2), Forge(tmp_path / "new", 3)
    assert main(["copy", example(old), str(new.path)]) == 2
    assert "`puzzlefs convert --format-version 3`" in capsys.readouterr().err
    assert main(["copy", example(new), f"{old.path}:x"]) == 2
    assert "`puzzlefs convert --format-version 2`" in capsys.readouterr().err
    assert [info.tag for info in tags(old.path).tags] == ["t"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    assert main(["copy", example(new), str(tmp_path / "full")]) == 2


def test_the_digest_that_was_named(forge: Forge, target: Path) -> None:
    source = example(forge)
    with pytest.raises(IntegrityError):
        copy_image(source, target, digest="0" * 64)
    assert not target.exists()
    copy_image(source, target, digest=digest_of(source))
    with pytest.raises(TagNotFoundError):
        copy_image(forge.reference("nope"), target)


def test_progress(forge: Forge, target: Path) -> None:
    told: list[tuple[int, int]] = []
    report = copy_image(example(forge), target, progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {report.bytes}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0] == (0, report.bytes)
    assert told[-1] == (report.bytes, report.bytes)


# ---- the command


def test_command(forge: Forge, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = example(forge)
    example(forge, "two", b"more")
    assert main(["copy", source, str(target)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{target}:t: ")
    assert captured.out.endswith(" linked\n")
    assert main(["copy", "-q", str(forge.path), "t", f"{target}:u"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["copy", "--json", "--all", str(forge.path), str(target)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == [f"{target}:t", f"{target}:two"]
    assert set(report) == {
        "images",
        "referrers",
        "blobs",
        "bytes",
        "new_blobs",
        "copied_bytes",
        "cloned_bytes",
        "linked_bytes",
        "skipped_blobs",
        "skipped_bytes",
        "missing_blobs",
        "seconds",
    }
    assert report["skipped_blobs"] + report["new_blobs"] == report["blobs"]
    assert main(["copy", source, str(target)]) == 0
    assert capsys.readouterr().out.endswith("blobs are new: nothing had to be copied\n")
    assert main(["copy", source]) == 2
    assert main(["copy", "--all", str(forge.path)]) == 2
    assert main(["copy", "--all", "-d", "0" * 64, str(forge.path), str(target)]) == 2
    assert main(["copy", forge.reference("nope"), str(target)]) == 3
    assert main(["copy", "-d", "0" * 64, source, str(target)]) == 5
