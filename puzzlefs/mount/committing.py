"""Making a new image of what was written to a writable mount.

The mount goes on, over the manifest that it has: what is committed is the upper directory as it is then. Reading what
is below the overlay needs a view in which the overlay is not: a thread takes mounts of its own, unmounts the overlay
there, and opens the mount point. The descriptor outlives the thread and its mounts; nobody else notices.

The record that is found there (``place``) must be that of the overlay that is mounted, and the upper directory the one
that it was mounted with.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlefs.blobs.host import sync_file_system
from puzzlefs.errors import MountError, NotFoundError, PuzzlefsError, SourceError, UnsupportedError
from puzzlefs.image import open_image
from puzzlefs.mount import namespace
from puzzlefs.mount.mountinfo import Mount, all_mounts, on_top, writable_mount
from puzzlefs.mount.place import UPPER
from puzzlefs.mount.record import DIRECTORY, Record, read_record
from puzzlefs.oci import make_reference

if TYPE_CHECKING:
    from puzzlefs.builder import BuildReport, Progress, StorageOptions, Timestamps


def commit(
    mountpoint: str | Path,
    tag: str,
    *,
    compression: bool | None = None,
    storage: StorageOptions | None = None,
    timestamps: Timestamps | None = None,
    clamp_ns: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> BuildReport:
    """Make a new image of what a writable mount shows: a metadata layer on top of the image that is mounted.

    It goes into the layout of that image, and is built on the manifest that is mounted, wherever its tag points by now.
    The cost is that of what was written. The mount stays as it is, with what was written on top of the old image.

    Args:
        mountpoint: where a writable mount is.
        tag: the tag of the new image, moved if it is there.
        compression: whether to compress new chunks; ``None``: if those of the image are.
        storage: how compressed chunks are cut and stored.
        timestamps: what becomes of modification times; ``None``: as in the image.
        clamp_ns: with ``clamp``, the latest time, in nanoseconds since 1970.
        progress: called now and then with how far it is.

    Raises:
        NotFoundError: if nothing is mounted there, or the layout or a blob of the image is gone.
        MountError: if what is mounted there is not a writable mount.
        UnsupportedError: without root.
        SourceError: if what was written cannot be read, or changes meanwhile.
        InvalidArgumentError: for a tag that is none, or options that make no sense.
        PuzzlefsError: as ``open_image`` and ``build``.
    """
    from puzzlefs.delta import build_from_upper  # noqa: PLC0415  whoever mounts does not pay for it

    if os.geteuid() != 0:
        raise UnsupportedError("a writable mount can only be committed by root", hint="run it as root")
    point = Path(os.path.realpath(mountpoint))
    make_reference(".", tag)
    overlay = _overlay_at(point)
    _sync(point)
    top = _open_below(overlay, point)
    upper = -1
    try:
        record = _record_of(overlay, top, point)
        upper = _open_upper(record, top, point)
        # by the descriptor: that is the directory of the mount, whatever its path leads to by now
        path = Path(f"/proc/{os.getpid()}/fd/{upper}")
        with open_image(record.image, manifest=record.manifest) as base:
            try:
                return build_from_upper(
                    path,
                    base,
                    tag,
                    compression=compression,
                    storage=storage,
                    timestamps=timestamps,
                    clamp_ns=clamp_ns,
                    userxattr=False,
                    progress=progress,
                )
            except SourceError as error:
                name = os.fspath(point / UPPER if record.upper is None else record.upper)
                raise SourceError(error.message.replace(os.fspath(path), name), hint=error.hint) from error
    finally:
        os.close(top)
        if upper >= 0:
            os.close(upper)


def _overlay_at(point: Path) -> Mount:
    mounts = all_mounts()
    writable = writable_mount(mounts, point)
    if writable is not None:
        return writable[0]
    mount = on_top(mounts, point)
    if mount is None:
        raise NotFoundError(f"{point} is not a mount point", hint="name the directory of a writable mount")
    raise MountError(
        f"{point} is a mount of type {mount.fs_type}, not a writable one of PuzzleFS",
        hint=f"mount the image with --writable or --persist, as in: puzzlefs mount --writable IMAGE {point}",
    )


def _sync(point: Path) -> None:
    try:
        fd = os.open(point, DIRECTORY)
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise SourceError(
            f"what was written to {point} cannot be brought to disk: {error.strerror}",
            hint="see the kernel's log (dmesg)",
        ) from error


def _open_below(overlay: Mount, point: Path) -> int:
    """A descriptor of the directory that the overlay at ``point`` hides."""
    result: list[int | OSError] = []

    def look() -> None:
        try:
            namespace.unshare(namespace.CLONE_NEWNS)  # of this thread alone, which ends with it
            namespace.mount("", "/", "", namespace.MS_REC | namespace.MS_PRIVATE)  # nobody else sees what follows
            namespace.unmount(point, namespace.MNT_DETACH | namespace.UMOUNT_NOFOLLOW)
            result.append(os.open(point, DIRECTORY))
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=look, name="below")
    thread.start()
    thread.join()
    (found,) = result
    if isinstance(found, OSError):
        raise MountError(
            f"what is below the overlay at {point} cannot be reached: {found.strerror}",
            hint="in a chroot, run it outside" if found.errno == errno.EINVAL else "",
        ) from found
    status = os.fstat(found)
    if f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}" == overlay.device:
        os.close(found)
        raise MountError(f"what is below the overlay at {point} cannot be reached: it is mounted there twice")
    return found


def _record_of(overlay: Mount, top: int, point: Path) -> Record:
    record = read_record(top, point)
    if record is None or record.device != overlay.device:
        raise MountError(
            f"it is not known any more which image is mounted at {point}",
            hint="build from the upper directory: puzzlefs build --base-layer TAG --upper UPPERDIR IMAGE",
        )
    return record


def _open_upper(record: Record, top: int, point: Path) -> int:
    try:
        fd = os.open(record.upper or UPPER, DIRECTORY, dir_fd=top)  # an absolute path goes from the root
    except OSError as error:
        raise _moved(record, point) from error
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != record.upper_id:
        os.close(fd)
        raise _moved(record, point)
    return fd


def _moved(record: Record, point: Path) -> PuzzlefsError:
    return NotFoundError(
        f"{record.upper or point / UPPER} is not the upper directory of the mount at {point} any more",
        hint="it was moved, removed or hidden; bring it back to that place",
    )
