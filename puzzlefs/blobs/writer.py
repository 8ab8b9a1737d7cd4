"""Writing blobs so that a blob under its name is whole, whatever happens.

A blob is written to a temporary file in the same directory. Only ``commit`` gives blobs their names: first one syncfs
puts all of the data on disk, then each is renamed, then a second syncfs puts the names on disk. (A rename without the
first sync leaves empty files under final names after a power cut.) The caller moves a tag only after ``commit``.

What is written meanwhile need not wait for ``commit``: each time ``_WRITE_OUT_SIZE`` bytes have come together, a thread
begins to put them on disk, so the disk works while chunks are cut and hashed, and the first sync of ``commit`` finds
little left. The kernel reports a failed write-back once to each descriptor, so what that thread is told is kept, and
``commit`` fails with it.

A good blob is never rewritten: one that is there with the right size is left alone, or, with ``check_existing``, with
the right content. One of a wrong size is replaced by rename, so a reader that has it open keeps what it had.

A lease names the blobs that were there, and the new ones before they get their names (``lease``), so that ``gc`` beside
a build cannot remove what its tag will name. It ends with the writer's context: whoever moves a tag does it inside.

Processes forked from the one that owns the writer write through a ``delegate``; the owner takes over what they wrote.
They can also give it its names, while the owner has other work to do before ``commit`` (``begin_commit``).

``put`` may be called from several threads. Leaving the context without ``commit`` removes the temporary files; blobs
that have their names stay, and belong to no tag.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Final, Self

from puzzlefs.blobs.host import close_read, hash_file, storage_errors, sync_file_system, write_all
from puzzlefs.blobs.layout import TEMPORARY_PREFIX, Layout
from puzzlefs.blobs.lease import Lease, Root
from puzzlefs.blobs.transfer import Transferred, reading, transfer
from puzzlefs.digest import Digest
from puzzlefs.errors import BlobNotFoundError, PuzzlefsError, StorageError
from puzzlefs.signal_mask import blocked

_WRITE_OUT_SIZE: Final = 96 << 20
"""Bytes that are put on disk at once, ahead of ``commit``."""
_WORTH_A_THREAD: Final = 16 << 20
"""Bytes that ``commit`` puts on disk faster than a thread of its own would pay for."""
_WORTH_NAMING: Final = 1000
"""Blobs whose names are worth a few messages to the processes that wrote them."""
_DELEGATED: Final = "-w"


class BlobWriter:
    """Stores blobs in one layout, all at once, with ``commit``.

    Attributes:
        new_blobs: how many blobs were not there before.
        stored_bytes: how many bytes those have.
        transferred: how many of them came from another layout in which way.
    """

    def __init__(self, layout: Layout, *, check_existing: bool = False) -> None:
        """A writer into ``layout``; with ``check_existing``, blobs that are there are hashed before they count."""
        self._layout = layout
        self._check_existing = check_existing
        self._lock = threading.Lock()
        self._known: set[Digest] = set()
        self._pending: dict[Digest, str] = {}
        self._written: list[tuple[Digest, int, int]] = []
        self._failed: set[Digest] = set()
        self._linked: set[str] = set()
        self._token = secrets.token_hex(8)
        self._session = TEMPORARY_PREFIX + self._token
        self._lease: Lease | None = None
        self._lease_lock = threading.Lock()
        self._counter = 0
        self._unsynced_size = 0
        self._write_out: threading.Thread | None = None
        self._write_out_error: OSError | None = None
        self._naming: threading.Thread | None = None
        self._naming_error: OSError | PuzzlefsError | None = None
        self._step = 0
        self._has_delegates = False
        self.new_blobs = 0
        self.stored_bytes = 0
        self.transferred: Counter[Transferred] = Counter()

    def put(self, data: bytes | bytearray | memoryview, digest: Digest | None = None) -> Digest:
        """See to it that ``data`` is stored once ``commit`` has returned. Putting it twice is fine.

        Args:
            data: the bytes to store.
            digest: their sha256, where the caller knows it already.

        Returns:
            Their sha256, the blob's name.

        Raises:
            StorageError: if they cannot be written.
        """
        data = memoryview(data).cast("B")
        digest = Digest.of(data) if digest is None else digest
        with self._lock:
            if digest in self._known:
                return digest
            self._known.add(digest)
            self._failed.discard(digest)
            temporary = self._next_name()
        try:
            with storage_errors("write a blob to", self._layout.path):
                if self._is_there(digest, len(data)):
                    return digest
                self._its_lease()  # temporary files of whoever has none are left-overs
                self._write(temporary, data)
        except BaseException:
            with self._lock:  # another thread may have been told that this blob is on its way
                self._known.discard(digest)
                self._failed.add(digest)
            raise
        with self._lock:
            self._add(digest, temporary, len(data))
        return digest

    def put_from(self, source: Layout, digest: Digest) -> int:
        """See to it that a blob of another layout is stored in this one, too, once ``commit`` has returned.

        It is linked, or shares its blocks, where the file system can do that, and copied otherwise (``transfer``). It
        is hashed on the way, unless it is here already.

        Args:
            source: the layout that has it.
            digest: the blob.

        Returns:
            Its size in bytes.

        Raises:
            BlobNotFoundError: if ``source`` does not have it.
            FormatError: if something stands there that is not a regular file.
            IntegrityError: if it is not what its name says.
            StorageError: if it cannot be written, and as ``UnreadableBlobError`` if it cannot be read.
        """
        subject = f"blob {source.blob_path(digest)}"
        with reading(subject):
            fd = source.open_blob(digest)
        try:
            with storage_errors("copy a blob to", self._layout.path):
                with reading(subject):
                    size = os.fstat(fd).st_size
                if self.adopt(digest, size):
                    return size
                self._its_lease()
                with self._lock:
                    temporary = self._next_name()
                how = transfer(fd, digest, self._layout.blobs_fd, temporary, subject)
                if how is Transferred.LINKED:
                    self._linked.add(temporary)
        finally:
            close_read(fd)
        if self._accept(digest, temporary, size):
            with self._lock:
                self.transferred[how] += size
        return size

    def delegate(self, index: int, count: int) -> BlobWriter:
        """A writer for a process that is about to be forked, the one with this ``index`` of ``count``.

        It writes files and is asked for them with ``take_written``; it must not be committed or left as a context.
        """
        self._has_delegates = True
        other = BlobWriter(self._layout, check_existing=self._check_existing)
        other._known = set(self._known)
        other._session = self._session
        with storage_errors("write to", self._layout.path):
            other._lease = self._its_lease().in_fork()
        other._counter, other._step = index, count
        return other

    def take_written(self) -> list[tuple[Digest, int, int]]:
        """What a delegate has written since the last call: digests, sizes, and the numbers of the temporary files."""
        written, self._written = self._written, []
        return written

    def give_names(self, written: Sequence[tuple[Digest, int]]) -> None:
        """Give blobs their names that delegates of one owner have written, and that are on disk: digests, and numbers.

        Raises:
            StorageError: if the host fails.
        """
        with storage_errors("write blobs to", self._layout.path):
            directory = self._layout.blobs_fd
            for digest, number in written:
                os.rename(self._delegated(number), digest.hex(), src_dir_fd=directory, dst_dir_fd=directory)

    def take_over(self, digest: Digest, size: int, number: int) -> None:
        """Take note of a blob that a delegate has written; as ``put``.

        Raises:
            StorageError: if two of them have written it, and one of the files cannot be removed.
        """
        self._accept(digest, self._delegated(number), size)

    def adopt(self, digest: Digest, size: int) -> bool:
        """Whether a blob is stored, or on its way; it then needs no ``put``.

        It counts as stored under the same conditions as in ``put``.

        Raises:
            StorageError: if the host cannot tell.
        """
        # Asked of every chunk of a build, so it takes no lock and no context manager: only ``put`` takes a digest out
        # of the set, and only one that was not there.
        if digest in self._known:
            return True
        try:
            there = self._is_there(digest, size)
        except OSError:
            with storage_errors("look for a blob in", self._layout.path):
                raise
        if there:
            self._known.add(digest)
        return there

    def adopt_all(self, blobs: Collection[tuple[Digest, int]]) -> bool:
        """``adopt`` for many at once; if one is missing, none is adopted.

        Raises:
            StorageError: if the host cannot tell.
        """
        missing = [blob for blob in blobs if blob[0] not in self._known]
        if self._check_existing:
            return all(self.adopt(*blob) for blob in missing)
        with storage_errors("look for blobs in", self._layout.path):
            if missing and not self._its_lease().claim_all(missing):
                return False
        self._known.update([digest for digest, _ in missing])
        return True

    def rely_on(self, manifest: Digest, *, is_rootfs: bool) -> None:
        """Rely on an image of this layout, with everything in it, until the writer's context ends.

        Args:
            manifest: its manifest.
            is_rootfs: whether that is a rootfs blob, as in versions 1 and 2.

        Raises:
            BlobNotFoundError: if it is not there any more.
            StorageError: if the host cannot tell.
        """
        with storage_errors("write to", self._layout.path):
            self._its_lease().name((manifest,), Root.ROOTFS if is_rootfs else Root.MANIFEST)
            if self._layout.blob_size(manifest) is None:
                raise BlobNotFoundError(manifest.hex(), str(self._layout.blob_path(manifest)))

    def begin_write_out(self) -> None:
        """Begin to put on disk what was put so far, for a caller who has other work to do before ``commit``."""
        with self._lock:
            if self._unsynced_size >= _WORTH_A_THREAD:
                self._begin_write_out()

    def begin_commit(self, give_names: Callable[[Sequence[tuple[Digest, int]]], None]) -> None:
        """As ``begin_write_out``; what delegates have written also gets its names, which is theirs to do.

        Whatever goes wrong with that is an error of ``commit``.

        Args:
            give_names: has one of them call ``give_names``; it is called in another thread. Before it is taken away,
                ``end_naming`` must be called.

        Raises:
            StorageError: if the lease cannot be written.
        """
        written = [
            (digest, _delegated_number(temporary))
            for digest, temporary in self._pending.items()
            if _DELEGATED in temporary
        ]
        if len(written) < _WORTH_NAMING:
            self.begin_write_out()
            return
        with storage_errors("write to", self._layout.path):
            self._its_lease().name([digest for digest, _ in written])
        naming = threading.Thread(target=self._name, args=(written, give_names), name="puzzlefs-naming")
        with blocked(), contextlib.suppress(RuntimeError):  # no room for a thread: they get their names in ``commit``
            naming.start()
            self._naming = naming

    def end_naming(self) -> None:
        """Wait until nothing is done any more of what ``begin_commit`` began."""
        if self._naming is not None:
            self._naming.join()

    def commit(self) -> None:
        """Put every blob on disk and give it its name; when this returns, all of that survives a power cut.

        Raises:
            StorageError: if the host fails, or failed in a ``put`` that nobody repeated; some blobs may have their
                names then, and those are whole.
        """
        if self._failed:
            raise StorageError(f"blob sha256:{min(self._failed).hex()} could not be written to {self._layout.path}")
        with storage_errors("write blobs to", self._layout.path):
            directory = self._layout.blobs_fd
            self.end_naming()
            if self._naming_error is not None:
                raise self._naming_error
            if self._pending:
                self._its_lease().name(self._pending)
            self._end_write_out()
            sync_file_system(directory)
            if self._write_out_error is not None:
                raise self._write_out_error
            while self._pending:
                digest, temporary = next(iter(self._pending.items()))
                os.rename(temporary, digest.hex(), src_dir_fd=directory, dst_dir_fd=directory)
                if temporary in self._linked:  # rename(2) leaves both names where they are links to one file already
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(temporary, dir_fd=directory)
                del self._pending[digest]
            sync_file_system(directory)

    def abort(self) -> None:
        """Remove what was written and not committed, and give up the lease."""
        self.end_naming()
        self._end_write_out()
        while self._pending:
            _, temporary = self._pending.popitem()
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self._layout.blobs_fd)
        if self._has_delegates:  # they may have written files that nobody was told of
            with contextlib.suppress(OSError):
                for name in os.listdir(self._layout.blobs_fd):
                    if name.startswith(self._session):
                        os.unlink(name, dir_fd=self._layout.blobs_fd)
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _next_name(self) -> str:
        """A temporary name that nobody else uses. The lock is held."""
        if self._step:
            self._counter += self._step
            return self._delegated(self._counter)
        self._counter += 1
        return f"{self._session}-{self._counter:x}"

    def _delegated(self, number: int) -> str:
        return f"{self._session}{_DELEGATED}{number:x}"

    def _add(self, digest: Digest, temporary: str, size: int) -> None:
        """Take note of a blob that was written. The lock is held."""
        if self._step:  # it is the owner's
            self._written.append((digest, size, _delegated_number(temporary)))
            return
        self._pending[digest] = temporary
        self.new_blobs += 1
        self.stored_bytes += size
        self._unsynced_size += size
        if self._unsynced_size >= _WRITE_OUT_SIZE:
            self._begin_write_out()

    def _accept(self, digest: Digest, temporary: str, size: int) -> bool:
        """Take note of a blob that was written, or remove the file if somebody else was quicker; whether it counts."""
        with self._lock:
            if digest not in self._pending:
                self._known.add(digest)
                self._add(digest, temporary, size)
                return True
        with storage_errors("write a blob to", self._layout.path):
            os.unlink(temporary, dir_fd=self._layout.blobs_fd)
        return False

    def _begin_write_out(self) -> None:
        """Start a thread that syncs, unless there is one. The lock is held."""
        if self._write_out is None or not self._write_out.is_alive():
            self._unsynced_size = 0
            self._write_out = threading.Thread(target=self._sync, name="puzzlefs-write-out")
            # An exception of a signal handler in the middle of this would leave a thread that nobody can wait for.
            with blocked():
                self._write_out.start()

    def _sync(self) -> None:
        try:
            sync_file_system(self._layout.blobs_fd)
        except OSError as error:
            self._write_out_error = error

    def _name(
        self, written: Sequence[tuple[Digest, int]], give_names: Callable[[Sequence[tuple[Digest, int]]], None]
    ) -> None:
        self._end_write_out()
        self._sync()
        if self._write_out_error is not None:
            return
        try:
            give_names(written)
        except (OSError, PuzzlefsError) as error:
            self._naming_error = error
            return
        with self._lock:
            for digest, _ in written:
                del self._pending[digest]

    def _end_write_out(self) -> None:
        if self._write_out is not None:
            self._write_out.join()

    def _its_lease(self) -> Lease:
        """The lease, taken now if there is none yet."""
        if self._lease is None:
            with self._lease_lock:
                if self._lease is None:
                    self._lease = Lease(self._layout.blobs_fd, self._token)
        return self._lease

    def _is_there(self, digest: Digest, size: int) -> bool:
        """Whether a blob is there; if it is, the lease says that it is relied on."""
        if self._layout.blob_size(digest) != size or not self._its_lease().claim(digest, size):
            return False
        return not self._check_existing or self._hash_of_existing(digest) == digest

    def _hash_of_existing(self, digest: Digest) -> Digest | None:
        try:
            fd = self._layout.open_blob(digest)
            try:
                return hash_file(fd)
            finally:
                close_read(fd)
        except (OSError, PuzzlefsError):
            return None  # unreadable is as good as missing: it gets replaced

    def _write(self, name: str, data: memoryview) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        directory = self._layout.blobs_fd
        fd = os.open(name, flags, 0o644, dir_fd=directory)
        try:
            try:
                write_all(fd, data)
            finally:
                os.close(fd)  # a network file system may report here that it has no room
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            raise


def _delegated_number(temporary: str) -> int:
    """The number in a name that ``_delegated`` made."""
    return int(temporary.rpartition(_DELEGATED)[2], 16)
