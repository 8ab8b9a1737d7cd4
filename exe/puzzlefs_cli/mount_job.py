"""Serving what a mount command was asked for, in the foreground or in a daemon.

All that a mount needs is imported here, and only where it is served: memory that was filled before a fork is copied
page by page by whoever touches it first.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import puzzlefs.mount.guardian  # noqa: F401  otherwise it would be loaded when it is needed
from puzzlefs.image import open_image
from puzzlefs.mount.options import parse_options
from puzzlefs.mount.readiness import ReadinessFifo
from puzzlefs.mount.serve import can_supervise, mount
from puzzlefs.mount.successor import Successor, command_of
from puzzlefs.oci import ImageReference, ManifestOutline
from puzzlefs_cli.heap import keep_memory_together
from puzzlefs_cli.mount_log import log_in_background, log_to_stderr
from puzzlefs_cli.mount_task import MountTask

if TYPE_CHECKING:
    from puzzlefs_cli.daemon import Task

_TAKEOVER: Final = "puzzlefs_cli.takeover"
"""What a guardian has another version of this program run; its name is the interface between versions."""


def loaded() -> Callable[[Task], MountJob]:
    """What makes a daemon's task into its job, once this module is there."""
    gc.disable()  # until there is a mount: none of what is made for it is garbage
    keep_memory_together()
    return lambda task: MountJob(MountTask(*task))


def serve_in_foreground(task: MountTask) -> None:
    """Mount, and serve until it is unmounted.

    Raises:
        PuzzlefsError: as ``mount`` and ``open_image``; the FIFO was told.
    """
    keep_memory_together()
    log_to_stderr(task.log_level)
    job = MountJob(task)
    is_ready = False

    def ready() -> None:
        nonlocal is_ready
        is_ready = True

    try:
        job.serve(ready)
    except BaseException:
        if not is_ready:
            job.failed()
        raise


class MountJob:
    """One mount, to be served by this process or by those that it starts."""

    def __init__(self, task: MountTask) -> None:
        self._task: Final = task
        self._fifo: Final = None if task.fifo is None else ReadinessFifo(Path(task.fifo))

    def run(self, ready: Callable[[], None]) -> None:
        """Serve it as a daemon does; see ``Job``."""
        file = self._task.log_file
        log_in_background(self._task.log_level, None if file is None else Path(file))
        self.serve(ready)

    def failed(self) -> None:
        """Tell the FIFO that there will be no mount."""
        if self._fifo is not None:
            self._fifo.failed()

    def serve(self, ready: Callable[[], None]) -> None:
        """Serve it until it is unmounted; ``ready`` and then the FIFO are told when the mount point answers."""
        task = self._task
        successor = self._successor()

        def announce() -> None:
            ready()
            if self._fifo is not None:
                self._fifo.ready()
            # everything that is alive now stays so until the end: the collector need not look at it again
            gc.collect()
            gc.freeze()
            gc.enable()

        how: dict[str, Any] = {
            "options": parse_options(task.options),
            "on_ready": announce,
            "engine": task.engine,
            "supervise": successor is not None,
            "successor": successor,
        }
        reference = ImageReference(Path(task.layout), task.tag)
        outline = None if task.outline is None else ManifestOutline(*task.outline)
        with open_image(reference, digest=task.digest, verity=task.verity, outline=outline) as image:
            if task.is_writable:
                from puzzlefs.mount.writable import mount_writable  # noqa: PLC0415  it needs more than other mounts

                upper = None if task.upper is None else Path(task.upper)
                mount_writable(image, task.mountpoint, upper=upper, **how)
            else:
                mount(image, task.mountpoint, **how)

    def _successor(self) -> Successor | None:
        """The program that a supervised mount is served by after SIGHUP; ``None``: it is not supervised."""
        task = self._task
        is_supervised = task.supervise
        if is_supervised is None:
            is_supervised = not task.is_foreground and can_supervise(task.engine)
        if not is_supervised:
            return None
        settings = {"log_level": task.log_level, "log_file": task.log_file, "foreground": task.is_foreground}
        return Successor(command_of(_TAKEOVER, task.paths), settings)
