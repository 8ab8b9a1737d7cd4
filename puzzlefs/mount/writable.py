"""A mount that can be written to: an image, and an overlay over it that keeps what is written apart.

The image is mounted at ``MNT/ro`` and served as any other mount; once it answers, a thread of its own mounts the
overlay on ``MNT`` (the engine's thread must not: the kernel asks the image while it mounts). Ready is when both stand.

They end together, and nobody is left with half of it:

* ``unmount`` takes the overlay away, then the image;
* the overlay is unmounted by hand (``umount MNT``, a shutdown): the *watcher* sees that it is gone and takes the image
  away;
* the server is told to end, or fails: it takes the overlay away from its users, then the image.

The session with the kernel goes on until nobody uses the overlay any more, also where only a container sees it; then
the directories are cleared away (``place``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlefs.errors import InvalidArgumentError, MountError, PuzzlefsError, UnsupportedError
from puzzlefs.image import Image, open_image
from puzzlefs.mount.engine import checked_mountpoint
from puzzlefs.mount.mountinfo import OVERLAY_FS_TYPE, RO, Mount, all_mounts, has_left, new_mount_at, writable_mount
from puzzlefs.mount.options import MountOptions, parse_options
from puzzlefs.mount.overlay import Branch, mount_overlay, take_away
from puzzlefs.mount.place import Place, host_errors, made
from puzzlefs.mount.record import DIRECTORY
from puzzlefs.mount.serve import EngineName, mount
from puzzlefs.mount.signals import held_back
from puzzlefs.oci import ImageReference
from puzzlefs.signal_mask import ENDING

if TYPE_CHECKING:
    from puzzlefs.mount.successor import Successor

log = logging.getLogger("puzzlefs.mount")


def mount_writable(
    image: Image | ImageReference | str,
    mountpoint: str | Path,
    options: MountOptions | Sequence[str] = (),
    *,
    upper: str | Path | None = None,
    on_ready: Callable[[], None] | None = None,
    engine: EngineName = "auto",
    supervise: bool = False,
    successor: Successor | None = None,
) -> None:
    """Mount ``image`` at ``mountpoint`` so that it can be written to, and serve it until it is unmounted.

    As ``mount`` in everything else. Needs root. What is written goes to the directory ``upper``, which can be mounted
    over the same image again; without one it is thrown away when the mount ends. ``puzzlefs.commit`` makes a new image
    of it. What was in ``mountpoint`` before is hidden by the mount, and untouched.

    Args:
        image: an open image, which stays open; or the name of one, ``OCI_DIR:TAG``.
        mountpoint: an existing directory; directories are made in it until the mount ends.
        options: parsed options, or texts as they follow ``-o``.
        upper: the directory that keeps what is written; made if it is missing. A work directory is made beside it.
        on_ready: called once, when the mount point shows the image and can be written to; as in ``mount``.
        engine: who speaks to the kernel.
        supervise: as in ``mount``.
        successor: as in ``mount``.

    Raises:
        UnsupportedError: without root, or if the kernel has no overlayfs; as ``mount``.
        InvalidArgumentError: for an option that makes no sense here, or directories that lie in one another.
        MountError: if something is in the way at ``mountpoint``, ``upper`` is in use, or the host refuses to mount.
        PuzzlefsError: as ``mount``.
    """
    if not isinstance(options, MountOptions):
        options = parse_options(options)
    if options.auto_unmount:
        raise InvalidArgumentError(
            "mount option 'auto_unmount' does not go with a writable mount",
            hint="`puzzlefs umount` takes it away also after its server has died",
        )
    if os.geteuid() != 0:
        raise UnsupportedError(
            "a writable mount needs root",
            hint="without root, `puzzlefs shell` runs a program in an image that it can write to",
        )
    point = checked_mountpoint(Path(mountpoint))
    upper = None if upper is None else Path(upper).resolve()
    with contextlib.ExitStack() as stack:
        if not isinstance(image, Image):
            image = stack.enter_context(open_image(image))
        reference = ImageReference(image.reference.layout.absolute(), image.reference.tag)
        _check(point, reference, upper)
        stack.enter_context(held_back())
        place = stack.enter_context(made(point, reference, image.manifest_digest, upper))
        overlay = _Overlay(place, options, options.fsname or str(reference), on_ready)
        try:
            mount(
                image,
                point / RO,
                options,
                on_ready=overlay.begin,
                engine=engine,
                supervise=supervise,
                successor=successor,
            )
        except PuzzlefsError:
            if overlay.failure is None:
                raise
        finally:
            overlay.end()
        if overlay.failure is not None:
            raise overlay.failure


class _Overlay:
    """The overlay of one mount.

    Attributes:
        failure: why there is none, or why it was taken away again.
    """

    def __init__(self, place: Place, options: MountOptions, source: str, on_ready: Callable[[], None] | None) -> None:
        self.failure: BaseException | None = None
        self._place = place
        self._options = options
        self._source = source
        self._on_ready = on_ready
        self._image: Mount | None = None
        self._mount: Mount | None = None
        self._thread = threading.Thread(target=self._stand, name="overlay", daemon=True)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def begin(self) -> None:
        """Have the overlay mounted; the image must answer. Returns at once."""
        self._thread.start()

    def end(self) -> None:
        """Take the overlay and the image away, from users too, if they are still there."""
        os.write(self._wake_write, b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)
        _detach(self._mount)
        _detach(self._image)

    def _stand(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # they are for the thread that serves
        try:
            with host_errors(self._place.point):
                self._begin()
            if self._on_ready is not None:
                self._on_ready()
        except BaseException as error:  # noqa: BLE001  a caller's on_ready may fail in any way
            self.failure = error
            _detach(self._mount)
            _detach(self._image)  # and so the session ends
            return
        self._watch()

    def _begin(self) -> None:
        place = self._place
        self._image = new_mount_at(place.point / RO)
        root = os.open(place.point / RO, DIRECTORY)
        try:
            if place.is_fresh:
                place.adopt_root(root)
            mount_overlay(
                Branch(place.point, place.top),
                Branch(place.point / RO, root),
                Branch(place.upper_path, place.upper_fd),
                Branch(place.work_path, place.work_fd),
                self._options,
                self._source,
            )
        finally:
            os.close(root)
        self._mount = new_mount_at(place.point)
        if self._mount is None or self._mount.fs_type != OVERLAY_FS_TYPE:
            self._mount = None
            raise MountError(f"{place.point} was unmounted before it was ready")
        place.note_device(self._mount.device)
        log.info("%s can be written to; changes are in %s", place.point, place.upper_path)

    def _watch(self) -> None:
        """Wait until the overlay is no more in this namespace, and take the image away then."""
        with open("/proc/self/mountinfo", "rb") as table:
            poll = select.poll()
            poll.register(table, select.POLLERR | select.POLLPRI)  # proc(5): how a change of the mounts is told
            poll.register(self._wake_read, select.POLLIN)
            while _is_there(self._mount):
                if any(fd == self._wake_read for fd, _ in poll.poll()):
                    return
        _detach(self._image)


def _check(point: Path, image: ImageReference, upper: Path | None) -> None:
    mounts = all_mounts()
    if writable_mount(mounts, point) is not None:
        raise MountError(
            f"{point} is a writable mount already", hint=f"take that one away first: puzzlefs umount {point}"
        )
    if Path(os.path.realpath(image.layout)).is_relative_to(point):
        raise InvalidArgumentError(
            f"{image.layout} lies in {point}, and a writable mount would hide it", hint="mount somewhere else"
        )
    if upper is None:
        return
    if upper.is_relative_to(point) or point.is_relative_to(upper):
        raise InvalidArgumentError(
            f"the upper directory {upper} and the mount point {point} lie in one another",
            hint="give directories that are beside each other",
        )
    for other in mounts:
        if other.fs_type == OVERLAY_FS_TYPE and _is_upper_of(upper, other):
            raise MountError(
                f"{upper} is in use: it is the upper directory of the mount at {other.point}",
                hint="unmount that one first",
            )


def _is_upper_of(upper: Path, overlay: Mount) -> bool:
    path = overlay.super_option(b"upperdir")
    if path is None:
        return False
    try:
        return path.startswith(b"/") and upper.samefile(os.fsdecode(path))
    except OSError:
        return False


def _is_there(mount: Mount | None) -> bool:
    """Whether a mount of ours is anywhere in this namespace."""
    if mount is None or has_left(mount):
        return False
    return any(other.mount_id == mount.mount_id and other.device == mount.device for other in all_mounts())


def _detach(mount: Mount | None) -> None:
    """Take a mount of ours away from its users, if it is still there."""
    if mount is not None:
        try:
            take_away(mount)
        except MountError as error:
            log.warning("%s", error)
