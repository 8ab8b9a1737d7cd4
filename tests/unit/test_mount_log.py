"""Where a mount's log goes, and that it is one line a record whatever happens."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from puzzlefs.errors import InvalidArgumentError
from puzzlefs_cli.mount_log import SyslogHandler, level_from

pytestmark = pytest.mark.unit


@pytest.fixture
def system_log(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "log"))
        listener.settimeout(5)
        yield listener


@pytest.fixture
def logger(tmp_path: Path, system_log: socket.socket) -> Iterator[logging.Logger]:
    handler = SyslogHandler(tmp_path / "log")
    made = logging.Logger("test")
    made.addHandler(handler)
    yield made
    handler.close()


@pytest.mark.parametrize(
    ("level", "severity"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_syslog_format(logger: logging.Logger, system_log: socket.socket, level: int, severity: int) -> None:
    logger.log(level, "Mounting %s", "/mnt")
    message = system_log.recv(1000).decode()
    date = r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ 123]\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf"<{24 + severity}>{date} puzzlefs\[{os.getpid()}\]: Mounting /mnt", message)


def test_one_line(logger: logging.Logger, system_log: socket.socket) -> None:
    logger.error("a\nb\x1b[0m\x00 %s", "\udcff")
    try:
        raise ValueError("x\ny")
    except ValueError:
        logger.exception("with a traceback")
    first, second = system_log.recv(1000), system_log.recv(10_000)
    assert first.endswith(rb"a\x0ab\x1b[0m\x00 \udcff")
    assert b"\n" not in second
    assert b"ValueError" in second


def test_a_full_system_log_drops_messages(logger: logging.Logger, system_log: socket.socket) -> None:
    for number in range(10_000):  # more than any queue takes; this would block for ever
        logger.info("%d", number)
    assert system_log.recv(100).endswith(b": 0")


def test_a_restarted_system_log(logger: logging.Logger, system_log: socket.socket, tmp_path: Path) -> None:
    logger.info("before")
    system_log.close()
    (tmp_path / "log").unlink()
    logger.info("lost")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "log"))
        again.settimeout(5)
        logger.info("after")
        assert again.recv(100).endswith(b": after")


@pytest.mark.parametrize(
    ("word", "variable", "level"),
    [
        (None, None, logging.INFO),
        (None, "", logging.INFO),
        (None, "debug", logging.DEBUG),
        (None, "WARNING", logging.WARNING),
        ("error", "debug", logging.ERROR),
        ("error", "nonsense", logging.ERROR),
    ],
)
def test_levels(monkeypatch: pytest.MonkeyPatch, word: str | None, variable: str | None, level: int) -> None:
    if variable is None:
        monkeypatch.delenv("PUZZLEFS_LOG", raising=False)
    else:
        monkeypatch.setenv("PUZZLEFS_LOG", variable)
    assert level_from(word) == level


def test_a_level_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUZZLEFS_LOG", "loud")
    with pytest.raises(InvalidArgumentError, match="PUZZLEFS_LOG=loud"):
        level_from(None)


def test_the_log_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    program = """
import logging, pathlib, sys
from puzzlefs_cli.mount_log import log_in_background
log_in_background(logging.INFO, pathlib.Path(sys.argv[1]))
log = logging.getLogger("puzzlefs.mount")
log.info("a\\nb \\udcff")
log.debug("not this")
"""
    # in a process of its own, because the log of this one belongs to the test runner
    process = subprocess.Popen([sys.executable, "-c", program, file])
    assert process.wait(timeout=30) == 0
    (line,) = file.read_text().splitlines()
    assert re.fullmatch(rf"[-\d]+ [:,\d]+ puzzlefs\[{process.pid}\]: INFO a\\x0ab \\udcff", line)
