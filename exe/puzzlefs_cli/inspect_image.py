"""``puzzlefs inspect``: what is in an image, in numbers; and its decoded objects.

``--json`` prints one object with the keys of ``puzzlefs.usage.Inspection``: ``image``, ``format_version``, ``digest``,
``manifest``, ``manifest_bytes``, ``metadata_bytes``, ``metadata_is_compressed``, ``metadata_layers`` (``layer``,
``inodes``, ``bytes``, ``blob``, ``has_timestamps``), ``inodes``, ``names``, ``kinds``, ``malformed``,
``apparent_bytes``, ``unique_bytes``, ``stored_bytes``, ``chunks`` (``number``, ``compressed``, ``missing``, ``hidden``,
``hidden_bytes``, ``smallest_bytes``, ``largest_bytes``, ``mean_bytes``, ``sizes``: ``over_bytes``, ``upto_bytes``,
``chunks``, ``bytes``), ``frames`` (``examined_chunks``, ``seekable_chunks``, ``frames``, ``smallest_bytes``,
``largest_bytes``, ``mean_bytes``) or ``null``, ``timestamps`` (``none``, ``some``, ``all``), ``annotations``,
``manifest_annotations``. All ``…bytes`` are exact.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlefs_cli.arguments import IMAGE_HELP, HelpFormatter, words
from puzzlefs_cli.options import add_image_options
from puzzlefs_cli.text import aligned, counted, readable, times

if TYPE_CHECKING:
    from puzzlefs.image import Image
    from puzzlefs.usage import Inspection
    from puzzlefs.usage.frames import FrameSummary
    from puzzlefs.usage.inspection import ChunkSummary

_EPILOG = """\
"apparent" are the bytes of all files, "unique" those of the distinct chunks that they are made of, "stored" those of
the blobs that hold the chunks. Contents are not read.

--manifest, --rootfs and --inode print JSON. Names and targets that are not UTF-8 have surrogate escapes, as in Python's
os.fsdecode; the values of extended attributes are hexadecimal.

examples:
  puzzlefs inspect images:debian
  puzzlefs inspect --inode 36 images:debian | jq .chunks
  puzzlefs inspect --plot debian.svg images:debian
"""

_BAR_WIDTH: Final = 40
_BAR: Final = " ▏▎▍▌▋▊▉█"
_NAMES: Final = {"directory": ("directory", "directories"), "regular": ("regular file", "regular files")}
_PLOT_DEPTH: Final = 3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the verb's command line."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what is in an image, in numbers",
        description="Show what is in an image: version and digests, metadata layers, entries by type, bytes, chunks, "
        "compression; or print one of its objects, decoded.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        usage="puzzlefs inspect [OPTION...] IMAGE",
    )
    parser.add_argument("words", nargs="+", metavar="IMAGE", help=IMAGE_HELP)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print the numbers as one JSON object, exactly")
    what.add_argument("--manifest", action="store_true", help="print the manifest")
    what.add_argument("--rootfs", action="store_true", help="print the rootfs with all inodes of all metadata layers")
    what.add_argument("--inode", type=int, metavar="N", help="print inode N, as the topmost layer that has it says")
    what.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the sizes of the chunks and what takes the space (.svg or .png; needs matplotlib)",
    )
    add_image_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    _, reference, _ = words(args.words, (), ())

    from puzzlefs.image import open_image  # noqa: PLC0415  imported when it is needed: starting must be quick
    from puzzlefs.usage import (  # noqa: PLC0415
        disk_usage,
        inode_in_layers,
        inspect_image,
        manifest_text,
        rootfs_text,
    )

    if args.plot is not None:
        from puzzlefs.plots import check_plot, plot_image  # noqa: PLC0415

        check_plot(args.plot)
    gc.disable()  # all that is made here dies with the process
    with open_image(reference, digest=args.digest, verity=args.verity) as image:
        if args.manifest:
            _print_pieces(manifest_text(image))
        elif args.rootfs:
            _print_pieces(rootfs_text(image))
        elif args.inode is not None:
            print(json.dumps(inode_in_layers(image, args.inode), indent=2))
        elif args.plot is not None:
            plot_image(inspect_image(image), disk_usage(image, max_depth=_PLOT_DEPTH), args.plot)
        else:
            report = inspect_image(image)
            print(json.dumps(dataclasses.asdict(report)) if args.json else "\n".join(_lines(report, image)))
    return 0


def _print_pieces(pieces: Iterable[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
    print()


# ---- for people


def _lines(report: Inspection, image: Image) -> Iterator[str]:
    facts = [
        ("image", report.image),
        ("format version", str(report.format_version)),
        ("digest", report.digest),
        ("manifest", f"{report.manifest}, {readable(report.manifest_bytes)}"),
        ("metadata", _metadata(report)),
        ("inodes", _kinds(report)),
        ("timestamps", {"none": "none", "some": "in some metadata layers", "all": "kept"}[report.timestamps]),
        ("content", _content(report)),
        ("chunks", _chunks(report.chunks)),
        ("compression", _compression(report)),
    ]
    yield from aligned(facts, left=2)
    if len(report.metadata_layers) > 1:
        rows = [("layer", "inodes", "metadata")]
        rows += [(str(layer.layer), str(layer.inodes), readable(layer.bytes)) for layer in report.metadata_layers]
        yield from ("", *aligned(rows))
    if report.chunks.sizes:
        yield from ("", *_histogram(report.chunks))
    texts = {**report.annotations, **report.manifest_annotations}
    if texts:
        yield from ("", *_annotations(texts))


def _metadata(report: Inspection) -> str:
    layers = len(report.metadata_layers)
    compressed = ", compressed" if report.metadata_is_compressed else ""
    return f"{readable(report.metadata_bytes)}{compressed}, {layers} metadata layer{'s' if layers != 1 else ''}"


def _kinds(report: Inspection) -> str:
    kinds = ", ".join(
        f"{count} {_kind(kind, count)}" for kind, count in sorted(report.kinds.items(), key=lambda item: -item[1])
    )
    more = report.names + 1 - report.inodes - report.malformed
    names = f"; {counted(more, 'further name')}" if more > 0 else ""
    malformed = f"; {report.malformed} malformed" if report.malformed else ""
    return f"{report.inodes}: {kinds}{names}{malformed}"


def _kind(kind: str, count: int) -> str:
    name = kind.replace("-", " ")
    return _NAMES.get(kind, (name, f"{name}s"))[count != 1]


def _content(report: Inspection) -> str:
    sizes = (report.apparent_bytes, report.unique_bytes, report.stored_bytes)
    apparent, unique, stored = map(readable, sizes)
    ratio = times(sizes[0] / sizes[1] if sizes[1] else None)
    return f"{apparent} apparent, {unique} unique ({ratio} deduplicated), {stored} stored"


def _chunks(chunks: ChunkSummary) -> str:
    if not chunks.number:
        text = "none"
    else:
        smallest, mean, largest = map(readable, (chunks.smallest_bytes, chunks.mean_bytes, chunks.largest_bytes))
        text = f"{chunks.number}, of {smallest} to {largest}, {mean} on average"
    if chunks.missing:
        text += f"; {chunks.missing} MISSING"
    if chunks.hidden:
        text += f"; {chunks.hidden} more ({readable(chunks.hidden_bytes)}) that no visible file uses"
    return text


def _compression(report: Inspection) -> str:
    if not report.chunks.compressed:
        return "none"
    ratio = times(report.unique_bytes / report.stored_bytes if report.stored_bytes else None)
    return f"zstd, {ratio}; {report.chunks.compressed} of {report.chunks.number} chunks{_frames(report.frames)}"


def _frames(frames: FrameSummary | None) -> str:
    if frames is None or not frames.examined_chunks:
        return ""
    if not frames.seekable_chunks:
        return ", plain frames"
    smallest, mean, largest = map(readable, (frames.smallest_bytes, frames.mean_bytes, frames.largest_bytes))
    per_chunk = frames.frames / frames.seekable_chunks
    sizes = f"of {smallest} to {largest}, {mean} on average"
    return f", seekable frames {sizes}, {per_chunk:.4g} a chunk (of {frames.examined_chunks} chunks looked at)"


def _histogram(chunks: ChunkSummary) -> list[str]:
    most = max(size.chunks for size in chunks.sizes)
    rows = [("chunk size", "chunks", "content", "")]
    for size in chunks.sizes:
        label = f"≤ {_whole(size.upto_bytes)}" if size.upto_bytes is not None else f"> {_whole(size.over_bytes or 0)}"
        rows.append((label, str(size.chunks), readable(size.bytes), _bar(size.chunks / most)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]


def _whole(size: int) -> str:
    return readable(size).replace(".0 ", " ")


def _bar(part: float) -> str:
    eighths = max(1, round(part * _BAR_WIDTH * 8)) if part else 0
    return "█" * (eighths // 8) + _BAR[eighths % 8].strip()


def _annotations(texts: Mapping[str, str]) -> Sequence[str]:
    rows = [("annotation", "")]
    rows += [(_printable(key), _printable(text)) for key, text in texts.items()]
    return aligned(rows, left=2)


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)
