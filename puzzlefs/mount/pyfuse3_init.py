"""Making pyfuse3 mount: options as bytes, errors as errors, a queue that does not block.

libfuse says what is wrong on stderr and nowhere else, pyfuse3 insists on ASCII in options and on a blocking queue.
Each is put right here, once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pyfuse3

from puzzlefs.errors import MountError

log = logging.getLogger("puzzlefs.mount")

_FUSE_DEVICE: Final = os.makedev(10, 229)  # Documentation/admin-guide/devices.txt


class _Word(str):
    """A mount option that libfuse gets with the bytes that the path has: pyfuse3 would insist on ASCII."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return os.fsencode(str(self))


def initialise(handlers: pyfuse3.Operations, mountpoint: str, words: Sequence[str]) -> None:
    """Mount: ``pyfuse3.init`` with everything around it that it lacks.

    Args:
        handlers: the request handlers.
        mountpoint: where, absolute.
        words: mount options as libfuse takes them, values escaped.

    Raises:
        MountError: if it fails, with what libfuse or fusermount3 said.
    """
    before = _queue_descriptors()
    with _captured_stderr() as said:
        try:
            pyfuse3.init(handlers, mountpoint, {_Word(word) for word in words})
        except RuntimeError as error:
            raise MountError(f"{mountpoint} cannot be mounted: {_reason(said()) or error}") from error
    for fd in _queue_descriptors() - before:
        os.set_blocking(fd, False)
    if text := _reason(said()):
        log.warning("%s", text)


def _queue_descriptors() -> set[int]:
    """The descriptors of this process that are queues of FUSE requests; pyfuse3 does not say which one is its own."""
    found: set[int] = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
            if os.fstat(int(name)).st_rdev == _FUSE_DEVICE:
                found.add(int(name))
    return found


def _reason(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Catch what libfuse and fusermount3 write to descriptor 2: it is the only place where they say what is wrong."""
    if sys.stderr is not None:
        sys.stderr.flush()
    memory = os.memfd_create("libfuse-messages")
    try:
        saved = os.dup(2)
    except OSError:
        saved = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # whoever closed it does not want to hear from us
    try:
        os.dup2(memory, 2)
        text = ""

        def said() -> str:
            nonlocal text
            if not restored:
                text = os.pread(memory, 1 << 16, 0).decode("utf-8", "replace")
            return text

        restored = False
        try:
            yield said
        finally:
            said()
            restored = True
            os.dup2(saved, 2)
    finally:
        os.close(saved)
        os.close(memory)
