"""The command line's own decisions: how images are named, which exit code an error means."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from puzzlefs import errors
from puzzlefs.errors import InvalidArgumentError, PuzzlefsError
from puzzlefs_cli.arguments import size, words
from puzzlefs_cli.exit_codes import ExitCode, exit_code
from puzzlefs_cli.main import describe, parse

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("given", "layout", "tag"),
    [
        (["images:debian"], "images", "debian"),
        (["/a:b/c:d"], "/a:b/c", "d"),
        (["a:b:c"], "a:b", "c"),
        (["dir with space:v1.2-rc_3"], "dir with space", "v1.2-rc_3"),
        (["./x:y"], "x", "y"),
        (["images", "debian"], "images", "debian"),
        (["a:b", "c"], "a:b", "c"),
        (["a:b:", "c"], "a:b:", "c"),
    ],
)
def test_an_image_is_one_word_or_two(given: list[str], layout: str, tag: str) -> None:
    before, reference, after = words(["ROOT", *given, "MNT"], ["ROOTFS"], ["MOUNTPOINT"])
    assert (before, after) == (["ROOT"], ["MNT"])
    assert (reference.layout, reference.tag) == (Path(layout), tag)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["ROOT"],
        ["ROOT", "noimage"],
        ["ROOT", "dir:"],
        ["ROOT", ":tag"],
        ["ROOT", "dir:ta g"],
        ["ROOT", "dir", "ta g"],
        ["ROOT", "dir", "tag", "more"],
        ["ROOT", "dir", ""],
        ["ROOT", "", "tag"],
    ],
)
def test_words_that_name_no_image_are_a_usage_error(given: list[str]) -> None:
    with pytest.raises(InvalidArgumentError):
        words(given, ["ROOTFS"], [])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgumentError("x"), 2),
        (errors.NotFoundError("x"), 3),
        (errors.TagNotFoundError("layout", "tag", ["a"]), 3),
        (errors.BlobNotFoundError("00", "path"), 3),
        (errors.PathNotFoundError("x", "path"), 3),
        (errors.PathError("x", "path"), 2),
        (errors.PathNotDirectoryError("x", "path"), 2),
        (errors.PathIsDirectoryError("x", "path"), 2),
        (FileNotFoundError(2, "No such file or directory", "x"), 3),
        (errors.FormatError("x"), 4),
        (errors.UnsupportedVersionError(9), 4),
        (errors.UnsafePathError("x"), 4),
        (errors.IntegrityError("x", expected="a", actual="b"), 5),
        (errors.VerityUnavailableError("x"), 6),
        (errors.VerityNotEnabledError("x"), 6),
        (errors.UnsupportedError("x"), 6),
        (errors.SourceError("x"), 7),
        (errors.StorageError("x"), 7),
        (errors.MountError("x"), 7),
        (OSError(5, "Input/output error"), 7),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 70),
    ],
)
def test_each_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_no_error_of_ours_is_a_defect_and_none_ends_with_the_code_of_diff() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PuzzlefsError)]
    assert len(kinds) > 10
    for kind in kinds:
        error = kind.__new__(kind)
        assert exit_code(error) not in (ExitCode.DEFECT, ExitCode.OK, 1), kind


def test_an_error_is_one_line_that_ends_with_the_next_step() -> None:
    assert describe(InvalidArgumentError("bad\nthing", hint="do this")) == "bad thing; do this"
    assert "--debug" in describe(ZeroDivisionError("x"))


@pytest.mark.parametrize(
    "given",
    [
        ["build", "-c", "--debug", "root", "oci:t"],
        ["build", "root", "-c", "oci:t", "--debug"],
        ["--debug", "build", "root", "oci:t", "-c"],
        ["build", "-c", "--debug", "--", "root", "oci:t"],
    ],
)
def test_options_may_stand_between_the_words(given: list[str]) -> None:
    args = parse(given)
    assert (args.words, args.compression, args.debug) == (["root", "oci:t"], True, True)


def test_only_the_module_of_the_verb_is_loaded() -> None:
    code = "import sys; from puzzlefs_cli.main import parse; parse(['umount', '/mnt']); print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "puzzlefs_cli.umount" in printed
    assert "puzzlefs_cli.build" not in printed
    assert not {"trio", "pyfuse3", "capnp", "rich"} & set(printed)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("4096", 4096), ("64K", 65536), ("64k", 65536), ("64KiB", 65536), ("1M", 1 << 20), ("2mib", 2 << 20)],
)
def test_sizes(text: str, number: int) -> None:
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5K", "64KB", "64 K", "1KM", "1G", "٣", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no size"):
        size(text)
