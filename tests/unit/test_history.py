"""``puzzlefs history``: the report of the library and what the command prints of it."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.forge import Forge

import puzzlefs
from puzzlefs.blobs import Layout
from puzzlefs.errors import IntegrityError, NotFoundError
from puzzlefs.history import HistoryReport, KindHistory, LayerHistory, history
from puzzlefs.image import open_image
from puzzlefs.model import Fifo, Inode, MetadataLayer, Whiteout
from puzzlefs.vfs.changes import layer_changes
from puzzlefs.wire import codec_for, embedded_sizes, encode_compact_rootfs
from puzzlefs_cli.main import main
from puzzlefs_cli.text import readable

pytestmark = pytest.mark.unit

DATA = random.Random(3).randbytes(5000)
COUNTED = ("added", "changed", "removed", "visible", "stored_inodes")


@pytest.fixture(params=[1, 2, 3])
def forge(tmp_path: Path, request: pytest.FixtureRequest) -> Forge:
    return Forge(tmp_path / "layout", request.param)


def stack(forge: Forge) -> list[list[Inode]]:
    """Three layers, topmost first: the files of a directory change, then it moves and a file goes."""
    old, new = forge.chunk(DATA), forge.chunk(DATA[:1000] * 2, compressed=True)
    return [
        [f.directory(1, {b"b": 2, b"link": 5}), f.inode(4, Whiteout())],
        [f.directory(2, {b"one": 3, b"three": 6, b"two": 4}), f.regular(3, old, new), f.inode(6, Fifo())],
        [
            f.directory(1, {b"a": 2, b"link": 5}),
            f.directory(2, {b"one": 3, b"two": 4}),
            f.regular(3, old),
            f.regular(4, f.recompressed(old, False)),
            f.symlink(5, b"a/one"),
        ],
    ]


def numbers(layer: LayerHistory) -> tuple[int, ...]:
    return tuple(getattr(layer, name) for name in COUNTED)


def test_what_each_layer_did(forge: Forge) -> None:
    report = history(forge.image(*stack(forge)))
    assert report.format_version == forge.version
    assert [layer.layer for layer in report.layers] == [3, 2, 1]
    assert [numbers(layer) for layer in report.layers] == [(0, 1, 1, 5, 2), (1, 2, 0, 6, 3), (5, 0, 0, 5, 5)]
    top, middle, lowest = report.layers
    assert top.kinds == {"directory": KindHistory(0, 1, 0), "regular": KindHistory(0, 0, 1)}
    assert middle.kinds == {
        "fifo": KindHistory(1, 0, 0),
        "directory": KindHistory(0, 1, 0),
        "regular": KindHistory(0, 1, 0),
    }
    assert list(middle.kinds) == ["fifo", "directory", "regular"]
    assert {kind: found.added for kind, found in lowest.kinds.items()} == {"directory": 2, "regular": 2, "symlink": 1}


def test_chunks_are_those_of_the_lowest_layer_that_has_them(forge: Forge) -> None:
    reference = forge.image(*stack(forge))
    top, middle, lowest = history(reference).layers
    small = len(forge.blob_path(stack(forge)[1][1].content.chunks[1].blob.digest).read_bytes())  # type: ignore[union-attr]
    assert small < 2000
    assert (top.new_chunks, top.new_bytes, top.new_stored_bytes) == (0, 0, 0)
    assert (middle.new_chunks, middle.new_bytes, middle.new_stored_bytes) == (1, 2000, small)
    assert (lowest.new_chunks, lowest.new_bytes, lowest.new_stored_bytes) == (1, 5000, 5000)


def test_a_chunk_that_is_not_there_is_no_error(forge: Forge) -> None:
    """In the original's deltas, chunks that only hidden inodes use may be missing."""
    layers = stack(forge)
    reference = forge.image([f.regular(3)], *layers[1:])
    forge.blob_path(layers[1][1].content.chunks[1].blob.digest).unlink()  # type: ignore[union-attr]
    middle = history(reference).layers[1]
    assert (middle.new_chunks, middle.new_bytes, middle.new_stored_bytes, middle.missing_chunks) == (1, 2000, 0, 1)


def test_an_open_image_stays_open(forge: Forge) -> None:
    with open_image(forge.image(*stack(forge))) as image:
        report = history(image)
        assert report.digest == image.verity_digest().hex()
        assert report.image == str(image.reference)
        assert image.tree.lookup(1, b"b").ino == 2


def test_the_digest_is_checked(forge: Forge) -> None:
    reference = forge.image(*stack(forge))
    right = history(reference).digest
    assert history(reference, digest=right) == history(reference)
    with pytest.raises(IntegrityError):
        history(reference, digest="0" * 64)
    with pytest.raises(NotFoundError):
        history(forge.reference("nothing"))


# ---- metadata


def test_metadata_blobs_of_versions_1_and_2(tmp_path: Path) -> None:
    for version in (1, 2):
        forge = Forge(tmp_path / str(version), version)
        reference = forge.image(*stack(forge))
        with open_image(reference) as image:
            refs = image.metadata_refs
        layers = history(reference).layers
        assert [layer.blob for layer in layers] == [ref.digest.oci for ref in refs]
        assert [layer.metadata_bytes for layer in layers] == [
            forge.blob_path(ref.digest).stat().st_size for ref in refs
        ]


def big_layers(forge: Forge) -> list[list[Inode]]:
    """So much that the original's encoding takes several segments and far pointers; xattrs and a device too."""
    chunk = forge.chunk(DATA)
    names = {b"file%05d" % ino: ino for ino in range(2, 1500)}
    lowest = [
        f.directory(1, names),
        *(f.regular(ino, chunk, xattrs={b"user.x": b"%d" % ino}) for ino in names.values()),
    ]
    return [[f.regular(5, chunk, chunk), f.symlink(9, b"somewhere else"), f.inode(12, Fifo())], lowest]


@pytest.mark.parametrize("compact", [False, True])
def test_parts_of_a_message_add_up_to_it(tmp_path: Path, compact: bool) -> None:
    """All words are some layer's, but for the rootfs itself, the lists of layers and of segments."""
    layers = big_layers(Forge(tmp_path / "layout"))
    codec = codec_for(3)
    if compact:
        message = encode_compact_rootfs(3, layers, {})
    else:
        message = codec.encode_rootfs(layers=layers, metadata_refs=(), verity={})
    top, lowest = embedded_sizes(codec.decode_rootfs(message).tables)
    segments = int.from_bytes(message[:4], "little") + 1
    assert compact == (segments == 1)
    header = segments // 2 + 1 << 3
    # root pointer, three words of Rootfs, the tag and two pointers of the layers' list, the tag of an empty list
    words = 1 + 3 + 3 + 1
    assert 0 <= len(message) - header - (top + lowest) - words * 8 <= (0 if compact else 8 * 8)
    alone = codec.encode_rootfs(layers=layers[:1], metadata_refs=(), verity={})
    assert abs(top - len(alone)) < 200


def test_what_layers_share_is_the_lower_ones(tmp_path: Path) -> None:
    chunk = Forge(tmp_path / "layout").chunk(DATA)
    tables = (
        codec_for(3).decode_rootfs(encode_compact_rootfs(3, [[f.regular(2, chunk)], [f.regular(2, chunk)]], {})).tables
    )
    head, ref, digest = 1 + 3 + 2, 1 + 2 + 3, 4
    assert embedded_sizes(tables) == [8 * (head + ref), 8 * (head + ref + digest)]
    assert embedded_sizes([MetadataLayer([f.regular(2, chunk)])]) == [0]


# ---- the original's deltas


@pytest.mark.golden
@pytest.mark.parametrize("layout", ["v1", "v1-zstd", "v2", "v2-zstd", "v3", "v3-zstd"])
def test_deltas_of_the_original(vectors: Path, expected: dict[str, Any], layout: str) -> None:
    trees = expected["trees"]
    report = history(f"{vectors / layout}:second")
    assert report.digest == expected["digests"][layout]["second"]
    second, base = report.layers
    added, removed = (set(trees[one]) - set(trees[other]) for one, other in (("second", "base"), ("base", "second")))
    assert (second.added, second.removed) == (len(added), len(removed))
    assert second.kinds["directory"] == KindHistory(added=1, changed=4, removed=1)
    assert (second.visible, base.visible) == (base.added, base.added + len(added) - len(removed))
    assert second.changed >= len(
        [path for path in trees["base"].keys() & trees["second"].keys() if trees["base"][path] != trees["second"][path]]
    )
    alone = history(f"{vectors / layout}:base").layers
    assert len(alone) == 1
    assert dataclasses.replace(alone[0], metadata_bytes=0) == dataclasses.replace(base, metadata_bytes=0)
    with Layout.open(vectors / layout) as opened, open_image(f"{vectors / layout}:second") as image:
        wanted = {
            ref.blob.digest for table in image.rootfs.metadata_layers for inode in table for ref in chunks_of(inode)
        }
        assert (
            sum(opened.blob_size(digest) or 0 for digest in wanted) == base.new_stored_bytes + second.new_stored_bytes
        )
        assert len(wanted) == base.new_chunks + second.new_chunks


def chunks_of(inode: Inode) -> Any:
    return getattr(inode.content, "chunks", ())


def test_sizes_do_not_grow_with_what_lies_below() -> None:
    """A small layer on a large one is compared with what it mentions, and with nothing else."""

    class Counting(MetadataLayer):
        found = 0

        def find(self, ino: int) -> Inode | None:
            self.found += 1
            return super().find(ino)

    files = {b"%05d" % ino: ino for ino in range(10, 3000)}
    below = Counting(
        [
            f.directory(1, {b"a": 2, b"b": 3}),
            f.directory(2, files),
            f.directory(3, {b"x": 5}),
            f.symlink(5, b"t"),
            *(f.inode(ino, Fifo()) for ino in files.values()),
        ]
    )
    above = MetadataLayer([f.directory(3, {b"y": 5})])
    told = layer_changes([above, below], 100_000)
    assert next(told).added.total() == 3 + 1 + len(files)
    below.found = 0
    assert next(told).changed.total() == 1
    assert below.found < 20


# ---- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge = Forge(tmp_path / "layout")
    reference = forge.image(*stack(forge))
    assert main(["history", reference]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].split() == ["layer", "added", "changed", "removed", "chunks", "content", "stored", "metadata"]
    assert lines[1].split()[:7] == ["3", "0", "1", "1", "0", "0", "B"]
    assert lines[3].split()[:9] == ["1", "5", "0", "0", "1", "4.9", "KiB", "4.9", "KiB"]
    assert len({len(line) for line in lines}) == 1


def test_the_keys_of_the_json_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Programs rely on these names; they may become more."""
    forge = Forge(tmp_path / "layout")
    reference = forge.image(*stack(forge))
    assert main(["history", "--json", str(forge.path), f"{reference.rpartition(':')[2]}"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["image", "digest", "format_version", "layers"]
    assert list(document["layers"][0]) == [
        "layer",
        "added",
        "changed",
        "removed",
        "kinds",
        "visible",
        "stored_inodes",
        "new_chunks",
        "new_bytes",
        "new_stored_bytes",
        "missing_chunks",
        "metadata_bytes",
        "blob",
    ]
    assert document["layers"][1]["kinds"]["fifo"] == {"added": 1, "changed": 0, "removed": 0}
    assert document == json.loads(json.dumps(dataclasses.asdict(history(reference))))


def test_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge = Forge(tmp_path / "layout")
    reference = forge.image([f.directory(2, {b"up": 2})], [f.directory(1, {b"a": 2}), f.directory(2)])
    assert main(["history", reference]) == 4
    assert capsys.readouterr().err == "puzzlefs: metadata layer 2, counted from below, has directory 2 in two places\n"
    assert main(["history", forge.reference("nothing")]) == 3


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (1500 << 30, "1.5 TiB"),
        (1 << 60, "1048576.0 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert readable(size) == text


def test_it_is_a_part_of_the_public_face(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "layout")
    assert isinstance(puzzlefs.history(forge.image(*stack(forge))), HistoryReport)
