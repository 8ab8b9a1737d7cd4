"""Image manifest of format version 3 (image-spec, manifest.md).

``config`` is the empty descriptor; ``layers`` holds the rootfs blob, then one descriptor for each chunk of the stream,
in its order, repeats included. It is the manifest's bytes that get hashed, so ``encode`` is exact.
Descriptors of layers are made when they are asked for: a large image has hundreds of thousands and a mount needs one.
Even as JSON objects they take five times the room of their text, so who opens an image keeps that (``skim``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, overload

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.oci import media_types
from puzzlefs.oci.descriptor import Descriptor
from puzzlefs.oci.json_text import NO_FIELDS, JsonObject, JsonValue, as_list, encode, parse_object, parse_without

EMPTY_CONFIG_DATA = b"{}"
"""The two-byte blob that the empty descriptor points to."""

EMPTY_CONFIG = Descriptor(
    media_types.EMPTY, Digest.of(EMPTY_CONFIG_DATA), len(EMPTY_CONFIG_DATA), extra={"data": "e30="}
)
"""The image-spec's empty descriptor (manifest.md, "Guidance for an Empty Descriptor")."""

_SCHEMA_VERSION = 2
_WHAT = "the OCI manifest"


class ManifestOutline(NamedTuple):
    """A manifest without its chunks, as one process tells it to another one that is to read the same manifest.

    Attributes:
        digest: sha256 of the manifest's bytes.
        document: the manifest with the rootfs as its only layer.
        layer_count: how many layers it has.
    """

    digest: bytes
    document: bytes
    layer_count: int


class Manifest(NamedTuple):
    """An OCI image manifest.

    Attributes:
        config: descriptor of the image's configuration.
        layer_objects: the layers, still as JSON objects.
        extra: every field that is not named here, as it was read.
        known_rootfs: what ``rootfs`` returns, if it was looked for before.
    """

    config: Descriptor
    layer_objects: Sequence[JsonValue]
    extra: Mapping[str, JsonValue] = NO_FIELDS
    known_rootfs: Descriptor | None = None

    @classmethod
    def of(cls, layers: Sequence[Descriptor], more: Sequence[JsonValue] = ()) -> Manifest:
        """The manifest that ``build`` writes over ``layers``; ``more`` are layers of another manifest, as they are."""
        return cls(EMPTY_CONFIG, [*(layer.to_json() for layer in layers), *more])

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """The manifest that ``data`` holds.

        Raises:
            FormatError: if it does not follow the image-spec.
        """
        return cls._of(parse_object(data, _WHAT))

    @classmethod
    def _of(cls, document: JsonObject) -> Manifest:
        fields = dict(document)
        if fields.pop("schemaVersion", None) != _SCHEMA_VERSION:
            raise FormatError(f"{_WHAT}'s schemaVersion is not {_SCHEMA_VERSION}")
        config = Descriptor.from_json(fields.pop("config", None), f"{_WHAT}'s config")
        return cls(config, as_list(fields.pop("layers", None), f"{_WHAT}'s layers"), fields)

    @classmethod
    def skim(cls, data: bytes) -> Manifest:
        """As ``parse``, in less time and memory: no chunk is kept, and the layers are parsed again when they are asked
        for.

        Raises:
            FormatError: as ``parse`` and ``rootfs``.
        """
        skimmed = parse_without(data, _WHAT, "layers", _rootfs_positions)
        if skimmed is None:
            manifest = cls.parse(data)
            return manifest._as_text(data, len(manifest.layer_objects), manifest.rootfs())
        document, count, found = skimmed
        return cls._of(document)._as_text(data, count, _rootfs_among(found))

    def _as_text(self, data: bytes, layer_count: int, rootfs: Descriptor) -> Manifest:
        """This manifest, whose layers are parsed from ``data`` when they are asked for."""
        return self._replace(layer_objects=_LayerText(data, layer_count), known_rootfs=rootfs)

    def outline(self, data: bytes) -> ManifestOutline:
        """What there is to know about this manifest, which was parsed from ``data``, besides its chunks.

        Raises:
            FormatError: as ``rootfs``.
        """
        document = self._replace(layer_objects=[self.rootfs().to_json()]).encode()
        return ManifestOutline(Digest.of(data), document, len(self.layer_objects))

    @classmethod
    def outlined(cls, data: bytes, outline: ManifestOutline) -> Manifest:
        """As ``skim(data)``, without parsing it, because somebody else has.

        Args:
            data: the manifest.
            outline: its ``outline``: the digest is that of ``data``.
        """
        manifest = cls.parse(outline.document)
        return manifest._as_text(data, outline.layer_count, manifest.rootfs())

    def encode(self) -> bytes:
        """The bytes to store."""
        document: JsonObject = {
            **self.extra,
            "config": self.config.to_json(),
            "layers": list(self.layer_objects),
            "schemaVersion": _SCHEMA_VERSION,
        }
        return encode(document)

    def layers(self) -> Iterator[Descriptor]:
        """The descriptors of all layers, in order.

        Raises:
            FormatError: at a malformed one.
        """
        for number, value in enumerate(self.layer_objects):
            yield Descriptor.from_json(value, f"{_WHAT}'s layer {number}")

    def chunk_objects(self) -> list[JsonValue]:
        """The layers besides the rootfs, still as JSON objects."""
        return [
            layer
            for layer in self.layer_objects
            if not isinstance(layer, dict) or layer.get("mediaType") not in media_types.ROOTFS_TYPES
        ]

    def rootfs(self) -> Descriptor:
        """The descriptor of the PuzzleFS rootfs blob, found by its media type, not by its position.

        Raises:
            FormatError: if there is none, or more than one.
        """
        if self.known_rootfs is not None:
            return self.known_rootfs
        layers = self.layer_objects
        return _rootfs_among([(number, layers[number]) for number in _rootfs_positions(layers)])


def _rootfs_positions(layers: Sequence[JsonValue]) -> list[int]:
    """The positions of layers that may be a rootfs; every mount waits for this, and layers are many."""
    return [
        number
        for number, layer in enumerate(layers)
        if not isinstance(layer, dict) or layer.get("mediaType") in media_types.ROOTFS_TYPES
    ]


def _rootfs_among(layers: Sequence[tuple[int, JsonValue]]) -> Descriptor:
    found = [Descriptor.from_json(layer, f"{_WHAT}'s layer {number}") for number, layer in layers]
    if not found:
        raise FormatError(
            "the OCI manifest has no PuzzleFS rootfs among its layers", hint="it is another kind of image"
        )
    if len(found) > 1:
        raise FormatError("the OCI manifest names more than one PuzzleFS rootfs")
    return found[0]


class _LayerText(Sequence[JsonValue]):
    """The layers of a manifest, parsed anew by each pass over them."""

    __slots__ = ("_count", "_data")

    def __init__(self, data: bytes, count: int) -> None:
        self._data = data
        self._count = count

    def _parsed(self) -> Sequence[JsonValue]:
        return as_list(parse_object(self._data, _WHAT).get("layers"), f"{_WHAT}'s layers")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[JsonValue]:
        return iter(self._parsed())

    @overload
    def __getitem__(self, index: int) -> JsonValue: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[JsonValue]: ...

    def __getitem__(self, index: int | slice) -> JsonValue | Sequence[JsonValue]:
        return self._parsed()[index]
