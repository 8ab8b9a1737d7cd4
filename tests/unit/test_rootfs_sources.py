"""Where the demonstration finds the archive that this machine installs from."""

from pathlib import Path

import pytest
from rootfs import DEFAULT_MIRRORS, apt_mirror, deb822_sources, mounts_below, one_line_sources, os_release

pytestmark = pytest.mark.unit

DEB822 = """\
# the usual
Types: deb deb-src
# http://snapshot.debian.org/archive/debian/20250520T000000Z
URIs: https://mirror.example/debian/ https://second.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 URIs: not-a-field

Types: deb
Enabled: no
URIs: https://disabled.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: https://source.example/debian
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://other.example/apt stable main
deb [ arch=amd64 ] http://mirror.example/debian/ bookworm main contrib # ours
deb http://flat.example/debian ./
"""


def test_deb822() -> None:
    assert list(deb822_sources(DEB822)) == [
        ("https://mirror.example/debian/", ["bookworm", "bookworm-updates"], ["main", "contrib"]),
        ("https://second.example/debian", ["bookworm", "bookworm-updates"], ["main", "contrib"]),
    ]


def test_one_line() -> None:
    assert ("http://other.example/apt", ["stable"], ["main"]) in one_line_sources(ONE_LINE)
    assert ("http://mirror.example/debian/", ["bookworm"], ["main", "contrib"]) in one_line_sources(ONE_LINE)
    uris = [uri for uri, _, _ in one_line_sources(ONE_LINE)]
    assert not {"http://commented.example/debian", "http://source.example/debian", "http://flat.example/debian"} & {
        *uris
    }


@pytest.mark.parametrize(("name", "text"), [("sources.list", ONE_LINE), ("sources.list.d/debian.list", ONE_LINE)])
def test_mirror_of_one_line_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert apt_mirror("bookworm", "debian", tmp_path) == "http://mirror.example/debian"
    assert apt_mirror("trixie", "debian", tmp_path) == DEFAULT_MIRRORS["debian"]


def test_mirror_of_deb822_files(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "other.disabled").write_text(DEB822.replace("mirror.", "wrong."))
    assert apt_mirror("bookworm", "debian", tmp_path) == "https://mirror.example/debian"


def test_mirror_without_sources(tmp_path: Path) -> None:
    assert apt_mirror("noble", "ubuntu", tmp_path) == DEFAULT_MIRRORS["ubuntu"]


def test_os_release() -> None:
    assert os_release("NAME=\"Debian GNU/Linux\"\n# A=b\nVERSION_CODENAME=bookworm\n\nID='debian'\n") == {
        "NAME": "Debian GNU/Linux",
        "VERSION_CODENAME": "bookworm",
        "ID": "debian",
    }


def test_mounts_below() -> None:
    assert Path("/proc") in mounts_below(Path("/proc"))
    assert mounts_below(Path("/proc/self/fd")) == []
