"""What differs between two trees as values (``support.trees``): a comparison that knows nothing of images."""

from __future__ import annotations

from collections import defaultdict

from puzzlefs.diff import DiffReport
from support import trees

FIELDS = {
    "content": ("size", "sha256"),
    "target": ("target",),
    "device": ("device",),
    "mode": ("permissions",),
    "owner": ("uid", "gid"),
    "xattrs": ("xattrs",),
    "mtime": ("mtime_ns",),
}

Expected = dict[bytes, tuple[str, frozenset[str]]]


def compared(old: trees.Tree, new: trees.Tree) -> Expected:
    """What differs, by path: in one tree only, or in what."""
    result: Expected = {path: ("removed", frozenset()) for path in old.keys() - new.keys()}
    result |= {path: ("added", frozenset()) for path in new.keys() - old.keys()}
    common = old.keys() & new.keys()
    links = linked_otherwise(old, new, common)
    for path in common:
        a, b = old[path], new[path]
        aspects = {"links"} if path in links else set()
        if a["type"] != b["type"]:
            aspects.add("type")
        else:
            aspects |= {aspect for aspect, names in FIELDS.items() if any(a.get(n) != b.get(n) for n in names)}
        if aspects:
            result[path] = ("changed", frozenset(aspects))
    return result


def linked_otherwise(old: trees.Tree, new: trees.Tree, common: set[bytes]) -> set[bytes]:
    """The paths whose files have other names, among those that both trees have."""
    files = {path for path in common if "dir" not in (old[path]["type"], new[path]["type"])}

    def names(tree: trees.Tree) -> dict[bytes, frozenset[bytes]]:
        groups: dict[bytes, set[bytes]] = defaultdict(set)
        for path in files:
            groups[tree[path].get("same_as", path)].add(path)
        return {path: frozenset(group) for group in groups.values() for path in group}

    before, after = names(old), names(new)
    return {path for path in files if before[path] != after[path]}


def told(report: DiffReport) -> Expected:
    result: Expected = {}
    for one in report.differences:
        path = one.path or b"."
        assert path not in result
        assert (one.before is None, one.after is None) == (one.status == "added", one.status == "removed")
        result[path] = (one.status, frozenset(one.aspects))
    return result
