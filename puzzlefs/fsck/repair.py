"""Mending bad blobs: from other layouts, or from the trees that images were built from.

What is good is written beside what is bad, and takes its place by a rename when it is on disk (``blobs.writer``): the
bad file is there until then, also after a power cut. What cannot be replaced like that, a directory, is moved aside
first.

A source is never trusted: a blob that is fetched is hashed on the way, one that is cut again afterwards.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from puzzlefs.blobs import BlobWriter, Layout
from puzzlefs.blobs.host import storage_errors
from puzzlefs.blobs.layout import TEMPORARY_PREFIX
from puzzlefs.blobs.lease import Lease
from puzzlefs.blobs.transfer import UnreadableBlobError
from puzzlefs.digest import Digest
from puzzlefs.errors import PuzzlefsError, StorageError
from puzzlefs.fsck.check import Check
from puzzlefs.fsck.cutting import Cutter, TreeSource
from puzzlefs.fsck.uses import Use, places_of
from puzzlefs.oci import EMPTY_CONFIG_DATA

_KNOWN: Final = {Digest.of(EMPTY_CONFIG_DATA): EMPTY_CONFIG_DATA}
"""Blobs whose content is fixed by the format."""


class Repair:
    """Mends the blobs of one layout, as often as it is ``run``. A context manager."""

    def __init__(self, layout: Layout, sources: Sequence[Path | str], trees: Sequence[Path | str]) -> None:
        """Open everything that blobs may come from.

        Raises:
            NotFoundError: if a source is no layout, or a tree no directory.
            FormatError: if a source says it is a layout and is none.
            StorageError: if one cannot be opened, or the layout is not writable.
        """
        self._layout = layout
        with contextlib.ExitStack() as stack:
            with storage_errors("repair", layout.path):
                Lease(layout.blobs_fd).close()
            self._sources = [stack.enter_context(Layout.open(Path(source))) for source in sources]
            self._trees = [stack.enter_context(TreeSource(Path(tree))) for tree in trees]
            self._stack = stack.pop_all()
        self._cutter = Cutter(self._trees)

    def run(self, check: Check) -> list[tuple[str, str]]:
        """Mend what ``check`` found to be bad, as far as possible: digests, and where the bytes came from.

        Raises:
            StorageError: if the layout cannot be written to.
        """
        mended: dict[Digest, str] = {}
        with BlobWriter(self._layout, check_existing=True) as writer:
            left: list[Digest] = []
            for digest in check.survey.faults:
                source = self._fetch(writer, digest)
                if source is None:
                    left.append(digest)
                else:
                    mended[digest] = source
            if left and self._trees:
                for digest, data, path in self._cut(check, left):
                    writer.put(data, digest)
                    mended[digest] = f"the files below {path}"
            with self._out_of_the_way(mended):
                writer.commit()
        return [(digest.oci, source) for digest, source in mended.items()]

    def _fetch(self, writer: BlobWriter, digest: Digest) -> str | None:
        if digest in _KNOWN:
            writer.put(_KNOWN[digest], digest)
            return "the format itself"
        for source in self._sources:
            try:
                writer.put_from(source, digest)
            except UnreadableBlobError:
                continue  # it has a bad one, too
            except StorageError:
                raise  # the layout cannot be written to
            except PuzzlefsError:
                continue  # it has none, or another
            else:
                return str(source.path)
        return None

    def _cut(self, check: Check, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes, Path]]:
        """Cut chunks again: digest, stored bytes, tree."""
        wanted = {digest for digest in digests if check.survey.blobs[digest].role == "chunk"}
        numbers = sorted({number for digest in wanted for number in check.survey.blobs[digest].images})
        for number in numbers:
            if not wanted:
                return
            places: dict[Digest, list[tuple[bytes, Use]]] = {}
            with contextlib.suppress(PuzzlefsError), check.open_image(number) as image:
                places = places_of(image, wanted)
            for digest, found in places.items():
                made = self._cutter.blob(digest, found)
                if made is not None:
                    wanted.discard(digest)
                    yield digest, *made

    @contextlib.contextmanager
    def _out_of_the_way(self, digests: dict[Digest, str]) -> Iterator[None]:
        """Move directories that have names of blobs aside; afterwards they are removed if they are empty, or are where
        they were if something went wrong."""
        fd = self._layout.blobs_fd
        moved: dict[str, str] = {}
        with storage_errors("repair", self._layout.path):
            for digest in digests:
                name = digest.hex()
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        aside = f"{TEMPORARY_PREFIX}{os.urandom(8).hex()}-aside"
                        os.rename(name, aside, src_dir_fd=fd, dst_dir_fd=fd)
                        moved[name] = aside
        try:
            yield
        except BaseException:
            for name, aside in moved.items():
                with contextlib.suppress(OSError):  # what is good may have taken its place by now
                    os.rename(aside, name, src_dir_fd=fd, dst_dir_fd=fd)
            raise
        for aside in moved.values():
            with contextlib.suppress(OSError):  # somebody's files are in it
                os.rmdir(aside, dir_fd=fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
