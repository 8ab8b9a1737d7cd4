"""``puzzlefs verify``: is all of an image, or of a live mount, sound?"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.oci import ImageReference
from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.exit_codes import ExitCode
from puzzlefs_cli.progress import add_progress_options, begin_work, count_of
from puzzlefs_cli.quoting import shell_escape
from puzzlefs_cli.status import shown
from puzzlefs_cli.text import readable

if TYPE_CHECKING:
    from puzzlefs.mount.status import UnsoundBlob

_DESCRIPTION = """\
Read and check every blob of an image, and say which files are hit by bad ones. Of a live mount, its server does that:
as it was mounted, with the manifest it was mounted from and its verity mode; what is bad shows in `puzzlefs status`
from then on. Only root and the user that mounted it may ask for that.
"""

_EPILOG = """\
Of an image, also its metadata are checked; `puzzlefs fsck` does the same for a whole OCI directory, and can mend it.

exit codes:
  0  sound
  4  all blobs are what their digests say, but metadata are malformed (IMAGE)
  5  not sound: blobs are missing or damaged

--json prints one object: target, kind (image, mount), sound, blobs, bytes, bad_blobs,
bad [{digest, role, fault, detail, whole, files, more_files}], malformed [{path, message}], seconds. A bad blob with
whole hits all of the image. Of a mount, at most 1000 bad blobs are described, with 256 files each; more_files says how
many others there are. Paths are text, with bytes that are none as lone surrogates.

Progress counts bytes of an image, and blobs of a mount.

examples:
  puzzlefs verify /mnt
  puzzlefs verify --digest 9ac9abc0…dc2f5 images:debian
"""

_MANY = 10
"""Files of a bad blob that are listed for people where there are more."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    parser = subparsers.add_parser(
        "verify",
        help="check all of an image, or of a live mount",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs verify [--json] [-q] [--progress auto|json|none] MOUNTPOINT | [-d HEX] IMAGE",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words", nargs="+", metavar="MOUNTPOINT|IMAGE", help=f"where an image is mounted: /mnt; or {IMAGE_HELP}"
    )
    parser.add_argument("-d", "--digest", metavar="HEX", help="of an image: it has to be the one with this digest")
    parser.add_argument("--json", action="store_true", help="print a report as one JSON object")
    add_progress_options(parser, "and nothing at all if it is sound")
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class _Result:
    """What either way finds.

    Attributes:
        malformed: where in the image's tree, and what.
    """

    target: str
    kind: str
    blobs: int
    bytes: int
    bad_blobs: int
    bad: Sequence[UnsoundBlob]
    malformed: Sequence[tuple[str | None, str]]
    seconds: float

    @property
    def is_sound(self) -> bool:
        return not self.bad_blobs and not self.malformed


_WHOLE = frozenset({"index", "manifest", "rootfs", "metadata"})


def run(args: argparse.Namespace) -> int:
    """Do what the command line says."""
    mountpoint = _mountpoint(args.words)
    if mountpoint is not None and args.digest is not None:
        raise InvalidArgumentError(
            "--digest does not go with a mount, which is checked against what it was mounted with",
            hint="`puzzlefs status` shows its digest, and whether it was required",
        )
    begin_work()
    result = _of_image(args) if mountpoint is None else _of_mount(args, mountpoint)
    if args.json:
        print(json.dumps(_as_json(result)))
    else:
        for line in _lines(result, quiet=args.quiet):
            print(line)
    if result.bad_blobs:
        return ExitCode.INTEGRITY
    return ExitCode.BAD_IMAGE if result.malformed else ExitCode.OK


def _mountpoint(given: Sequence[str]) -> str | None:
    """The mount point, if that is what the words are: one that is mounted, or a directory that cannot be an image."""
    if len(given) != 1:
        return None
    from puzzlefs.mount.mountinfo import mounted_at  # noqa: PLC0415  other verbs should not pay for it

    (word,) = given
    if mounted_at(Path(os.path.realpath(word))) is not None:
        return word
    if (Path(word) / "oci-layout").is_file():
        raise InvalidArgumentError(
            f"{word} is an OCI directory, and not one image in it",
            hint=f"name one, as in {word}:TAG, or check all of them: puzzlefs fsck {word}",
        )
    return word if ":" not in word else None


def _of_mount(args: argparse.Namespace, mountpoint: str) -> _Result:
    from puzzlefs.mount.status import verify_mount  # noqa: PLC0415

    with count_of(args, "checking") as progress:
        found = verify_mount(mountpoint, progress=progress)
    return _Result(
        mountpoint, "mount", found.blobs, found.bytes, found.bad_blobs, found.bad, (), round(found.seconds, 3)
    )


def _of_image(args: argparse.Namespace) -> _Result:
    from puzzlefs.fsck import fsck  # noqa: PLC0415
    from puzzlefs.mount.status import UnsoundBlob  # noqa: PLC0415

    _, reference, _ = words(args.words, (), ())
    before = _opened(reference, args.digest)
    with count_of(args, "checking", in_bytes=True) as progress:
        report = fsck(reference, progress=progress)
    if _opened(reference, args.digest) != before:
        raise InvalidArgumentError(f"{reference} was moved to another image meanwhile", hint="verify it again")
    bad = [
        UnsoundBlob(
            blob.digest,
            blob.role,
            str(blob.fault),
            blob.detail,
            sorted({os.fsdecode(path) for hit in blob.hits for path in hit.files}),
            0,
        )
        for blob in report.bad
    ]
    malformed = [(None if it.path is None else os.fsdecode(it.path), it.message) for it in report.malformed]
    target = str(reference)
    return _Result(target, "image", report.blobs, report.bytes, len(bad), bad, malformed, round(report.seconds, 3))


def _opened(reference: ImageReference, digest: str | None) -> str | None:
    """The manifest of the image that somebody named by its digest; what is wrong with another one is told by fsck."""
    if digest is None:
        return None
    from puzzlefs.image import open_image  # noqa: PLC0415

    with open_image(reference, digest=digest, verity="user") as image:
        return image.manifest_digest.oci


def _lines(result: _Result, *, quiet: bool) -> list[str]:
    lines: list[str] = []
    for blob in result.bad:
        detail = f" ({shown(blob.detail)})" if blob.detail else ""
        lines.append(f"{shown(blob.fault)}: {shown(blob.role)} {shown(blob.digest)}{detail}")
        if blob.role in _WHOLE:
            lines.append("  hits all of it")
        files = [shell_escape(path.encode("utf-8", "surrogateescape")) for path in blob.files]
        more = blob.more_files + max(0, len(files) - _MANY) if len(files) > _MANY + 1 else blob.more_files
        lines += [f"  hits {path}" for path in (files[:_MANY] if len(files) > _MANY + 1 else files)]
        if more:
            lines.append(f"  and {more} other files")
    if result.bad_blobs > len(result.bad):
        lines.append(f"and {result.bad_blobs - len(result.bad)} other bad blobs")
    for path, message in result.malformed:
        where = "" if path is None else f"{shell_escape(path.encode('utf-8', 'surrogateescape'))}: "
        lines.append(f"malformed: {where}{shown(message)}")
    what = f"{shown(result.target)}: {_counted(result.blobs, 'blob')}, {readable(result.bytes)}"
    if result.is_sound:
        return lines if quiet else [*lines, f"sound: {what}"]
    wrong = [f"{_counted(result.bad_blobs, 'bad blob')}"] if result.bad_blobs else []
    wrong += [f"{_counted(len(result.malformed), 'place')} malformed"] if result.malformed else []
    hint = ": puzzlefs fsck --repair mends it, with --from a good copy" if result.bad_blobs else ": build it again"
    return [*lines, f"not sound: {what}; {', '.join(wrong)}{hint}"]


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _as_json(result: _Result) -> dict[str, object]:
    return {
        "target": result.target,
        "kind": result.kind,
        "sound": result.is_sound,
        "blobs": result.blobs,
        "bytes": result.bytes,
        "bad_blobs": result.bad_blobs,
        "bad": [
            {
                "digest": blob.digest,
                "role": blob.role,
                "fault": blob.fault,
                "detail": blob.detail,
                "whole": blob.role in _WHOLE,
                "files": list(blob.files),
                "more_files": blob.more_files,
            }
            for blob in result.bad
        ],
        "malformed": [{"path": path, "message": message} for path, message in result.malformed],
        "seconds": result.seconds,
    }
