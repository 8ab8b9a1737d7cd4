"""The entry point, and the one place where errors become a line on stderr and an exit code.

A boot waits for ``mount``, so the process that will serve is started first of all: it loads what a mount needs while
this one reads the command line. Until then nothing is imported that takes long.
"""

from __future__ import annotations

import errno
import os
import sys

from puzzlefs_cli.mount_daemon import daemon_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from puzzlefs_cli.daemon import Daemon

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: Sequence[str] | None = None, daemon: Daemon | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the command line, without the name of the command (default: that of this process).
        daemon: what ``daemon_for`` has started for it.
    """
    from puzzlefs_cli.command_line import make_parser, parse  # noqa: PLC0415
    from puzzlefs_cli.exit_codes import ExitCode, exit_code  # noqa: PLC0415

    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could stand here
        from puzzlefs_cli.completion import complete  # noqa: PLC0415

        complete(make_parser())
    args = parse(sys.argv[1:] if argv is None else argv)
    args.daemon = daemon
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: no second error at exit
        return ExitCode.IO
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the one place where every error ends
        if args.debug:
            import traceback  # noqa: PLC0415

            traceback.print_exc()
        print(f"puzzlefs: {describe(error)}", file=sys.stderr)
        return exit_code(error)
    return code


def describe(error: BaseException) -> str:
    """An error as one line: what, which object, what to do next."""
    from puzzlefs.errors import PuzzlefsError  # noqa: PLC0415

    if isinstance(error, PuzzlefsError):
        text = str(error)
    elif isinstance(error, KeyboardInterrupt):
        text = "interrupted; nothing that was there before has changed"
    elif isinstance(error, OSError):
        is_output = error.filename is None and error.errno in _NO_ROOM  # the library says what it could not write
        text = f"the output cannot be written: {error.strerror}" if is_output else str(error)
    else:
        text = (
            f"a defect in puzzlefs: {type(error).__name__}: {error}; run it again with --debug and report what it shows"
        )
    return " ".join(text.splitlines())


def run() -> None:
    """The installed command: ``main``, with its result as the exit status."""
    leave(main(daemon=daemon_for(sys.argv[1:])))


def leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which nobody needs any more.

    It would touch all that the process has, and behind a mount that is served in the background, each page of that is
    shared with the server and would be copied first.
    """
    import contextlib  # noqa: PLC0415  as everything here, after the daemon was started

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, full, or closed: ``main`` has said so
            stream.flush()
    os._exit(code)
