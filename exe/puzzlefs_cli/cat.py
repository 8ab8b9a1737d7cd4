"""``puzzlefs cat``: write the content of files of an image to stdout."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Final

from puzzlefs.errors import PuzzlefsError
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.looking import IMAGE_AND_PATHS_HELP, opened
from puzzlefs_cli.options import add_image_options

_EPILOG: Final = """\
Symbolic links are followed, inside the image only. Every byte is verified before it is written, a piece at a time;
where a blob is missing or damaged, output ends before it, a line on stderr says so, and the exit code is not 0.

--json prints one object on stderr, in the end: "image", "files" (each with the "path" as it was named, "resolved" to
where it leads, and "bytes", its size) and "errors", what could not be written ("path", "message").

example:
  puzzlefs cat images:debian /etc/os-release
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "cat",
        help="write files of an image to stdout",
        description="Write the content of files of an image to stdout, one after the other.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs cat [-d HEX] [--verity MODE] [--json] IMAGE PATH…",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE PATH", help=IMAGE_AND_PATHS_HELP)
    add_image_options(parser)
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object, on stderr")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    with opened(args, default=None) as look:
        from puzzlefs.image_file import content_of  # noqa: PLC0415  imported when it is needed: starting must be quick
        from puzzlefs.vfs.paths import resolve  # noqa: PLC0415

        out = sys.stdout.buffer
        files = []
        for path in look.paths:
            written = 0
            try:
                place = resolve(look.image.tree, path)
                for data in content_of(look.image, place):
                    out.write(data)
                    written += len(data)
            except PuzzlefsError as error:
                out.flush()
                look.failed(path, error)
            else:
                files.append({"path": os.fsdecode(path), "resolved": os.fsdecode(place.path), "bytes": written})
        out.flush()
        if args.json:
            report = {"image": str(look.image.reference), "files": files, "errors": look.errors}
            print(json.dumps(report), file=sys.stderr)
        return look.code
