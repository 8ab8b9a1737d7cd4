"""What the benchmark of metadata layers compares: one tree, kept in one layer, in many, in two. Nothing is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from layers import make_contestants, make_measures, tables_of

from puzzlefs.image import open_image
from puzzlefs.model import Kind
from puzzlefs.vfs import Tree

pytestmark = pytest.mark.unit

COUNT = 6


def test_all_contestants_show_one_tree(tmp_path: Path) -> None:
    maker, contestants = make_contestants(2000, COUNT, 20)
    assert {name: len(layers) for name, layers in contestants.items()} == {
        "1 layer": 1,
        "6 layers": 6,
        "2 whole layers": 2,
    }
    shown = {}
    for number, (name, layers) in enumerate(contestants.items()):
        with open_image(maker.commit(tmp_path / str(number), layers)) as image:
            tree = image.tree
            shown[name] = [
                (
                    path,
                    entry,
                    tree.attributes(entry.ino),
                    image.read(entry.ino, 0, 4096) if entry.kind is Kind.REGULAR else b"",
                )
                for path, _, entry in tree.walk()
            ]
            assert tree.totals().inodes == len(shown[name]) + 1
    assert shown["1 layer"] == shown["6 layers"] == shown["2 whole layers"]
    changed = [attributes for _, _, attributes, _ in shown["1 layer"] if attributes.mode & 0o777 == 0o600]
    assert 20 <= len(changed) <= 20 * (COUNT - 1)
    assert sum(entry.name.startswith(b"new") for _, entry, _, _ in shown["1 layer"]) >= COUNT - 1


def test_every_measure_runs() -> None:
    _, contestants = make_contestants(500, 3, 5)
    tables = [tables_of(layers) for layers in contestants.values()]
    measures = make_measures(tables[0])
    assert len(measures) == 9
    assert all(measure(contestant) >= 0 for measure in measures.values() for contestant in tables)


def test_layers_are_small_and_say_only_what_changed() -> None:
    _, contestants = make_contestants(2000, COUNT, 20)
    *upper, base = contestants["6 layers"]
    assert all(len(layer) <= 20 + 2 * 5 for layer in upper)
    assert len(base) > 1900
    assert Tree(tables_of([base])).totals().inodes == len(base)
