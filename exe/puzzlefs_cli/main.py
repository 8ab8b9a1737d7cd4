"""The entry point: one parser, one place where errors become a line on stderr and an exit code.

Starting must be quick, since a boot waits for ``mount``: the module of a verb is imported when it is the one that was
typed (or all are to be listed), and imports what it needs of the library when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from puzzlefs import __version__
from puzzlefs.errors import PuzzlefsError
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.exit_codes import ExitCode, exit_code

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

_NO_OUTPUT: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF)

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could stand here
        from puzzlefs_cli.completion import complete  # noqa: PLC0415

        complete(make_parser())
    debug = False
    try:
        try:
            args = parse(sys.argv[1:] if argv is None else argv)
        except SystemExit:
            sys.stdout.flush()  # help is output, too
            raise
        debug = args.debug
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: no second error at exit
        return ExitCode.IO
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the one place where every error ends
        if debug:
            import traceback  # noqa: PLC0415

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
        text = _of_the_host(error)
    else:
        text = (
            f"a defect in puzzlefs: {type(error).__name__}: {error}; run it again with --debug and report what it shows"
        )
    return " ".join(text.splitlines())


def _of_the_host(error: OSError) -> str:
    """An error that the library has not made its own."""
    said = error.strerror or str(error)
    if error.filename is not None:
        return f"{error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)}: {said}"
    if error.errno in _NO_OUTPUT:  # the library says what it could not write
        return f"the output cannot be written: {said}"
    if error.errno == errno.EMFILE:
        return "too many files are open; raise the limit (ulimit -n)"
    if error.errno == errno.ENOENT:  # os.getcwd: all other names are in the error
        return "the working directory does not exist any more; change to another one"
    return said


def run() -> None:
    """The installed command: ``main``, with its result as the exit status."""
    open_missing_streams()
    leave(main())


def open_missing_streams() -> None:
    """Put something in the place of each standard stream that was closed when the program began.

    Files that are opened later would get its number, and what is printed; and Python prints errors to stdout where
    there is no stderr. To read what is put there, or to print to it, fails, as in other programs; messages are lost.
    """
    for number, name, flags in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, flags)  # the lowest number that is free
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            os.set_inheritable(number, True)
            stream = os.fdopen(number, "w" if number else "r", encoding="utf-8", errors="replace", closefd=False)
            setattr(sys, name, stream)


def leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which nobody needs any more.

    It would touch all that the process has, and behind a mount that is served in the background, each page of that is
    shared with the server and would be copied first.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, full, or closed: ``main`` has said so
            stream.flush()
    os._exit(code)
