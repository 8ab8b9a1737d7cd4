"""The root file system of a command: an image with a writable layer on it.

Everything lies in one directory, the *stage*, and only a mount namespace shows what is mounted in it::

    stage/image   the image, read-only, through FUSE
    stage/stubs   what has to be there to be mounted on and is missing in the image: lowest layer
    stage/upper   what is written; stage/work belongs to overlayfs
    stage/root    all of it as one: the root of the command

Nothing that is mounted for the command's sake leaves a trace in ``upper``: a commit must not find it. That is why
missing mount points are a layer *below* the image.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Final, Literal

from puzzlefs.errors import MountError, UnsupportedError
from puzzlefs.image import Image
from puzzlefs.model import ROOT_INO
from puzzlefs.mount import namespace
from puzzlefs.mount.mountinfo import mounted_at
from puzzlefs.mount.shell_places import find_places
from puzzlefs.mount.shell_upper import translate_upper

OverlayName = Literal["auto", "kernel", "fuse-overlayfs"]
"""Who puts the writable layer on the image: the kernel's overlayfs, the program fuse-overlayfs, or (auto) the first
of them that can do it here."""

OVERLAYS: Final[tuple[OverlayName, ...]] = ("auto", "kernel", "fuse-overlayfs")

_LAYERS: Final = "lowerdir=image:stubs,upperdir=upper,workdir=work"
_PRIVATE_XATTRS: Final = (b"trusted.", b"user.overlay.", b"user.fuseoverlayfs.")
_MAX_RESOLV_CONF: Final = 1 << 16
_PATIENCE: Final = 10.0
_TICK: Final = 0.01


class Stage:
    """The directory in which a root is put together. For one thread, and root in a user and mount namespace.

    Attributes:
        image_point: where the image is to be mounted, after ``prepare``.
        upper: what was written.
        root: the root of the command, after ``mount_overlay``.
        places: where things are to be mounted in it.
    """

    def __init__(self, directory: Path, image: Image, *, in_memory: bool) -> None:
        """A stage in the existing, empty ``directory``, or in memory mounted on it where that can be done."""
        self.image_point = directory / "image"
        self.upper = directory / "upper"
        self.root = directory / "root"
        self.places = find_places(image.tree)
        self._resolv_conf = directory / "resolv.conf"
        self._directory = directory
        self._image = image
        self._in_memory = in_memory
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def resolv_conf(self) -> Path | None:
        """A copy of the host's ``/etc/resolv.conf``, ``None`` if it has none; after ``prepare``, in any process."""
        return self._resolv_conf if self._resolv_conf.exists() else None

    def prepare(self) -> None:
        """Make what is in the stage.

        Raises:
            MountError: if that fails.
            UnsupportedError: if what is written could not be stored there.
        """
        try:
            if self._in_memory:
                namespace.mount("puzzlefs", self._directory, "tmpfs", namespace.MS_NODEV, "mode=700")
                if not _takes_xattrs(self._directory):  # before Linux 6.6
                    namespace.detach(self._directory)
                    self._in_memory = False
            if not _takes_xattrs(self._directory):
                raise UnsupportedError(
                    f"{self._directory.parent} has no extended attributes of users, which a writable layer needs",
                    hint="name a directory on ext4, XFS or btrfs: --scratch DIR",
                )
            for name in ("image", "stubs", "upper", "work", "root"):
                _make_directory(self._directory / name)
            self._make_stubs()
            self._copy_resolv_conf()
        except OSError as error:
            raise MountError(f"a writable layer cannot be made: {error}") from error

    def hides_xattr(self, name: bytes) -> bool:
        """Whether the image must not show an extended attribute of this name.

        Only the host's root may set ``trusted.*``, and where the writable layer is on a file system of the host,
        labels of security modules: copying a file up would fail. And what overlayfs stores must come from it alone.
        """
        if name.startswith(_PRIVATE_XATTRS):
            return True
        return not self._in_memory and name.startswith(b"security.") and name != b"security.capability"

    def mount_overlay(self, overlay: OverlayName) -> None:
        """Put the writable layer on the image, which is mounted.

        Raises:
            MountError: if it fails.
            UnsupportedError: if the kernel refuses, and fuse-overlayfs is not there.
        """
        self._copy_root_attributes()
        before = Path.cwd()
        os.chdir(self._directory)  # names without a path need no escapes
        try:
            if overlay == "fuse-overlayfs":
                self._start_fuse_overlayfs("it was asked for")
                return
            try:
                namespace.mount("puzzlefs", "root", "overlay", 0, f"userxattr,{_LAYERS}")
            except OSError as error:
                refusal = f"this kernel's overlayfs refuses: {error.strerror}"
                if overlay == "kernel":
                    raise UnsupportedError(refusal, hint="use --overlay fuse-overlayfs") from error
                self._start_fuse_overlayfs(refusal)
        finally:
            os.chdir(before)

    def unmount_overlay(self) -> None:
        """Take the overlay away; ``upper`` is complete then, and as the kernel's overlayfs would have left it.

        Calling it twice is fine.

        Raises:
            OSError: if the host fails.
        """
        if mounted_at(self.root) is not None:
            with contextlib.suppress(OSError):
                namespace.detach(self.root)
        if self._server is not None:
            try:
                self._server.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None
            translate_upper(self.upper)

    def remove(self) -> None:
        """Take everything down, and remove the directory. The image is not mounted any more."""
        with contextlib.suppress(OSError):
            self.unmount_overlay()
        if self._in_memory:
            with contextlib.suppress(OSError):
                namespace.detach(self._directory)
        shutil.rmtree(self._directory, ignore_errors=True)

    # ---- inside

    def _start_fuse_overlayfs(self, reason: str) -> None:
        program = shutil.which("fuse-overlayfs")
        if program is None:
            raise UnsupportedError(
                f"{reason}, and fuse-overlayfs is not installed", hint="install the package fuse-overlayfs"
            )
        log_file = self._directory / "fuse-overlayfs.log"  # not a pipe: nobody reads it while the command runs
        with open(log_file, "wb") as log:
            self._server = subprocess.Popen(
                [program, "-f", "-o", _LAYERS, "root"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                preexec_fn=_die_with_us,  # noqa: PLW1509  two system calls; else it would outlive a server that is killed
            )
        deadline = time.monotonic() + _PATIENCE
        while mounted_at(self.root) is None:
            if self._server.poll() is not None or time.monotonic() > deadline:
                self._server.kill()
                self._server.wait()
                self._server = None
                said = " ".join(log_file.read_text(errors="replace").split())
                raise MountError(f"{reason}, and fuse-overlayfs failed: {said or 'it gave no reason'}")
            time.sleep(_TICK)

    def _make_stubs(self) -> None:
        stubs, places = self._directory / "stubs", self.places
        for place in (places.proc, places.dev, places.sys, places.resolv_conf):
            if place is not None and place.is_missing:
                is_file = place is places.resolv_conf
                path = stubs
                for part in place.parts[: -1 if is_file else None]:
                    path /= os.fsdecode(part)
                    _make_directory(path)
                if is_file:
                    (path / os.fsdecode(place.parts[-1])).touch(0o644)

    def _copy_resolv_conf(self) -> None:
        """Copy the host's, so that whoever writes to it inside reaches nothing else."""
        try:
            with open("/etc/resolv.conf", "rb") as file:
                content = file.read(_MAX_RESOLV_CONF)
        except OSError:
            return
        self._resolv_conf.write_bytes(content)
        self._resolv_conf.chmod(0o644)

    def _copy_root_attributes(self) -> None:
        """The root of an overlay has the attributes of the upper directory: give it those of the image's."""
        attributes = self._image.tree.attributes(ROOT_INO)
        try:
            os.chown(self.upper, attributes.uid, attributes.gid)
        except OSError as error:
            raise UnsupportedError(
                f"the root directory of the image belongs to {attributes.uid}:{attributes.gid}, an owner that does not "
                "exist in the user namespace",
                hint=f"give this user more ids in /etc/subuid and /etc/subgid ({error.strerror})",
            ) from error
        self.upper.chmod(stat.S_IMODE(attributes.mode))
        for name, value in self._image.tree.xattrs(ROOT_INO).items():
            if not self.hides_xattr(name):
                with contextlib.suppress(OSError):  # as overlayfs does with what a file system does not know
                    os.setxattr(self.upper, name, value)
        os.utime(self.upper, ns=(attributes.mtime_ns, attributes.mtime_ns))


def _make_directory(path: Path) -> None:
    path.mkdir(exist_ok=True)
    path.chmod(0o755)  # whatever the umask says


def _takes_xattrs(directory: Path) -> bool:
    try:
        os.setxattr(directory, "user.puzzlefs", b"")
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return False
        raise
    os.removexattr(directory, "user.puzzlefs")
    return True


def _die_with_us() -> None:
    namespace.die_with_parent(signal.SIGKILL)
