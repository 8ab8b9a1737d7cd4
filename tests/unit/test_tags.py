"""``puzzlefs tags``, ``tag`` and ``untag``: the index before and after, and what the commands print."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.forge import Forge

from puzzlefs.blobs import Layout
from puzzlefs.digest import Digest
from puzzlefs.errors import BlobNotFoundError, InvalidArgumentError, NotFoundError, TagNotFoundError
from puzzlefs.image import open_image
from puzzlefs.oci import media_types
from puzzlefs.tags import tag, tags, untag
from puzzlefs_cli.main import main

pytestmark = pytest.mark.unit

CREATED = "org.opencontainers.image.created"


@pytest.fixture(params=[1, 2, 3])
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Forge:
    return Forge(tmp_path / "layout", request.param)


def document(forge: Forge) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((forge.path / "index.json").read_bytes())
    return result


def entry(forge: Forge, digest: Digest, media_type: str, size: int = 1, **annotations: str) -> dict[str, Any]:
    """An entry of the index, spelled as the layout's dialect has it, with a field that nobody knows."""
    key = "mediaType" if forge.version == 3 else "media_type"
    return {
        key: media_type,
        "digest": digest.oci,
        "size": size,
        "annotations": annotations,
        "x-field": [1, {"y": None}],
    }


def write(forge: Forge, *entries: dict[str, Any], **fields: Any) -> None:
    schema_version = 2 if forge.version == 3 else -1
    forge.raw_index(json.dumps({"schemaVersion": schema_version, "manifests": entries, **fields}).encode())


def test_list(forge: Forge) -> None:
    with open_image(forge.image([f.directory(1)], tag="one")) as image:
        digest = image.verity_digest()
        path = forge.blob_path(image.manifest_digest)
        os.utime(path, ns=(0, 5))
    forge.image([f.directory(1)], tag="two")
    report = tags(forge.path)
    assert [info.tag for info in report.tags] == ["one", "two"]
    one, two = report.tags
    assert (one.digest, one.manifest, one.size) == (digest.hex(), f"sha256:{path.name}", path.stat().st_size)
    assert (one.created_ns, one.is_created_said, one.problem) == (5, False, None)
    assert (two.digest, two.manifest) == (one.digest, one.manifest)
    assert report.untagged == 0
    with pytest.raises(NotFoundError):
        tags(forge.path / "nothing")


def test_what_else_a_tag_can_be(forge: Forge) -> None:
    blob, gone = forge.blob(b"{}"), Digest.of(b"gone")
    other = "application/vnd.example"
    mine = media_types.MANIFEST if forge.version == 3 else media_types.ROOTFS
    name = media_types.REF_NAME
    write(
        forge,
        entry(forge, gone, mine, **{name: "twice"}),
        entry(forge, blob, other, **{name: "foreign", CREATED: "2001-02-03T04:05:06.5+02:00"}),
        entry(forge, gone, mine, **{name: "gone", CREATED: "some day"}),
        entry(forge, blob, other),
        entry(forge, blob, other, **{name: "twice", CREATED: "1969-12-31T23:59:59Z"}),
        entry(forge, blob, other, **{name: "no offset", CREATED: "2001-02-03T04:05:06"}),
    )
    report = tags(forge.path)
    assert report.untagged == 1
    found = {info.tag: info for info in report.tags}
    assert list(found) == ["twice", "foreign", "gone", "no offset"]
    assert (found["twice"].manifest, found["twice"].created_ns) == (blob.oci, -1_000_000_000)
    assert (found["foreign"].digest, found["foreign"].problem, found["foreign"].media_type) == (None, None, other)
    assert (found["foreign"].created_ns, found["foreign"].is_created_said) == (981_165_906_500_000_000, True)
    assert (found["gone"].size, found["gone"].created_ns, found["gone"].digest) == (None, None, None)
    assert "is missing" in (found["gone"].problem or "")
    assert not found["no offset"].is_created_said


def test_what_is_an_image_by_one_name_only(forge: Forge) -> None:
    """Each entry says what its blob is, and one of them can lie."""
    with open_image(forge.image([f.directory(1)])) as image:
        manifest, digest = image.manifest_digest, image.verity_digest().hex()
    mine = media_types.MANIFEST if forge.version == 3 else media_types.ROOTFS
    types = {"other": "application/vnd.example", "mine": mine, "another": "application/vnd.example"}
    write(forge, *(entry(forge, manifest, kind, **{media_types.REF_NAME: name}) for name, kind in types.items()))
    found = {info.tag: info.digest for info in tags(forge.path).tags}
    assert found == {"other": None, "mine": digest, "another": None}


def test_very_many_tags(forge: Forge) -> None:
    """All of them are gone through once, not once for each."""
    blob = forge.blob(b"{}")
    count = 20_000
    key = "application/vnd.example"
    write(forge, *(entry(forge, blob, key, **{media_types.REF_NAME: f"t{number}"}) for number in range(count)))
    started = time.process_time()
    assert [info.tag for info in tags(forge.path).tags] == [f"t{number}" for number in range(count)]
    assert len(tag(forge.reference("t7"), "new").other_tags) == count
    assert time.process_time() - started < 15


def test_tag(forge: Forge) -> None:
    one = forge.image([f.directory(1)], tag="one")
    two = forge.image([f.directory(1, uid=1)], tag="two")
    change = tag(one, "new")
    assert change.image == forge.reference("new")
    assert (change.before, change.other_tags) == (None, ("one",))
    with open_image(one) as old, open_image(forge.reference("new")) as new:
        assert old.manifest_digest == new.manifest_digest
        assert change.manifest == new.manifest_digest.oci
    again = tag(two, "new")
    assert (again.before, again.other_tags) == (change.manifest, ("two",))
    before = document(forge)
    status = (forge.path / "index.json").stat()
    assert tag(two, "new").before == again.manifest
    assert tag(two, "two").before == again.manifest
    assert document(forge) == before
    assert (forge.path / "index.json").stat().st_ino == status.st_ino  # nothing had to be written
    assert {info.tag: info.manifest for info in tags(forge.path).tags} == {
        "one": change.manifest,
        "two": again.manifest,
        "new": again.manifest,
    }


def test_other_entries_stay_as_they_are(forge: Forge) -> None:
    """Entries of other programs, indexes, fields that we do not know; also of what is tagged."""
    blob = forge.blob(b"whatever")
    name = media_types.REF_NAME
    entries = [
        entry(forge, blob, media_types.INDEX, **{name: "index", "more": "m"}),
        entry(forge, Digest.of(b"not here"), "application/vnd.example", **{name: "foreign/tag"}),
        entry(forge, blob, "application/vnd.example"),
        entry(forge, Digest.of(b"not here"), media_types.INDEX),
    ]
    write(forge, *entries, extra={"kept": True})
    tag(forge.reference("index"), "copy")
    after = document(forge)
    assert after["extra"] == {"kept": True}
    assert after["manifests"] == [*entries, {**entries[0], "annotations": {name: "copy", "more": "m"}}]
    untag(forge.reference("index"))
    assert document(forge)["manifests"] == [*entries[1:], {**entries[0], "annotations": {name: "copy", "more": "m"}}]
    untag(forge.reference("foreign/tag"))
    assert document(forge)["manifests"] == [*entries[2:], {**entries[0], "annotations": {name: "copy", "more": "m"}}]


def test_untag(forge: Forge) -> None:
    image = forge.image([f.directory(1)], tag="one")
    tag(image, "two")
    blobs = sorted(path.name for path in (forge.path / "blobs" / "sha256").iterdir())
    change = untag(image)
    assert (change.image, change.other_tags) == (image, ("two",))
    assert change.before == change.manifest
    with pytest.raises(TagNotFoundError) as caught:
        untag(image)
    assert caught.value.available == ("two",)
    assert untag(forge.reference("two")).other_tags == ()
    assert document(forge)["manifests"] == []
    assert sorted(path.name for path in (forge.path / "blobs" / "sha256").iterdir()) == blobs


def test_a_tag_that_stands_twice_goes_as_a_whole(forge: Forge) -> None:
    blob, name = forge.blob(b"whatever"), media_types.REF_NAME
    write(forge, *(entry(forge, digest, "x", **{name: "t"}) for digest in (Digest.of(b"old"), blob)))
    assert untag(forge.reference("t")).manifest == blob.oci
    assert tags(forge.path).tags == ()


def test_what_cannot_be(forge: Forge) -> None:
    image = forge.image([f.directory(1)], tag="one")
    before = (forge.path / "index.json").read_bytes()
    for bad in ("", "a b", "../x", "a" * 300, "-"):
        with pytest.raises(InvalidArgumentError):
            tag(image, bad)
    with pytest.raises(TagNotFoundError):
        tag(forge.reference("nope"), "new")
    with open_image(image) as opened:
        forge.blob_path(opened.manifest_digest).unlink()
    with pytest.raises(BlobNotFoundError):
        tag(image, "new")
    assert (forge.path / "index.json").read_bytes() == before


def test_many_at_once(forge: Forge) -> None:
    """Each change is made of the index as the one before left it."""
    image = forge.image([f.directory(1)], tag="one")
    for number in range(8):
        tag(image, f"old{number}")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(5):
                tag(image, f"t{number}-{step}")
            untag(forge.reference(f"old{number}"))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = {"one", *(f"t{number}-{step}" for number in range(8) for step in range(5))}
    assert {info.tag for info in tags(forge.path).tags} == expected


def test_the_lock_is_held(forge: Forge) -> None:
    image = forge.image([f.directory(1)], tag="one")
    done = threading.Event()

    def work() -> None:
        tag(image, "two")
        untag(image)
        done.set()

    thread = threading.Thread(target=work)
    with Layout.open(forge.path) as layout, layout.locked():
        thread.start()
        assert not done.wait(0.2)
        assert [info.tag for info in tags(forge.path).tags] == ["one"]
    thread.join()
    assert [info.tag for info in tags(forge.path).tags] == ["two"]


def test_commands(forge: Forge, capsys: pytest.CaptureFixture[str]) -> None:
    image = forge.image([f.directory(1)], tag="one")
    with open_image(image) as opened:
        digest, manifest = opened.verity_digest().hex(), opened.manifest_digest
    assert main(["tag", image, "new/er"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["tag", "--json", str(forge.path), "one", "two"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "image": forge.reference("two"),
        "manifest": manifest.oci,
        "before": None,
        "other_tags": ["one", "new/er"],
    }
    assert main(["tags", "--name-only", str(forge.path)]) == 0
    assert capsys.readouterr().out == "one\nnew/er\ntwo\n"
    os.utime(forge.blob_path(manifest), (0, 0))
    assert main(["tags", str(forge.path)]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["tag", "digest", "size", "created"]
    assert [row.split()[:2] for row in rows] == [["one", digest], ["new/er", digest], ["two", digest]]
    assert rows[0].split()[4] in ("1970-01-01", "1969-12-31")
    assert main(["tags", "--json", str(forge.path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["layout"], report["untagged"]) == (str(forge.path), 0)
    assert report["tags"][1]["tag"] == "new/er"
    assert report["tags"][1]["created_ns"] == 0
    assert main(["untag", image]) == 0
    assert capsys.readouterr().out == ""
    assert main(["untag", "--json", forge.reference("two")]) == 0
    assert json.loads(capsys.readouterr().out)["other_tags"] == ["new/er"]
    assert main(["untag", image]) == 3
    assert main(["tag", image]) == 2
    assert main(["tag", forge.reference("new/er"), "no tag"]) == 2
    forge.blob_path(manifest).write_bytes(b"x")
    capsys.readouterr()
    assert main(["tags", str(forge.path)]) == 4
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].split()[:2] == ["new/er", "?"]
    assert "new/er: blob" in captured.err
    assert "is corrupt or was replaced" in captured.err


def test_odd_tags_are_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge = Forge(tmp_path / "layout")
    write(forge, entry(forge, forge.blob(b"x"), "y", **{media_types.REF_NAME: "a\x1b[2J b"}))
    assert main(["tags", "--name-only", str(forge.path)]) == 0
    assert capsys.readouterr().out == "'a'$'\\033''[2J b'\n"
