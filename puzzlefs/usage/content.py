"""Which inodes use which blobs, and how much of them: one pass over the metadata, kept in a few numbers per reference.

``FileContents`` has what the files that can be seen refer to. ``weigh`` divides what is stored among them, so that the
parts add up to the whole, to the byte:

* What a chunk takes is the size of its blob, as the file system tells it. (What a manifest says of it may be wrong, and
  nothing is read.)
* It is divided among the references to it by the bytes that they use: of a compressed chunk, half of the content is
  half of the blob. A chunk that two equal files use is half the one's and half the other's; what no file uses of it any
  more is carried by those who keep it.
* Fractions of a byte go to the reference at which the sum of the shares so far gets there, in the order of the inodes.
* A chunk of which no byte is used, but which is referred to, is the first reference's.

An inode that is malformed uses nothing, and is counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Final

from puzzlefs.blobs import Layout
from puzzlefs.blobs.host import storage_errors
from puzzlefs.digest import Digest
from puzzlefs.errors import FormatError
from puzzlefs.image import Image
from puzzlefs.model import MAX_FILE_SIZE, Kind

_MAX_NUMBER: Final = (1 << 64) - 1
_ROOM: Final = 1 << 12
_ZEROS: Final = array("Q", [0])
_OVERLAP: Final = 4
"""Inodes may share a list of chunks; this many times what the metadata have room for is too much (format/README.md,
section 13)."""


class BlobNumbers:
    """Digests and the small numbers that stand for them, in the order in which they are met."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[Digest, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._numbers)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._numbers

    def number(self, digest: Digest) -> int:
        """The number of a blob; a new one where it has none."""
        return self._numbers.setdefault(digest, len(self._numbers))

    def numbers(self, digests: Iterable[Digest]) -> set[int]:
        """The numbers of blobs."""
        give, numbers = self._numbers.setdefault, self._numbers
        return {give(digest, len(numbers)) for digest in digests}


class BlobSet:
    """A set of blobs, by number; a byte for each blob that has one."""

    __slots__ = ("_marks", "_numbers")

    def __init__(self, numbers: BlobNumbers, of: Iterable[int] = ()) -> None:
        """The blobs with the numbers ``of``."""
        self._numbers = numbers
        self._marks = bytearray()
        self.mark(of)

    def add(self, digests: Iterable[Digest]) -> None:
        """Put blobs in, which get numbers if they have none."""
        number_of, marks = self._numbers.number, self._marks
        for digest in digests:
            number = number_of(digest)
            if number >= len(marks):
                marks.extend(bytes(len(self._numbers) + _ROOM - len(marks)))
            marks[number] = 1

    def mark(self, of: Iterable[int]) -> None:
        """Put blobs in by number."""
        marks = self._marks
        marks.extend(bytes(max(0, len(self._numbers) - len(marks))))
        for number in of:
            marks[number] = 1

    def __contains__(self, number: int) -> bool:
        return number < len(self._marks) and self._marks[number] == 1

    def __iter__(self) -> Iterator[int]:
        return compress(range(len(self._marks)), self._marks)


class FileContents:
    """What the visible files of an image refer to.

    Attributes:
        inodes: the numbers of the regular files, in the order of the tree.
        sizes: bytes of each of them.
        blobs: numbers of the blobs, reference after reference.
        lengths: how many bytes of its content each reference uses.
        starts: where the references of each file begin, and one number more.
        malformed: regular files that cannot be decoded; they are not among ``inodes``.
    """

    __slots__ = ("_ends", "blobs", "inodes", "lengths", "malformed", "sizes", "starts")

    def __init__(self, image: Image, numbers: BlobNumbers) -> None:
        """Look at every visible inode once.

        Raises:
            FormatError: if the layers are malformed as a whole.
        """
        self.inodes = array("Q")
        self.sizes = array("Q")
        self.blobs = array("Q")
        self.lengths = array("Q")
        self.starts = array("Q", [0])
        # one more than how far any reference to a blob reaches into its content: for raw blobs, for compressed ones
        self._ends = (array("Q"), array("Q"))
        self.malformed = 0
        kind_of, parts = image.tree.kind, image.tree.parts
        number = numbers.number
        add_blob, add_length = self.blobs.append, self.lengths.append
        for ino in image.tree.links().visible:
            if kind_of(ino) is not Kind.REGULAR:
                continue
            try:
                chunks = list(parts(ino))
            except FormatError:
                self.malformed += 1
                continue
            size = sum([chunk.length for chunk in chunks])
            if size > MAX_FILE_SIZE:
                self.malformed += 1
                continue
            for chunk in chunks:
                ref = chunk.blob
                blob = number(ref.digest)
                ends = self._ends[ref.compressed]
                if blob >= len(ends):
                    ends.extend(_ZEROS * (blob + 1 + _ROOM - len(ends)))
                end = ref.offset + chunk.length + 1
                if end > ends[blob]:
                    ends[blob] = min(end, _MAX_NUMBER)
                add_blob(blob)
                add_length(chunk.length)
            if len(self.blobs) > _OVERLAP * image.tree.max_entries:
                raise FormatError(f"{image.reference}: the files have more parts than this image can hold")
            self.inodes.append(ino)
            self.sizes.append(size)
            self.starts.append(len(self.blobs))

    def used(self) -> Iterator[int]:
        """The numbers of the blobs; twice if a blob is said to be raw and compressed."""
        return (number for ends in self._ends for number in compress(range(len(ends)), ends))

    def compressed(self) -> list[int]:
        """The numbers of those that a reference says are compressed."""
        ends = self._ends[True]
        return list(compress(range(len(ends)), ends))

    def content_size(self, blob: int, stored: int) -> int:
        """Bytes of a chunk before compression, as far as can be told without reading it.

        A raw chunk is its blob. Of a compressed one, no more is known than how far files reach into it, which is all of
        it in what builders write.

        Args:
            blob: its number.
            stored: bytes of the blob.
        """
        raw, compressed = (ends[blob] if blob < len(ends) else 0 for ends in self._ends)
        return (stored if raw else 0) + max(compressed - 1, 0)

    def weigh(self, sizes: Sequence[int]) -> list[int]:
        """The part of all blobs that each of ``inodes`` carries.

        Args:
            sizes: bytes of each blob, by number; 0 for one that is not to count.
        """
        uses = [0] * len(sizes)
        for blob, length in zip(self.blobs, self.lengths, strict=True):
            uses[blob] += length
        so_far = [-1] * len(sizes)
        weights: list[int] = []
        starts, blobs, lengths = self.starts, self.blobs, self.lengths
        for file in range(len(self.inodes)):
            weight = 0
            for at in range(starts[file], starts[file + 1]):
                blob, length = blobs[at], lengths[at]
                total = uses[blob]
                if length == total:
                    if total or so_far[blob] < 0:
                        weight += sizes[blob]
                    so_far[blob] = total
                elif length:
                    before = max(so_far[blob], 0)
                    so_far[blob] = after = before + length
                    weight += sizes[blob] * after // total - sizes[blob] * before // total
            weights.append(weight)
        return weights


def blob_sizes(layout: Layout, digests: Iterable[Digest]) -> list[int | None]:
    """The sizes of blobs as the file system tells them, ``None`` for those that are not there.

    Raises:
        StorageError: if the host cannot look for them.
    """
    with storage_errors("look for blobs in", layout.path):
        return [layout.blob_size(digest) for digest in digests]
