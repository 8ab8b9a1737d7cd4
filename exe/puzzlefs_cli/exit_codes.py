"""The exit codes, which scripts rely on: a change of meaning breaks them.

====  ==============================================================================================
code  meaning
====  ==============================================================================================
0     done
1     ``diff``: they differ
2     usage: the command line, or an argument's value, makes no sense
3     not found: a layout, tag, blob or path is missing
4     bad image: it does not follow the format, or would lead outside of a directory
5     integrity: data is not what its digest says, or the image is not the one that was named
6     not supported here: this kernel, file system or user cannot do what was asked
7     input/output: the host's files cannot be read or written, the source changed, mounting failed
70    a defect in puzzlefs itself (``EX_SOFTWARE``); ``--debug`` shows where
130   interrupted by Ctrl-C
====  ==============================================================================================
"""

from __future__ import annotations

import enum

from puzzlefs.errors import (
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    MountError,
    NotFoundError,
    PuzzlefsError,
    SourceError,
    StorageError,
    UnsafePathError,
    UnsupportedError,
    VerityNotEnabledError,
    VerityUnavailableError,
)


class ExitCode(enum.IntEnum):
    """What the exit status says."""

    OK = 0
    DIFFERENT = 1
    USAGE = 2
    NOT_FOUND = 3
    BAD_IMAGE = 4
    INTEGRITY = 5
    NOT_SUPPORTED = 6
    IO = 7
    DEFECT = 70
    INTERRUPTED = 130


_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (InvalidArgumentError, ExitCode.USAGE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (FormatError, ExitCode.BAD_IMAGE),
    (UnsafePathError, ExitCode.BAD_IMAGE),
    (IntegrityError, ExitCode.INTEGRITY),
    (VerityUnavailableError, ExitCode.NOT_SUPPORTED),
    (VerityNotEnabledError, ExitCode.NOT_SUPPORTED),
    (UnsupportedError, ExitCode.NOT_SUPPORTED),
    (SourceError, ExitCode.IO),
    (StorageError, ExitCode.IO),
    (MountError, ExitCode.IO),
    (FileNotFoundError, ExitCode.NOT_FOUND),
    (OSError, ExitCode.IO),
    (PuzzlefsError, ExitCode.IO),
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
)


def exit_code(error: BaseException) -> ExitCode:
    """The exit code that an error means; ``DEFECT`` for one that the library does not raise on purpose."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return ExitCode.DEFECT
