"""Descriptor: a typed, sized, digested pointer to a blob (image-spec, descriptor.md).

The layouts of format versions 1 and 2 spell one key differently (``media_type``); ``Dialect`` says which spelling a
document uses. Fields that we do not know are kept in ``extra`` and written back.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.oci.json_text import NO_FIELDS, JsonObject, JsonValue, as_object, as_size, as_text


class Dialect(enum.Enum):
    """How a layout's ``index.json`` is spelled."""

    OCI = "1.0.0"
    """A valid OCI image layout (format version 3)."""
    PUZZLEFS_DEV = "puzzlefs-dev"
    """The layout of format versions 1 and 2: ``schemaVersion`` -1, ``media_type`` with an underscore."""

    @property
    def media_type_key(self) -> str:
        return "mediaType" if self is Dialect.OCI else "media_type"


class Descriptor(NamedTuple):
    """A pointer to a blob.

    Attributes:
        media_type: what the blob holds.
        digest: its sha256.
        size: bytes of the blob.
        annotations: free text by key; ``None`` where the document has no such field.
        extra: every other field, as it was read.
    """

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] | None = None
    extra: Mapping[str, JsonValue] = NO_FIELDS

    def annotation(self, key: str) -> str | None:
        """The value of one annotation."""
        return None if self.annotations is None else self.annotations.get(key)

    def with_annotation(self, key: str, text: str) -> Descriptor:
        """The same with one more annotation, or another text of it."""
        return self._replace(annotations={**(self.annotations or {}), key: text})

    @classmethod
    def from_json(cls, value: JsonValue, what: str, dialect: Dialect = Dialect.OCI) -> Descriptor:
        """The descriptor that a JSON object describes.

        Raises:
            FormatError: for a missing or malformed field; the message starts with ``what``.
        """
        fields = dict(as_object(value, what))
        media_type = as_text(fields.pop(dialect.media_type_key, None), f"{what}: {dialect.media_type_key}")
        digest = _digest(as_text(fields.pop("digest", None), f"{what}: digest"), what)
        size = as_size(fields.pop("size", None), f"{what}: size")
        annotations = fields.pop("annotations", None)
        return cls(media_type, digest, size, None if annotations is None else _texts(annotations, what), fields)

    def to_json(self, dialect: Dialect = Dialect.OCI) -> JsonObject:
        """The JSON object; versions 1 and 2 need its keys in this order."""
        result: dict[str, JsonValue] = {
            "digest": self.digest.oci,
            "size": self.size,
            dialect.media_type_key: self.media_type,
        }
        if self.annotations is not None:
            result["annotations"] = dict(self.annotations)
        return {**result, **self.extra}


def _digest(text: str, what: str) -> Digest:
    try:
        return Digest.parse(text)
    except FormatError as error:
        raise FormatError(f"{what}: digest: {error.message}") from error


def _texts(value: JsonValue, what: str) -> Mapping[str, str]:
    fields = as_object(value, f"{what}: annotations")
    return {key: as_text(text, f"{what}: annotation {key!r}") for key, text in fields.items()}
