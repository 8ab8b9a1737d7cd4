"""How people name an image: ``OCI_DIR:TAG``.

The tag follows the grammar that the image-spec gives for ``org.opencontainers.image.ref.name`` (annotations.md)::

    ref       ::= component ("/" component)*
    component ::= alphanum (separator alphanum)*
    alphanum  ::= [A-Za-z0-9]+
    separator ::= [-._:@+] | "--"

Tags of container registries (distribution-spec: ``[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}``) are accepted as well: they
allow a few more places for separators. The directory may contain colons: the last colon whose right side is a tag
divides the two. Pure: no file is touched.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from puzzlefs.errors import InvalidArgumentError

_COMPONENT = r"[A-Za-z0-9]+(?:(?:--|[-._:@+])[A-Za-z0-9]+)*"
_REF = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_REGISTRY_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_MAX_TAG_LENGTH = 255


class ImageReference(NamedTuple):
    """An image: a tag in a layout directory."""

    layout: Path
    tag: str

    def __str__(self) -> str:
        return f"{self.layout}:{self.tag}"


def is_tag(text: str) -> bool:
    """Whether ``text`` may be a tag."""
    if len(text) > _MAX_TAG_LENGTH:
        return False
    return _REF.fullmatch(text) is not None or _REGISTRY_TAG.fullmatch(text) is not None


def make_reference(layout: str | Path, tag: str) -> ImageReference:
    """The image ``tag`` in the directory ``layout``.

    Raises:
        InvalidArgumentError: if ``tag`` is not a tag, or ``layout`` is empty.
    """
    if not is_tag(tag):
        raise InvalidArgumentError(
            f"{tag!r} is not a valid tag", hint="letters and digits, separated by one of - . _ : @ + or /"
        )
    if not str(layout):
        raise InvalidArgumentError("the OCI directory is missing before the tag", hint="write OCI_DIR:TAG")
    return ImageReference(Path(layout), tag)


def parse_reference(text: str) -> ImageReference:
    """The image that ``OCI_DIR:TAG`` names.

    Raises:
        InvalidArgumentError: if no colon divides ``text`` into a directory and a tag.
    """
    position = len(text)
    while (position := text.rfind(":", max(len(text) - _MAX_TAG_LENGTH - 1, 0), position)) >= 0:
        if is_tag(text[position + 1 :]):
            return make_reference(text[:position], text[position + 1 :])
    raise InvalidArgumentError(
        f"{text!r} does not name an image", hint="write OCI_DIR:TAG, for example /var/lib/images:debian"
    )
