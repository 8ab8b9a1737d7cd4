"""Plans over random lists of parts, against simply putting the parts together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlefs.digest import Digest
from puzzlefs.model import BlobRef, FileChunk, RegularFile
from puzzlefs.vfs.plan import FileMap, Piece

pytestmark = pytest.mark.property

CONTENTS = [bytes((seed * 37 + position * 11) % 251 for position in range(40)) for seed in range(4)]
BLOBS = {Digest.of(content): content for content in CONTENTS}


@st.composite
def parts(draw: st.DrawFn) -> FileChunk:
    digest, content = draw(st.sampled_from(sorted(BLOBS.items())))
    offset = draw(st.integers(0, len(content)))
    length = draw(st.integers(0, len(content) - offset) | st.just(0))
    return FileChunk(BlobRef(digest, offset, draw(st.booleans())), length)


def bytes_of(pieces: Sequence[Piece]) -> bytes:
    return b"".join(BLOBS[piece.blob][piece.offset : piece.offset + piece.length] for piece in pieces)


@given(st.lists(parts(), max_size=12), st.integers(0, 500), st.integers(0, 500))
def test_a_plan_is_a_range_of_the_whole(chunks: list[FileChunk], offset: int, size: int) -> None:
    whole = b"".join(BLOBS[chunk.blob.digest][chunk.blob.offset : chunk.blob.offset + chunk.length] for chunk in chunks)
    file_map = FileMap(RegularFile.of(chunks))
    assert file_map.size == len(whole)
    plan = file_map.plan(offset, size)
    assert bytes_of(plan.pieces) == whole[offset : offset + size]
    assert all(piece.length > 0 for piece in plan.pieces)
    assert len(plan.pieces) <= len(chunks)


@given(st.lists(parts(), min_size=1, max_size=12), st.data())
def test_pieces_keep_their_compression(chunks: list[FileChunk], data: st.DataObject) -> None:
    file_map = FileMap(RegularFile.of(chunks))
    offset = data.draw(st.integers(0, file_map.size))
    position = 0
    expected = []
    for chunk in chunks:
        if chunk.length and position + chunk.length > offset:
            expected.append((chunk.blob.digest, chunk.blob.compressed))
        position += chunk.length
    assert [(piece.blob, piece.compressed) for piece in file_map.plan(offset, 1 << 62).pieces] == expected


@given(st.lists(parts(), max_size=12), st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_however_a_file_is_read_it_is_the_same(chunks: list[FileChunk], steps: list[int]) -> None:
    file_map = FileMap(RegularFile.of(chunks))
    position = 0
    read = b""
    for step in steps:
        read += bytes_of(file_map.plan(position, step).pieces)
        position += step
    assert read == bytes_of(file_map.plan(0, position).pieces)
