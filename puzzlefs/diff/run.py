"""The comparison: opens both trees, walks them, finds renames, and tells what came out."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from puzzlefs.diff.content import ContentReader
from puzzlefs.diff.image_side import ImageSide
from puzzlefs.diff.needed import needed_by
from puzzlefs.diff.relation import Relation
from puzzlefs.diff.renames import Renames, told
from puzzlefs.diff.report import ASPECTS, Aspect, Difference, DiffReport, EntryState, Status, Way
from puzzlefs.diff.side import Hints, Side
from puzzlefs.diff.walk import Found, Half, Walk
from puzzlefs.errors import InvalidArgumentError, PathNotFoundError
from puzzlefs.image import Image, open_image
from puzzlefs.model import Kind
from puzzlefs.oci import ImageReference
from puzzlefs.vfs.paths import shown

if TYPE_CHECKING:
    from puzzlefs.diff.host_side import HostSide

DIRECTORY_PREFIX: Final = "dir:"
"""What a name begins with that means a directory of the host."""

Source = Image | ImageReference | Path | str
"""An open image, what an image is named, or a directory of the host (``dir:PATH``)."""

A = TypeVar("A")
B = TypeVar("B")
N = TypeVar("N")


def diff(
    old: Source,
    new: Source,
    path: bytes | str = b"",
    *,
    ignore: Collection[Aspect] = (),
    renames: bool = True,
    stat: bool = False,
    cross_mounts: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> DiffReport:
    """How two trees differ.

    Args:
        old: the first: an image (``OCI_DIR:TAG``, or an open one), or a directory (``dir:PATH``, or a ``Path``).
        new: the second, likewise.
        path: compare only what is there in both, and below it. Symbolic links on the way are followed inside each tree.
        ignore: in what entries may differ (``Difference.aspects``), all but ``type``.
        renames: whether to find out what was renamed; else it is removed here and added there.
        stat: whether to tell what the second image needs that the first has not, if both are images.
        cross_mounts: whether to look into directories of the host on which something else is mounted; else they count
            as empty, as for ``build``.
        progress: told now and then how many entries have been compared, and how many bytes of content were read.

    Raises:
        NotFoundError: if one of the two is missing, or neither has ``path``, or a blob is missing that has to be read.
        FormatError: if an image is malformed.
        IntegrityError: if a blob is not what its name says.
        SourceError: if a directory cannot be read, or changes meanwhile.
        StorageError: if the host cannot read a blob.
        InvalidArgumentError: for arguments that make no sense.
    """
    ignored = frozenset(ignore)
    if unknown := ignored - set(ASPECTS) | ignored & {"type"}:
        raise InvalidArgumentError(
            f"{min(unknown)!r} is nothing that can be ignored", hint=f"it is one of {', '.join(ASPECTS[1:])}"
        )
    path = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
    with contextlib.ExitStack() as stack:
        one, other = _open(old, stack), _open(new, stack)
        names = _name(old), _name(new)
        how = _How(path, ignored, renames, progress or (lambda _entries, _bytes: None))
        match one, other:
            case Image(), Image():
                relation = Relation(one, other)
                sides = ImageSide(one, relation.is_one_inode), ImageSide(other, relation.is_one_inode)
                report, files = _compare(names, *sides, relation, how)
                if stat:
                    report = replace(report, needed=needed_by(other, one, files if _components(path) else None))
                return report
            case Image(), Path():
                return _compare(names, ImageSide(one), _host(other, cross_mounts, stack), None, how)[0]
            case Path(), Image():
                return _compare(names, _host(one, cross_mounts, stack), ImageSide(other), None, how)[0]
            case Path(), Path():
                hosts = _host(one, cross_mounts, stack), _host(other, cross_mounts, stack)
                return _compare(names, *hosts, None, how)[0]
            case _:
                raise AssertionError("what is opened is an image or a directory")


@dataclass(frozen=True, slots=True)
class _How:
    path: bytes
    ignored: frozenset[Aspect]
    renames: bool
    progress: Callable[[int, int], None]


def _compare(
    names: tuple[str, str],
    old: Side[A],
    new: Side[B],
    hints: Hints[A, B] | None,
    how: _How,
) -> tuple[DiffReport, list[B]]:
    """Compare two trees; what came out, and the files of the second that differ, or may."""

    def tell() -> None:
        how.progress(walk.entries, content.bytes_read)

    content = ContentReader(tell)
    walk = Walk(old, new, hints, content, how.ignored, tell)
    tops = _top(old, how.path), _top(new, how.path)
    if tops == (None, None):
        raise PathNotFoundError(f"{shown(how.path)} does not exist in either of the two", os.fsdecode(how.path))
    found = walk.run(*tops)
    if how.renames:
        finder = Renames(walk, found)
        finder.by_inode()
        finder.by_content()
    _compare_links(walk)
    result = list(told(found))
    differences = tuple(_difference(walk, entry) for entry in result if _is_told(entry))
    files = [entry.new.node for entry in result if entry.new is not None and entry.new.kind is Kind.REGULAR]
    report = DiffReport(
        old=names[0],
        new=names[1],
        differences=differences,
        entries=walk.entries,
        bytes_read=content.bytes_read,
        needed=None,
        mount_points=(*old.mount_points, *new.mount_points),
    )
    return report, files


def _host(path: Path, cross_mounts: bool, stack: contextlib.ExitStack) -> HostSide:
    # Two images do without the rooms of the builder, which take as long to load as a tenth of all the rest.
    from puzzlefs.diff.host_side import HostSide  # noqa: PLC0415

    return stack.enter_context(HostSide(path, cross_mounts=cross_mounts))


def _open(source: Source, stack: contextlib.ExitStack) -> Image | Path:
    if isinstance(source, Path | Image):
        return source
    if isinstance(source, str) and source.startswith(DIRECTORY_PREFIX):
        directory = source.removeprefix(DIRECTORY_PREFIX)
        if not directory:
            raise InvalidArgumentError(f"{source!r} names no directory", hint="write dir:PATH")
        return Path(directory)
    return stack.enter_context(open_image(source))


def _name(source: Source) -> str:
    if isinstance(source, Image):
        return str(source.reference)
    return f"{DIRECTORY_PREFIX}{source}" if isinstance(source, Path) else str(source)


def _components(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _top(side: Side[N], path: bytes) -> Half[N] | None:
    """Where the comparison begins in a tree."""
    if not _components(path):
        return Half(Way(), side.root, Kind.DIRECTORY)
    found = side.resolve(path)
    if found is None:
        return None
    node, kind, place = found
    return Half(Way.of(place), node, kind)


def _compare_links(walk: Walk[A, B]) -> None:
    """Of files with several names, see whether the same of those that both trees have are one file."""
    pairs: list[tuple[Found[A, B], Hashable, Hashable]] = []
    for number, entry in enumerate(walk.linked):
        if entry.old is not None and entry.new is not None and not entry.is_dropped:
            alone = ("alone", number)  # a file with one name is like no other
            pairs.append((entry, walk.old.links(entry.old.node) or alone, walk.new.links(entry.new.node) or alone))
    old = Counter(one for _, one, _ in pairs)
    new = Counter(other for _, _, other in pairs)
    both = Counter((one, other) for _, one, other in pairs)
    for entry, one, other in pairs:
        if not old[one] == new[other] == both[one, other]:
            entry.aspects.append("links")


def _is_told(entry: Found[A, B]) -> bool:
    return entry.is_renamed or bool(entry.aspects) or entry.old is None or entry.new is None


def _difference(walk: Walk[A, B], entry: Found[A, B]) -> Difference:
    before: EntryState | None = None if entry.old is None else walk.old.state(entry.old.node)
    after: EntryState | None = None if entry.new is None else walk.new.state(entry.new.node)
    status: Status = "renamed" if entry.is_renamed else "changed"
    match entry.old, entry.new:
        case None, Half(way=way):
            return Difference("added", way, way, (), before, after)
        case Half(way=way), None:
            return Difference("removed", way, way, (), before, after)
        case Half(way=old_way), Half(way=way):
            return Difference(status, way, old_way, tuple(entry.aspects), before, after)
        case _:
            raise AssertionError("an entry is in one of the trees")
