"""fs-verity as the kernel does it: two ioctls, and what their refusals mean.

``enable`` seals a file: the kernel builds the Merkle tree, and from then on nobody can write to the file and
every read is checked. It cannot be undone (the file can be deleted, or replaced by rename). ``measure`` asks
for the digest that the kernel holds the file to. Both take a descriptor that is open for reading; both are
thread safe.

The errors keep two cases apart, as the error tree does: ``VerityUnavailableError`` where the kernel or the
file system cannot, ``VerityNotEnabledError`` where it could. What a refusal means (fsverity.rst,
"FS_IOC_ENABLE_VERITY"):

* ``ENOTTY``: this type of file system has no fs-verity in this kernel;
* ``EOPNOTSUPP``: either the kernel was built without ``CONFIG_FS_VERITY``, or this file system was made
  without the feature. Only sysfs tells the two apart: ``/sys/fs/<type>/features/verity`` exists where the
  kernel can.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

from puzzlefs.digest import SHA256_SIZE, VerityDigest
from puzzlefs.errors import IntegrityError, StorageError, VerityNotEnabledError, VerityUnavailableError
from puzzlefs.verity.digest import BLOCK_SIZE, HASH_ALGORITHM_SHA256

# struct fsverity_enable_arg (linux/fsverity.h): version, hash_algorithm, block_size, salt_size, salt_ptr,
# sig_size, reserved, sig_ptr, reserved[11]; native byte order, 128 bytes.
_ENABLE_ARG = struct.Struct("=IIIIQIIQ88x")
# struct fsverity_digest: digest_algorithm, digest_size; the digest follows.
_DIGEST_HEAD = struct.Struct("=HH")
_MAX_DIGEST_SIZE = 64
_ALGORITHM_NAMES = {HASH_ALGORITHM_SHA256: "sha256", 2: "sha512"}

_BUSY_SECONDS = 60.0
_BUSY_PAUSE_SECONDS = 0.05


def _ioctl_number(machine: str, *, read: bool, number: int, size: int) -> int:
    """``_IOW('f', number, size)`` or ``_IOWR(…)`` of the kernel's ``asm/ioctl.h`` for a machine."""
    # Four architectures have a layout of their own.
    write_bit, read_bit = (31, 30) if machine.startswith(("ppc", "mips", "sparc", "alpha")) else (30, 31)
    return 1 << write_bit | read << read_bit | size << 16 | ord("f") << 8 | number


_MACHINE = os.uname().machine
FS_IOC_ENABLE_VERITY = _ioctl_number(_MACHINE, read=False, number=133, size=_ENABLE_ARG.size)
FS_IOC_MEASURE_VERITY = _ioctl_number(_MACHINE, read=True, number=134, size=_DIGEST_HEAD.size)

_REFUSALS = {errno.ENOTTY, errno.EOPNOTSUPP}
_GOOD_FILE_SYSTEMS = "ext4 made with `mkfs.ext4 -O verity`, btrfs or f2fs"
_SWITCH_ON = {
    "ext4": "switch it on with `tune2fs -O verity {source}`",
    "f2fs": "switch it on with `fsck.f2fs -O verity {source}` while it is not mounted",
}
_ENABLE_HINTS = {
    errno.ETXTBSY: "some process has it open for writing; end that process and try again",
    errno.EACCES: "run the command as the owner of the file or as root",
    errno.EPERM: "the file is append-only or immutable: look at `lsattr`",
    errno.EROFS: "its file system is mounted read-only; mount it read-write for this",
    errno.EDQUOT: "the Merkle tree needs another 1/127 of the file; the quota is used up",
    errno.EBUSY: "another process is enabling fs-verity on it; wait for that one and try again",
    errno.EFBIG: "the file is too large for the Merkle tree on this file system",
}


class FileSystem(NamedTuple):
    """The file system that a file lies on; empty strings where nobody says.

    Attributes:
        kind: its type, for example ``ext4``.
        source: what is mounted, usually a device.
        mount_point: where.
    """

    kind: str
    source: str
    mount_point: str


def enable(fd: int) -> None:
    """Enables fs-verity (SHA-256, 4096-byte blocks, no salt) on an open file; already enabled is fine.

    It returns when the kernel has read the whole file and written its Merkle tree. What the file holds is not
    checked
    here: compare ``measure`` with the digest that is expected.

    Args:
        fd: a regular file, open for reading only; nobody may have it open for writing.

    Raises:
        VerityUnavailableError: if the kernel or the file system has no fs-verity; the message says which of
            the two.
        StorageError: if it has, but refuses for this file: open for writing, read-only, not permitted, no
            room.
    """
    argument = _ENABLE_ARG.pack(1, HASH_ALGORITHM_SHA256, BLOCK_SIZE, 0, 0, 0, 0, 0)
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, argument)
        except OSError as error:
            if error.errno == errno.EEXIST:
                return
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                # Another process is building the tree of the same file: it will exist when that one is done.
                time.sleep(_BUSY_PAUSE_SECONDS)
                continue
            if error.errno in _REFUSALS:
                raise _unavailable(fd, error.errno) from error
            raise StorageError(
                f"fs-verity could not be enabled on {_name_of(fd)}: {error.strerror}",
                hint=_ENABLE_HINTS.get(error.errno or 0, ""),
            ) from error
        else:
            return


def measure(fd: int) -> VerityDigest:
    """The fs-verity digest that the kernel holds an open file to.

    Raises:
        VerityNotEnabledError: if the file does not have fs-verity enabled.
        VerityUnavailableError: if the kernel or the file system has no fs-verity; the message says which of
            the two.
        IntegrityError: if the file is held to a digest of another algorithm than SHA-256.
        StorageError: if the kernel fails in any other way.
    """
    try:
        return _measure(fd)
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise VerityNotEnabledError(
                f"{_name_of(fd)} does not have fs-verity enabled",
                hint="`puzzlefs enable-fs-verity IMAGE DIGEST` enables it for a whole image",
            ) from error
        if error.errno in _REFUSALS:
            raise _unavailable(fd, error.errno) from error
        raise _measure_failed(fd, error) from error


def find_measurement(fd: int) -> VerityDigest | None:
    """What ``measure`` says, or ``None`` where there is no fs-verity: not enabled, or not available at all.

    For callers to whom fs-verity is welcome but not required; it costs one system call.

    Raises:
        IntegrityError: if the file is held to a digest of another algorithm than SHA-256.
        StorageError: if the kernel fails.
    """
    try:
        return _measure(fd)
    except OSError as error:
        if error.errno == errno.ENODATA or error.errno in _REFUSALS:
            return None
        raise _measure_failed(fd, error) from error


def is_available(fd: int) -> bool:
    """Whether the kernel has fs-verity for the file system that an open file lies on, enabled on the file or not.

    Raises:
        IntegrityError: if the file is held to a digest of another algorithm than SHA-256.
    """
    try:
        _measure(fd)
    except OSError as error:
        return error.errno not in _REFUSALS
    return True


def file_system_of(fd: int) -> FileSystem:
    """The file system that an open file lies on, as ``/proc/self/mountinfo`` describes it.

    The mount is found by its number and not by ``st_dev``, which differs from the one in ``mountinfo`` on
    btrfs and on overlays.
    """
    try:
        fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_bytes()
        mountinfo = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return FileSystem("", "", "")
    return parse_mountinfo(mountinfo, mount_id=_mount_id(fdinfo))


def parse_mountinfo(mountinfo: bytes, *, mount_id: bytes) -> FileSystem:
    """The line of ``mountinfo`` for one mount, parsed (Documentation/filesystems/proc.rst, section 3.5).

    ``36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw``: any number of optional fields
    stands before the lone ``-``.
    """
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        if fields[0] == mount_id and b"-" in fields[6:]:
            separator = fields.index(b"-", 6)
            kind, source = fields[separator + 1 : separator + 3]
            return FileSystem(_text(kind), _text(source), _text(fields[4]))
    return FileSystem("", "", "")


def explain(refusal: int, file_system: FileSystem, *, kernel_has_it: bool | None) -> VerityUnavailableError:
    """Says who lacks fs-verity and how to get it.

    Args:
        refusal: ``ENOTTY`` or ``EOPNOTSUPP``, as one of the ioctls returned it.
        file_system: where the file lies.
        kernel_has_it: whether this kernel has fs-verity for this type of file system; ``None`` if nobody
            knows.
    """
    kind = file_system.kind or "the file's"
    where = f"{kind} file system" + (f" at {file_system.mount_point}" if file_system.mount_point else "")
    release = os.uname().release
    if refusal == errno.ENOTTY:
        if file_system.kind in {"ext4", "f2fs", "btrfs"}:
            return VerityUnavailableError(
                f"this kernel ({release}) has no fs-verity for {kind}",
                hint="use one from 5.4 on (btrfs: 5.15) that was built with CONFIG_FS_VERITY",
            )
        return VerityUnavailableError(
            f"the {where} has no fs-verity",
            hint=f"copy the image to {_GOOD_FILE_SYSTEMS}",
        )
    if kernel_has_it is False:
        return VerityUnavailableError(
            f"this kernel ({release}) was built without fs-verity",
            hint="use one with CONFIG_FS_VERITY=y, as most distributions' are",
        )
    switch_on = _SWITCH_ON.get(file_system.kind, f"copy the image to {_GOOD_FILE_SYSTEMS}")
    switch_on = switch_on.format(source=file_system.source or "DEVICE")
    if kernel_has_it:
        return VerityUnavailableError(f"the {where} was made without the verity feature", hint=switch_on)
    return VerityUnavailableError(
        f"the {where} was made without the verity feature or this kernel ({release}) was built without it",
        hint=f"if the kernel has it, {switch_on}",
    )


def _measure(fd: int) -> VerityDigest:
    buffer = array.array("B", _DIGEST_HEAD.pack(0, _MAX_DIGEST_SIZE) + bytes(_MAX_DIGEST_SIZE))
    fcntl.ioctl(fd, FS_IOC_MEASURE_VERITY, buffer)
    algorithm, size = _DIGEST_HEAD.unpack_from(buffer)
    digest = buffer[_DIGEST_HEAD.size : _DIGEST_HEAD.size + size].tobytes()
    if algorithm != HASH_ALGORITHM_SHA256 or size != SHA256_SIZE:
        raise IntegrityError(
            f"the fs-verity measurement of {_name_of(fd)}",
            expected="a sha256 digest",
            actual=f"{_ALGORITHM_NAMES.get(algorithm, f'algorithm {algorithm}')}:{digest.hex()}",
            hint="fs-verity was enabled with another algorithm; put a fresh copy of the file in its place",
        )
    return VerityDigest(digest)


def _measure_failed(fd: int, error: OSError) -> StorageError:
    return StorageError(f"the fs-verity digest of {_name_of(fd)} could not be measured: {error.strerror}")


def _unavailable(fd: int, refusal: int) -> VerityUnavailableError:
    file_system = file_system_of(fd)
    return explain(refusal, file_system, kernel_has_it=_kernel_has_verity(file_system.kind))


def _kernel_has_verity(kind: str) -> bool | None:
    """Whether sysfs lists verity among what this kernel can do for a type of file system."""
    features = Path("/sys/fs") / kind / "features"
    if not kind or not features.is_dir():
        return None
    return (features / "verity").exists()


def _mount_id(fdinfo: bytes) -> bytes:
    for line in fdinfo.splitlines():
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return value.strip()
    return b""


def _text(field: bytes) -> str:
    """A field of ``mountinfo``, in which blanks and backslashes stand as three octal digits."""
    parts = field.split(b"\\")
    raw = parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])
    return os.fsdecode(raw)


def _name_of(fd: int) -> str:
    """The path of an open file, for messages."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return f"file descriptor {fd}"
