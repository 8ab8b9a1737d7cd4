"""How much of a live mount has been verified, and verifying all of it.

What has to be sound is what reading the image can need: its manifest, configuration, rootfs and metadata, and every
chunk that a visible file has bytes in. Each is verified as reads are: in the verity mode of the mount, against the
digests that it was opened with.

All of it runs beside the server, in the same interpreter, so the passes over the metadata give way every few
milliseconds of work: a request must not wait for them.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from puzzlefs.digest import SHA256_SIZE, Digest
from puzzlefs.errors import FormatError, PuzzlefsError
from puzzlefs.model import ROOT_INO, Kind
from puzzlefs.mount.digest_set import DigestSet
from puzzlefs.mount.error_log import EventKind, kind_of_event
from puzzlefs.mount.operations import Operations

MAX_BAD: Final = 1000
"""Bad blobs that are named; of others no more is known than how many there are."""

_SLICE: Final = 256
"""Parts of files between two moments of giving way."""
_OVERLAP: Final = 4
"""How many times more parts than the metadata have room for files can have that share lists (format/README.md, 13)."""
_MOMENT: Final = 50e-6
_MAX_FILES: Final = 256
"""Files that are named for one bad blob."""
_MAX_REPORTED: Final = 16
"""Files of one bad blob that become events of the mount."""
_REQUEST: Final = "verification of"


class BadBlob(NamedTuple):
    """A blob that failed.

    Attributes:
        digest: sha256 in hex.
        role: ``manifest``, ``config``, ``rootfs``, ``metadata`` or ``chunk``.
        kind: what is wrong.
        message: what is wrong, in words.
        files: paths of files that have bytes in it, from the image's root on; of a chunk alone.
        more_files: how many others there are that are not named.
    """

    digest: str
    role: str
    kind: EventKind
    message: str
    files: tuple[str, ...]
    more_files: int


class Verified(NamedTuple):
    """The end of a verification.

    Attributes:
        blobs: how many blobs were looked at.
        size: their bytes, as far as they could be read.
        bad: how many of them are bad.
    """

    blobs: int
    size: int
    bad: int


class Soundness:
    """What there is to verify in one mount. Not for several threads."""

    def __init__(self, operations: Operations) -> None:
        """About the image that ``operations`` serve; nothing is looked at yet."""
        self._operations = operations
        self._image = operations.image
        self._total: int | None = None

    def checked(self) -> int:
        """How many blobs were verified at least once."""
        return len(self._operations.checked)

    def total(self, alive: Callable[[], None]) -> int:
        """How many blobs there are; the first call goes through all metadata.

        Args:
            alive: called now and then; may raise to end it.

        Raises:
            FormatError: if the metadata are malformed as a whole.
        """
        if self._total is None:
            self._total = len(self._needed(alive)) // SHA256_SIZE
        return self._total

    def verify(
        self, progress: Callable[[int, int], None], report: Callable[[BadBlob], None], alive: Callable[[], None]
    ) -> Verified:
        """Read and verify every blob once. What is bad is logged, too, and becomes events of the mount.

        Args:
            progress: called after each blob with how many are done, of how many; may raise to end it.
            report: called with bad blobs, when all are done; with ``MAX_BAD`` at most.
            alive: called now and then where there is no progress to tell; may raise, too.

        Raises:
            FormatError: if the metadata are malformed as a whole.
        """
        needed = self._needed(alive)
        self._total = total = len(needed) // SHA256_SIZE
        progress(0, total)
        size = count = 0
        bad: dict[Digest, PuzzlefsError] = {}
        for number in range(total):
            digest = Digest(bytes(needed[number * SHA256_SIZE : (number + 1) * SHA256_SIZE]))
            try:
                size += self._image.check_blob(digest)
            except PuzzlefsError as error:
                count += 1
                if count <= MAX_BAD:
                    bad[digest] = error.with_traceback(None)
            progress(number + 1, total)
        for blob in self._describe(bad, alive):
            report(blob)
        return Verified(total, size, count)

    # ---- inside

    def _describe(self, bad: Mapping[Digest, PuzzlefsError], alive: Callable[[], None]) -> Iterator[BadBlob]:
        errors, roles = self._operations.errors, self._roles()
        users = self._users({digest for digest in bad if digest not in roles}, alive)
        paths = errors.paths({ino for inos in users.values() for ino in inos[:_MAX_FILES]})
        for digest, error in bad.items():
            inos = users.get(digest, array("Q"))
            for ino in inos[:_MAX_REPORTED] or (ROOT_INO,):
                errors.report(_REQUEST, ino, error, path=paths.get(ino))
            files = sorted(paths.get(ino, f"inode {ino}") for ino in inos[:_MAX_FILES])
            role, kind = roles.get(digest, "chunk"), kind_of_event(error)
            yield BadBlob(digest.hex(), role, kind, str(error), tuple(files), len(inos) - len(files))

    def _roles(self) -> dict[Digest, str]:
        """The blobs that are no chunks."""
        image = self._image
        roles = {ref.digest: "metadata" for ref in image.metadata_refs}
        if image.manifest is not None:
            roles[image.manifest.config.digest] = "config"
            roles[image.manifest.rootfs().digest] = "rootfs"
            roles[image.manifest_digest] = "manifest"
        else:
            roles[image.manifest_digest] = "rootfs"
        return roles

    def _needed(self, alive: Callable[[], None]) -> bytearray:
        """The digests of all blobs, each once, one behind the other."""
        found = bytearray()
        seen = DigestSet(len(self._image.rootfs.verity))
        for digest in self._roles():
            if seen.add(digest):
                found += digest
        for _, digest in self._uses(alive):
            if seen.add(digest):
                found += digest
        return found

    def _users(self, digests: set[Digest], alive: Callable[[], None]) -> dict[Digest, array[int]]:
        """The visible files that have bytes in some chunks."""
        users: dict[Digest, array[int]] = {}
        for ino, digest in self._uses(alive) if digests else ():
            if digest in digests:
                inos = users.setdefault(digest, array("Q"))
                if not inos or inos[-1] != ino:
                    inos.append(ino)
        return users

    def _uses(self, alive: Callable[[], None]) -> Iterator[tuple[int, Digest]]:
        """Every visible file with each chunk that it has bytes in; files that are malformed are passed over."""
        tree = self._image.tree
        most = _OVERLAP * tree.max_entries
        count = 0
        for ino in tree.links().visible:
            if tree.kind(ino) is not Kind.REGULAR:
                continue
            with contextlib.suppress(PuzzlefsError):
                for part in tree.parts(ino):
                    count += 1
                    if count % _SLICE == 0:
                        time.sleep(_MOMENT)
                        alive()
                    if part.length:
                        yield ino, part.blob.digest
            if count > most:
                raise FormatError("the files have more parts than this image can hold")
