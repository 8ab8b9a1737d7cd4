"""The check, the repair in rounds, the report.

A round of repair can bring back a manifest or metadata, and only then is it known what else there has to be. So check
and repair take turns until nothing is bad, or nothing more can be mended.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from puzzlefs.blobs import Layout
from puzzlefs.blobs.inventory import left_overs
from puzzlefs.blobs.lease import LEASE_PREFIX
from puzzlefs.builder.workers import worker_count
from puzzlefs.digest import Digest
from puzzlefs.errors import InvalidArgumentError
from puzzlefs.fsck.check import Check
from puzzlefs.fsck.repair import Repair
from puzzlefs.fsck.report import FsckReport, State
from puzzlefs.oci import Descriptor, ImageReference


def fsck(
    target: Path | str | ImageReference,
    *,
    quick: bool = False,
    repair: bool = False,
    sources: Sequence[Path | str] = (),
    trees: Sequence[Path | str] = (),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FsckReport:
    """Check a layout, or one image in it, and mend what can be mended if that is asked for.

    Args:
        target: a layout's directory, or an image.
        quick: look at names and sizes of blobs only, and read nothing but manifests and metadata.
        repair: fetch bad blobs from ``sources`` or cut them again from ``trees``; nothing is trusted before its digest
            agrees, and what is bad stays until what is good takes its place.
        sources: other layouts that may have good copies.
        trees: directories that images were built from.
        workers: threads; as many as there are CPUs, up to 8, if not given.
        progress: called now and then, in the caller's thread, with the bytes that were read, and of how many.

    Raises:
        NotFoundError: if there is no such layout, tag, source or tree.
        FormatError: if the layout is none, or its index is malformed.
        InvalidArgumentError: for arguments that make no sense.
        StorageError: if the host cannot read the index, or cannot write what was mended.
    """
    started = time.monotonic()
    if not repair and (sources or trees):
        raise InvalidArgumentError("sources are only used for a repair", hint="ask for one, too: --repair")
    reference = target if isinstance(target, ImageReference) else None
    path = target.layout if isinstance(target, ImageReference) else Path(target)
    count = worker_count(workers)
    good: set[Digest] = set()
    repaired: list[tuple[str, str]] = []
    read = 0
    with contextlib.ExitStack() as stack:
        layout = stack.enter_context(Layout.open(path))
        mending = stack.enter_context(Repair(layout, sources, trees)) if repair else None
        while True:
            descriptors = _descriptors(layout, reference)
            check = Check(layout, descriptors, quick, count, progress or (lambda _done, _total: None), good)
            check.run()
            read += check.bytes_read
            mended = mending.run(check) if mending is not None and check.is_bad() else []
            if not mended:
                break
            repaired += mended
            for digest in (Digest.parse(digest) for digest, _ in mended):
                good.discard(digest)
                read -= check.bad_sizes.get(digest, 0)  # the good bytes that took their place are read, too
        bad, malformed = check.bad_blobs(), check.malformed()
        unreachable = None if reference is not None else check.unreachable()
        left = [file.size for file in left_overs(layout, 0) if not file.name.startswith(LEASE_PREFIX)]
        state = State.CLEAN
        if malformed or (bad and repair):
            state = State.LOST
        elif bad:
            state = State.REPAIRABLE
        return FsckReport(
            state=state,
            quick=quick,
            images=tuple(dict.fromkeys(name for entry in check.survey.entries for name in entry.names)),
            blobs=len(check.survey.blobs),
            bytes=read,
            inodes=check.inodes,
            bad=tuple(bad),
            malformed=tuple(malformed),
            remarks=tuple(check.remarks()),
            unreachable_blobs=None if unreachable is None else len(unreachable),
            unreachable_bytes=None if unreachable is None else sum(unreachable),
            left_over_files=len(left),
            left_over_bytes=sum(left),
            repaired=tuple(repaired),
            seconds=time.monotonic() - started,
        )


def _descriptors(layout: Layout, reference: ImageReference | None) -> Sequence[Descriptor]:
    index = layout.read_index()
    if reference is None:
        return index.manifests
    return (layout.find_entry(index, reference.tag),)
