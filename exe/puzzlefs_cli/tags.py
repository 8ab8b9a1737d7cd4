"""``puzzlefs tags``: the tags of an OCI directory."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from typing import TYPE_CHECKING, Final

from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.exit_codes import ExitCode
from puzzlefs_cli.quoting import shell_escape
from puzzlefs_cli.text import UNKNOWN, aligned, readable

if TYPE_CHECKING:
    from puzzlefs.tags import TagInfo

_EPILOG = """\
The digest is what `puzzlefs build` prints and --digest takes; "-" if the tag does not point to one image. The size is
that of the manifest; `puzzlefs stats` tells what images take. The time is what the index says, else that of the blob.

--json prints one object: "layout", "untagged" (how many entries have no tag) and "tags". Each of these has "tag",
"manifest" (its sha256), "digest" (fs-verity), "size", "media_type", "created_ns" (nanoseconds since the epoch),
"is_created_said" (whether the index says it) and "problem"; null is what cannot be told.

example:
  puzzlefs tags images
"""

_HEADINGS: Final = ("tag", "digest", "size", "created")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "tags",
        help="list the tags of an OCI directory",
        description="List the tags of an OCI directory, with the digest of each image.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs tags [--json | --name-only] OCI_DIR",
    )
    parser.add_argument("layout", metavar="OCI_DIR", help="the OCI directory")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a report as one JSON object")
    form.add_argument("--name-only", action="store_true", help="only the tags")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    from puzzlefs.tags import tags  # noqa: PLC0415  imported when it is needed: starting must be quick

    report = tags(args.layout)
    if args.json:
        print(json.dumps(dataclasses.asdict(report)))
    elif args.name_only:
        for info in report.tags:
            print(_shown(info.tag))
    elif report.tags:
        print("\n".join(aligned([_HEADINGS, *map(_row, report.tags)], left=4)))
    problems = [info for info in report.tags if info.problem is not None]
    for info in problems:
        print(f"puzzlefs: {_shown(info.tag)}: {info.problem}", file=sys.stderr)
    return ExitCode.BAD_IMAGE if problems else ExitCode.OK


def _row(info: TagInfo) -> tuple[str, ...]:
    digest = UNKNOWN if info.problem is not None else info.digest or "-"
    size = UNKNOWN if info.size is None else readable(info.size)
    return _shown(info.tag), digest, size, _time(info.created_ns)


def _time(created_ns: int | None) -> str:
    if created_ns is None:
        return UNKNOWN
    try:
        moment = datetime.datetime.fromtimestamp(created_ns // 1_000_000_000).astimezone()
    except (OverflowError, ValueError, OSError):
        return UNKNOWN
    return moment.strftime("%Y-%m-%d %H:%M:%S %z")


def _shown(tag: str) -> str:
    """A tag for people: in an index, it may be any text."""
    return shell_escape(tag.encode("utf-8", "surrogatepass"))
