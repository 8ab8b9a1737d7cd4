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
_CLASS: Final = re.compile(r"\[:([a-z]+):\]")

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
    """A shell pattern as fnmatch(3) takes it, as a regular expression for the whole of a text.

    Python's own patterns have neither backslashes nor ``[^…]`` nor ``[[:alpha:]]``: what they mean is put into others.
    """
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "\\" and position + 1 < len(pattern):
            position += 1
            parts.append(f"[{pattern[position]}]" if pattern[position] in "*?[" else pattern[position])
        elif char == "[" and (end := _end_of_set(pattern, position)):
            parts.append(_set(pattern[position + 1 : end]))
            position = end
        else:
            parts.append("[[]" if char == "[" else char)
        position += 1
    return fnmatch.translate("".join(parts))


def _end_of_set(pattern: str, start: int) -> int:
    """Where the set that begins at ``start`` ends, 0 if it does not."""
    position = start + 1
    if pattern[position : position + 1] in ("!", "^"):
        position += 1
    if pattern[position : position + 1] == "]":
        position += 1
    while position < len(pattern) and pattern[position] != "]":
        match = _CLASS.match(pattern, position)
        position = match.end() if match else position + (2 if pattern[position] == "\\" else 1)
    return position if position < len(pattern) else 0


def _set(inner: str) -> str:
    negated = inner[:1] in ("!", "^")
    inner = inner[1:] if negated else inner
    inner = _CLASS.sub(lambda match: _CLASSES.get(match[1], ""), inner)
    inner = re.sub(r"\\(.)", r"\1", inner)
    if not negated and inner.startswith("!"):
        inner = f"{inner[1:]}!" if len(inner) > 1 else "!"
    return f"[{'!' if negated else ''}{inner}]"
