#!/usr/bin/env python3
"""Bytes stored for a series of versions of one image, beside its peers.

    python benchmarks/space.py [--work DIR] [--base ROOTFS] [--only NAME,…] [--quick] [--out FILE.json]

The versions are those of ``application_series``: a Debian whose Python packages move on release by release. Each
contestant stores one after the other in a place of its own, and after each of them the bytes of all files there are
added up: metadata, manifests and indexes included; directories and what a file system rounds up are not. What is stored
is not timed, so as many contestants are at it as there are processors. Those that are not installed are named; those
that take very long take part only if they are named with --only.

For puzzlefs, the metadata of each version (its rootfs blob and its OCI manifest) are also given apart.

With --only, figures of others that FILE.json holds already are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from application_series import APPLICATION, RELEASES, make_series

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

from rootfs import DebootstrapUnavailableError, cache_dir, debootstrapped_tree

Store = Callable[[Path, Path, int], None]
"""Stores a tree in a directory as the version of that number."""

DEFAULT: Final = "puzzlefs -c"
DENSE: Final = "puzzlefs -c, level 9, compressed metadata"
GZIP: Final = "OCI layers, gzip"
BORG: Final = "borg"

_MB: Final = 1_000_000
_QUICK: Final = 3


@dataclass(frozen=True)
class Contestant:
    """Somebody who stores trees.

    Attributes:
        store: how.
        needs: the program that it takes.
        is_slow: it takes many minutes, so it takes part only if it is named.
    """

    store: Store
    needs: str
    is_slow: bool = False


def run(*words: str | Path, where: Path | None = None, environment: dict[str, str] | None = None) -> None:
    """Run a command that is expected to succeed; its output is shown only if it does not."""
    done = subprocess.run(
        words, cwd=where, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"space: {' '.join(map(str, words))} failed: {done.stderr.strip() or done.stdout.strip()}")


def puzzlefs(*options: str) -> Store:
    program = str(Path(sys.executable).with_name("puzzlefs"))
    return lambda tree, place, number: run(
        program, "build", "-q", "--no-cache", *options, tree, f"{place}/oci:v{number}"
    )


def oci_layers(*compressor: str) -> Store:
    """One layer of what never changes, and one of the application, which each version has anew."""

    def layer(tree: Path, out: Path, *what: str) -> None:
        tar = ["tar", "--create", "--sort=name", "--numeric-owner", "--xattrs", "--directory", str(tree), *what]
        with (
            out.open("wb") as file,
            subprocess.Popen(tar, stdout=subprocess.PIPE) as packing,
            subprocess.Popen(compressor, stdin=packing.stdout, stdout=file) as compressing,
        ):
            if packing.wait() or compressing.wait():
                sys.exit(f"space: tar or {compressor[0]} failed")

    def store(tree: Path, place: Path, number: int) -> None:
        if number == 1:
            layer(tree, place / "base", f"--exclude=./{APPLICATION}", ".")
        layer(tree, place / f"application-{number}", f"./{APPLICATION}")

    return store


def squashfs(tree: Path, place: Path, number: int) -> None:
    image = place / f"{number}.squashfs"
    run("mksquashfs", tree, image, "-comp", "zstd", "-Xcompression-level", "3", "-quiet", "-no-progress")


def erofs(tree: Path, place: Path, number: int) -> None:
    image = place / f"{number}.erofs"
    words: list[str | Path] = ["mkfs.erofs", "-zlz4hc", *(["-Ededupe"] if erofs_can_dedupe() else []), image, tree]
    run(*words)


def erofs_can_dedupe() -> bool:
    """Whether mkfs.erofs knows ``-Ededupe`` (1.6 and later)."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "tree").mkdir()
        words = ["mkfs.erofs", "-zlz4hc", "-Ededupe", f"{directory}/image", f"{directory}/tree"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0


def casync(tree: Path, place: Path, number: int) -> None:
    run("casync", "make", f"--store={place}/store.castr", place / f"{number}.caidx", tree)


def borg(*options: str) -> Store:
    def store(tree: Path, place: Path, number: int) -> None:
        environment = {"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_BASE_DIR": f"{place}-borg-home"}
        if number == 1:
            run("borg", "init", "--encryption=none", place / "repository", environment=environment)
        run("borg", "create", *options, f"{place}/repository::v{number}", ".", where=tree, environment=environment)

    return store


def restic(tree: Path, place: Path, number: int) -> None:
    environment = {"RESTIC_PASSWORD": "space", "RESTIC_REPOSITORY": f"{place}/repository"}
    if number == 1:
        run("restic", "init", environment=environment)
    run("restic", "backup", "--no-cache", ".", where=tree, environment=environment)


CONTESTANTS: Final[dict[str, Contestant]] = {
    "puzzlefs": Contestant(puzzlefs(), "true"),
    DEFAULT: Contestant(puzzlefs("-c"), "true"),
    DENSE: Contestant(puzzlefs("-c", "--compression-level=9", "--compress-metadata"), "true"),
    "puzzlefs -c, level 19": Contestant(puzzlefs("-c", "--compression-level=19"), "true", is_slow=True),
    GZIP: Contestant(oci_layers("gzip"), "gzip"),
    "OCI layers, zstd": Contestant(oci_layers("zstd", "-q", "-3"), "zstd"),
    "squashfs zstd-3": Contestant(squashfs, "mksquashfs"),
    "erofs": Contestant(erofs, "mkfs.erofs"),
    "casync": Contestant(casync, "casync"),
    BORG: Contestant(borg(), "borg"),
    "borg zstd-3": Contestant(borg("--compression=zstd,3"), "borg"),
    "restic": Contestant(restic, "restic"),
}


def stored_size(place: Path) -> int:
    """Bytes of all files below a directory; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for directory, _, names in os.walk(place):
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def metadata_sizes(layout: Path) -> list[dict[str, int]]:
    """Of each tag of a version 3 layout, in their order: bytes of its rootfs blob and of its manifest."""
    sizes = []
    blobs = layout / "blobs" / "sha256"
    for entry in json.loads((layout / "index.json").read_text())["manifests"]:
        manifest = (blobs / entry["digest"].removeprefix("sha256:")).read_bytes()
        layers = json.loads(manifest)["layers"]
        rootfs = next(layer for layer in layers if ".rootfs." in layer["mediaType"])
        sizes.append({"rootfs": rootfs["size"], "manifest": len(manifest), "chunks": len(layers) - 1})
    return sizes


def measure(name: str, trees: Sequence[Path], work: Path) -> tuple[list[int], list[dict[str, int]]]:
    """Bytes stored by a contestant after each version, and, if it is puzzlefs, the metadata of each."""
    sizes = []
    with tempfile.TemporaryDirectory(dir=work, prefix="store-") as directory:
        place = Path(directory) / "store"
        place.mkdir()
        for number, tree in enumerate(trees, 1):
            CONTESTANTS[name].store(tree, place, number)
            sizes.append(stored_size(place))
            print(f"{name}: {sizes[-1] / _MB:.1f} MB after {number}", file=sys.stderr)
        layout = place / "oci"
        return sizes, metadata_sizes(layout) if layout.exists() else []


def table(stored: dict[str, list[int]], metadata: dict[str, list[dict[str, int]]]) -> str:
    """The figures as Markdown."""
    count = max(map(len, stored.values()))
    base = stored.get(GZIP)
    lines = [
        f"| stored, MB | after 1 | after {count} | a version adds | metadata of one version |",
        "|---|---|---|---|---|",
    ]
    for name, sizes in stored.items():
        own = metadata.get(name)
        each = sum(one["rootfs"] + one["manifest"] for one in own) / len(own) / _MB if own else None
        ratio = f" ({sizes[0] / base[0]:.3f} × gzip)" if base and name == DEFAULT else ""
        adds = (sizes[-1] - sizes[0]) / max(len(sizes) - 1, 1) / _MB
        shown = f"{each:.2f}" if each else ""
        lines.append(f"| {name} | {sizes[0] / _MB:.1f}{ratio} | {sizes[-1] / _MB:.1f} | {adds:.1f} | {shown} |")
    return "\n".join(lines)


def verdicts(stored: dict[str, list[int]]) -> list[str]:
    """What was aimed at, and whether it was reached."""
    goals = (
        ("one image, defaults, is not larger than OCI gzip layers", DEFAULT, GZIP, 0, 1.0),
        ("the series, defaults, is not larger than borg's store", DEFAULT, BORG, -1, 1.0),
        ("the series, dense, is 10 % below borg's store", DENSE, BORG, -1, 0.9),
        ("the series, dense, is 10 % below borg's store with zstd", DENSE, "borg zstd-3", -1, 0.9),
    )
    return [
        f"- {'met' if stored[mine][when] <= factor * stored[peer][when] else 'missed'}: {text}: "
        f"{stored[mine][when] / _MB:.1f} MB beside {stored[peer][when] / _MB:.1f} MB "
        f"({stored[mine][when] / stored[peer][when]:.3f})"
        for text, mine, peer, when, factor in goals
        if mine in stored and peer in stored
    ]


def default_base() -> Path:
    """The Debian of the demonstration; ends the program where it is not there and cannot be made."""
    try:
        return debootstrapped_tree(cache_dir())[0]
    except DebootstrapUnavailableError as error:
        sys.exit(f"{error}; a tree can be named with --base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where the trees are kept (default: the user's cache directory)")
    parser.add_argument("--base", type=Path, help="the Debian (default: that of make demo)")
    parser.add_argument("--only", help="contestants, separated by semicolons")
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} versions only")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    work = args.work or cache_dir() / "series"
    releases = RELEASES[:_QUICK] if args.quick else RELEASES
    trees = make_series(args.base or default_base(), work / "trees", releases)
    stored: dict[str, list[int]] = {}
    metadata: dict[str, list[dict[str, int]]] = {}
    if args.only and args.out and args.out.exists():
        known = json.loads(args.out.read_text())
        stored, metadata = known["stored"], known["metadata"]
    taking_part: list[str] = []
    chosen = args.only.split(";") if args.only else [name for name, who in CONTESTANTS.items() if not who.is_slow]
    for name in chosen:
        if name not in CONTESTANTS:
            parser.error(f"there is no contestant {name!r}; there are {'; '.join(CONTESTANTS)}")
        if shutil.which(CONTESTANTS[name].needs) is None:
            print(f"left out, not installed: {name}", file=sys.stderr)
        else:
            taking_part.append(name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of them keep one processor busy
        measured = pool.map(partial(measure, trees=trees, work=work), taking_part)
        for name, (sizes, own) in zip(taking_part, measured, strict=True):
            stored[name] = sizes
            if own:
                metadata[name] = own
    ordered = {name: stored[name] for name in CONTESTANTS if name in stored}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        figures = {"versions": releases, "stored": ordered, "metadata": metadata}
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(ordered, metadata))
    print()
    print("\n".join(verdicts(ordered)))


if __name__ == "__main__":
    main()
