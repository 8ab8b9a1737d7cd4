"""What a request of the kernel means: numbers and bytes in, attributes, bytes or an errno out.

This is the half of the mount that does not know who speaks to the kernel. An *engine* takes a request from its queue,
calls one method here and sends the answer; every engine runs these same methods. Rules:

* every method is synchronous, thread safe, and fails with ``RequestError`` only, whatever the image does;
* what fails because the image is bad is logged here, once, with the name of the file;
* nothing changes an image: ``open`` refuses to open for writing, and an engine answers every other request that would
  change something with ``EROFS``;
* only ``fetch`` waits for the host. ``is_ready`` says beforehand whether it would, so that an engine with one loop can
  serve what is in memory at once and give the rest to a thread.

Inode numbers are the image's own and stay valid for as long as the image is mounted, so there is nothing to forget.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from puzzlefs.errors import BlobNotFoundError, FormatError, NotFoundError, PuzzlefsError
from puzzlefs.image import Image
from puzzlefs.model import ROOT_INO, Kind
from puzzlefs.mount.digest_set import DigestSet
from puzzlefs.mount.error_log import ErrorLog, NameCache
from puzzlefs.mount.errors import RequestError, errno_of
from puzzlefs.vfs import Attributes, Entry, ReadPlan, Totals
from puzzlefs.vfs.tree import MAX_NAME_LENGTH

_FEW_INODES: Final = 200_000
_PRIVILEGED_XATTRS: Final = b"trusted."


class Operations:
    """The requests over one image.

    Attributes:
        image: the image, for engines that want to guess what will be asked for.
        errors: what went wrong.
        checked: the blobs that were verified at least once.
    """

    def __init__(
        self,
        image: Image,
        hides_xattr: Callable[[bytes], bool] | None = None,
        *,
        checked: DigestSet | None = None,
    ) -> None:
        """Requests over one image.

        Args:
            image: the image.
            hides_xattr: whether an extended attribute of this name is not shown at all.
            checked: the blobs that other processes verified for the same mount; a set of its own if not given.
        """
        self._tree = image.tree
        self._hides_xattr = hides_xattr
        self.image = image
        self._blobs = image.blobs
        self._names = NameCache(image.tree)
        self.errors = ErrorLog(self._names)
        self.checked = DigestSet(len(image.rootfs.verity)) if checked is None else checked
        for digest in image.opened_blobs():
            self.checked.add(digest)
        image.blobs.on_verified = self.checked.add
        self._totals: Totals | None = None

    # ---- names and attributes

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """The attributes of the entry ``name`` of a directory, ``None`` if it has no such entry.

        Raises:
            RequestError: if the entry or the directory is malformed; ``ENAMETOOLONG`` for a name that cannot be.
        """
        if len(name) > MAX_NAME_LENGTH:
            raise RequestError(errno.ENAMETOOLONG)  # the kernel lets a FUSE file system have 1,024 bytes
        try:
            try:
                entry = self._tree.lookup(parent, name)
            except BlobNotFoundError:
                raise
            except NotFoundError:
                return None
            attributes = self._attributes(entry.ino)
        except Exception as error:
            raise self._failed("lookup of", parent, error, name) from error
        self._names.remember(parent, entry)
        return attributes

    def getattr(self, ino: int) -> Attributes:
        """The attributes of an inode.

        Raises:
            RequestError: if there is no such inode, or it is malformed.
        """
        try:
            return self._attributes(ino)
        except Exception as error:
            raise self._failed("stat of", ino, error) from error

    def readlink(self, ino: int) -> bytes:
        """The target of a symbolic link.

        Raises:
            RequestError: if the inode is no link, or malformed.
        """
        try:
            return self._tree.readlink(ino)
        except Exception as error:
            raise self._failed("readlink of", ino, error) from error

    # ---- directories

    def entries(self, ino: int, *, is_asked_for: bool = True) -> Sequence[Entry]:
        """The entries of a directory, without ``.`` and ``..``; the same sequence at every call.

        Args:
            ino: the directory.
            is_asked_for: whether it is to be reported if this fails.

        Raises:
            RequestError: if it is no directory, or malformed.
        """
        try:
            return self._tree.entries(ino)
        except Exception as error:
            if not is_asked_for:
                raise RequestError(errno_of(error)) from error
            raise self._failed("listing of", ino, error) from error

    def entry_attributes(self, parent: int, entry: Entry) -> Attributes | None:
        """The attributes of an entry of a listing, ``None`` if the entry is malformed.

        A bad entry must not make its neighbours unlistable: it is to be listed by its name alone. Looking it up fails.
        """
        try:
            self._tree.check_entry(parent, entry)
            attributes = self._attributes(entry.ino)
        except Exception as error:  # noqa: BLE001
            self.errors.report("listing of", parent, error, entry.name)
            return None
        self._names.remember(parent, entry)
        return attributes

    def listed(self, parent: int, entries: Sequence[Entry], *, is_asked_for: bool = True) -> list[Attributes | None]:
        """``entry_attributes`` of many entries of one directory.

        Raises:
            RequestError: if it is not asked for yet and an entry is malformed, which is not reported then.
        """
        tree = self._tree
        found: list[Attributes | None] = []
        for entry in entries:
            try:
                if entry.kind is Kind.DIRECTORY or entry.kind is Kind.UNKNOWN:
                    tree.check_entry(parent, entry)
                    self._names.remember(parent, entry)
                found.append(tree.attributes(entry.ino))
            except Exception as error:
                if not is_asked_for:
                    raise RequestError(errno_of(error)) from error
                self.errors.report("listing of", parent, error, entry.name)
                found.append(None)
        self._names.remember_listing(parent)
        return found

    def parent(self, ino: int) -> int:
        """The directory that a directory is in: the root for the root, and for one whose place was forgotten."""
        return self._names.parent(ino) or ROOT_INO

    # ---- content

    def open(self, ino: int, flags: int) -> None:
        """Check that a file may be opened with ``flags`` (``O_RDONLY`` and so on).

        Raises:
            RequestError: ``EROFS`` if it is to be written.
        """
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise RequestError(errno.EROFS)

    def plan(self, ino: int, offset: int, size: int) -> ReadPlan:
        """What has to be fetched for a read.

        Args:
            ino: a regular file.
            offset: in bytes.
            size: in bytes; what is beyond the end of the file is left out.

        Raises:
            RequestError: if it is no regular file, or malformed.
        """
        try:
            return self._tree.plan(ino, offset, size)
        except Exception as error:
            raise self._failed("read of", ino, error) from error

    def is_ready(self, plan: ReadPlan) -> bool:
        """Whether ``fetch`` needs no I/O now."""
        is_cached = self._blobs.is_cached
        return all(is_cached(piece.blob) for piece in plan.pieces)

    def fetch(self, ino: int, plan: ReadPlan) -> bytes:
        """The bytes of a plan, verified.

        Raises:
            RequestError: if a blob is missing, corrupt or unreadable; the log names the blob and the file.
        """
        try:
            return self.image.fetch(plan)
        except Exception as error:
            raise self._failed("read of", ino, error) from error

    def views(self, ino: int, plan: ReadPlan) -> list[memoryview]:
        """The pieces of a plan as ``fetch`` joins them, without copying them; as ``fetch``."""
        try:
            return self.image.views(plan)
        except Exception as error:
            raise self._failed("read of", ino, error) from error

    # ---- extended attributes

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value of an extended attribute.

        Raises:
            RequestError: ``ENODATA`` if there is none of this name.
        """
        try:
            value = self._tree.xattrs(ino).get(name)
        except Exception as error:
            raise self._failed("getxattr of", ino, error) from error
        if value is None or (self._hides_xattr is not None and self._hides_xattr(name)):
            raise RequestError(errno.ENODATA)
        return value

    def listxattr(self, ino: int, *, privileged: bool) -> list[bytes]:
        """The names of an inode's extended attributes; ``trusted.*`` only for the privileged (xattr(7)).

        Raises:
            RequestError: if the inode is malformed.
        """
        try:
            names = list(self._tree.xattrs(ino))
        except Exception as error:
            raise self._failed("listxattr of", ino, error) from error
        if self._hides_xattr is not None:
            names = [name for name in names if not self._hides_xattr(name)]
        return names if privileged else [name for name in names if not name.startswith(_PRIVILEGED_XATTRS)]

    # ---- the file system

    def totals(self) -> Totals:
        """How many inodes the image has, and how many bytes of content. The first call walks the metadata.

        Raises:
            RequestError: if the metadata are malformed.
        """
        if self._totals is None:
            try:
                self._totals = self._tree.totals()
            except Exception as error:
                raise self._failed("statfs of", ROOT_INO, error) from error
        return self._totals

    def prepare(self) -> None:
        """Count the links of the image, which the first request for a file would otherwise wait for. Never fails."""
        with contextlib.suppress(PuzzlefsError):  # whoever asks for a file is told
            self._tree.links()

    def is_small(self) -> bool:
        """Whether a pass over all inodes is a matter of a fraction of a second."""
        return sum(map(len, self.image.rootfs.metadata_layers)) <= _FEW_INODES

    # ---- inside

    def _attributes(self, ino: int) -> Attributes:
        try:
            return self._tree.attributes(ino)
        except NotFoundError as error:
            # a number that an entry, or the kernel, has from this image: the image contradicts itself
            raise FormatError(f"inode {ino} does not exist") from error

    def _failed(self, request: str, ino: int, error: Exception, name: bytes | None = None) -> RequestError:
        number = errno_of(error)
        self.errors.report(request, ino, error, name)
        return RequestError(number)
