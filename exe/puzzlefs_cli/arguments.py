"""How the command line writes things: images, help texts, whole numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.oci import ImageReference, make_reference, parse_reference

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}

IMAGE_HELP = "the image: OCI_DIR:TAG, or the two words OCI_DIR TAG"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with examples as they are written, and room for option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


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
        problem = "too few" if len(given) < others + 1 else "too many"
        raise InvalidArgumentError(
            f"{problem} arguments: {expected} expected", hint="IMAGE is OCI_DIR:TAG, or the two words OCI_DIR TAG"
        )
    stop = len(given) - len(after)
    image = given[len(before) : stop]
    reference = parse_reference(image[0]) if len(image) == 1 else make_reference(image[0], image[1])
    return list(given[: len(before)]), reference, list(given[stop:])


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
