"""The specification's own values: what ``format/README.md`` prints must be what the code does.

The document is read here, so a change of either one alone fails.
"""

import hashlib
import json
import re
from pathlib import Path

import pytest

from puzzlefs.blobs.layout import MAX_INDEX_SIZE, MAX_MANIFEST_SIZE
from puzzlefs.blobs.verified import MAX_CHUNK_CONTENT, MAX_RAW_SIZE
from puzzlefs.builder import build
from puzzlefs.chunking import AVERAGE_SIZE, MAX_SIZE, MIN_SIZE, chunker
from puzzlefs.compression.zstd import MAX_WINDOW_SIZE
from puzzlefs.digest import Digest
from puzzlefs.image import MAX_METADATA_SIZE, open_image
from puzzlefs.model import BlobRef, Directory, DirEntry, FileChunk, Inode, RegularFile
from puzzlefs.verity import verity_digest
from puzzlefs.wire import codec_for
from puzzlefs.wire.message import MAX_SEGMENTS
from puzzlefs.wire.rootfs import MAX_METADATA_LAYERS

pytestmark = pytest.mark.golden

DOCUMENT = Path(__file__).parents[2].joinpath("format", "README.md").read_text(encoding="utf-8")
HELLO = b"hello\n"
VERSIONS = (1, 2, 3)
ROOT = Inode(1, 0, 0, 0o755, Directory((DirEntry(2, b"hello"),)))
FILE = Inode(2, 1000, 100, 0o644, RegularFile.of([FileChunk(BlobRef(Digest.of(HELLO), 0, False), len(HELLO))]))


def _blobs(version: int) -> dict[str, bytes]:
    """The metadata of the example tree, by the names that the document's table gives them."""
    codec = codec_for(version)
    verity = {Digest.of(HELLO): verity_digest(HELLO)}
    if version == 3:
        return {"rootfs blob": codec.encode_rootfs(layers=[[ROOT, FILE]], metadata_refs=(), verity=verity)}
    vector = codec.encode_inode_vector([ROOT, FILE])
    verity[Digest.of(vector)] = verity_digest(vector)
    refs = [BlobRef(Digest.of(vector), 0, False)]
    return {"metadata blob": vector, "rootfs blob": codec.encode_rootfs(layers=(), metadata_refs=refs, verity=verity)}


def _table_row(name: str) -> list[str]:
    line = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| {name} | "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_annotated_message_is_what_the_encoder_writes() -> None:
    words = re.findall(r"^ ?-?\d+  ([0-9a-f]{16})\b", DOCUMENT, re.MULTILINE)
    assert b"".join(int(word, 16).to_bytes(8, "little") for word in words) == _blobs(2)["metadata blob"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_example_has_the_blobs_that_the_document_names(version: int) -> None:
    blobs = _blobs(version)
    for name, data in blobs.items():
        assert _table_row(name)[version - 1] == f"{len(data)} bytes, `{Digest.of(data).hex()[:16]}…`"
    if version != 3:
        assert f"| {version} | `{verity_digest(blobs['rootfs blob']).hex()}` |" in DOCUMENT


def test_the_manifest_of_the_example_is_the_one_shown() -> None:
    shown = next(block for block in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL) if '"config"' in block)
    manifest = json.dumps(json.loads(shown), sort_keys=True, separators=(",", ":")).encode()
    assert _table_row("OCI manifest")[2] == f"{len(manifest)} bytes, `{Digest.of(manifest).hex()[:16]}…`"
    assert f"| 3 | `{verity_digest(manifest).hex()}` |" in DOCUMENT
    rootfs, chunk = json.loads(shown)["layers"]
    assert rootfs["digest"] == Digest.of(_blobs(3)["rootfs blob"]).oci
    assert list(rootfs["annotations"].values()) == [verity_digest(_blobs(3)["rootfs blob"]).hex()]
    assert chunk["digest"] == Digest.of(HELLO).oci


@pytest.mark.parametrize("version", VERSIONS)
def test_a_build_writes_what_the_document_shows(tmp_path: Path, version: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir(0o755)
    tree.chmod(0o755)
    (tree / "hello").write_bytes(HELLO)
    (tree / "hello").chmod(0o644)
    reference = f"{tmp_path / 'images'}:t"
    build(tree, reference, format_version=version)
    index = (tmp_path / "images" / "index.json").read_bytes()
    with open_image(reference) as image:
        digest, size = image.manifest_digest.hex(), len(image.blobs.read(image.manifest_digest, limit=1 << 20))
    example = next(
        line
        for line in DOCUMENT.splitlines()
        if line.startswith('{"schemaVersion":-1' if version < 3 else '{"manifests"')
    )
    # Owner, and so digest and size, are those of whoever runs the test; the platform is that of the machine.
    expected = re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{digest}", example)
    expected = re.sub(r'"size":\d+', f'"size":{size}', expected)
    platform = re.search(rb'"architecture":"[^"]*"', index)
    if platform is not None:
        expected = re.sub(r'"architecture":"[^"]*"', platform[0].decode(), expected)
    assert index.decode() == expected


def test_the_chunking_algorithm_of_the_document_cuts_where_ours_does() -> None:
    small, large = (
        int(re.search(rf"^{name} += (0x[0-9a-f]+)$", DOCUMENT, re.MULTILINE)[1], 16) for name in ("SMALL", "LARGE")
    )  # type: ignore[index]
    gear = [int.from_bytes(hashlib.md5(bytes([byte]) * 64).digest()[:8], "big") for byte in range(256)]
    assert f"GEAR[0] = {gear[0]:#x}" in DOCUMENT

    def cut(data: memoryview) -> int:
        size = len(data)
        if size <= MIN_SIZE:
            return size
        center, end = (min(bound, size) & ~1 for bound in (AVERAGE_SIZE, MAX_SIZE))
        value = 0
        for index in range(MIN_SIZE, end):
            value = (value * 2 + gear[data[index]]) % 2**64
            if value & (small if index < center else large) == 0:
                return index
        return min(MAX_SIZE, size)

    listed = re.search(r"\*\*Chunk lengths\*\*[^:]*: ([\d,\s]+)\.", DOCUMENT)
    assert listed is not None
    lines = b"".join(b"line %06d\n" % number for number in range(100_000))
    ours = chunker("fastcdc2020").cut(memoryview(lines), final=True)
    assert ours == [int(number) for number in listed[1].split(",")]
    rest, lengths = memoryview(lines), []
    while rest:
        lengths.append(cut(rest))
        rest = rest[lengths[-1] :]
    assert lengths == ours


def _size(count: int) -> str:
    return f"{count >> 30} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("`index.json`, and an index between a tag and its manifest", _size(MAX_INDEX_SIZE)),
        ("OCI manifest, or rootfs blob of versions 1 and 2", _size(MAX_MANIFEST_SIZE)),
        ("rootfs blob of version 3; rootfs and metadata blobs of versions 1 and 2 together", _size(MAX_METADATA_SIZE)),
        ("segments of a Cap'n Proto message", f"{MAX_SEGMENTS:,}"),
        ("number of metadata layers", f"{MAX_METADATA_LAYERS:,}"),
        ("compressed chunk: stored bytes, content", _size(MAX_CHUNK_CONTENT)),
        ("window of a zstd frame", _size(MAX_WINDOW_SIZE)),
        ("raw chunk", _size(MAX_RAW_SIZE)),
    ],
)
def test_the_limits_of_the_document_are_those_of_the_code(what: str, limit: str) -> None:
    assert re.match(re.escape(limit) + r"\b", _table_row(what)[0])
