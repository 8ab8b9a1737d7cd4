"""Writing an image out as ordinary files.

Safe whatever the image says: nothing is created outside of the target directory, because every name has been checked by
``vfs`` to be one component, each is created relative to a descriptor of its parent, never through a symbolic link, and
only where nothing is yet (``O_EXCL``). Going back up goes through ``..`` and must arrive at the directory that was
left. The whole tree is checked before the first file is made, so an image whose tree is malformed leaves nothing
behind.

One descriptor is open at a time besides the root's, however deep the tree is. A directory gets its attributes after its
entries, so that default ACLs, read-only modes and times are those of the image. Not for several threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from puzzlefs.blobs import VerityMode
from puzzlefs.digest import VerityDigest
from puzzlefs.errors import InvalidArgumentError, StorageError, UnsafePathError
from puzzlefs.image import Image, open_image
from puzzlefs.model import ROOT_INO, Kind
from puzzlefs.oci import ImageReference
from puzzlefs.vfs import Attributes, Entry

_WINDOW: Final = 1 << 20
"""Bytes of a file that are read and written at a time."""

_HOLE: Final = 4096
"""Bytes, and alignment, of the smallest run of zeros that becomes a hole."""

_ZEROS: Final = bytes(_HOLE)
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_PERMITTED: Final = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL})
_XATTR_REFUSALS: Final = frozenset({*_NOT_PERMITTED, errno.ENOTSUP})
_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")

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
        return _Extraction(image, target, root_fd, progress).run()
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
    if os.listdir(fd):
        os.close(fd)
        raise InvalidArgumentError(f"{target} is not empty", hint="name an empty or a new directory")
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
    counter: Counter[str] = field(default_factory=Counter)
    first_names: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    levels: list[_Level] = field(default_factory=list)
    current_fd: int = -1
    entries: int = 0
    bytes: int = 0

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
        finally:
            os.close(self.current_fd)
        return ExtractReport(self.entries, self.bytes, dict(self.counter))

    # ---- directories

    def _enter(self, entry: Entry) -> None:
        status = os.fstat(self.current_fd)
        entries = iter(self.image.tree.entries(entry.ino))
        self.levels.append(_Level(entry, (status.st_dev, status.st_ino), entries))

    def _leave(self) -> None:
        """Give the directory that is complete its attributes, and go back to its parent."""
        level = self.levels.pop()
        self._check_identity(level)
        attributes = self.image.tree.attributes(level.entry.ino)
        up_fd = os.open(b"..", _DIRECTORY_FLAGS, dir_fd=self.current_fd) if self.levels else os.dup(self.root_fd)
        try:
            self._restore(self.current_fd, attributes)
        finally:
            os.close(self.current_fd)
            self.current_fd = up_fd
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
        self.entries += 1
        if self.progress is not None:
            self.progress(self.entries, self.bytes)
        if entry.kind is Kind.DIRECTORY:
            os.mkdir(entry.name, 0o700, dir_fd=self.current_fd)
            fd = os.open(entry.name, _DIRECTORY_FLAGS, dir_fd=self.current_fd)
            os.close(self.current_fd)
            self.current_fd = fd
            self._enter(entry)
            return
        attributes = self.image.tree.attributes(entry.ino)
        if attributes.nlink > 1:
            first = self.first_names.get(entry.ino)
            if first is not None:
                self._link(first, entry.name)
                return
        if entry.kind is Kind.REGULAR:
            self._create_file(entry, attributes)
        elif not self._create_special(entry, attributes):
            return
        if attributes.nlink > 1:
            self.first_names[entry.ino] = (*(level.entry.name for level in self.levels[1:]), entry.name)

    def _create_file(self, entry: Entry, attributes: Attributes) -> None:
        fd = os.open(entry.name, _FILE_FLAGS, 0o600, dir_fd=self.current_fd)
        try:
            for offset in range(0, attributes.size, _WINDOW):
                data = self.image.read(entry.ino, offset, _WINDOW)
                _write_sparse(fd, data, offset)
                self.bytes += len(data)
                if self.progress is not None:
                    self.progress(self.entries, self.bytes)
            os.truncate(fd, attributes.size)
            self._restore(fd, attributes)
        finally:
            os.close(fd)

    def _create_special(self, entry: Entry, attributes: Attributes) -> bool:
        """Make anything that has no content; whether that was possible."""
        if entry.kind is Kind.SYMLINK:
            os.symlink(self.image.tree.readlink(entry.ino), entry.name, dir_fd=self.current_fd)
        else:
            mode = stat.S_IFMT(attributes.mode) | 0o600
            try:
                os.mknod(entry.name, mode, attributes.rdev, dir_fd=self.current_fd)
            except OSError as error:
                if error.errno not in _NOT_PERMITTED:
                    raise
                self.counter["devices"] += 1
                return False
        self._restore_by_name(entry, attributes)
        return True

    def _link(self, first: Sequence[bytes], name: bytes) -> None:
        """Make a further name of a file whose first name is ``first``, which is walked to without following links."""
        fd = os.dup(self.root_fd)
        try:
            for component in first[:-1]:
                next_fd = os.open(component, _DIRECTORY_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = next_fd
            os.link(first[-1], name, src_dir_fd=fd, dst_dir_fd=self.current_fd, follow_symlinks=False)
        finally:
            os.close(fd)

    # ---- attributes

    def _restore(self, fd: int, attributes: Attributes) -> None:
        """Owner, xattrs, mode, time of an open file or directory, in the order in which none undoes another."""
        owned = self._refused_is_counted("owners", lambda: os.chown(fd, attributes.uid, attributes.gid))
        for key, value in self.image.tree.xattrs(attributes.ino).items():
            self._set_xattr(fd, key, value, follow=True)
        os.chmod(fd, self._mode(attributes, owned))
        os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))

    def _restore_by_name(self, entry: Entry, attributes: Attributes) -> None:
        """The same for what must not or cannot be opened."""
        name, fd = entry.name, self.current_fd
        owned = self._refused_is_counted(
            "owners", lambda: os.chown(name, attributes.uid, attributes.gid, dir_fd=fd, follow_symlinks=False)
        )
        path = b"/proc/self/fd/%d/%s" % (fd, name)  # there is no setxattrat before Linux 6.13
        for key, value in self.image.tree.xattrs(attributes.ino).items():
            self._set_xattr(path, key, value, follow=False)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(name, self._mode(attributes, owned), dir_fd=fd)
        os.utime(name, ns=(attributes.mtime_ns, attributes.mtime_ns), dir_fd=fd, follow_symlinks=False)

    def _mode(self, attributes: Attributes, owned: bool) -> int:
        mode = stat.S_IMODE(attributes.mode)
        if not owned and mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(attributes.mode):
            self.counter["set-id bits"] += 1
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        return mode

    def _set_xattr(self, file: int | bytes, key: bytes, value: bytes, *, follow: bool) -> None:
        what = f"{key.split(b'.')[0].decode('utf-8', 'backslashreplace')}.* xattrs"
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
        names = b"/".join(level.entry.name for level in self.levels[1:])
        return str(self.target / os.fsdecode(names))


def _write_sparse(fd: int, data: bytes, offset: int) -> None:
    """Write ``data`` at ``offset`` (a multiple of ``_HOLE``), leaving out aligned blocks that are all zeros."""
    start = 0
    if _ZEROS in data:
        for position in range(0, len(data), _HOLE):
            block = data[position : position + _HOLE]
            if block == _ZEROS[: len(block)]:
                if start < position:
                    _write_all(fd, data[start:position], offset + start)
                start = position + len(block)
    if start < len(data):
        _write_all(fd, data[start:], offset + start)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
