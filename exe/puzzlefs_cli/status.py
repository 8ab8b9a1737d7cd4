"""``puzzlefs status``: what a live mount says of itself."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.quoting import shell_escape
from puzzlefs_cli.text import UNKNOWN, readable

if TYPE_CHECKING:
    from puzzlefs.mount.error_log import MountEvent
    from puzzlefs.mount.status import MountStatus

_DESCRIPTION = """\
Show what a live mount is, how much of it has been verified, and what went wrong in it. Asked is the process that
serves, so only root and the user that mounted it may. MOUNTPOINT can be that of a writable mount, too.
"""

_EPILOG = """\
Blobs count as checked when this mount has verified them once: most are read and verified when a file in them is read.
`puzzlefs verify MOUNTPOINT` verifies all of them. A server that takes the place of one that died goes on counting; a
new version of the program (`puzzlefs restart`) begins anew.

--json prints one object: mountpoint, writable, image (OCI_DIR:TAG as it was mounted), manifest (sha256:…), digest
(fs-verity; null if the manifest is gone), digest_required (mounted with --digest), verity (auto, kernel, user),
blobs_checked, blobs_to_check (null if that cannot be told), corruptions (different failures so far), failed_requests,
events (the newest failures, oldest first: [{time, request, kind, inode, entry, path, blob, message}]; time in seconds
since 1970; kind: corrupt, missing, not verifiable, malformed, unreadable, defect; path, entry and blob may be null),
engine (kernel, pyfuse3), server_pid, supervised, guardian_pid (null without), restarts, uptime and server_uptime
(seconds), requests ({kind: count}), caches ({name: {items, bytes, max_bytes}}), confinement (null if it has none),
version. Paths are text, with bytes that are none as lone surrogates. Keys can be added, and none goes away.

The exit code is 0 if the mount answers, whatever it has to say.

examples:
  puzzlefs status /mnt
  test "$(puzzlefs status --json /mnt | jq .corruptions)" = 0
"""

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "status",
        help="ask a live mount how it is",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where an image is mounted: /mnt")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    from puzzlefs.mount.status import mount_status  # noqa: PLC0415  other verbs should not pay for it

    status = mount_status(args.mountpoint)
    if args.json:
        print(json.dumps(as_json(status)))
    else:
        print("\n".join(lines(status)))
    return 0


def as_json(status: MountStatus) -> dict[str, object]:
    """The status as an object whose keys do not change."""
    return {
        "mountpoint": os.fspath(status.mountpoint),
        "writable": status.is_writable,
        "image": status.image,
        "manifest": status.manifest,
        "digest": status.digest,
        "digest_required": status.is_digest_required,
        "verity": status.verity,
        "blobs_checked": status.blobs_checked,
        "blobs_to_check": status.blobs_to_check,
        "corruptions": status.corruptions,
        "failed_requests": status.failed_requests,
        "events": [event.to_json() for event in status.events],
        "engine": status.engine,
        "server_pid": status.server_pid,
        "supervised": status.is_supervised,
        "guardian_pid": status.guardian_pid,
        "restarts": status.restarts,
        "uptime": status.uptime,
        "server_uptime": status.server_uptime,
        "requests": dict(status.requests),
        "caches": {name: dict(cache) for name, cache in status.caches.items()},
        "confinement": status.confinement,
        "version": status.version,
    }


def lines(status: MountStatus) -> list[str]:
    """The status for people. Another user's server can say anything, so nothing of it gets to a terminal as it is."""
    digest = UNKNOWN if status.digest is None else status.digest
    required = "required when it was mounted" if status.is_digest_required else "not required when it was mounted"
    known = UNKNOWN if status.blobs_to_check is None else str(status.blobs_to_check)
    failures = f"{status.corruptions} ({_requests(status.failed_requests)} failed)" if status.corruptions else "none"
    rows = [
        ("image", shown(status.image)),
        ("mounted at", shown(os.fspath(status.mountpoint)) + (" (writable)" if status.is_writable else "")),
        ("up", duration(status.uptime)),
        ("manifest", shown(status.manifest)),
        ("digest", f"{shown(digest)} ({required})"),
        ("verity", shown(status.verity)),
        ("checked", f"{status.blobs_checked} of {known} blobs"),
        ("failures", failures),
        ("server", _server(status)),
        ("confined", "no" if status.confinement is None else _confinement(status.confinement)),
        ("requests", _counts(status.requests) or "none"),
        ("caches", ", ".join(f"{shown(name)} {_cache(cache)}" for name, cache in status.caches.items())),
    ]
    width = max(len(name) for name, _ in rows) + 2
    result = [f"{name:<{width}}{value}" for name, value in rows]
    if status.events:
        left_out = max(0, status.corruptions - len(status.events))
        result.append("")
        result.append(f"failures, the last {len(status.events)}:" if left_out else "failures:")
        result += map(_event, status.events)
    return result


def shown(text: str) -> str:
    """A text of somebody else, without what could confuse a terminal."""
    return text if text.isprintable() else shell_escape(text.encode("utf-8", "surrogateescape"))


def duration(seconds: float) -> str:
    """A time as people read it: ``42 s``, ``3 h 2 min``."""
    parts: list[str] = []
    left = int(seconds)
    for size, unit in _UNITS:
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2]) or f"{seconds:.0f} s"


def _server(status: MountStatus) -> str:
    result = f"process {status.server_pid}, {shown(status.engine)} engine, version {shown(status.version)}"
    if status.is_supervised:
        result += f", supervised by process {status.guardian_pid}"
    if status.restarts:
        times = "once" if status.restarts == 1 else f"{status.restarts} times"
        result += f", restarted {times}, the last time {duration(status.server_uptime)} ago"
    return result


def _confinement(value: Mapping[str, object]) -> str:
    return ", ".join(f"{shown(name)}: {shown(_plain(what))}" for name, what in value.items())


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return " ".join(map(str, value)) or "none"
    return json.dumps(value)


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _counts(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{shown(name)} {count}" for name, count in most)


def _cache(cache: Mapping[str, int]) -> str:
    size, bound = readable(cache.get("bytes", 0)), readable(cache.get("max_bytes", 0))
    return f"{cache.get('items', 0)} ({size} of {bound})"


def _event(event: MountEvent) -> str:
    try:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
    except (ValueError, OverflowError, OSError):
        when = UNKNOWN
    path = f"inode {event.inode}" if event.path is None else shell_escape(event.path.encode("utf-8", "surrogateescape"))
    return f"  {when}  {event.kind}: {shown(event.request)} {path}: {shown(event.message)}"
