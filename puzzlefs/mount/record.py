"""The record of a writable mount: a small file in its mount point, below the overlay, that says what is mounted.

``commit`` reads it, and whoever clears away what a mount has left. A record that was made by somebody else than root is
none: those who may write to a directory could make root remove, or publish, something. Other programs may read the
file; a change of its fields needs another ``version``.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puzzlefs.blobs.host import open_regular, read_bounded
from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError, MountError
from puzzlefs.oci import ImageReference, make_reference

RECORD: Final = "puzzlefs.json"
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How directories of a writable mount are opened."""

_VERSION: Final = 1
_MAX_SIZE: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Record:
    """What is mounted.

    Attributes:
        mount: a random word, different for each mount.
        image: the image, its layout absolute; the tag may have moved since.
        manifest: sha256 of the manifest that is mounted.
        upper: the persistent upper directory, absolute; ``None``: the one in the mount point.
        upper_id: device and inode number of the upper directory.
        device: ``major:minor`` of the overlay, empty before there is one.
    """

    mount: str
    image: ImageReference
    manifest: Digest
    upper: Path | None
    upper_id: tuple[int, int]
    device: str = ""

    def encode(self) -> bytes:
        """The record as bytes."""
        return json.dumps(
            {
                "version": _VERSION,
                "mount": self.mount,
                "layout": os.fspath(self.image.layout),
                "tag": self.image.tag,
                "manifest": self.manifest.hex(),
                "upper": None if self.upper is None else os.fspath(self.upper),
                "upper_device": self.upper_id[0],
                "upper_inode": self.upper_id[1],
                "overlay_device": self.device,
            }
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """The record that bytes hold.

        Raises:
            FormatError: if they are none.
        """
        try:
            fields = json.loads(data)
            if fields["version"] != _VERSION:
                raise FormatError(f"version {fields['version']!r} of the record is not known")
            return cls(
                str(fields["mount"]),
                make_reference(str(fields["layout"]), str(fields["tag"])),
                Digest.from_hex(str(fields["manifest"])),
                None if fields["upper"] is None else Path(str(fields["upper"])),
                (int(fields["upper_device"]), int(fields["upper_inode"])),
                str(fields["overlay_device"]),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise FormatError("this is no record of a writable mount") from error


def write_record(top: int, record: Record) -> None:
    """Put the record into the directory ``top``, in the place of one that is there.

    Raises:
        OSError: if the host refuses.
    """
    temporary = RECORD + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=top)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=top)
    try:
        with open(fd, "wb") as file:
            file.write(record.encode())
        os.replace(temporary, RECORD, src_dir_fd=top, dst_dir_fd=top)
    except BaseException:
        os.unlink(temporary, dir_fd=top)
        raise


def read_record(top: int, point: Path) -> Record | None:
    """The record in the directory ``top``, ``None`` if there is none.

    Raises:
        MountError: if the file of its name is something else.
    """
    try:
        fd = open_regular(RECORD, RECORD, dir_fd=top)
    except FileNotFoundError:
        return None
    except (OSError, FormatError) as error:
        raise _foreign(point) from error
    try:
        if os.fstat(fd).st_uid != 0:  # or whoever owns the directory could plant one
            raise _foreign(point)
        return Record.parse(read_bounded(fd, RECORD, _MAX_SIZE))
    except FormatError as error:
        raise _foreign(point) from error
    finally:
        os.close(fd)


def _foreign(point: Path) -> MountError:
    return MountError(
        f"{point / RECORD} exists, and is not the record of a writable mount",
        hint="move it away, or mount somewhere else",
    )
