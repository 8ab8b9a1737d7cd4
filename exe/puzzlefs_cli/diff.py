"""``puzzlefs diff``: what differs between two images, an image and a directory, or two directories."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from puzzlefs.errors import InvalidArgumentError
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.exit_codes import ExitCode
from puzzlefs_cli.progress import add_progress_options, progress_of
from puzzlefs_cli.quoting import shell_escape
from puzzlefs_cli.text import write_bytes

if TYPE_CHECKING:
    from puzzlefs.builder import Progress
    from puzzlefs.diff import Difference, DiffReport, EntryState

_EPILOG = """\
A and B are images (OCI_DIR:TAG) or directories (dir:PATH). Nothing is unpacked. An entry can differ in its type,
content, target (of a symbolic link), device, mode, owner, xattrs, mtime (where both have one) and links (which of the
other entries that both have are the same file). "renamed" is what is the same inode, in images on a common layer, or
has the same content.

exit codes: 0 nothing differs, 1 something does, others as for every command.

--json prints one object: "old" and "new" (what A and B were called), "same", "entries" (how many were compared),
"bytes_read" (of content), "counts" (by status), "needed" (with --stat, else null: "chunks" that only B refers to,
"stored_bytes" of their blobs, "missing_chunks", "metadata_bytes"), "mount_points", and "differences". Each of these has
"status" (added, removed, changed, renamed), "path", "old_path", "aspects" (those that are named above), and "before"
and "after", which are null or have "type", "mode" (octal), "uid", "gid", "size", "target", "device" ([major, minor]),
"xattrs" (values in hex) and "mtime_ns". Paths are relative to the root, which is "."; names that are not UTF-8 have
surrogate escapes, as in Python's os.fsdecode.

examples:
  puzzlefs diff images:debian images:debian-2
  puzzlefs diff --stat images:debian images:debian-2 /usr/lib
  puzzlefs diff --ignore mtime images:debian dir:/srv/rootfs
"""

_LETTERS: Final = {"added": "A", "removed": "D", "changed": "M", "renamed": "R"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "diff",
        help="show what differs between two images or directories",
        description="Show which entries were added, removed, changed and renamed from A to B, and in what they differ.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs diff [OPTION...] A B [PATH]",
    )
    parser.add_argument(
        "words", nargs="+", metavar="A B [PATH]", help="two images or directories, and what to compare of them"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--stat", action="store_true", help="only how much differs, and what image B needs that image A has not"
    )
    form.add_argument("--name-only", action="store_true", help="only the paths")
    form.add_argument(
        "--name-status", action="store_true", help="paths as git prints them: A, D, M, T (another type) or R, and a tab"
    )
    parser.add_argument("-0", "--null", action="store_true", help="names as they are, each with a NUL behind it")
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="WHAT",
        help="what does not count: content, target, device, mode, owner, xattrs, mtime or links; several with commas",
    )
    parser.add_argument("--no-renames", action="store_true", help="what was renamed is removed, and added elsewhere")
    parser.add_argument(
        "--cross-mounts", action="store_true", help="look into what is mounted below a directory; else it is empty"
    )
    add_progress_options(parser, "no remarks, only errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if len(args.words) not in (2, 3):
        problem = "too few" if len(args.words) < 2 else "too many"
        raise InvalidArgumentError(
            f"{problem} arguments: A B [PATH] expected", hint="A and B are OCI_DIR:TAG or dir:PATH, each one word"
        )
    old, new, *path = args.words
    ignored = [what for words in args.ignore for what in words.split(",")]
    if args.null and not (args.name_only or args.name_status):
        raise InvalidArgumentError("-0 goes with --name-only or --name-status")

    from puzzlefs.diff import diff  # noqa: PLC0415  imported when it is needed: starting must be quick

    gc.disable()  # all that is made here dies with the process
    with progress_of(args) as show:
        report = diff(
            old,
            new,
            os.fsencode(path[0]) if path else b"",
            ignore=ignored,
            renames=not args.no_renames,
            stat=args.stat,
            cross_mounts=args.cross_mounts,
            progress=None if show is None else _progress(show),
        )
    if not args.quiet:
        for place in report.mount_points:
            print(f"puzzlefs: {shell_escape(place)} counts as empty: something is mounted there", file=sys.stderr)
    if args.json:
        _print_json(report)
    elif args.stat:
        print("\n".join(summary(report)))
    elif args.name_only or args.name_status:
        _print_names(report, with_status=args.name_status, raw=args.null)
    else:
        for difference in report.differences:
            print(line(difference))
    return ExitCode.OK if report.is_same else ExitCode.DIFFERENT


def _progress(show: Callable[[Progress], None]) -> Callable[[int, int], None]:
    from puzzlefs.builder import Progress  # noqa: PLC0415  only who looks at it has to wait for it

    return lambda entries, bytes_read: show(Progress("scan", entries, bytes_read, 0))


def line(difference: Difference) -> str:
    """A difference for people: ``changed  etc/motd (content, mode 0644 → 0600)``."""
    name = _name(difference.path)
    if difference.old_way is not difference.way and difference.old_path != difference.path:
        name = f"{_name(difference.old_path)} → {name}"
    what = ", ".join(_told(difference, aspect) for aspect in difference.aspects)
    return f"{difference.status:<8} {name}" + (f" ({what})" if what else "")


def summary(report: DiffReport) -> list[str]:
    """How much differs."""
    from puzzlefs_cli.text import counted, readable  # noqa: PLC0415

    counts = ", ".join(f"{count} {status}" for status, count in report.counts().items())
    lines = [f"{counts}; {counted(report.entries, 'entry', 'entries')} compared"]
    if report.needed is not None:
        needed = report.needed
        missing = f" ({needed.missing_chunks} missing)" if needed.missing_chunks else ""
        metadata = f"; and {readable(needed.metadata_bytes)} of metadata" if needed.metadata_bytes else ""
        chunks = f"{counted(needed.chunks, 'chunk')} more{missing}"
        lines.append(f"{report.new} needs {chunks}: {readable(needed.stored_bytes)} stored{metadata}")
    return lines


def _told(difference: Difference, aspect: str) -> str:
    """In what an entry differs, with both values where they are short."""
    before, after = difference.before, difference.after
    if before is None or after is None:
        return aspect
    match aspect:
        case "type":
            return f"{_type(before)} → {_type(after)}"
        case "content" if before.size != after.size:
            return f"content {before.size} → {after.size} B"
        case "mode":
            return f"mode {before.permissions:04o} → {after.permissions:04o}"
        case "owner":
            return f"owner {before.uid}:{before.gid} → {after.uid}:{after.gid}"
        case "target":
            return f"target {_name(before.target or b'')} → {_name(after.target or b'')}"
        case "device" if before.device and after.device:
            return "device {}:{} → {}:{}".format(*before.device, *after.device)
        case _:
            return aspect


def _print_names(report: DiffReport, *, with_status: bool, raw: bool) -> None:
    end, tab = (b"\0", b"\0") if raw else (b"\n", b"\t")
    for difference in report.differences:
        names = [difference.path]
        status = _LETTERS[difference.status]
        if difference.status == "renamed":
            names = [difference.old_path, difference.path]
        elif "type" in difference.aspects:
            status = "T"
        if not with_status:
            names = names[-1:]
        shown = [name or b"." if raw else _name(name).encode("utf-8", "surrogateescape") for name in names]
        write_bytes(tab.join([status.encode(), *shown] if with_status else shown) + end)


def _print_json(report: DiffReport) -> None:
    """One object, written piece by piece: there can be many differences, and deep paths."""
    head = {
        "old": report.old,
        "new": report.new,
        "same": report.is_same,
        "entries": report.entries,
        "bytes_read": report.bytes_read,
        "counts": report.counts(),
        "needed": None
        if report.needed is None
        else {
            "chunks": report.needed.chunks,
            "stored_bytes": report.needed.stored_bytes,
            "missing_chunks": report.needed.missing_chunks,
            "metadata_bytes": report.needed.metadata_bytes,
        },
        "mount_points": [os.fsdecode(place) for place in report.mount_points],
    }
    sys.stdout.write(f'{json.dumps(head)[:-1]}, "differences": [')
    for piece in _pieces(report):
        sys.stdout.write(piece)
    sys.stdout.write("]}\n")


def _pieces(report: DiffReport) -> Iterator[str]:
    comma = ""
    for difference in report.differences:
        yield comma + json.dumps(
            {
                "status": difference.status,
                "path": os.fsdecode(difference.path or b"."),
                "old_path": os.fsdecode(difference.old_path or b"."),
                "aspects": difference.aspects,
                "before": _state(difference.before),
                "after": _state(difference.after),
            }
        )
        comma = ", "


def _state(state: EntryState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {
        "type": _type(state),
        "mode": f"{state.permissions:04o}",
        "uid": state.uid,
        "gid": state.gid,
        "size": state.size,
        "target": None if state.target is None else os.fsdecode(state.target),
        "device": state.device,
        "xattrs": {os.fsdecode(key): value.hex() for key, value in sorted(state.xattrs.items())},
        "mtime_ns": state.mtime_ns,
    }


def _type(state: EntryState) -> str:
    return state.kind.name.lower().replace("_", "-")


def _name(path: bytes) -> str:
    return shell_escape(path or b".")
