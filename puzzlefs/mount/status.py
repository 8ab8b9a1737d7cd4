"""What a live mount says of itself: ``mount_status`` asks, ``verify_mount`` has it verify all of its image.

Both ask the process that serves (``control_client``), so they see the image as the mount does: the manifest that it was
opened with, wherever the tag points by now, and the verity mode that it was mounted with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from puzzlefs.errors import FormatError
from puzzlefs.mount.control_client import ask, find_mount, not_understood
from puzzlefs.mount.error_log import MountEvent
from puzzlefs.oci.json_text import JsonObject, JsonValue

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MountStatus:
    """The state of a live mount.

    Attributes:
        mountpoint: where it is.
        is_writable: whether an overlay lies over the image.
        image: ``OCI_DIR:TAG`` as it was mounted.
        manifest: ``sha256:…`` of its manifest.
        digest: fs-verity digest of the manifest, as ``build`` prints it; ``None`` if the manifest is gone.
        is_digest_required: whether it was mounted with that digest, and so is what somebody named.
        verity: who checks what lies below: ``auto``, ``kernel`` or ``user``.
        blobs_checked: distinct blobs that this mount has verified at least once.
        blobs_to_check: how many there are; ``None`` if the metadata are malformed as a whole.
        corruptions: how many different failures there were.
        failed_requests: how many requests failed.
        events: the newest failures, oldest first.
        engine: who speaks to the kernel.
        server_pid: the process that serves now.
        is_supervised: whether a guardian keeps the mount while servers come and go.
        guardian_pid: its process.
        restarts: how many servers there were before this one.
        uptime: seconds since it was mounted.
        server_uptime: seconds since this server began.
        requests: how often each kind of request came, by its name.
        caches: what is in memory: by name, ``items``, ``bytes`` and ``max_bytes``.
        confinement: what the server may not do any more; ``None``: it may all.
        version: of the program that serves.
    """

    mountpoint: Path
    is_writable: bool
    image: str
    manifest: str
    digest: str | None
    is_digest_required: bool
    verity: str
    blobs_checked: int
    blobs_to_check: int | None
    corruptions: int
    failed_requests: int
    events: Sequence[MountEvent]
    engine: str
    server_pid: int
    is_supervised: bool
    guardian_pid: int | None
    restarts: int
    uptime: float
    server_uptime: float
    requests: Mapping[str, int]
    caches: Mapping[str, Mapping[str, int]]
    confinement: JsonObject | None
    version: str


@dataclass(frozen=True, slots=True)
class UnsoundBlob:
    """A blob that is not as it should be.

    Attributes:
        digest: ``sha256:…``.
        role: ``manifest``, ``config``, ``rootfs``, ``metadata`` or ``chunk``; ``index``, of a layout.
        fault: what is wrong.
        detail: what is wrong, in words.
        files: paths of files that have bytes in it, from the image's root on.
        more_files: how many others there are.
    """

    digest: str
    role: str
    fault: str
    detail: str
    files: Sequence[str]
    more_files: int


@dataclass(frozen=True, slots=True)
class MountVerification:
    """The result of a verification.

    Attributes:
        blobs: how many blobs were looked at.
        bytes: their bytes, as far as they could be read.
        bad_blobs: how many are bad.
        bad: those of them that are described.
        seconds: how long it took.
    """

    blobs: int
    bytes: int
    bad_blobs: int
    bad: Sequence[UnsoundBlob]
    seconds: float


def mount_status(mountpoint: str | Path) -> MountStatus:
    """Ask a live mount for its state. Only root and the user that mounted it may.

    Raises:
        NotFoundError: if it is no mount point.
        MountError: if it is no mount of an image, its server is dead or does not answer, or this user may not ask.
    """
    mount = find_mount(mountpoint)
    answer = ask(mount, "status")
    try:
        return MountStatus(
            mountpoint=mount.point,
            is_writable=mount.is_writable,
            image=_is(str, answer.get("image")),
            manifest=_is(str, answer.get("manifest")),
            digest=_may_be(str, answer.get("digest")),
            is_digest_required=_is(bool, answer.get("digest_required")),
            verity=_is(str, answer.get("verity")),
            blobs_checked=_is(int, answer.get("blobs_checked")),
            blobs_to_check=_may_be(int, answer.get("blobs_to_check")),
            corruptions=_is(int, answer.get("corruptions")),
            failed_requests=_is(int, answer.get("failed_requests")),
            events=[MountEvent.from_json(_object(event)) for event in _is(list, answer.get("events"))],
            engine=_is(str, answer.get("engine")),
            server_pid=_is(int, answer.get("server_pid")),
            is_supervised=_is(bool, answer.get("supervised")),
            guardian_pid=_may_be(int, answer.get("guardian_pid")),
            restarts=_is(int, answer.get("restarts")),
            uptime=_number(answer.get("uptime")),
            server_uptime=_number(answer.get("server_uptime")),
            requests=_counts(answer.get("requests")),
            caches={name: _counts(value) for name, value in _object(answer.get("caches")).items()},
            confinement=None if answer.get("confinement") is None else _object(answer.get("confinement")),
            version=_is(str, answer.get("version")),
        )
    except (TypeError, FormatError) as error:
        raise not_understood() from error


def verify_mount(mountpoint: str | Path, *, progress: Callable[[int, int], None] | None = None) -> MountVerification:
    """Have a live mount read and verify every blob that reading its image can need.

    What is bad becomes events of the mount, too, and lines in its log. If its server is replaced meanwhile, the next
    one begins anew.

    Args:
        mountpoint: where it is.
        progress: called now and then with how many blobs are done, of how many.

    Raises:
        NotFoundError: as ``mount_status``.
        MountError: as ``mount_status``.
    """
    bad: dict[str, UnsoundBlob] = {}

    def take(key: str, value: JsonObject) -> None:
        total = value.get("total")
        if key == "progress" and progress is not None and total:  # else it says no more than that it is alive
            progress(_is(int, value.get("done")), _is(int, total))
        if key == "bad":
            blob = _bad_blob(value)
            bad[blob.digest] = blob  # and not once more, if a second server says it again

    try:
        answer = ask(find_mount(mountpoint), "verify", take)
        return MountVerification(
            blobs=_is(int, answer.get("blobs")),
            bytes=_is(int, answer.get("bytes")),
            bad_blobs=_is(int, answer.get("bad")),
            bad=tuple(bad.values()),
            seconds=_number(answer.get("seconds")),
        )
    except TypeError as error:
        raise not_understood() from error


def _bad_blob(value: JsonObject) -> UnsoundBlob:
    return UnsoundBlob(
        digest=_is(str, value.get("digest")),
        role=_is(str, value.get("role")),
        fault=_is(str, value.get("fault")),
        detail=_is(str, value.get("detail")),
        files=[_is(str, path) for path in _is(list, value.get("files"))],
        more_files=_is(int, value.get("more_files")),
    )


def _is(kind: type[T], value: object) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _may_be(kind: type[T], value: object) -> T | None:
    return None if value is None else _is(kind, value)


def _number(value: object) -> float:
    return float(_is(int, value)) if isinstance(value, int) else _is(float, value)


def _object(value: JsonValue) -> JsonObject:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no object")
    return value


def _counts(value: JsonValue) -> dict[str, int]:
    return {name: _is(int, count) for name, count in _object(value).items()}
