"""Telling a script through a FIFO that the mount is ready (``s``) or has failed (``f``).

A FIFO has a reader or it has not, and opening one for writing waits for a reader. So that nobody's absence stops the
file system, ``s`` is written by a daemon thread that waits as long as the process lives, and ``f`` by the caller, who
has nothing left to serve, but for a bounded time. Each notifier says one thing, once.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from pathlib import Path
from typing import Final

from puzzlefs.errors import InvalidArgumentError, NotFoundError

READY: Final = b"s"
FAILED: Final = b"f"
"""The two bytes that scripts compare with; they are an interface and must not change."""

FAILURE_WAIT: Final = 5.0
"""Seconds that a failure waits for somebody to read it."""

_POLL_INTERVAL: Final = 0.02


class ReadinessFifo:
    """A FIFO through which the end of mounting is told."""

    def __init__(self, path: Path) -> None:
        """A notifier for ``path``, which is resolved now, so that a later change of directory does not matter.

        Raises:
            NotFoundError: if there is nothing at ``path``.
            InvalidArgumentError: if it is not a FIFO.
        """
        self.path = path.absolute()
        try:
            mode = self.path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"{path} does not exist", hint=f"make it first: mkfifo {path}") from error
        except OSError as error:
            raise InvalidArgumentError(f"{path} cannot be used as a FIFO: {error.strerror}") from error
        if not stat.S_ISFIFO(mode):
            raise InvalidArgumentError(f"{path} is not a FIFO", hint="make one with mkfifo")

    def ready(self) -> None:
        """Say that the mount is ready, as soon as somebody reads; returns at once."""
        threading.Thread(target=self._write_when_read, name="readiness", daemon=True).start()

    def failed(self, timeout: float = FAILURE_WAIT) -> bool:
        """Say that mounting failed; wait at most ``timeout`` seconds for a reader. Returns whether there was one."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.ENXIO or time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_INTERVAL)
                continue
            return _write(fd, FAILED)

    def _write_when_read(self) -> None:
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return  # removed meanwhile: nobody can be waiting for it any more
        _write(fd, READY)


def _write(fd: int, byte: bytes) -> bool:
    try:
        os.write(fd, byte)
    except OSError:
        return False  # the reader is gone
    finally:
        os.close(fd)
    return True
