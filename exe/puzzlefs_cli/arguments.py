"""How the command line writes things: images, help texts, whole numbers."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.oci import ImageReference, make_reference, parse_reference

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}

_DEFAULT_COLUMNS = 80

IMAGE_HELP = "the image: OCI_DIR:TAG, or the two words OCI_DIR TAG"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with examples as they are written, and room for option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=terminal_columns() - 2)


def terminal_columns() -> int:
    """As ``shutil.get_terminal_size``, for which argparse would load ``shutil`` when an option is added."""
    width = 0
    with contextlib.suppress(KeyError, ValueError):
        width = int(os.environ["COLUMNS"])
    if width <= 0:
        with contextlib.suppress(OSError):
            width = os.get_terminal_size().columns
    return width if width > 0 else _DEFAULT_COLUMNS


def words(
    given: Sequence[str], before: Sequence[str], after: Sequence[str]
) -> tuple[list[str], ImageReference, list[str]]:
    """Divide a verb's words into those before the image, the image, and those after it.

    The image is one word (``OCI_DIR:TAG``) or two (``OCI_DIR TAG``); their number tells which.

    Args:
        given: the words as typed.
        before: the names of the words before the image.
        after: the names of the words after it.

    Raises:
        InvalidArgumentError: if there are too few or too many, or the image is not one.
    """
    others = len(before) + len(after)
    expected = " ".join([*before, "IMAGE", *after])
    if len(given) not in (others + 1, others + 2):
        raise too_few(expected) if len(given) < others + 1 else too_many(expected)
    stop = len(given) - len(after)
    image = given[len(before) : stop]
    reference = parse_reference(image[0]) if len(image) == 1 else make_reference(image[0], image[1])
    return list(given[: len(before)]), reference, list(given[stop:])


def take_image(given: Sequence[str], expected: str) -> tuple[ImageReference, list[str]]:
    """The image with which words begin that do not say by their number whether it is one of them or two; the others.

    The first word is the whole image if it can be read as ``OCI_DIR:TAG``; unless it is itself a directory and that
    ``OCI_DIR`` is none. Else the second word is the tag.

    Args:
        given: the words as typed.
        expected: what they should be, for messages.

    Raises:
        InvalidArgumentError: if there are too few words, or the image is not one.
    """
    try:
        reference = parse_reference(given[0]) if given else None
    except InvalidArgumentError:
        if len(given) < 2:
            raise
        reference = None
    if reference is not None and not (Path(given[0]).is_dir() and not reference.layout.is_dir()):
        return reference, list(given[1:])
    if len(given) < 2:
        raise too_few(expected)
    return make_reference(given[0], given[1]), list(given[2:])


def too_few(expected: str) -> InvalidArgumentError:
    """The error of a command line that ends before everything is said that is ``expected``."""
    return _miscounted("few", expected)


def too_many(expected: str) -> InvalidArgumentError:
    """The error of a command line that goes on when everything is said that is ``expected``."""
    return _miscounted("many", expected)


def _miscounted(how: str, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"too {how} arguments: {expected} expected", hint="an image is OCI_DIR:TAG, or the two words OCI_DIR TAG"
    )


def image_and_paths(given: Sequence[str], *, default: str | None = None) -> tuple[ImageReference, list[str]]:
    """Divide the words of a verb that looks into an image: the image, in one word or two, then paths inside of it.

    Args:
        given: the words as typed.
        default: the path that is meant where there is none; ``None`` if there has to be one.

    Raises:
        InvalidArgumentError: as ``take_image``.
    """
    expected = "IMAGE PATH" if default is None else "IMAGE"
    reference, paths = take_image(given, expected)
    if not paths and default is None:
        raise too_few(expected)
    return reference, paths or [default or ""]


def size(text: str) -> int:
    """A number of bytes as people write it: ``65536``, ``64K``, ``1M``.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    upper = text.upper().removesuffix("IB")
    digits = upper.rstrip("KM")
    unit = _UNITS.get(upper[len(digits) :])
    if unit is None or not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; it is a number of bytes, or one with K or M behind it")
    return int(digits) * unit
