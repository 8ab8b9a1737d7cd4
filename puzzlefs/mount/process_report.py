"""How a process that somebody started tells the one that the user looks at what went wrong.

One JSON object, written at once into a pipe or a socket. Errors come out as what they were: the classes of
``puzzlefs.errors``, ``OSError``, ``KeyboardInterrupt``; anything else is a defect, and its traceback comes with it as a
note. Nothing that is read here runs code: who reports may have been taken over by a hostile image.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from puzzlefs import errors
from puzzlefs.errors import PuzzlefsError

_MAX_TEXT: Final = 16_384


class NotRun(NamedTuple):
    """The command could not be started at all; ``text`` says why."""

    text: str


def report(fd: int, what: BaseException | NotRun) -> None:
    """Write what went wrong into the pipe."""
    os.write(fd, json.dumps(describe(what)).encode() + b"\n")


def read_report(data: bytes) -> BaseException | NotRun | None:
    """What the bytes that came out of the pipe say, ``None`` if nothing went wrong."""
    line = data.partition(b"\n")[0]
    return understand(json.loads(line)) if line else None


def understand(fields: Mapping[str, Any]) -> BaseException | NotRun:
    """What ``describe`` made these fields of.

    Raises:
        KeyError: if it did not.
    """
    text = fields["text"]
    match fields["kind"]:
        case "NotRun":
            return NotRun(text)
        case "KeyboardInterrupt":
            return KeyboardInterrupt()
        case "OSError":
            return OSError(fields["errno"], text, fields["path"])
        case "PuzzlefsError":
            kind = getattr(errors, fields["class"], PuzzlefsError)
            error: PuzzlefsError = kind.__new__(kind)
            PuzzlefsError.__init__(error, text, hint=fields["hint"])
            return error
        case _:
            defect = RuntimeError(text)
            defect.add_note(fields["traceback"])
            return defect


def describe(what: BaseException | NotRun) -> dict[str, str | int | None]:
    """What went wrong, as fields that JSON can hold; of an exception also its ``traceback``."""
    if isinstance(what, NotRun):
        return {"kind": "NotRun", "text": what.text}
    trace = "".join(traceback.format_exception(what))[-_MAX_TEXT:]
    return {**_fields(what), "traceback": trace}


def _fields(what: BaseException) -> dict[str, str | int | None]:
    match what:
        case PuzzlefsError():
            name = next(kind.__name__ for kind in type(what).__mro__ if hasattr(errors, kind.__name__))
            return {"kind": "PuzzlefsError", "class": name, "text": what.message[:_MAX_TEXT], "hint": what.hint}
        case KeyboardInterrupt():
            return {"kind": "KeyboardInterrupt", "text": ""}
        case OSError(errno=int(number)):
            path = None if what.filename is None else os.fsdecode(what.filename)
            return {"kind": "OSError", "text": what.strerror, "errno": number, "path": path}
    return {"kind": "defect", "text": f"{type(what).__name__}: {what}"[:_MAX_TEXT]}
