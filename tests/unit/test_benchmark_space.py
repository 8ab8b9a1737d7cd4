"""What ``benchmarks/space.py`` makes of stored bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from application_series import RELEASES
from space import BORG, CONTESTANTS, DEFAULT, DENSE, GZIP, metadata_sizes, stored_size, table, verdicts

from puzzlefs.builder import StorageOptions, build

pytestmark = pytest.mark.unit

STORED = {DEFAULT: [90_000_000, 120_000_000], DENSE: [80_000_000, 91_000_000], GZIP: [100_000_000, 200_000_000]}


def test_files_are_counted_once_and_directories_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "sub" / "empty").mkdir(parents=True)
    (tmp_path / "sub" / "file").write_bytes(bytes(1000))
    (tmp_path / "link").hardlink_to(tmp_path / "sub" / "file")
    (tmp_path / "other").write_bytes(bytes(24))
    assert stored_size(tmp_path) == 1024


def test_metadata_is_that_of_every_tag(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(2):
        (root / f"{number}").write_bytes(b"%d" % number * 100_000)
        storage = StorageOptions(compress_metadata=bool(number))
        build(root, f"{tmp_path}/oci:v{number}", compression=True, storage=storage)
    first, second = metadata_sizes(tmp_path / "oci")
    assert (first["chunks"], second["chunks"]) == (1, 2)
    assert second["rootfs"] < first["rootfs"] < 1000
    assert first["manifest"] < second["manifest"]


def test_the_table_has_a_line_for_each_contestant() -> None:
    own = {DEFAULT: [{"rootfs": 900_000, "manifest": 100_000, "chunks": 5}] * 2}
    lines = table(STORED, own).splitlines()
    assert lines[0] == "| stored, MB | after 1 | after 2 | a version adds | metadata of one version |"
    assert lines[2] == f"| {DEFAULT} | 90.0 (0.900 × gzip) | 120.0 | 30.0 | 1.00 |"
    assert lines[4] == f"| {GZIP} | 100.0 | 200.0 | 100.0 |  |"


def test_verdicts_are_given_where_both_were_measured() -> None:
    assert [line.split(":")[0] for line in verdicts(STORED)] == ["- met"]
    told = verdicts({**STORED, BORG: [95_000_000, 100_000_000]})
    assert [line.split(":")[0] for line in told] == ["- met", "- missed", "- missed"]
    assert told[1].endswith("120.0 MB beside 100.0 MB (1.200)")


def test_the_series_moves_on_with_every_version() -> None:
    assert len(RELEASES) >= 10
    assert len(set(RELEASES)) == len(RELEASES)
    assert {DEFAULT, DENSE, GZIP, BORG} <= CONTESTANTS.keys()
