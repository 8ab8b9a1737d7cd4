"""A manifest that is parsed in pieces is what it is as a whole, whatever stands in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.oci import Manifest, json_text, media_types

pytestmark = pytest.mark.property

_TOKENS = [
    b"},{",
    b"}]",
    b'"layers":[{',
    b'"layers":[{}],',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"0",
    b" ",
    b"\xff",
    b"null",
    b'{"mediaType":"%b"}' % media_types.ROOTFS.encode(),
    b'"mediaType":"%b",' % media_types.ROOTFS_ZSTD.encode(),
]


@pytest.fixture(autouse=True)
def _small_pieces() -> Iterator[None]:
    with mock.patch.object(json_text, "_PIECE_SIZE", 60):
        yield


def _descriptor(media_type: str, number: int) -> dict[str, Any]:
    return {"digest": Digest.of(b"%d" % number).oci, "mediaType": media_type, "size": number}


_TYPES = st.sampled_from([media_types.FILE_DATA] * 6 + [media_types.FILE_DATA_ZSTD, media_types.ROOTFS, "x/y"])
_LAYERS = st.lists(st.builds(_descriptor, _TYPES, st.integers(0, 10**6)), max_size=12)
_EXTRAS = st.dictionaries(
    st.sampled_from(["annotations", "layers ", "subject", "zzz", "artifactType"]),
    st.recursive(
        st.none() | st.integers(-5, 5) | st.text(max_size=5),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
        max_leaves=4,
    ),
    max_size=3,
)


@st.composite
def _documents(draw: st.DrawFn) -> bytes:
    rootfs = [_descriptor(media_types.ROOTFS, 1)] if draw(st.integers(0, 5)) else []
    layers = rootfs + draw(_LAYERS)
    if draw(st.booleans()):
        layers.reverse()
    document = {
        "config": _descriptor(media_types.EMPTY, 2),
        "layers": layers,
        "schemaVersion": 2,
        **draw(_EXTRAS),
    }
    compact = draw(st.integers(0, 5)) > 0
    text = json.dumps(document, sort_keys=draw(st.booleans()), separators=(",", ":") if compact else None).encode()
    for _ in range(draw(st.integers(0, 3))):
        text = _edited(draw, text)
    return text


def _edited(draw: st.DrawFn, text: bytes) -> bytes:
    begin, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    match draw(st.integers(0, 3)):
        case 0:
            return text[:begin] + draw(st.sampled_from(_TOKENS)) + text[begin:]
        case 1:
            return text[:begin] + text[end:] if end - begin < 40 else text
        case 2:
            return text[:begin] + text[begin:end] * 2 + text[end:]
        case _:
            return text[:begin] + draw(st.sampled_from(_TOKENS)) + text[begin + 1 :]


def _facts(manifest: Manifest) -> tuple[object, ...]:
    layers = [dict(layer) if isinstance(layer, dict) else layer for layer in manifest.layer_objects]
    return manifest.config, dict(manifest.extra), layers, len(manifest.layer_objects), manifest.rootfs()


def _outcome(make: Callable[[], Manifest]) -> str:
    try:
        return repr(_facts(make()))
    except FormatError as error:
        return f"error: {error}"


def _nested(where: str) -> bytes:
    """A manifest in which the layers stand somewhere else, too."""
    config, rootfs = _descriptor(media_types.EMPTY, 2), _descriptor(media_types.ROOTFS, 1)
    inner = json.dumps({"layers": [rootfs, rootfs]}, separators=(",", ":"))
    outer = f'"config":{json.dumps(config)},"schemaVersion":2,"layers": [{json.dumps(rootfs)} ]'
    return f"{{{outer},{where % inner}}}".encode()


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_documents())
@example(_nested('"other":%s'))
@example(_nested('"other":[[%s]]'))
@example(_nested('"other":"%s"'))
@example(b'{"config":1,"layers":[{}]}')
@example(b'{"layers":[{},{}],"layers":[{"layers":[{}]}]}')
@example(b'{"a":"\\"layers\\":[{","layers":[{"a":"},{"}]}')
def test_in_pieces_and_as_a_whole(text: bytes) -> None:
    assert _outcome(lambda: Manifest.skim(text)) == _outcome(lambda: Manifest.parse(text))


@settings(max_examples=200, deadline=None)
@given(_documents())
def test_an_outline_is_as_good(text: bytes) -> None:
    try:
        manifest = Manifest.skim(text)
    except FormatError:
        return
    outline = manifest.outline(text)
    assert outline.digest == Digest.of(text)
    assert _facts(Manifest.outlined(text, outline)) == _facts(manifest)


def test_pieces_are_what_is_tested() -> None:
    layers = [_descriptor(media_types.ROOTFS, 1), *(_descriptor(media_types.FILE_DATA, n) for n in range(9))]
    document = {"config": _descriptor(media_types.EMPTY, 2), "layers": layers, "schemaVersion": 2}
    whole: list[bytes] = []
    loads = json.loads

    def watched(text: bytes) -> Any:
        whole.append(text)
        return loads(text)

    with mock.patch.object(json_text.json, "loads", watched):
        Manifest.skim(json.dumps(document, separators=(",", ":")).encode())
    assert len(whole) == 11
    assert max(map(len, whole)) < 300
