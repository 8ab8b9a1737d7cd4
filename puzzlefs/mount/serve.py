"""Mounting an image: the public face of this room."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from puzzlefs.errors import InvalidArgumentError, UnsupportedError
from puzzlefs.image import Image, open_image
from puzzlefs.mount.control import controlled
from puzzlefs.mount.counters import RequestCounters
from puzzlefs.mount.engine import Engine, Mounting, checked_mountpoint
from puzzlefs.mount.kernel_engine import KernelEngine
from puzzlefs.mount.kernel_mount import is_supported
from puzzlefs.mount.lease import leased
from puzzlefs.mount.operations import Operations
from puzzlefs.mount.options import MountOptions, parse_options
from puzzlefs.oci import ImageReference
from puzzlefs.signal_mask import blocked

if TYPE_CHECKING:
    from puzzlefs.mount.successor import Successor

log = logging.getLogger("puzzlefs.mount")

EngineName = Literal["auto", "kernel", "pyfuse3"]
"""Who speaks to the kernel: this program itself, libfuse, or (auto) the first of them that can do it here."""

ENGINES: Final[tuple[EngineName, ...]] = ("auto", "kernel", "pyfuse3")


def mount(
    image: Image | ImageReference | str,
    mountpoint: str | Path,
    options: MountOptions | Sequence[str] = (),
    *,
    on_ready: Callable[[], None] | None = None,
    engine: EngineName = "auto",
    hides_xattr: Callable[[bytes], bool] | None = None,
    supervise: bool = False,
    successor: Successor | None = None,
) -> None:
    """Mount ``image`` at ``mountpoint`` and serve it until it is unmounted.

    Blocks. In the main thread SIGINT, SIGTERM and SIGHUP unmount and make it return; in any other thread only an
    unmount does. The mount is read-only, its content never changes, and no byte is served unverified. When it returns
    or raises, nothing of it is left mounted. A process can serve one mount through pyfuse3 at a time.

    Args:
        image: an open image, which stays open; or the name of one, ``OCI_DIR:TAG``.
        mountpoint: an existing directory.
        options: parsed options, or texts as they follow ``-o``.
        on_ready: called once, when the mount point has answered. It should not block; if it raises, the image is
            unmounted and the exception comes out of ``mount``.
        engine: who speaks to the kernel.
        hides_xattr: whether an extended attribute of this name is left out, for whoever lies on top of the mount and
            could not copy it, or would take it for its own.
        supervise: whether other processes serve, forked from this one, which replaces one that dies (``guardian``).
            This process should have one thread then. SIGHUP does not end the mount, but starts another server.
        successor: the program that SIGHUP starts; without one it is a fork of this process again.

    Raises:
        NotFoundError: if the mount point does not exist.
        PuzzlefsError: as ``open_image``, where ``image`` is a name.
        InvalidArgumentError: for an option that is not known, an unknown engine, a mount point that is no directory, or
            ``supervise`` with pyfuse3.
        MountError: if the host refuses to mount, or the session with the kernel breaks.
        UnsupportedError: if this machine or this user lacks what the engine needs (``/dev/fuse``, ``fusermount3``,
            libfuse), or this process serves a mount through pyfuse3 already.
    """
    if not isinstance(options, MountOptions):
        options = parse_options(options)
    server = _supervised(engine, successor) if supervise else _engine(engine)
    point = checked_mountpoint(Path(mountpoint))
    with contextlib.ExitStack() as stack:
        if not isinstance(image, Image):
            image = stack.enter_context(open_image(image))
        reference = image.reference
        fsname = f"{reference.layout.absolute()}:{reference.tag}"
        stack.enter_context(leased(image))
        log.info("Mounting %s", point)
        log.debug("%s with %s, %s", fsname, type(server).__name__, options)
        operations, requests = Operations(image, hides_xattr), RequestCounters()
        ready = on_ready or _nothing
        if not supervise:  # else the servers do that
            name = "kernel" if isinstance(server, KernelEngine) else "pyfuse3"
            ready = stack.enter_context(controlled(point, name, operations, requests, ready))
        server.serve(Mounting(operations, point, options, fsname, ready, requests))
        log.info("Unmounted %s", point)


def _engine(name: str) -> Engine:
    if name not in ENGINES:
        raise InvalidArgumentError(f"there is no engine {name!r}", hint=f"there are: {', '.join(ENGINES)}")
    if name == "kernel" or (name == "auto" and is_supported()):
        return KernelEngine()
    try:
        # here and not above, because it costs 130 ms that nobody should pay for `import puzzlefs`; and a Ctrl-C in the
        # middle of an import can be lost
        with blocked():
            from puzzlefs.mount.pyfuse3_engine import Pyfuse3Engine  # noqa: PLC0415
    except ImportError as error:
        raise UnsupportedError(
            f"pyfuse3 cannot be loaded: {error}", hint="install libfuse3 (Debian: libfuse3-3 and fuse3)"
        ) from error
    return Pyfuse3Engine()


def can_supervise(engine: EngineName) -> bool:
    """Whether ``mount`` with this engine can be supervised here."""
    return engine != "pyfuse3" and is_supported()


def _supervised(engine: EngineName, successor: Successor | None) -> Engine:
    if engine not in ENGINES or not can_supervise(engine):
        _engine(engine)
        raise InvalidArgumentError(
            "libfuse cannot take over a mount from a server that died, so --supervise needs the other engine",
            hint="use --engine kernel, or leave --supervise out",
        )
    from puzzlefs.mount.guardian import SupervisedEngine  # noqa: PLC0415  whoever is not supervised does not pay for it

    return SupervisedEngine(successor)


def _nothing() -> None:
    pass
