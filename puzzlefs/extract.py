"""Writing an image out as ordinary files.

Safe whatever the image says: nothing is created outside of the target directory, because every name has been checked by
``vfs`` to be one component, each is created relative to a descriptor of its parent, never through a symbolic link, and
only where nothing is yet (``O_EXCL``). Going back up goes through ``..`` and must arrive at the directory that was
left. The whole tree is checked before the first file is made, so an image whose tree is malformed leaves nothing
behind.

One descriptor is open at a time besides the root's, however deep the tree is. A directory gets its attributes after its
entries, so that default ACLs, read-only modes and times are those of the image. An inode with several names is made in
a staging directory at the top, under its number, and linked from there: its first name may be any number of directories
away, or behind one that has its mode already and lets nobody in. Not for several threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from puzzlefs.blobs import VerityMode
from puzzlefs.callable_module import make_callable
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import (
    FormatError,
    IntegrityError,
    InvalidArgumentError,
    NotFoundError,
    StorageError,
    UnsafePathError,
)
from puzzlefs.image import Image, open_image
from puzzlefs.model import ROOT_INO, Kind
from puzzlefs.oci import ImageReference
from puzzlefs.sparse import SparseWriter
from puzzlefs.vfs import Attributes, Entry

_MAX_SHOWN: Final = 64
"""Directories that a message names at most."""

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_PERMITTED: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL})
_MKNOD_REFUSALS: Final = frozenset({errno.EPERM, errno.EINVAL})
_DEVICES: Final = frozenset({Kind.CHAR_DEVICE, Kind.BLOCK_DEVICE})
_XATTR_REFUSALS: Final = frozenset({*_NOT_PERMITTED, errno.ENOTSUP, errno.E2BIG, errno.ERANGE, errno.ENOSPC})
"""Among them what file systems say where an xattr is larger than theirs can be (ext4: ENOSPC)."""
_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_NAMESPACES: Final = {name: f"{name.decode()}.* xattrs" for name in (b"user", b"trusted", b"security", b"system")}

_Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What ``extract`` did.

    Attributes:
        entries: names that were created, the root directory not counted.
        bytes: bytes of regular files, as ``st_size`` counts them.
        not_restored: what this user or file system could not restore, and how many entries it concerns.
    """

    entries: int
    bytes: int
    not_restored: Mapping[str, int]


def extract(
    image: Image | ImageReference | str,
    directory: str | os.PathLike[str],
    *,
    digest: VerityDigest | str | None = None,
    verity: VerityMode = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> ExtractReport:
    """Write everything in an image below ``directory``: contents, owners, modes, times, links, devices, xattrs, holes.

    Without root, owners, devices and some xattrs cannot be restored; the report says so. Set-id bits are left out where
    the owner could not be restored.

    Args:
        image: an open image, or the name of one.
        directory: an empty directory, or one that does not exist yet (its parent must).
        digest: the fs-verity digest that the manifest must have; only where ``image`` is a name.
        verity: how the image is verified below that; only where ``image`` is a name.
        progress: called now and then with the entries and bytes written so far.

    Raises:
        InvalidArgumentError: if ``directory`` is not empty, or not a directory.
        NotFoundError: if the image or one of its blobs is missing.
        FormatError: if the image is malformed; where its tree is, nothing has been written.
        IntegrityError: if data is not what its digest says; what was written before stays.
        UnsafePathError: if somebody moves directories about while they are written.
        StorageError: if the host cannot write.
    """
    if not isinstance(image, Image):
        with open_image(image, digest=digest, verity=verity) as opened:
            return extract(opened, directory, progress=progress)
    for _ in image.tree.walk():
        pass  # every name, every place of a directory, every inode's kind: a malformed tree ends here
    target = Path(directory)
    root_fd = _open_target(target)
    try:
        return _Extraction(image, target, root_fd, progress, SparseWriter(image)).run()
    finally:
        os.close(root_fd)


def _open_target(target: Path) -> int:
    try:
        with contextlib.suppress(FileExistsError):
            target.mkdir(0o700)
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidArgumentError(f"cannot create {target}: its parent directory does not exist") from error
    except NotADirectoryError as error:
        raise InvalidArgumentError(f"{target} is not a directory") from error
    except OSError as error:
        raise StorageError(f"cannot create {target}: {error.strerror}") from error
    try:
        if os.listdir(fd):
            raise InvalidArgumentError(f"{target} is not empty", hint="name an empty or a new directory")
    except BaseException:
        os.close(fd)
        raise
    return fd


@dataclass(slots=True)
class _Level:
    """A directory that is being filled."""

    entry: Entry
    identity: _Identity
    entries: Iterator[Entry]


@dataclass(slots=True)
class _Extraction:
    image: Image
    target: Path
    root_fd: int
    progress: Callable[[int, int], None] | None
    content: SparseWriter
    counter: Counter[str] = field(default_factory=Counter)
    staged: dict[int, int] = field(default_factory=dict)  # names still to be made, by inode
    staging_name: str = field(default_factory=lambda: f".puzzlefs-{secrets.token_hex(16)}")
    staging_fd: int = -1
    levels: list[_Level] = field(default_factory=list)
    current_fd: int = -1
    current_name: bytes = b""
    entries: int = 0
    written: int = 0

    def run(self) -> ExtractReport:
        for name in _ACLS:  # what the target inherited from its parent must not be inherited further
            with contextlib.suppress(OSError):
                os.removexattr(self.root_fd, name)
        self.current_fd = os.dup(self.root_fd)
        try:
            self._enter(Entry(b".", ROOT_INO, Kind.DIRECTORY))
            while self.levels:
                entry = next(self.levels[-1].entries, None)
                if entry is None:
                    self._leave()
                else:
                    self._create(entry)
        except OSError as error:
            raise StorageError(
                f"cannot write {self._shown()}: {error.strerror or error}", hint=f"{self.target} is incomplete"
            ) from error
        except (FormatError, IntegrityError, NotFoundError, StorageError) as error:
            error.message = f"cannot extract {self._shown()}: {error.message}"
            error.hint = error.hint or f"{self.target} is incomplete"
            raise
        finally:
            with contextlib.suppress(OSError):
                self._remove_staging()
            os.close(self.current_fd)
        return ExtractReport(self.entries, self.written, dict(self.counter))

    # ---- directories

    def _enter(self, entry: Entry) -> None:
        status = os.fstat(self.current_fd)
        entries = iter(self.image.tree.entries(entry.ino))
        self.levels.append(_Level(entry, (status.st_dev, status.st_ino), entries))

    def _leave(self) -> None:
        """Give the directory that is complete its attributes, and go back to its parent."""
        self.current_name = b""
        level = self.levels[-1]
        self._check_identity(level)
        top = len(self.levels) == 1
        if top:
            self._remove_staging()
        attributes = self.image.tree.attributes(level.entry.ino)
        up_fd = os.dup(self.root_fd) if top else os.open(b"..", _DIRECTORY_FLAGS, dir_fd=self.current_fd)
        try:
            self._restore(self.current_fd, attributes)
        finally:
            os.close(self.current_fd)
            self.current_fd = up_fd
        self.levels.pop()
        if self.levels:
            self._check_identity(self.levels[-1])

    def _check_identity(self, level: _Level) -> None:
        status = os.fstat(self.current_fd)
        if (status.st_dev, status.st_ino) != level.identity:
            raise UnsafePathError(
                f"{self._shown()} was moved while it was written", hint="extract to a directory that nobody else uses"
            )

    # ---- entries

    def _create(self, entry: Entry) -> None:
        self.current_name = entry.name
        self.entries += 1
        self._report()
        if entry.kind is Kind.DIRECTORY:
            os.mkdir(entry.name, 0o700, dir_fd=self.current_fd)
            fd = os.open(entry.name, _DIRECTORY_FLAGS, dir_fd=self.current_fd)
            os.close(self.current_fd)
            self.current_fd = fd
            self.current_name = b""
            self._enter(entry)
            return
        attributes = self.image.tree.attributes(entry.ino)
        if attributes.nlink > 1:
            self._create_name(entry, attributes)
        else:
            self._create_inode(self.current_fd, entry.name, entry.kind, attributes)

    def _create_name(self, entry: Entry, attributes: Attributes) -> None:
        """Make one of the names of an inode that has several."""
        if self.staging_fd < 0:
            os.mkdir(self.staging_name, 0o700, dir_fd=self.root_fd)
            self.staging_fd = os.open(self.staging_name, _DIRECTORY_FLAGS, dir_fd=self.root_fd)
        staged_name = b"%d" % entry.ino
        if entry.ino not in self.staged:
            if not self._create_inode(self.staging_fd, staged_name, entry.kind, attributes):
                return
            self.staged[entry.ino] = attributes.nlink
        os.link(staged_name, entry.name, src_dir_fd=self.staging_fd, dst_dir_fd=self.current_fd, follow_symlinks=False)
        self.staged[entry.ino] -= 1
        if not self.staged[entry.ino]:
            os.unlink(staged_name, dir_fd=self.staging_fd)

    def _remove_staging(self) -> None:
        """Remove the staging directory, if there is one, and what an extraction that failed left in it."""
        if self.staging_fd < 0:
            return
        fd, self.staging_fd = self.staging_fd, -1
        try:
            for name in os.listdir(fd):
                os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(self.staging_name, dir_fd=self.root_fd)

    def _create_inode(self, directory_fd: int, name: bytes, kind: Kind, attributes: Attributes) -> bool:
        """Make anything but a directory; whether that was possible."""
        ino = attributes.ino
        if kind is Kind.REGULAR:
            fd = os.open(name, _FILE_FLAGS, 0o600, dir_fd=directory_fd)
            try:
                self.content.write(fd, ino, attributes.size, self._written)
                self._restore(fd, attributes)
            finally:
                os.close(fd)
            return True
        if kind is Kind.SYMLINK:
            os.symlink(self.image.tree.readlink(ino), name, dir_fd=directory_fd)
        else:
            mode = stat.S_IFMT(attributes.mode) | 0o600
            try:
                os.mknod(name, mode, attributes.rdev, dir_fd=directory_fd)
            except OSError as error:
                if error.errno not in _MKNOD_REFUSALS:
                    raise
                self.counter["devices" if kind in _DEVICES else "fifos and sockets"] += 1
                return False
        self._restore_by_name(directory_fd, name, attributes)
        return True

    def _written(self, size: int) -> None:
        self.written += size
        self._report()

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self.entries, self.written)

    # ---- attributes

    def _restore(self, fd: int, attributes: Attributes) -> None:
        """Owner, xattrs, mode, time of an open file or directory, in the order in which none undoes another."""
        owned = self._refused_is_counted("owners", lambda: os.chown(fd, attributes.uid, attributes.gid))
        for key, value in self.image.tree.xattrs(attributes.ino).items():
            self._set_xattr(fd, key, value, follow=True)
        os.chmod(fd, self._mode(attributes, owned))
        os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))

    def _restore_by_name(self, fd: int, name: bytes, attributes: Attributes) -> None:
        """The same for what must not or cannot be opened: ``name`` in the directory ``fd``."""
        owned = self._refused_is_counted(
            "owners", lambda: os.chown(name, attributes.uid, attributes.gid, dir_fd=fd, follow_symlinks=False)
        )
        path = b"/proc/self/fd/%d/%s" % (fd, name)  # there is no setxattrat before Linux 6.13
        for key, value in self.image.tree.xattrs(attributes.ino).items():
            self._set_xattr(path, key, value, follow=False)
        if not stat.S_ISLNK(attributes.mode):
            os.chmod(name, self._mode(attributes, owned), dir_fd=fd)
        os.utime(name, ns=(attributes.mtime_ns, attributes.mtime_ns), dir_fd=fd, follow_symlinks=False)

    def _mode(self, attributes: Attributes, owned: bool) -> int:
        mode = stat.S_IMODE(attributes.mode)
        if not owned and mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(attributes.mode):
            self.counter["set-id bits"] += 1
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        return mode

    def _set_xattr(self, file: int | bytes, key: bytes, value: bytes, *, follow: bool) -> None:
        what = _NAMESPACES.get(key.split(b".")[0], "other xattrs")
        with self._counting_refusals(what, _XATTR_REFUSALS):
            os.setxattr(file, key, value, follow_symlinks=follow)

    def _refused_is_counted(self, what: str, action: Callable[[], None]) -> bool:
        before = self.counter[what]
        with self._counting_refusals(what, _NOT_PERMITTED):
            action()
        return self.counter[what] == before

    @contextlib.contextmanager
    def _counting_refusals(self, what: str, refusals: frozenset[int]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in refusals:
                raise
            self.counter[what] += 1

    def _shown(self) -> str:
        """Where the work is, for messages."""
        names = [*(level.entry.name for level in self.levels[1:][:_MAX_SHOWN]), self.current_name]
        return str(self.target.joinpath(*map(os.fsdecode, names)))


make_callable(__name__, extract)
