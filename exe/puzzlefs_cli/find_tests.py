"""The tests of ``puzzlefs find``: from what stands behind an option to a question about a file.

They mean what GNU find says: a size is rounded up to whole units before it is compared, ``+n`` is more than n and
``-n`` less, a pattern matches the whole name, also one that begins with a dot. Nothing here knows images.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import stat
from collections.abc import Callable
from typing import Final, NamedTuple

from puzzlefs.model import Kind
from puzzlefs.vfs import Attributes

_TYPES: Final = {
    "b": Kind.BLOCK_DEVICE,
    "c": Kind.CHAR_DEVICE,
    "d": Kind.DIRECTORY,
    "f": Kind.REGULAR,
    "l": Kind.SYMLINK,
    "p": Kind.FIFO,
    "s": Kind.SOCKET,
}
_UNITS: Final = {"c": 1, "w": 2, "b": 512, "": 512, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE: Final = re.compile(r"([+-]?)([0-9]+)([cwbkMG]?)", re.ASCII)
_COUNT: Final = re.compile(r"([+-]?)([0-9]+)", re.ASCII)
_PERMISSIONS: Final = re.compile(r"([-/]?)([0-7]{1,4})", re.ASCII)
_CLASSES: Final = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "xdigit": "0-9a-fA-F",
    "blank": " \t",
    "space": " \t\n\r\f\v",
}
_CLASS: Final = re.compile(r"\[:([a-z]*):\]")
_EQUIVALENCE: Final = re.compile(r"\[=(.)=\]", re.DOTALL)
_NOTHING: Final = "(?!)"
"""Matches nothing."""

Names = Callable[[bytes], bool]
"""A test of a name or a path."""

Numbers = Callable[[Attributes], bool]
"""A test of attributes."""


class Compared(NamedTuple):
    """``n``, ``+n`` or ``-n``."""

    sign: str
    number: int

    def holds(self, value: int) -> bool:
        """Whether it says so of a value."""
        if self.sign == "+":
            return value > self.number
        return value < self.number if self.sign == "-" else value == self.number


def name(pattern: str) -> Names:
    """``-name``: the name matches a shell pattern."""
    matches = re.compile(translate(pattern)).match
    return lambda data: matches(os.fsdecode(data)) is not None


def name_in_any_case(pattern: str) -> Names:
    """``-iname``: the same, whatever is upper and lower case."""
    matches = re.compile(translate(pattern), re.IGNORECASE).match
    return lambda data: matches(os.fsdecode(data)) is not None


def kinds(text: str) -> frozenset[Kind]:
    """``-type``: one of the kinds, letters with commas between them.

    Raises:
        argparse.ArgumentTypeError: if there are others.
    """
    letters = text.split(",")
    if not set(letters) <= _TYPES.keys():
        raise argparse.ArgumentTypeError(f"{text!r}: a type is one or more of {','.join(_TYPES)}")
    return frozenset(_TYPES[letter] for letter in letters)


def size(text: str) -> Numbers:
    """``-size``: so many units, the last one begun.

    Raises:
        argparse.ArgumentTypeError: if it is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; it is n, +n or -n with one of c w b k M G behind it")
    compared = Compared(match[1], int(match[2]))
    unit = _UNITS[match[3]]
    return lambda attributes: compared.holds(-(-attributes.size // unit))


def count(text: str) -> Compared:
    """``-uid``, ``-links`` and so on: a number.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    match = _COUNT.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; it is n, +n or -n")
    return Compared(match[1], int(match[2]))


def permissions(text: str) -> Numbers:
    """``-perm``: exactly these bits; with ``-`` in front at least all of them; with ``/`` any of them.

    Raises:
        argparse.ArgumentTypeError: if they are not octal.
    """
    match = _PERMISSIONS.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no mode; it is octal, with - (all of) or / (any of) in front")
    wanted = int(match[2], 8)
    if match[1] == "-":
        return lambda attributes: attributes.mode & wanted == wanted
    if match[1] == "/":
        return lambda attributes: not wanted or attributes.mode & wanted != 0
    return lambda attributes: stat.S_IMODE(attributes.mode) == wanted


def translate(pattern: str) -> str:
    """A shell pattern as fnmatch(3) takes it in the C locale, as a regular expression for the whole of a text.

    Python's own patterns have no backslashes, and of sets neither ``[^…]`` nor ``[[:alpha:]]`` nor ``[[.-.]]``. So sets
    and what is escaped are translated here, and Python translates the rest, with a sign for each of those.
    """
    signs = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in pattern)  # of private use
    meanings: dict[str, str] = {}
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "\\":
            if position == len(pattern):
                return _NOTHING
            meaning = re.escape(pattern[position])
            position += 1
        elif char == "[":
            try:
                meaning, position = _Set(pattern, position).translated()
            except EOFError:  # the pattern ended before the set
                meaning = r"\["
            except ValueError:
                return _NOTHING
        else:
            parts.append(char)
            continue
        sign = next(signs)
        meanings[sign] = meaning
        parts.append(sign)
    return "".join([meanings.get(char, char) for char in fnmatch.translate("".join(parts))])


class _Set:
    """A set in a pattern, ``[…]``, read as the C library reads it."""

    def __init__(self, pattern: str, position: int) -> None:
        """The set whose bracket is before ``position``."""
        self._pattern = pattern
        self._position = position
        self._items: list[str] = []
        self._lost: list[str] = []

    def translated(self) -> tuple[str, int]:
        """The regular expression for one character, and where the pattern goes on.

        Raises:
            EOFError: if the set does not end: then its bracket is a character like others.
            ValueError: if it is such that the pattern matches nothing.
        """
        negated = self._next_is("!", "^")
        items = self._items
        is_sound = True
        is_first = True
        while is_first or not self._next_is("]"):
            is_first = False
            item = self._item()
            is_sound = is_sound and item is not None
            if is_sound and item:
                items.append(item)
        chosen = f"[{''.join(self._lost + items)}]" if self._lost or items else _NOTHING
        if negated:
            return f"(?!{chosen})." if is_sound else _NOTHING, self._position
        lost = f"(?![{''.join(self._lost)}])" if self._lost else ""
        return f"{lost}{chosen}", self._position

    def _item(self) -> str | None:
        """What comes next, as a part of a set of a regular expression; ``None`` for what ends the search in vain."""
        match = _CLASS.match(self._pattern, self._position)
        if match is not None:
            self._position = match.end()
            return _CLASSES.get(match[1])
        match = _EQUIVALENCE.match(self._pattern, self._position)
        if match is not None:
            self._position = match.end()
            return re.escape(match[1])
        first = self._character()
        if self._rest(1) != "-" or self._rest(2) == "-]":
            return None if first is None else re.escape(first)
        self._position += 1
        last = self._character()
        if first is None or last is None:
            return None
        return f"{re.escape(first)}-{re.escape(last)}" if first <= last else ""

    def _character(self) -> str | None:
        """A character, by itself, escaped, or as ``[.x.]``; ``None`` for a longer name, which the C locale has not."""
        char = self._rest(1)
        if not char:
            raise EOFError
        self._position += 1
        if char == "\\":
            char = self._rest(1)
            if not char:
                raise ValueError
            self._position += 1
        elif char == "[" and self._next_is("."):
            end = self._pattern.find(".]", self._position)
            if end < 0:
                raise ValueError
            name = self._pattern[self._position : end]
            self._position = end + 2
            return name if len(name) == 1 else None
        elif char == "[" and self._rest(1) == "=":
            # once something has matched, the C library fails at an equivalence class that is none
            self._lost += self._items
            self._items.clear()
        return char

    def _next_is(self, *chars: str) -> bool:
        """Whether one of some characters comes next, which is passed then."""
        found = self._rest(1) in chars
        self._position += found
        return found

    def _rest(self, count: int) -> str:
        return self._pattern[self._position : self._position + count]
