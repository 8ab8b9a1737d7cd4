"""Image index: the ``index.json`` of a layout, which maps tags to descriptors (image-spec, image-index.md).

Pure: changing an index gives a new one. Reading one and writing it back keeps every field. Writing the two dialects is
exact: OCI with sorted keys; versions 1 and 2 with ``schemaVersion`` -1 and the order that the original writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from puzzlefs.errors import FormatError
from puzzlefs.oci import media_types
from puzzlefs.oci.descriptor import Descriptor, Dialect
from puzzlefs.oci.json_text import NO_FIELDS, JsonValue, as_list, encode, parse_object

_OCI_SCHEMA_VERSION = 2
_DEV_SCHEMA_VERSION = -1


class Index(NamedTuple):
    """The index of a layout.

    Attributes:
        dialect: how it is spelled.
        manifests: one descriptor for each image, tagged or not.
        extra: every other field, as it was read.
    """

    dialect: Dialect
    manifests: tuple[Descriptor, ...] = ()
    extra: Mapping[str, JsonValue] = NO_FIELDS

    @classmethod
    def parse(cls, data: bytes, what: str = "index.json") -> Index:
        """The index that ``data`` holds.

        Raises:
            FormatError: if it is not one; the message starts with ``what``.
        """
        fields = dict(parse_object(data, what))
        schema_version = fields.pop("schemaVersion", None)
        if schema_version == _OCI_SCHEMA_VERSION:
            dialect = Dialect.OCI
        elif schema_version == _DEV_SCHEMA_VERSION:
            dialect = Dialect.PUZZLEFS_DEV
        else:
            raise FormatError(f"{what}: schemaVersion is neither {_OCI_SCHEMA_VERSION} nor {_DEV_SCHEMA_VERSION}")
        manifests = as_list(fields.pop("manifests", None), f"{what}: manifests")
        descriptors = tuple(
            Descriptor.from_json(value, f"{what}: manifest {number}", dialect) for number, value in enumerate(manifests)
        )
        return cls(dialect, descriptors, fields)

    def encode(self) -> bytes:
        """The bytes to write."""
        manifests: list[JsonValue] = [descriptor.to_json(self.dialect) for descriptor in self.manifests]
        if self.dialect is Dialect.OCI:
            return encode({**self.extra, "manifests": manifests, "schemaVersion": _OCI_SCHEMA_VERSION})
        extra = {"annotations": {}, **self.extra}
        return encode({"schemaVersion": _DEV_SCHEMA_VERSION, "manifests": manifests, **extra}, sort_keys=False)

    def tags(self) -> list[str]:
        """The tags there are, each once, in the order of the index."""
        return list(self.tagged())

    def tagged(self) -> dict[str, Descriptor]:
        """What each tag points to (as ``find``), in the order of ``tags``."""
        found = ((descriptor.annotation(media_types.REF_NAME), descriptor) for descriptor in self.manifests)
        return {tag: descriptor for tag, descriptor in found if tag is not None}

    def find(self, tag: str) -> Descriptor | None:
        """What ``tag`` points to: the last descriptor that carries it."""
        for descriptor in reversed(self.manifests):
            if descriptor.annotation(media_types.REF_NAME) == tag:
                return descriptor
        return None

    def with_tag(self, tag: str, descriptor: Descriptor) -> Index:
        """An index in which ``tag`` points to ``descriptor``, and nowhere else.

        In the OCI dialect a descriptor that loses its tag goes (unless another index entry is all that names it, its
        blobs become unreachable, which is what moving a tag means); in the dialect of versions 1 and 2 it stays with
        empty annotations, as the original leaves it.
        """
        return self.with_tags({tag: descriptor})

    def with_tags(self, new: Mapping[str, Descriptor]) -> Index:
        """``with_tag`` for many at once."""
        kept: list[Descriptor] = []
        for old in self.manifests:
            if old.annotation(media_types.REF_NAME) not in new:
                kept.append(old)
            elif self.dialect is Dialect.PUZZLEFS_DEV:
                kept.append(old._replace(annotations=_without(old.annotations, media_types.REF_NAME)))
        kept += [descriptor.with_annotation(media_types.REF_NAME, tag) for tag, descriptor in new.items()]
        return self._replace(manifests=tuple(kept))


def _without(annotations: Mapping[str, str] | None, key: str) -> Mapping[str, str]:
    return {name: text for name, text in (annotations or {}).items() if name != key}
