"""Where a mount's log goes: stderr in the foreground; syslog, a file, or both in the background.

One record is one line, whatever a file name holds: control characters are escaped. The system log must never hold up
the file system that it may itself live on, so a message that its daemon does not take at once is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlefs.errors import InvalidArgumentError

if TYPE_CHECKING:
    import socket

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
"""The words of ``--log-level`` and ``PUZZLEFS_LOG``."""

LEVEL_VARIABLE: Final = "PUZZLEFS_LOG"
SYSLOG_SOCKET: Final = Path("/dev/log")

_DAEMON: Final = 3 << 3  # syslog(3): LOG_DAEMON
_SEVERITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def level_from(word: str | None) -> int:
    """The level that ``--log-level`` names, else the one that the environment names, else *info*.

    Raises:
        InvalidArgumentError: if the environment names none that exists.
    """
    if word is None:
        word = os.environ.get(LEVEL_VARIABLE) or "info"
    level = LEVELS.get(word.lower())
    if level is None:
        words = ", ".join(LEVELS)
        raise InvalidArgumentError(f"{LEVEL_VARIABLE}={word} is not a log level", hint=f"use one of {words}")
    return level


def log_to_stderr(level: int) -> None:
    """Send the log to stderr."""
    _install([_formatted(logging.StreamHandler(), "%(asctime)s %(levelname)s %(message)s")], level)


def log_in_background(level: int, file: Path | None) -> None:
    """Send the log to syslog, where there is one, and to ``file``, if one is given.

    Raises:
        OSError: if the file cannot be opened.
    """
    handlers: list[logging.Handler] = []
    if file is not None:
        to_file = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
        handlers.append(_formatted(to_file, "%(asctime)s puzzlefs[%(process)d]: %(levelname)s %(message)s"))
    if SYSLOG_SOCKET.exists():
        handlers.append(SyslogHandler(SYSLOG_SOCKET))
    _install(handlers, level)


class SyslogHandler(logging.Handler):
    """Sends records to the system log's datagram socket, in the form of syslog(3): ``<PRI>date puzzlefs[PID]:
    text``."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._socket: socket.socket | None = None
        self.setFormatter(_OneLine("%(message)s"))
        with contextlib.suppress(OSError):
            self._socket = self._connected()  # now, because a server that has confined itself cannot

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, or drop it: no error of logging may reach who logs."""
        try:
            now = time.localtime(record.created)
            date = f"{_MONTHS[now.tm_mon - 1]} {now.tm_mday:2} {time.strftime('%H:%M:%S', now)}"
            text = self.format(record).replace("\n", "\\n")
            line = f"<{_DAEMON | _severity(record.levelno)}>{date} puzzlefs[{os.getpid()}]: {text}"
            self._send(line.encode("utf-8", "backslashreplace"))
        except Exception:  # noqa: BLE001
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._disconnect()
        super().close()

    def _send(self, data: bytes) -> None:
        for _ in range(2):  # the second time with a new socket: the system log may have been restarted
            try:
                if self._socket is None:
                    self._socket = self._connected()
                self._socket.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._disconnect()
            else:
                return

    def _connected(self) -> socket.socket:
        import socket  # noqa: PLC0415  not on the way to a mount where there is no system log

        connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        return connection

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _OneLine(logging.Formatter):
    """Escapes control characters of the message; a traceback below it keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is logging's
        return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", super().formatMessage(record))


def _formatted(handler: logging.Handler, style: str) -> logging.Handler:
    handler.setFormatter(_OneLine(style))
    return handler


def _install(handlers: list[logging.Handler], level: int) -> None:
    root = logging.getLogger()
    for handler in handlers or [logging.NullHandler()]:
        root.addHandler(handler)
    root.setLevel(level)


def _severity(level: int) -> int:
    return next((severity for least, severity in _SEVERITIES if level >= least), _DEBUG)
