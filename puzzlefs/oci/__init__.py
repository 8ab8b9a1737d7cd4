"""The image-spec's documents as types: descriptor, manifest, index, reference. Pure; unknown fields are kept."""

from puzzlefs.oci.descriptor import Descriptor, Dialect
from puzzlefs.oci.index import Index
from puzzlefs.oci.manifest import EMPTY_CONFIG, EMPTY_CONFIG_DATA, Manifest, ManifestOutline
from puzzlefs.oci.reference import ImageReference, is_tag, make_reference, parse_reference

__all__ = [
    "EMPTY_CONFIG",
    "EMPTY_CONFIG_DATA",
    "Descriptor",
    "Dialect",
    "ImageReference",
    "Index",
    "Manifest",
    "ManifestOutline",
    "is_tag",
    "make_reference",
    "parse_reference",
]
