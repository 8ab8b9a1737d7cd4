"""``mount.puzzlefs``: what mount(8), and so ``/etc/fstab``, calls for the file system type ``puzzlefs``.

mount(8), "EXTERNAL HELPERS"::

    /sbin/mount.type spec dir [-sfnv] [-N namespace] [-o options] [-t type.subtype]

mount(8) keeps ``dev`` and ``suid`` to itself because they are its defaults, whereas FUSE's are the opposite: so they
are the defaults here, as they are in libfuse's own helper.

Two words are for this helper: ``writable``, and ``persist=DIR`` (with ``\\,`` for a comma in it), which say what the
options of these names of ``puzzlefs mount`` say. ``rw`` alone, which mount(8) always adds, does not make a mount
writable.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Sequence

from puzzlefs.mount.options import escape, split_words
from puzzlefs_cli.exit_codes import ExitCode
from puzzlefs_cli.main import leave, main, open_missing_streams

_USAGE = "usage: mount.puzzlefs IMAGE MOUNTPOINT [-sfnv] [-o OPTIONS]"
_DEFAULTS = "dev,suid"


def translate(words: Sequence[str]) -> list[str] | None:
    """The command line of ``puzzlefs`` that a call by mount(8) means; ``None`` for a rehearsal (``mount --fake``).

    Raises:
        getopt.GetoptError: if it is not such a call.
    """
    options, names = getopt.gnu_getopt(list(words), "sfnvN:t:o:")
    if len(names) != 2:
        raise getopt.GetoptError("an image and a mount point are expected")
    if any(letter == "-f" for letter, _ in options):
        return None
    given = [value for letter, value in options if letter == "-o" and value]
    writable: list[str] = []
    others: list[str] = []
    for word in (word for text in given for word in split_words(text)):
        name, separator, value = word.partition("=")
        if word == "writable":
            writable.append("--writable")
        elif name == "persist" and separator:
            writable.append(f"--persist={value}")
        else:
            others.append(escape(word))
    return ["mount", *writable, "-o", ",".join([_DEFAULTS, *others]), "--", *names]


def run() -> None:
    """The installed command."""
    open_missing_streams()
    try:
        command = translate(sys.argv[1:])
    except getopt.GetoptError as error:
        print(f"mount.puzzlefs: {error}; {_USAGE}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    leave(ExitCode.OK if command is None else main(command))
