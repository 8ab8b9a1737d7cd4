"""The entry point: one parser, one place where errors become a line on stderr and an exit code.

Modules of verbs are imported for their parsers, which is cheap; each imports what it needs of the library when it runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from puzzlefs import __version__
from puzzlefs.errors import PuzzlefsError
from puzzlefs_cli import build, enable_verity, extract, mount, umount
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.exit_codes import ExitCode, exit_code

_VERBS = (build, mount, umount, extract, enable_verity)

_EPILOG = """\
exit codes:
  0  done                      5  integrity: data is not what its digest says
  2  usage                     6  not supported by this kernel, file system or user
  3  not found                 7  input/output: reading, writing or mounting failed
  4  bad image                70  a defect in puzzlefs itself

example:
  puzzlefs build rootfs images:debian && puzzlefs mount images:debian /mnt
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="puzzlefs",
        description="Build, mount and look into container images that share chunks across versions.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"puzzlefs {__version__}")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for verb in _VERBS:
        verb.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments  # wherever it stands, also behind the verb
    args = make_parser().parse_args([word for word in arguments if word != "--debug"])
    args.debug = debug
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: no second error at exit
        return ExitCode.IO
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the one place where every error ends
        if debug:
            traceback.print_exc()
        print(f"puzzlefs: {describe(error)}", file=sys.stderr)
        return exit_code(error)
    return code


def describe(error: BaseException) -> str:
    """An error as one line: what, which object, what to do next."""
    if isinstance(error, PuzzlefsError):
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted; nothing that was there before has changed"
    elif isinstance(error, OSError):
        text = str(error)
    else:
        text = (
            f"a defect in puzzlefs: {type(error).__name__}: {error}; run it again with --debug and report what it shows"
        )
    return " ".join(text.splitlines())


def run() -> None:
    """The installed command: ``main``, with its result as the exit status."""
    sys.exit(main())
