"""Failures of a mount as events that programs read, and that outlive the process that met them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.forge import Forge, directory, regular

from puzzlefs.errors import (
    BlobNotFoundError,
    FormatError,
    IntegrityError,
    StorageError,
    VerityNotEnabledError,
    VerityUnavailableError,
)
from puzzlefs.image import Image, open_image
from puzzlefs.mount.error_log import ErrorLog, EventKind, MountEvent, NameCache
from puzzlefs.mount.errors import RequestError
from puzzlefs.mount.operations import Operations

pytestmark = pytest.mark.unit

_FILE, _SUB, _DEEP = 2, 3, 4
_MANY = 300


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "layout")


@pytest.fixture
def image(forge: Forge) -> Iterator[Image]:
    chunk, other = forge.chunk(b"one" * 1000), forge.chunk(b"two" * 1000)
    forge.image(
        [
            directory(1, {b"file": _FILE, b"sub": _SUB}),
            regular(_FILE, chunk),
            directory(_SUB, {b"d\xff": _DEEP}),
            regular(_DEEP, other),
        ]
    )
    with open_image(forge.reference()) as opened:
        yield opened


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (IntegrityError("blob", expected="1", actual="2"), EventKind.CORRUPT),
        (BlobNotFoundError("1" * 64, "there"), EventKind.MISSING),
        (VerityNotEnabledError("none"), EventKind.UNVERIFIED),
        (VerityUnavailableError("none"), EventKind.UNVERIFIED),
        (FormatError("odd"), EventKind.MALFORMED),
        (StorageError("broken"), EventKind.UNREADABLE),
        (OSError(5, "broken"), EventKind.UNREADABLE),
        (ZeroDivisionError("mine"), EventKind.DEFECT),
    ],
)
def test_kinds(image: Image, error: Exception, kind: EventKind) -> None:
    errors = ErrorLog(NameCache(image.tree))
    errors.report("read of", _FILE, error)
    (event,) = errors.events()
    assert event.kind is kind
    assert (event.request, event.inode, event.path, event.message) == ("read of", _FILE, "/file", str(error))


def test_a_read_that_fails_names_file_and_blob(image: Image, forge: Forge) -> None:
    operations = Operations(image)
    seen: list[MountEvent] = []
    operations.errors.on_event = seen.append
    plan = operations.plan(_DEEP, 0, 10)
    forge.blob_path(plan.pieces[0].blob).unlink()
    for _ in range(3):
        with pytest.raises(RequestError):
            operations.fetch(_DEEP, plan)
    (event,) = seen
    assert (event.path, event.blob, event.kind) == ("/sub/d\udcff", plan.pieces[0].blob.hex(), EventKind.MISSING)
    assert operations.errors.events() == seen
    assert (operations.errors.count, operations.errors.failed_requests) == (1, 3)


def test_an_entry_is_part_of_the_path(image: Image) -> None:
    errors = ErrorLog(NameCache(image.tree))
    errors.report("lookup of", _SUB, FormatError("odd"), b"a")
    errors.report("lookup of", 1, FormatError("odd"), b"b")
    assert [(event.path, event.entry) for event in errors.events()] == [("/sub/a", "a"), ("/b", "b")]


def test_what_is_left_out_of_the_log_is_an_event(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    errors = ErrorLog(NameCache(image.tree), clock=lambda: 0.0)
    seen: list[MountEvent] = []
    errors.on_event = seen.append
    for number in range(_MANY):
        errors.report("read of", _DEEP, FormatError(f"problem {number}"))
    assert len(caplog.records) < _MANY
    assert len(seen) == errors.count == _MANY
    events = errors.events()
    assert len(events) < _MANY, "memory has to have a bound"
    assert [event.message for event in events] == [f"problem {number}" for number in range(_MANY)][-len(events) :]
    assert {event.path for event in events} == {"/sub/d\udcff"}, "paths are looked for where they were not known"
    assert errors.events() == events


def test_another_process_goes_on(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    first = ErrorLog(NameCache(image.tree))
    first.report("read of", _FILE, FormatError("odd"))
    first.report("lookup of", 1, FormatError("odd"), b"x")
    passed_on = json.loads(json.dumps([event.to_json() for event in first.events()]))
    caplog.clear()
    second = ErrorLog(NameCache(image.tree))
    second.restore(map(MountEvent.from_json, passed_on), 12, 34)
    assert second.events() == first.events()
    second.report("read of", _FILE, FormatError("odd"))
    second.report("lookup of", 1, FormatError("odd"), b"x")
    assert caplog.records == [], "the same failure is one line, whichever process meets it"
    second.report("read of", _FILE, FormatError("something else"))
    assert (second.count, second.failed_requests, len(second.events())) == (13, 37, 3)


@pytest.mark.parametrize("change", [{"time": "now"}, {"kind": "odd"}, {"inode": None}, {"message": 1}, {"request": []}])
def test_what_is_no_event(image: Image, change: dict[str, object]) -> None:
    errors = ErrorLog(NameCache(image.tree))
    errors.report("read of", _FILE, FormatError("odd"))
    (event,) = errors.events()
    assert MountEvent.from_json(event.to_json()) == event
    with pytest.raises(FormatError, match="event"):
        MountEvent.from_json({**event.to_json(), **change})


def test_a_hook_that_fails_does_not_matter(image: Image, caplog: pytest.LogCaptureFixture) -> None:
    errors = ErrorLog(NameCache(image.tree))
    errors.on_event = lambda event: [][event.inode]  # type: ignore[func-returns-value]
    errors.report("read of", _FILE, FormatError("odd"))
    assert errors.count == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]
