"""The command line as a whole: one parser, to which each verb adds its own.

Starting must be quick, since a boot waits for ``mount``: the module of a verb is imported when it is the one that was
typed (or all are to be listed), and imports what it needs of the library when it runs.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Final

from puzzlefs import __version__
from puzzlefs_cli.arguments import HelpFormatter

_VERBS: Final = {
    "build": "build",
    "mount": "mount",
    "umount": "umount",
    "status": "status",
    "verify": "verify",
    "restart": "restart",
    "commit": "commit",
    "shell": "shell",
    "extract": "extract",
    "history": "history",
    "inspect": "inspect_image",
    "ls": "ls",
    "stat": "stat_",
    "tree": "tree",
    "find": "find",
    "cat": "cat",
    "du": "du",
    "stats": "stats",
    "diff": "diff",
    "tags": "tags",
    "tag": "tag",
    "untag": "untag",
    "copy": "copy_",
    "canonicalize": "canonicalize",
    "convert": "convert",
    "export": "export",
    "import": "import_",
    "fsck": "fsck",
    "gc": "gc_",
    "enable-fs-verity": "enable_verity",
    "completion": "completion",
}
"""The verbs in the order of the help, and the modules that run them."""

_RUNS_A_COMMAND: Final = "shell"
"""The verb behind whose image everything belongs to a command, options too."""

_EPILOG = """\
exit codes:
  0  done                      5  integrity: data is not what its digest says
  2  usage                     6  not supported by this kernel, file system or user
  3  not found                 7  input/output: reading, writing or mounting failed
  4  bad image                70  a defect in puzzlefs itself

example:
  puzzlefs build rootfs images:debian && puzzlefs mount images:debian /mnt
"""


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line, or of the one verb that is named."""
    parser = argparse.ArgumentParser(
        prog="puzzlefs",
        description="Build, mount and look into container images that share chunks across versions.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"puzzlefs {__version__}")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    # the name is said again, because argparse would lay out a usage message to find it
    subparsers = parser.add_subparsers(prog=parser.prog, title="commands", metavar="COMMAND", required=True)
    for verb, module in _VERBS.items():
        if only in (None, verb):
            importlib.import_module(f"puzzlefs_cli.{module}").add_parser(subparsers)
    return parser if only is None else subparsers.choices[only]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What the words of the command line say; options may stand anywhere behind the verb."""
    if next((word for word in arguments if word != "--debug"), None) == _RUNS_A_COMMAND:
        return _parse_with_command(arguments)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    if arguments and arguments[0] in _VERBS:
        args = make_parser(arguments[0]).parse_intermixed_args(arguments[1:])
    else:
        args = make_parser().parse_args(arguments)
    args.debug = debug
    return args


def _parse_with_command(arguments: Sequence[str]) -> argparse.Namespace:
    first = list(arguments).index(_RUNS_A_COMMAND)
    args = make_parser(_RUNS_A_COMMAND).parse_args(arguments[first + 1 :])
    args.debug = args.debug or first > 0
    return args
