"""The words after -o."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlefs.errors import InvalidArgumentError
from puzzlefs.mount.options import MountOptions, escape, parse_options

pytestmark = pytest.mark.unit

_DEFAULT = {"ro", "default_permissions", "fsname=image", "subtype=puzzlefs"}


def test_defaults() -> None:
    options = parse_options([])
    assert options == MountOptions()
    assert set(options.libfuse_words("image", as_root=False)) == _DEFAULT
    assert set(options.libfuse_words("image", as_root=True)) == _DEFAULT | {"allow_other"}


@pytest.mark.parametrize(
    ("text", "added"),
    [
        ("allow_other", {"allow_other"}),
        ("default_permissions", set()),
        ("ro", set()),
        ("rw", set()),
        ("dev", {"dev"}),
        ("nodev", set()),
        ("dev,nodev", set()),
        ("nodev,dev", {"dev"}),
        ("suid", {"suid"}),
        ("suid,nosuid", set()),
        ("exec", set()),
        ("noexec", {"noexec"}),
        ("noexec,exec", set()),
        ("auto_unmount", {"auto_unmount"}),
        ("", set()),
        (",,dev,,suid,", {"dev", "suid"}),
        ("defaults,user,_netdev,nofail,x-gvfs-show,comment=a b,user=me", set()),
    ],
)
def test_what_libfuse_is_told(text: str, added: set[str]) -> None:
    assert set(parse_options([text]).libfuse_words("image", as_root=False)) == _DEFAULT | added


@pytest.mark.parametrize("prefix", ["", "no"])
@pytest.mark.parametrize("word", ["atime", "relatime", "strictatime", "lazytime", "diratime"])
def test_access_times_mean_nothing(prefix: str, word: str) -> None:
    assert parse_options([prefix + word]) == MountOptions()


@pytest.mark.parametrize(
    "word",
    [
        *(
            "max_read=1",
            "max_read",
            "allow_root",
            "uid=0",
            "nonempty",
            "kernel_cache",
            "blkdev",
            "fd=3",
            "rootmode=40000",
        ),
        *(
            "allow_other=1",
            "ro=",
            "dev=yes",
            "fsname",
            "fsname=",
            "subtype=",
            "subtype",
            " ro",
            "noro",
            "norw",
            "nodefaults",
        ),
        *("nonoatime", "x", "noexec=", "fsname=a\0b"),
    ],
)
def test_refused(word: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_options([f"noatime,{word},dev"])
    assert word.partition("=")[0] in caught.value.message
    assert caught.value.hint


def test_later_texts_win() -> None:
    assert parse_options(["dev,fsname=a", "nodev,fsname=b"]) == MountOptions(fsname="b")


@pytest.mark.parametrize(
    ("text", "fsname"),
    [
        ("fsname=host:/a:b", "host:/a:b"),
        (r"fsname=a\,b", "a,b"),
        (r"fsname=a\\b", "a\\b"),
        (r"fsname=a\bc", "abc"),
        ("fsname=a=b", "a=b"),
        ("fsname=trailing\\", "trailing\\"),
    ],
)
def test_escapes(text: str, fsname: str) -> None:
    assert parse_options([text]).fsname == fsname


@given(st.text(alphabet=st.characters(exclude_characters="\0"), min_size=1))
def test_escaping_is_undone_by_parsing(name: str) -> None:
    assert parse_options([f"dev,fsname={escape(name)},suid"]) == MountOptions(dev=True, suid=True, fsname=name)
