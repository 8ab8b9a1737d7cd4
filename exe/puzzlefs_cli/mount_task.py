"""What a mount command was asked for, as one process tells it to another."""

from __future__ import annotations

from typing import Literal, NamedTuple


class MountTask(NamedTuple):
    """A mount to be made, in plain values; paths are absolute, so that they stay right in another directory.

    Attributes:
        layout: the directory of the image.
        tag: its tag.
        mountpoint: where it is to be mounted.
        options: texts as they follow ``-o``.
        digest: the one that the image must have, if any.
        verity: who checks what lies below it.
        engine: who speaks to the kernel.
        is_writable: whether there is an overlay on top.
        upper: where that keeps what is written, if that is to stay.
        supervise: whether the mount outlives its server; ``None``: where it can.
        is_foreground: whether the command itself serves.
        fifo: who is told that it is ready, if anybody.
        paths: ``sys.path`` of the command.
        log_level: how much to log, as ``logging`` counts.
        log_file: where to, in the background, besides the system log.
        outline: what is known about the image already, a ``ManifestOutline``.
    """

    layout: str
    tag: str
    mountpoint: str
    options: tuple[str, ...]
    digest: str | None
    verity: Literal["auto", "kernel", "user"]
    engine: Literal["auto", "kernel", "pyfuse3"]
    is_writable: bool
    upper: str | None
    supervise: bool | None
    is_foreground: bool
    fifo: str | None
    paths: tuple[str, ...]
    log_level: int
    log_file: str | None
    outline: tuple[bytes, bytes, int] | None = None
