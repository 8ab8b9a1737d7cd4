"""``puzzlefs fsck``: check an OCI directory or an image, and mend it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.oci import ImageReference, make_reference, parse_reference
from puzzlefs_cli.arguments import HelpFormatter
from puzzlefs_cli.exit_codes import ExitCode
from puzzlefs_cli.progress import add_progress_options, begin_work, count_of
from puzzlefs_cli.quoting import shell_escape
from puzzlefs_cli.text import counted, readable

if TYPE_CHECKING:
    from puzzlefs.fsck import BadBlob, FsckReport

_EPILOG = """\
Checked are the index, manifests, and of every blob that an image needs its presence, sha256 and recorded fs-verity
digest; that every inode decodes, and that the tree is one. With --quick, only presence and sizes of blobs.

With --repair, a bad blob is fetched from an OCI directory that has a good one (--from), or cut once more from the files
that it was made of (--from-rootfs: the directory that the image was built from, unpacked or mounted). Nothing is
trusted before its digest agrees.

exit codes:
  0  clean: nothing is wrong, or everything that was has been repaired
  5  repairable: blobs are missing or damaged; whoever has good ones can mend it
  4  lost: no source has what is bad, or metadata are malformed although their digests agree: build the image again

--json prints one object: state (clean, repairable, lost), quick, images, blobs, bytes, inodes,
bad [{digest, role, fault, detail, hits [{image, is_whole, files}]}], malformed [{image, path, message}],
remarks [{kind, image, message}], unreachable_blobs and unreachable_bytes (null if unknown), left_over_files,
left_over_bytes, repaired [{digest, source}], seconds. Paths are text, with bytes that are none as lone surrogates.

examples:
  puzzlefs fsck images
  puzzlefs fsck images:debian --repair --from /backup/images --from-rootfs rootfs
"""

_EXIT_CODES: Final = {"clean": ExitCode.OK, "repairable": ExitCode.INTEGRITY, "lost": ExitCode.BAD_IMAGE}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "fsck",
        help="check an OCI directory or an image, and mend it",
        description="Check an OCI directory, or one image in it, to the last byte, and mend what is damaged.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs fsck [--quick] [--repair [--from OCI_DIR]... [--from-rootfs DIR]...] [--json] OCI_DIR|IMAGE",
    )
    parser.add_argument(
        "words", nargs="+", metavar="OCI_DIR|IMAGE", help="an OCI directory, or one image: OCI_DIR:TAG, or OCI_DIR TAG"
    )
    parser.add_argument("--quick", action="store_true", help="look at names and sizes of blobs only, and read no chunk")
    parser.add_argument("--repair", action="store_true", help="mend what is damaged")
    parser.add_argument(
        "--from",
        dest="sources",
        action="append",
        default=[],
        metavar="OCI_DIR",
        help="with --repair: an OCI directory that may have good blobs; may be given more than once",
    )
    parser.add_argument(
        "--from-rootfs",
        dest="trees",
        action="append",
        default=[],
        metavar="DIR",
        help="with --repair: a directory that an image was built from; may be given more than once",
    )
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    add_progress_options(parser, "no remarks, only what is wrong")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    target = layout_or_image(args.words)

    from puzzlefs.fsck import fsck  # noqa: PLC0415  imported when it is needed: starting must be quick

    begin_work()
    with count_of(args, "checking", in_bytes=True) as progress:
        report = fsck(
            target, quick=args.quick, repair=args.repair, sources=args.sources, trees=args.trees, progress=progress
        )
    if args.json:
        print(json.dumps(as_json(report)))
    else:
        for line in lines(report, quiet=args.quiet):
            print(line)
    return _EXIT_CODES[report.state]


def layout_or_image(given: Sequence[str]) -> Path | ImageReference:
    """What ``OCI_DIR|IMAGE`` says: one word that is a directory is a layout, any other names an image.

    Raises:
        InvalidArgumentError: if there are too many words, or they name no image.
    """
    match given:
        case [one] if os.path.isdir(one):  # noqa: PTH112  an error is told by who opens it
            return Path(one)
        case [one]:
            try:
                return parse_reference(one)
            except InvalidArgumentError:
                return Path(one)  # whose absence will be reported
        case [layout, tag]:
            return make_reference(layout, tag)
        case _:
            raise InvalidArgumentError(
                "too many arguments: OCI_DIR or IMAGE expected",
                hint="IMAGE is OCI_DIR:TAG, or the two words OCI_DIR TAG",
            )


def lines(report: FsckReport, *, quiet: bool) -> list[str]:
    """The report for people."""
    result: list[str] = []
    for digest, source in report.repaired:
        result.append(f"repaired: {digest}, from {source}")
    for blob in report.bad:
        result += _lines_of(blob)
    for found in report.malformed:
        where = found.image if found.path is None else f"{found.image}: {shell_escape(found.path)}"
        result.append(f"malformed: {where}: {found.message}")
    if not quiet:
        result += [f"note: {remark.image}: {remark.message}" for remark in report.remarks]
        if report.unreachable_blobs:
            size = readable(report.unreachable_bytes or 0)
            is_one = report.unreachable_blobs == 1
            what = f"{counted(report.unreachable_blobs, 'blob')} ({size}) {'is' if is_one else 'are'} in no image"
            result.append(f"note: {what}: puzzlefs gc removes {'it' if is_one else 'them'}")
        if report.left_over_files:
            size = readable(report.left_over_bytes)
            is_one = report.left_over_files == 1
            what = f"{counted(report.left_over_files, 'temporary file')} ({size}) {'was' if is_one else 'were'}"
            result.append(f"note: {what} left behind: puzzlefs gc removes {'it' if is_one else 'them'}")
    if not quiet or report.state != "clean":
        result.append(_summary(report))
    return result


def _lines_of(blob: BadBlob) -> list[str]:
    detail = f" ({blob.detail})" if blob.detail else ""
    result = [f"{blob.fault}: {blob.role} {blob.digest}{detail}"]
    for hit in blob.hits:
        if hit.is_whole:
            result.append(f"  hits all of {hit.image}")
        elif not hit.files:
            result.append(f"  is in {hit.image}, but no file has bytes in it")
        else:
            result += [f"  hits {hit.image}: {shell_escape(path)}" for path in hit.files]
    return result


def _summary(report: FsckReport) -> str:
    what = f"{counted(len(report.images), 'image')}, {counted(report.blobs, 'blob')}"
    if not report.quick:
        what += f", {readable(report.bytes)}, {counted(report.inodes, 'inode')}"
    bad = f"{counted(len(report.bad), 'blob')} {'is' if len(report.bad) == 1 else 'are'} bad"
    match report.state:
        case "clean":
            return f"clean: {what}" + (" (contents were not read)" if report.quick else "")
        case "repairable":
            return (
                f"repairable: {what}; {bad}: puzzlefs fsck --repair with --from a good copy, or --from-rootfs the "
                "directory it was built from"
            )
        case _:
            malformed = counted(len(report.malformed), "place")
            return f"lost: {what}; {bad}, {malformed} malformed: build it again"


def as_json(report: FsckReport) -> dict[str, object]:
    """The report as an object whose keys do not change."""
    return {
        "state": str(report.state),
        "quick": report.quick,
        "images": list(report.images),
        "blobs": report.blobs,
        "bytes": report.bytes,
        "inodes": report.inodes,
        "bad": [
            {
                "digest": blob.digest,
                "role": blob.role,
                "fault": str(blob.fault),
                "detail": blob.detail,
                "hits": [
                    {"image": hit.image, "is_whole": hit.is_whole, "files": [os.fsdecode(path) for path in hit.files]}
                    for hit in blob.hits
                ],
            }
            for blob in report.bad
        ],
        "malformed": [
            {
                "image": found.image,
                "path": None if found.path is None else os.fsdecode(found.path),
                "message": found.message,
            }
            for found in report.malformed
        ],
        "remarks": [
            {"kind": str(remark.kind), "image": remark.image, "message": remark.message} for remark in report.remarks
        ],
        "unreachable_blobs": report.unreachable_blobs,
        "unreachable_bytes": report.unreachable_bytes,
        "left_over_files": report.left_over_files,
        "left_over_bytes": report.left_over_bytes,
        "repaired": [{"digest": digest, "source": source} for digest, source in report.repaired],
        "seconds": round(report.seconds, 3),
    }
