"""Listings that are made ahead of a walk are those that would have been made when they were asked for."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.forge import Forge, directory, inode, symlink

from puzzlefs.image import Image, open_image
from puzzlefs.model import Fifo, Inode, Kind
from puzzlefs.mount.kernel_listing import Listings
from puzzlefs.mount.kernel_protocol import BODY, READ_IN
from puzzlefs.mount.operations import Operations

pytestmark = pytest.mark.unit

_MISSING = 9_999
_VALID = 1 << 31


def tree_of(rnd: random.Random, *, damage: float = 0.0) -> list[Inode]:
    """Directories in directories, with some files; with ``damage``, some entries lead nowhere."""
    inodes: list[Inode] = []
    count = 1

    def add(depth: int) -> int:
        nonlocal count
        ino = count
        count += 1
        entries: dict[bytes, int] = {}
        place = len(inodes)
        inodes.append(directory(ino))
        for number in range(rnd.choice((0, 1, 3, 9))):
            name = b"%x" % rnd.getrandbits(32)
            if rnd.random() < damage:
                entries[name] = _MISSING
            elif depth and rnd.random() < 0.6:
                entries[name] = add(depth - 1)
            else:
                entries[name] = count
                inodes.append(symlink(count, b"x") if number % 2 else inode(count, Fifo()))
                count += 1
        inodes[place] = directory(ino, entries)
        return ino

    add(5)
    return sorted(inodes, key=lambda one: one.ino)


class Program:
    """Lists directories as the kernel does for a program."""

    def __init__(self, image: Image, *, room: int = 4096) -> None:
        self.operations = Operations(image)
        self.listings = Listings(self.operations, _VALID)
        self._room = room

    def ask(self, ino: int, offset: int) -> bytes:
        request = bytearray(BODY + READ_IN.size)
        READ_IN.pack_into(request, BODY, 0, offset, self._room)
        return self.listings.readdirplus(ino, memoryview(request), len(request))

    def below(self, ino: int) -> list[int]:
        return [entry.ino for entry in self.operations.entries(ino) if entry.kind is Kind.DIRECTORY]


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "layout")


@pytest.fixture
def image(forge: Forge) -> Iterator[Image]:
    inodes = [
        directory(1, {b"a": 2, b"file": 9, b"z": 5}),
        directory(2, {b"b": 3, b"c": 4}),
        directory(3, {b"f": 9, b"g": 9}),
        directory(4, {b"f": 9}),
        directory(5, {b"f": 9, b"lost": _MISSING}),
        inode(9, Fifo()),
    ]
    with open_image(forge.image(inodes)) as opened:
        yield opened


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_made_ahead_the_answers_are_the_same(forge: Forge, seed: int) -> None:
    rnd = random.Random(seed)
    with open_image(forge.image(tree_of(rnd, damage=0.1 * (seed % 2)))) as image:
        ahead, twin = Program(image, room=600), Program(image, room=600)
        stack = [1]
        while stack:
            ino = stack.pop()
            for program in (ahead, twin) if rnd.random() < 0.1 else ():
                program.listings.looked_up(ino)
            offset: int | None = 0
            while offset is not None:
                answer = ahead.ask(ino, offset)
                assert answer == twin.ask(ino, offset)
                for _ in range(rnd.choice((0, 1, 2, 5, 50))):
                    ahead.listings.prepare()
                offset = _last_offset(answer)
            below = twin.below(ino)
            if rnd.random() < 0.1:
                rnd.shuffle(below)  # a program that has an order of its own
            if rnd.random() < 0.1:
                below = below[1:]  # or leaves something out
            stack += reversed(below)
        assert ahead.operations.errors.count == twin.operations.errors.count


def _last_offset(answer: bytes) -> int | None:
    """Where a program goes on after an answer; ``None`` if it was the end."""
    offset, place = None, 0
    while place < len(answer):
        # struct fuse_direntplus: 128 bytes about the entry, then ino, off, namelen, type, and the name, padded to 8
        offset, size = struct.unpack_from("<QI", answer, place + 136)
        place += 152 + (size + 7 & -8)
    return offset


def test_a_walk_is_recognised_and_its_next_listing_made(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    program, twin = Program(image), Program(image)
    for ino in (1, 2):
        assert program.ask(ino, 0) == twin.ask(ino, 0)
        assert program.listings.prepare() is (ino == 2)  # one listing is no walk
    while program.listings.prepare():
        pass
    monkeypatch.setattr(program.operations, "entries", _refuse)
    assert program.ask(3, 0) == twin.ask(3, 0)


def test_nothing_is_made_where_a_program_goes_its_own_way(image: Image) -> None:
    program = Program(image)
    for ino in (5, 3, 4, 2):
        program.ask(ino, 0)
        assert not program.listings.prepare()


def test_what_is_wrong_is_said_when_it_is_asked_for(image: Image) -> None:
    program, twin = Program(image), Program(image)
    for ino in (1, 2, 3, 4):
        assert program.ask(ino, 0) == twin.ask(ino, 0)
        program.listings.looked_up(ino)
        twin.listings.looked_up(ino)
        while program.listings.prepare():
            pass
    assert program.operations.errors.count == twin.operations.errors.count == 0
    assert program.ask(5, 0) == twin.ask(5, 0)
    assert program.operations.errors.count == twin.operations.errors.count == 1


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError("the listing was not there")
