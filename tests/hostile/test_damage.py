"""Damage at every place of a small image.

Without re-making the digests above: never a wrong byte, never an error of another kind than that of integrity.
With them re-made, so that only the decoder stands in between: a result or a ``PuzzlefsError``, never anything else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from support import forge as f
from support import trees
from support.examine import examine, limited
from support.forge import Forge

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, IntegrityError, PuzzlefsError, VerityNotEnabledError
from puzzlefs.image import open_image
from puzzlefs.model import CharDevice, Fifo, Inode, MetadataLayer, Whiteout
from puzzlefs.vfs import Tree

pytestmark = pytest.mark.hostile

VERSIONS = [1, 2, 3]


def layers(forge: Forge) -> list[list[Inode]]:
    """A little of everything, in two metadata layers."""
    raw = forge.chunk(bytes(range(256)) * 16)
    packed = forge.chunk(b"compress me " * 1000, compressed=True)
    lower = [
        f.directory(1, {b"dev": 2, b"etc": 3, b"gone": 4}),
        f.directory(2, {b"fifo": 5, b"null": 6}),
        f.directory(3, {b"big": 7, b"link": 8, b"same": 7}),
        f.symlink(4, b"x"),
        f.inode(5, Fifo()),
        f.inode(6, CharDevice(1, 3), permissions=0o666),
        f.regular(7, raw, packed, uid=1000, xattrs={b"user.a": b"value", b"user.b": b""}),
        f.symlink(8, b"../dev/null"),
    ]
    upper = [
        f.directory(1, {b"new": 9, b"gone": 4}, look_below=True),
        f.inode(4, Whiteout()),
        f.regular(9, raw, mtime_ns=1_700_000_000_123_456_789),
    ]
    return [upper, lower]


def one_layer(forge: Forge) -> list[list[Inode]]:
    """The same in one layer, where the usual inodes take a shorter way through the decoder."""
    upper, lower = layers(forge)
    kept = [inode for inode in lower if inode.ino not in (1, 4)]
    return [[f.directory(1, {b"dev": 2, b"etc": 3, b"new": 9}), *kept, upper[2]]]


STACKS = {"one layer": one_layer, "two layers": layers}


def test_the_undamaged_image(tmp_path: Path) -> None:
    for version in VERSIONS:
        forge = Forge(tmp_path / str(version), version)
        outcome = examine(forge.image(*layers(forge)), tmp_path / f"out{version}")
        assert (outcome.problems, outcome.walk, outcome.extraction) == ({}, None, None)
        assert len(outcome.paths) == 9


def damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    """``data`` damaged in every place."""
    for position, byte in enumerate(data):
        for label, value in (("one bit", byte ^ 1 << position % 8), ("inverted", byte ^ 0xFF)):
            yield f"byte {position} {label}", data[:position] + bytes([value]) + data[position + 1 :]


def metadata_of(reference: str) -> list[bytes]:
    """The messages of an image: version 3 the rootfs, else the manifest and then the inode vectors."""
    with open_image(reference) as image:
        if image.manifest is not None:
            return [image.blobs.read(image.manifest.rootfs().digest, limit=1 << 20)]
        digests = [image.manifest_digest, *(ref.digest for ref in image.metadata_refs)]
        return [image.blobs.read(digest, limit=1 << 20) for digest in digests]


def store(forge: Forge, messages: list[bytes], number: int, data: bytes) -> str:
    """An image in which one message is replaced and the digests above it are re-made."""
    if number == 0:
        return forge.raw_rootfs(data)
    return forge.raw_vectors(*(data if index == number else message for index, message in enumerate(messages) if index))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_byte_of_the_metadata_with_digests_re_made(tmp_path: Path, version: int, stack: str) -> None:
    forge = Forge(tmp_path / "layout", version)
    messages = metadata_of(forge.image(*STACKS[stack](forge)))

    def run() -> tuple[int, int, int]:
        tried = refused = changed = 0
        intact = examine(forge.reference()).paths
        for number, message in enumerate(messages):
            for label, damaged in damages(message):
                reference = store(forge, messages, number, damaged)
                try:
                    outcome = examine(reference)
                    if outcome.opening is None and stack == "one layer":
                        both_ways_agree(reference)
                except Exception as error:
                    raise AssertionError(f"message {number}: {label}: {error!r}") from error
                tried += 1
                refused += outcome.opening is not None or bool(outcome.problems)
                changed += outcome.paths != intact
                forge.blob_path(Digest.of(damaged)).unlink()
        return tried, refused, changed

    tried, refused, changed = limited(run, seconds=250)
    assert tried == 2 * sum(map(len, messages))
    assert refused > tried // 10
    assert changed > tried // 20


def both_ways_agree(reference: str) -> None:
    """Where an image of one layer has an answer with an empty layer below it, it has the same one without.

    The shorter way, which layers beneath bar, may see less of what is wrong: it looks at less.
    """
    answers = []
    for further in ((), (MetadataLayer([]),)):
        with open_image(reference) as image:
            tree = Tree([*image.rootfs.metadata_layers, *further])
            questions: list[Callable[[int], object]] = [
                tree.attributes,
                tree.entries,
                tree.xattrs,
                tree.readlink,
                partial(tree.plan, offset=0, size=1 << 20),
            ]
            answers.append([answer(question, ino) for ino in range(12) for question in questions])
    short, long = answers
    if answer(lambda ino: tree.links(), 0) is FormatError:
        return  # the numbers are not sorted: no two ways need to find the same
    assert [mine for mine, theirs in zip(short, long, strict=True) if not isinstance(theirs, type)] == [
        theirs for theirs in long if not isinstance(theirs, type)
    ]
    assert any(not isinstance(theirs, type) for theirs in long)


def answer(question: Callable[[int], object], ino: int) -> object:
    try:
        return question(ino)
    except PuzzlefsError as error:
        return type(error)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_truncation_of_the_metadata_with_digests_re_made(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    messages = metadata_of(forge.image(*layers(forge)))

    def run() -> list[str]:
        opened = []
        for number, message in enumerate(messages):
            for end in sorted({*range(0, len(message), 8), *range(0, len(message), 13)}):
                outcome = examine(store(forge, messages, number, message[:end]))
                if outcome.opening != "FormatError":
                    opened.append(f"message {number} of {end} bytes: {outcome}")
        return opened

    assert limited(run) == []


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("version", VERSIONS)
def test_random_damage_with_digests_re_made(tmp_path: Path, version: int, stack: str) -> None:
    """Several words at once, also taken from elsewhere in the message: pointers that lead to other objects."""
    forge = Forge(tmp_path / "layout", version)
    messages = metadata_of(forge.image(*STACKS[stack](forge)))

    def run() -> int:
        chance = random.Random(version)
        problems = 0
        for round_number in range(800):
            number = chance.randrange(len(messages))
            words = [messages[number][at : at + 8] for at in range(0, len(messages[number]), 8)]
            for _ in range(chance.randrange(1, 4)):
                words[chance.randrange(1, len(words))] = chance.choice([*words, chance.randbytes(8), bytes(8)])
            damaged = b"".join(words)
            try:
                outcome = examine(reference := store(forge, messages, number, damaged))
                if outcome.opening is None and stack == "one layer":
                    both_ways_agree(reference)
            except Exception as error:
                raise AssertionError(f"round {round_number}: {damaged.hex()}: {error!r}") from error
            problems += outcome.opening is not None or bool(outcome.problems)
        return problems

    assert 150 < limited(run, seconds=250) < 800


@pytest.mark.parametrize("version", VERSIONS)
def test_every_byte_of_every_blob_without_re_making_digests(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    reference = forge.image(*layers(forge))
    with open_image(reference) as image:
        good = trees.in_image(image)
        manifest = image.manifest_digest.hex()
        chunks = {ref.blob.digest.hex() for number in (7, 9) for ref in image.tree.inode(number).content.chunks}  # type: ignore[union-attr]
    blobs = {path.name: path for path in (forge.path / "blobs" / "sha256").iterdir()}
    config = Digest.of(b"{}").hex()
    assert manifest in blobs
    assert len(chunks) == 2

    def run() -> dict[str, int]:
        caught: dict[str, int] = {}
        for name, path in blobs.items():
            data = path.read_bytes()
            step = 1 if len(data) < 2000 else 37
            for position in range(0, len(data), step):
                f.put_file(path, data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
                try:
                    with open_image(reference) as image:
                        shown = trees.in_image(image)
                except IntegrityError as error:
                    assert name in str(error)
                    caught[name] = caught.get(name, 0) + 1
                else:
                    assert name == config, f"byte {position} of {name} went unnoticed"  # nobody reads its two bytes
                    assert shown == good
            f.put_file(path, data)
        return caught

    caught = limited(run, seconds=250)
    assert caught.keys() == blobs.keys() - {config}
    assert min(caught.values()) > 4


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", ["index.json", "oci-layout"])
def test_every_byte_of_the_documents(tmp_path: Path, version: int, document: str) -> None:
    """They are not hashed: a damaged one may hide the image, but cannot make it show anything else."""
    forge = Forge(tmp_path / "layout", version)
    reference = forge.image(*layers(forge))
    path = forge.path / document
    data = path.read_bytes()
    with open_image(reference) as image:
        good = trees.in_image(image)
        digest = image.verity_digest()

    def run() -> int:
        refused = 0
        for label, damaged in damages(data):
            f.put_file(path, damaged)
            for anchor in (None, digest):
                try:
                    with open_image(reference, digest=anchor) as image:
                        assert trees.in_image(image) == good, label
                except PuzzlefsError:
                    refused += 1
        f.put_file(path, data)
        return refused

    assert limited(run, seconds=250) > len(data)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_replaced_image_does_not_pass_its_digest(tmp_path: Path, version: int) -> None:
    """A whole other image under the same tag is consistent in itself; only the anchor tells."""
    forge = Forge(tmp_path / "layout", version)
    reference = forge.image(*layers(forge))
    with open_image(reference) as image:
        digest = image.verity_digest().hex()
    assert examine(reference, digest=digest).opening is None
    forge.image([f.directory(1, {b"evil": 2}), f.symlink(2, b"x")])
    assert examine(reference).paths == [b".", b"evil"]
    outcome = examine(reference, tmp_path / "out", digest=digest)
    assert outcome.opening == "IntegrityError"
    assert digest in outcome.messages[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_kernel_is_not_replaced_by_user_space(tmp_path: Path, version: int) -> None:
    forge = Forge(tmp_path / "layout", version)
    reference = forge.image(*layers(forge))
    with open_image(reference) as image:
        digest = image.verity_digest()
    with pytest.raises(PuzzlefsError) as caught:
        open_image(reference, digest=digest, verity="kernel")
    assert type(caught.value).__name__ in ("VerityUnavailableError", VerityNotEnabledError.__name__)
