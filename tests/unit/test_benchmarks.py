"""What benchmarks make of their figures: verdicts, tables, the data of plots. Nothing is measured here."""

import json
from pathlib import Path

import pytest
from contestants import contestants
from figures import Figures, census, load, save
from generated_image import generate
from goals import BUILDING, READING, Goal, judge, judge_all
from measures import hash_seconds
from plots import MINE, bars, colour, lines
from reading import rounds_of
from report import document, stored_bytes, write_report
from tables import about, ratio_table, shown, stored_table, tally, verdict_table

import puzzlefs

pytestmark = pytest.mark.unit

MACHINE = {"cpu": "2 × a CPU", "kernel": "6.1", "python": "3.11.2", "memory": "8 GiB", "file system": "ext4"}


def some_figures() -> Figures:
    return Figures(
        "reading",
        "2026-01-02",
        MACHINE,
        {"name": "tree", "inodes": 1234, "bytes": 5_000_000},
        {"erofsfuse": "not installed"},
        {
            "puzzlefs": {"find cold": [0.3, 0.1, 0.2], "random": [900.0], "memory": [50.0], "memory 3": [51.0]},
            "squashfuse_ll": {"find cold": [0.4, 0.4, 0.5], "random": [1000.0]},
        },
    )


@pytest.mark.parametrize(
    ("goal", "measured", "is_met"),
    [
        (Goal("find cold", "puzzlefs", 0.5, "squashfuse_ll"), 0.5, True),
        (Goal("find cold", "puzzlefs", 0.49, "squashfuse_ll"), 0.5, False),
        (Goal("random", "puzzlefs", 1.0, "squashfuse_ll", at_least=True), 0.9, False),
        (Goal("random", "puzzlefs", 0.9, "squashfuse_ll", at_least=True), 0.9, True),
        (Goal("memory", "puzzlefs", 80), 50.0, True),
        (Goal("memory", "puzzlefs", 49), 50.0, False),
        (Goal("memory 3", "puzzlefs", 1.05, "puzzlefs", "memory"), 1.02, True),
        (Goal("memory 3", "puzzlefs", 2, less="memory"), 1.0, True),
    ],
)
def test_a_verdict_compares_medians(goal: Goal, measured: float, is_met: bool) -> None:
    verdict = judge(goal, some_figures())
    assert verdict is not None
    assert verdict.measured == pytest.approx(measured)
    assert verdict.is_met is is_met


@pytest.mark.parametrize("goal", [Goal("tar cold", "puzzlefs", 1), Goal("memory", "puzzlefs", 1, "squashfuse_ll")])
def test_there_is_no_verdict_about_what_was_not_measured(goal: Goal) -> None:
    assert judge(goal, some_figures()) is None
    assert judge_all([goal], some_figures()) == ([], [goal])
    assert "not measured" in verdict_table(some_figures(), [goal])


def test_goals_are_told_apart_by_their_titles_and_texts() -> None:
    for goals in (READING, BUILDING):
        assert len({(goal.title, goal.text) for goal in goals}) == len(goals)


@pytest.mark.parametrize(
    ("name", "measure", "rounds"),
    [
        ("puzzlefs", "tar", range(5)),
        ("ext4", "tar", range(5)),
        ("ext4", "file", range(2)),
        ("squashfuse_ll", "tar", range(2)),
        ("squashfuse_ll", "g++", range(5)),
        ("squashfs", "find", range(2)),
        ("puzzlefs pyfuse3", "tar", range(1)),
    ],
)
def test_who_is_not_compared_takes_part_in_few_rounds(name: str, measure: str, rounds: range) -> None:
    (who,) = (who for who in contestants() if who.name == name)
    assert rounds_of(who, measure, 5) == rounds


def test_the_verdict_table_shows_goal_ratio_and_medians() -> None:
    table = verdict_table(some_figures(), [Goal("find cold", "puzzlefs", 0.65, "squashfuse_ll")])
    assert table.splitlines()[2] == "| find cold | ≤ 0.65 × squashfuse_ll | **0.50** | 0.200 : 0.400 s | yes |"
    assert tally(some_figures(), [Goal("memory", "puzzlefs", 80), Goal("x", "puzzlefs", 1)]) == (
        "1 of 1 goals met, 1 not measured"
    )


def test_the_ratio_table_leaves_gaps_where_nothing_was_measured() -> None:
    table = ratio_table(some_figures(), "puzzlefs", ["find cold", "memory", "tar cold"])
    assert table.splitlines() == [
        "|  | find cold, s | memory, MiB |",
        "|---|---|---|",
        "| puzzlefs | 0.200 | 50.0 |",
        "| squashfuse_ll | 0.400 (0.50) | – |",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34, "s", "12.3"),
        (1.234, "s", "1.23"),
        (0.1234, "s", "0.123"),
        (0.00123, "s", "0.0012"),
        (123456.7, "reads/s", "123,457"),
        (123.4, "MiB", "123"),
        (3.21, "%", "3.2"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_parts_of_one_run_add_up(tmp_path: Path) -> None:
    path = tmp_path / "results" / "part.json"
    save(some_figures(), path)
    more = some_figures()
    more.results = {"puzzlefs": {"find cold": [0.9]}, "ext4": {"find cold": [0.1]}}
    more.take_over(load(path))
    assert more.results["puzzlefs"]["find cold"] == [0.3, 0.1, 0.2, 0.9]
    assert more.columns() == ["find cold", "random", "memory", "memory 3"]
    assert [entry.name for entry in path.parent.iterdir()] == ["part.json"]


def test_parts_of_different_runs_do_not_add_up() -> None:
    other = some_figures()
    other.tree = {"name": "another", "inodes": 1, "bytes": 1}
    with pytest.raises(ValueError, match="another"):
        some_figures().take_over(other)


def test_a_census_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link").symlink_to("a")
    assert census(tmp_path) == (4, 5)


def test_bars_show_medians_and_ranges() -> None:
    (panel,) = bars(some_figures(), {"find cold": "find", "tar cold": "tar"})
    assert panel.title == "find"
    assert panel.names == ("puzzlefs", "squashfuse_ll")
    assert panel.values == (0.2, 0.4)
    assert (panel.low, panel.high) == ((0.1, 0.4), (0.3, 0.5))
    assert colour("puzzlefs zstd") == MINE != colour("ext4")


def test_lines_are_ordered_by_where_they_end() -> None:
    assert lines({"small": [1e6, 2e6], "none": [], "large": [3e6, 9e6]}) == [
        ("large", [(1, 3.0), (2, 9.0)]),
        ("small", [(1, 1.0), (2, 2.0)]),
    ]


def test_stored_bytes_are_taken_from_what_has_their_shape() -> None:
    text = json.dumps({"stored": {"borg": [1, 2.5], "empty": [], "words": ["x"]}, "more": 1})
    assert stored_bytes(text) == {"borg": [1.0, 2.5]}
    assert stored_bytes("[]") == stored_bytes('{"stored": 1}') == {}
    assert "| borg | 1.0 | 2.5 |" in stored_table({"borg": [1e6, 2.5e6]})


def test_the_report_has_a_section_for_what_was_measured() -> None:
    text = document("2026-01-02", some_figures(), None, {"borg": [1e6]})
    assert about(some_figures()) in text
    assert "erofsfuse (not installed)" in text
    assert "## Space" in text
    assert "## Building" not in text


def test_the_same_figures_give_the_same_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed; `make setup` does it")
    pictures = []
    for name in ("a", "b"):
        save(some_figures(), tmp_path / name / "2026-01-02-reading.json")
        (tmp_path / name / "2026-01-02-space.json").write_text('{"stored": {"borg": [1, 2], "puzzlefs": [1, 1.5]}}')
        write_report("2026-01-02", tmp_path / name)
        pictures.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.svg")})
    assert sorted(pictures[0]) == ["2026-01-02-reading.svg", "2026-01-02-space.svg"]
    assert pictures[0] == pictures[1]
    assert b"squashfuse_ll" in pictures[0]["2026-01-02-reading.svg"]


def test_a_generated_image_has_as_many_inodes_as_asked_for(tmp_path: Path) -> None:
    generate(f"{tmp_path}/image:t", 2500)
    with puzzlefs.open_image(f"{tmp_path}/image:t") as image:
        tree = image.tree
        assert len({entry.ino for _, _, entry in tree.walk()} | {tree.root}) == 2500
        directory = tree.lookup(tree.root, b"d000001")
        file = tree.lookup(directory.ino, b"f000999")
        assert len(image.read(file.ino, 0, 4096)) == 64
    assert hash_seconds(tmp_path / "image") > 0
