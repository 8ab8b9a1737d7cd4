"""What a guardian executes to have a mount served by this version of the program; nobody else calls it.

``main`` is the interface between versions: guardians of any other version find it here and give it one descriptor.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puzzlefs.mount.takeover import take_over
from puzzlefs_cli.heap import keep_memory_together
from puzzlefs_cli.mount_log import log_in_background, log_to_stderr


def main(state_fd: int) -> int:
    """Serve what the file ``state_fd`` says; the exit code."""
    gc.disable()
    keep_memory_together()
    with contextlib.suppress(OSError):
        os.chdir("/")
    return take_over(state_fd, _begin)


def _begin(settings: Mapping[str, Any]) -> None:
    level, file = settings["log_level"], settings["log_file"]
    if settings["foreground"]:
        os.dup2(settings["stderr_fd"], 2, inheritable=False)
        log_to_stderr(level)
    else:
        log_in_background(level, None if file is None else Path(file))
