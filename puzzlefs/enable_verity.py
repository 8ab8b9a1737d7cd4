"""Enabling fs-verity on every file of an image: the operation behind ``puzzlefs enable-fs-verity``.

fs-verity cannot be taken off a file again, and a file that got it with wrong content stays wrong for good. So
everything is checked before anything is touched:

1. the manifest, by the digest that the caller names; with it every digest that the metadata records;
2. every other file: by the kernel's measurement where it has fs-verity already, else by its content;
3. only then fs-verity is enabled, file by file, and each is measured and compared once more. The manifest comes last:
   where it has fs-verity, all the others do.

A run that was interrupted can be repeated. What each file has to measure comes from the level above, as when an image
is opened: the caller names the manifest's digest, the manifest names the rootfs's (version 3, an annotation), the
rootfs those of chunks and inode vectors. Nothing records one for the config of version 3, which is two bytes that the
manifest holds by their sha256: it is computed here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from puzzlefs.blobs import Layout
from puzzlefs.blobs.host import hash_file, storage_errors
from puzzlefs.digest import Digest, VerityDigest
from puzzlefs.errors import FormatError, IntegrityError, VerityNotEnabledError
from puzzlefs.image import Image, open_image
from puzzlefs.model import InodeTable, RegularFile
from puzzlefs.oci import ImageReference, media_types
from puzzlefs.verity import enable, find_measurement, measure, verity_digest, verity_digest_of_file

_MAX_CONFIG_SIZE = 4 << 20


@dataclass(frozen=True, slots=True)
class EnableReport:
    """What ``enable_fs_verity`` did.

    Attributes:
        enabled: files that got fs-verity.
        already_enabled: files that had it.
        size: bytes of all of these files together.
    """

    enabled: int
    already_enabled: int
    size: int


@dataclass(frozen=True, slots=True)
class _File:
    """A blob, what it is, and the fs-verity digest that the level above names."""

    what: str
    digest: Digest
    expected: VerityDigest


def enable_fs_verity(
    reference: ImageReference | str,
    digest: VerityDigest | str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> EnableReport:
    """Enable fs-verity on every file of an image, and check that the kernel measures what the image records.

    Files that have it already are measured all the same. Nothing is touched unless every file is good.

    Args:
        reference: the image, ``OCI_DIR:TAG``.
        digest: the fs-verity digest of its manifest, as ``build`` printed it; 64 hex digits.
        progress: called after each file with the bytes that were gone through, and of how many: all bytes of the image
            twice, once to check them and once for the kernel.

    Raises:
        IntegrityError: if the manifest is another one, a file is not what the image says, or the image records wrong
            digests, as compressed images of the original implementation do.
        NotFoundError: if the layout, the tag or a blob is missing.
        FormatError: if the image is malformed.
        VerityUnavailableError: if the kernel or the file system has no fs-verity; it says which of the two.
        StorageError: if a file cannot be read, or fs-verity cannot be enabled on it (open for writing, read-only,
            not permitted, no room).
        InvalidArgumentError: if the reference or the digest is malformed.
    """
    with open_image(reference, digest=digest, verity="user") as image:
        manifest = _File("manifest", image.manifest_digest, image.verity_digest())
        _require_fs_verity(image.layout, manifest)
        files = [*_files_below_manifest(image), manifest]
        with storage_errors("look at the blobs of", image.layout.path):
            sizes = [image.layout.blob_size(file.digest) or 0 for file in files]  # of what is missing, ``_check`` tells
        size = sum(sizes)
        done = enabled = 0
        for step in (_check, _enable):
            for file, file_size in zip(files, sizes, strict=True):
                enabled += step(image.layout, file)
                done += file_size
                if progress is not None:
                    progress(done, 2 * size)
    return EnableReport(enabled, len(files) - enabled, size)


def _files_below_manifest(image: Image) -> Iterator[_File]:
    """Chunks, inode vectors, rootfs and config, each once."""
    for digest in _chunks(image):
        yield _File("chunk", digest, _recorded(image, digest, "chunk"))
    for digest in dict.fromkeys(ref.digest for ref in image.metadata_refs):
        yield _File("metadata", digest, _recorded(image, digest, "metadata"))
    if image.manifest is not None:
        rootfs = image.manifest.rootfs()
        text = rootfs.annotation(media_types.VERITY_ROOT_HASH)
        if text is None:
            raise _unrecorded("rootfs", rootfs.digest)
        yield _File("rootfs", rootfs.digest, VerityDigest.from_hex(text))
        config = image.manifest.config.digest
        yield _File("config", config, verity_digest(image.blobs.read(config, limit=_MAX_CONFIG_SIZE)))


def _chunks(image: Image) -> Iterator[Digest]:
    """The chunks that the inodes of any metadata layer use, each once.

    Those that only hidden inodes use need not be there: no reader asks for them, and tools that copy the deltas of
    the original implementation leave them behind.
    """
    seen: set[Digest] = set()
    above: list[InodeTable] = []
    for table in image.rootfs.metadata_layers:
        for inode in table:
            if not isinstance(inode.content, RegularFile):
                continue
            used = {chunk.blob.digest for chunk in inode.content.chunks} - seen
            if used and any(upper.kind(inode.ino) is not None for upper in above):
                used = {digest for digest in used if image.layout.blob_size(digest) is not None}
            seen |= used
            yield from sorted(used)
        above.append(table)


def _recorded(image: Image, digest: Digest, what: str) -> VerityDigest:
    expected = image.rootfs.verity.get(digest)
    if expected is None:
        raise _unrecorded(what, digest)
    return expected


def _unrecorded(what: str, digest: Digest) -> FormatError:
    return FormatError(
        f"the image records no fs-verity digest for its {what} {digest.oci}", hint="build the image again"
    )


def _require_fs_verity(layout: Layout, manifest: _File) -> None:
    """Asks the kernel about one file before all of them are read for nothing.

    Raises:
        VerityUnavailableError: if the kernel or the file system has no fs-verity.
    """
    with _opened(layout, manifest) as fd, contextlib.suppress(VerityNotEnabledError):
        measure(fd)


def _check(layout: Layout, file: _File) -> bool:
    """Checks a file, however it can be checked. Nothing is enabled: it returns false."""
    with _opened(layout, file) as fd:
        measured = find_measurement(fd)
        if measured is None:
            _compare(layout, file, fd, verity_digest_of_file(fd))
        else:
            _compare(layout, file, fd, measured, by_kernel=True)
    return False


def _enable(layout: Layout, file: _File) -> bool:
    """Enables fs-verity on a file, checks what the kernel measures, and returns whether the file did not have it."""
    with _opened(layout, file) as fd:
        is_new = find_measurement(fd) is None
        if is_new:
            enable(fd)
        _compare(layout, file, fd, measure(fd), by_kernel=True)
    return is_new


def _compare(layout: Layout, file: _File, fd: int, actual: VerityDigest, *, by_kernel: bool = False) -> None:
    """Raises an ``IntegrityError`` that says why, if a digest is not the one expected.

    The sha256 in the file's name tells a bad file from an image that records the digest of other bytes.
    """
    if actual == file.expected:
        return
    path = layout.blob_path(file.digest)
    if verity_digest_of_file(fd) == file.expected:
        subject = f"the fs-verity digest that {file.what} {path} was enabled with"
        hint = "its content is good: put a copy of the file in its place, which has no fs-verity yet"
    elif hash_file(fd) == file.digest:
        subject = f"the fs-verity digest that the image records for {file.what} {path}"
        hint = (
            "the file itself is intact: compressed images of the original implementation record the digests of other "
            "bytes for chunks that did not shrink; build the image again"
        )
    else:
        subject = f"{file.what} {path}" + (" (measured by the kernel)" if by_kernel else "")
        hint = "restore it from a good copy"
    raise IntegrityError(subject, expected=file.expected.hex(), actual=actual.hex(), hint=hint)


@contextlib.contextmanager
def _opened(layout: Layout, file: _File) -> Iterator[int]:
    with storage_errors(f"read the {file.what}", layout.blob_path(file.digest)):
        fd = layout.open_blob(file.digest)
        try:
            yield fd
        finally:
            os.close(fd)
