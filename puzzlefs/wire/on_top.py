"""A version 3 rootfs blob with one more metadata layer, without decoding the layers that are there.

Version 3 embeds all metadata layers in one blob, so a new layer means a new blob; but what is in the old one need not
be understood to be copied. Pointers of Cap'n Proto are relative within a segment and name segments by number, so
segments can be copied as they are, and new objects can stand behind them:

* Of a message of *one* segment, the new objects are appended to that segment. Near pointers lead back into the old
  part.
* Otherwise a new segment is added behind the others. The root pointer becomes a far pointer into it; its list of layers
  refers to the old inode lists with double-far pointers, which need nothing where they lead.

The list of layers is one pointer for each. The verity list must be sorted by digest, so it is written anew with every
layer, and the old one would stay behind as garbage, 80 bytes a chunk, layer after layer. Writers write it last, so it
is the end of some segments, and it is cut off there: the list, if it is the end of a segment, and before it pairs of a
digest and, right behind it, its fs-verity digest. (That is how the original, and this program, lay out what belongs to
the list alone. Digests that ``compact`` shares with inodes lie elsewhere, and stay, and the new list refers to them.)

So what a layer costs is one copy of the blob, and a pass over its verity list. What the result shows is what
``encode_rootfs`` of all layers would show; its bytes differ. (That is so for whatever an encoder writes. In a message
made by hand, inodes may have their parts where its root pointer or its verity list is: these then show something else,
or are malformed, as such an image may.)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, InvalidArgumentError
from puzzlefs.model import Inode
from puzzlefs.wire.arena import FIRST_SEGMENT_WORDS, MAX_SEGMENT_WORDS, Arena, framed
from puzzlefs.wire.encode import encode_inode_list, encode_verity
from puzzlefs.wire.message import MAX_SEGMENTS, Buffer, Message
from puzzlefs.wire.pointers import FAR, OFFSET_MASK, records_shape, records_tag, struct_shape
from puzzlefs.wire.rootfs import MAX_METADATA_LAYERS, RootfsReader
from puzzlefs.wire.shapes import DIGEST_SHAPE, DIGEST_WORDS

_SHAPE: Final = struct_shape(1, 2)
_ROOTFS_WORDS: Final = 3
_DOUBLE_FAR: Final = FAR | 4
_WORDS_OF_INODE: Final = 64
"""Room for an ordinary inode. If there is not enough, there will be one more segment."""


class _InodeList(NamedTuple):
    """A list of inodes in the old message: its segment, the word of its tag there (counted from the segment's first
    word), and the shape of a pointer to it; ``None`` in place of one is an empty layer."""

    segment: int
    word: int
    shape: int


class _VerityEntry(NamedTuple):
    """An entry of the old verity list: words of the message where the two digests are, and the digests."""

    key_at: int
    value_at: int
    value: VerityDigest


def encode_on_top(data: Buffer, inodes: Sequence[Inode], verity: Mapping[Digest, VerityDigest]) -> bytes:
    """The rootfs blob ``data`` with the metadata layer ``inodes`` on top.

    Args:
        data: a rootfs blob of version 3.
        inodes: the new layer, sorted by number.
        verity: fs-verity digests of stored chunks that are not in ``data``; such as are may be among them.

    Raises:
        FormatError: ``data`` is malformed where it has to be read; a number does not fit its field, or there is more
            than a message can hold.
        InvalidArgumentError: the inodes are not sorted by number, or there are too many layers.
    """
    return _OnTop(data).encode(inodes, verity)


class _OnTop:
    """One blob with a layer more."""

    def __init__(self, data: Buffer) -> None:
        reader = RootfsReader(data)
        self._version = reader.version
        self._message = reader.message
        self._starts, self._ends = reader.message.segments()
        self._lists = _inode_lists(reader)
        self._entries, self._list_at = _verity_entries(reader)

    def encode(self, inodes: Sequence[Inode], verity: Mapping[Digest, VerityDigest]) -> bytes:
        """The new blob."""
        if len(self._lists) == MAX_METADATA_LAYERS:
            raise _too_many("metadata layers")
        if len(self._starts) == 1:
            whole = self._in_one_segment(inodes, verity)
            if whole is not None:
                return whole
        if len(self._starts) == MAX_SEGMENTS:
            raise _too_many("segments")
        return self._in_a_new_segment(inodes, verity)

    # ---- behind other segments

    def _in_a_new_segment(self, inodes: Sequence[Inode], verity: Mapping[Digest, VerityDigest]) -> bytes:
        segments = self._old_segments(self._cut_ends(pairs=True))
        number = len(segments)
        merged = {key: entry.value for key, entry in self._entries.items()} | dict(verity)
        arena = Arena(first_number=number, first_words=self._room(inodes, merged))
        root_list = self._put_head(arena, inodes)
        pads = arena.take(0, 2 * len(self._lists))
        memory = arena.segment(0)
        for index, old in enumerate(self._lists):
            if old is None:
                continue
            pad = pads + 2 * index
            _pack(memory, pad, FAR | old.word << 3 | old.segment << 32, old.shape)
            _pack(memory, root_list + 2 + index, _DOUBLE_FAR | pad << 3 | number << 32)
        self._put_layer(arena, root_list, inodes)
        encode_verity(arena, 0, _ROOTFS_WORDS, merged)
        segments += arena.used()
        if len(segments) > MAX_SEGMENTS:
            raise _too_many("segments")
        first = bytearray(segments[0])
        _pack(first, 0, FAR | number << 32)
        segments[0] = memoryview(first)
        return framed(segments)

    # ---- in the same segment

    def _in_one_segment(self, inodes: Sequence[Inode], verity: Mapping[Digest, VerityDigest]) -> bytes | None:
        """The message with everything in one segment; ``None`` if that is too large for it."""
        old = self._old_segments(self._cut_ends(pairs=False))[0]
        base = len(old) >> 3
        kept = {key: entry for key, entry in self._entries.items() if self._stays(entry)}
        moved = {key: entry.value for key, entry in self._entries.items() if key not in kept}
        new = moved | {key: value for key, value in verity.items() if key not in self._entries}
        count = len(kept) + len(new)
        arena = Arena(first_words=self._room(inodes, new) + 2 * count)
        root_list = self._put_head(arena, inodes)
        for index, layer in enumerate(self._lists):
            if layer is not None:
                at = root_list + 2 + index
                _pack(arena.segment(0), at, _near(base + at, layer.word, layer.shape))
        self._put_layer(arena, root_list, inodes)
        if len(arena.used()) > 1:
            return None
        places = {
            key: (entry.key_at - self._starts[0], entry.value_at - self._starts[0]) for key, entry in kept.items()
        }
        pairs = arena.take(0, 2 * DIGEST_WORDS * len(new))
        memory = arena.segment(0)
        memory[pairs << 3 : pairs + 2 * DIGEST_WORDS * len(new) << 3] = b"".join(
            [part for pair in new.items() for part in pair]
        )
        for index, key in enumerate(new):
            at = base + pairs + 2 * DIGEST_WORDS * index
            places[key] = (at, at + DIGEST_WORDS)
        start = arena.take(0, 1 + 2 * count)
        _pack(memory, _ROOTFS_WORDS, _near(_ROOTFS_WORDS, start, records_shape(count, 0, 2)))
        _pack(memory, start, records_tag(count, 0, 2))
        at = start + 1
        for _, (key_at, value_at) in sorted(places.items()):
            _pack(memory, at, _near(base + at, key_at, DIGEST_SHAPE), _near(base + at + 1, value_at, DIGEST_SHAPE))
            at += 2
        block = arena.used()[0]
        if base + (len(block) >> 3) > MAX_SEGMENT_WORDS:
            return None
        whole = bytearray(old)
        whole += block
        _pack(whole, 0, _near(0, base + 1, _SHAPE))
        return framed([memoryview(whole)])

    def _stays(self, entry: _VerityEntry) -> bool:
        """Whether both digests of an entry lie apart from the root pointer and from the list, as they always should."""
        if self._list_at is None:
            return True
        begin, end = self._list_at
        return not any(
            at == self._starts[0] or begin - DIGEST_WORDS < at < end for at in (entry.key_at, entry.value_at)
        )

    # ---- what both do

    def _put_head(self, arena: Arena, inodes: Sequence[Inode]) -> int:
        """Write the ``Rootfs`` struct at word 1 and behind it the list of layers; the word of its tag."""
        count = len(self._lists) + 1
        arena.reserve(0, 0, _SHAPE, _ROOTFS_WORDS)
        _pack(arena.segment(0), 1, self._version)
        _, start = arena.reserve(0, 2, records_shape(count, 0, 1), 1 + count)
        _pack(arena.segment(0), start, records_tag(count, 0, 1))
        return start

    def _put_layer(self, arena: Arena, root_list: int, inodes: Sequence[Inode]) -> None:
        encode_inode_list(arena, 0, root_list + 1, inodes, file_struct=False)

    def _room(self, inodes: Sequence[Inode], verity: Mapping[Digest, VerityDigest]) -> int:
        words = _WORDS_OF_INODE * len(inodes) + 4 * len(self._lists) + 10 * len(verity)
        return min(FIRST_SEGMENT_WORDS + 2 * words, MAX_SEGMENT_WORDS)

    def _old_segments(self, ends: Sequence[int]) -> list[memoryview]:
        """The segments up to ``ends``, without empty ones at the end."""
        raw = memoryview(self._message.data).cast("B")
        found = [raw[start << 3 : end << 3] for start, end in zip(self._starts, ends, strict=True)]
        while len(found) > 1 and not found[-1]:
            found.pop()
        return found

    def _cut_ends(self, *, pairs: bool) -> list[int]:
        """Where each segment ends without the part of the verity list that is its end.

        Args:
            pairs: whether the digests may go, too, because they are written anew.
        """
        ends = list(self._ends)
        begins: dict[int, int] = {}  # word behind an object → its first word
        if self._list_at is not None:
            begins[self._list_at[1]] = self._list_at[0]
        if pairs:
            for entry in self._entries.values():
                if entry.value_at == entry.key_at + DIGEST_WORDS:
                    begins[entry.value_at + DIGEST_WORDS] = entry.key_at
        for number, start in enumerate(self._starts):
            while (begin := begins.get(ends[number])) is not None and begin >= start:
                ends[number] = begin
        return ends


def _inode_lists(reader: RootfsReader) -> list[_InodeList | None]:
    message = reader.message
    starts, _ = message.segments()
    segment, first, count, data_words, pointer_words = reader.metadatas()
    lists: list[_InodeList | None] = []
    for index in range(count):
        at = first + index * (data_words + pointer_words) + data_words
        if not pointer_words or not message.words[at]:
            lists.append(None)
            continue
        where, begin, number, words, pointers = message.records_at(segment, at, "inodes")
        if not number:
            lists.append(None)
        else:
            lists.append(_InodeList(where, begin - 1 - starts[where], records_shape(number, words, pointers)))
    return lists


def _verity_entries(reader: RootfsReader) -> tuple[dict[Digest, _VerityEntry], tuple[int, int] | None]:
    """The entries of the verity list, and the words of the message that the list itself takes."""
    message = reader.message
    segment, first, count, data_words, pointer_words = reader.verity_records()
    if not count:
        return {}, None
    if pointer_words < 2:
        raise FormatError("the verity entries have no digests")
    stride = data_words + pointer_words
    found: dict[Digest, _VerityEntry] = {}
    for index in range(count):
        at = first + index * stride + data_words
        key_at = _digest_at(message, segment, at)
        value_at = _digest_at(message, segment, at + 1)
        data = message.data
        key = Digest(bytes(data[key_at << 3 : key_at + DIGEST_WORDS << 3]))
        value = VerityDigest(bytes(data[value_at << 3 : value_at + DIGEST_WORDS << 3]))
        found[key] = _VerityEntry(key_at, value_at, value)
    return found, (first - 1, first + count * stride)


def _digest_at(message: Message, segment: int, at: int) -> int:
    start, size = message.extent_at(segment, at, "digest of a verity entry")
    if size != DIGEST_WORDS << 3:
        raise FormatError(f"digest of a verity entry: {size} bytes instead of {DIGEST_WORDS << 3}")
    return start >> 3


def _near(at: int, to: int, shape: int) -> int:
    """The pointer at word ``at`` that leads to word ``to`` of the same segment."""
    return shape | (to - at - 1 & OFFSET_MASK) << 2


def _pack(memory: memoryview | bytearray, word: int, *values: int) -> None:
    struct.pack_into(f"<{len(values)}Q", memory, word << 3, *values)


def _too_many(what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the image has as many {what} as a reader takes", hint="fold them into one with: puzzlefs canonicalize"
    )
