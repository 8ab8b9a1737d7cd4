"""What a tree must answer so that it can be compared with another one.

A *node* stands for an inode: a number in an image, more in a directory of the host. It may be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from puzzlefs.diff.report import EntryState
from puzzlefs.model import FileChunk, Kind

N = TypeVar("N")
A_contra = TypeVar("A_contra", contravariant=True)
B_contra = TypeVar("B_contra", contravariant=True)

Read = Callable[[int, int], bytes]
"""Gives so many bytes of a file from an offset on, fewer at its end."""


class Side(Protocol[N]):
    """One of the two trees. Every method raises ``PuzzlefsError`` where the tree cannot be read."""

    @property
    def mount_points(self) -> Sequence[bytes]:
        """Paths of directories on which something else is mounted, and which therefore count as empty."""
        ...

    @property
    def root(self) -> N:
        """The root directory."""
        ...

    def resolve(self, path: bytes) -> tuple[N, Kind, bytes] | None:
        """What ``path`` leads to, symbolic links on the way followed inside the tree: the node, its kind, and where it
        really is. ``None`` if there is nothing."""
        ...

    def entries(self, node: N) -> Sequence[tuple[bytes, N, Kind]]:
        """The entries of a directory, sorted by name; none of them malformed."""
        ...

    def state(self, node: N) -> EntryState:
        """What there is to say of an inode, but for content and links."""
        ...

    def links(self, node: N) -> Hashable | None:
        """The same for all names of one file that is no directory; ``None`` if it has only one."""
        ...

    def may_have_links(self) -> bool:
        """Whether ``links`` has anything to say at all."""
        ...

    def identity(self, node: N) -> Hashable | None:
        """The same for an inode of this tree and one of the other only if these are one inode."""
        ...

    def parts(self, node: N) -> Sequence[FileChunk] | None:
        """The parts of chunks that a regular file is made of; ``None`` if this tree has no chunks."""
        ...

    def reading(self, node: N) -> AbstractContextManager[Read]:
        """A regular file, open for reading."""
        ...


class Hints(Protocol[A_contra, B_contra]):
    """What is known of two trees beforehand, so that not everything has to be looked at."""

    def candidates(self, directory: A_contra, other: B_contra, /) -> Collection[object] | None:
        """Those nodes in a directory of both trees that have to be looked at; ``None``: all of them."""
        ...

    def unlike(self, nodes: Sequence[A_contra], others: Sequence[B_contra], /) -> list[int]:
        """The positions of those pairs of nodes, one of each tree, that may differ, but for what is in directories."""
        ...
