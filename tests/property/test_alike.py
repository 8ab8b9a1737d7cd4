"""Inodes that are said to be alike are the same once they are decoded, whatever bytes they are made of."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire_models import layers

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.model import (
    BlobRef,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    InodeTable,
    Kind,
    MetadataLayer,
    RegularFile,
    Symlink,
    Xattr,
)
from puzzlefs.wire import Likeness, chunk_digests, codec_for, encode_compact_rootfs, same_records

pytestmark = pytest.mark.property

relaxed = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
FORMS = ("1", "2", "3", "compact")


def encoded(layer: Sequence[Inode], form: str) -> bytes:
    if form == "compact":
        return encode_compact_rootfs(3, [layer], {})
    if form == "3":
        return codec_for(3).encode_rootfs(layers=[layer], metadata_refs=[], verity={})
    return codec_for(int(form)).encode_inode_vector(layer)


def decoded(data: bytes, form: str) -> InodeTable:
    if form in ("1", "2"):
        return codec_for(int(form)).decode_inode_vector(data)
    return codec_for(3).decode_rootfs(data).tables[0]


def table_of(layer: Sequence[Inode], form: str) -> InodeTable:
    return decoded(encoded(layer, form), form)


def seen(table: InodeTable, ino: int) -> Inode | None:
    """An inode but for its number and what is in a directory; ``None`` where it is malformed."""
    try:
        inode = table.find(ino)
    except FormatError:
        return None
    assert inode is not None
    if isinstance(inode.content, RegularFile):
        try:
            inode = inode._replace(content=RegularFile.of(tuple(inode.content.chunks)))
        except FormatError:
            return None
    content = Directory(()) if isinstance(inode.content, Directory) else inode.content
    return inode._replace(ino=0, content=content, xattrs=tuple(sorted(inode.xattrs, key=lambda x: (x.key, x.value))))


def check(one: InodeTable, other: InodeTable, numbers: Sequence[int], others: Sequence[int]) -> int:
    """Hold each pair that is said to be alike against what is decoded; how many were."""
    unlike = Likeness(one, other).unlike(numbers, others)
    assert unlike == sorted(set(unlike))
    alike = set(range(len(numbers))) - set(unlike)
    for position in alike:
        a, b = seen(one, numbers[position]), seen(other, others[position])
        if a is None or b is None:
            continue  # whoever reads it gets the error
        if None in (a.mtime_ns, b.mtime_ns):
            a, b = a._replace(mtime_ns=None), b._replace(mtime_ns=None)
        assert a == b
    return len(alike)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other_form", FORMS)
@relaxed
@given(layer=layers(), other=layers(), seed=st.integers(0, 1 << 32))
def test_any_inodes(layer: tuple[Inode, ...], other: tuple[Inode, ...], form: str, other_form: str, seed: int) -> None:
    one, two = table_of(layer, form), table_of(other, other_form)
    numbers = [inode.ino for inode in layer]
    check(one, table_of(layer, other_form), numbers, numbers)
    rnd = random.Random(seed)
    if other:
        check(one, two, numbers, [rnd.choice(other).ino for _ in numbers])


def variants(ino: int) -> list[Inode]:
    """Ordinary inodes, each another than all others."""
    parts = [FileChunk(BlobRef(Digest.of(bytes([n])), n * 8, bool(n % 2)), 100 + n) for n in range(4)]
    contents = [
        RegularFile.of(()),
        *(RegularFile.of((part,)) for part in parts),
        RegularFile.of(parts[:2]),
        RegularFile.of(parts[1::-1]),
        RegularFile.of(parts * 4),
        RegularFile.of((parts[0]._replace(length=7),)),
        RegularFile.of((parts[0]._replace(blob=parts[0].blob._replace(offset=1 << 40)),)),
        RegularFile.of((parts[0]._replace(blob=parts[0].blob._replace(compressed=True)),)),
        Symlink(b"target"),
        Symlink(b"another target"),
        Fifo(),
        Directory((DirEntry(5, b"x"),)),
    ]
    plain = [Inode(ino, 1, 2, 0o644, content) for content in contents]
    xattrs = Xattr(b"user.a", b"1"), Xattr(b"user.b", b"2")
    return [
        *plain,
        *(inode._replace(uid=7) for inode in plain),
        *(inode._replace(gid=7) for inode in plain),
        *(inode._replace(permissions=0o4755) for inode in plain),
        *(inode._replace(xattrs=xattrs[:1]) for inode in plain),
        *(inode._replace(xattrs=xattrs) for inode in plain),
        *(inode._replace(xattrs=(xattrs[0]._replace(value=b"2"),)) for inode in plain),
    ]


@pytest.mark.parametrize("with_times", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other_form", FORMS)
def test_ordinary_inodes_are_alike_if_and_only_if_they_are_the_same(
    form: str, other_form: str, with_times: bool
) -> None:
    """In any form, at any place, under any number."""
    inodes = variants(1)
    count = len(inodes)
    mtime_ns = 5 if with_times else None
    one = [inode._replace(ino=10 + number, mtime_ns=mtime_ns) for number, inode in enumerate(inodes)]
    order = random.Random(4).sample(range(count), count)
    other = [inodes[index]._replace(ino=1000 + 3 * number, mtime_ns=5) for number, index in enumerate(order)]
    tables = table_of(one, form), table_of(other, other_form)
    likeness = Likeness(*tables)
    for number, index in enumerate(order):
        here = [10 + at for at in range(count)]
        assert set(range(count)) - set(likeness.unlike(here, [1000 + 3 * number] * count)) == {index}
    times = [inode._replace(mtime_ns=6) for inode in one]
    expected = list(range(count)) if with_times else []
    numbers = [inode.ino for inode in one]
    assert Likeness(tables[0], table_of(times, other_form)).unlike(numbers, numbers) == expected


@pytest.mark.parametrize("form", FORMS)
@settings(relaxed, max_examples=400)
@given(seed=st.integers(0, 1 << 32))
def test_damaged_messages(form: str, seed: int) -> None:
    rnd = random.Random(seed)
    inodes = [inode._replace(ino=number + 1) for number, inode in enumerate(rnd.sample(variants(0), 20))]
    data = encoded(inodes, form)
    damaged = bytearray(data)
    for _ in range(rnd.randrange(1, 4)):
        at = rnd.randrange(1, len(data) // 8) * 8
        word = int.from_bytes(damaged[at : at + 8], "little")
        word = rnd.choice((word ^ 1 << rnd.randrange(64), rnd.randrange(1 << 64), word + rnd.randrange(-3, 4) * 4, 0))
        damaged[at : at + 8] = (word % (1 << 64)).to_bytes(8, "little")
    try:
        table = decoded(bytes(damaged), form)
    except (FormatError, IndexError) as error:
        assert isinstance(error, FormatError) or form not in ("1", "2")
        return
    numbers = [inode.ino for inode in inodes]
    if [ino for ino, _ in table.kinds()] != numbers:
        return  # a tree whose inodes are not sorted is refused as a whole
    check(decoded(data, form), table, numbers, numbers)
    check(table, table, numbers, rnd.sample(numbers, len(numbers)))


@relaxed
@given(layer=layers())
@pytest.mark.parametrize("form", FORMS)
def test_digests_of_chunks(layer: tuple[Inode, ...], form: str) -> None:
    table = table_of(layer, form)
    expected = {
        part.blob.digest
        for ino, kind in table.kinds()
        if kind == Kind.REGULAR and isinstance(content := table.find(ino).content, RegularFile)  # type: ignore[union-attr]
        for part in content.chunks
    }
    assert chunk_digests(table) == expected
    if not layer or len({inode.ino for inode in layer}) == len(layer):
        assert chunk_digests(MetadataLayer(layer)) == expected


def test_tables_of_other_kinds() -> None:
    inodes = variants(1)[:1]
    wire, plain = table_of(inodes, "3"), MetadataLayer(inodes)
    assert Likeness(wire, plain).unlike([1], [1]) == [0]
    assert not same_records(plain, plain)
    assert same_records(wire, table_of(inodes, "3"))
    assert not same_records(wire, table_of([inodes[0]._replace(uid=9)], "3"))
    assert not same_records(wire, table_of([*inodes, inodes[0]._replace(ino=2)], "3"))
    assert same_records(table_of((), "3"), table_of((), "3"))
    assert Likeness(wire, wire).unlike([], []) == []
    assert Likeness(wire, wire).unlike([5], [1]) == [0]
