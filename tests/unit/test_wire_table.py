"""Looking up inodes in wire bytes: numbers that repeat, shapes of other writers, shared parts, absurd values."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError
from puzzlefs.model import (
    BlobRef,
    BlockDevice,
    CharDevice,
    Directory,
    DirEntry,
    Fifo,
    FileChunk,
    Inode,
    InodeTable,
    Kind,
    RegularFile,
    Symlink,
    Whiteout,
    Xattr,
)
from puzzlefs.wire import ChunkList, codec_for, rootfs_version
from puzzlefs.wire.pointers import data_shape, records_shape, records_tag, struct_shape

pytestmark = pytest.mark.unit

DIGEST = Digest(bytes(range(32)))
DIGEST_WORDS = list(struct.unpack("<4Q", DIGEST))
DIRECTORY, REGULAR, SYMLINK = int(Kind.DIRECTORY), int(Kind.REGULAR), int(Kind.SYMLINK)


def framed(words: Sequence[int]) -> bytes:
    return struct.pack(f"<II{len(words)}Q", 0, len(words), *words)


def near(at: int, target: int, shape: int) -> int:
    """The pointer at word ``at`` of a segment to word ``target`` of it."""
    return (target - at - 1 & 0x3FFFFFFF) << 2 | shape


class Words:
    """An inode vector of version 2, put together word by word."""

    def __init__(self, count: int, data_words: int = 3, pointer_words: int = 2) -> None:
        self.stride = data_words + pointer_words
        self.data_words = data_words
        self.words = [near(0, 1, struct_shape(0, 1)), near(1, 2, records_shape(count, data_words, pointer_words))]
        self.words += [records_tag(count, data_words, pointer_words)] + [0] * (count * self.stride)

    def inode(self, index: int, ino: int, kind: int) -> None:
        at = 3 + index * self.stride
        for offset, word in enumerate((ino, kind)[: self.data_words]):
            self.words[at + offset] = word

    def point(self, index: int, pointer: int, target: int, shape: int) -> None:
        at = 3 + index * self.stride + self.data_words + pointer
        self.words[at] = near(at, target, shape)

    def add(self, *words: int) -> int:
        """Append words; where they start."""
        start = len(self.words)
        self.words += words
        return start

    def table(self) -> InodeTable:
        return codec_for(2).decode_inode_vector(framed(self.words))


def table_of(*inodes: Inode) -> InodeTable:
    return codec_for(2).decode_inode_vector(codec_for(2).encode_inode_vector(inodes))


def inode(ino: int, content: Any, **more: Any) -> Inode:
    return Inode(ino, 0, 0, 0o644, content, **more)


def chunk(number: int) -> FileChunk:
    return FileChunk(BlobRef(DIGEST, number, False), number)


# --- lookups ---


@pytest.mark.parametrize("numbers", [[], [1], [5, 6, 7], [1, 3, 4, 9], [0, (1 << 64) - 1], [7] * 3, list(range(500))])
def test_numbers_are_found_where_they_are_and_nowhere_else(numbers: list[int]) -> None:
    table = table_of(*(inode(ino, Fifo()) for ino in numbers))
    assert len(table) == len(numbers)
    for ino in {*numbers, 0, 2, 8, 10, 1000, (1 << 64) - 1, *(n + 1 for n in numbers)}:
        found = table.find(ino)
        assert (found is not None) == (ino in numbers)
        assert table.kind(ino) is (Kind.FIFO if ino in numbers else None)
        assert found is None or found.ino == ino
    assert table.max_ino() == max(numbers, default=0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0)])
def test_of_a_number_that_stands_twice_the_live_inode_counts(order: tuple[int, ...]) -> None:
    """Deltas of the original do that when one of several names was deleted."""
    live = Directory((DirEntry(9, b"x"),))
    repeated = [inode(3, live if alive else Whiteout()) for alive in order]
    table = table_of(inode(1, Fifo()), inode(2, Fifo()), *repeated, inode(4, Fifo()))
    for _ in range(2):
        assert table.find(3) == inode(3, live)
        assert table.kind(3) is Kind.DIRECTORY
        assert table.entry_numbers(3) == ([9], False)
    assert table.kind(4) is Kind.FIFO


def test_only_whiteouts() -> None:
    table = table_of(inode(3, Whiteout()), inode(3, Whiteout()))
    assert table.find(3) == inode(3, Whiteout())
    assert table.kind(3) is Kind.WHITEOUT


def test_entry_numbers_are_of_directories_only() -> None:
    table = table_of(inode(1, Directory((DirEntry(7, b"a"), DirEntry(5, b"b")), look_below=True)), inode(2, Fifo()))
    assert table.entry_numbers(1) == ([7, 5], True)
    assert table.entry_numbers(2) is None
    assert table.entry_numbers(3) is None


def test_a_mapping_of_mtimes() -> None:
    timed = [inode(1, Fifo(), mtime_ns=-1), inode(2, Fifo(), mtime_ns=(1 << 63) - 1), inode(3, Fifo())]
    assert [found.mtime_ns for found in table_of(*timed)] == [-1, (1 << 63) - 1, 0]
    plain = [found._replace(mtime_ns=None) for found in timed]
    assert [found.mtime_ns for found in table_of(*plain)] == [None] * 3
    codec = codec_for(2)
    assert len(codec.encode_inode_vector(timed)) == len(codec.encode_inode_vector(plain)) + 3 * 8


# --- chunks ---


def test_chunk_lists_behave_like_tuples() -> None:
    plain = tuple(chunk(n) for n in range(5))
    found = table_of(inode(1, RegularFile.of(plain))).find(1)
    assert found is not None
    content = found.content
    assert isinstance(content, RegularFile)
    chunks = content.chunks
    assert isinstance(chunks, ChunkList)
    assert content.size == 10
    assert chunks.lengths == (0, 1, 2, 3, 4)
    assert len(chunks) == 5
    assert chunks == plain
    assert plain == chunks
    assert chunks == list(plain)
    assert chunks != plain[:4]
    assert chunks != (*plain[:4], chunk(7))
    assert chunks != "chunks"
    assert hash(chunks) == hash(plain)
    assert found == inode(1, RegularFile.of(plain))
    assert hash(found) == hash(inode(1, RegularFile.of(plain)))
    assert list(chunks) == list(plain)
    assert list(reversed(chunks)) == list(reversed(plain))
    assert chunks[0] == plain[0]
    assert chunks[-1] == plain[-1]
    assert chunks[1:4] == plain[1:4]
    assert chunks[::-2] == plain[::-2]
    assert plain[2] in chunks
    for index in (5, -6):
        with pytest.raises(IndexError):
            chunks[index]


def test_chunks_are_decoded_when_they_are_asked_for() -> None:
    words = Words(1)
    words.inode(0, 1, REGULAR)
    chunks = words.add(records_tag(2, 1, 1), 10, 0, 20, 0)
    words.point(0, 0, chunks, records_shape(2, 1, 1))
    ref = words.add(5, 1, 0, *DIGEST_WORDS)
    words.words[ref + 2] = near(ref + 2, ref + 3, data_shape(32))
    words.words[chunks + 2] = near(chunks + 2, ref, struct_shape(2, 1))
    found = words.table().find(1)
    assert found is not None
    assert isinstance(found.content, RegularFile)
    assert found.content.size == 30
    assert found.content.chunks[0] == FileChunk(BlobRef(DIGEST, 5, True), 10)
    with pytest.raises(FormatError, match="inode 1: chunk 1: the digest is missing"):
        found.content.chunks[1]


def test_files_larger_than_a_file_can_be() -> None:
    table = table_of(
        inode(1, RegularFile(0, (chunk((1 << 63) - 1),))),
        inode(2, RegularFile(0, (chunk((1 << 63) - 1), chunk(1)))),
        inode(3, RegularFile(0, (chunk((1 << 64) - 1),) * 9)),
    )
    found = table.find(1)
    assert found is not None
    assert isinstance(found.content, RegularFile)
    assert found.content.size == (1 << 63) - 1
    for ino in (2, 3):
        with pytest.raises(FormatError, match=f"inode {ino}: .* more than a file can have"):
            table.find(ino)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_digests_have_32_bytes(size: int) -> None:
    words = Words(1)
    words.inode(0, 1, REGULAR)
    chunks = words.add(records_tag(1, 1, 1), 10, 0)
    words.point(0, 0, chunks, records_shape(1, 1, 1))
    ref = words.add(5, 0, 0, *DIGEST_WORDS, 0)
    words.words[ref + 2] = near(ref + 2, ref + 3, data_shape(size))
    words.words[chunks + 2] = near(chunks + 2, ref, struct_shape(2, 1))
    found = words.table().find(1)
    assert found is not None
    assert isinstance(found.content, RegularFile)
    with pytest.raises(FormatError, match=f"chunk 0: digest: {size} bytes instead of 32"):
        found.content.chunks[0]


# --- shapes of other writers ---


def test_structs_without_their_last_words_read_as_zero() -> None:
    for data_words, pointer_words in ((1, 0), (0, 1), (2, 0), (2, 1), (3, 0), (3, 1), (2, 2)):
        words = Words(2, data_words, pointer_words)
        for index in range(2):
            words.inode(index, 1 + index, DIRECTORY | 0o755 << 16 | 42 << 32)
        table = words.table()
        if data_words < 2:
            numbers = [1, 2] if data_words else [0, 0]
            assert list(table.kinds()) == [(ino, 0) for ino in numbers]
            assert table.kind(numbers[0]) is Kind.UNKNOWN
            with pytest.raises(FormatError, match="has no kind"):
                table.find(numbers[0])
        else:
            assert list(table.kinds()) == [(1, DIRECTORY), (2, DIRECTORY)]
            assert table.find(2) == Inode(2, 42, 0, 0o755, Directory(()))
            numbers_of_2 = table.entry_numbers(2)
            assert numbers_of_2 is not None
            assert (list(numbers_of_2[0]), numbers_of_2[1]) == ([], False)


def test_null_pointers_are_empty_values() -> None:
    words = Words(6)
    kinds = (Kind.REGULAR, Kind.DIRECTORY, Kind.SYMLINK, Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE, Kind.WHITEOUT)
    for index, kind in enumerate(kinds):
        words.inode(index, index, int(kind))
    contents = [found.content for found in words.table()]
    empty = [RegularFile(0, ()), Directory(()), Symlink(b""), CharDevice(0, 0), BlockDevice(0, 0), Whiteout()]
    assert contents == empty


def test_elements_without_their_last_words_read_as_zero() -> None:
    words = Words(3)
    words.inode(0, 1, DIRECTORY)
    directory = words.add(1)  # lookBelow, no entries
    words.point(0, 0, directory, struct_shape(1, 0))
    words.inode(1, 2, DIRECTORY)
    directory = words.add(0)
    entries = words.add(records_tag(2, 1, 0), 5, 6)  # numbers, no names
    words.words[directory] = near(directory, entries, records_shape(2, 1, 0))
    words.point(1, 0, directory, struct_shape(0, 1))
    words.inode(2, 3, REGULAR)
    chunks = words.add(records_tag(1, 1, 0), 9)
    words.point(2, 0, chunks, records_shape(1, 1, 0))
    table = words.table()
    assert table.find(1) == Inode(1, 0, 0, 0, Directory((), True))
    assert table.find(2) == Inode(2, 0, 0, 0, Directory((DirEntry(5, b""), DirEntry(6, b""))))
    assert table.entry_numbers(2) == ([5, 6], False)
    found = table.find(3)
    assert found is not None
    assert isinstance(found.content, RegularFile)
    assert found.content.size == 9
    with pytest.raises(FormatError, match="inode 3: chunk 0: it refers to no blob"):
        list(found.content.chunks)


def test_an_empty_message_is_an_empty_layer() -> None:
    table = codec_for(1).decode_inode_vector(framed([0]))
    assert list(table) == []
    assert list(table.kinds()) == []
    assert table.find(1) is None
    assert table.max_ino() == 0


# --- malformed ---


def test_unknown_kinds_are_named() -> None:
    words = Words(3)
    for index, kind in enumerate((1, 9, 0xFFFF)):
        words.inode(index, index + 1, kind)
    table = words.table()
    assert table.kind(1) is Kind.FIFO
    for ino in (2, 3):
        for ask in (table.find, table.kind):
            with pytest.raises(FormatError, match=f"inode {ino}"):
                ask(ino)
    # One such inode must not take the others with it: passes over all of them get the number as it is.
    assert list(table.kinds()) == [(1, Kind.FIFO), (2, 9), (3, 0xFFFF)]


@pytest.mark.parametrize("kind", [Kind.REGULAR, Kind.DIRECTORY, Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE])
@pytest.mark.parametrize("shape", [struct_shape(9, 9), records_shape(9, 1, 1), data_shape(999), 3, 2 | 7 << 32])
def test_malformed_content_is_named(kind: Kind, shape: int) -> None:
    words = Words(2)
    words.inode(0, 17, int(kind))
    words.point(0, 0, 3, shape)
    words.inode(1, 18, int(Kind.FIFO))
    table = words.table()
    assert table.kind(17) is kind
    with pytest.raises(FormatError, match=r"^inode 17: [a-z ]+: "):
        table.find(17)
    if kind is Kind.DIRECTORY:
        with pytest.raises(FormatError, match=r"^inode 17: directory: "):
            table.entry_numbers(17)
    assert table.find(18) == Inode(18, 0, 0, 0, Fifo())


def test_malformed_names_xattrs_and_targets_are_named() -> None:
    words = Words(2)
    words.inode(0, 17, DIRECTORY)
    directory = words.add(0, 0)
    words.point(0, 0, directory, struct_shape(1, 1))
    entries = words.add(records_tag(1, 1, 1), 5, data_shape(100))
    words.words[directory + 1] = near(directory + 1, entries, records_shape(1, 1, 1))
    words.inode(1, 18, SYMLINK)
    additional = words.add(0, data_shape(1000))
    words.point(1, 1, additional, struct_shape(0, 2))
    table = words.table()
    with pytest.raises(FormatError, match="inode 17: name of a directory entry: points outside"):
        table.find(17)
    assert table.entry_numbers(17) == ([5], False)
    with pytest.raises(FormatError, match="inode 18: symlink target: points outside"):
        table.find(18)
    words.words[additional] = near(additional, words.add(records_tag(1, 0, 2), 3, 3), records_shape(1, 0, 2))
    with pytest.raises(FormatError, match="inode 18: name of an xattr: a capability"):
        words.table().find(18)


# --- amplification: a small message must not become much work or memory ---


def quickly(work: Callable[[], object]) -> None:
    start = time.process_time()
    work()
    assert time.process_time() - start < 1


def refusals(ask: Callable[[int], object], numbers: Sequence[int]) -> int:
    refused = 0
    for ino in numbers:
        try:
            ask(ino)
        except FormatError as error:
            assert f"inode {ino}: " in str(error)
            refused += 1
    return refused


def sharing_directories(count: int, length: int) -> Words:
    """``count`` directories that share one list of ``length`` entries."""
    words = Words(count)
    directory = words.add(0, 0)
    entries = words.add(records_tag(length, 1, 1), *([7, 0] * length))
    words.words[directory + 1] = near(directory + 1, entries, records_shape(length, 1, 1))
    for index in range(count):
        words.inode(index, 1 + index, DIRECTORY)
        words.point(index, 0, directory, struct_shape(1, 1))
    return words


def test_a_list_that_many_directories_share() -> None:
    count = 20_000
    table = sharing_directories(count, 20_000).table()
    numbers = range(1, count + 1)

    def walk() -> None:
        assert refusals(table.entry_numbers, numbers) > count - 50
        assert refusals(table.find, numbers) > count - 50
        assert refusals(table.find, numbers) > count - 50, "asking again does not help"

    quickly(walk)


def test_what_few_share_can_be_read_as_often_as_one_likes() -> None:
    table = sharing_directories(2, 1000).table()
    for _ in range(100):
        for ino in (1, 2):
            found = table.find(ino)
            assert found is not None
            assert isinstance(found.content, Directory)
            assert len(found.content.entries) == 1000
            assert table.entry_numbers(ino) == ([7] * 1000, False)


def test_a_name_that_many_entries_share() -> None:
    count, size = 20_000, 1 << 20
    words = Words(2)
    directory = words.add(0, 0)
    entries = words.add(records_tag(count, 1, 1), *([7, 0] * count))
    words.words[directory + 1] = near(directory + 1, entries, records_shape(count, 1, 1))
    name = words.add(*[0x6161616161616161] * (size >> 3))
    for index in range(count):
        at = entries + 2 + 2 * index
        words.words[at] = near(at, name, data_shape(size))
    for index in range(2):
        words.inode(index, 1 + index, DIRECTORY)
        words.point(index, 0, directory, struct_shape(1, 1))
    table = words.table()
    quickly(lambda: refusals(table.find, [1, 2] * 10) == 20 or pytest.fail("twenty gigabytes of names"))


def test_a_value_that_many_xattrs_share() -> None:
    count, size = 20_000, 1 << 20
    words = Words(1)
    words.inode(0, 1, int(Kind.FIFO))
    additional = words.add(0, 0)
    words.point(0, 1, additional, struct_shape(0, 2))
    xattrs = words.add(records_tag(count, 0, 2), *([0, 0] * count))
    words.words[additional] = near(additional, xattrs, records_shape(count, 0, 2))
    value = words.add(*[0x6161616161616161] * (size >> 3))
    for index in range(count):
        at = xattrs + 2 + 2 * index
        words.words[at] = near(at, value, data_shape(size))
    table = words.table()
    quickly(lambda: refusals(table.find, [1] * 10) == 10 or pytest.fail("twenty gigabytes of values"))


def test_chunks_that_many_files_share() -> None:
    count = 20_000
    words = Words(count)
    chunks = words.add(records_tag(count, 1, 1), *([1, 0] * count))
    for index in range(count):
        words.inode(index, 1 + index, REGULAR)
        words.point(index, 0, chunks, records_shape(count, 1, 1))
    table = words.table()
    quickly(lambda: refusals(table.find, range(1, count + 1)) > count - 50 or pytest.fail("all were walked"))


def test_one_number_a_million_times() -> None:
    count = 100_000
    words = Words(count, 2, 0)
    for index in range(count):
        words.inode(index, 7, int(Kind.WHITEOUT))
    table = words.table()
    quickly(lambda: [table.kind(7) for _ in range(10_000)])


def test_a_large_honest_layer_is_never_refused() -> None:
    entries = tuple(DirEntry(i, b"x") for i in range(3000))
    layer = [inode(i, Directory(entries[i * 10 : i * 10 + 10])) for i in range(300)]
    layer += [inode(300, Directory(entries)), inode(301, RegularFile.of((chunk(1),) * 2000))]
    layer += [inode(302, Fifo(), xattrs=tuple(Xattr(b"%04d" % i, b"v" * i) for i in range(200)))]
    table = table_of(*layer)
    for _ in range(10):
        assert list(table) == layer
        for ino, kind in table.kinds():
            if kind == Kind.DIRECTORY:
                assert table.entry_numbers(ino) is not None


def rootfs_with_vectors(count: int, inodes: int) -> bytes:
    """A rootfs of version 3 whose ``count`` layers are one and the same list."""
    words = [near(0, 1, struct_shape(1, 2)), 3, 0, 0]
    words[2] = near(2, 4, records_shape(count, 0, 1))
    words += [records_tag(count, 0, 1)] + [0] * count
    target = len(words)
    for at in range(5, 5 + count):
        words[at] = near(at, target, records_shape(inodes, 3, 2))
    words += [records_tag(inodes, 3, 2), *([1, 1, 0, 0, 0] * inodes)]
    return framed(words)


def test_layers_that_are_one_list() -> None:
    assert len(codec_for(3).decode_rootfs(rootfs_with_vectors(2, 100)).tables) == 2
    with pytest.raises(FormatError, match="layers overlap"):
        codec_for(3).decode_rootfs(rootfs_with_vectors(4000, 1000))


def test_too_many_layers() -> None:
    data = rootfs_with_vectors(4097, 0)
    assert rootfs_version(data) == 3
    with pytest.raises(FormatError, match="4097 metadata layers"):
        codec_for(3).decode_rootfs(data)


# --- verity ---


def test_verity_lookups() -> None:
    verity = {Digest.of(bytes([i])): VerityDigest(bytes([i] * 32)) for i in range(100)}
    found = codec_for(3).decode_rootfs(codec_for(3).encode_rootfs(layers=[], metadata_refs=[], verity=verity)).verity
    assert len(found) == 100
    assert found == verity
    assert list(found) == sorted(verity)
    for number in range(100, 200):
        assert Digest.of(bytes([number])) not in found
        assert found.get(Digest.of(bytes([number]))) is None
    with pytest.raises(KeyError):
        found[DIGEST]


@pytest.mark.parametrize("second", [DIGEST, Digest(bytes(32))])
def test_verity_digests_out_of_order_are_a_malformed_list_not_missing_digests(second: Digest) -> None:
    words = [near(0, 1, struct_shape(1, 2)), 3, 0, 0]
    words[3] = near(3, 4, records_shape(2, 0, 2))
    words += [records_tag(2, 0, 2), *(near(at, 9 + 4 * (at == 7), data_shape(32)) for at in range(5, 9))]
    words += [*DIGEST_WORDS, *struct.unpack("<4Q", second)]
    verity = codec_for(3).decode_rootfs(framed(words)).verity
    for ask in (lambda: verity.get(Digest.of(b"x")), lambda: list(verity), lambda: dict(verity)):
        with pytest.raises(FormatError, match="entry 1: the entries are not sorted"):
            ask()


def test_malformed_verity_entries_are_refused_when_they_are_read() -> None:
    words = [near(0, 1, struct_shape(1, 2)), 1, 0, 0]
    words[3] = near(3, 4, records_shape(1, 0, 2))
    words += [records_tag(1, 0, 2), near(5, 7, data_shape(32)), near(6, 7, data_shape(31)), *DIGEST_WORDS]
    verity = codec_for(1).decode_rootfs(framed(words)).verity
    assert list(verity) == [DIGEST]
    with pytest.raises(FormatError, match="verity entry 0: verity digest: 31 bytes"):
        verity[DIGEST]
    words[5] = near(5, 7, data_shape(33))
    with pytest.raises(FormatError, match="verity entry 0: blob digest"):
        list(codec_for(1).decode_rootfs(framed(words)).verity)
    words[4:6] = [records_tag(1, 0, 1), near(5, 7, data_shape(32))]
    with pytest.raises(FormatError, match="verity entry 0: the verity digest is missing"):
        codec_for(1).decode_rootfs(framed(words)).verity[DIGEST]
