"""Layouts whose documents or blobs are not what they should be: the right error, at once, whatever stands there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.examine import Outcome, examine, examine_limited, limited
from support.forge import Forge
from support.trees import let_everybody_in

from puzzlefs.digest import Digest
from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    NotFoundError,
    PuzzlefsError,
    StorageError,
    TagNotFoundError,
    UnsupportedVersionError,
)
from puzzlefs.image import open_image
from puzzlefs.oci import media_types
from puzzlefs.wire import codec_for

pytestmark = pytest.mark.hostile

NOBODY = 65534
HUGE = 1 << 40


def good_image(forge: Forge, *, compressed: bool = False) -> str:
    chunk = forge.chunk(b"content\n" * 1000, compressed=compressed)
    return forge.image([f.directory(1, {b"file": 2}), f.regular(2, chunk)])


def opening_error(reference: str) -> tuple[type[PuzzlefsError], str]:
    """The error of opening an image, which has limits on time and memory."""

    def run() -> tuple[type[PuzzlefsError], str] | None:
        try:
            open_image(reference).close()
        except PuzzlefsError as error:
            return type(error), str(error)
        return None

    answer = limited(run, memory=512 << 20)
    assert answer is not None, "it opened"
    assert "\n" not in answer[1]
    assert len(answer[1]) < 2000
    return answer


# ---- things that are not files


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(path.parent)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_sparse(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, HUGE)


NOT_FILES: dict[str, Callable[[Path], None]] = {
    "FIFO": make_fifo,
    "directory": Path.mkdir,
    "socket": make_socket,
    "symlink to itself": make_loop,
    "sparse file of 1 TiB": make_sparse,
}


@pytest.mark.parametrize("what", NOT_FILES)
@pytest.mark.parametrize("document", ["oci-layout", "index.json"])
def test_documents_that_are_not_files(tmp_path: Path, document: str, what: str) -> None:
    forge = Forge(tmp_path / "layout")
    reference = good_image(forge)
    (forge.path / document).unlink()
    NOT_FILES[what](forge.path / document)
    assert opening_error(reference)[0] is FormatError


BLOBS = ["manifest", "rootfs", "chunk"]


def blob_of(forge: Forge, version: int, which: str) -> Path:
    """Where one of the blobs of ``good_image`` is."""
    with open_image(forge.reference()) as image:
        if which == "chunk":
            (piece,) = image.tree.plan(2, 0, 1).pieces
            return forge.blob_path(piece.blob)
        if which == "manifest":
            return forge.blob_path(image.manifest_digest)
        if version == 3:
            assert image.manifest is not None
            return forge.blob_path(image.manifest.rootfs().digest)
        return forge.blob_path(image.metadata_refs[0].digest)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


BROKEN: dict[str, tuple[Callable[[Path], object], type[PuzzlefsError]]] = {
    "missing": (Path.unlink, BlobNotFoundError),
    "empty": (lambda path: path.write_bytes(b""), IntegrityError),
    "truncated by a byte": (lambda path: os.truncate(path, path.stat().st_size - 1), IntegrityError),
    "one byte longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), IntegrityError),
    "one bit flipped": (flip, IntegrityError),
    "another blob": (lambda path: path.write_bytes(b"something else"), IntegrityError),
    "symlink to the right blob": (replace_by_link, FormatError),
    **{what: (lambda path, make=make: (path.unlink(), make(path)), FormatError) for what, make in NOT_FILES.items()},
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "zstd"])
@pytest.mark.parametrize("which", BLOBS)
@pytest.mark.parametrize("version", [1, 3])
def test_blobs_that_are_not_what_they_should_be(
    tmp_path: Path, version: int, which: str, compressed: bool, what: str
) -> None:
    forge = Forge(tmp_path / "layout", version)
    reference = good_image(forge, compressed=compressed)
    assert examine(reference).problems == {}
    path = blob_of(forge, version, which)
    damage, expected = BROKEN[what]
    damage(path)
    target = tmp_path / "out"
    outcome = examine_limited(reference, target)
    if which == "chunk":
        assert (outcome.opening, outcome.problems) == (None, {b"file": expected.__name__}), outcome.messages
        assert any(str(target / "file") in message for message in outcome.messages)
    else:
        assert outcome.opening == expected.__name__, outcome.messages
        assert not target.exists()
    assert outcome.extraction == expected.__name__
    assert any(path.name in message for message in outcome.messages)
    assert outcome.cpu_seconds < 2


@pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to become somebody else")
@pytest.mark.parametrize("which", ["layout", "oci-layout", "index.json", "blobs/sha256", "manifest", "chunk"])
def test_what_may_not_be_read_is_an_error_of_the_host(tmp_path: Path, which: str) -> None:
    forge = Forge(tmp_path / "layout")
    reference = good_image(forge)
    let_everybody_in(tmp_path)
    path = blob_of(forge, 3, which) if which in BLOBS else forge.path / ("." if which == "layout" else which)
    os.chmod(path, 0)

    def run() -> Outcome:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return examine(reference)

    outcome = limited(run)
    error = outcome.problems.get(b"file") if which == "chunk" else outcome.opening
    assert error == StorageError.__name__
    assert any(str(path) in message and "Permission denied" in message for message in outcome.messages)


# ---- oci-layout


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, NotFoundError),
        (b"", FormatError),
        (b"\0" * 100, FormatError),
        (b"{", FormatError),
        (b"[]", FormatError),
        (b"null", FormatError),
        (b"\xff\xfe", FormatError),
        (b"{}", FormatError),
        (b'{"imageLayoutVersion":null}', FormatError),
        (b'{"imageLayoutVersion":1}', FormatError),
        (b'{"imageLayoutVersion":"2.0.0"}', FormatError),
        (b'{"imageLayoutVersion":["1.0.0"]}', FormatError),
        (b'{"imageLayoutVersion":{"a":{}}}', FormatError),
        (b'{"imageLayoutVersion":"' + b"1" * 60_000 + b'"}', FormatError),
        (b'{"imageLayoutVersion":"1.0.0"' + b" " * (1 << 20) + b"}", FormatError),
        (b'{"imageLayoutVersion":"puzzlefs-dev"}', FormatError),
        (b"[" * 60_000, FormatError),
    ],
    ids=repr,
)
def test_malformed_oci_layout(tmp_path: Path, content: bytes | None, expected: type[PuzzlefsError]) -> None:
    forge = Forge(tmp_path / "layout")
    reference = good_image(forge)
    (forge.path / "oci-layout").unlink()
    if content is not None:
        (forge.path / "oci-layout").write_bytes(content)
    assert opening_error(reference)[0] is expected


def test_what_is_no_layout_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path, tmp_path / ("n" * 300), tmp_path / "file" / "x"):
        error, message = opening_error(f"{path}:tag")
        assert error is (StorageError if len(path.name) > 255 else NotFoundError)
        assert str(path) in message


def test_blobs_that_are_not_a_directory(tmp_path: Path) -> None:
    for what, make in {
        "missing": lambda _: None,
        "file": lambda path: path.write_bytes(b""),
        "loop": make_loop,
    }.items():
        forge = Forge(tmp_path / what)
        reference = good_image(forge)
        blobs = forge.path / "blobs" / "sha256"
        blobs.rename(forge.path / "moved")
        make(blobs)
        assert opening_error(reference)[0] is FormatError


# ---- index.json


def good_index(forge: Forge) -> dict[str, Any]:
    good_image(forge)
    document: dict[str, Any] = json.loads((forge.path / "index.json").read_bytes())
    return document


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return b'{"schemaVersion":2,"manifests":' + (opening * depth + closing * depth).encode() + b"}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, NotFoundError),
        (b"", FormatError),
        (b"\0" * 100, FormatError),
        (b"[]", FormatError),
        (b'"text"', FormatError),
        (b"NaN", FormatError),
        (b"{}", FormatError),
        (b'{"schemaVersion":2}', FormatError),
        (b'{"schemaVersion":2,"manifests":null}', FormatError),
        (b'{"schemaVersion":2,"manifests":{}}', FormatError),
        (b'{"schemaVersion":2,"manifests":[1]}', FormatError),
        (b'{"schemaVersion":2,"manifests":[[]]}', FormatError),
        (b'{"schemaVersion":1,"manifests":[]}', FormatError),
        (b'{"schemaVersion":-1,"manifests":[]}', FormatError),
        (b'{"schemaVersion":' + b"9" * 5000 + b',"manifests":[]}', FormatError),
        (b'{"schemaVersion":2,"manifests":[],"x":1e999999}', TagNotFoundError),
        (b'{"schemaVersion":2,"manifests":[]}', TagNotFoundError),
        (nested(9_000), FormatError),
        (nested(100_000), FormatError),
        (nested(100_000, '{"a":', "}"), FormatError),
        (b"[" * 10_000_000, FormatError),
        (b'{"schemaVersion":2,"manifests":[]}'.decode().encode("utf-16"), TagNotFoundError),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_malformed_index(tmp_path: Path, content: bytes | None, expected: type[PuzzlefsError]) -> None:
    forge = Forge(tmp_path / "layout")
    good_image(forge)
    (forge.path / "index.json").unlink()
    if content is not None:
        (forge.path / "index.json").write_bytes(content)
    assert opening_error(forge.reference())[0] is expected


HEX = "0" * 64
MALFORMED_FIELDS: list[tuple[str, Any]] = [
    *[
        ("digest", value)
        for value in (
            None,
            5,
            [],
            {},
            "",
            "sha256:",
            HEX,
            f"sha256:{HEX}0",
            f"sha256:{HEX[:-1]}",
            f"sha256:{HEX}\n",
            f"sha256:{'A' * 64}",
            f"sha256:{'g' * 64}",
            f"sha256: {HEX[:-1]}",
            f"sha512:{HEX}{HEX}",
            f"SHA256:{HEX}",
            f"md5:{HEX[:32]}",
            "sha256:../../etc/passwd",
            f"sha256:{'../' * 21}x",
            f"../../../etc/passwd\0sha256:{HEX}",
            "sha256:" + "０" * 64,
        )
    ],
    *[("size", value) for value in (None, "1", 1.5, True, [], -1, 1 << 63, 1 << 70, float("inf"), float("nan"))],
    *[("mediaType", value) for value in (None, 1, [], {}, True)],
    *[("annotations", value) for value in (1, "x", [], [["a", "b"]], {"a": 1}, {"a": None}, {"a": {}})],
]


@pytest.mark.parametrize(("field", "value"), MALFORMED_FIELDS, ids=lambda value: ascii(value)[:60])
def test_descriptor_with_a_malformed_field(tmp_path: Path, field: str, value: object) -> None:
    forge = Forge(tmp_path / "layout")
    document = good_index(forge)
    document["manifests"][0][field] = value
    reference = forge.raw_index(json.dumps(document).encode())
    error, message = opening_error(reference)
    assert error is FormatError
    assert "index.json: manifest 0" in message
    # The same in the rootfs descriptor of the manifest (where the media type is what finds it).
    if field == "mediaType":
        return
    layer = {"mediaType": media_types.ROOTFS, "digest": f"sha256:{HEX}", "size": 1, field: value}
    manifest = forge.manifest(Digest.of(b""), 0, layers=[layer])
    assert opening_error(forge.raw_manifest(manifest))[0] is FormatError


@pytest.mark.parametrize("field", ["digest", "size", "mediaType"])
def test_descriptor_without_a_field(tmp_path: Path, field: str) -> None:
    forge = Forge(tmp_path / "layout")
    document = good_index(forge)
    del document["manifests"][0][field]
    assert opening_error(forge.raw_index(json.dumps(document).encode()))[0] is FormatError


def test_a_tag_that_points_to_something_else(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    document = good_index(forge)
    document["manifests"][0]["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json\n\x1b[31m"
    error, message = opening_error(forge.raw_index(json.dumps(document).encode()))
    assert error is FormatError
    assert "not a PuzzleFS image" in message
    assert "\x1b" not in message


def test_a_missing_tag_lists_the_tags_there_are(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    forge.image([f.directory(1)], tag="one")
    forge.image([f.directory(1)], tag="two")
    error, message = opening_error(f"{forge.path}:three")
    assert error is TagNotFoundError
    assert "'three'" in message
    assert "one, two" in message


def test_tags_with_odd_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    document = good_index(forge)
    (descriptor,) = document["manifests"]
    odd = [
        "",
        "new\nline",
        "\x1b[31mred",
        "\x9b31m",
        "\u202eright to left",
        "x" * 100_000,
        "../../etc",
        "\ud800",
        "käse",
    ]
    document["manifests"] = [{**descriptor, "annotations": {media_types.REF_NAME: tag}} for tag in odd]
    error, message = opening_error(forge.raw_index(json.dumps(document).encode()))
    assert error is TagNotFoundError
    assert message.isprintable()
    assert "käse" in message


def test_a_thousand_tags_make_a_short_message(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    document = good_index(forge)
    (descriptor,) = document["manifests"]
    document["manifests"] = [{**descriptor, "annotations": {media_types.REF_NAME: f"t{n}"}} for n in range(1000)]
    error, message = opening_error(forge.raw_index(json.dumps(document).encode()))
    assert error is TagNotFoundError
    assert "t0, t1" in message
    assert len(message) < 500


# ---- nested indexes


def nest(forge: Forge, manifests: list[dict[str, Any]]) -> dict[str, Any]:
    data = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
    return {"mediaType": media_types.INDEX, "digest": forge.blob(data).oci, "size": len(data)}


def publish(forge: Forge, descriptor: dict[str, Any]) -> str:
    named = {**descriptor, "annotations": {media_types.REF_NAME: f.TAG}}
    return forge.raw_index(json.dumps({"schemaVersion": 2, "manifests": [named]}).encode())


def test_nested_indexes(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    (descriptor,) = good_index(forge)["manifests"]
    once = nest(forge, [descriptor])
    assert examine(publish(forge, once)).paths == [b".", b"file"]
    deep = once
    for _ in range(20):
        deep = nest(forge, [deep])
    assert opening_error(publish(forge, deep))[0] is FormatError
    assert opening_error(publish(forge, nest(forge, [])))[0] is FormatError
    assert opening_error(publish(forge, {**once, "digest": f"sha256:{HEX}"}))[0] is BlobNotFoundError
    # An index that names itself would have to contain its own sha256; the blob that claims to is corrupt.
    liar = {**once, "digest": f"sha256:{'1' * 64}"}
    forge.blob_path(Digest.from_hex("1" * 64)).write_bytes(
        json.dumps({"schemaVersion": 2, "manifests": [liar]}).encode()
    )
    assert opening_error(publish(forge, liar))[0] is IntegrityError


def test_a_nested_index_chooses_this_machine(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    (descriptor,) = good_index(forge)["manifests"]
    machine = descriptor["platform"]
    foreign = {**descriptor, "digest": f"sha256:{HEX}", "platform": {**machine, "architecture": "pdp11"}}
    for manifests in (
        [foreign, descriptor],
        [foreign, {**descriptor, "platform": {**machine, "variant": "v8"}}],
        [{**foreign, "platform": []}, {**foreign, "platform": {"os": []}}, descriptor],
    ):
        assert examine(publish(forge, nest(forge, manifests))).paths == [b".", b"file"]


# ---- the OCI manifest


def broken_manifest(**changes: Any) -> Callable[[Forge], str]:
    def make(forge: Forge) -> str:
        rootfs = forge.codec.encode_rootfs(layers=[[f.directory(1)]], metadata_refs=(), verity={})
        digest = forge.blob(rootfs)
        good = forge.manifest(digest, len(rootfs))
        layer = json.loads(good)["layers"][0]
        filled = {key: value(layer) if callable(value) else value for key, value in changes.items()}
        return forge.raw_manifest(forge.manifest(digest, len(rootfs), **filled))

    return make


MANIFESTS: dict[str, tuple[Callable[[Forge], str], type[PuzzlefsError] | None]] = {
    "not JSON": (lambda forge: forge.raw_manifest(b"\x7fELF"), FormatError),
    "empty": (lambda forge: forge.raw_manifest(b""), FormatError),
    "a list": (lambda forge: forge.raw_manifest(b"[]"), FormatError),
    "nested": (lambda forge: forge.raw_manifest(b"[" * 1_000_000), FormatError),
    "capnp of version 1": (
        lambda forge: forge.raw_manifest(codec_for(1).encode_rootfs(layers=(), metadata_refs=(), verity={})),
        FormatError,
    ),
    "schema version 1": (broken_manifest(schemaVersion=1), FormatError),
    "no schema version": (broken_manifest(schemaVersion=None), FormatError),
    "huge schema version": (broken_manifest(schemaVersion=10**4000), FormatError),
    "no config": (broken_manifest(config=None), FormatError),
    "config is a list": (broken_manifest(config=[]), FormatError),
    "config elsewhere": (broken_manifest(config={"mediaType": "x", "digest": "sha512:0", "size": 0}), FormatError),
    "no layers": (broken_manifest(layers=[]), FormatError),
    "layers missing": (broken_manifest(layers=None), FormatError),
    "layers are an object": (broken_manifest(layers={}), FormatError),
    "layers are numbers": (broken_manifest(layers=[1, 2]), FormatError),
    "a layer is null": (broken_manifest(layers=lambda layer: [None, layer]), FormatError),
    "two rootfs": (broken_manifest(layers=lambda layer: [layer, layer]), FormatError),
    "only tar layers": (
        broken_manifest(layers=lambda layer: [{**layer, "mediaType": "application/vnd.oci.image.layer.v1.tar"}]),
        FormatError,
    ),
    "rootfs is missing": (
        broken_manifest(layers=lambda layer: [{**layer, "digest": f"sha256:{HEX}"}]),
        BlobNotFoundError,
    ),
    "rootfs is the config": (
        broken_manifest(layers=lambda layer: [{**layer, "digest": Digest.of(b"{}").oci}]),
        FormatError,
    ),
    # ---- harmless
    "rootfs comes last": (
        broken_manifest(layers=lambda layer: [{"mediaType": "text/plain"}, {**layer, "mediaType": "x"}, layer]),
        None,
    ),
    "size lies": (broken_manifest(layers=lambda layer: [{**layer, "size": 1}]), None),
    "size lies the other way": (broken_manifest(layers=lambda layer: [{**layer, "size": (1 << 63) - 1}]), None),
    "unknown fields": (broken_manifest(subject={"mediaType": []}, annotations=None, artifactType=5), None),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(tmp_path: Path, name: str) -> None:
    make, expected = MANIFESTS[name]
    reference = make(Forge(tmp_path / "layout"))
    if expected is None:
        assert examine_limited(reference).paths == [b"."]
    else:
        assert opening_error(reference)[0] is expected


# ---- versions in the wrong place


@pytest.mark.parametrize("version", [0, 4, 255, 1 << 32, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("written", [1, 2, 3])
def test_unknown_versions(tmp_path: Path, written: int, version: int) -> None:
    forge = Forge(tmp_path / "layout", written)
    layers = [[f.directory(1)]] if written == 3 else ()
    data = forge.codec.encode_rootfs(layers=layers, metadata_refs=(), verity={})
    # Word 0 of the first segment is the root pointer, word 1 the struct's data section: the version.
    patched = data[:16] + version.to_bytes(8, "little") + data[24:]
    assert int.from_bytes(data[16:24], "little") == written
    error, message = opening_error(forge.raw_rootfs(patched))
    assert error is UnsupportedVersionError
    assert str(version) in message


@pytest.mark.parametrize(("layout", "data"), [(3, 1), (3, 2), (1, 3), (2, 3)])
def test_metadata_of_a_version_that_does_not_belong_into_the_layout(tmp_path: Path, layout: int, data: int) -> None:
    forge = Forge(tmp_path / "layout", layout)
    inodes = [f.directory(1, {b"x": 2}), f.symlink(2, b"t")]
    if data == 3:
        rootfs = codec_for(3).encode_rootfs(layers=[inodes], metadata_refs=(), verity={})
    else:
        other = Forge(tmp_path / "other", data)
        other.image(inodes)
        with open_image(other.reference()) as image:
            rootfs = other.blob_path(image.manifest_digest).read_bytes()
        for blob in (other.path / "blobs" / "sha256").iterdir():
            forge.blob(blob.read_bytes())
    assert opening_error(forge.raw_rootfs(rootfs))[0] is FormatError


@pytest.mark.parametrize("claimed", [1, 2])
def test_version_1_and_2_mixed_up(tmp_path: Path, claimed: int) -> None:
    """The shapes of files differ; nothing but the number says which it is. A wrong tree is possible, a crash is not."""
    written = 3 - claimed
    forge = Forge(tmp_path / "layout", claimed)
    chunk = forge.chunk(b"abc")
    vector = codec_for(written).encode_inode_vector(
        [f.directory(1, {b"a": 2, b"d": 3}), f.regular(2, chunk), f.directory(3)]
    )
    outcome = examine_limited(forge.raw_vectors(vector), tmp_path / "out")
    assert outcome.opening is None
    assert b"d" in outcome.paths
    assert outcome.problems == {b"a": "FormatError"}


@pytest.mark.parametrize("swapped", ["oci-layout", "index.json"])
def test_documents_of_the_other_kind_of_layout(tmp_path: Path, swapped: str) -> None:
    one, other = Forge(tmp_path / "one", 3), Forge(tmp_path / "other", 1)
    good_image(one)
    good_image(other)
    (one.path / swapped).write_bytes((other.path / swapped).read_bytes())
    assert opening_error(one.reference())[0] is FormatError
