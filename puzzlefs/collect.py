"""Garbage collection: removing the blobs that nothing in an index reaches. The operation behind ``puzzlefs gc``.

What may be needed is found without reading a chunk (``reachable``), and stays:

* what any entry of the index reaches: tagged or not, through nested indexes, images of other programs as well;
* what a lease reaches (``puzzlefs.blobs.lease``): the images that live mounts serve, and the blobs on which a running
  build, delta, conversion or copy relies, whatever their age;
* what is younger than the *grace*, and what that reaches if it is a manifest: other programs, which take no lease,
  write blobs first and the index last.

Most of the work is done before any lock is taken. Then, under the locks of the layouts and the exclusive one of the
directory of blobs, the indexes are read again, the leases are read, and what came up in between is added; nothing can
join until the removal is done. A document that cannot be read means that nothing is removed.

A directory of blobs that several layouts share is collected only for all of them together: blobs that only an unnamed
layout names would look like garbage. A program cannot find those, so it asks for their names.

Blobs go newest first. A manifest is younger than what it names, so whatever interrupts this leaves no manifest without
its chunks. Under the locks they are removed as long as that is quick. On some file systems it takes fifty times as long
as a rename, and builds and mounts must not wait for it: there they only lose their names, and become temporary files
that are removed afterwards. What an interruption leaves of those is collected as any left-over file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from puzzlefs.blobs import Layout
from puzzlefs.blobs.host import storage_errors
from puzzlefs.blobs.inventory import blob_sizes, blobs_in, left_overs
from puzzlefs.blobs.layout import TEMPORARY_PREFIX
from puzzlefs.blobs.lease import LEASE_PREFIX, collecting, is_live, read_lease
from puzzlefs.builder.workers import started_pool
from puzzlefs.digest import Digest
from puzzlefs.errors import InvalidArgumentError, PuzzlefsError
from puzzlefs.oci import Index, media_types
from puzzlefs.reachable import Reachable, kind_of_document

DEFAULT_GRACE: Final = 3600.0
"""Seconds for which a blob that nothing reaches stays: longer than other programs take between a blob and the index."""

_PATIENCE: Final = 60.0
"""Seconds to wait for the directory's lock, which honest programs hold for microseconds."""
_REMOVERS: Final = 32
"""Threads that remove files; they wait for the disk, not for the processor."""
_BATCH: Final = 250
"""Files that are removed before somebody looks what there is to do."""
_QUICK: Final = 50e-6
"""Seconds for each file that it may take to remove files while others wait for the locks: some times what the rename
takes that they would have to wait for otherwise."""
_SLACK: Final = 0.1
"""Seconds that it may take longer altogether."""


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What was removed, or would be.

    Attributes:
        dry_run: whether nothing was touched.
        removed_blobs: blobs that nothing reaches.
        removed_bytes: their bytes. (Where a blob has more names, in a copy of the layout, it frees none.)
        dropped_entries: entries of indexes without a tag that were dropped.
        temporary_files: left-over files of programs that were killed, which were removed.
        temporary_bytes: their bytes.
        kept_blobs: blobs that stay.
        kept_bytes: their bytes.
        young_blobs: those of them that nothing but their age protects.
        young_bytes: their bytes.
        leases: live mounts and running builds that were asked.
        seconds: how long it took.
    """

    dry_run: bool
    removed_blobs: int
    removed_bytes: int
    dropped_entries: int
    temporary_files: int
    temporary_bytes: int
    kept_blobs: int
    kept_bytes: int
    young_blobs: int
    young_bytes: int
    leases: int
    seconds: float


def collect_garbage(
    layout: Path | str,
    *,
    others: Sequence[Path | str] = (),
    is_sole: bool = False,
    dry_run: bool = False,
    grace: float = DEFAULT_GRACE,
    untagged: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> GarbageReport:
    """Remove from a layout the blobs that nothing reaches, and left-over temporary files.

    Safe beside builds and mounts of this program. No chunk is read.

    Args:
        layout: the layout's directory.
        others: all other layouts that share its directory of blobs.
        is_sole: whether no other layout shares it, although it is a symbolic link.
        dry_run: report what would be removed, and touch nothing.
        grace: seconds; what is younger stays.
        untagged: drop the entries of the indexes that have no tag, too, and what only they reach.
        progress: called now and then with the number of blobs removed and to be removed.

    Raises:
        InvalidArgumentError: if the directory of blobs is shared and not all layouts are named, or one that is named
            does not share it, or ``grace`` is negative.
        NotFoundError: if there is no such layout, or something that has to be read is missing.
        FormatError: if an index, manifest or metadata blob is malformed.
        IntegrityError: if a manifest or metadata blob is not what its digest says. In all of these cases nothing was
            removed.
        StorageError: if the host fails; what was removed until then was garbage.
    """
    started = time.monotonic()
    if not grace >= 0:
        raise InvalidArgumentError(f"a grace of {grace} seconds makes no sense", hint="it is 0 or more")
    with contextlib.ExitStack() as stack:
        layouts = [stack.enter_context(opened) for opened in _opened([Path(layout), *map(Path, others)])]
        _check_sharing(layouts, is_sole)
        collection = _Collection(layouts, dry_run, grace, untagged, progress or (lambda _done, _total: None))
        return replace(collection.run(), seconds=time.monotonic() - started)


class _Unreached(NamedTuple):
    """A blob that nothing reaches, as it was under the locks."""

    digest: Digest
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(slots=True)
class _Collection:
    layouts: list[Layout]
    dry_run: bool
    grace: float
    untagged: bool
    progress: Callable[[int, int], None]

    def run(self) -> GarbageReport:
        first = self.layouts[0]
        blobs = blobs_in(first)
        reachable = Reachable(first, blobs)
        self._follow_indexes(reachable)
        nameless: list[str] = []
        removed = 0
        try:
            with self._locked():
                indexes = self._follow_indexes(reachable)
                leases = self._follow_leases(reachable)
                dropped = sum(len(old.manifests) - len(new.manifests) for _, old, new in indexes)
                unreached = self._unreached(reachable, blobs)
                young = self._young(reachable, unreached, time.time())
                garbage = [blob for blob in unreached if blob not in young and blob.digest not in reachable.named]
                # What was not there before all of this is younger than anything that is removed.
                files, file_bytes = self._remove_left_overs()
                if not self.dry_run:
                    for layout, old, new in indexes:
                        if old != new:
                            layout.write_index(new)
                    newest_first = [blob.digest for blob in sorted(garbage, key=_age, reverse=True)]
                    removed = self._remove_quickly(newest_first)
                    self._set_aside(newest_first[removed:], nameless)
        except BaseException:
            with contextlib.suppress(PuzzlefsError):
                self._remove(nameless, removed)
            raise
        self._remove(nameless, removed)
        gone = {blob.digest for blob in garbage}
        known = {blob.digest: blob.size for blob in unreached}
        kept = blob_sizes(first, [digest for digest in blobs if digest not in known])
        kept.update([(digest, size) for digest, size in known.items() if digest not in gone])
        return GarbageReport(
            dry_run=self.dry_run,
            removed_blobs=len(garbage),
            removed_bytes=sum(blob.size for blob in garbage),
            dropped_entries=dropped,
            temporary_files=files,
            temporary_bytes=file_bytes,
            kept_blobs=len(kept),
            kept_bytes=sum(kept.values()),
            young_blobs=len(young),
            young_bytes=sum(blob.size for blob in young),
            leases=leases,
            seconds=0.0,
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for layout in self.layouts:
                stack.enter_context(layout.locked())
            first = self.layouts[0]
            with storage_errors("lock the blobs of", first.path):
                stack.enter_context(collecting(first.blobs_fd, _PATIENCE))
            yield

    # ---- what stays

    def _follow_indexes(self, reachable: Reachable) -> list[tuple[Layout, Index, Index]]:
        """Follow all entries that stay; each layout with its index as it is and as it will be."""
        found = []
        for layout in self.layouts:
            old = layout.read_index()
            kept = [entry for entry in old.manifests if not self.untagged or entry.annotation(media_types.REF_NAME)]
            for entry in kept:
                tag = entry.annotation(media_types.REF_NAME) or "an entry without a tag"
                with _nothing_removed(f"{layout.path}: {tag}"):
                    reachable.add_entry(entry)
            found.append((layout, old, old._replace(manifests=tuple(kept))))
        return found

    def _follow_leases(self, reachable: Reachable) -> int:
        layout = self.layouts[0]
        count = 0
        with storage_errors("read the leases in", layout.path):
            for name in os.listdir(layout.blobs_fd):
                if name.startswith(LEASE_PREFIX) and is_live(layout.blobs_fd, name):
                    count += 1
                    with _nothing_removed(f"{layout.path}: the lease {name} of a build or a mount"):
                        for kind, digest in read_lease(layout.blobs_fd, name):
                            reachable.add_root(kind, digest)
        return count

    def _unreached(self, reachable: Reachable, blobs: Sequence[Digest]) -> list[_Unreached]:
        """The blobs that nothing reaches, as they are now: one may be another file than before, or gone."""
        found: list[_Unreached] = []
        layout = self.layouts[0]
        named, directory = reachable.named, layout.blobs_fd
        with storage_errors("look at the blobs of", layout.path):
            for digest in blobs:
                if digest in named:
                    continue
                try:
                    status = os.stat(digest.hex(), dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append(_Unreached(digest, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return found

    def _young(self, reachable: Reachable, unreached: Sequence[_Unreached], now: float) -> set[_Unreached]:
        """What only its age protects; what young manifests name is added to what is reachable."""
        oldest = (now - self.grace) * 1e9
        young = {blob for blob in unreached if blob.mtime_ns > oldest or blob.ctime_ns > oldest}
        for blob in young:
            kind = kind_of_document(self.layouts[0], blob.digest, blob.size)
            if kind is not None:
                # It only looks like one, or is not complete yet: then nobody can open it either.
                with contextlib.suppress(PuzzlefsError):
                    reachable.add_root(kind, blob.digest)
        return young

    # ---- what goes

    def _remove_quickly(self, garbage: Sequence[Digest]) -> int:
        """Remove blobs one after the other, as long as that is quick; how many are gone."""
        layout = self.layouts[0]
        directory = layout.blobs_fd
        started = time.monotonic()
        with storage_errors("remove blobs from", layout.path):
            for number, digest in enumerate(garbage):
                if time.monotonic() - started > _SLACK + number * _QUICK:
                    return number
                if number and not number % _BATCH:
                    self.progress(number, len(garbage))
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(digest.hex(), dir_fd=directory)
        return len(garbage)

    def _set_aside(self, garbage: Sequence[Digest], names: list[str]) -> None:
        """Take the names of blobs away, under which they might be relied on, and add those that they have then."""
        layout = self.layouts[0]
        session = f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        with storage_errors("remove blobs from", layout.path):
            for number, digest in enumerate(garbage):
                name = f"{session}-{number:x}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(digest.hex(), name, src_dir_fd=layout.blobs_fd, dst_dir_fd=layout.blobs_fd)
                    names.append(name)

    def _remove(self, names: Sequence[str], done: int) -> None:
        """Remove what was set aside, after ``done`` others."""
        layout = self.layouts[0]
        batches = [names[at : at + _BATCH] for at in range(0, len(names), _BATCH)]
        total = done + len(names)
        with storage_errors("remove blobs from", layout.path), _mapper(len(batches)) as map_batches:
            for removed in map_batches(self._remove_batch, batches):
                done += removed
                self.progress(done, total)
        if not names:
            self.progress(done, total)

    def _remove_batch(self, names: Sequence[str]) -> int:
        directory = self.layouts[0].blobs_fd
        for name in names:
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:  # another collection was quicker
                continue
        return len(names)

    def _remove_left_overs(self) -> tuple[int, int]:
        count = size = 0
        for layout in self.layouts:
            for file in left_overs(layout, self.grace):
                if file.directory == layout.blobs_fd and layout is not self.layouts[0]:
                    continue  # one directory, looked at once
                if not self.dry_run:
                    # (Another collection removes what has no name any more without a lock.)
                    with (
                        storage_errors(f"remove {file.name} from", layout.path),
                        contextlib.suppress(FileNotFoundError),
                    ):
                        os.unlink(file.name, dir_fd=file.directory)
                if not file.name.startswith(LEASE_PREFIX):
                    count += 1
                    size += file.size
        return count, size


def _age(blob: _Unreached) -> int:
    return blob.ctime_ns


def _opened(paths: Sequence[Path]) -> list[Layout]:
    """The layouts, each once, in the order in which everybody locks them."""
    layouts: dict[tuple[int, int], Layout] = {}
    try:
        for path in paths:
            layout = Layout.open(path)
            with storage_errors("open the image layout", path):
                status = path.stat()
            if (status.st_dev, status.st_ino) in layouts:
                layout.close()
            else:
                layouts[status.st_dev, status.st_ino] = layout
    except BaseException:
        for layout in layouts.values():
            layout.close()
        raise
    return [layouts[key] for key in sorted(layouts)]


def _check_sharing(layouts: Sequence[Layout], is_sole: bool) -> None:
    first = layouts[0]
    for layout in layouts[1:]:
        with storage_errors("look at", layout.path):
            is_shared = os.path.sameopenfile(first.blobs_fd, layout.blobs_fd)
        if not is_shared:
            raise InvalidArgumentError(
                f"{layout.path} does not share its blobs with {first.path}", hint="collect each of them alone"
            )
    if len(layouts) > 1 or is_sole:
        return
    place = first.path.resolve() / "blobs" / "sha256"
    if place.resolve() != place:
        raise InvalidArgumentError(
            f"the blobs of {first.path} are in {place.resolve()}, which other layouts may share; what only those name "
            "would look like garbage",
            hint="name all of them behind it, or say --sole if there is no other",
        )


@contextlib.contextmanager
def _mapper(work: int) -> Iterator[Callable[[Callable[[Sequence[str]], int], list[Sequence[str]]], Iterator[int]]]:
    """What does so much work like ``map``: in threads, unless the host does not give us any."""
    try:
        pool = started_pool(min(work, _REMOVERS)) if work > 1 else None
    except RuntimeError:
        pool = None
    if pool is None:
        yield map
        return
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _nothing_removed(subject: str) -> Iterator[None]:
    """An error inside says what could not be followed, and that nothing was removed."""
    try:
        yield
    except PuzzlefsError as error:
        error.message = f"nothing was removed, because it is not known what is needed by {subject}: {error.message}"
        error.hint = "puzzlefs fsck says what is wrong there; repair it, or remove its tag"
        raise
