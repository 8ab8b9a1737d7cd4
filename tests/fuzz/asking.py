"""Every question about decoded metadata: of tables, of trees, and whether quick answers are the slow ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from puzzlefs.errors import PuzzlefsError
from puzzlefs.model import ROOT_INO, Directory, Inode, InodeTable, Kind, RegularFile, Symlink, kind_of
from puzzlefs.model.rootfs import chunks_of
from puzzlefs.vfs import Tree
from puzzlefs.vfs.paths import resolve, walk_below
from puzzlefs.wire import Likeness, chunk_digests, embedded_sizes, same_records

T = TypeVar("T")

_MANY = 300
_BEYOND = (0, 1, 2, 5, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)
_PLANS = ((0, 0), (0, 1), (0, 4096), (1, 1 << 17), (4095, 2), (1 << 40, 10), ((1 << 63) - 1, 1 << 20))


def attempt(ask: Callable[..., T], *arguments: object) -> T | None:
    """An answer, or nothing where the image is at fault."""
    try:
        return ask(*arguments)
    except PuzzlefsError as error:
        assert error.message
        return None


def answer(ask: Callable[..., Any], *arguments: object) -> Any:
    """An answer, or the name of the error: what two roads to it must agree on."""
    try:
        return ask(*arguments)
    except PuzzlefsError as error:
        assert error.message
        return type(error).__name__


def ask_table(table: InodeTable) -> None:
    """All that a table can be asked."""
    kinds = list(table.kinds())
    assert len(kinds) == len(table)
    assert table.max_ino() == max((ino for ino, _ in kinds), default=0)
    for index, _ in enumerate(_each(table)):
        if index > 4 * _MANY:
            break
    numbers = list(dict.fromkeys(ino for ino, _ in kinds))[:_MANY]
    is_sorted = all(one[0] <= other[0] for one, other in pairwise(kinds))
    known = {ino for ino, _ in kinds}
    has_xattrs = False
    searches = 20
    for ino in {*numbers, *_BEYOND}:
        inode = answer(table.find, ino)
        kind = answer(table.kind, ino)
        assert inode is None or table.mentions(ino)
        assert ino in known or (inode is None and kind is None)
        assert not is_sorted or ino not in known or inode is not None
        numbered = answer(table.entry_numbers, ino)
        glance, names, chunks = table.glance(ino), table.names(ino), table.chunks(ino)
        if not isinstance(inode, Inode):
            assert inode is not None or not is_sorted or (glance, names, chunks) == (None, None, None)
            continue
        has_xattrs |= bool(inode.xattrs)
        assert kind == kind_of(inode.content)
        if is_sorted:  # else what a lookup finds is a matter of chance; a tree refuses such layers
            _compare_quick(inode, glance, names, chunks)
        if isinstance(inode.content, Directory) and isinstance(numbered, tuple):
            assert (list(numbered[0]), numbered[1]) == (
                [e.ino for e in inode.content.entries],
                inode.content.look_below,
            )
        parts = attempt(chunks_of, table, ino) or ()
        for position in (*range(min(len(parts), 40)), len(parts) - 1):
            chunk = attempt(parts.__getitem__, position) if len(parts) > position >= 0 else None
            if chunk is not None and searches:
                searches -= 1
                residents, after = table.files_in(chunk.blob.digest, ino, ino + 1024)
                assert ino <= after <= ino + 1024
                assert all(ino <= resident.ino < ino + 1024 for resident in residents)
    assert table.may_have_xattrs() or not has_xattrs
    size, others = table.total_size(numbers)
    assert size >= 0
    assert set(others) <= set(numbers)
    alive = table.live_kinds(numbers)
    assert alive is None or not is_sorted or alive == [answer(table.kind, ino) for ino in numbers]
    attempt(chunk_digests, table)
    assert same_records(table, table) or not hasattr(table, "place")
    Likeness(table, table).unlike(numbers, numbers)
    attempt(embedded_sizes, [table])


def _each(table: InodeTable) -> Sequence[Inode]:
    """The inodes in their order, up to one that is malformed."""
    found: list[Inode] = []
    try:
        for inode in table:
            found.append(inode)
            if len(found) > 4 * _MANY:
                break
    except PuzzlefsError:
        pass
    return found


def _compare_quick(inode: Inode, glance: Any, names: Any, chunks: Any) -> None:
    content = inode.content
    if glance is not None:
        size = content.size if isinstance(content, RegularFile) else 0
        size = len(content.target) if isinstance(content, Symlink) else size
        slow = (kind_of(content), inode.permissions, inode.uid, inode.gid, size, inode.mtime_ns or 0)
        assert tuple(glance) == slow
        assert not inode.xattrs
    if names is not None:
        assert isinstance(content, Directory)
        assert not content.look_below
        assert list(zip(*names, strict=True)) == [(entry.name, entry.ino) for entry in content.entries]
    if chunks is not None:
        assert isinstance(content, RegularFile)
        assert chunks == list(content.chunks)


def ask_tree(tree: Tree, numbers: Sequence[int] = ()) -> list[tuple[str, Any]]:
    """All that a mount asks of a tree, name by name from the root on; the questions and their answers."""
    told: list[tuple[str, Any]] = []

    def tell(question: str, ask: Callable[..., Any], *arguments: object) -> Any:
        found = answer(ask, *arguments)
        told.append((f"{question} {arguments}", found))
        return found

    tell("kind", tree.kind, ROOT_INO)
    seen: set[int] = set()
    waiting = [ROOT_INO, *numbers]
    while waiting and len(seen) < 4 * _MANY:
        ino = waiting.pop(0)
        if ino in seen:
            continue
        seen.add(ino)
        tell("attributes", tree.attributes, ino)
        tell("xattrs", tree.xattrs, ino)
        kind = tree.kind(ino)
        if kind is not Kind.DIRECTORY:
            tell("readlink", tree.readlink, ino)
            for offset, size in _PLANS if kind is Kind.REGULAR else _PLANS[:1]:
                tell("plan", tree.plan, ino, offset, size)
            tell("parts", lambda ino: list(tree.parts(ino)), ino)
        entries = tell("entries", tree.entries, ino)
        if isinstance(entries, str):
            continue
        names = [entry.name for entry in entries]
        assert names == sorted(set(names))
        assert all(entry.kind is not Kind.WHITEOUT for entry in entries)
        for entry in entries[:_MANY]:
            assert len(entry.name) <= 255
            assert b"/" not in entry.name and b"\0" not in entry.name and entry.name not in (b"", b".", b"..")
            found = tell("lookup", tree.lookup, ino, entry.name)
            if not isinstance(found, str):
                waiting.append(entry.ino)
        tell("lookup", tree.lookup, ino, b"a")
    tell("walk", lambda: list(tree.walk()))
    tell("links", lambda: (set(tree.links().visible), tree.links().shared, tree.links().misplaced))
    tell("totals", tree.totals)
    for path in (b"/", b"a/b", b"/a/../a/./b/", b"c/a", b"c/c/c/d"):
        for follow in (False, True):
            tell("resolve", lambda path=path, follow=follow: resolve(tree, path, follow=follow))
    failed: list[bytes] = []
    top = attempt(resolve, tree, b"/")
    if top is not None:
        tell("below", lambda: list(walk_below(tree, top, b"", failed=lambda path, _: failed.append(path))))
    told.append(("failed", failed))
    return told
