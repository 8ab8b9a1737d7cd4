"""``scripts/original.py``: built once, whole or not at all, and it says what it lacks."""

from __future__ import annotations

from pathlib import Path

import original
import pytest

pytestmark = pytest.mark.unit

CARGO = """#!/bin/sh
echo "$@" >>"$LOG"
while [ $# -gt 0 ]; do
    [ "$1" != --root ] || root=$2
    shift
done
/bin/mkdir -p "$root/bin" "$CARGO_TARGET_DIR"
{}
echo program >"$root/bin/puzzlefs"
"""


def provide(directory: Path, *, fails: bool = False, without: str = "") -> None:
    """Tools of these names, of which ``cargo`` does as if."""
    directory.mkdir()
    for name in {"cargo", "capnp", "cc"} - {without}:
        tool = directory / name
        tool.write_text(CARGO.format("echo broken; exit 7" if fails else "") if name == "cargo" else "")
        tool.chmod(0o755)


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    monkeypatch.setenv("LOG", str(tmp_path / "log"))


def test_each_release_is_built_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    provide(tmp_path / "tools")
    assert [original.built(version) for version in original.RELEASES] == [None, None]
    assert original.main() == 0
    programs = capsys.readouterr().out.split()
    assert programs == [str(original.built(version)) for version in original.RELEASES]
    assert all(Path(program).read_text() == "program\n" for program in programs)
    assert original.main() == 0
    assert len((tmp_path / "log").read_text().splitlines()) == len(original.RELEASES)
    left = {path.name for path in (tmp_path / "cache" / "puzzlefs-demo").iterdir() if path.is_dir()}
    assert left == {Path(program).parents[1].name for program in programs}


def test_what_fails_leaves_nothing_and_says_what_was_printed(tmp_path: Path) -> None:
    provide(tmp_path / "tools", fails=True)
    with pytest.raises(original.OriginalUnavailableError, match=r"exit code 7(?s:.)*broken"):
        original.build(3)
    assert original.built(3) is None
    assert not list((tmp_path / "cache" / "puzzlefs-demo").glob("*.partial"))
    assert original.main() == 1


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    provide(tmp_path / "tools", without="cargo")
    with pytest.raises(original.OriginalUnavailableError, match="cargo"):
        original.build(3)


def test_nowhere_to_keep_it(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    assert original.built(3) is None
    assert original.main() == 1
