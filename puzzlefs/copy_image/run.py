"""The copy: what is there already, a batch after the other, the tags."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.blobs.host import storage_errors
from puzzlefs.blobs.transfer import Transferred
from puzzlefs.builder.workers import started_pool, worker_count
from puzzlefs.copy_image.survey import Survey
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import InvalidArgumentError, NotFoundError
from puzzlefs.image import find_manifest, open_image
from puzzlefs.oci import Descriptor, Dialect, ImageReference, Index, media_types, parse_reference

_BATCH_BYTES: Final = 256 << 20
_BATCH_BLOBS: Final = 4096
"""After so much, blobs are put on disk and get their names: what an interruption costs."""
_VERSIONS: Final = {Dialect.OCI: "version 3", Dialect.PUZZLEFS_DEV: "versions 1 and 2"}

Progress = Callable[[int, int], None]
"""Told how many bytes of blobs are dealt with, of how many."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was copied.

    Attributes:
        images: what the copies are called, ``OCI_DIR:TAG``.
        referrers: how many manifests went along because they refer to what was copied.
        blobs: distinct blobs that all of that consists of.
        bytes: their bytes.
        new_blobs: those of them that were not there.
        copied_bytes: bytes of new blobs that were copied.
        cloned_bytes: bytes of new blobs that share their blocks with the old ones.
        linked_bytes: bytes of new blobs that are further names of the old ones.
        skipped_blobs: blobs that were there already.
        skipped_bytes: their bytes.
        missing_blobs: blobs that are named, and are not there, and no visible file needs.
        seconds: how long it took.
    """

    images: tuple[str, ...]
    referrers: int
    blobs: int
    bytes: int
    new_blobs: int
    copied_bytes: int
    cloned_bytes: int
    linked_bytes: int
    skipped_blobs: int
    skipped_bytes: int
    missing_blobs: int
    seconds: float


def copy_image(
    image: ImageReference | str,
    target: ImageReference | str | os.PathLike[str],
    *,
    digest: VerityDigest | str | None = None,
    check_existing: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy what a tag points to, with everything that it leads to, to another layout.

    Args:
        image: the image, ``OCI_DIR:TAG``; it need not be one of ours.
        target: where to: ``OCI_DIR:TAG``, or a directory (``parse_target``), in which it keeps its tag. The layout is
            made if need be; the tag moves if it is there.
        digest: the fs-verity digest that the image's manifest must have.
        check_existing: hash blobs that are there already, instead of trusting their size; damaged ones are replaced.
        workers: threads that copy; as many as there are CPUs, up to 8, if not given.
        progress: called now and then, in the caller's thread.

    Raises:
        NotFoundError: if the image, or a blob that it needs, is missing.
        FormatError: if the image, or a document that leads to it, is malformed.
        IntegrityError: if a blob is not what its name says, or the manifest is not the one that ``digest`` names.
        InvalidArgumentError: for arguments that make no sense, also if ``target`` is a layout of the other kind.
        StorageError: if a layout cannot be read or written. In all of these cases no tag has moved.
    """
    started = time.monotonic()
    source = parse_reference(image) if isinstance(image, str) else image
    goal = target if isinstance(target, ImageReference) else parse_target(os.fspath(target), source.tag)
    with Layout.open(source.layout) as layout:
        index = layout.read_index()
        entry = layout.find_entry(index, source.tag)
        if digest is not None:
            open_image(source, digest=digest, manifest=find_manifest(layout, index, source).digest).close()
        return _Copy(layout, index, {goal.tag: entry}, goal.layout, check_existing, workers, progress).run(started)


def copy_all(
    layout: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    check_existing: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CopyReport:
    """Copy all tags of a layout, with everything that they lead to, to another layout; all of them move at once.

    Args:
        layout: the layout.
        target: the directory of the other one, which is made if need be. Its other tags stay.
        check_existing: as ``copy_image``.
        workers: as ``copy_image``.
        progress: as ``copy_image``.

    Raises:
        PuzzlefsError: as ``copy_image``.
    """
    started = time.monotonic()
    with Layout.open(Path(layout)) as opened:
        index = opened.read_index()
        return _Copy(opened, index, index.tagged(), Path(target), check_existing, workers, progress).run(started)


def parse_target(text: str, tag: str) -> ImageReference:
    """Where a copy goes: ``OCI_DIR:TAG``, or a directory, in which it is called ``tag``.

    A directory that exists is one; so is a name without a colon.

    Raises:
        InvalidArgumentError: if it is neither.
    """
    if not text:
        raise InvalidArgumentError("no directory is named to copy to", hint="write OCI_DIR or OCI_DIR:TAG")
    if ":" not in text or os.path.isdir(text):  # noqa: PTH112  an error is told by who opens it
        return ImageReference(Path(text), tag)
    return parse_reference(text)


class _Copy:
    def __init__(
        self,
        source: Layout,
        index: Index,
        entries: Mapping[str, Descriptor],
        target: Path,
        check_existing: bool,
        workers: int | None,
        progress: Progress | None,
    ) -> None:
        self._source = source
        self._index = index
        self._entries = entries
        self._target = target
        self._check_existing = check_existing
        self._workers = worker_count(workers)
        self._progress = progress or (lambda _done, _total: None)

    def run(self, started: float) -> CopyReport:
        survey = Survey(self._source)
        refuse_other_kind(self._source, self._target)
        for tag, entry in self._entries.items():
            survey.add(tag, entry)
        referrers = survey.referrers(self._index, self._entries.values())
        blobs = survey.blobs
        with (
            Layout.open_or_create(self._target, self._source.dialect) as layout,
            BlobWriter(layout, check_existing=self._check_existing) as writer,
        ):
            self._take(layout, writer, blobs)
            layout.update_index(lambda index: self._with_entries(index, referrers))
            new = sum(writer.transferred.values())
            return CopyReport(
                images=tuple(f"{self._target}:{tag}" for tag in self._entries),
                referrers=len(referrers),
                blobs=len(blobs),
                bytes=sum(blobs.values()),
                new_blobs=writer.new_blobs,
                copied_bytes=writer.transferred[Transferred.COPIED],
                cloned_bytes=writer.transferred[Transferred.CLONED],
                linked_bytes=writer.transferred[Transferred.LINKED],
                skipped_blobs=len(blobs) - writer.new_blobs,
                skipped_bytes=sum(blobs.values()) - new,
                missing_blobs=len(survey.missing),
                seconds=time.monotonic() - started,
            )

    def _take(self, layout: Layout, writer: BlobWriter, blobs: dict[Digest, int]) -> None:
        """Have all blobs in the layout, on disk and under their names."""
        total = sum(blobs.values())
        done = 0
        self._progress(done, total)
        left = blobs
        if not self._check_existing:
            with storage_errors("look for blobs in", layout.path):
                here = {digest: size for digest, size in blobs.items() if layout.blob_size(digest) == size}
            if writer.adopt_all(here.items()):
                left = {digest: size for digest, size in blobs.items() if digest not in here}
                done = sum(here.values())
                self._progress(done, total)
        with _pool(self._workers) as pool:
            for batch in _batches(left):
                for size in pool.map(lambda digest: writer.put_from(self._source, digest), batch):
                    done += size
                    self._progress(done, total)
                writer.commit()

    def _with_entries(self, index: Index, referrers: Sequence[Descriptor]) -> Index:
        """The index with all of them; tags that point there already stay where they are."""
        there = index.tagged()
        new: dict[str, Descriptor] = {}
        for referrer in referrers:
            tag = referrer.annotation(media_types.REF_NAME)
            if tag is not None:
                new[tag] = referrer
            elif referrer not in index.manifests:
                index = index._replace(manifests=(*index.manifests, referrer))
        new.update(self._entries)
        moved = {
            tag: entry
            for tag, entry in new.items()
            if there.get(tag) != entry.with_annotation(media_types.REF_NAME, tag)
        }
        return index.with_tags(moved)


def refuse_other_kind(source: Layout, target: Path) -> None:
    """Refuse to copy into a layout that cannot hold the images of ``source``.

    Raises:
        InvalidArgumentError: if it is of the other kind.
        FormatError: if it says it is a layout but is not one that we know.
        StorageError: if it cannot be read.
    """
    try:
        with Layout.open(target) as layout:
            dialect = layout.dialect
    except NotFoundError:
        return  # it will be made
    if dialect is not source.dialect:
        version = 3 if dialect is Dialect.OCI else 2
        raise InvalidArgumentError(
            f"{target} holds images of format {_VERSIONS[dialect]}, and {source.path} those of "
            f"{_VERSIONS[source.dialect]}",
            hint=f"`puzzlefs convert --format-version {version}` writes an image in the other's version",
        )


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    pool = started_pool(workers)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(blobs: dict[Digest, int]) -> Iterator[list[Digest]]:
    batch: list[Digest] = []
    size = 0
    for digest, blob_size in blobs.items():
        batch.append(digest)
        size += blob_size
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_BLOBS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
