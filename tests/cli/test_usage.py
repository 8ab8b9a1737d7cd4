"""``puzzlefs inspect``, ``du`` and ``stats`` as a user types them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import forge as f
from support.forge import Forge

from puzzlefs.digest import Digest
from puzzlefs.image import open_image
from puzzlefs_cli import du, inspect_image, stats

pytestmark = pytest.mark.cli

_COMMAND = [sys.executable, "-m", "puzzlefs_cli"]
DATA = bytes(range(256)) * 100


def run(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[bytes]:
    result = subprocess.run([*_COMMAND, *map(str, words)], capture_output=True, check=False, timeout=60)
    assert result.returncode == code, result.stderr.decode()
    return result


def text(*words: str | Path) -> str:
    result = run(*words)
    assert result.stderr == b""
    return result.stdout.decode()


def on_a_terminal(*words: str | Path) -> str:
    leader, follower = pty.openpty()
    with subprocess.Popen([*_COMMAND, *map(str, words)], stdout=follower, stderr=subprocess.PIPE) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # the last one has closed it
                break
            if not part:
                break
            shown += part
        assert process.wait(timeout=60) == 0
    os.close(leader)
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """Two images, of which the second has one chunk more."""
    forge = Forge(tmp_path / "images")
    names = {b"big": 2, b"odd\n\xff": 3}
    lower = [f.directory(1, names), f.directory(2, {b"file": 4}), f.directory(3, {b"more": 5})]
    shared, own = forge.chunk(DATA), forge.chunk(b"text" * 500, compressed=True)
    forge.image([*lower, f.regular(4, shared), f.regular(5)], tag="a")
    forge.image([*lower, f.regular(4, shared, mtime_ns=1), f.regular(5, own, mtime_ns=1)], tag="b")
    return forge


def documented_keys(module: Any) -> set[str]:
    """The keys that the description of a command names."""
    return set(re.findall(r"``(\w+)``", module.__doc__))


def all_keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {*value, *(key for inner in value.values() for key in all_keys(inner))}
    if isinstance(value, list):
        return {key for inner in value for key in all_keys(inner)}
    return set()


# ---- inspect


def test_inspect_for_people(forge: Forge) -> None:
    shown = text("inspect", forge.reference("b"))
    for line in (
        r"format version +3",
        r"inodes +5: 3 directories, 2 regular files",
        r"timestamps +kept",
        r"content +27\.0 KiB apparent, 27\.0 KiB unique \(1\.00× deduplicated\), 25\.0 KiB stored",
        r"chunks +2, of 2\.0 KiB to 25\.0 KiB, 13\.5 KiB on average",
        r"compression +zstd, 1\.08×; 1 of 2 chunks, plain frames",
        r" +≤ 4 KiB +1 +2\.0 KiB +█+",
        r" +≤ 32 KiB +1 +25\.0 KiB +█+",
        r"org\.opencontainers\.image\.ref\.name +b",
    ):
        assert re.search(f"^{line}$", shown, re.MULTILINE), f"{line}\n{shown}"
    assert text("inspect", forge.path, "b") == shown


def test_inspect_shows_layers_and_what_is_missing(forge: Forge) -> None:
    reference = forge.image([f.directory(1)], [f.directory(1, {b"x": 2}), f.regular(2)], tag="two")
    assert re.search(r"^layer +inodes +metadata\n +2 +1 .*\n +1 +2 ", text("inspect", reference), re.MULTILINE)
    forge.blob_path(Digest.of(DATA)).unlink()
    assert "; 1 MISSING" in text("inspect", forge.reference("a"))


def test_inspect_as_json(forge: Forge) -> None:
    document = json.loads(text("inspect", "--json", forge.reference("b")))
    described = documented_keys(inspect_image)
    assert set(document) <= described
    for key in ("metadata_layers", "chunks"):
        assert all_keys(document[key]) <= described
    assert document["apparent_bytes"] == len(DATA) + 2000
    assert document["kinds"] == {"directory": 3, "regular": 2}
    with_frames = json.loads(text("inspect", "--json", forge.reference("b")))["frames"]
    assert set(with_frames) <= described


@pytest.mark.parametrize("layout", ["v1", "v2", "v3", "v3-zstd"])
def test_objects_as_json(vectors: Path, layout: str) -> None:
    image = f"{vectors / layout}:second"
    rootfs = json.loads(text("inspect", "--rootfs", image))
    manifest = json.loads(text("inspect", "--manifest", image))
    inode = json.loads(text("inspect", "--inode", "1", image))
    assert rootfs["format_version"] == int(layout[1])
    assert (manifest == rootfs) is (int(layout[1]) < 3)
    assert inode["layer"] == len(rootfs["metadata_layers"])
    del inode["layer"]
    assert inode == rootfs["metadata_layers"][0]["inodes"][0]


def test_what_inspect_refuses(forge: Forge) -> None:
    assert b"numbers go up to 5" in run("inspect", "--inode", "6", forge.reference("b"), code=3).stderr
    assert b"not allowed with" in run("inspect", "--json", "--rootfs", forge.reference("b"), code=2).stderr
    assert b"no tag 'c'" in run("inspect", forge.reference("c"), code=3).stderr
    run("inspect", "--digest", "0" * 64, forge.reference("b"), code=5)


# ---- du


def test_du_for_people(forge: Forge) -> None:
    shown = run("du", forge.reference("b")).stdout
    lines = shown.split(b"\n")
    assert re.fullmatch(rb" *apparent +stored +exclusive  path", lines[0])
    assert re.fullmatch(rb" *25\.0 KiB +25\.0 KiB +0 B  /big", lines[1])
    assert lines[2].endswith(b"  /odd")
    assert lines[3] == b"\xff"
    assert re.fullmatch(rb" *27\.0 KiB +25\.0 KiB +(\d+) B  /", lines[4])
    assert b"Removing its tag would free" in lines[-2]


def test_odd_names_are_quoted_on_a_terminal(forge: Forge) -> None:
    shown = on_a_terminal("du", forge.reference("b"))
    assert "  '/odd'$'\\n\\377'\n" in shown
    assert "  /big\n" in shown


def test_du_for_programs(forge: Forge) -> None:
    stored = forge.blob_path(Digest.of(DATA)).stat().st_size
    exact = run("du", "-b", forge.reference("a")).stdout
    lines = [b"25600\t%d\t0\t/big" % stored, b"0\t0\t0\t/odd\n\xff", b"25600\t%d\t0\t/" % stored]
    assert exact == b"".join(line + b"\n" for line in lines)
    assert run("du", "-0", forge.reference("a")).stdout == b"".join(line + b"\0" for line in lines)


def test_which_lines_du_prints(forge: Forge) -> None:
    def paths(*words: str | Path) -> list[bytes]:
        return [line.split(b"\t")[3] for line in run("du", "-0", *words).stdout.split(b"\0")[:-1]]

    image = forge.reference("b")
    assert paths(image) == [b"/big", b"/odd\n\xff", b"/"]
    assert paths("-s", image) == [b"/"]
    assert paths("-d", "0", forge.path, "b") == [b"/"]
    assert paths("-a", image, "big") == [b"/big/file", b"/big"]
    assert paths(forge.path, "b", "/big") == [b"/big"]
    assert paths("--sort", "-a", image) == [b"/", b"/big/file", b"/big", b"/odd\n\xff/more", b"/odd\n\xff"]


def test_du_as_json(forge: Forge) -> None:
    document = json.loads(text("du", "--json", forge.reference("b")))
    assert all_keys(document) <= documented_keys(du)
    assert [row["path"] for row in document["rows"]] == ["/big", "/odd\n\udcff", "/"]
    assert document["freed_bytes"] > document["rows"][-1]["exclusive_bytes"] > 0


def test_what_du_refuses(forge: Forge) -> None:
    image = forge.reference("b")
    assert b"/nothing does not exist" in run("du", image, "/nothing", code=3).stderr
    assert b"one path" in run("du", image, "/big", "/big", code=2).stderr
    run("du", "-s", "-d", "1", image, code=2)
    assert b"not a whole number" in run("du", "-d", "x", image, code=2).stderr


def test_du_says_what_it_cannot_tell(forge: Forge) -> None:
    index = json.loads((forge.path / "index.json").read_bytes())
    forge.blob_path(Digest.parse(index["manifests"][0]["digest"])).unlink()
    result = run("du", "-b", "-s", forge.reference("b"))
    assert result.stdout.split(b"\t")[2] == b"?"
    assert b"cannot be told: a: blob sha256:" in result.stderr
    broken = forge.image([f.directory(1, {b"gone": 9})], tag="broken")
    result = run("du", "-b", "-s", broken, code=4)
    assert result.stdout.endswith(b"\t/\n")
    assert b"/gone: entry" in result.stderr


# ---- stats


def test_stats_for_people(forge: Forge) -> None:
    shown = text("stats", forge.path)
    for line in (
        r" +inodes +apparent +unique +stored +added +exclusive",
        r"a +5 +25\.0 KiB +25\.0 KiB .*",
        r"b +5 +27\.0 KiB +27\.0 KiB .*",
        r"all +52\.0 KiB +27\.0 KiB +[\d.]+ KiB",
        r"shared +a +b",
        r"2 distinct images: 1\.93× smaller by deduplication, 1\.08× by compression; metadata .*",
    ):
        assert re.search(f"^{line}$", shown, re.MULTILINE), f"{line}\n{shown}"


def test_stats_as_json(forge: Forge) -> None:
    document = json.loads(text("stats", "--json", forge.path))
    assert all_keys(document) == documented_keys(stats) - {"null"}
    assert [entry["tag"] for entry in document["entries"]] == ["a", "b"]


def test_remarks_of_stats(forge: Forge, tmp_path: Path) -> None:
    forge.blob(b"x")
    with open_image(forge.reference("b")) as image:
        os.link(forge.blob_path(image.manifest_digest), tmp_path / "elsewhere")
    assert "has hard links elsewhere" in text("stats", forge.path)
    assert "1 blob (1 B) is reached by nothing here." in text("stats", forge.path)
    index = json.loads((forge.path / "index.json").read_bytes())
    manifest = forge.blob_path(Digest.parse(index["manifests"][0]["digest"]))
    f.put_file(manifest, b"no manifest")
    result = run("stats", forge.path, code=4)
    assert b"puzzlefs: a: " in result.stderr
    assert b"corrupt" in result.stderr
    assert "What nothing reaches cannot be told" in result.stdout.decode()
    assert re.search(r"^b .* \?$", result.stdout.decode(), re.MULTILINE)


def test_stats_of_nothing(tmp_path: Path) -> None:
    assert "has no images; 0 blobs" in text("stats", Forge(tmp_path / "empty").path)
    assert b"not an image layout" in run("stats", tmp_path, code=3).stderr


# ---- pictures


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_pictures(forge: Forge, tmp_path: Path, suffix: str) -> None:
    start = {"svg": b"<?xml", "png": b"\x89PNG"}[suffix]
    for verb, what in (("inspect", forge.reference("b")), ("stats", forge.path)):
        picture = tmp_path / f"{verb}.{suffix}"
        assert text(verb, "--plot", picture, what) == ""
        assert picture.read_bytes().startswith(start)
    assert json.loads(text("stats", "--json", "--plot", tmp_path / "again.svg", forge.path))["images"] == 2


def test_where_no_picture_can_be_drawn(forge: Forge, tmp_path: Path) -> None:
    assert b"end with .svg or .png" in run("stats", "--plot", tmp_path / "a.gif", forge.path, code=2).stderr
    without = (
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name == 'matplotlib' else find(name, *more); "
        "from puzzlefs_cli.main import main; import sys; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", without, "stats", "--plot", str(tmp_path / "a.svg"), str(forge.path)]
    result = subprocess.run(words, capture_output=True, check=False, timeout=60)
    assert result.returncode == 6
    assert b"pip install 'puzzlefs[plot]'" in result.stderr
