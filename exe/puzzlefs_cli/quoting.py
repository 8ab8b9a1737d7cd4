"""How names are shown: raw where a program reads, so that nothing is lost; quoted where people do.

Names in an image are any bytes but ``/`` and NUL, and whoever made the image chose them: on a terminal, bytes that are
no text, control characters and what turns the direction of writing around must not get through. ``shell_escape`` writes
such a name as GNU ls does (gnulib's ``shell-escape`` quoting style), so that what is shown can be pasted into a shell.
Text is UTF-8, whatever the locale says.
"""

from __future__ import annotations

import re
from typing import Final

_PLAIN: Final = re.compile(rb"[A-Za-z0-9%+,\-./:@\]_]+(?:[A-Za-z0-9%+,\-./:@\]_#~{}]*)")
"""Names that no shell sees anything in. A single ``{`` or ``}`` is special, and so are ``#`` and ``~`` in front."""

_QUOTED: Final = frozenset(" !\"$&()*;<=>[^`|?'\\")
_IN_DOUBLE_QUOTES: Final = frozenset(" '#~{}%+,-./:@]_")
_LETTERS: Final = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v"}


def shell_escape(name: bytes) -> str:
    """A name as one word of a shell, quoted only if it has to be: ``'a b'``, ``"it's"``, ``'a'$'\\n''b'``."""
    if _PLAIN.fullmatch(name):
        return name.decode()
    text = name.decode("utf-8", "surrogateescape")
    if not text:
        return "''"
    if text.isprintable():
        if not _needs_quotes(text):
            return text
        if "'" not in text:
            return f"'{text}'"
        if all(char in _IN_DOUBLE_QUOTES or (char.isascii() and char.isalnum()) for char in text):
            return f'"{text}"'
    parts = ["'"]
    escaping = False
    for char in text:
        if char == "'":
            parts.append("'\\''")  # what is open, escapes or not, ends before it
            escaping = False
        elif char.isprintable():
            if escaping:
                parts.append("''")
                escaping = False
            parts.append(char)
        else:
            if not escaping:
                parts.append("'$'")
                escaping = True
            parts.append(_escape(char))
    parts.append("'")
    return "".join(parts)


def octal(name: bytes) -> str:
    """A name as tree(1) writes it: what cannot be printed as ``\\012``, the rest as it is."""
    text = name.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _octal(char) for char in text)


def width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415  for the rare name, on a terminal

    return cell_len(text)


def _needs_quotes(text: str) -> bool:
    return text[0] in "#~" or text in ("{", "}") or not _QUOTED.isdisjoint(text)


def _escape(char: str) -> str:
    letter = _LETTERS.get(char)
    return f"\\{letter}" if letter else _octal(char)


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
